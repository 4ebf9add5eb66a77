"""Scenarios: what may stand in one, and what is said of one that cannot be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xelink.cli.simulate import random_scenarios
from xelink.cli.simulate.scenario import Scenario, ScenarioError, parse, render

ONE_POD = "pods: [{gpus: 1}]\n"


def scenario(node: str, rest: str = ONE_POD) -> Scenario:
    return parse(f"nodes: [{{{node}}}]\n{rest}")


@pytest.mark.parametrize(
    ("node", "pairs"),
    [
        ("gpus: 3", {(0, 1): 8, (0, 2): 8, (1, 2): 8}),
        ("gpus: 4, wiring: ring", {(0, 1): 8, (1, 2): 8, (2, 3): 8, (0, 3): 8}),
        ("gpus: 2, wiring: ring", {(0, 1): 8}),
        ("gpus: 4, wiring: none", {}),
        ("gpus: 4, islands: 2, lanes: 16", {(0, 1): 16, (2, 3): 16}),
        ("gpus: 4, islands: [[0, 3], [1, 2]]", {(0, 3): 8, (1, 2): 8}),
        ("gpus: 3, lost: [1-0], narrow: {2-1: 4}", {(0, 2): 8, (1, 2): 4}),
        ("gpus: 3, linked: {2-0: 4, 1-2: 16}", {(0, 2): 4, (1, 2): 16}),
        ("gpus: 3, linked: {0-2: 4, 1-2: 16}, lost: [0-2]", {(1, 2): 16}),
        ("gpus: 5, islands: 2", dict.fromkeys([(0, 1), (0, 2), (1, 2), (3, 4)], 8)),
    ],
    ids=[
        "mesh",
        "ring",
        "two",
        "none",
        "islands",
        "named islands",
        "degraded",
        "linked",
        "linked but one",
        "uneven",
    ],
)
def test_a_node_is_wired_as_it_says(node: str, pairs: dict[tuple[int, int], int]) -> None:
    assert scenario(node).nodes[0].links == pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "no YAML: "),
        ("\0", "no YAML: "),
        ("- 1", "no YAML mapping with nodes and pods"),
        ("seed: 1\nnodes: [{gpus: 010}]", "010 in line 2 is another number to YAML; write a plain"),
        ("seed: 1_0", "1_0 in line 1 is another number to YAML"),
        ("seed: 1\nseed: 2", "'seed' is given twice, in lines 1 and 2"),
        ("nodes:\n- gpus: 8\n  gpus: 4", "'gpus' is given twice, in lines 2 and 3"),
        ("nodes: [{gpus: 8, numa: [0], numa: [1]}]", "'numa' is given twice, in lines 1 and 1"),
        ("pods: [{gpus: 1}]", "nodes: Field required"),
        (f"nodes: []\n{ONE_POD}", "nodes: "),
        (f"nodes: [{{gpu: 8}}]\n{ONE_POD}", "nodes.0.gpu: unknown key (and 1 more)"),
        (f"nodes: [{{gpus: 17}}]\n{ONE_POD}", "nodes.0.gpus: "),
        (f"nodes: [{{gpus: true}}]\n{ONE_POD}", "nodes.0.gpus: "),
        (f"nodes: [{{gpus: 4, wiring: torus}}]\n{ONE_POD}", "nodes.0.wiring: "),
        (f"nodes: [{{gpus: 4, islands: many}}]\n{ONE_POD}", "nodes.0.islands: neither a number"),
        (f"nodes: [{{gpus: 4, islands: [[0], [1, 2]]}}]\n{ONE_POD}", "nodes.0: islands must share"),
        (f"nodes: [{{gpus: 4, lost: [0-0]}}]\n{ONE_POD}", "nodes.0.lost.0: '0-0' is no pair"),
        (f"nodes: [{{gpus: 4, lost: [0-4]}}]\n{ONE_POD}", "nodes.0: GPUs 0-4 have no link"),
        (
            f"nodes: [{{gpus: 4, lost: [0-1], narrow: {{1-0: 4}}}}]\n{ONE_POD}",
            "nodes.0: the link 0-1 is both lost and narrow",
        ),
        (f"nodes: [{{gpus: 2, linked: {{0-2: 4}}}}]\n{ONE_POD}", "nodes.0: there are no GPUs 0-2"),
        (f"nodes: [{{gpus: 2, linked: {{}}, lanes: 4}}]\n{ONE_POD}", "nodes.0: linked says it all"),
        (f"nodes: [{{gpus: 2, numa: [0]}}]\n{ONE_POD}", "nodes.0: numa must name 2 NUMA nodes"),
        (f"nodes: [{{gpus: 2, numa: [0, -1]}}]\n{ONE_POD}", "nodes.0.numa: neither a number"),
        (f"nodes: [{{metrics: body.prom}}]\n{ONE_POD}", "nodes.0.metrics: unknown key"),
        (f"nodes: [{{gpus: 4, count: 101}}]\n{ONE_POD}", "nodes.0.count: "),
        (f"nodes: [{{gpus: 4, count: 60}}, {{gpus: 4, count: 60}}]\n{ONE_POD}", "more than 100"),
        ("nodes: [{gpus: 4}]", "either pods or random"),
        (f"nodes: [{{gpus: 4}}]\n{ONE_POD}random: {{pods: 1}}", "either pods or random"),
        ("nodes: [{gpus: 4}]\npods: [{gpus: 8}]", "a Pod asks for 8 GPUs, and no node has more"),
        ("nodes: [{gpus: 4}]\nrandom: {pods: 1}", "a Pod asks for 8 GPUs, and no node has more"),
        ("nodes: [{gpus: 4}]\npods: [{gpus: 1, for: 0}]", "pods.0.for: "),
        ("nodes: [{gpus: 4}]\npods: [{gpus: 1, name: 'a b'}]", "pods.0.name: "),
        ("nodes: [{gpus: 4}]\nrandom: {pods: 1, sizes: {1: -1}}", "random.sizes.1: "),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ScenarioError) as error:
        parse(text)
    assert str(error.value).startswith(message)
    assert str(error.value).isprintable()


def refusal(text: str) -> str:
    try:
        parse(text)
    except ScenarioError as error:
        return str(error)
    return ""


@given(st.text(max_size=200))
def test_whatever_the_text_a_refusal_is_one_line(text: str) -> None:
    assert refusal(text).isprintable()


@given(st.integers(0, 10**6).map(random_scenarios.scenario))
def test_parse_undoes_render(drawn: Scenario) -> None:
    assert parse(render(drawn)) == drawn


def test_parse_undoes_render_of_what_is_listed() -> None:
    listed = scenario(
        "gpus: 4, islands: [[0, 3], [1, 2]], lost: [3-0]",
        "about: 'é: #'\nshares: 2\npods: [{name: a, gpus: 1, at: 3, for: 4, count: 2}]\n",
    )
    assert parse(render(listed)) == listed


def test_shares_count_as_devices() -> None:
    assert scenario("gpus: 4", "shares: 2\npods: [{gpus: 8}]\n").pods[0].gpus == 8


def test_chance_is_the_same_every_time_and_differs_by_seed() -> None:
    seeds = range(50)
    again = [random_scenarios.scenario(seed) for seed in seeds]
    assert again == [random_scenarios.scenario(seed) for seed in seeds]
    assert len({render(one) for one in again}) == len(seeds)
    assert [random_scenarios.pods_of(one) for one in again] == [
        random_scenarios.pods_of(one) for one in again
    ]
