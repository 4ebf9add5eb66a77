"""Xe Link topology for Kubernetes: what the daemons and the tool share, and the tool itself."""
