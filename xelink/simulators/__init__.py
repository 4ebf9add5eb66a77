"""What surrounds the daemons, without the hardware, for tests and demos.

Public, and kept as flags and labels are, is what `xpu_manager`, `node`, `kubelet` and `xpumd` list
in `__all__`, with what these classes and functions document. Everything else may change.
"""
