"""Protocols of other programs: a `.proto` file for each, the generated stubs, and gRPC itself.

Names, types and numbers are those on the wire. Only the `.proto` files are edited;
`tools/generate.py` generates the rest.
"""

import os

# gRPC's C core writes to standard error, between our log lines. The variable must be set before
# gRPC is first imported, so all modules import gRPC from here.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from grpc import StatusCode

__all__ = ["StatusCode", "grpc"]
