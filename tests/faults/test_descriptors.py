"""No descriptor is left: each daemon says so in a line, goes on, and heals; too few end in one."""

import re
import resource
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.device_plugin.test_daemon import I915, SOCKET, Scene
from tests.faults.rig import sidecar, truth
from tests.processes import Running
from xelink.simulators.kubelet.kubelet import Kubelet
from xelink.simulators.xpu_manager import Simulator

FEW = 12


@contextmanager
def without_descriptors(process: Running) -> Iterator[None]:
    """Let every call of a process fail that would open anything."""
    pid = process.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def is_calm(process: Running, most: int) -> None:
    """Hold what was logged: no traceback, and no line for each try."""
    assert not [line for line in process.lines if "Traceback" in line]
    for line in process.lines:
        alike = [other for other in process.lines if _shape(other) == _shape(line)]
        assert len(alike) <= most, alike


def _shape(line: str) -> str:
    return re.sub("[0-9]+", "", line)


def test_a_sidecar_says_that_it_has_none_and_heals(tmp_path: Path) -> None:
    with Simulator(truth(4)) as xpum, sidecar(xpum.port, tmp_path) as daemon:
        xpum.misbehave("reset")  # whoever comes back needs a new connection
        daemon.process.wait_for("no usable answer")
        before = daemon.content()
        with without_descriptors(daemon.process):
            xpum.recover()
            line = daemon.process.wait_for("reason=resources")
            assert "Too many open files" in line
            threading.Event().wait(3)  # for more of them, were there any
        assert daemon.content() == before
        daemon.expects(xpum)
        daemon.process.forget()
        is_calm(daemon.process, 2)


def test_a_plugin_says_that_it_has_none_and_serves_on() -> None:
    with tempfile.TemporaryDirectory(prefix="x") as name:
        scene = Scene(Path(name))
        scene.publish()
        with Kubelet(scene.kubelets) as kubelet, scene.plugin() as plugin:
            kubelet.wait_for_capacity(I915, 8)
            assert kubelet.run_pod("before", I915, 2).ids
            with without_descriptors(plugin):
                (scene.directory / "labels").touch()
                plugin.wait_for("Too many open files")
                assert kubelet.run_pod("meanwhile", I915, 2).ids
                kubelet.lose_streams()  # so that it has to register again
                plugin.wait_for("cannot check sockets")
                threading.Event().wait(3)  # for more of them, were there any
            kubelet.wait_for_allocatable(I915, 8)
            assert kubelet.run_pod("after", I915, 2).ids
            assert (scene.kubelets / SOCKET).exists()
            plugin.forget()
            is_calm(plugin, 3)
            assert plugin.stop() == 0


@pytest.mark.parametrize("module", ["sidecar", "device_plugin"])
def test_too_few_are_one_line_and_exit_code_1(module: str, tmp_path: Path) -> None:
    flags = (f"-plugin-dir={tmp_path}",) if module == "device_plugin" else ()
    limit = ("prlimit", f"--nofile={FEW}:{FEW}")
    with Running(module, *flags, "-listen=127.0.0.1:0", before=limit) as process:
        assert process.wait() == 1
        (line,) = process.lines
        assert f"{FEW} open files are too few: at least" in line
        assert "(ulimit -n)" in line


@pytest.mark.parametrize("module", ["sidecar", "device_plugin"])
def test_a_soft_limit_is_raised(module: str, tmp_path: Path) -> None:
    flags = (f"-plugin-dir={tmp_path}",) if module == "device_plugin" else ()
    limit = ("prlimit", f"--nofile={FEW}:4096")
    with Running(module, *flags, "-listen=127.0.0.1:0", before=limit) as process:
        process.wait_for("event=started")
        soft, _ = resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE)
        assert soft > FEW
        assert process.stop() == 0
