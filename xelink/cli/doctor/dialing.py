"""Who answers on a unix socket of kubelet's directory; nothing is registered or changed."""

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


class Line(Enum):
    """What dialing a socket came to."""

    ANSWERED = "answered"
    STALE = "stale"
    """Nobody listens: who made it is gone."""
    SILENT = "silent"
    """Somebody listens, and does not answer as a device plugin."""
    BARRED = "barred"
    """We may not dial it."""
    NO_SOCKET = "no socket"


class Dialed(NamedTuple):
    """One socket: `prefers` says whether its plugin offers kubelet a preference."""

    line: Line
    why: str = ""
    prefers: bool = False


def dial(path: Path) -> Dialed:
    """Connect to a socket, say nothing, and hang up."""
    if not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
        return Dialed(Line.BARRED)
    with holding(path) as held:
        if held is None:
            return Dialed(Line.NO_SOCKET)
        return Dialed(Line.ANSWERED if is_answered(held.path) else Line.STALE)


def ask(path: Path, seconds: float) -> Dialed:
    """Ask a device plugin for its options, as kubelet does; for at most so many seconds."""
    dialed = dial(path)
    if dialed.line is not Line.ANSWERED:
        return dialed
    patience = max(0.1, min(_RPC_SECONDS, seconds))
    try:
        with (
            holding(path) as held,
            grpc.insecure_channel(f"unix:{held.path if held else path}", _OPTIONS) as channel,
        ):
            options = DevicePluginStub(channel).GetDevicePluginOptions(pb.Empty(), timeout=patience)
    except grpc.RpcError as error:
        return Dialed(Line.SILENT, error.code().name)
    return Dialed(Line.ANSWERED, prefers=options.get_preferred_allocation_available)
