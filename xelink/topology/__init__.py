"""What both daemons and the tool exchange: tiles, links, labels and the feature file.

Pure and standard library only: values in, values out; no clock, no file, no socket, no logger.
"""
