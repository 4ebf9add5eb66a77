"""A choice in words: the GPUs, the criterion that decided, and what was worse."""

from collections import Counter
from collections.abc import Iterator

from rich.text import Text

from xelink.cli.explain.choice import INFERRED, Choice
from xelink.cli.json_facts import gpu_facts
from xelink.cli.tables import BAD, FAINT, GOOD, HEAD, Cell, aligned, head
from xelink.inventory.gpus import Card
from xelink.preference.criteria import CRITERIA, Criterion, counted
from xelink.preference.explanation import Alternative
from xelink.preference.policies import POLICIES
from xelink.preference.shares import Preference

_MOST_OF_EACH = 2


def describe(choice: Choice) -> list[Text]:
    """Return the explanation in lines."""
    parts = [_chosen(choice), _pairs(choice), _why(choice), _left(choice), _warnings(choice)]
    lines: list[Text] = []
    for part in parts:
        block = list(part)
        lines += [Text(), *block] if lines and block else block
    return lines


def choice_facts(choice: Choice) -> dict[str, object]:
    """Return the same as plain data."""
    explanation = choice.explanation
    own = explanation.evaluation
    return {
        "source": choice.node.source,
        "node": choice.node.name or None,
        "policy": choice.wanted.policy,
        "want": choice.wanted.size,
        "have": list(choice.must),
        "devices": list(choice.preference.ids),
        "gpus": [gpu_facts(choice.node, choice.ids[card.bdf]) for card in choice.chosen],
        "cards": list(own.cards),
        "linked": choice.facts.linked.value,
        "environment": choice.facts.environment,
        "pairs": [
            {"cards": [one.name, other.name], "lanes": _known(choice, lanes)}
            for one, other, lanes in choice.pairs(own.cards)
        ],
        "proven": choice.preference.proven,
        "decided": _criterion_facts(choice.decided),
        "runners_up": [
            {
                "cards": list(other.evaluation.cards),
                "criterion": _criterion_facts(other.decided),
                "measure": other.measure,
                "chosen_measure": other.chosen_measure,
                "difference": other.difference,
            }
            for other in _best_of_each(choice)
        ],
        "every_set_ranked": explanation.complete,
        "sets_not_weighed": explanation.unweighed,
        "worse_by": [
            {"criterion": _criterion_facts(criterion), "sets": count}
            for criterion, count in choice.worse_by().items()
        ],
        "topology_would_prefer": list(choice.other.ids) if choice.other else None,
        "left": {
            "cards": list(own.left),
            "groups": [{"size": size, "count": count} for size, count in own.groups_left]
            if own.counted
            else None,
            "largest_group": list(choice.largest_left()),
            "largest_group_proven": choice.largest_left_proven,
        },
        "remarks": [line.plain for line in _warnings(choice)],
    }


def _criterion_facts(criterion: Criterion | None) -> dict[str, object] | None:
    if criterion is None:
        return None
    return {"number": criterion.number, "name": criterion.name, "meaning": criterion.meaning}


def _known(choice: Choice, lanes: int | None) -> int | str | None:
    return "unknown" if lanes is not None and choice.node.labels_only else lanes


def _chosen(choice: Choice) -> Iterator[Text]:
    wanted = choice.wanted
    what = "device" if wanted.shares > 1 else "GPU"
    count = f"{wanted.size} {what}{'' if wanted.size == 1 else 's'}"
    sentence = Text(f"A Pod that asks for {count} gets ")
    sentence.append(" ".join(_short(choice, device) for device in choice.preference.ids), HEAD)
    yield sentence.append(f" (policy {wanted.policy}).")
    if choice.must:
        has = " ".join(_short(choice, device) for device in choice.must)
        yield Text(f"It has {has} already, and keeps that.")
    free = {_card(device) for device in choice.available}
    gone = [card.name for card in choice.cards if card.name not in free]
    if gone:
        yield Text(f"Used by others: {' '.join(gone)}.")
    yield Text()
    yield from _table(choice)


def _table(choice: Choice) -> Iterator[Text]:
    """Show the chosen GPUs and the lanes between them."""
    chosen = choice.chosen
    many = len(chosen) > 1
    names = [card.name for card in chosen] if many else []
    facts = [] if choice.node.labels_only else ["PCI ADDRESS", "NUMA"]
    rows: list[list[Cell | str]] = [[*head("CARD", *facts, *names)]]
    for card in chosen:
        numa = "?" if card.numa is None else str(card.numa)
        row = [Cell(card.name, HEAD), *map(Cell, [card.bdf, numa] if facts else [])]
        rows.append([*row, *(_lanes_cell(choice, card, other) for other in chosen if many)])
    yield from aligned(rows, indent=2)


def _lanes_cell(choice: Choice, one: Card, other: Card) -> Cell:
    if one is other:
        return Cell("X", FAINT)
    lanes = choice.links.lanes_between(one.bdf, other.bdf)
    if lanes is None:
        return Cell("-", BAD)
    return Cell("linked" if choice.node.labels_only else str(lanes), GOOD)


def _pairs(choice: Choice) -> Iterator[Text]:
    pairs = list(choice.pairs(choice.explanation.evaluation.cards))
    if not pairs:
        return
    lanes = [lanes for _, _, lanes in pairs if lanes is not None]
    if len(pairs) == 1:
        sentence = "The pair is linked" if lanes else "The pair is not linked"
    elif len(lanes) == len(pairs):
        sentence = f"All {len(pairs)} pairs are linked"
    else:
        sentence = f"{len(lanes) or 'None'} of {len(pairs)} pairs {_are(len(lanes))} linked"
    if lanes and not choice.node.labels_only:
        sentence += f": {sum(lanes)} lanes"
        sentence += f" in all, {min(lanes)} in the weakest" if len(lanes) > 1 else ""
    yield Text(f"{sentence}.")


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _why(choice: Choice) -> Iterator[Text]:
    explanation = choice.explanation
    decided = choice.decided
    if choice.other is not None:
        yield from _other_policy(choice, choice.other)
        return
    if decided is None and (explanation.unweighed or not choice.preference.proven):
        return
    if decided is None:
        yield Text("There was nothing to choose: no other set has what is asked for.")
        return
    equal = choice.worse_by().get(CRITERIA[-1])
    start = f"Tie between {equal + 1} sets; decided" if equal else "Decided"
    name = f"criterion {decided.number} ({decided.meaning})"
    yield Text(f"{start} by ").append(name, HEAD).append(".")
    yield Text()
    shown = _best_of_each(choice)
    titles = head("RUNNER-UP", "WORSE BY", "DIFFERENCE")
    yield from aligned([titles, *(_runner_up(other) for other in shown)], indent=2)
    if not explanation.complete:
        yield Text("  of the sets that differ in one GPU", FAINT)
    elif worse := choice.worse_by():
        yield Text()
        yield Text(
            f"The {counted(sum(worse.values()), 'other set')}, by the criterion on which each is"
            " worse:"
        )
        numbers = Counter[tuple[int, str]]()
        for criterion, count in worse.items():
            numbers[criterion.number, criterion.meaning] += count
        rows = [[str(count), f"{n} {title}"] for (n, title), count in sorted(numbers.items())]
        yield from aligned(rows, indent=2)


def _best_of_each(choice: Choice) -> list[Alternative]:
    """Return the best runners-up on each criterion: many that tie would hide the others."""
    seen = Counter[int]()
    best: list[Alternative] = []
    for other in choice.runners_up:
        seen[other.decided.number] += 1
        if seen[other.decided.number] <= _MOST_OF_EACH:
            best.append(other)
    return best


def _runner_up(other: Alternative) -> list[Cell]:
    return [
        Cell(" ".join(other.evaluation.cards), HEAD),
        Cell(f"{other.decided.number} {other.decided.meaning}"),
        Cell(other.difference),
    ]


def _other_policy(choice: Choice, other: Preference) -> Iterator[Text]:
    sentence = Text(f"The policy {choice.wanted.policy} {POLICIES[choice.wanted.policy].meaning}")
    sentence.append(", whatever is linked. With the policy topology the Pod would get ")
    sentence.append(" ".join(_short(choice, device) for device in other.ids), HEAD)
    yield sentence.append(", the same." if set(other.ids) == set(choice.preference.ids) else ".")


def _left(choice: Choice) -> Iterator[Text]:
    own = choice.explanation.evaluation
    if not own.left:
        yield Text("No unused GPU is left for the next Pod.")
        return
    yield Text(f"Left for the next Pod: {' '.join(own.left)}")
    group = choice.largest_left()
    if len(group) > 1:
        count = f"{'' if choice.largest_left_proven else 'at least '}{len(group)}"
        yield Text(f"The largest linked group of these has {count}: {' '.join(group)}")
    else:
        yield Text("No two of these are linked.")


def _warnings(choice: Choice) -> Iterator[Text]:
    if not choice.preference.proven:
        yield Text("Not proven to be the best: the search ended at its time.", BAD)
    if not choice.explanation.evaluation.counted:
        yield Text("The linked groups that are left were not counted: the time was up.", BAD)
    if choice.explanation.unweighed and not choice.other:
        what = counted(choice.explanation.unweighed, "set")
        sentence = f"Not proven to be the best runners-up: the time was up with {what} not weighed."
        yield Text(sentence, BAD)
    if choice.node.labels_only:
        yield Text(f"From labels alone: {INFERRED}.", BAD)
    if choice.links.without_address:
        ids = " ".join(map(str, choice.links.without_address))
        yield Text(f"Linked, but without a PCI address, and so left out: GPU {ids}", BAD)
    if choice.links.state.value != "in use":
        yield Text(choice.links.reason, BAD)
    for remark in choice.node.remarks:
        if not choice.node.labels_only:
            yield Text(remark, BAD)


def _card(device: str) -> str:
    return device.rpartition("-")[0]


def _short(choice: Choice, device: str) -> str:
    """Name a device: by its card alone, where a card is one device."""
    return device if choice.wanted.shares > 1 else _card(device)
