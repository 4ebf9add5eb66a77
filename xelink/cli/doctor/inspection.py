"""What the doctor inspects on a node: each item once, when it is first used, for a limited time.

Read-only: nothing is written, nothing is registered. Checks evaluate the results and read nothing
themselves.
"""

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlsplit

from xelink.cli import live
from xelink.cli.doctor import socket_probe
from xelink.cli.doctor.permissions import User
from xelink.cli.doctor.socket_probe import SocketProbe
from xelink.cli.host_paths import below
from xelink.cli.timed_calls import SECONDS, TimedCalls
from xelink.daemon.hanging_work import HungError
from xelink.daemon.version import VERSION
from xelink.inventory import gpus
from xelink.inventory.devfs import Roots
from xelink.inventory.gpus import Inventory, ScanError
from xelink.kubelet.sockets import KUBELET
from xelink.nfd import reader as labels
from xelink.topology import nfd_format, publication
from xelink.topology.model import Topology
from xelink.topology.observation import Observation, Unknown
from xelink.topology.publication import Publication, UnusableError
from xelink.topology.rules import Rules
from xelink.xpu_manager.classification import answered, classify
from xelink.xpu_manager.errors import ErrorCode, ScrapeError
from xelink.xpu_manager.exposition import Exposition
from xelink.xpu_manager.scrape import Scraper, ScrapeTarget
from xelink.xpu_manager.wording import Words, words

T = TypeVar("T")
Bounded: TypeAlias = Callable[[float], AbstractContextManager[None]]

OPTIONS = live.OPTIONS._replace(port="--xpum-port")
# Every Xe Link counts here, whatever the sidecar publishes.
EVERY_LINK = Rules(lane_count=1, allow_subdeviceless_links=True)

MOST_FILES = 256
"""How many files of the directory are read."""

_SECONDS = 5.0  # for a probe
_SOCKETS_SECONDS = 10.0  # for all sockets of kubelet's directory
_MOST_SOCKETS = 64
_LATE = 2 / 3  # of a file's life: the sidecar renews it after one third
_PAGE_LIMIT = 1 << 20
# Within one line, which anybody may have written: each line is scanned once.
_BUILD = re.compile(
    r'^xelink_(?P<part>sidecar|device_plugin)_build_info\{[^}\n]*version="(?P<version>[^"\n]*)"',
    re.MULTILINE,
)
_OWN_SOCKET = re.compile(r"gpu\.intel\.com-.+\.sock", re.ASCII)


@dataclass(frozen=True)
class Locations:
    """Where things are on this node. `given` are the options that the caller gave."""

    prefix: Path
    features_dir: Path
    feature_file: Path
    plugin_dir: Path
    sidecar: str
    plugin: str
    namespace: str
    given: frozenset[str] = frozenset()

    def resolved(self, path: Path) -> Path:
        """Return where a path is: links below the prefix are the host's. Raises `OSError`."""
        if self.prefix == Path("/") or not path.is_relative_to(self.prefix):
            return path
        return below(self.prefix, "/" / path.relative_to(self.prefix))


class Answer(NamedTuple):
    """What XPU Manager answered."""

    outcome: Observation
    reading: Exposition | None
    error: Words | None
    """The error of the scrape, with the names of our options."""
    code: ErrorCode | None
    content_type: str
    certificate_expiry: float | None


class DaemonAnswer(NamedTuple):
    """What a daemon of ours answers. Without an answer `status` is None, and `text` is the reason.

    `refused` means that nothing listens. `part` and `version` are None for other programs.
    """

    status: int | None
    text: str
    part: str | None = None
    version: str | None = None
    refused: bool = False


@dataclass(frozen=True)
class Directory:
    """The directory of feature files. If it is missing, `stat` is None and `problem` is the reason.

    `parents` are the directories above it. `stage` is where the sidecar prepares its file.
    """

    stat: os.stat_result | None = None
    problem: str = ""
    parents: tuple[tuple[Path, os.stat_result], ...] = ()
    read_only: bool = False
    full: bool = False
    stage: os.stat_result | None = None


@dataclass(frozen=True)
class Files:
    """The other files that NFD reads, by name. `problem` is why the directory cannot be listed.

    `unread` are those that cannot be read. `more` is how many exist beyond the limit.
    """

    found: Mapping[str, bytes] = field(default_factory=dict)
    problem: str = ""
    unread: tuple[str, ...] = ()
    more: int = 0


@dataclass(frozen=True)
class Sockets:
    """kubelet's directory. `problem` is why it cannot be read.

    `plugins` are the sockets of `gpu.intel.com`, by name. `more` is how many exceed the limit.
    """

    problem: str = ""
    missing: bool = False
    kubelet: SocketProbe | None = None
    plugins: Mapping[str, SocketProbe] = field(default_factory=dict)
    more: int = 0


@dataclass(frozen=True)
class NodeInspection:
    """One inspection of a node, at the instant `now`."""

    locations: Locations
    target: ScrapeTarget
    user: User
    """The user who writes feature files."""
    now: datetime
    bounded: Bounded
    sleep: Callable[[float], None]
    calls: TimedCalls
    node_object: tuple[str, Mapping[str, str]] | None = None
    """Name and labels of the Node object, if given."""
    hung: dict[str, str] = field(default_factory=dict)
    """Reasons why something did not answer, by the name of the call."""

    def _call(self, name: str, path: Path, call: Callable[[], T]) -> T:
        """Make a call about a path in limited time. Raises what `call` raises, and `HungError`."""
        try:
            # Longer than the call's own limit: this is for signals that end the inspection.
            with self.bounded(2 * SECONDS):
                return self.calls(name, path, call)
        except HungError as error:
            self.hung[name] = error.strerror or str(error)
            raise

    # XPU Manager and the daemons

    @cached_property
    def answer(self) -> Answer:
        """One scrape, by the sidecar's own scraper."""
        scraper = Scraper(
            self.target,
            bounded=self.bounded,
            sleep=self.sleep,
            monotonic=time.monotonic,
            user_agent=f"xelink/{VERSION}",
        )
        reading: Exposition | None = None
        what: Words | None = None
        code: ErrorCode | None = None
        try:
            reading = scraper.scrape()
            outcome = answered(classify(reading, EVERY_LINK))
        except ScrapeError as error:
            what, code = words(error, OPTIONS), error.code
            outcome = Unknown(error.reason, str(what))
        finally:
            scraper.close()
        kind = (scraper.content_type or "").partition(";")[0].strip().lower()
        return Answer(outcome, reading, what, code, kind, scraper.certificate_expiry)

    @cached_property
    def sidecar(self) -> DaemonAnswer:
        """What `/readyz` of the sidecar answers."""
        return self._daemon(self.locations.sidecar)

    @cached_property
    def plugin(self) -> DaemonAnswer:
        """What `/readyz` of the device plugin answers."""
        return self._daemon(self.locations.plugin)

    def _daemon(self, url: str) -> DaemonAnswer:
        try:
            with self.bounded(_SECONDS):
                status, text = _get(url, "/readyz")
                build = _BUILD.search(_get(url, "/metrics")[1])
        except TimeoutError:
            return DaemonAnswer(None, f"no answer within {_SECONDS:g} s")
        except (OSError, HTTPException) as error:
            why = error.strerror if isinstance(error, OSError) else None
            text = (why or str(error) or type(error).__name__).lower()
            return DaemonAnswer(None, text, refused=isinstance(error, ConnectionRefusedError))
        line = text.strip().partition("\n")[0]
        return DaemonAnswer(status, line, build and build["part"], build and build["version"])

    # Feature files

    @cached_property
    def directory(self) -> Directory:
        """The directory of feature files."""
        path = self.locations.features_dir

        def call() -> Directory:
            directory = path.stat()
            system = os.statvfs(path)
            stage = None
            with suppress(FileNotFoundError, PermissionError):
                stage = (path / ".stage").lstat()
            return Directory(
                directory,
                parents=tuple((parent, parent.stat()) for parent in self._parents(path)),
                read_only=bool(system.f_flag & os.ST_RDONLY),
                full=not system.f_bavail or (bool(system.f_files) and not system.f_favail),
                stage=stage,
            )

        try:
            return self._call("features_dir", path, call)
        except OSError as error:
            return Directory(problem=error.strerror or "no answer")

    def _parents(self, path: Path) -> list[Path]:
        """Return the directories above a path that are the host's: those below the prefix."""
        base = self.locations.prefix
        return [
            parent
            for parent in reversed(path.parents)
            if parent != base and (not path.is_relative_to(base) or parent.is_relative_to(base))
        ]

    @property
    def file_call(self) -> str:
        """The name of calls about the feature file."""
        return "feature_file" if "--feature-file" in self.locations.given else "features_dir"

    @cached_property
    def file(self) -> labels.Look:
        """The feature file, as the device plugin reads it."""
        path = self.locations.feature_file

        def call() -> labels.Look:
            try:
                return labels.look(self.locations.resolved(path))
            except OSError as error:  # a loop of links
                return labels.Look(problem=error.strerror or str(error))

        try:
            return self._call(self.file_call, path, call)
        except OSError as error:
            return labels.Look(problem=error.strerror or str(error))

    @cached_property
    def file_stat(self) -> os.stat_result | None:
        """The feature file's mode and owner, None if it is missing."""
        path = self.locations.feature_file
        try:
            return self._call(self.file_call, path, path.lstat)
        except OSError:
            return None

    @cached_property
    def other_files(self) -> Files:
        """Every other file that NFD reads."""
        ours = self.file_stat

        def call() -> Files:
            names = sorted(self.locations.features_dir.iterdir())
            found: dict[str, bytes] = {}
            unread: list[str] = []
            for path in names[:MOST_FILES]:
                with suppress(FileNotFoundError):  # removed since
                    found_stat = path.lstat()
                    same = ours and os.path.samestat(found_stat, ours)
                    if same or not stat.S_ISREG(found_stat.st_mode):
                        continue
                    content = labels.look(path).content
                    if content is not None:
                        found[path.name] = content
                    elif path.exists():
                        unread.append(path.name)
            return Files(found, unread=tuple(unread), more=max(0, len(names) - MOST_FILES))

        try:
            return self._call("features_dir", self.locations.features_dir, call)
        except OSError as error:
            return Files(problem=error.strerror or str(error))

    @cached_property
    def content(self) -> Publication | UnusableError | None:
        """The content of the feature file, expired or not; None if there is nothing to read."""
        content = self.file.content
        if content is None or len(content) > nfd_format.FILE_LIMIT:
            return None
        try:
            return publication.read(
                nfd_format.without_expiry(content), self.locations.namespace, self.now
            )
        except UnusableError as error:
            return error

    @property
    def expiry(self) -> datetime | None:
        """When the feature file expires; None if it never does, or if there is none."""
        return nfd_format.parse(self.file.content or b"", self.now).expiry

    @property
    def renewal_missed(self) -> bool:
        """Whether the feature file should have been renewed by now."""
        expiry, written = self.expiry, self.file.modified
        if expiry is None or written is None:
            return False
        return self.now - written > _LATE * (expiry - written)

    @property
    def expired(self) -> bool:
        """Whether the feature file has expired."""
        return nfd_format.parse(self.file.content or b"", self.now).expired

    @cached_property
    def published(self) -> Topology | None:
        """The topology that the feature file publishes now, with lanes and id map."""
        if not isinstance(self.content, Publication) or not self.content.whole:
            return None
        return None if self.expired else self.content.topology

    # The node

    @cached_property
    def inventory(self) -> Inventory | None:
        """The GPUs in sysfs, None without sysfs."""
        prefix = self.locations.prefix

        def call() -> Inventory:
            return gpus.scan(Roots(below(prefix, Path("/sys")), below(prefix, Path("/dev"))))

        try:
            return self._call("sysfs", prefix / "sys", call)
        except (ScanError, OSError):
            return None

    @cached_property
    def sockets(self) -> Sockets:
        """Who answers on kubelet's socket and on those of device plugins."""
        directory = self.locations.plugin_dir
        try:
            names = self._call("plugin_dir", directory, lambda: sorted(os.listdir(directory)))  # noqa: PTH208 - sockets are known by name
        except OSError as error:
            missing = error.errno in {errno.ENOENT, errno.ENOTDIR}
            return Sockets(error.strerror or str(error), missing=missing)
        own = [name for name in names if _OWN_SOCKET.fullmatch(name)]
        end = time.monotonic() + _SOCKETS_SECONDS
        return Sockets(
            kubelet=socket_probe.probe_socket(directory / KUBELET) if KUBELET in names else None,
            plugins={
                name: socket_probe.ask_plugin(directory / name, end - time.monotonic())
                for name in own[:_MOST_SOCKETS]
            },
            more=max(0, len(own) - _MOST_SOCKETS),
        )


def _get(url: str, path: str) -> tuple[int, str]:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=_SECONDS)
    try:
        connection.request("GET", path, headers={"Accept": "text/plain"})
        response = connection.getresponse()
        return response.status, response.read(_PAGE_LIMIT).decode(errors="replace")
    finally:
        connection.close()
