"""Sources of a topology: the options that `show` and `explain` share, and their readers.

Every source is read with the daemons' own code, so that the tool shows what they see.
"""

import argparse
import codecs
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from shtab import DIRECTORY, FILE

from xelink.cli import driver, live, readings
from xelink.cli.exit_codes import FailedError, WrongCallError
from xelink.cli.host_paths import below
from xelink.cli.timed_calls import TimedCalls
from xelink.daemon.files import read_up_to
from xelink.daemon.hanging_work import HungError
from xelink.iaf.dump import SIZE_LIMIT, DumpError
from xelink.iaf.dump import read as parse_dump
from xelink.nfd.reader import DEFAULT_PATH
from xelink.topology import nfd_format
from xelink.topology.observation import Observation
from xelink.topology.publication import DEFAULT_NAMESPACE
from xelink.topology.rules import Rules
from xelink.view.node_view import NodeView
from xelink.xpu_manager.exposition import Exposition, ExpositionReader
from xelink.xpu_manager.line_filter import TooManyRowsError

T = TypeVar("T")

STDIN = "-"

_DAY = 86400
_CHUNK = 1 << 20
_MOST_METRICS = 64 << 20  # bytes, as the sidecar's -max-body
_MOST_JSON = 256 << 20  # some thousand nodes, with all that kubectl prints


class _Source(NamedTuple):
    """One kind of source: its reader, and the options that it allows."""

    read: Callable[[argparse.Namespace], tuple[NodeView, ...]]
    also: frozenset[str]


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of every source."""
    group = parser.add_argument_group(
        "where the topology comes from, one of",
        "without any: this node, from the file that its sidecar writes, or if there is none, from"
        " its XPU Manager",
    )
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--url",
        metavar="URL",
        help=f"a live XPU Manager: http://{live.HOST}:{live.PORT}, or https://",
    )
    source.add_argument(
        "--driver",
        action="store_true",
        default=None,
        help="the kernel driver of Xe Links of this node, asked by generic netlink",
    )
    for option, text in (
        ("--frames", "a dump of xelink fabric dump; - for standard input"),
        ("--metrics", "a saved answer of XPU Manager's /metrics; - for standard input"),
        ("--features", "a feature file of xelink-sidecar; - for standard input"),
        ("--node-json", "the output of kubectl get node -o json; - for standard input"),
    ):
        _takes_file(source.add_argument(option, metavar="FILE", help=text))
    group = parser.add_argument_group("without a source, and with --driver")
    prefix = group.add_argument(
        "--prefix", type=Path, metavar="DIR", help="directory with the node's / (default /)"
    )
    prefix.complete = DIRECTORY  # type: ignore[attr-defined]  # where shtab looks for it
    group = parser.add_argument_group("with --node-json")
    group.add_argument("--node", metavar="NAME", help="use only the node with this name")
    group = parser.add_argument_group("with --features and --node-json")
    group.add_argument(
        "--label-namespace",
        metavar="NAME",
        help=f"namespace of the labels (default {DEFAULT_NAMESPACE})",
    )
    driver.add_options(parser.add_argument_group("with --driver"))
    group = parser.add_argument_group(
        "with --url, --metrics, --driver and --frames, as for xelink-sidecar"
    )
    group.add_argument(
        "--lane-count",
        type=partial(number, least=0, most=10**9 - 1),
        metavar="N",
        help="lanes that a link must have in at least one direction to be published"
        f" (default {Rules.lane_count})",
    )
    group.add_argument(
        "--allow-subdeviceless-links",
        action="store_true",
        default=None,
        help="links of one-tile GPUs (Max 1100) are published, too",
    )
    group = parser.add_argument_group("with --url, and --driver for the last one")
    for option, text in (
        ("--cert", "PEM file to verify https against: a CA, or XPU Manager's own certificate"),
        ("--client-cert", "PEM file with the certificate to show (mTLS)"),
        ("--client-key", "PEM file with its key, if --client-cert does not contain it"),
        ("--password-file", "file with the password of --username"),
    ):
        _takes_file(group.add_argument(option, type=Path, metavar="FILE", help=text))
    group.add_argument("--username", metavar="NAME", help="user for HTTP Basic")
    group.add_argument(
        "--timeout",
        type=seconds,
        metavar="S",
        help=f"seconds for the whole scrape or look (default {live.TIMEOUT:g}, {driver.TIMEOUT:g})",
    )


def load(options: argparse.Namespace) -> tuple[NodeView, ...]:
    """Read the selected source: one node, or as many as kubectl printed.

    Raises `WrongCallError` for options that exclude each other and `FailedError` for what cannot be
    read. A source without link data becomes a node with the reason.
    """
    chosen = next((name for name in _SOURCES if getattr(options, name) is not None), None)
    what = _option(chosen) if chosen else "this node: give a source"
    source = _SOURCES[chosen] if chosen else _HERE
    for other in (*_SOURCES.values(), _HERE):
        for name in sorted(other.also - source.also):
            if getattr(options, name) is not None:
                raise WrongCallError(f"{_option(name)} has no meaning with {what}")
    return source.read(options)


def is_this_node(options: argparse.Namespace) -> bool:
    """Return whether no source was named: what is read is this node."""
    return all(getattr(options, name) is None for name in _SOURCES)


def read(kind: str, path: str) -> NodeView:
    """Return the node of a file of one kind, `metrics` or `features`. Raises `FailedError`."""
    options = argparse.Namespace(lane_count=None, allow_subdeviceless_links=None)
    setattr(options, kind, path)
    options.label_namespace = None
    (node,) = _SOURCES[kind].read(options)
    return node


def _takes_file(option: argparse.Action) -> None:
    option.complete = FILE  # type: ignore[attr-defined]  # where shtab looks for it


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def number(text: str, least: int, most: int) -> int:
    """Parse a number within limits, as the type of an option."""
    if not re.fullmatch("[0-9]{1,12}", text, re.ASCII) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
    return int(text)


def seconds(text: str) -> float:
    """Parse seconds above 0, as the type of an option."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value <= _DAY:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


# Readers: each returns its nodes


def _from_here(options: argparse.Namespace) -> tuple[NodeView, ...]:
    """Read the feature file of this node, or XPU Manager if there is no such file."""
    prefix, call = options.prefix or Path("/"), TimedCalls()

    def find() -> tuple[Path, bool]:
        path = below(prefix.absolute(), DEFAULT_PATH)
        return path, os.path.lexists(path)

    try:
        path, exists = call("file", (prefix / DEFAULT_PATH.relative_to("/")).absolute(), find)
        if exists:
            options.features = str(path)
            return call("file", path, partial(_from_file, options))
    except HungError as error:
        raise FailedError(str(error.strerror)) from error
    except OSError as error:
        raise FailedError(f"--prefix {prefix}: {error.strerror}: {DEFAULT_PATH}") from error
    options.url = f"http://{live.HOST}:{live.PORT}"
    (node,) = _from_url(options)
    if node.topology is None:
        node = replace(node, reason=f"there is no {path}, and {node.reason}")
    return (node,)


def _from_url(options: argparse.Namespace) -> tuple[NodeView, ...]:
    target = live.target(options)
    try:
        reading = live.scrape(target)
    except live.NoAnswerError as error:
        return (NodeView(target.url, reason=readings.line(str(error))),)
    return (readings.of_rows(reading, _rules(options), target.url, live=True),)


def _from_driver(options: argparse.Namespace) -> tuple[NodeView, ...]:
    prefix = options.prefix or Path("/")

    def look(rules: Rules) -> Observation:
        return driver.live(prefix, options.driver_socket, options.timeout or driver.TIMEOUT, rules)

    return (readings.of_observations(look, _rules(options), "the Xe Link driver"),)


def _from_frames(options: argparse.Namespace) -> tuple[NodeView, ...]:
    content = _with_file("frames", options.frames, lambda file: file.read(SIZE_LIMIT + 1))
    _require_kind("frames", options.frames, content)
    source = _named(options.frames)
    try:
        dump = parse_dump(content.decode("ascii", "replace"))
    except DumpError as error:
        raise FailedError(f"--frames {source}: no dump of xelink fabric: {error}") from error
    look = partial(driver.replayed, dump)
    return (readings.of_observations(look, _rules(options), source),)


def _from_metrics(options: argparse.Namespace) -> tuple[NodeView, ...]:
    def read(file: BinaryIO) -> Exposition:
        reader = ExpositionReader()
        lines = reader.line_filter()
        chunk = file.read(_CHUNK)
        _require_kind("metrics", options.metrics, chunk)
        size = 0
        while chunk:
            size += len(chunk)
            if size > _MOST_METRICS:
                raise _too_long("metrics", options.metrics, _MOST_METRICS)
            lines.feed(chunk)
            chunk = file.read(_CHUNK)
        return reader.read(lines)

    try:
        reading = _with_file("metrics", options.metrics, read)
    except TooManyRowsError as error:
        raise FailedError(f"--metrics {options.metrics}: {error}") from error
    return (readings.of_rows(reading, _rules(options), _named(options.metrics)),)


def _from_features(options: argparse.Namespace) -> tuple[NodeView, ...]:
    return _from_file(options, check=_require_names)


def _from_file(
    options: argparse.Namespace, check: Callable[[str, bytes], None] = lambda *_: None
) -> tuple[NodeView, ...]:
    def read(file: BinaryIO) -> bytes:
        return file.read(nfd_format.FILE_LIMIT + 1)

    content = _with_file("features", options.features, read)
    _require_kind("features", options.features, content)
    source = _named(options.features)
    check(source, content)
    return (readings.of_file(content, _namespace(options), source, datetime.now(UTC)),)


def _from_node_json(options: argparse.Namespace) -> tuple[NodeView, ...]:
    source, namespace, now = _named(options.node_json), _namespace(options), datetime.now(UTC)
    return tuple(
        replace(readings.of_labels(labels, namespace, source, now), name=name)
        for name, labels in node_labels(options.node_json, options.node)
    )


def node_labels(path: str, node: str | None) -> list[tuple[str, Mapping[str, str]]]:
    """Return names and labels of what `kubectl get node -o json` printed; of one node, or of all.

    Raises `FailedError`.
    """
    content = _with_file("node_json", path, lambda file: read_up_to(file.read, _MOST_JSON + 1))
    if len(content) > _MOST_JSON:
        raise _too_long("node_json", path, _MOST_JSON)
    _require_kind("node_json", path, content)
    source = _named(path)
    try:
        found = readings.labels_by_node(json.loads(content))
    except (ValueError, RecursionError) as error:
        what = readings.line(str(error))
        raise FailedError(
            f"--node-json {source}: not the output of kubectl get node -o json: {what}"
        ) from error
    if node is not None:
        found = [(name, labels) for name, labels in found if name == node]
    if not found:
        which = f"node {node!r}" if node is not None else "node"
        raise FailedError(f"--node-json {source}: no {which} in it")
    return found


def _too_long(name: str, path: str, most: int) -> FailedError:
    return FailedError(f"{_option(name)} {_named(path)}: more than {most} bytes")


def _rules(options: argparse.Namespace) -> Rules:
    lane_count = Rules.lane_count if options.lane_count is None else options.lane_count
    return Rules(lane_count, bool(options.allow_subdeviceless_links))


def _namespace(options: argparse.Namespace) -> str:
    try:
        return nfd_format.namespace(options.label_namespace or DEFAULT_NAMESPACE)
    except ValueError as error:
        raise WrongCallError(f"--label-namespace: {error}") from error


def _with_file(name: str, path: str, read: Callable[[BinaryIO], T]) -> T:
    try:
        if path == STDIN:
            return read(sys.stdin.buffer)
        with Path(path).open("rb") as file:
            return read(file)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            raise FailedError(f"{_option(name)} {path!r}: {error.strerror or error}") from error
        if "\0" in path or isinstance(error, UnicodeEncodeError):
            raise FailedError(f"{_option(name)} {path!r}: {error}") from error
        raise


def _require_kind(name: str, path: str, content: bytes) -> None:
    """Reject a file that is for another option. Raises `FailedError`."""
    if name != "node_json" and content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        what = "UTF-16 text, as PowerShell's > writes it: save it as UTF-8"
        raise FailedError(f"{_option(name)} {_named(path)}: this is {what}")
    kinds = [kind for kind, (pattern, _) in _KINDS.items() if pattern.search(content)]
    if kinds and name not in kinds:
        what = _KINDS[kinds[0]][1]
        raise FailedError(
            f"{_option(name)} {_named(path)}: this looks like {what}, which is for"
            f" {_option(kinds[0])}"
        )


# How the kinds of files are recognized: XPU Manager's exposition, lines for NFD, a JSON object.
_KINDS: Mapping[str, tuple[re.Pattern[bytes], str]] = {
    "frames": (
        re.compile(rb"\A# xelink fabric dump "),
        "a dump of xelink fabric",
    ),
    "metrics": (
        re.compile(rb"^(?:# (?:HELP|TYPE) |xpum_[a-z_]+\{)", re.MULTILINE),
        "an answer of /metrics",
    ),
    "features": (
        re.compile(rb"^(?:# \+|[\w.-]+/xe-links[\w.-]*=)", re.MULTILINE),
        "a feature file",
    ),
    "node_json": (
        re.compile(rb'\A\s*+\{(?s:.)*?"kind"\s*+:\s*+"(?:Node|NodeList|List)"'),
        "output of kubectl get node -o json",
    ),
}


def _require_names(source: str, content: bytes) -> None:
    """Reject other text that contains a label. Raises `FailedError`."""
    names = nfd_format.parse(nfd_format.without_expiry(content), datetime.now(UTC)).features
    wrong = [name for name in names if any(map(str.isspace, name))]
    if 2 * len(wrong) > len(names):
        first = readings.line(wrong[0])
        raise FailedError(
            f"--features {source}: this is no feature file: most of its lines have no label name,"
            f" the first is {first!r}"
        )


def _named(path: str) -> str:
    return "standard input" if path == STDIN else path


_RULES = frozenset({"lane_count", "allow_subdeviceless_links"})
_ACCESS = frozenset({"cert", "client_cert", "client_key", "username", "password_file", "timeout"})

_HERE = _Source(_from_here, frozenset({"prefix"}))
_SOURCES: Mapping[str, _Source] = {
    "url": _Source(_from_url, _RULES | _ACCESS),
    "driver": _Source(_from_driver, _RULES | {"prefix", "timeout", "driver_socket"}),
    "frames": _Source(_from_frames, _RULES),
    "metrics": _Source(_from_metrics, _RULES),
    "features": _Source(_from_features, frozenset({"label_namespace"})),
    "node_json": _Source(_from_node_json, frozenset({"label_namespace", "node"})),
}
