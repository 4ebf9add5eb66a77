"""The writer: the topology of a node becomes labels that NFD publishes."""
