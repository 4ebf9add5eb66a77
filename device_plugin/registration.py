"""Registration with kubelet: one attempt, and attempts until one is accepted."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from xelink.api import deviceplugin_pb2 as pb
from xelink.api import grpc
from xelink.api.deviceplugin_pb2_grpc import RegistrationStub

VERSION = "v1beta1"

# A channel of its own for each attempt: a shared one would remember the last refusal for a while.
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
# What a kubelet answers to the second registration of a socket that it is connected to:
# https://github.com/kubernetes/kubernetes/pull/135437
_CONNECTED_ALREADY = "already connected"


class RegistrationError(Exception):
    """kubelet did not accept the registration: the next attempt may succeed."""


class ConnectedAlreadyError(RegistrationError):
    """kubelet answers that it is connected to this socket: true if a stream is open, else stale."""


@dataclass(frozen=True)
class Registration:
    """Who registers what: `endpoint` is the file name of a socket beside kubelet's own."""

    resource: str
    endpoint: str
    options: pb.DevicePluginOptions

    @property
    def request(self) -> pb.RegisterRequest:
        """The message to kubelet."""
        return pb.RegisterRequest(
            version=VERSION,
            endpoint=self.endpoint,
            resource_name=self.resource,
            options=self.options,
        )


async def register(kubelet: Path, registration: Registration, rpc_timeout: float) -> None:
    """Register once within `rpc_timeout` seconds; kubelet dials back before it answers.

    Raises `RegistrationError`, and as one of them `ConnectedAlreadyError`.
    """
    try:
        async with grpc.aio.insecure_channel(f"unix:{kubelet}", options=_OPTIONS) as channel:
            await RegistrationStub(channel).Register(registration.request, timeout=rpc_timeout)
    except grpc.aio.AioRpcError as error:
        details = error.details() or ""
        kind = ConnectedAlreadyError if _CONNECTED_ALREADY in details else RegistrationError
        raise kind(f"{error.code().name}: {details}") from None


async def until_accepted(
    attempt: Callable[[], Awaitable[None]],
    pause: Callable[[float], Awaitable[None]],
    failed: Callable[[RegistrationError, float], None],
    longest: float,
) -> None:
    """Attempt until one is accepted, without end, with pauses of up to `longest` seconds.

    Pauses are random, so that the resources of a node, and the nodes of a cluster, do not register
    all at once. `failed` is called with each error and the pause that follows. An exception of
    `pause` ends it.
    """

    def report(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RegistrationError):
            failed(error, state.upcoming_sleep)

    async for trial in AsyncRetrying(
        retry=retry_if_exception_type(RegistrationError),
        wait=wait_random_exponential(multiplier=1, max=longest),
        sleep=pause,
        before_sleep=report,
        reraise=True,
    ):
        with trial:
            await attempt()
