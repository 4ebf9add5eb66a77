"""What the plugin would prefer on a node, and its account: the plugin's own parts, asked. Pure.

The GPUs are those of the id map. A source does not have what else the plugin sees on a node:
drivers, virtual functions, health from XPU Manager 2.x.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from types import MappingProxyType

from xelink.cli.exit_codes import WrongCallError
from xelink.inventory.gpus import Card, Inventory
from xelink.inventory.links import NodeLinks, join
from xelink.inventory.workload_facts import WorkloadFacts, facts
from xelink.nfd.reader import FileState, Reading
from xelink.preference.criteria import CRITERIA, Criterion
from xelink.preference.engine import DEFAULT_TIMEOUT
from xelink.preference.explanation import Alternative, Explanation, explain
from xelink.preference.fabric import GpuFacts
from xelink.preference.policies import AllocationPolicy
from xelink.preference.shares import Preference, Preferences, prepare
from xelink.topology.groups import STEPS, Largest, largest_group
from xelink.topology.model import Gpu, Link, Topology
from xelink.topology.pci import PciAddress
from xelink.topology.publication import Publication
from xelink.view.node_view import NodeView

# device = card [ "-" share ] ; card = "card" N / "GPU" id / id / PCI address
_SHARE = re.compile(r"(?P<gpu>.+?)(?:-(?P<share>[0-9]{1,6}))?", re.ASCII | re.DOTALL)

_MOST_SETS = 500

INFERRED = (
    "ids are taken for places in PCI order and each link for one lane, as the plugin does where"
    " there is no id map; ports, NUMA nodes and GPUs without a link are not known"
)


@dataclass(frozen=True)
class Wanted:
    """A request as a person makes it: `have` and `used` name GPUs or shares of them."""

    size: int
    have: tuple[str, ...] = ()
    used: tuple[str, ...] = ()
    shares: int = 1
    policy: AllocationPolicy = AllocationPolicy.TOPOLOGY
    timeout: float = DEFAULT_TIMEOUT
    """Seconds for the search beyond 16 GPUs."""


@dataclass(frozen=True)
class Choice:
    """What the plugin would prefer, and all that explains it.

    `ids` are device ids by PCI address. `available` are the devices that kubelet could make
    available, `must` those that the Pod has already. `other` is what the policy `topology` would
    have preferred where another policy was asked.
    """

    node: NodeView
    wanted: Wanted
    cards: tuple[Card, ...]
    ids: Mapping[str, int]
    links: NodeLinks
    available: tuple[str, ...]
    must: tuple[str, ...]
    explanation: Explanation
    other: Preference | None

    @property
    def preference(self) -> Preference:
        """The devices."""
        return self.explanation.preference

    @cached_property
    def by_card(self) -> dict[str, Card]:
        """Cards by name."""
        return {card.name: card for card in self.cards}

    @cached_property
    def chosen(self) -> tuple[Card, ...]:
        """The GPUs of the preferred devices, by PCI address."""
        return tuple(self.by_card[name] for name in self.explanation.evaluation.cards)

    @cached_property
    def facts(self) -> WorkloadFacts:
        """The workload environment, as the plugin sets it."""
        links = (
            replace(self.links, state=FileState.INFERRED) if self.node.labels_only else self.links
        )
        return facts(links, [card.bdf for card in self.chosen])

    def pairs(self, cards: Iterable[str]) -> Iterator[tuple[Card, Card, int | None]]:
        """Return every pair of cards with its lanes, None where there is no link."""
        for one, other in combinations([self.by_card[name] for name in cards], 2):
            yield one, other, self.links.lanes_between(one.bdf, other.bdf)

    @property
    def runners_up(self) -> tuple[Alternative, ...]:
        """The best sets that lose; none of a policy that does not ask the criteria.

        A search that ended at its time may have missed a set that would win.
        """
        if self.other:
            return ()
        return tuple(
            other for other in self.explanation.runners_up if other.measure < other.chosen_measure
        )

    @property
    def decided(self) -> Criterion | None:
        """The criterion that put the first runner-up behind."""
        return self.runners_up[0].decided if self.runners_up else None

    def worse_by(self) -> Mapping[Criterion, int]:
        """Count all other sets by the criterion on which each is worse; empty if too many."""
        if not self.explanation.complete or len(self.runners_up) >= _MOST_SETS:
            return {}
        counts = Counter(other.decided for other in self.runners_up)
        return {criterion: counts[criterion] for criterion in CRITERIA if counts[criterion]}

    def largest_left(self) -> tuple[str, ...]:
        """Name a largest group of GPUs, all linked, that is left unused for the next Pod.

        Of several it is the one with the lowest PCI addresses. Where a search was cut short, as on
        no real node, it is any of those that were found: see `largest_left_proven`.
        """
        return tuple(self.explanation.evaluation.left[i] for i in self._largest_left.group)

    @property
    def largest_left_proven(self) -> bool:
        """Whether there is no larger group."""
        return self._largest_left.complete

    @cached_property
    def _largest_left(self) -> Largest:
        left = [self.by_card[name] for name in self.explanation.evaluation.left]
        linked = {
            i: {j for j, other in enumerate(left) if self._joined(one, other)}
            for i, one in enumerate(left)
        }
        largest = largest_group(linked)
        if not largest.complete:
            return largest
        group: list[int] = []
        candidates, open_ = set(linked), max(1, len(largest.group))
        for i, others in linked.items():
            inside = candidates & others
            rest = largest_group({j: linked[j] for j in inside}, STEPS // len(left))
            if not rest.complete:
                return largest
            if i in candidates and len(rest.group) + 1 >= open_:
                group.append(i)
                candidates, open_ = inside, open_ - 1
        return Largest(tuple(group), complete=True)

    def _joined(self, one: Card, other: Card) -> bool:
        return one is not other and self.links.lanes_between(one.bdf, other.bdf) is not None


def choose(
    node: NodeView,
    wanted: Wanted,
    clock: Callable[[], float],
    bridges: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> Choice:
    """Ask the plugin's preference. `bridges` are the PCIe bridges above each GPU, by address.

    Raises `WrongCallError` for GPUs that are not there, and for what nobody could meet: more
    devices than are free, or less than the Pod has.
    """
    topology, names = _joined(node)
    cards = tuple(Card(names[gpu.id], gpu.bdf, "i915", 0, gpu.numa) for gpu in topology.gpus)
    if not cards:
        raise WrongCallError("no GPU is known on this node")
    links = join(Reading(FileState.IN_USE, publication=Publication(topology)), Inventory(cards))
    index = _Index(topology, names, wanted.shares)
    used = index.devices(wanted.used, "--used")
    must = index.shares(wanted.have, used)
    available = tuple(device for device in index.every if device not in used)

    def preferences(policy: AllocationPolicy) -> Preferences:
        gpus = [
            GpuFacts(
                card.name,
                card.bdf,
                card.numa,
                links.ports_healthy(card.bdf),
                bridges=bridges.get(card.bdf, ()),
            )
            for card in cards
        ]
        return prepare(
            gpus,
            links.lanes,
            clock=clock,
            replicas=wanted.shares,
            policy=policy,
            timeout=wanted.timeout,
        )

    try:
        explanation = explain(
            preferences(wanted.policy), available, must, wanted.size, runners_up=_MOST_SETS
        )
    except ValueError as error:
        raise WrongCallError(str(error)) from error
    other = None
    if wanted.policy is not AllocationPolicy.TOPOLOGY:
        other = preferences(AllocationPolicy.TOPOLOGY).prefer(available, must, wanted.size)
    ids = {gpu.bdf: gpu.id for gpu in topology.gpus}
    return Choice(node, wanted, cards, ids, links, available, must, explanation, other)


def _joined(node: NodeView) -> tuple[Topology, dict[int, str]]:
    """Return the topology with an address for each GPU, and the card of each device id.

    Where there are labels alone, addresses stand for the ids: in their order, as the plugin
    guesses.
    """
    if node.topology is None:
        raise WrongCallError(f"{node.title}: {node.state.value}: {node.reason}")
    topology = node.topology
    if node.labels_only:
        gpus = tuple(Gpu(device, f"{device:08x}:00:00.0") for device in node.devices)
        links = tuple(Link(link.a, link.b, 1, 1) for link in topology.links)
        topology = replace(topology, gpus=gpus, links=links)
    taken = [gpu.card for gpu in topology.gpus]
    # Two GPUs with one card cannot be: such a map is not used for cards.
    sure = {card for card in taken if card and taken.count(card) == 1}
    return topology, {
        gpu.id: gpu.card if gpu.card in sure and gpu.card else f"GPU{gpu.id}"
        for gpu in topology.gpus
    }


class _Index:
    """Finds devices by what people call GPUs."""

    def __init__(self, topology: Topology, names: dict[int, str], shares: int) -> None:
        self._shares = shares
        self._cards: dict[str, str] = {}
        for gpu in topology.gpus:
            name = names[gpu.id]
            for called in (name, gpu.bdf, str(gpu.id), f"GPU{gpu.id}"):
                self._cards.setdefault(_key(called), name)
        self.every = tuple(f"{names[gpu.id]}-{i}" for gpu in topology.gpus for i in range(shares))

    def devices(self, words: Iterable[str], option: str) -> frozenset[str]:
        """Return the devices that words mean; a GPU without a share means all of its shares."""
        found: set[str] = set()
        for word in words:
            card, share = self._read(word, option)
            shares = range(self._shares) if share is None else [share]
            found.update(f"{card}-{i}" for i in shares)
        return frozenset(found)

    def shares(self, words: Iterable[str], used: frozenset[str]) -> tuple[str, ...]:
        """Return the devices that a Pod has; a GPU without a share means its first free one."""
        found: list[str] = []
        for word in words:
            card, share = self._read(word, "--have")
            own = [f"{card}-{i}" for i in (range(self._shares) if share is None else [share])]
            free = [device for device in own if device not in used and device not in found]
            if not free:
                raise WrongCallError(f"--have {word}: it is used already, or named twice")
            found.append(free[0])
        return tuple(found)

    def _read(self, word: str, option: str) -> tuple[str, int | None]:
        parts = _SHARE.fullmatch(word)
        card = self._cards.get(_key(parts["gpu"] if parts else word))
        if not card or not parts:
            some = " ".join(sorted(set(self._cards.values()), key=_natural)[:8])
            raise WrongCallError(f"{option} {word}: no such GPU here; there are {some}")
        if parts["share"] is None:
            return card, None
        share = int(parts["share"])
        if share >= self._shares:
            raise WrongCallError(f"{option} {word}: with --share {self._shares} there is no such")
        return card, share


def _key(called: str) -> str:
    """Return what the names of one GPU have in common; lspci prints addresses as `3A:00.0`."""
    try:
        return PciAddress.lenient(called)
    except ValueError:
        return called.lower()


def _natural(name: str) -> tuple[int, str]:
    return len(name), name
