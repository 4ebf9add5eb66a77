"""Requests that are no message of their RPC: gRPC refuses them before one of our methods runs."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

if TYPE_CHECKING:
    from grpc import HandlerCallDetails, RpcMethodHandler

    Handler: TypeAlias = RpcMethodHandler[Any, Any]

Parse: TypeAlias = Callable[[bytes], object]


class Decoding(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Tells `undecodable` of each such request, by the name of its RPC."""

    def __init__(self, undecodable: Callable[[str], None]) -> None:
        self._undecodable = undecodable
        self._handlers: dict[str, Handler] = {}  # by method: an interceptor is asked for each call

    async def intercept_service(
        self,
        continuation: "Callable[[HandlerCallDetails], Awaitable[Handler]]",
        handler_call_details: "HandlerCallDetails",
    ) -> "Handler":
        """Give the handler of a method, None where there is none."""
        method = handler_call_details.method
        if method not in self._handlers:
            handler = await continuation(handler_call_details)
            parse: Parse | None = getattr(handler, "request_deserializer", None)
            if parse is None:  # there is no such method
                return handler
            self._handlers[method] = self._heard(handler, parse, method.rpartition("/")[2])
        return self._handlers[method]

    def _heard(self, handler: "Handler", parse: Parse, rpc: str) -> "Handler":
        def parse_or_tell(request: bytes) -> object:
            try:
                return parse(request)
            except DecodeError:
                self._undecodable(rpc)
                raise

        make: Callable[..., Handler] = grpc.unary_unary_rpc_method_handler
        if handler.response_streaming:
            make = grpc.unary_stream_rpc_method_handler
        return make(
            handler.unary_stream or handler.unary_unary,
            request_deserializer=parse_or_tell,
            response_serializer=handler.response_serializer,
        )
