"""The device plugin: labels and sysfs become devices, preferences and allocations for kubelet."""
