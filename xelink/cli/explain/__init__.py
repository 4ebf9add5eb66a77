"""`xelink explain`: which GPUs a Pod would get, and why."""
