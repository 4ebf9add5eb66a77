"""`xelink show`: the topology of a node, or the nodes of a cluster."""
