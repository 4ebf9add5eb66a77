"""Sets of GPUs as `int` bitmasks: bit i is the i-th GPU in the order of PCI addresses."""

from collections.abc import Iterable, Iterator


def members(mask: int) -> Iterator[int]:
    """Go through the GPUs of a set by PCI address."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def mask_of(indices: Iterable[int]) -> int:
    """Make a set of indices."""
    return union(1 << i for i in indices)


def prefixes(mask: int) -> Iterator[int]:
    """Grow a set from nothing to `mask`, the lowest PCI address first."""
    taken = 0
    yield taken
    for i in members(mask):
        taken |= 1 << i
        yield taken


def lowest(mask: int, count: int) -> int:
    """Take the first `count` of a set by PCI address, or all if there are fewer."""
    low, high = 0, mask.bit_length()
    while low < high:
        middle = (low + high) // 2
        if (mask & (1 << middle) - 1).bit_count() < count:
            low = middle + 1
        else:
            high = middle
    return mask & (1 << low) - 1


def union(masks: Iterable[int]) -> int:
    """Unite sets."""
    united = 0
    for mask in masks:
        united |= mask
    return united
