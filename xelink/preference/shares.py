"""Which devices a Pod had best get: the answer to `GetPreferredAllocation`, pure.

kubelet counts devices, `engine` chooses GPUs: this is between them. `prepare` does, whenever a
snapshot changes, all the work that does not depend on the request; `Preferences.prefer` answers one
request. A device id is `cardN-i`, i being the share when a GPU is shared. Shares of a GPU, and of
its VFs, are its replicas. GPUs come before replicas: a Pod gets as many different GPUs as it asked
for devices, if there are.

Every request gets an answer or a `RequestError`. Ids that the node does not know (a GPU that has
just gone) are taken last, and only when kubelet leaves no other choice.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from xelink.preference.bitmask import mask_of, members
from xelink.preference.engine import DEFAULT_TIMEOUT, Clock, Engine
from xelink.preference.fabric import Fabric, Free, GpuFacts
from xelink.preference.policies import POLICIES, AllocationPolicy, FreeDevice
from xelink.preference.virtual_functions import Physical, physical

_QUICK_DEVICES = 256


class RequestError(ValueError):
    """Nobody could meet this request: kubelet hears INVALID_ARGUMENT."""


class DeviceRequest(NamedTuple):
    """A request on a known node: bitmasks of GPUs, `wanted` of them to be chosen.

    `size` devices are asked for. `available` and `needed` are bitmasks of devices: replica r of GPU
    i is bit r * n + i. Of a GPU with VFs these are the first share of each VF, by address, then the
    second ones, and so on.
    """

    size: int
    available: int
    needed: int
    missing: int
    gpus: int
    must: int
    free: Free
    wanted: int
    unknown: tuple[str, ...]
    unknown_needed: tuple[str, ...]


class Preference(NamedTuple):
    """The devices to take, in a stable order, and what was asked.

    `gpus` are the GPUs that the ids stand for, a bitmask by PCI address. `request` is None for the
    fallback, which knows nothing of the node. `proven` is False when the time was up before
    every set was ruled out. `error` is the internal error that made this the fallback.
    """

    ids: tuple[str, ...]
    gpus: int = 0
    request: DeviceRequest | None = None
    proven: bool = True
    error: str | None = None


@dataclass(frozen=True)
class Preferences:
    """The devices of one snapshot, prepared for requests: immutable, made by `prepare`.

    `engine` chooses the GPUs; None where the policy goes by devices alone. `replicas` are those of
    the GPU that has the most, `absent` those that another one lacks, `functions` how
    many VFs each GPU has, 1 for itself.
    """

    fabric: Fabric
    replicas: int
    policy: AllocationPolicy
    clock: Clock = field(repr=False)
    engine: Engine | None = field(repr=False)
    names: tuple[tuple[tuple[str, ...], ...], ...] = field(repr=False)
    bits: Mapping[str, int] = field(repr=False)
    absent: int = field(default=0, repr=False)
    functions: tuple[int, ...] = field(default=(), repr=False)

    @property
    def is_quick(self) -> bool:
        """Whether every answer is a look-up, well below a millisecond, and no search."""
        searches = self.engine is not None and self.engine.subsets is None
        return not searches and len(self.bits) <= _QUICK_DEVICES

    def prefer(self, available: Iterable[str], must: Iterable[str], size: int) -> Preference:
        """Choose `size` ids of `available` with all of `must`.

        `must` counts as available; ids given twice count once. Ids come back by PCI address and
        replica, those that the node does not know last. Raises `RequestError` when `size` is less
        than 1, less than the ids in `must`, or more than the ids there are.
        """
        return self.answer(self.read(available, must, size))

    def answer(self, request: DeviceRequest) -> Preference:
        """Choose for a request that has been read."""
        chosen, proven = request.must, True
        if self.engine:
            chosen, proven = self.engine.choose(
                request.gpus, request.must, request.free, request.wanted
            )
        picked = request.needed
        open_ = request.missing
        fresh = chosen & ~request.must
        if fresh:
            open_ -= fresh.bit_count()
            shared = self.replicas > 1
            picked |= self._first_replicas(request.available & ~picked, fresh) if shared else fresh
        if open_:
            picked = self._fill(request.available, picked, open_)
        ids = self._names(picked)
        if request.unknown:
            ids += self._unknown_ids(request, request.size - len(ids))
        gpus = self._gpus(picked) if self.replicas > 1 else picked
        return Preference(ids, gpus, request, proven)

    def read(self, available: Iterable[str], must: Iterable[str], size: int) -> DeviceRequest:
        """Translate a request into sets; raise `RequestError` when it cannot be met."""
        known = self.bits.get
        unknown_ids: list[str] = []
        listed = needed = 0
        for device in must:
            bit = known(device)
            if bit is None:
                unknown_ids.append(device)
            else:
                needed |= bit
        unknown_needed = tuple(dict.fromkeys(unknown_ids)) if unknown_ids else ()
        for device in available:
            bit = known(device)
            if bit is None:
                unknown_ids.append(device)
            else:
                listed |= bit
        listed |= needed
        unknown = tuple(dict.fromkeys(unknown_ids)) if unknown_ids else ()
        count, of = needed.bit_count(), listed.bit_count()
        _check(size, count + len(unknown_needed), of + len(unknown))
        if self.replicas == 1:
            gpus, must_gpus, free = listed, needed, Free(listed)
        else:
            gpus, must_gpus = self._gpus(listed), self._gpus(needed)
            free = self._free(listed, needed)
        open_ = min(size - len(unknown_needed), of) - count
        wanted = must_gpus.bit_count() + min(open_, (gpus & ~must_gpus).bit_count())
        return DeviceRequest(
            size, listed, needed, open_, gpus, must_gpus, free, wanted, unknown, unknown_needed
        )

    def _first_replicas(self, free: int, gpus: int) -> int:
        """Take the lowest free replica of each of these GPUs."""
        n, taken, layer = len(self.fabric), 0, 0
        while gpus:
            here = free >> layer & gpus
            taken |= here << layer
            gpus ^= here
            layer += n
        return taken

    def _fill(self, available: int, picked: int, open_: int) -> int:
        """Take more devices in the order of the policy."""
        n, partly_used = len(self.fabric), self._gpus(picked)
        replicas: dict[int, list[int]] = {}
        for place in members(available & ~picked):
            replicas.setdefault(place % n, []).append(place // n)
        for gpu, free in replicas.items():
            free[:] = self._spread(gpu, free, picked)
        devices = [
            FreeDevice(gpu, replica, turn, len(free), bool(partly_used >> gpu & 1))
            for gpu, free in replicas.items()
            for turn, replica in enumerate(free)
        ]
        devices.sort(key=POLICIES[self.policy].order)
        for device in devices[:open_]:
            picked |= 1 << device.replica * n + device.gpu
        return picked

    def _spread(self, gpu: int, free: list[int], picked: int) -> list[int]:
        """Order free replicas of a GPU so that VFs come before further shares of one of them."""
        functions = self.functions[gpu]
        if functions == 1 or not POLICIES[self.policy].prefers_sets:
            return free
        n = len(self.fabric)
        taken = [0] * functions
        for replica in range(self.replicas):
            taken[replica % functions] += picked >> replica * n + gpu & 1
        turns = []
        for replica in free:
            turns.append((taken[replica % functions], replica))
            taken[replica % functions] += 1
        return [replica for _, replica in sorted(turns)]

    def _gpus(self, devices: int) -> int:
        n, gpus = len(self.fabric), 0
        while devices:
            gpus |= devices & (1 << n) - 1
            devices >>= n
        return gpus

    def _free(self, available: int, needed: int) -> Free:
        """Sort GPUs by how many of their devices are free."""
        n = len(self.fabric)
        unused, one, two, must = (1 << n) - 1, 0, 0, 0
        rest = available & ~needed
        available |= self.absent  # nobody else has what is not there
        for _ in range(self.replicas):
            here = rest & (1 << n) - 1
            unused &= available
            two |= one & here
            one |= here
            must |= needed
            available, rest, needed = available >> n, rest >> n, needed >> n
        last = one & ~two & ~must
        return Free(unused, one, last) if last else Free(unused)

    def _names(self, devices: int) -> tuple[str, ...]:
        """Name devices, by PCI address and replica."""
        if self.replicas == 1:
            ids: tuple[str, ...] = ()
            for table in self.names:
                ids += table[devices & 0xFF]
                devices >>= 8
            return ids
        return tuple([name for name, bit in self.bits.items() if devices & bit])

    def _unknown_ids(self, request: DeviceRequest, missing: int) -> tuple[str, ...]:
        needed = request.unknown_needed
        others = sorted(set(request.unknown) - set(needed), key=_natural)
        return tuple(sorted([*needed, *others[: missing - len(needed)]], key=_natural))


def prepare(
    gpus: Iterable[GpuFacts],
    lanes: Mapping[tuple[str, str], int],
    *,
    clock: Clock,
    replicas: int = 1,
    policy: AllocationPolicy = AllocationPolicy.TOPOLOGY,
    timeout: float = DEFAULT_TIMEOUT,
) -> Preferences:
    """Prepare a snapshot for requests: some 15 ms for 8 GPUs, some 35 ms for 16.

    `lanes` is keyed by pairs of PCI addresses, as in `Fabric.of`; empty is no topology.
    Each GPU, and each VF, counts as `replicas` devices. Beyond 16 physical GPUs a request may
    take `timeout` seconds of `clock`. Raises `ValueError` as `Fabric.of` does, or when `replicas`
    is less than 1.
    """
    if replicas < 1:
        raise ValueError(f"a GPU is at least one device, not {replicas}")
    prefers_sets = POLICIES[policy].prefers_sets
    # The other policies are those of Intel's plugin, to which a VF is a GPU.
    gpus = list(gpus)
    single = tuple(Physical(gpu, (gpu.card,)) for gpu in gpus)
    united, lanes = physical(gpus, lanes) if prefers_sets else (single, lanes)
    fabric = Fabric.of((one.facts for one in united), lanes)
    n = len(fabric)
    cards = {one.facts.bdf: one.cards for one in united}
    functions = tuple(len(cards[gpu.bdf]) for gpu in fabric.gpus)
    bits = {
        f"{card}-{share}": 1 << (share * functions[place] + number) * n + place
        for place, gpu in enumerate(fabric.gpus)
        for number, card in enumerate(cards[gpu.bdf])
        for share in range(replicas)
    }
    most = max(functions, default=1) * replicas
    names = tuple(bits) if most == 1 else ()
    return Preferences(
        fabric=fabric,
        replicas=most,
        policy=policy,
        clock=clock,
        engine=Engine.of(fabric, clock, timeout) if prefers_sets else None,
        names=tuple(_by_byte(names[i : i + 8]) for i in range(0, len(names), 8)),
        bits=bits,
        absent=mask_of(
            replica * n + place
            for place, own in enumerate(functions)
            for replica in range(own * replicas, most)
        ),
        functions=functions,
    )


def _by_byte(names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """List, for every set of up to eight devices, their names."""
    table: list[tuple[str, ...]] = [()]
    for name in names:
        table += [(*some, name) for some in table]
    return tuple(table)


def fallback(available: Iterable[str], must: Iterable[str], size: int) -> Preference:
    """Choose `must` and then the first of `available` by number, knowing nothing of the node.

    Raises `RequestError` as `Preferences.prefer` does.
    """
    needed = set(must)
    others = set(available) - needed
    _check(size, len(needed), len(needed) + len(others))
    ids = [*needed, *sorted(others, key=_natural)[: size - len(needed)]]
    return Preference(tuple(sorted(ids, key=_natural)), proven=False)


def _check(size: int, needed: int, available: int) -> None:
    if size < 1:
        raise RequestError(f"allocation size {size}: at least one device must be asked for")
    if needed > size:
        raise RequestError(f"allocation size {size}, but {needed} devices must be included")
    if available < size:
        raise RequestError(f"allocation size {size}, but only {available} devices are available")


def _natural(device: str) -> list[tuple[int, str]]:
    """Order ids as people do, card2 before card10; any text will do."""
    return [
        (len(part.lstrip("0")), part.lstrip("0")) if part.isdecimal() else (0, part)
        for part in re.split("([0-9]+)", device)
    ] + [(0, device)]
