"""The tool `xelink`: see the topology, explain it, try it."""
