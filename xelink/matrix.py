"""A topology as a matrix for the terminal. Pure."""

from topology.model import Topology


def matrix(topology: Topology) -> str:
    """Draw lanes between GPUs: weaker direction, all tiles together; `.` where there is no link.

    A `!` marks a pair that has fewer links than most pairs of the node have.
    """
    devices = sorted({gpu.id for gpu in topology.gpus} | {tile.device for tile in topology.tiles})
    lanes: dict[tuple[int, int], list[int]] = {}
    for link in topology.links:
        pair = link.a.device, link.b.device
        lanes.setdefault(pair, []).append(link.width)
        if pair[0] != pair[1]:
            lanes.setdefault((pair[1], pair[0]), []).append(link.width)
    usual = _most_common([len(widths) for widths in lanes.values()])

    def cell(row: int, column: int) -> str:
        if row == column:
            return "-"
        widths = lanes.get((row, column))
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


def _most_common(counts: list[int]) -> int:
    return max(set(counts), key=lambda count: (counts.count(count), count), default=0)
