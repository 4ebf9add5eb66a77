"""The device plugin as a process: probes, metrics, logs, signals, and another user than root."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from device_plugin.daemon import serving_options, stalled
from device_plugin.settings import PluginSettings
from tests.patience import PATIENCE
from tests.processes import Running, address, children, get, mapped, running
from xelink.api import deviceplugin_pb2 as pb
from xelink.api.deviceplugin_pb2_grpc import DevicePluginStub
from xelink.daemon.flags import load
from xelink.inventory.cdi import FILE_NAME
from xelink.simulators.kubelet.kubelet import Kubelet
from xelink.simulators.node.sysfs import NodeTree
from xelink.simulators.xpu_manager import Blueprint
from xelink.topology.publication import Publication, render

I915 = "gpu.intel.com/i915"
SOCKET = "gpu.intel.com-i915.sock"
NOBODY = 65534
MESH = Blueprint(gpus=8, tiles=2).build().topology


class Scene:
    """A node in a directory with a short name, and where a kubelet may come to life."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kubelets = directory / "k"
        self.kubelets.mkdir()
        self.node = NodeTree.eight_max_1550(directory / "n")

    def publish(self) -> None:
        expiry = datetime.now(UTC) + timedelta(minutes=5)
        staged = self.directory / "staged"
        staged.write_bytes(render(Publication(MESH, expiry), "gpu.intel.com"))
        staged.rename(self.directory / "labels")

    def arguments(self, *more: str) -> list[str]:
        return [
            f"-prefix={self.directory / 'n'}",
            f"-plugin-dir={self.kubelets}",
            f"-label-file={self.directory / 'labels'}",
            f"-cdi-dir={self.directory / 'cdi'}",
            "-listen=127.0.0.1:0",
            *more,
        ]

    @contextmanager
    def plugin(self, *more: str) -> Iterator[Running]:
        with running("device_plugin", *self.arguments(*more)) as process:
            yield process

    @contextmanager
    def program(self, code: str, *more: str) -> Iterator[Running]:
        """Run a program that ends up in the plugin's `main`."""
        (self.directory / "program.py").write_text(code)
        # Without coverage, whose data another user may not write.
        env = {"PYTHONPATH": str(self.directory), "COVERAGE_PROCESS_CONFIG": ""}
        with running("program", *self.arguments(*more), **env) as process:
            yield process


@pytest.fixture
def scene() -> Iterator[Scene]:
    # Not pytest's directory: a unix socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="x") as name:
        yield Scene(Path(name))


# Another user

AS_NOBODY = f"""
import os, sys
import device_plugin.__main__, device_plugin.daemon, device_plugin.settings
import xelink.daemon.command_line
import grpc.aio, prometheus_client, tenacity, yaml, encodings.idna, concurrent.futures.thread
os.umask(0o077)
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
sys.exit(device_plugin.__main__.main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_as_another_user_it_registers_and_serves_where_the_directories_are_its_own(
    scene: Scene,
) -> None:
    scene.publish()
    (scene.directory / "cdi").mkdir()
    for path in (scene.directory, scene.kubelets, scene.directory / "cdi"):
        os.chown(path, NOBODY, NOBODY)
    with Kubelet(scene.kubelets) as kubelet:
        os.chown(kubelet.socket, NOBODY, NOBODY)
        with scene.program(AS_NOBODY) as process:
            url = address(process)
            kubelet.wait_for_capacity(I915, 8)
            status = Path(f"/proc/{process.process.pid}/status").read_text()
            assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
            assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
            process.wait_for("event=registered")
            pod = kubelet.run_pod("pod", I915, 2)
            assert len(pod.ids) == 2
            assert pod.response.envs["XELINK_LINKED"] == "all"
            assert [device.name for device in pod.response.cdi_devices]
            assert get(f"{url}/readyz") == (200, "links in use\n")
            assert (scene.kubelets / SOCKET).stat().st_uid == NOBODY
            (spec,) = (scene.directory / "cdi").iterdir()
            assert spec.stat().st_mode & 0o777 == 0o644  # whatever the umask
            assert process.stop() == 0
            assert not (scene.kubelets / SOCKET).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_directory_that_is_not_its_own_is_one_line_and_exit_code_1(scene: Scene) -> None:
    scene.directory.chmod(0o755)
    with scene.program(AS_NOBODY, "-cdi=false") as process:
        assert process.wait() == 1
    assert process.lines[-1] == (
        f"xelink-device-plugin: cannot serve on {scene.kubelets / SOCKET}: Permission denied"
    )
    assert not [line for line in process.lines if "Traceback" in line]


def test_it_holds_neither_what_read_its_settings_nor_openssl(scene: Scene) -> None:
    with scene.plugin() as process:
        process.wait_for("event=started")
        assert mapped(process, "pydantic", "_ssl") == set()
        assert children(process) == []


# Probes and metrics


@pytest.mark.parametrize(
    ("silence", "look", "problem"),
    [
        (0.0, 0.0, None),
        (60.0, 60.0, None),
        (61.0, 0.0, "no scan of the node for 61 s"),
        (1.0, 75.4, "a poll of sockets or the feature file has taken 75 s"),
        (90.0, 90.0, "no scan of the node for 90 s"),
    ],
)
def test_what_hangs_for_a_minute_makes_kubelet_restart_us(
    silence: float, look: float, problem: str | None
) -> None:
    assert stalled(silence, look) == problem


@pytest.mark.parametrize("milliseconds", [1, 50, 5000])
def test_a_request_is_waited_for_after_the_search_has_had_its_time(milliseconds: int) -> None:
    settings = load(PluginSettings, [f"-allocation-timeout={milliseconds}"]).settings
    assert serving_options(settings).timeout >= milliseconds / 1000 + 0.5


# The plugin, but that what looks at sockets beside the loop hangs while a file is there, and that
# seconds stand for minutes.
HANGING = """
import os, sys, threading
from dataclasses import replace
from pathlib import Path
from device_plugin import daemon
from device_plugin.__main__ import main
from xelink.kubelet import sockets
identity, sources, quick = sockets.identity, daemon._watcher_config, threading.Event()
def hangs(path):
    while os.path.exists(os.environ["HANG"]) and threading.current_thread() != MAIN:
        quick.wait(0.01)
    return identity(path)
def fast(settings):
    return replace(sources(settings), scan_seconds=0.05, poll_seconds=0.05)
MAIN = threading.main_thread()
sockets.identity, daemon._watcher_config, daemon._STALLED = hangs, fast, 2.0
sys.exit(main())
"""


def test_a_look_that_hangs_is_no_life_though_the_node_is_looked_at(
    scene: Scene, tmp_path: Path
) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    hang = tmp_path / "hang"
    env = {"PYTHONPATH": str(tmp_path), "HANG": str(hang)}
    with Running("hanging", *scene.arguments(), env=env) as process:
        url = address(process)
        process.wait_for("waiting for kubelet")
        hang.touch()
        until = time.monotonic() + PATIENCE
        while (told := get(f"{url}/healthz"))[0] == 200:
            assert time.monotonic() < until
        assert told[0] == 503
        assert told[1].startswith("a poll of sockets or the feature file has taken ")
        hang.unlink()
        while get(f"{url}/healthz") != (200, "ok\n"):
            assert time.monotonic() < until + PATIENCE
        assert process.stop() == 0


def test_it_is_ready_from_registration_on_and_says_what_the_links_are(scene: Scene) -> None:
    with scene.plugin() as process:
        url = address(process)
        process.wait_for("event=serving")
        missing = "links missing: No such file or directory\n"
        assert get(f"{url}/healthz") == (200, "ok\n")
        assert get(f"{url}/readyz") == (503, f"not registered with kubelet: {I915}; {missing}")
        with Kubelet(scene.kubelets) as kubelet:
            kubelet.wait_for_capacity(I915, 8)
            process.wait_for("event=registered")
            assert get(f"{url}/readyz") == (200, missing)
            scene.publish()
            process.wait_for('event=links state="in use"')
            assert get(f"{url}/readyz") == (200, "links in use\n")
        process.wait_for('event="ListAndWatch stream closed"')
        assert get(f"{url}/healthz") == (200, "ok\n")
        assert get(f"{url}/nothing") == (404, "try /metrics /healthz /readyz / /status.json\n")
        assert process.stop() == 0


def test_without_an_address_nobody_listens(scene: Scene) -> None:
    with scene.plugin("-listen=") as process:
        assert "listen=none" in process.wait_for("event=started")
        process.wait_for("event=serving")
        assert process.stop() == 0


OURS = {
    *("devices", "streams", "registrations_total", "registered", "preferences_total"),
    *("preference_seconds_count", "preference_seconds_sum", "preference_seconds_bucket"),
    *("allocations_total", "request_errors_total", "scans_total", "gpus", "gpu_problems"),
    *("linked_pairs", "feature_file_state", "feature_file_timestamp_seconds"),
    *("feature_file_expiry_timestamp_seconds", "unhealthy_gpus", "health_known"),
    "gpus_health_unknown",
    *("health_changes_total", "health_unread_total"),
}


def test_the_metrics_have_their_names_and_tell_what_was_done(scene: Scene) -> None:
    scene.publish()
    with Kubelet(scene.kubelets) as kubelet, scene.plugin() as process:
        url = address(process)
        kubelet.wait_for_capacity(I915, 8)
        process.wait_for("event=registered")
        while get(f"{url}/readyz") != (200, "links in use\n"):  # before the registration, or after
            pass
        kubelet.run_pod("pod", I915, 2)
        with grpc.insecure_channel(f"unix:{scene.kubelets / SOCKET}") as channel:
            request = pb.AllocateRequest()
            request.container_requests.add(devices_ids=["no"])
            with pytest.raises(grpc.RpcError):
                DevicePluginStub(channel).Allocate(request, timeout=PATIENCE)
        lines = [line for line in get(f"{url}/metrics")[1].splitlines() if line[0] != "#"]
    prefix = "xelink_device_plugin_"
    names = {re.split("[ {]", line.removeprefix(prefix))[0] for line in lines if prefix in line}
    assert {name for name in names if not name.endswith("_created")} >= OURS
    kept = "process_", "python_"
    assert [line for line in lines if not line.startswith((prefix, *kept))] == []
    expected = {
        f'devices{{health="healthy",resource="{I915}"}} 8.0',
        f'streams{{resource="{I915}"}} 1.0',
        f'registered{{resource="{I915}"}} 1.0',
        f'registrations_total{{outcome="accepted",resource="{I915}"}} 1.0',
        f'preferences_total{{outcome="proven",resource="{I915}"}} 1.0',
        f'preference_seconds_count{{resource="{I915}"}} 1.0',
        f'allocations_total{{linked="all",preference="followed",resource="{I915}"}} 1.0',
        "gpus 8.0",
        "linked_pairs 28.0",
        'feature_file_state{state="in use"} 1.0',
        "health_known 0.0",
        f'request_errors_total{{code="INVALID_ARGUMENT",resource="{I915}",rpc="Allocate"}} 1.0',
    }
    assert expected - {line.removeprefix(prefix) for line in lines} == set()


def test_a_port_that_is_taken_is_one_line_and_exit_code_1(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with scene.plugin(f"-listen=127.0.0.1:{port}") as process:
            assert process.wait() == 1
    (line,) = process.lines
    assert line.startswith(f"xelink-device-plugin: cannot listen on 127.0.0.1:{port}: ")
    assert [*scene.kubelets.iterdir()] == []


def test_a_plugin_directory_that_is_not_there_is_one_line_and_exit_code_1(scene: Scene) -> None:
    scene.kubelets.rmdir()
    with scene.plugin() as process:
        assert process.wait() == 1
    assert f"there is no directory {scene.kubelets}" in process.lines[-1]
    assert not (scene.directory / "cdi").exists(), "nobody is there to read a spec"


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_while_it_starts_is_not_lost(
    scene: Scene, number: signal.Signals
) -> None:
    code = (
        "import os, sys\n"
        "from device_plugin.__main__ import main\n"
        "from xelink.daemon.signals import hold_signals\n"
        "hold_signals()\n"
        f"os.kill(os.getpid(), {number:d})\n"
        "sys.exit(main())\n"
    )
    with scene.program(code) as process:
        assert process.wait() == 0
    assert "event=stopped" in process.lines[-1]
    assert [*scene.kubelets.iterdir()] == []


def test_a_signal_ends_it_while_kubelet_does_not_answer(scene: Scene) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(scene.kubelets / "kubelet.sock"))
        deaf.listen(0)
        with scene.plugin() as process:
            process.wait_for("event=serving")
            assert process.stop(signal.SIGINT) == 0
    assert [path.name for path in scene.kubelets.iterdir()] == ["kubelet.sock"]


# Logs


def provoke(path: Path) -> None:
    """Talk to a plugin's socket as nobody should."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        client.settimeout(PATIENCE)
        with suppress(OSError):
            while client.recv(1 << 16):
                pass
    with grpc.insecure_channel(f"unix:{path}") as channel:
        for method in ("Nothing", "Allocate", "GetPreferredAllocation", "PreStartContainer"):
            call = channel.unary_unary(f"/v1beta1.DevicePlugin/{method}", bytes, bytes)
            with pytest.raises(grpc.RpcError):
                call(b"\xff\xff\xff", timeout=PATIENCE)
        for _ in DevicePluginStub(channel).ListAndWatch(pb.Empty(), timeout=PATIENCE):
            break  # hangs up in the middle, as the channel is closed


def test_json_logs_parse_line_by_line_whatever_kubelet_and_others_do(scene: Scene) -> None:
    scene.publish()
    with Kubelet(scene.kubelets) as kubelet, scene.plugin("-log-format=json", "-v=4") as process:
        kubelet.wait_for_capacity(I915, 8)
        kubelet.run_pod("pod", I915, 2)
        kubelet.lose_streams()
        kubelet.restart()
        kubelet.wait_for_capacity(I915, 8)
        provoke(scene.kubelets / SOCKET)
        assert process.stop() == 0
    entries = [json.loads(line) for line in process.lines]
    assert [entry for entry in entries if not entry.keys() >= {"timestamp", "level", "event"}] == []
    events = [entry["event"] for entry in entries]
    assert events[0] == "started"
    assert events[-1] == "stopped"
    assert {"registered", "ListAndWatch stream opened", "links", "allocated"} <= {*events}


def test_while_nothing_happens_it_says_nothing(scene: Scene) -> None:
    scene.publish()
    with (
        Kubelet(scene.kubelets) as kubelet,
        subprocess.Popen(
            [sys.executable, "-m", "device_plugin", *scene.arguments("-v=4")],
            stderr=subprocess.PIPE,
            bufsize=0,  # what was read ahead would be hidden from `select`
        ) as process,
    ):
        assert process.stderr
        try:
            awaited = {b"event=registered", b'event="ListAndWatch stream opened"', b"event=links"}
            while awaited:
                assert select.select([process.stderr], [], [], PATIENCE)[0], awaited
                line = process.stderr.readline()
                awaited -= {event for event in awaited if event in line}
            kubelet.wait_for_capacity(I915, 8)
            told = select.select([process.stderr], [], [], 3.0)[0]
            assert not told, process.stderr.readline()
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0


# What it cannot give


def test_after_a_reload_of_the_driver_under_a_mount_it_asks_to_be_started_anew(
    scene: Scene,
) -> None:
    dri = os.open(scene.node.root / "dev/dri", os.O_RDONLY | os.O_DIRECTORY)
    prefix = scene.directory / "p"
    (prefix / "dev").mkdir(parents=True)
    (prefix / "dev/dri").symlink_to(f"/proc/{os.getpid()}/fd/{dri}")
    (prefix / "sys").symlink_to(scene.node.root / "sys")
    with Kubelet(scene.kubelets) as kubelet, scene.plugin(f"-prefix={prefix}") as process:
        url = address(process)
        kubelet.wait_for_capacity(I915, 8)
        assert get(f"{url}/healthz")[0] == 200
        scene.node.reload_driver()
        gone = process.wait_for("/dev/dri here is one that is gone")
        assert "level=warning" in gone  # when it is in use
        code, text = get(f"{url}/healthz")
        assert (code, text.split(",")[0]) == (503, "/dev/dri here is one that is gone")
        while " and 7 more;" not in get(f"{url}/readyz")[1]:
            pass  # it may have looked when the new driver had not made every card yet
        code, text = get(f"{url}/readyz")
        assert code == 200, "kubelet knows it"
        assert text.startswith(
            "every GPU is unhealthy: /dev/dri/card1, /dev/dri/renderD128 are not there and 7 more;"
        )
        assert process.stop() == 0
    os.close(dri)
    # What a container that is started anew sees
    with Kubelet(scene.kubelets) as kubelet, scene.plugin() as process:
        kubelet.wait_for_capacity(I915, 8)
        assert get(f"{address(process)}/healthz")[0] == 200


def test_beside_what_intels_plugin_left_it_is_ready_and_says_what_to_remove(scene: Scene) -> None:
    scene.publish()
    (scene.directory / "cdi").mkdir()
    rival = scene.directory / "cdi/intel.cdi.k8s.io-gpu-card1.yaml"
    rival.write_text("devices:\n- name: card1\nkind: intel.cdi.k8s.io/gpu\n")
    with Kubelet(scene.kubelets) as kubelet, scene.plugin() as process:
        url = address(process)
        kubelet.wait_for_capacity(I915, 8)
        process.wait_for("event=registered")
        pod = kubelet.run_pod("pod", I915, 2)
        assert [device.container_path for device in pod.response.devices]
        assert len(pod.ids) == 2
        names = {device.name for device in pod.response.cdi_devices}
        cards = {id_.partition("-")[0] for id_ in pod.ids}
        assert names == {f"intel.cdi.k8s.io/gpu={card}" for card in cards - {"card1"}}
        code, text = get(f"{url}/readyz")
        assert (code, f"then rm {rival}; links in use" in text) == (200, True)
        assert "xelink_device_plugin_cdi_devices 7.0" in get(f"{url}/metrics")[1]
        told = json.loads(get(f"{url}/status.json")[1])
        assert any(doubt.endswith(f"then rm {rival}") for doubt in told["warnings"])
        assert {path.name for path in (scene.directory / "cdi").iterdir()} == {
            FILE_NAME,
            rival.name,
        }
        rival.unlink()
        process.wait_for("CDI devices are named again")
        while "then rm" in get(f"{url}/readyz")[1]:
            pass  # said, and on its way to kubelet
        assert kubelet.run_pod("another", I915, 1).response.cdi_devices
