"""The kernel driver as a source of Xe Links.

A full look asks for everything, some four queries for each tile. Between full looks only the
routing generation is asked for, which moves with the routing; width and health may change without
it, so that a full look is due once a minute.
"""

import errno
from collections.abc import Callable, Sequence
from typing import NamedTuple

from xelink.iaf.channel import Channel
from xelink.iaf.client import Client, KnownTiles, SweepError
from xelink.iaf.fabric import DriverFabric, GpuOnBus, observe
from xelink.iaf.reasons import DriverReason
from xelink.iaf.replies import DriverError, NotReadyError
from xelink.iaf.wire import MalformedFrameError, NetlinkError
from xelink.topology.observation import Observation, SourceFacts, Unknown
from xelink.topology.rules import Rules

FULL_LOOK_SECONDS = 60.0
_PAUSE = 0.05  # before the driver is asked again that was busy
_NO_SOCKET = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


class Node(NamedTuple):
    """What the bus says of this node: is the driver's fabric part there, and which GPUs are."""

    has_fabric: bool
    gpus: Sequence[GpuOnBus]


class _Known(NamedTuple):
    fabric: DriverFabric
    node: Node
    at: float
    observation: Observation


class DriverSource:
    """Observes by asking the kernel driver; a `Source`.

    Each look ends within `seconds`. `sleep` waits before the driver is asked again; `monotonic` is
    the clock of both. `connect` opens where it is asked.
    """

    name = "the Xe Link driver"
    address = "generic netlink iaf_ze"
    reasons = tuple(map(str, DriverReason))

    def __init__(  # noqa: PLR0913 - what the tests replace has names
        self,
        connect: Callable[[], Channel],
        node: Callable[[], Node],
        rules: Rules,
        *,
        seconds: float,
        sleep: Callable[[float], None],
        monotonic: Callable[[], float],
        full_look_seconds: float = FULL_LOOK_SECONDS,
    ) -> None:
        self._connect = connect
        self._node = node
        self._rules = rules
        self._seconds = seconds
        self._sleep = sleep
        self._monotonic = monotonic
        self._full_look_seconds = full_look_seconds
        self._known: _Known | None = None
        self._tiles: KnownTiles = {}

    @property
    def facts(self) -> SourceFacts:
        """What is known of it after the last look."""
        fabric = self._known and self._known.fabric
        ports = (
            sum(len(tile.ports) for one in fabric.devices for tile in one.tiles) if fabric else 0
        )
        return SourceFacts(rows=ports)

    @property
    def fabric(self) -> DriverFabric | None:
        """What the driver reported last, of every port."""
        return self._known.fabric if self._known else None

    def observe(self) -> Observation:
        """Look once; whatever fails is `Unknown`."""
        node = self._node()
        if not node.has_fabric:
            return Unknown(
                DriverReason.NO_DRIVER,
                "no Intel GPU of this node has Xe Links by its driver: i915-backports with iaf is"
                " not loaded, or the GPUs have none",
            )
        try:
            return self._ask(node, self._monotonic() + self._seconds)
        except (OSError, SweepError, DriverError, MalformedFrameError) as error:
            return self._unknown(error)

    def _ask(self, node: Node, deadline: float) -> Observation:
        with self._connect() as channel:
            client = Client(channel, self._monotonic, deadline, self._tiles)
            client.resolve()
            known = self._known
            if known and known.node == node and not self._is_due(known):
                generation = client.generation()
                if generation.settled and generation.end == known.fabric.generation:
                    return known.observation
            fabric = self._settled(client, deadline)
        if not known or (known.fabric, known.node) != (fabric, node):
            observation = observe(fabric, node.gpus, self._rules)
        else:
            observation = known.observation
        self._known = _Known(fabric, node, self._monotonic(), observation)
        return observation

    def _is_due(self, known: _Known) -> bool:
        return self._monotonic() - known.at >= self._full_look_seconds

    def _settled(self, client: Client, deadline: float) -> DriverFabric:
        """Look again for as long as there is time, where the fabric was not one truth."""
        unsettled: Exception | None = None
        while True:
            try:
                return client.fabric()
            except (SweepError, NotReadyError) as error:
                unsettled = error
            except TimeoutError:
                raise unsettled or TimeoutError from None
            if self._monotonic() + _PAUSE >= deadline:
                raise unsettled
            self._sleep(_PAUSE)

    def _unknown(self, error: Exception) -> Unknown:
        match error:
            case SweepError() | NotReadyError():
                reason, detail = DriverReason.STARTING, f"the driver is not ready: {error}"
            case DriverError():
                reason, detail = DriverReason.DRIVER_ERROR, str(error)
            case MalformedFrameError():
                reason, detail = DriverReason.MALFORMED, f"a reply of the driver: {error}"
            case TimeoutError():
                reason = DriverReason.TIMEOUT
                detail = f"the driver gave no answer within {self._seconds:g} s"
            case NetlinkError(errno=errno.ENOENT):
                reason = DriverReason.NOT_HOST_NETWORK
                detail = (
                    "the driver is there, and its netlink family is not: that is only in the host's"
                    " network namespace (hostNetwork: true)"
                )
            case OSError(errno=code) if code in _NO_SOCKET:
                reason, detail = DriverReason.RESOURCES, f"no netlink socket: {error}"
            case _:
                reason, detail = DriverReason.DRIVER_ERROR, f"the kernel refused: {error}"
        return Unknown(reason, detail)
