"""What the doctor looks at on a node: each thing once, when it is first asked for, not for long.

Read-only: nothing is written, nothing is registered. Checks judge what is seen here, and do not
look themselves.
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
from xelink.cli.doctor import dialing
from xelink.cli.doctor.dialing import Dialed
from xelink.cli.doctor.permissions import User
from xelink.cli.host_paths import below
from xelink.cli.timed_looks import SECONDS, Looks
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
# Every Xe Link counts here, whatever the sidecar publishes of it.
EVERY_LINK = Rules(lane_count=1, allow_subdeviceless_links=True)

MOST_FILES = 256
"""How many files of the directory are looked at."""

_SECONDS = 5.0  # for a probe
_SOCKETS_SECONDS = 10.0  # for all sockets of kubelet's directory
_MOST_SOCKETS = 64
_LATE = 2 / 3  # of a file's life: the sidecar renews it after one third
_PAGE_LIMIT = 1 << 20
# Not beyond the line, which anybody may have written: each is gone through once.
_BUILD = re.compile(
    r'^xelink_(?P<part>sidecar|device_plugin)_build_info\{[^}\n]*version="(?P<version>[^"\n]*)"',
    re.MULTILINE,
)
_OWN_SOCKET = re.compile(r"gpu\.intel\.com-.+\.sock", re.ASCII)


@dataclass(frozen=True)
class Place:
    """Where things are on this node. `given` are the names of those that the caller named."""

    prefix: Path
    features_dir: Path
    feature_file: Path
    plugin_dir: Path
    sidecar: str
    plugin: str
    namespace: str
    given: frozenset[str] = frozenset()

    def seen(self, path: Path) -> Path:
        """Return where a path is seen: links below the prefix are the host's. Raises `OSError`."""
        if self.prefix == Path("/") or not path.is_relative_to(self.prefix):
            return path
        return below(self.prefix, "/" / path.relative_to(self.prefix))


class Answer(NamedTuple):
    """What XPU Manager answered."""

    outcome: Observation
    reading: Exposition | None
    error: Words | None
    """What went wrong with the scrape itself, in our options' names, and its code."""
    code: ErrorCode | None
    content_type: str
    certificate_expiry: float | None


class Probe(NamedTuple):
    """What a daemon of ours answers; `status` is None, and `text` says why, when nobody does.

    `refused` says that nobody listens. `part` and `version` are None where it is no program of
    ours.
    """

    status: int | None
    text: str
    part: str | None = None
    version: str | None = None
    refused: bool = False


@dataclass(frozen=True)
class Directory:
    """The directory of feature files: `told` is None, and `problem` says why, when it is not there.

    `parents` are the directories on the way to it. `stage` is where the sidecar prepares its file.
    """

    told: os.stat_result | None = None
    problem: str = ""
    parents: tuple[tuple[Path, os.stat_result], ...] = ()
    read_only: bool = False
    full: bool = False
    stage: os.stat_result | None = None


@dataclass(frozen=True)
class Files:
    """The other files that NFD reads, by name: `problem` says why the directory cannot be listed.

    `unread` are those that cannot be read; `unseen` is how many more there are than are looked at.
    """

    found: Mapping[str, bytes] = field(default_factory=dict)
    problem: str = ""
    unread: tuple[str, ...] = ()
    unseen: int = 0


@dataclass(frozen=True)
class Sockets:
    """kubelet's directory: `problem` says why it cannot be looked into.

    `plugins` are the sockets of `gpu.intel.com`, by name.
    """

    problem: str = ""
    missing: bool = False
    kubelet: Dialed | None = None
    plugins: Mapping[str, Dialed] = field(default_factory=dict)
    unseen: int = 0


@dataclass(frozen=True)
class Visit:
    """One look at a node, at the instant `now`."""

    place: Place
    target: ScrapeTarget
    user: User
    """Who is to write feature files."""
    now: datetime
    bounded: Bounded
    sleep: Callable[[float], None]
    looks: Looks
    node: tuple[str, Mapping[str, str]] | None = None
    """Name and labels of the Node object, where they were given."""
    hung: dict[str, str] = field(default_factory=dict)
    """What did not answer, by the name of the look: why."""

    def _look(self, name: str, path: Path, look: Callable[[], T]) -> T:
        """Look at a path in time, whatever hangs. Raises what `look` raises, and `HungError`."""
        try:
            # Longer than the look itself: this is for the signals that end a visit.
            with self.bounded(2 * SECONDS):
                return self.looks(name, path, look)
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
    def sidecar(self) -> Probe:
        """What `/readyz` of the sidecar says."""
        return self._probe(self.place.sidecar)

    @cached_property
    def plugin(self) -> Probe:
        """What `/readyz` of the device plugin says."""
        return self._probe(self.place.plugin)

    def _probe(self, url: str) -> Probe:
        try:
            with self.bounded(_SECONDS):
                status, text = _get(url, "/readyz")
                build = _BUILD.search(_get(url, "/metrics")[1])
        except TimeoutError:
            return Probe(None, f"no answer within {_SECONDS:g} s")
        except (OSError, HTTPException) as error:
            why = error.strerror if isinstance(error, OSError) else None
            text = (why or str(error) or type(error).__name__).lower()
            return Probe(None, text, refused=isinstance(error, ConnectionRefusedError))
        line = text.strip().partition("\n")[0]
        return Probe(status, line, build and build["part"], build and build["version"])

    # Feature files

    @cached_property
    def directory(self) -> Directory:
        """The directory of feature files."""
        path = self.place.features_dir

        def look() -> Directory:
            told = path.stat()
            system = os.statvfs(path)
            stage = None
            with suppress(FileNotFoundError, PermissionError):
                stage = (path / ".stage").lstat()
            return Directory(
                told,
                parents=tuple((parent, parent.stat()) for parent in self._parents(path)),
                read_only=bool(system.f_flag & os.ST_RDONLY),
                full=not system.f_bavail or (bool(system.f_files) and not system.f_favail),
                stage=stage,
            )

        try:
            return self._look("features_dir", path, look)
        except OSError as error:
            return Directory(problem=error.strerror or "no answer")

    def _parents(self, path: Path) -> list[Path]:
        """Give the directories above a path that are the host's: those below the prefix."""
        base = self.place.prefix
        return [
            parent
            for parent in reversed(path.parents)
            if parent != base and (not path.is_relative_to(base) or parent.is_relative_to(base))
        ]

    @property
    def file_look(self) -> str:
        """The name of a look at the feature file."""
        return "feature_file" if "--feature-file" in self.place.given else "features_dir"

    @cached_property
    def file(self) -> labels.Look:
        """The feature file, as the device plugin looks at it."""
        path = self.place.feature_file

        def look() -> labels.Look:
            try:
                return labels.look(self.place.seen(path))
            except OSError as error:  # links without an end
                return labels.Look(problem=error.strerror or str(error))

        try:
            return self._look(self.file_look, path, look)
        except OSError as error:
            return labels.Look(problem=error.strerror or str(error))

    @cached_property
    def file_told(self) -> os.stat_result | None:
        """The feature file's mode and owner, None where it is not there."""
        path = self.place.feature_file
        try:
            return self._look(self.file_look, path, path.lstat)
        except OSError:
            return None

    @cached_property
    def other_files(self) -> Files:
        """Every other file that NFD reads."""
        ours = self.file_told

        def look() -> Files:
            names = sorted(self.place.features_dir.iterdir())
            found: dict[str, bytes] = {}
            unread: list[str] = []
            for path in names[:MOST_FILES]:
                with suppress(FileNotFoundError):  # gone meanwhile
                    told = path.lstat()
                    if not stat.S_ISREG(told.st_mode) or (ours and os.path.samestat(told, ours)):
                        continue
                    content = labels.look(path).content
                    if content is not None:
                        found[path.name] = content
                    elif path.exists():
                        unread.append(path.name)
            return Files(found, unread=tuple(unread), unseen=max(0, len(names) - MOST_FILES))

        try:
            return self._look("features_dir", self.place.features_dir, look)
        except OSError as error:
            return Files(problem=error.strerror or str(error))

    @cached_property
    def said(self) -> Publication | UnusableError | None:
        """What the feature file says, expired or not; None where there is nothing to read."""
        content = self.file.content
        if content is None or len(content) > nfd_format.FILE_LIMIT:
            return None
        try:
            return publication.read(
                nfd_format.without_expiry(content), self.place.namespace, self.now
            )
        except UnusableError as error:
            return error

    @property
    def expiry(self) -> datetime | None:
        """When the feature file stops speaking; None where it never does, or there is none."""
        return nfd_format.parse(self.file.content or b"", self.now).expiry

    @property
    def renewal_missed(self) -> bool:
        """Whether the feature file should have been renewed by now; one for ever never is."""
        expiry, written = self.expiry, self.file.modified
        if expiry is None or written is None:
            return False
        return self.now - written > _LATE * (expiry - written)

    @property
    def expired(self) -> bool:
        """Whether its time has passed."""
        return nfd_format.parse(self.file.content or b"", self.now).expired

    @cached_property
    def published(self) -> Topology | None:
        """The topology that the feature file tells now, with lanes and id map."""
        if not isinstance(self.said, Publication) or not self.said.whole:
            return None
        return None if self.expired else self.said.topology

    # The node

    @cached_property
    def inventory(self) -> Inventory | None:
        """The GPUs in sysfs, None where there is no sysfs."""
        prefix = self.place.prefix

        def look() -> Inventory:
            return gpus.scan(Roots(below(prefix, Path("/sys")), below(prefix, Path("/dev"))))

        try:
            return self._look("sysfs", prefix / "sys", look)
        except (ScanError, OSError):
            return None

    @cached_property
    def sockets(self) -> Sockets:
        """Who answers on kubelet's socket and on those of device plugins."""
        directory = self.place.plugin_dir
        try:
            names = self._look("plugin_dir", directory, lambda: sorted(os.listdir(directory)))  # noqa: PTH208 - names, as sockets are known by
        except OSError as error:
            missing = error.errno in {errno.ENOENT, errno.ENOTDIR}
            return Sockets(error.strerror or str(error), missing=missing)
        own = [name for name in names if _OWN_SOCKET.fullmatch(name)]
        end = time.monotonic() + _SOCKETS_SECONDS
        return Sockets(
            kubelet=dialing.dial(directory / KUBELET) if KUBELET in names else None,
            plugins={
                name: dialing.ask(directory / name, end - time.monotonic())
                for name in own[:_MOST_SOCKETS]
            },
            unseen=max(0, len(own) - _MOST_SOCKETS),
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
