"""PCI addresses (domain, bus, device, function): one parser and one order."""

import re
from typing import Self

# domain ":" bus ":" device "." function, lower case as the kernel prints it. The domain of a VMD
# has five digits; some tools print eight, with leading zeros.
_ADDRESS = re.compile(
    r"([0-9a-f]{4,8}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])",
    re.ASCII,
)
# [ domain ":" ] bus ":" device "." function, in either case, as lspci and xpumd print it
_LENIENT = re.compile(
    r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.ASCII | re.IGNORECASE
)


class PciAddress(str):
    """A PCI address in the kernel's form, `0000:29:00.0`: lower case, 4 or more digits of domain.

    Equal addresses are equal texts, and the hash is that of the text, so a path, a JSON value or a
    log entry takes one as it is. Order is by domain, bus, device and function; against a plain text
    too, where a text that is no address comes last. Raises `ValueError` for such a text.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Parse an address with its domain; leading zeros of the domain are dropped."""
        if type(text) is cls:
            return text
        return cls._parsed(_ADDRESS.fullmatch(text), text)

    @classmethod
    def lenient(cls, text: str) -> Self:
        """Parse what a tool reports: in either case, domain 0 where none is given."""
        return cls._parsed(_LENIENT.fullmatch(text.strip()), text)

    @classmethod
    def of(cls, domain: int, bus: int, device: int, function: int) -> Self:
        """Return the address of four numbers. Raises `ValueError` where one is too large."""
        return cls(f"{domain:04x}:{bus:02x}:{device:02x}.{function}")

    @classmethod
    def _parsed(cls, match: re.Match[str] | None, text: str) -> Self:
        if match is None:
            raise ValueError(f"not a PCI address: {text!r}")
        domain, bus, device, function = match.groups()
        canonical = f"{int(domain or '0', 16):04x}:{bus}:{device}.{function}"
        return super().__new__(cls, canonical.lower())

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """Domain, bus, device and function."""
        domain, bus, rest = self.split(":")
        device, function = rest.split(".")
        return int(domain, 16), int(bus, 16), int(device, 16), int(function)

    def __lt__(self, other: str) -> bool:
        return _order(self) < _order(other)

    def __le__(self, other: str) -> bool:
        return _order(self) <= _order(other)

    def __gt__(self, other: str) -> bool:
        return _order(self) > _order(other)

    def __ge__(self, other: str) -> bool:
        return _order(self) >= _order(other)


def address_or_none(text: str) -> PciAddress | None:
    """Return the address that a text is in the kernel's form, None where it is none."""
    try:
        return PciAddress(text)
    except ValueError:
        return None


def _order(text: str) -> tuple[bool, int, str]:
    # The longer of two canonical texts has the larger domain; equally long ones order as numbers.
    address = text if isinstance(text, PciAddress) else address_or_none(text)
    return (True, 0, text) if address is None else (False, len(address), str(address))
