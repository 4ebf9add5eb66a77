"""How many linked groups of every size a set of GPUs has: exact, as one number.

Listing groups is `xelink.topology.groups`; here they are only counted, as sets of GPUs are compared
by what they leave.
"""

from collections.abc import Callable, Mapping, Sequence

from xelink.preference.bitmask import mask_of, members, union

# GPUs of which linked groups are counted outright: no more than 2**12 steps.
_FEW = 12


def linked_groups(
    links: Sequence[int],
    mask: int,
    known: dict[int, int] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> int:
    """Count the linked groups of every size in `mask`: exact, as one number.

    A group is a set of GPUs that are all linked to each other, as in `xelink.topology.groups`.
    With n GPUs on the node, the number of groups of k GPUs is in the n bits from k * n on (no
    count reaches 2**n), so that comparing two such numbers compares the counts from the largest
    size down. Size 0 counts 1, which keeps the recurrences short. `known` carries results from one
    call to the next on the same node; `tick` is called at each step and may raise to give up.

    A group either has GPU v or not: groups(R) = groups(R - v) + x * groups(R & links(v)), x being
    the step to the next size. Of a few GPUs this is all that is done. Of more, where links are few,
    it is done GPU by GPU; where they are many, parts that are linked throughout multiply. So
    meshes, planes and rings need few steps, and nodes with a few links lost hardly more.
    """
    step = len(links)
    known = {} if known is None else known

    def count(rest: int) -> int:
        if rest not in known:
            tick()
            if rest.bit_count() <= _FEW:
                return _few_groups(links, rest, known)
            inside = {i: links[i] & rest for i in members(rest)}
            ends = sum(linked.bit_count() for linked in inside.values())
            many = 2 * ends > len(inside) * (len(inside) - 1)
            known[rest] = count_many(rest, inside) if many else count_few(rest, inside)
        return known[rest]

    def count_few(rest: int, inside: Mapping[int, int]) -> int:
        total = 1
        for i, linked in inside.items():
            rest ^= 1 << i
            linked &= rest  # noqa: PLW2901 - only groups whose first GPU is i
            total += (count(linked) if linked else 1) << step
        return total

    def count_many(rest: int, inside: Mapping[int, int]) -> int:
        everywhere = mask_of(i for i, linked in inside.items() if linked | 1 << i == rest)
        if everywhere:
            group = int((1 + (1 << step)) ** everywhere.bit_count())
            return group * count(rest ^ everywhere) if rest != everywhere else group
        part = edge = rest & -rest
        while edge:
            edge = rest & ~part & union(~inside[i] for i in members(edge))
            part |= edge
        if part != rest:
            return count(part) * count(rest ^ part)
        pivot = min(inside, key=lambda i: inside[i].bit_count())
        return count(rest ^ 1 << pivot) + (count(inside[pivot]) << step)

    return count(mask)


def _few_groups(links: Sequence[int], rest: int, known: dict[int, int]) -> int:
    """Count the linked groups of a few GPUs, as `linked_groups` does."""
    if not rest:
        return 1
    if rest not in known:
        first = rest & -rest
        others = rest ^ first
        linked = others & links[first.bit_length() - 1]
        with_first = _few_groups(links, linked, known)
        known[rest] = _few_groups(links, others, known) + (with_first << len(links))
    return known[rest]


def group_counts(groups: int, step: int) -> tuple[tuple[int, int], ...]:
    """Read `groups_left` of a node with `step` GPUs: (size, count), the largest first."""
    digits = ((size, groups >> (size - 1) * step & (1 << step) - 1) for size in range(step, 0, -1))
    return tuple((size, count) for size, count in digits if count)
