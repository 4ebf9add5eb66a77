"""The DevicePlugin service as gRPC is given it: requests that are no message are told of.

gRPC refuses such a request before one of our methods runs, so it is heard where it is parsed. An
interceptor could hear it, too, but would run, and be waited for, at every call.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from device_plugin.api import deviceplugin_pb2 as pb
from device_plugin.api.deviceplugin_pb2_grpc import DevicePluginServicer

if TYPE_CHECKING:
    from grpc import GenericRpcHandler, RpcMethodHandler

    Handler: TypeAlias = RpcMethodHandler[Any, Any]

Parse: TypeAlias = Callable[[bytes], object]

_SERVICE = pb.DESCRIPTOR.services_by_name["DevicePlugin"]


def handlers(
    plugin: DevicePluginServicer, undecodable: Callable[[str], None]
) -> "GenericRpcHandler[Any, Any]":
    """Give the handlers of every RPC; `undecodable` is told the RPC of a request that is none."""
    found: dict[str, Handler] = {}
    for rpc in _SERVICE.methods:
        make: Callable[..., Handler] = grpc.unary_unary_rpc_method_handler
        if rpc.server_streaming:
            make = grpc.unary_stream_rpc_method_handler
        found[rpc.name] = make(
            getattr(plugin, rpc.name),
            request_deserializer=_heard(
                GetMessageClass(rpc.input_type).FromString, rpc.name, undecodable
            ),
            response_serializer=GetMessageClass(rpc.output_type).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(_SERVICE.full_name, found)


def _heard(parse: Parse, rpc: str, undecodable: Callable[[str], None]) -> Parse:
    def parse_or_tell(request: bytes) -> object:
        try:
            return parse(request)
        except DecodeError:
            undecodable(rpc)
            raise

    return parse_or_tell
