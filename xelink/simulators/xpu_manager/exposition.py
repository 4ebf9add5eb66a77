"""The text that XPU Manager's exporter gives for a node, byte by byte in its form.

All comment lines first, then all samples sorted as text, values as floats, no newline at the end.
"""

from xelink.simulators.xpu_manager.metrics import FAMILIES, SECOND_GENERATION
from xelink.simulators.xpu_manager.node import SimulatedNode


def render(node: SimulatedNode, scrape: int = 0) -> bytes:
    """Return the whole body; `scrape` moves gauges and counters on, never the topology."""
    comments: list[str] = []
    lines: list[str] = []
    for family in SECOND_GENERATION if node.generation > 1 else FAMILIES:
        rows = [f"{series} {number(value)}" for series, value in family.samples(node, scrape)]
        # A family without rows is not declared, except the topology: its call may have failed.
        if rows or family.always:
            comments += [
                f"# HELP {family.name} {family.text}",
                f"# TYPE {family.name} {family.kind}",
            ]
        lines += rows
    return "\n".join(comments + sorted(lines)).encode()


def number(value: float) -> str:
    """Print as the exporter's library does: Go's exponents from 1e6, with a zero before them."""
    text = repr(float(value))
    point = text.find(".")
    if value > 0 and point > 6 and "e" not in text:  # noqa: PLR2004 - quoted from that library
        digits = f"{text[0]}.{text[1:point]}{text[point + 1 :]}".rstrip("0.")
        return f"{digits}e+0{point - 1}"
    return text
