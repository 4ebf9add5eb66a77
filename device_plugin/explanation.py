"""Why these GPUs and not others: for people, never inside an RPC.

It ranks the sets that lost, names the wish on which each lost, and tells what the next Pod finds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import nlargest
from itertools import combinations, takewhile

from device_plugin.allocation import Preference, Preferences
from device_plugin.masks import members
from device_plugin.wishes import WISHES, Fabric, Free, Score, Wish, group_counts, linked_groups

PATIENCE = 2.0
"""Seconds to weigh sets beyond 16 GPUs."""


@dataclass(frozen=True, slots=True)
class Account:
    """One set of GPUs measured by every wish, and what it leaves.

    `left` are the cards that stay whole, `groups_left` how many sets of how many of them are all
    linked, as (size, count) from the largest size down. `groups_open` says the same of the cards
    that keep a device to share; it is empty where no set takes a card's last one.
    """

    cards: tuple[str, ...]
    score: Score
    left: tuple[str, ...]
    groups_left: tuple[tuple[int, int], ...]
    groups_open: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Alternative:
    """A set that was not chosen: the first wish in which it differs, and both measures.

    With the policy `topology` it is worse there; other policies do not ask the wishes.
    """

    account: Account
    decided: Wish
    chosen_measure: int
    measure: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """A choice with its runners-up, the best first.

    `complete` tells that every possible set was ranked; otherwise the runners-up are the best of
    those that differ in one GPU, and `unweighed` is how many of these were not weighed in time.
    `decided` is the wish that put the first runner-up behind, None when there was nothing to
    choose.
    """

    preference: Preference
    account: Account
    runners_up: tuple[Alternative, ...]
    complete: bool
    unweighed: int = 0

    @property
    def decided(self) -> Wish | None:
        """The wish that decided."""
        return self.runners_up[0].decided if self.runners_up else None


def account(
    fabric: Fabric, chosen: int, free: Free, known: dict[int, int] | None = None
) -> Account:
    """Measure a set of GPUs, when so much was free before; `known` as in `linked_groups`."""
    score = _score(fabric, chosen, free, known)
    return Account(
        cards=fabric.cards(chosen),
        score=score,
        left=fabric.cards(free.whole_after(chosen)),
        groups_left=group_counts(score.groups_left, len(fabric)),
        groups_open=group_counts(score.groups_open, len(fabric)),
    )


def _score(fabric: Fabric, chosen: int, free: Free, known: dict[int, int] | None) -> Score:
    """Measure every wish as `Fabric.score` does: sets that differ little share most groups."""
    left = {"groups_open": free.open_after(chosen), "groups_left": free.whole_after(chosen)}
    return Score(
        *(
            linked_groups(fabric.links, left[wish.name], known) >> len(fabric)
            if wish.name in left
            else wish.measure(fabric, chosen, free)
            for wish in WISHES
        )
    )


def explain(
    preferences: Preferences,
    available: Iterable[str],
    must: Iterable[str],
    size: int,
    *,
    runners_up: int = 5,
) -> Explanation:
    """Choose as `Preferences.prefer` does, and account for it.

    Raises `RequestError` as that does. Takes some seconds at most, `PATIENCE` of them for sets
    beyond 16 GPUs: those that come close by all that is asked before what is left come first.
    """
    available, must = list(available), list(must)
    preference = preferences.prefer(available, must, size)
    request = preferences.read(available, must, size)
    fabric, free, chosen = preferences.fabric, request.free, preference.gpus
    subsets = preferences.subsets
    fresh = request.gpus & ~request.must
    taken = chosen & ~request.must
    known: dict[int, int] = {}
    own = account(fabric, chosen, free, known)
    if subsets:
        bits = [1 << i for i in members(fresh)]
        others = [request.must + sum(some) for some in combinations(bits, taken.bit_count())]
        others = [other for other in others if other != chosen]
        best = nlargest(runners_up, others, key=lambda other: subsets.rank(other, free))
        weighed = [account(fabric, other, free, known) for other in best]
        unweighed = 0
    else:
        others = [
            chosen & ~(1 << out) | 1 << into
            for out in members(taken)
            for into in members(fresh & ~chosen)
        ]
        others.sort(key=lambda other: _before_left(fabric, other, free), reverse=True)
        end = preferences.clock() + PATIENCE
        weighed = []
        for other in others:
            weighed.append(account(fabric, other, free, known))
            if preferences.clock() >= end:
                break
        unweighed = len(others) - len(weighed)
        weighed = nlargest(runners_up, weighed, key=lambda one: one.score)
    return Explanation(
        preference=preference,
        account=own,
        runners_up=tuple(_alternative(own, other) for other in weighed),
        complete=subsets is not None,
        unweighed=unweighed,
    )


def _before_left(fabric: Fabric, chosen: int, free: Free) -> list[int]:
    """Measure the wishes that come before what is left: all of them are quick."""
    quick = takewhile(lambda wish: wish.name != "groups_open", WISHES)
    return [wish.measure(fabric, chosen, free) for wish in quick]


def _alternative(chosen: Account, other: Account) -> Alternative:
    """Find the first wish in which the two differ; two sets always differ in their addresses."""
    differing = (
        Alternative(other, wish, own, its)
        for wish, own, its in zip(WISHES, chosen.score, other.score, strict=True)
        if own != its
    )
    return next(differing)
