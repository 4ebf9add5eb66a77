"""The writer: XPU Manager's topology becomes labels that NFD publishes."""
