"""What surrounds the daemons, without the hardware, for tests and demos."""
