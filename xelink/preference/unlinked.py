"""The best set where no two of the available GPUs are linked: exact, and hardly a search."""

from collections.abc import Iterator

from xelink.preference.bitmask import lowest, members, union
from xelink.preference.problem import SearchProblem


def unlinked(problem: SearchProblem, found: list[int]) -> None:
    """Append the best set, and before it any that was the best so far.

    Without links the first criterion that sets differ in is healthy ports, then NUMA nodes, then
    how many GPUs keep a free device, then how many stay unused, then addresses. So all GPUs with
    better ports are taken, and of those with equal ports as many as are still open. These come from
    the NUMA nodes that the set touches anyway and as few others as will do: which ones is the only
    thing to be searched, and only if partly used GPUs are on some of them.
    """
    chosen, fabric = problem.must, problem.index.fabric
    classes: dict[int, int] = {}
    for i in members(problem.available & ~problem.must):
        cost = fabric.ports_cost[i]
        classes[cost] = classes.get(cost, 0) | 1 << i
    for _, equals in sorted(classes.items()):
        open_ = problem.size - chosen.bit_count()
        if open_ < equals.bit_count():
            break
        chosen |= equals
    else:
        found.append(chosen)
        return
    nodes = union(fabric.numa[i] for i in members(chosen))
    here = union(home for node, home in problem.index.homes if node & nodes) & equals
    others = [home & equals for node, home in problem.index.homes if not node & nodes]
    others.sort(key=lambda home: home & -home)
    partly, last = equals & ~problem.free.unused, problem.free.last_share
    best = (-problem.size - 1, 0, 0)
    for home in _homes(problem, [home for home in others if home], open_ - here.bit_count()):
        some = 0
        for kind in (partly & ~last, ~partly, partly & last):
            some |= lowest((here | home) & kind, open_ - some.bit_count())
        rank = -(some & last).bit_count(), (some & partly).bit_count(), fabric.mirrored(some)
        if rank > best:
            best = rank
            found.append(chosen | some)
        if not partly & ~here:
            return  # they come by address


def _homes(problem: SearchProblem, others: list[int], lacking: int) -> Iterator[int]:
    """Unite as few of these NUMA nodes as have `lacking` GPUs, every way; by lowest address."""
    fewest, most = 0, 0
    for size in sorted((home.bit_count() for home in others), reverse=True):
        if most >= lacking:
            break
        fewest, most = fewest + 1, most + size
    # what is still to be looked at from here, what is united, how many more, GPUs still lacking
    open_ = [(0, 0, fewest, lacking)]
    while open_:
        place, united, more, lacks = open_.pop()
        problem.tick(1 + len(others) // 4)
        rest = sorted((home.bit_count() for home in others[place:]), reverse=True)
        if len(rest) < more or sum(rest[:more]) < lacks:
            continue
        if not more:
            yield united
            continue
        home = others[place]
        open_.append((place + 1, united, more, lacks))
        open_.append((place + 1, united | home, more - 1, lacks - home.bit_count()))
