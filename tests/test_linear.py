"""Regular expressions meet foreign bytes: none takes time that grows with their square.

Every expression of the product is found in its source, and given text that grows where expressions
of that kind go wrong: a beginning that it may like, then one thing for 300,000 characters, then
something that it does not like. What is linear does that in milliseconds, what is not in minutes.
The bound is in seconds of this process's own time, so it does not matter what else a machine does.
"""

import ast
import importlib
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import pytest

from xelink.topology import labels, nfd_format
from xelink.xpu_manager.line_filter import LineFilter
from xelink.xpu_manager.samples import MalformedSampleError, parse

ROOT = Path(__file__).parents[1]
PRODUCT = ("xelink", "sidecar", "device_plugin")
MANY = 300_000
BOUND = 10.0

WAYS = {"fullmatch", "match", "search", "sub", "split", "findall", "finditer"}

BEGINNINGS = (
    "",
    "xpum_topology_link{",
    "xpum_a",
    'a="',
    "# HELP ",
    "gpu.intel.com/xe-links",
    "0.0-1.0",
    "0000:",
    "card1-",
    "2026-01-01T00:00:00.",
    'xelink_sidecar_build_info{version="',
    "1.",
    '{"kind"',
)
REPEATED = (
    *(" ", "\t", "\n", "\r", "}", "{", '"', "\\", ",", ".", "-", "_", ":", "/", "=", "<", "#"),
    *("a", "0", "Z", "a=", 'a="",', "a.", "a-", "\n ", 'version="', '"kind"', "}\n", "{\n"),
    *("xelink_sidecar_build_info{\n", "xpum_topology_link ", "# HELP ", " a", "-1"),
)
# Those that are tried after each of the beginnings, too
OFTEN = (" ", "}", '"', "a", "0", "\n", "\\", "{\n", ",", "-", ".")
END = "\n!"


class Slow(BaseException):
    """What was given is not done with in time."""


@contextmanager
def bounded(seconds: float = BOUND) -> Iterator[None]:
    def late(_number: int, _frame: FrameType | None) -> None:
        raise Slow

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)  # `re` looks for signals while it works
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


class Expression(NamedTuple):
    where: str
    pattern: re.Pattern[str] | re.Pattern[bytes]
    ways: frozenset[str]

    def meet(self, text: str) -> None:
        given = text.encode() if isinstance(self.pattern.pattern, bytes) else text
        for way in self.ways:
            rest = (given[:0], given) if way == "sub" else (given,)
            found = getattr(self.pattern, way)(*rest)
            if way == "finditer":
                list(found)


def expressions() -> list[Expression]:
    """Find every expression that a module names, and the ways in which it asks for it."""
    found = []
    for path in sorted(path for part in PRODUCT for path in (ROOT / part).rglob("*.py")):
        if path.name == "__main__.py" or {"api", "simulators"} & {*path.parts}:
            continue  # what is generated, and what reads nothing but its own
        text = path.read_text()
        if not re.search(r"\bre\b", text):
            continue  # without a look at its tree, which takes time
        tree = ast.parse(text)
        asked: dict[str, set[str]] = {}
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(
                        value=ast.Name(id=name) | ast.Subscript(value=ast.Name(id=name)), attr=way
                    )
                ) if way in WAYS:
                    asked.setdefault(name, set()).add(way)
        if not any(isinstance(node, ast.Name) and node.id == "re" for node in ast.walk(tree)):
            continue
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for name, value in vars(module).items():
            for pattern in _patterns(value):
                ways = frozenset(asked.get(name, {"search"}))  # one of a table is asked by search
                found.append(Expression(f"{module.__name__}.{name}", pattern, ways))
    return found


def _patterns(value: object) -> Iterator[re.Pattern[str] | re.Pattern[bytes]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _patterns(part)
    elif isinstance(value, tuple):
        for part in value:
            if isinstance(part, re.Pattern):
                yield part


EXPRESSIONS = expressions()


def test_the_expressions_are_found() -> None:
    named = {expression.where for expression in EXPRESSIONS}
    assert len(EXPRESSIONS) > 40
    assert {
        "xelink.xpu_manager.samples._LABEL",
        "xelink.cli.doctor.inspection._BUILD",
        "xelink.cli.sources._KINDS",
    } <= named


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda expression: expression.where)
def test_an_expression_takes_time_by_the_length_of_what_it_meets(expression: Expression) -> None:
    for repeated in REPEATED:
        long = repeated * (MANY // len(repeated))
        for beginning in BEGINNINGS if repeated in OFTEN else ("",):
            with bounded():
                expression.meet(f"{beginning}{long}{END}")


def test_the_test_would_notice_one_that_is_not_linear() -> None:
    slow = Expression("", re.compile(r"[a ]*b|.*?c"), frozenset({"search"}))
    with pytest.raises(Slow), bounded(0.1):
        slow.meet("a" * MANY)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("xpum_topology_link{" + "}" * MANY + " x y z", id="braces"),
        pytest.param("xpum_topology_link{" + "} 1 " * (MANY // 4), id="ends"),
        pytest.param("xpum_topology_link " * (MANY // 19), id="names"),
        pytest.param('x{a="xpum_topology_link' * (MANY // 23), id="mentions"),
        pytest.param("xpum_topology_link{" + 'a="",' * (MANY // 5) + "!", id="labels"),
        pytest.param('xpum_topology_link{a="' + '\\"' * (MANY // 2), id="escapes"),
        pytest.param(" " * MANY + "xpum_topology_link", id="blanks"),
        pytest.param('xpum_topology_link{a = "' + " " * MANY, id="blanks in a label"),
    ],
)
def test_one_row_is_read_in_time_by_its_length(line: str) -> None:
    content = line.encode()
    with bounded():
        for size in (len(content), 1000, 7):
            lines = LineFilter()
            for start in range(0, len(content), size):
                lines.feed(content[start : start + size])
            lines.finish()
        with pytest.raises(MalformedSampleError):
            parse(content, b"xpum_topology_link")


def test_a_feature_file_and_its_labels_are_read_in_time_by_their_length() -> None:
    long = "0.0-1.0_" * (MANY // 8)
    with bounded():
        assert labels.join(labels.split(long)) == long
        assert nfd_format.namespace_problem("a." * MANY)
        assert nfd_format.name_problem("a-" * MANY)
