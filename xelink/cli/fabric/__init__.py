"""`xelink fabric`: what the kernel driver of Xe Links replies, frame by frame."""
