"""The reader: labels and sysfs become devices, preferences and allocations for kubelet."""

import os

# gRPC's C core writes lines of its own to standard error, in between our log. It must be told
# before it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
