"""The gRPC handlers of the DevicePlugin service: a request that exceeds a bound is not parsed.

To gRPC every RPC has a stream of requests, so that a message is read when it is its turn,
rejected with our own text, and counted. On the wire there is no difference. An interceptor could
not do that, and would cost time at every call.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from device_plugin.limits import ExceededError, Limits, require_few
from xelink.api import StatusCode, grpc
from xelink.api import deviceplugin_pb2 as pb

if TYPE_CHECKING:
    from grpc import GenericRpcHandler, RpcMethodHandler
    from grpc.aio import ServicerContext

    Context: TypeAlias = ServicerContext[Any, Any]
    Handler: TypeAlias = RpcMethodHandler[Any, Any]

_SERVICE = pb.DESCRIPTOR.services_by_name["DevicePlugin"]
_READING = 8  # requests that are read at the same time
_CONNECTIONS = 64
_STREAMS = 32  # of one connection; its client waits with more

Rejected: TypeAlias = Callable[[str, str, str], None]
"""Called with the RPC, the name of the code and the reason of each rejected request."""


def options(limits: Limits) -> tuple[tuple[str, int], ...]:
    """Return gRPC's own bounds, without which it accepts more than can be answered.

    By itself it lets a thousand calls wait, and cancels some of those that come then.
    """
    return (
        ("grpc.max_receive_message_length", limits.bytes),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.max_allowed_incoming_connections", _CONNECTIONS),
        # A stream that has ended counts until it is deallocated: with a limit on these, a client
        # within its bound would be rejected.
        ("grpc.http2.max_deallocating_streams", 1 << 20),
        ("grpc.server.max_pending_requests", 1 << 20),
        ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
        # Unread bytes of a message, for each stream; there are never more.
        ("grpc.http2.lookahead_bytes", 1 << 14),
        ("grpc.http2.bdp_probe", 0),
    )


def handlers(
    plugin: object, rejected: Rejected, limits: Limits | None = None
) -> "GenericRpcHandler[Any, Any]":
    """Return the handlers of every RPC of a servicer."""
    intake = _Intake(limits or Limits(), rejected)
    found: dict[str, Handler] = {}
    for rpc in _SERVICE.methods:
        parse = GetMessageClass(rpc.input_type).FromString
        method = getattr(plugin, rpc.name)
        serialize = GetMessageClass(rpc.output_type).SerializeToString
        if rpc.server_streaming:
            found[rpc.name] = grpc.stream_stream_rpc_method_handler(
                intake.streaming(rpc.name, parse, method), response_serializer=serialize
            )
        else:
            found[rpc.name] = grpc.stream_unary_rpc_method_handler(
                intake.answering(rpc.name, parse, method), response_serializer=serialize
            )
    return grpc.method_handlers_generic_handler(_SERVICE.full_name, found)


class _Room:
    """Counts calls that are under way, until their answers are sent or given up."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._taken = 0

    def enter(self, context: "Context") -> None:
        """Count one more call. Raises `ExceededError` where there are too many."""
        if self._taken >= self._most:
            raise ExceededError(f"more than {self._most} {self._what} at the same time")
        self._taken += 1

        def leave(_context: object) -> None:
            self._taken -= 1

        context.add_done_callback(leave)  # type: ignore[arg-type] # any callable, not a class


class _Parse(Protocol):
    def __call__(self, message: bytes, /) -> Any: ...  # noqa: ANN401 - a message of any kind


class _Intake:
    """Takes in requests, as many and as large as the limits allow."""

    def __init__(self, limits: Limits, rejected: Rejected) -> None:
        self._limits = limits
        self._rejected = rejected
        self._calls = _Room(limits.calls, "calls")
        self._streams = _Room(limits.streams, "streams of ListAndWatch")
        self._reading = asyncio.Semaphore(_READING)

    def answering(
        self, rpc: str, parse: _Parse, method: Callable[[Any, "Context"], Awaitable[object]]
    ) -> Callable[[object, "Context"], Awaitable[object]]:
        """Return a handler that answers once."""

        async def answer(_requests: object, context: "Context") -> object:
            return await method(await self._take(self._calls, rpc, parse, context), context)

        return answer

    def streaming(
        self, rpc: str, parse: _Parse, method: Callable[[Any, "Context"], AsyncGenerator[object]]
    ) -> Callable[[object, "Context"], AsyncGenerator[object]]:
        """Return a handler that answers with a stream."""

        async def answer(_requests: object, context: "Context") -> AsyncGenerator[object]:
            request = await self._take(self._streams, rpc, parse, context)
            async with aclosing(method(request, context)) as answers:
                async for one in answers:
                    yield one

        return answer

    async def _take(self, room: _Room, rpc: str, parse: _Parse, context: "Context") -> object:
        """Return the parsed request, or end the call with what is wrong with it."""
        try:
            room.enter(context)
            message = await self._read(context)
            by_container = rpc in {"Allocate", "GetPreferredAllocation"}
            require_few(message, self._limits.containers if by_container else self._limits.ids)
            request = parse(message)
            self._require_few_ids(request)
        except ExceededError as error:
            await self._reject(rpc, context, StatusCode.RESOURCE_EXHAUSTED, str(error))
        except DecodeError:
            reason = "the request is no message of this RPC"
            await self._reject(rpc, context, StatusCode.UNKNOWN, reason)
        return request

    async def _read(self, context: "Context") -> bytes:
        try:
            async with asyncio.timeout(self._limits.read_timeout), self._reading:
                message = await context.read()
        except TimeoutError:
            reason = f"the request was not there within {self._limits.read_timeout:g} s"
            raise ExceededError(reason) from None
        if not isinstance(message, bytes):
            # gRPC has dropped it and answered its sender, or none was sent.
            raise ExceededError(f"a request of more than {self._limits.bytes} bytes, or none")
        return message

    def _require_few_ids(self, request: object) -> None:
        ids = 0
        if isinstance(request, pb.AllocateRequest):
            ids = sum(len(asked.devices_ids) for asked in request.container_requests)
        elif isinstance(request, pb.PreferredAllocationRequest):
            ids = sum(
                len(asked.available_deviceIDs) + len(asked.must_include_deviceIDs)
                for asked in request.container_requests
            )
        elif isinstance(request, pb.PreStartContainerRequest):
            ids = len(request.devices_ids)
        if ids > self._limits.ids:
            raise ExceededError(f"{ids} device ids in one request: at most {self._limits.ids}")

    async def _reject(
        self, rpc: str, context: "Context", code: StatusCode, reason: str
    ) -> NoReturn:
        self._rejected(rpc, code.name, reason)
        await context.abort(code, reason)
