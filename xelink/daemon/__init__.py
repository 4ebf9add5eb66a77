"""The runtime of any process of ours: flags, logs, probes and metrics, signals."""
