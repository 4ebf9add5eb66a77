"""`xelink demo`: the daemons against the simulators."""
