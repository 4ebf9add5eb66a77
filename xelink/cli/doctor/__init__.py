"""`xelink doctor`: what is wrong on a node, and what to do."""
