"""Which links pass the rules, whoever observed them. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from xelink.topology.model import Link, Tile
from xelink.topology.rules import Rules


class Direction(NamedTuple):
    """An Xe Link as one of its tiles reports it: the lanes to the remote one."""

    local: Tile
    remote: Tile
    lanes: int
    on_subdevice: bool


class Admitted(NamedTuple):
    """The links that pass, and how many are filtered: by their lanes, and by their one tile."""

    links: tuple[Link, ...]
    narrow: int
    one_tile: int


def admit(directions: Iterable[Direction], rules: Rules) -> Admitted:
    """Unite both directions of each link; it passes when one of them does."""
    lanes: dict[tuple[Tile, Tile], int] = {}
    passing: set[tuple[Tile, Tile]] = set()
    wide: set[tuple[Tile, Tile]] = set()
    for local, remote, width, on_subdevice in directions:
        lanes[local, remote] = max(width, lanes.get((local, remote), 0))
        ends = min(local, remote), max(local, remote)
        if width >= rules.lane_count:
            wide.add(ends)
            if on_subdevice or rules.allow_subdeviceless_links:
                passing.add(ends)
    links = tuple(
        Link(one, other, lanes.get((one, other), 0), lanes.get((other, one), 0))
        for one, other in passing
    )
    every = {(min(direction), max(direction)) for direction in lanes}
    return Admitted(links, len(every - wide), len(wide - passing))
