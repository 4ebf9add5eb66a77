"""Asks the driver: one query at a time, each within one deadline."""

from collections.abc import Callable
from typing import TypeAlias

from xelink.iaf import replies, wire
from xelink.iaf.channel import Channel, LostReplyError
from xelink.iaf.fabric import DriverFabric, FabricDevice
from xelink.iaf.replies import Generation, TileFabric
from xelink.iaf.wire import Command, DriverReply

KnownTiles: TypeAlias = dict[tuple[int, int], tuple[tuple[bytes, ...], TileFabric]]
"""What the replies about each tile held last, by fabric id and number, and what that means."""

_OF_A_TILE = (
    Command.FPORT_PROPERTIES,
    Command.FPORT_STATUS_QUERY,
    Command.PORT_STATE_QUERY,
    Command.SUB_DEVICE_PROPERTIES_GET,
)
_CONTENT = 12  # where a frame goes on after its sequence number, which differs each time
_MOST_LOST = 8  # replies in a row: there is no room for any


class SweepError(Exception):
    """The routing changed while it was read, or was being changed: nothing of it counts."""


class Client:
    """Asks on one channel until `deadline`, by `monotonic`.

    `known` is kept between clients: a reply that is the same as before is not parsed again.

    Every query raises `OSError` (`TimeoutError` when the time is up, `NetlinkError` for an error of
    the generic layer), `MalformedFrameError`, and `replies.DriverError`.
    """

    def __init__(
        self,
        channel: Channel,
        monotonic: Callable[[], float],
        deadline: float,
        known: KnownTiles | None = None,
    ) -> None:
        self._channel = channel
        self._known = {} if known is None else known
        self._monotonic = monotonic
        self._deadline = deadline
        self._sequence = 0
        self._family = 0

    def resolve(self) -> None:
        """Find the number of the family; to be done first. With ENOENT there is none."""
        self._family = wire.family_of(self._exchange(wire.family_request))

    def generation(self) -> Generation:
        """Return the routing generation."""
        return replies.generation(self._ask(Command.ROUTING_GEN_QUERY))

    def fabric(self) -> DriverFabric:
        """Return the whole fabric. Raises `SweepError` where it was not one truth."""
        before = self.generation()
        if not before.settled:
            raise SweepError("a routing sweep is under way")
        devices = replies.devices(self._ask(Command.DEVICE_ENUM))
        found = tuple(
            FabricDevice(
                device, tuple(self._tile(device.fabric_id, tile) for tile in range(device.tiles))
            )
            for device in devices
        )
        if self.generation() != before:
            raise SweepError("the routing changed meanwhile")
        return DriverFabric(found, before.end)

    def _tile(self, fabric_id: int, tile: int) -> TileFabric:
        before, known = self._known.get((fabric_id, tile), ((), None))
        content: list[bytes] = []
        for command in _OF_A_TILE:
            frame = self._frame(command, fabric_id, tile)
            content.append(frame)
            if frame[_CONTENT:] not in (one[_CONTENT:] for one in before):
                # Before the next one is asked: a driver that is not ready is not to be kept busy.
                replies.checked(wire.parse(frame, self._family), command)
        if known and [one[_CONTENT:] for one in content] == [one[_CONTENT:] for one in before]:
            return known
        properties, status, state, of_tile = (wire.parse(frame, self._family) for frame in content)
        found = TileFabric(replies.guid(of_tile), replies.ports(properties, status, state))
        self._known[fabric_id, tile] = tuple(content), found
        return found

    def _ask(self, command: Command) -> DriverReply:
        return wire.parse(self._frame(command), self._family)

    def _frame(
        self, command: Command, fabric_id: int | None = None, tile: int | None = None
    ) -> bytes:
        return self._exchange(
            lambda sequence: wire.request(self._family, sequence, command, fabric_id, tile)
        )

    def _exchange(self, build: Callable[[int], bytes]) -> bytes:
        """Send a frame and return the reply to it; late replies to earlier ones are dropped."""
        for _ in range(_MOST_LOST):
            self._sequence += 1
            self._channel.send(build(self._sequence), self._left())
            try:
                while True:
                    frame = self._channel.receive(self._left())
                    if frame is not None and wire.sequence_of(frame) == self._sequence:
                        return frame
            except LostReplyError:
                continue
        raise TimeoutError(f"{_MOST_LOST} replies in a row were lost for lack of room")

    def _left(self) -> float:
        return self._deadline - self._monotonic()
