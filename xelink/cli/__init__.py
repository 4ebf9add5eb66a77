"""The tool `xelink`: shows, explains, simulates and diagnoses topologies."""
