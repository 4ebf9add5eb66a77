"""xelink among the real programs: kubelet, the API server, NFD. See docs/e2e.md."""
