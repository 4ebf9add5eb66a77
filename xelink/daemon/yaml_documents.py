"""YAML written by people: repeated keys, merges and odd numbers are errors."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

# YAML 1.1 takes 010 for 8, 1:30 for 90, 0x10 for 16 and 1_0 for 10
# decimal = [ sign ] ( "0" / nonzero *DIGIT ) [ "." *DIGIT ] [ exponent ] / [ sign ] "." 1*DIGIT
_DECIMAL = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NO_FINITE = re.compile(r"[+-]?\.(?:inf|nan)", re.IGNORECASE)  # whoever takes numbers refuses them
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}


class RepeatedKeyError(ValueError):
    """A mapping has a key twice: it is unknown which one was meant."""


class MergedKeyError(ValueError):
    """A mapping merges keys from another one (`<<`), although each must be written out."""


class OddNumberError(ValueError):
    """YAML reads a number as another number than people do."""


def is_decimal(text: str) -> bool:
    """Return whether YAML reads a number as people do."""
    return bool(_DECIMAL.fullmatch(text) or _NO_FINITE.fullmatch(text))


def read_yaml(
    text: str, same: Callable[[str], str] = str, *, decimal: bool = True, merges: bool = True
) -> Any:  # noqa: ANN401 - as YAML has it
    """Return what a document says. Raises `yaml.YAMLError`, and as `ValueError` the errors above.

    Two keys are equal if `same` returns the same text for them. `decimal`: numbers must be decimal.
    `merges`: `<<` is allowed.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        for key, first, second in _repeated(node, same):
            raise RepeatedKeyError(f"{key!r} is given twice, in lines {first} and {second}")
        for line in () if merges else _merges(node):
            raise MergedKeyError(f"'<<' in line {line}: write each key out")
        for number, line in _odd(node) if decimal else ():
            raise OddNumberError(
                f"{number} in line {line} is another number to YAML; write a plain decimal number"
            )
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _repeated(root: yaml.Node, same: Callable[[str], str]) -> Iterator[tuple[str, int, int]]:
    """Return each repeated key in its second spelling, and the lines of both."""
    for node in _nodes(root):
        if isinstance(node, yaml.MappingNode):
            yield from _repeated_here(node, same)


def _merges(root: yaml.Node) -> Iterator[int]:
    """Return the line of each merge key."""
    for node in _nodes(root):
        if isinstance(node, yaml.MappingNode):
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    yield key.start_mark.line + 1


def _odd(root: yaml.Node) -> Iterator[tuple[str, int]]:
    """Return each number that is not decimal, and its line."""
    for node in _nodes(root):
        number = isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS
        if number and not is_decimal(node.value):
            yield node.value, node.start_mark.line + 1


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Return every node once; with aliases a node can be in many places."""
    left, known = [root], {id(root)}
    while left:
        node = left.pop()
        yield node
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        new = [part for part in parts if id(part) not in known]
        known.update(map(id, new))
        left.extend(reversed(new))


def _repeated_here(
    node: yaml.MappingNode, same: Callable[[str], str]
) -> Iterator[tuple[str, int, int]]:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            name, line = (key.tag, same(key.value)), key.start_mark.line + 1
            if name in lines:
                yield key.value, lines[name], line
            lines[name] = line
