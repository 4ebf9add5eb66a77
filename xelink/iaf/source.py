"""The kernel driver as a source of Xe Links.

A full look asks for everything, some four queries for each tile. Between full looks only the
routing generation is asked for, which moves with the routing; width and health may change without
it, so that a full look is due once a minute. What is new is looked for again at the next tick: only
what so many full looks in a row agree on is given again without one, as otherwise one glitch would
confirm itself.
"""

import errno
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
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
_PAUSE = 0.05  # before a driver that was busy is asked again; twice as long each time
_LONGEST_PAUSE = 2.0
_NAMED = 4  # ports of a warning
_NO_SOCKET = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


class BusError(OSError):
    """The GPUs of this node cannot be counted: no device id is certain."""


class Node(NamedTuple):
    """What the bus says of this node: is the driver's fabric part there, and which GPUs are."""

    has_fabric: bool
    gpus: Sequence[GpuOnBus]


class _Known(NamedTuple):
    fabric: DriverFabric
    node: Node
    at: float
    agreeing: int
    observation: Observation


class DriverSource:
    """Observes by asking the kernel driver; a `Source`.

    Each look ends within `seconds`, of which `bounded` makes sure, whatever hangs. `sleep` waits
    before the driver is asked again; `monotonic` is the clock of both. `connect` opens where it is
    asked, `node` raises `BusError`. What is new is given again without a full look after so many
    `confirmations` by full looks.
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
        bounded: Callable[[float], AbstractContextManager[None]] = lambda _: nullcontext(),
        confirmations: int = 2,
        full_look_seconds: float = FULL_LOOK_SECONDS,
    ) -> None:
        self._connect = connect
        self._node = node
        self._rules = rules
        self._seconds = seconds
        self._sleep = sleep
        self._monotonic = monotonic
        self._bounded = bounded
        self._confirmations = confirmations
        self._full_look_seconds = full_look_seconds
        self._ports = 0
        self._known: _Known | None = None
        self._tiles: KnownTiles = {}

    @property
    def facts(self) -> SourceFacts:
        """What is known of it after the last look: ports that were read, and what ails them."""
        return SourceFacts(rows=self._ports, warning=self._warning())

    @property
    def fabric(self) -> DriverFabric | None:
        """What the driver reported last, of every port."""
        return self._known.fabric if self._known else None

    def observe(self) -> Observation:
        """Look once; whatever fails is `Unknown`."""
        self._ports = 0
        try:
            with self._bounded(self._seconds):
                return self._look()
        except (OSError, SweepError, DriverError, MalformedFrameError) as error:
            return self._unknown(error)

    def _look(self) -> Observation:
        node = self._node()
        if not node.has_fabric:
            return Unknown(
                DriverReason.NO_DRIVER,
                "no Intel GPU of this node has Xe Links by its driver: i915-backports with iaf is"
                " not loaded, or the GPUs have none",
            )
        return self._ask(node, self._monotonic() + self._seconds)

    def _ask(self, node: Node, deadline: float) -> Observation:
        known = self._known
        with self._connect() as channel:
            client = Client(channel, self._monotonic, deadline, self._tiles)
            client.resolve()
            if known and known.node == node and not self._is_due(known):
                generation = client.generation()
                if generation.settled and generation.end == known.fabric.generation:
                    return known.observation
            fabric = self._settled(client, deadline)
        self._ports = sum(len(tile.ports) for one in fabric.devices for tile in one.tiles)
        if known and (known.fabric.devices, known.node) == (fabric.devices, node):
            agreeing, observation = known.agreeing + 1, known.observation
        else:
            agreeing, observation = 1, observe(fabric, node.gpus, self._rules)
        self._known = _Known(fabric, node, self._monotonic(), agreeing, observation)
        return observation

    def _warning(self) -> str | None:
        """Return which ports are degraded or have failed, and why; None where none is."""
        fabric = self.fabric
        ill = [
            f"{one.device.parent} tile {index} port {port.number}: {ailment}"
            for one in (fabric.devices if fabric else ())
            for index, tile in enumerate(one.tiles)
            for port in tile.ports
            if (ailment := port.ailment)
        ]
        more = f" and {len(ill) - _NAMED} more" if len(ill) > _NAMED else ""
        return f"Xe Link ports: {'; '.join(ill[:_NAMED])}{more}" if ill else None

    def _is_due(self, known: _Known) -> bool:
        return (
            known.agreeing < self._confirmations
            or self._monotonic() - known.at >= self._full_look_seconds
        )

    def _settled(self, client: Client, deadline: float) -> DriverFabric:
        """Look again for as long as there is time, where the fabric was not one truth."""
        unsettled: Exception | None = None
        pause = _PAUSE
        while True:
            try:
                return client.fabric()
            except (SweepError, NotReadyError) as error:
                unsettled = error
            except TimeoutError:
                raise unsettled or TimeoutError from None
            if self._monotonic() + pause >= deadline:
                raise unsettled
            self._sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _unknown(self, error: Exception) -> Unknown:
        match error:
            case BusError():
                reason, detail = DriverReason.BUS, f"device ids are not certain: {error}"
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
            case NetlinkError(errno=code):
                name = errno.errorcode.get(code or 0, str(code))
                reason, detail = DriverReason.DRIVER_ERROR, f"the kernel refused a query: {name}"
            case OSError(errno=errno.EAFNOSUPPORT | errno.EPERM | errno.EACCES):
                reason = DriverReason.DRIVER_ERROR
                detail = f"no netlink socket is allowed here: {error.strerror}; allow AF_NETLINK"
            case OSError(errno=code) if code in _NO_SOCKET:
                reason, detail = DriverReason.RESOURCES, f"no netlink socket: {error}"
            case _:
                reason, detail = DriverReason.DRIVER_ERROR, f"the kernel refused: {error}"
        return Unknown(reason, detail, quotes=reason is DriverReason.MALFORMED)
