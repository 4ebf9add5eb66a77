"""PCI addresses: one parser and one order for everybody."""

import copy
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xelink.topology.pci import PciAddress, address_or_none

ROOT = Path(__file__).resolve().parents[2]

numbers = st.tuples(
    st.integers(0, 0xFFFFFFFF) | st.integers(0, 0xFFFFF),
    st.integers(0, 0xFF),
    st.integers(0, 0x1F),
    st.integers(0, 7),
)
addresses = numbers.map(lambda each: PciAddress.of(*each))


@given(numbers)
def test_an_address_is_its_numbers_in_every_form(each: tuple[int, int, int, int]) -> None:
    domain, bus, device, function = each
    address = PciAddress.of(*each)
    assert address == f"{domain:04x}:{bus:02x}:{device:02x}.{function}"
    assert address.numbers == each
    long = f"{domain:08x}:{bus:02x}:{device:02x}.{function}"
    assert PciAddress(long) == address
    assert hash(PciAddress(long)) == hash(str(address))
    assert PciAddress.lenient(f" {long.upper()}\n") == address
    assert domain or PciAddress.lenient(address[5:].upper()) == address


@given(st.lists(numbers, max_size=8))
def test_addresses_are_sorted_as_numbers(every: list[tuple[int, int, int, int]]) -> None:
    found = sorted(PciAddress.of(*each) for each in every)
    assert [address.numbers for address in found] == sorted(every)


@given(numbers, numbers)
def test_an_address_and_a_text_compare_as_two_addresses_do(
    one: tuple[int, int, int, int], other: tuple[int, int, int, int]
) -> None:
    a, b = PciAddress.of(*one), PciAddress.of(*other)
    for left, right in ((a, b), (a, str(b)), (str(a), b)):
        compared = (left < right, left <= right, left > right, left >= right, left == right)
        assert compared == (one < other, one <= other, one > other, one >= other, one == other)


@given(addresses, st.text().filter(lambda text: address_or_none(text) is None))
def test_a_text_that_is_no_address_comes_after_every_address(
    address: PciAddress, text: str
) -> None:
    assert address < text
    assert text > address
    assert not address >= text
    assert not text <= address


@given(addresses)
def test_an_address_is_a_text_wherever_one_is_asked_for(address: PciAddress) -> None:
    text = str(address)
    assert type(text) is str
    assert f"{address}" == text
    assert json.dumps({address: address}) == json.dumps({text: text})
    assert Path("/sys", address) == Path("/sys", text)
    for again in (copy.copy(address), copy.deepcopy(address)):
        assert type(again) is PciAddress
        assert again == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "29:00.0",
        "0000:29:00.8",
        "0000:29:20.0",
        "0000:29:00",
        "000A:BC:0D.0",
        "000000029:29:00.0",
        "0000:29:00.0\n",
        "\u0660000:29:00.0",
    ],
)
def test_what_the_kernel_would_not_print_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="not a PCI address"):
        PciAddress(text)
    assert address_or_none(text) is None


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
        if re.search(r"\\\.\(?\[0-7\]|split\(\"\[:\.\]\"", path.read_text())
    ]
    assert having == ["xelink/topology/pci.py"]
