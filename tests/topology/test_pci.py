"""PCI addresses: one pattern and one order for everybody."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xelink.topology.pci import BDF, place

ROOT = Path(__file__).resolve().parents[2]

parts = st.tuples(
    st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFF), st.integers(0, 0x1F), st.integers(0, 7)
)


def spelled(part: tuple[int, int, int, int]) -> str:
    domain, bus, device, function = part
    return f"{domain:04x}:{bus:02x}:{device:02x}.{function}"


@given(parts)
def test_every_address_is_one_and_its_place_is_its_numbers(part: tuple[int, int, int, int]) -> None:
    assert BDF.fullmatch(spelled(part))
    assert place(spelled(part)) == part


@pytest.mark.parametrize(
    "text",
    [
        "",
        "29:00.0",
        "0000:29:00.8",
        "0000:29:00",
        "000A:BC:0D.0",
        "0000:29:00.0\n",
        "\u0660000:29:00.0",
    ],
)
def test_what_the_kernel_would_not_print_is_none(text: str) -> None:
    assert not BDF.fullmatch(text)


def test_nobody_else_has_a_pattern_or_an_order_of_its_own() -> None:
    """What tells an address in one place and not in another makes two GPUs of one."""
    sources = [
        path
        for package in ("xelink", "sidecar", "device_plugin")
        for path in (ROOT / package).rglob("*.py")
    ]
    having = [
        path.relative_to(ROOT).as_posix()
        for path in sources
        if re.search(r"re\.compile\(r\"\[0-9a-f\]\{4,8\}:|split\(\"\[:\.\]\"", path.read_text())
    ]
    assert having == ["xelink/topology/pci.py"]
