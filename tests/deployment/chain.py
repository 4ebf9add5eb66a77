"""XPU Manager's two containers of one Pod as processes: real gunicorn, the real sidecar."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE
from tests.processes import Running, address, get, running
from xelink.topology import nfd_format

# Holds the module that gunicorn is told to serve; stands for the container's working directory.
REST = Path(__file__).with_name("rest")
EXPORTER, SIDECAR = "python-exporter", "xelink-sidecar"
MOUNT = "/cert"
Secret = Mapping[str, bytes]
_PROGRAMS = {"gunicorn": "gunicorn", "xelink-sidecar": "sidecar"}
_BIND = re.compile(r"(\[?[0-9a-f.:]+\]?):29999")
_ANSWERED = "answered /metrics to xelink-sidecar"


class SecretVolume:
    """A directory as kubelet fills it from a Secret: all files change in one rename."""

    def __init__(self, directory: Path, paths: Mapping[str, str], secret: Secret) -> None:
        """Take the volume's items: keys of the Secret and the names of their files."""
        self.directory = directory
        self._paths = paths
        self._versions = count()
        directory.mkdir()
        self.update(secret)
        for path in paths.values():
            (directory / path).symlink_to(f"..data/{path}")

    def update(self, secret: Secret) -> None:
        """Do what kubelet's atomic writer does: a new directory, and a link renamed over a link."""
        data, link = self.directory / "..data", self.directory / "..data_tmp"
        old = data.resolve() if data.is_symlink() else None
        new = self.directory / f"..2026_01_01_00_00_00.{next(self._versions):09}"
        new.mkdir()
        for key, path in self._paths.items():
            (new / path).write_bytes(secret[key])
        link.symlink_to(new.name)
        link.rename(data)
        if old:
            for file in old.iterdir():
                file.unlink()
            old.rmdir()


def container(daemon_set: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Find a container by name."""
    containers: list[dict[str, Any]] = daemon_set["spec"]["template"]["spec"]["containers"]
    (found,) = (each for each in containers if each["name"] == name)
    return found


def certificate_volume(daemon_set: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Find the Secret's volume that a container mounts at /cert; None without one."""
    mounts = [
        mount
        for mount in container(daemon_set, name).get("volumeMounts", ())
        if mount["mountPath"].rstrip("/") == MOUNT
    ]
    if not mounts:
        return None
    (mount,) = mounts
    assert "subPath" not in mount, "kubelet never updates a file that is mounted alone"
    volumes: list[dict[str, Any]] = daemon_set["spec"]["template"]["spec"]["volumes"]
    (found,) = (volume["secret"] for volume in volumes if volume["name"] == mount["name"])
    secret: dict[str, Any] = found
    return secret


_SETTING = "XELINK_SIDECAR_"


def call(
    manifest: Mapping[str, Any], mount: Path | None, pod_ip: str = "127.0.0.2"
) -> tuple[list[str], dict[str, str]]:
    """Give a container's call with our ports and places, and what that changed.

    The Pod's address is put in, as kubelet does, and variables that are the sidecar's settings as
    the flags that they stand for. The port becomes one that is free, what is below
    /cert is read below `mount`, and the program is started as a module of this interpreter. Nothing
    else is touched.
    """
    flags = {
        each["name"].removeprefix(_SETTING).lower().replace("_", "-"): each["value"]
        for each in manifest.get("env", ())
        if each["name"].startswith(_SETTING)
    }
    words = [
        *manifest.get("command", ()),
        *manifest.get("args", ()),
        *(f"-{flag}={value}" for flag, value in flags.items()),
    ]
    changes = {}
    for word in words[1:]:
        changed = _BIND.sub(r"\1:0", word.replace("$(POD_IP)", pod_ip))
        if mount:
            changed = changed.replace(f"{MOUNT}/", f"{mount}/")
        if changed != word:
            changes[word] = changed
    return [_PROGRAMS[words[0]], *(changes.get(word, word) for word in words[1:])], changes


def published(labels: Path) -> dict[str, str]:
    """Give the labels of a feature file that is valid now."""
    return dict(nfd_format.parse(labels.read_bytes(), datetime.now(UTC)).labels)


@dataclass
class Chain:
    """Gunicorn, the sidecar, and the file between them and NFD."""

    exporter: Running
    sidecar: Running
    labels: Path
    port: int
    probes: str
    """URL of the sidecar's probes."""
    _published: tuple[int, bytes] = field(init=False)

    def wait_for_scrapes(self, times: int = 2) -> None:
        """Wait for as many more answers; all but the last are judged by then."""
        for _ in range(times):
            self.exporter.wait_for(_ANSWERED)

    def wait_for_labels(self) -> dict[str, str]:
        """Wait until labels are published; give them."""
        self.sidecar.wait_for("labels published")
        self._published = self._stands()
        return published(self.labels)

    def wait_until_ready(self, *, ready: bool = True) -> None:
        """Wait for the readiness probe's answer, which follows the log line."""
        end = time.monotonic() + PATIENCE
        while (get(f"{self.probes}/readyz")[0] == HTTPStatus.OK) is not ready:
            assert time.monotonic() < end, f"ready is not {ready}"

    def assert_nothing_changed(self) -> None:
        """Neither the labels nor a byte of their file since they were published."""
        assert self._stands() == self._published
        assert self.sidecar.process.poll() is None

    def _stands(self) -> tuple[int, bytes]:
        return self.labels.stat().st_mtime_ns, self.labels.read_bytes()

    def metric(self, name: str) -> float:
        """Give a number from the sidecar's metrics."""
        match = re.search(
            rf"^{re.escape(name)} (\S+)$", get(f"{self.probes}/metrics")[1], re.MULTILINE
        )
        assert match, name
        return float(match[1])


@contextmanager
def exporting(
    words: Sequence[str], before: tuple[str, ...] = (), env: Mapping[str, str] | None = None
) -> Iterator[tuple[Running, int]]:
    """Run gunicorn with this call, started by the program `before`; give it and its port."""
    given = dict(env or {})
    options = f"--no-control-socket {given.pop('GUNICORN_CMD_ARGS', '')}"
    own = {"PYTHONPATH": str(REST), "GUNICORN_CMD_ARGS": options, **given}
    with Running(words[0], *words[1:], env=own, before=before) as exporter:
        listening = exporter.wait_for("Listening at: http")
        match = re.search(r"://127\.0\.0\.1:(\d+)", listening)
        assert match
        try:
            yield exporter, int(match[1])
        finally:
            exporter.stop()
    assert sum("Booting worker" in line for line in exporter.lines) == 1  # never restarted


@contextmanager
def labeling(words: Sequence[str], port: int, labels: Path, **env: str) -> Iterator[Running]:
    """Run the sidecar with this call; our port and places come by its environment."""
    labels.parent.mkdir(exist_ok=True)
    own = {
        "XPUM_PORT": str(port),
        "TMP_DIR_PREFIX": str(labels.parent),
        "DST_FILE_PATH": str(labels),
        "STARTUP_DELAY": "0",
        "INTERVAL": "1",
        "LISTEN": "127.0.0.1:0",
    }
    variables = {f"XELINK_SIDECAR_{name}": value for name, value in own.items()}
    with running(*words, **{**variables, **env}) as sidecar:
        yield sidecar


@contextmanager
def chain(
    exporting_call: Sequence[str],
    labeling_call: Sequence[str],
    directory: Path,
    env: Mapping[str, str],
) -> Iterator[Chain]:
    """Run both; at the end each must still be the process that was started, and end well."""
    labels = directory / "features.d" / "xpum-sidecar-labels.txt"
    with (
        exporting(exporting_call, env=env) as (exporter, port),
        labeling(labeling_call, port, labels, **env) as sidecar,
    ):
        yield Chain(exporter, sidecar, labels, port, address(sidecar))
        assert sidecar.stop() == 0
