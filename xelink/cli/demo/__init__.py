"""`xelink demo`: the whole story on the simulators."""
