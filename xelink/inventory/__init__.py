"""What is on this node: GPUs, their links, their health, their CDI spec."""
