"""Which set of GPUs is best for a request, and why. Pure."""
