"""Protocols of others: one `.proto` for each peer, the stubs made from them, and gRPC itself.

Written from the wire facts: names, types and numbers. Only the `.proto` files are edited, the rest
comes from `tools/generate.py`.
"""

import os

# gRPC's C core writes lines of its own to standard error, in between our log. It must be told
# before it is first imported: so whoever needs it imports it from here.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from grpc import StatusCode

__all__ = ["StatusCode", "grpc"]
