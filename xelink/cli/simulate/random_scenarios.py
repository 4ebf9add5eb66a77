"""Random scenarios: Pods of a mix, and whole scenarios from a seed. Pure; the same every time.

What is drawn is meant to be like what there is: nodes of 4, 6 or 8 GPUs as they are sold, half of
them with a few links lost or narrowed; mostly small Pods, many short and few long; a load from half
of the devices to more than there are.
"""

from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

from xelink.cli.simulate.scenario import Mix, NodeShape, Scenario, Scheduler
from xelink.cli.simulate.schedule import ScheduledPod, listed

T = TypeVar("T")

_PODS = 60
_LASTING = 60
_SIZES = {1: 4.0, 2: 3.0, 4: 2.0, 8: 1.0}

# (weight, what it is): GPUs on baseboards are meshes, cards are bridged in fours or pairs; whether
# PCI addresses go along with the bridges depends on the slots.
_NODES: Sequence[tuple[int, dict[str, Any]]] = (
    (5, {"gpus": 8}),
    (3, {"gpus": 4}),
    (1, {"gpus": 6}),
    (2, {"gpus": 8, "islands": 2}),
    (2, {"gpus": 8, "islands": [[0, 2, 4, 6], [1, 3, 5, 7]]}),
    (1, {"gpus": 4, "wiring": "ring"}),
    (1, {"gpus": 8, "wiring": "ring"}),
    (1, {"gpus": 8, "islands": 4}),
)


def pods_of(scenario: Scenario) -> tuple[ScheduledPod, ...]:
    """Return the Pods of a scenario in the order in which they come: listed, or drawn."""
    if scenario.random is None:
        return listed(scenario)
    devices = sum(node.gpus for node in scenario.every_node) * scenario.shares
    return _drawn(_random("pods", scenario.seed), scenario.random, devices)


def scenario(seed: int) -> Scenario:
    """Draw a scenario."""
    random = _random("scenario", seed)
    node = _drawn_node(random)
    count = _weighed(random, ((6, 1), (2, 2), (2, 4)))
    if count > 1 and random.random() < 1 / 4:
        nodes = [node, *(_drawn_node(random) for _ in range(count - 1))]
    else:
        nodes = [node.model_copy(update={"count": count})]
    shares = _weighed(random, ((17, 1), (3, 2)))
    most = max(node.gpus for node in nodes)
    sizes = {
        size: round(weight * random.uniform(0.5, 1.5), 2)
        for size, weight in _SIZES.items()
        if size <= most
    }
    load = round(random.uniform(0.5, 1.2), 2)
    schedulers: tuple[Scheduler, ...] = ("most-free", "first-fit")
    scheduler = random.choice(schedulers)
    mix = Mix.model_validate({"pods": _PODS, "sizes": sizes, "load": load, "for": _LASTING})
    return Scenario(nodes=nodes, shares=shares, scheduler=scheduler, seed=seed, random=mix)


def _drawn(random: Random, mix: Mix, devices: int) -> tuple[ScheduledPod, ...]:
    sizes, weights = list(mix.sizes), list(mix.sizes.values())
    mean = sum(size * weight for size, weight in mix.sizes.items()) / sum(weights)
    # so many minutes from one Pod to the next keep `load` of the devices busy
    gap = mix.lasting * mean / (mix.load * devices)
    minute = 0.0
    pods = []
    for number in range(1, mix.pods + 1):
        minute += random.expovariate(1 / gap)
        (size,) = random.choices(sizes, weights)
        lasting = max(1, round(random.expovariate(1 / mix.lasting)))
        pods.append(ScheduledPod(f"pod-{number}", size, round(minute), lasting))
    return tuple(pods)


def _drawn_node(random: Random) -> NodeShape:
    shape = _weighed(random, _NODES)
    node = NodeShape(**shape)
    if random.random() < 1 / 2:
        return node
    pairs = [f"{one}-{other}" for one, other in node.links]
    lost = random.sample(pairs, min(random.randint(1, 3), len(pairs) - 1))
    still = [pair for pair in pairs if pair not in lost]
    narrow = random.sample(still, min(random.randint(0, 2), len(still)))
    return NodeShape(**shape, lost=lost, narrow=dict.fromkeys(narrow, node.lanes // 2))


def _weighed(random: Random, rows: Sequence[tuple[int, T]]) -> T:
    (row,) = random.choices(rows, [weight for weight, _ in rows])
    return row[1]


def _random(what: str, seed: int) -> Random:
    return Random(f"{what} {seed}")  # noqa: S311 - to be had again, not to be kept secret
