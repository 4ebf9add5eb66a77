"""The tool on the roof: see the topology, explain it, try it."""
