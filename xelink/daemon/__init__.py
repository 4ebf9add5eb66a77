"""The runtime of our processes: flags, logs, probes and metrics, signals."""
