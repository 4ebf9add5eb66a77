"""A kubelet as far as a device plugin meets it."""
