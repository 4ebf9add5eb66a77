"""Alerts that differ in one thing from ours, as a slip of the hand makes them."""

import re
from collections.abc import Iterator
from typing import Any

# number = 1*DIGIT [ "." 1*DIGIT ], alone: no part of a name, a window or a quoted text
_NUMBER = re.compile(r"(?<![\w.\"])\d+(?:\.\d+)?(?![\w.\"])")
# window = "[" 1*DIGIT unit "]"
_WINDOW = re.compile(r"\[(\d+)([smhd])\]")
# matcher = label operator DQUOTE value DQUOTE
_MATCHER = re.compile(r'(\w+)(=~|!=|=)"([^"]*)"')
_CLAUSE = re.compile(r"\s(or|and)\s")
_OTHERS = {"max by": "min by", "min by": "max by", "sum by": "max by"}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def variants(rule: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give rules that are wrong, each with what was changed."""
    for expr in _expressions(rule["expr"]):
        yield f"{rule['expr']} -> {expr}", {**rule, "expr": expr}
    if "for" in rule:
        for changed in _times(rule["for"]):
            yield f"for {rule['for']} -> {changed}", {**rule, "for": changed}


def _expressions(expr: str) -> Iterator[str]:
    yield from _numbers(expr)
    yield from _matchers(expr)
    yield from _clauses(expr)
    for old, new in _OTHERS.items():
        for found in re.finditer(old, expr):
            yield _replaced(expr, found, new)


def _numbers(expr: str) -> Iterator[str]:
    for number in _NUMBER.finditer(expr):
        value = float(number[0])
        for other in (value * 0.8, value * 1.25) if value else (-1, 1):
            yield _replaced(expr, number, f"{other:g}")
    for window in _WINDOW.finditer(expr):
        for span in _times(window[0][1:-1]):
            yield _replaced(expr, window, f"[{span}]")


def _matchers(expr: str) -> Iterator[str]:
    for matcher in _MATCHER.finditer(expr):
        label, operator, value = matcher.groups()
        yield _replaced(expr, matcher, f'{label}=~".*"')
        members = value.split("|")
        for member in members if len(members) > 1 else ():
            rest = "|".join(other for other in members if other != member)
            yield _replaced(expr, matcher, f'{label}{operator}"{rest}"')


def _clauses(expr: str) -> Iterator[str]:
    for clause in _CLAUSE.finditer(expr):
        if expr.count("(", 0, clause.start()) == expr.count(")", 0, clause.start()):
            yield expr[: clause.start()]
            yield expr[clause.end() :]
        else:  # within the parentheses of an aggregation, one operand on each line
            start, end = expr.rfind("(", 0, clause.start()), expr.index(")", clause.end())
            yield expr[: clause.start()] + expr[end:]
            yield expr[: start + 1] + expr[clause.end() :]


def _replaced(text: str, found: re.Match[str], new: str) -> str:
    return text[: found.start()] + new + text[found.end() :]


def _times(text: str) -> Iterator[str]:
    """Give half of a time, and twice as much."""
    seconds = int(text[:-1]) * _SECONDS[text[-1]]
    yield f"{seconds // 2}s"
    yield f"{seconds * 2}s"
