"""The sysfs and devfs of a node that is not there."""
