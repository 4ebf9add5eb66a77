"""`xelink completion`: completion scripts for shells."""
