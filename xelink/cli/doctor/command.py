"""`xelink doctor`: what is wrong on a node, and what to do about it."""

import argparse
import errno
import os
import signal
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from textwrap import fill
from urllib.parse import urlsplit

from rich.text import Text
from shtab import DIRECTORY, FILE

from xelink.cli import live
from xelink.cli.doctor import checks_file, checks_node, checks_xpum
from xelink.cli.doctor.finding import CheckStatus, Finding
from xelink.cli.doctor.inspection import Locations, NodeInspection
from xelink.cli.doctor.permissions import User, caller
from xelink.cli.exit_codes import FAILED, OK, FailedError, WrongCallError
from xelink.cli.helptext import HelpFormatter
from xelink.cli.readings import line
from xelink.cli.show.command import json_text
from xelink.cli.sources import node_labels, number
from xelink.cli.tables import BAD, FAINT, GOOD, HEAD, WORST, Cell, aligned, show
from xelink.cli.timed_calls import TimedCalls
from xelink.daemon.stdio import write_stdout
from xelink.daemon.stopping import Stop, Stopped
from xelink.kubelet.sockets import DIRECTORY as PLUGIN_DIRECTORY
from xelink.nfd.reader import DEFAULT_PATH
from xelink.topology.nfd_format import namespace
from xelink.topology.publication import DEFAULT_NAMESPACE
from xelink.xpu_manager.scrape import ScrapeTarget

SIDECAR = "http://127.0.0.1:29998"
PLUGIN = "http://127.0.0.1:29997"
WARNED = 3

CHECKS: Mapping[str, Callable[[NodeInspection], Finding]] = {
    "xpum": checks_xpum.answers,
    "tls": checks_xpum.tls,
    "hostNetwork": checks_xpum.host_network,
    "features.d": checks_file.writable,
    "readable": checks_file.readable,
    "fresh": checks_file.fresh,
    "consistent": checks_file.consistent,
    "nfd-rules": checks_file.accepted,
    "writers": checks_file.one_writer,
    "sidecar": checks_node.sidecar,
    "plugin": checks_node.plugin,
    "kubelet": checks_node.kubelet,
    "sockets": checks_node.sockets,
    "id-map": checks_node.id_map,
    "links": checks_node.degraded,
}

_HIGHEST_PORT = 65535
_HIGHEST_UID = 2**32 - 2
_CODES = {CheckStatus.SKIP: WARNED, CheckStatus.WARN: WARNED, CheckStatus.FAIL: FAILED}
_STYLES = {
    CheckStatus.SKIP: FAINT,
    CheckStatus.OK: GOOD,
    CheckStatus.WARN: BAD,
    CheckStatus.FAIL: WORST,
}

# Option for a path -> the check that fails if it is missing or not readable; none for the prefix
_CHECKED_BY = {
    "prefix": None,
    "features_dir": "features.d",
    "feature_file": "fresh",
    "plugin_dir": "kubelet",
    "cert": "tls",
    "client_cert": "tls",
    "client_key": "tls",
    "password_file": "xpum",
}

_NAMES = fill(" ".join(CHECKS), 78, initial_indent="  ", subsequent_indent="  ")

_EXAMPLES = f"""\
checks:
{_NAMES}

examples:
  this node, as root; with HTTPS between the sidecar and XPU Manager:
    xelink doctor
    xelink doctor --cert /etc/xpum/ca.crt
  in the sidecar's container, which sees only what it needs:
    kubectl -n monitoring exec POD -c xelink-sidecar -- xelink doctor
  in a container that sees the host's / at /host:
    xelink doctor --prefix /host
  whether NFD took the labels, which only the API server knows:
    kubectl get node NAME -o json | xelink doctor --node-json -
  two checks, for a program:
    xelink doctor --only fresh,consistent --output json

It changes nothing: it writes no file and registers nothing with kubelet. What it cannot see from
where it runs is skipped, with the reason.

exit codes: 0 nothing is wrong, 1 something fails, 2 wrong call, 3 nothing fails, but there are
warnings, or all selected checks are skipped.
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor",
        help=summary,
        description="Check a node: XPU Manager, the feature file and NFD, the daemons, kubelet,"
        " the links. One line for each check: ok, warn, fail or skip, and why.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--only",
        type=_names,
        metavar="CHECK,...",
        help="only these checks (below), and those that explain why one of them is skipped",
    )
    parser.add_argument(
        "--output", choices=("text", "json"), default="text", help="form (default text)"
    )
    group = parser.add_argument_group("where things are; without an option, the usual places")
    _paths(
        group,
        (
            ("--prefix", DIRECTORY, "directory with the host's / (default /)"),
            ("--features-dir", DIRECTORY, f"default {DEFAULT_PATH.parent}, below the prefix"),
            ("--feature-file", FILE, f"default {DEFAULT_PATH.name} in that directory"),
            ("--plugin-dir", DIRECTORY, f"default {PLUGIN_DIRECTORY}, below the prefix"),
        ),
    )
    for option, url in (("--sidecar", SIDECAR), ("--plugin", PLUGIN)):
        group.add_argument(
            option, type=_url, metavar="URL", help=f"address of its -listen (default {url})"
        )
    group.add_argument(
        "--namespace",
        default=DEFAULT_NAMESPACE,
        metavar="NAME",
        help=f"namespace of the labels (default {DEFAULT_NAMESPACE})",
    )
    group.add_argument(
        "--uid",
        type=partial(number, least=0, most=_HIGHEST_UID),
        metavar="N",
        help="user that the sidecar runs as, without capabilities (default: the caller)",
    )
    group = parser.add_argument_group("the Node object, to see whether NFD took the labels")
    given = group.add_argument(
        "--node-json",
        metavar="FILE",
        help="the output of kubectl get node -o json; - for standard input",
    )
    given.complete = FILE  # type: ignore[attr-defined]  # where shtab looks for it
    group.add_argument("--node", metavar="NAME", help="which node in it this is, if it has several")
    group = parser.add_argument_group("XPU Manager, as for xelink-sidecar")
    group.add_argument(
        "--xpum-port",
        type=partial(number, least=1, most=_HIGHEST_PORT),
        default=live.PORT,
        metavar="N",
        help=f"its port on {live.HOST} (default {live.PORT})",
    )
    _paths(
        group,
        (
            ("--cert", FILE, "PEM file to verify it against; without it, HTTP is used"),
            ("--client-cert", FILE, "PEM file with the certificate to show (mTLS)"),
            ("--client-key", FILE, "PEM file with its key, if --client-cert does not contain it"),
            ("--password-file", FILE, "file with the password of --username"),
        ),
    )
    group.add_argument("--username", metavar="NAME", help="user for HTTP Basic")
    group.add_argument(
        "--timeout",
        type=partial(number, least=1, most=3600),
        metavar="S",
        help=f"seconds for its answer (default {live.TIMEOUT:g})",
    )


def run(options: argparse.Namespace) -> int:
    """Run the checks and print them; return the code of the worst one. Raises `FailedError`."""
    calls = TimedCalls()
    locations, target = _locations(options, calls), _target(options)
    node_object = _node_object(options)
    asked = options.only or tuple(CHECKS)
    names = [*asked]
    _require(options, calls, (path for path, check in _CHECKED_BY.items() if check not in names))
    with _stopping() as stop:

        def sleep(seconds: float) -> None:
            stop.wait(seconds)

        now, user = datetime.now(UTC), _user(options)
        node = NodeInspection(locations, target, user, now, stop.bounded, sleep, calls, node_object)
        found: dict[str, Finding] = {}
        for name in names:
            found[name] = _one_line(CHECKS[name](node))
            # The list grows while it is read: a skipped check must not hide its reason.
            names.extend(other for other in found[name].see if other not in names)
            if stop.is_set():
                raise KeyboardInterrupt
    worst = _worst(found, asked)
    if options.output == "json":
        write_stdout(json_text(_facts(found, worst)))
    else:
        show(_lines(found))
    return _CODES.get(worst, OK)


@contextmanager
def _stopping() -> Iterator[Stop]:
    """Limit and stop whatever waits; Ctrl-C ends the command."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop = Stop()
    stop.install()
    try:
        yield stop
    except Stopped:
        raise KeyboardInterrupt from None
    finally:
        stop.close()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _one_line(found: Finding) -> Finding:
    """Return a finding that fits on one line, because it may quote foreign text."""
    return replace(found, reason=line(found.reason), todo=line(found.todo))


def _lines(found: Mapping[str, Finding]) -> Sequence[Text]:
    return aligned(
        (
            Cell(one.status.value, _STYLES[one.status]),
            Cell(name, HEAD),
            Cell(str(one)),
        )
        for name, one in found.items()
    )


def _facts(found: Mapping[str, Finding], worst: CheckStatus) -> dict[str, object]:
    return {
        "status": worst.value,
        "checks": [
            {
                "check": name,
                "status": one.status.value,
                "reason": one.reason,
                "todo": one.todo or None,
            }
            for name, one in found.items()
        ],
    }


def _worst(found: Mapping[str, Finding], asked: Iterable[str]) -> CheckStatus:
    """Return the worst status. Skipped checks count as ok, unless all selected ones are skipped."""
    statuses = {one.status for one in found.values()}
    for status in (CheckStatus.FAIL, CheckStatus.WARN):
        if status in statuses:
            return status
    skipped = all(found[name].status is CheckStatus.SKIP for name in asked)
    return CheckStatus.SKIP if skipped else CheckStatus.OK


# Options


def _paths(
    group: argparse._ArgumentGroup,
    options: Sequence[tuple[str, Mapping[str, str | Mapping[str, str]], str]],
) -> None:
    for option, completed, text in options:
        what = "DIR" if completed is DIRECTORY else "FILE"
        added = group.add_argument(option, type=Path, metavar=what, help=text)
        added.complete = completed  # type: ignore[attr-defined]  # where shtab looks for it


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
    if not names or not CHECKS.keys() >= set(names):
        unknown = next((name for name in names if name not in CHECKS), text)
        raise argparse.ArgumentTypeError(
            f"there is no check {unknown!r}; there are: {' '.join(CHECKS)}"
        )
    return names


def _url(text: str) -> str:
    try:
        url = urlsplit(text)
        wrong = url.scheme != "http" or not url.hostname or url.port is None
    except ValueError:
        wrong = True
        url = urlsplit("")
    if wrong or url.path not in {"", "/"} or url.query or url.fragment or url.username:
        raise argparse.ArgumentTypeError(f"{text!r} should be http://HOST:PORT")
    return text.rstrip("/")


def _require(options: argparse.Namespace, calls: TimedCalls, names: Iterable[str]) -> None:
    """Reject a given path that is missing or not readable. Raises `FailedError`."""
    for name in names:
        path: Path | None = getattr(options, name)
        try:
            if path is not None:
                calls(name, path, partial(_open, path))
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise FailedError(f"{_option(name)} {path}: {error.strerror}") from error
        except OSError:  # it may exist: its check reports the error
            continue


def _open(path: Path) -> None:
    """Raise `PermissionError` if the caller cannot read a file or enter a directory; `OSError`."""
    wanted = os.X_OK if stat.S_ISDIR(path.stat().st_mode) else os.R_OK
    if not os.access(path, wanted, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _locations(options: argparse.Namespace, calls: TimedCalls) -> Locations:
    try:
        namespace_ = namespace(options.namespace)
    except ValueError as error:
        raise WrongCallError(f"--namespace: {error}") from error
    prefix = Path(options.prefix or "/").absolute()
    given = Locations(
        prefix,
        (options.features_dir or _below(prefix, DEFAULT_PATH.parent)).absolute(),
        Path(),
        (options.plugin_dir or _below(prefix, PLUGIN_DIRECTORY)).absolute(),
        options.sidecar or SIDECAR,
        options.plugin or PLUGIN,
        namespace_,
        frozenset(
            _option(name)
            for name in ("features_dir", "feature_file", "plugin_dir", "sidecar", "plugin")
            if getattr(options, name) is not None
        ),
    )

    def resolved(name: str, path: Path) -> Path:
        try:
            return calls(name, path, lambda: given.resolved(path))
        except OSError:  # the check of this path reports the error
            return path

    directory = resolved("features_dir", given.features_dir)
    file = (options.feature_file or directory / DEFAULT_PATH.name).absolute()
    return replace(
        given,
        features_dir=directory,
        # NFD ignores symbolic links, so the file itself is not resolved.
        feature_file=resolved("feature_file", file.parent) / file.name
        if options.feature_file
        else file,
        plugin_dir=resolved("plugin_dir", given.plugin_dir),
    )


def _below(prefix: Path, path: Path) -> Path:
    return prefix / path.relative_to("/")


def _node_object(options: argparse.Namespace) -> tuple[str, Mapping[str, str]] | None:
    """Return name and labels of the Node object, None if not given. Raises `FailedError`."""
    if options.node_json is None:
        if options.node is not None:
            raise WrongCallError("--node needs --node-json")
        return None
    found = node_labels(options.node_json, options.node)
    if len(found) > 1:
        raise WrongCallError("--node-json has several nodes: choose this one with --node")
    return found[0]


def _target(options: argparse.Namespace) -> ScrapeTarget:
    scheme = "https" if options.cert else "http"
    url = f"{scheme}://{live.HOST}:{options.xpum_port}"
    return live.target(argparse.Namespace(**{**vars(options), "url": url}))


def _user(options: argparse.Namespace) -> User:
    return caller() if options.uid is None else User(options.uid, frozenset({options.uid}))
