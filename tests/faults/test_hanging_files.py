"""Files of the sidecar's settings hang, never end or are no files: it goes on, and hears signals.

A mount that does not answer holds whoever opens a file there, and no signal gets through. The
preloaded shim does the same.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import trustme

from tests.faults.rig import arguments, sidecar, truth
from tests.faults.shim import LackingError, Shim
from tests.patience import PATIENCE
from tests.processes import Running, children
from xelink.simulators.xpu_manager import Serving, Simulator

PASSWORD = "correct horse"  # noqa: S105 - of a simulator
CA = trustme.CA()


class Secrets:
    """A directory of settings, on a mount of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        for name in ("password", "config.yaml"):
            (path / name).write_text(PASSWORD if name == "password" else "lane-count: 4\n")
        (path / "ca.crt").write_bytes(CA.cert_pem.bytes())
        try:
            self.shim = Shim(path.with_suffix(".wrong"), path)
        except LackingError as error:
            pytest.skip(str(error))


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    return Secrets(tmp_path / "secrets")


Spoil = Callable[[Secrets, str], AbstractContextManager[None]]


@contextmanager
def dead_mount(secrets: Secrets, _name: str) -> Iterator[None]:
    with secrets.shim.failing("hang", 1):
        yield


def replaced(make: Callable[[Path], object]) -> Spoil:
    @contextmanager
    def spoil(secrets: Secrets, name: str) -> Iterator[None]:
        file = secrets.path / name
        made = file.with_suffix(".made")
        make(made)
        content = file.read_bytes()
        made.rename(file)
        yield
        made.write_bytes(content)
        made.rename(file)

    return spoil


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


SPOILT: dict[str, tuple[Spoil, str]] = {
    "a dead mount": (dead_mount, "not read within 2 s: its file system does not answer"),
    "a pipe": (replaced(os.mkfifo), "not a regular file"),
    "no end": (replaced(lambda path: path.symlink_to("/dev/zero")), "not a regular file"),
    "a terabyte": (replaced(_huge), "more than {most} bytes"),
}
KINDS = pytest.mark.parametrize(("spoil", "why"), SPOILT.values(), ids=SPOILT)


@KINDS
def test_a_password_that_cannot_be_read_is_told_and_heals(
    secrets: Secrets, tmp_path: Path, spoil: Spoil, why: str
) -> None:
    serving = Serving(username="ann", password=PASSWORD)
    file = secrets.path / "password"
    more = ("-username=ann", f"-password-file={file}")
    features_d = tmp_path / "features.d"
    features_d.mkdir()
    with (
        Simulator(truth(4), serving) as xpum,
        sidecar(xpum.port, features_d, *more, env=secrets.shim.environment) as daemon,
    ):
        with spoil(secrets, "password"):
            daemon.refuses("unauthorized", f"-password-file {file}: {why.format(most=4096)}")
            daemon.wait_for_scrapes(lambda more: more["unauthorized"] >= 2)
        daemon.heals(xpum)
        daemon.is_bounded()


@KINDS
def test_a_trust_that_cannot_be_read_leaves_the_last_good_one(
    secrets: Secrets, tmp_path: Path, spoil: Spoil, why: str
) -> None:
    issued = CA.issue_cert("127.0.0.1")
    tls = tmp_path / "tls.pem"
    tls.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    file = secrets.path / "ca.crt"
    features_d = tmp_path / "features.d"
    features_d.mkdir()
    with (
        Simulator(truth(4), Serving(cert=tls, key=tls)) as xpum,
        sidecar(xpum.port, features_d, f"-cert={file}", env=secrets.shim.environment) as daemon,
    ):
        with spoil(secrets, "ca.crt"):
            line = daemon.process.wait_for("the TLS files cannot be used")
            assert f"-cert {file}: {why.format(most=1 << 20)}; the last good ones" in line
            daemon.wait_for_scrapes(lambda more: more["links"] >= 2)
        daemon.process.wait_for("source warning resolved")
        daemon.expects(xpum)
        daemon.is_bounded()


@pytest.mark.parametrize("name", ["password", "ca.crt"])
def test_it_ends_at_once_while_a_file_hangs(secrets: Secrets, tmp_path: Path, name: str) -> None:
    flags = {
        "password": ("-username=ann", f"-password-file={secrets.path}/password"),
        "ca.crt": (f"-cert={secrets.path}/ca.crt",),
    }[name]
    with (
        secrets.shim.failing("hang", 1),
        Running(
            "sidecar", *arguments(1, tmp_path), *flags, env=dict(secrets.shim.environment)
        ) as one,
    ):
        one.wait_for("event=started")
        assert one.stop() == 0
        assert "event=stopped" in one.lines[-1]


@KINDS
@pytest.mark.parametrize("module", ["sidecar", "device_plugin"])
def test_a_configuration_that_cannot_be_read_is_one_line(
    secrets: Secrets, spoil: Spoil, why: str, module: str
) -> None:
    file = secrets.path / "config.yaml"
    env = dict(secrets.shim.environment)
    with (
        spoil(secrets, "config.yaml"),
        Running(module, f"-config-file={file}", "-print-config", env=env) as process,
    ):
        assert process.wait(2 * PATIENCE) == 2
        (line,) = process.lines
        why = why.replace("within 2 s", "within 10 s").format(most=1 << 16)
        assert line.endswith(f": -config-file {file}: {why}")


@contextmanager
def reading(secrets: Secrets) -> Iterator[tuple[Running, int]]:
    """Run a sidecar whose configuration hangs; give it and its process that reads."""
    env = {**secrets.shim.environment, "COVERAGE_PROCESS_CONFIG": ""}
    flag = f"-config-file={secrets.path / 'config.yaml'}"
    with secrets.shim.failing("hang", 1), Running("sidecar", flag, env=env) as process:
        until = time.monotonic() + PATIENCE
        while not (reads := children(process)):
            assert time.monotonic() < until
            threading.Event().wait(0.02)
        ended = os.pidfd_open(int(reads[0]))
        try:
            yield process, ended
        finally:
            os.close(ended)


def test_a_signal_is_heard_while_the_configuration_hangs(secrets: Secrets) -> None:
    with reading(secrets) as (process, ended):
        assert process.stop() in {1, 2}  # what reads may say first that it hangs
        assert len(process.lines) == 1
        assert select.select([ended], [], [], PATIENCE)[0], "it still reads"


def test_who_reads_a_configuration_that_hangs_dies_with_its_parent(secrets: Secrets) -> None:
    with reading(secrets) as (process, ended):
        process.stop(signal.SIGKILL)
        assert select.select([ended], [], [], PATIENCE)[0], "it still reads"
