"""A scenario: nodes with GPUs, and Pods that come and go. Its YAML, read and written.

Times are minutes. A device is one of the `shares` of each GPU, so without sharing
it is a GPU.
"""

import re
from collections.abc import Callable, Mapping
from itertools import combinations, pairwise
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationError,
    model_validator,
)

from xelink.daemon.yaml_documents import OddNumberError, RepeatedKeyError, read_yaml
from xelink.topology.text import printable

GpuPair: TypeAlias = tuple[int, int]
"""Two GPUs of a node by their places in PCI order, the lower one first."""

MOST_GPUS = 16
"""Up to here the best set is found and proven."""

FILE_LIMIT = 1 << 20
_MOST_PODS = 10_000
_MOST_NODES = 100
_MOST_SHARES = 10
_MOST_NUMA = 1024
_MONTHS = 10**6  # in minutes, nearly two years
_RING = 3

_PAIR = re.compile(r"([0-9]{1,2})-([0-9]{1,2})", re.ASCII)


class ScenarioError(ValueError):
    """There is no scenario to run: one line says where and why."""


def _ordered_pair(text: str) -> str:
    match = _PAIR.fullmatch(text)
    if match is None or int(match[1]) == int(match[2]):
        raise ValueError(f"{text!r} is no pair of GPUs, as 0-1 is")
    return "-".join(sorted(match.groups(), key=int))


def _islands(given: object) -> int | list[list[int]]:
    match given:
        case bool():
            pass
        case int() if 1 <= given <= MOST_GPUS:
            return given
        case list() if all(isinstance(part, list) for part in given):
            if all(type(gpu) is int for part in given for gpu in part):
                return given
    raise ValueError("neither a number of islands nor lists of their GPUs")


def _numa(given: object) -> int | list[int]:
    match given:
        case bool():
            pass
        case int() if 1 <= given <= MOST_GPUS:
            return given
        case list() if all(type(node) is int and 0 <= node < _MOST_NUMA for node in given):
            return given
    raise ValueError("neither a number of NUMA nodes nor a list with that of each GPU")


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=300)]
PairText = Annotated[str, AfterValidator(_ordered_pair)]
Lanes = Annotated[int, Field(ge=1, le=1000)]
Minutes = Annotated[int, Field(ge=0, le=_MONTHS)]
Size = Annotated[int, Field(ge=1, le=MOST_GPUS)]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
Wiring = Literal["mesh", "ring", "none"]
Scheduler = Literal["most-free", "first-fit"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NodeShape(_Part):
    """`count` nodes of the same GPUs and links.

    `islands` splits the GPUs in equal parts by number, or names the parts; no link joins two of
    them. `linked` are all linked pairs with their lanes, in place of a wiring. `lost` are pairs
    without their link, `narrow` pairs with other lanes than the rest. `numa` splits the GPUs in
    equal parts by number, or names the NUMA node of each. `switches` are the GPUs behind each PCIe
    switch; without it nothing is known of them.
    """

    gpus: Size
    wiring: Wiring = "mesh"
    islands: Annotated[int | list[list[int]], PlainValidator(_islands)] = 1
    lanes: Lanes = 8
    linked: dict[PairText, Lanes] | None = None
    lost: list[PairText] = []
    narrow: dict[PairText, Lanes] = {}
    numa: Annotated[int | list[int], PlainValidator(_numa)] = 2
    switches: list[list[Annotated[int, Field(ge=0, lt=MOST_GPUS)]]] = []
    count: Annotated[int, Field(ge=1, le=_MOST_NODES)] = 1

    @model_validator(mode="after")
    def _whole(self) -> "NodeShape":
        if self.linked is not None and self.model_fields_set & {"wiring", "islands", "lanes"}:
            raise ValueError("linked says it all: leave out wiring, islands and lanes")
        for pair in self.linked or ():
            if max(_places(pair)) >= self.gpus:
                raise ValueError(f"there are no GPUs {pair}")
        if isinstance(self.numa, list) and len(self.numa) != self.gpus:
            raise ValueError(f"numa must name {self.gpus} NUMA nodes, one for each GPU")
        behind = [gpu for switch in self.switches for gpu in switch]
        if len({*behind}) < len(behind) or any(gpu >= self.gpus for gpu in behind):
            raise ValueError(f"switches must name some of {self.gpus} GPUs, each of them once")
        parts = self.parts
        if sorted(gpu for part in parts for gpu in part) != list(range(self.gpus)):
            raise ValueError(f"islands must share out {self.gpus} GPUs, each of them once")
        wired = self._wired()
        for pair in (*self.lost, *self.narrow):
            if _places(pair) not in wired:
                raise ValueError(f"GPUs {pair} have no link to begin with")
        if both := sorted({*self.lost} & {*self.narrow}):
            raise ValueError(f"the link {both[0]} is both lost and narrow")
        return self

    @property
    def parts(self) -> tuple[tuple[int, ...], ...]:
        """The islands, each with its GPUs."""
        if isinstance(self.islands, int):
            size = -(-self.gpus // self.islands)
            starts = range(0, self.gpus, size)
            return tuple(tuple(range(at, min(at + size, self.gpus))) for at in starts)
        return tuple(map(tuple, self.islands))

    @property
    def links(self) -> Mapping[GpuPair, int]:
        """Lanes of every linked pair."""
        lost = {_places(pair) for pair in self.lost}
        narrow = {_places(pair): lanes for pair, lanes in self.narrow.items()}
        wired = sorted(self._wired() - lost)
        whole = {_places(pair): lanes for pair, lanes in (self.linked or {}).items()}
        return {pair: narrow.get(pair) or whole.get(pair, self.lanes) for pair in wired}

    @property
    def numa_nodes(self) -> tuple[int, ...]:
        """The NUMA node of each GPU."""
        if isinstance(self.numa, list):
            return tuple(self.numa)
        return tuple(gpu * min(self.numa, self.gpus) // self.gpus for gpu in range(self.gpus))

    def _wired(self) -> set[GpuPair]:
        if self.linked is not None:
            return {_places(pair) for pair in self.linked}
        return {pair for part in self.parts for pair in _WIRINGS[self.wiring](part)}


class PodShape(_Part):
    """`count` Pods that ask for `gpus` each at minute `at`; without `for` they stay."""

    name: Name | None = None
    gpus: Size
    at: Minutes = 0
    lasting: Annotated[int, Field(ge=1, le=_MONTHS)] | None = Field(None, alias="for")
    count: Annotated[int, Field(ge=1, le=_MOST_PODS)] = 1


class Mix(_Part):
    """Pods to be drawn: how many, their sizes with weights, how long one lasts in the mean.

    `load` is what they ask for, in the mean, as a share of all devices.
    """

    pods: Annotated[int, Field(ge=1, le=_MOST_PODS)]
    sizes: dict[Size, Annotated[float, Field(gt=0, le=1e6)]] = Field(
        {1: 4, 2: 3, 4: 2, 8: 1}, min_length=1
    )
    load: Annotated[float, Field(gt=0, le=10)] = 0.8
    lasting: Annotated[int, Field(ge=1, le=_MONTHS)] = Field(60, alias="for")


class Scenario(_Part):
    """Nodes, and Pods that are listed or drawn from the seed."""

    about: Line = ""
    nodes: list[NodeShape] = Field(min_length=1)
    shares: Annotated[int, Field(ge=1, le=_MOST_SHARES)] = 1
    scheduler: Scheduler = "most-free"
    seed: Seed = 1
    pods: list[PodShape] = []
    random: Mix | None = None

    @model_validator(mode="after")
    def _possible(self) -> "Scenario":
        if bool(self.pods) == bool(self.random):
            raise ValueError("either pods or random must say which Pods come")
        if len(self.every_node) > _MOST_NODES:
            raise ValueError(f"more than {_MOST_NODES} nodes")
        if sum(pod.count for pod in self.pods) > _MOST_PODS:
            raise ValueError(f"more than {_MOST_PODS} Pods")
        most = max(node.gpus for node in self.nodes) * self.shares
        for size in (*(pod.gpus for pod in self.pods), *(self.random.sizes if self.random else ())):
            if size > most:
                raise ValueError(f"a Pod asks for {size} GPUs, and no node has more than {most}")
        return self

    @property
    def every_node(self) -> tuple[NodeShape, ...]:
        """Each node by itself."""
        return tuple(node for node in self.nodes for _ in range(node.count))


RealNode: TypeAlias = Callable[[str, str], dict[str, Any]]
"""Takes a kind of source and a file, gives the keys of the node that is in it."""

REAL = ("features", "metrics")
"""Keys of a node that name a file with a real one."""


def parse(text: str, real: RealNode | None = None) -> Scenario:
    """Return a scenario; nodes that name a file are read by `real`. Raises `ScenarioError`."""
    try:
        found = read_yaml(text)
    except (RepeatedKeyError, OddNumberError) as error:
        raise ScenarioError(_one_line(error)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ScenarioError(f"no YAML: {_one_line(error)}") from error
    if not isinstance(found, dict):
        raise ScenarioError("no YAML mapping with nodes and pods")
    if real:
        found = {**found, "nodes": _real_nodes(found.get("nodes"), real)}
    try:
        return Scenario.model_validate(found)
    except ValidationError as error:
        raise ScenarioError(_first(error)) from error


def _real_nodes(nodes: object, real: RealNode) -> object:
    if not isinstance(nodes, list) or len(nodes) > _MOST_NODES:
        return nodes
    return [
        _real_node(number, node, real) if isinstance(node, dict) else node
        for number, node in enumerate(nodes)
    ]


def _real_node(number: int, node: dict[str, Any], real: RealNode) -> dict[str, Any]:
    named = [kind for kind in REAL if kind in node]
    if not named:
        return node
    (kind, *others), where = named, f"nodes.{number}.{named[0]}"
    given = {key: value for key, value in node.items() if key != kind}
    if others or given.keys() & {"gpus", "linked", "numa"}:
        raise ScenarioError(f"{where}: it says all of the node but count, lost and narrow")
    if not isinstance(node[kind], str):
        raise ScenarioError(f"{where}: not the name of a file")
    try:
        return real(kind, node[kind]) | given
    except ValueError as error:
        raise ScenarioError(_one_line(f"{where}: {error}")) from error


def render(scenario: Scenario) -> str:
    """Write a scenario as `parse` reads it."""
    facts = scenario.model_dump(by_alias=True, exclude_defaults=True)
    return yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, default_flow_style=None)


def _first(error: ValidationError) -> str:
    # of a key with a slip in it both halves are reported: that it is unknown, and that one is
    # missing
    errors = sorted(
        error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden"
    )
    first = errors[0]
    where = [str(part) for part in first["loc"]]
    what = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
    more = len(errors) - 1
    place = f"{'.'.join(where)}: " if where else ""
    more_told = f" (and {more} more)" if more else ""
    return _one_line(f"{place}{what.removeprefix('Value error, ')}{more_told}")


def _one_line(error: object) -> str:
    text = " ".join(str(error).split())
    return printable(text, 300)


def _places(pair: str) -> GpuPair:
    one, other = sorted(map(int, pair.split("-")))
    return one, other


def _mesh(part: tuple[int, ...]) -> set[GpuPair]:
    return set(combinations(sorted(part), 2))


def _ring(part: tuple[int, ...]) -> set[GpuPair]:
    closed = (*part, part[0]) if len(part) >= _RING else part
    return {(min(pair), max(pair)) for pair in pairwise(closed)}


def _none(_part: tuple[int, ...]) -> set[GpuPair]:
    return set()


_WIRINGS: Mapping[Wiring, Callable[[tuple[int, ...]], set[GpuPair]]] = {
    "mesh": _mesh,
    "ring": _ring,
    "none": _none,
}
