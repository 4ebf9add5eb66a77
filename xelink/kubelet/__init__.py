"""kubelet's directory and sockets."""
