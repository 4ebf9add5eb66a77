"""A topology as a matrix for the terminal. Pure."""

from topology.model import Topology


def matrix(topology: Topology) -> str:
    """Draw lanes between GPUs: weaker direction, all tiles together; `.` where there is no link.

    A `!` marks a pair that has fewer links than most pairs of the node have.
    """
    devices = sorted({gpu.id for gpu in topology.gpus} | {tile.device for tile in topology.tiles})
    lanes = lanes_between(topology)
    usual = _most_common([len(widths) for widths in lanes.values()])

    def cell(row: int, column: int) -> str:
        if row == column:
            return "-"
        widths = lanes.get((min(row, column), max(row, column)))
        return f"{sum(widths)}{'!' if len(widths) < usual else ''}" if widths else "."

    names = [f"GPU{device}" for device in devices]
    width = max(map(len, names), default=0) + 1
    return "\n".join(
        [
            " " * width + "".join(f"{name:>{width}}" for name in names),
            *(
                f"{name:<{width}}" + "".join(f"{cell(row, column):>{width}}" for column in devices)
                for name, row in zip(names, devices, strict=True)
            ),
        ]
    )


def lanes_between(topology: Topology) -> dict[tuple[int, int], list[int]]:
    """Give the lanes of each link by the device ids that it joins, lower id first."""
    lanes: dict[tuple[int, int], list[int]] = {}
    for link in topology.links:
        if link.a.device != link.b.device:
            lanes.setdefault((link.a.device, link.b.device), []).append(link.width)
    return lanes


def _most_common(counts: list[int]) -> int:
    return max(set(counts), key=lambda count: (counts.count(count), count), default=0)
