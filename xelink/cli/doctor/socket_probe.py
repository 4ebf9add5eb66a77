"""Probes unix sockets in kubelet's directory; registers and changes nothing."""

import os
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from xelink.api import deviceplugin_pb2 as pb
from xelink.api import grpc
from xelink.api.deviceplugin_pb2_grpc import DevicePluginStub
from xelink.kubelet.sockets import holding, is_answered

_RPC_SECONDS = 2.0
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


class SocketAnswer(Enum):
    """What answered on a socket."""

    ANSWERED = "answered"
    STALE = "stale"
    """Nothing listens: the process that created it is gone."""
    SILENT = "silent"
    """Something listens, and does not answer as a device plugin."""
    PERMISSION_DENIED = "permission denied"
    """We have no permission to connect."""
    NO_SOCKET = "no socket"


class SocketProbe(NamedTuple):
    """The result for one socket; `prefers` is whether its plugin has a preference."""

    answer: SocketAnswer
    why: str = ""
    prefers: bool = False


def probe_socket(path: Path) -> SocketProbe:
    """Connect to a socket, send nothing, and close the connection."""
    if not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
        return SocketProbe(SocketAnswer.PERMISSION_DENIED)
    with holding(path) as held:
        if held is None:
            return SocketProbe(SocketAnswer.NO_SOCKET)
        return SocketProbe(SocketAnswer.ANSWERED if is_answered(held.path) else SocketAnswer.STALE)


def ask_plugin(path: Path, seconds: float) -> SocketProbe:
    """Ask a device plugin for its options, as kubelet does; for at most so many seconds."""
    probed = probe_socket(path)
    if probed.answer is not SocketAnswer.ANSWERED:
        return probed
    timeout = max(0.1, min(_RPC_SECONDS, seconds))
    try:
        with (
            holding(path) as held,
            grpc.insecure_channel(f"unix:{held.path if held else path}", _OPTIONS) as channel,
        ):
            options = DevicePluginStub(channel).GetDevicePluginOptions(pb.Empty(), timeout=timeout)
    except grpc.RpcError as error:
        return SocketProbe(SocketAnswer.SILENT, error.code().name)
    return SocketProbe(SocketAnswer.ANSWERED, prefers=options.get_preferred_allocation_available)
