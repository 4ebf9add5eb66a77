"""What makes any process here a good citizen: flags, logs, probes and metrics, signals."""
