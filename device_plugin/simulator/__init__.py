"""What surrounds the device plugin, without the hardware; nothing real imports it."""
