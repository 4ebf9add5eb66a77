"""systemd/: the units are valid and hardened, and let the daemons write what they write."""

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from device_plugin.settings import PluginSettings
from sidecar.settings import SidecarSettings
from tests.deployment import confined
from tests.deployment.confined import directives
from tests.deployment.guide import GUIDE, block
from tests.deployment.rendering import ROOT, is_ours, needs, pods, run
from tests.processes import Running, address, get
from xelink.daemon.flags import DaemonSettings, load
from xelink.simulators.kubelet.kubelet import Kubelet
from xelink.simulators.node.sysfs import NodeTree
from xelink.simulators.xpu_manager import Blueprint, Simulator

UNITS = sorted((ROOT / "systemd").glob("*.service"))
SETTINGS: Mapping[str, type[DaemonSettings]] = {
    "xelink-sidecar": SidecarSettings,
    "xelink-device-plugin": PluginSettings,
}
THRESHOLD = 20  # tenths: an exposure below 2 of 10

each_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
needs_systemd = needs("systemd-analyze")
needs_filters = pytest.mark.skipif(
    not confined.is_possible(), reason="no libseccomp or no systemd, or not root"
)


@needs_systemd
@each_unit
def test_systemd_takes_the_unit_without_a_word(unit: Path, tmp_path: Path) -> None:
    # It looks for the program, which is not installed here.
    here = shutil.which("true")
    mine = tmp_path / unit.name
    mine.write_text(
        re.sub(r"^ExecStart=\S+", f"ExecStart={here}", unit.read_text(), flags=re.MULTILINE)
    )
    assert run("bash", "-c", f"systemd-analyze verify {mine} 2>&1") == ""


@needs_systemd
@each_unit
def test_systemd_finds_the_unit_hardened(unit: Path) -> None:
    told = run(
        *("systemd-analyze", "security", "--no-pager", "--offline=yes"),
        *(f"--threshold={THRESHOLD}", str(unit)),
    )
    exposure = re.search(r"exposure level for \S+: ([\d.]+) OK", told)
    assert exposure
    assert "`OK`, below 2 of 10" in " ".join(GUIDE.split())


@each_unit
def test_the_unit_starts_the_program_with_what_it_knows(unit: Path) -> None:
    program, *arguments = directives(unit)["ExecStart"][0].split()
    assert program == f"/opt/xelink/bin/{unit.stem}"
    assert load(SETTINGS[unit.stem], arguments).warnings == ()


def test_each_unit_writes_where_its_program_does_and_nowhere_else() -> None:
    sidecar, plugin = load(SidecarSettings, []).settings, load(PluginSettings, []).settings
    places = {unit.stem: directives(unit) for unit in UNITS}
    told = places["xelink-sidecar"]
    assert told["ReadWritePaths"] == [str(sidecar.dst_file_path.parent)]
    assert told["ReadWritePaths"] == [str(sidecar.tmp_dir_prefix)]
    assert told["ReadWritePaths"] == [f"/etc/{told['ConfigurationDirectory'][0]}"]
    told = places["xelink-device-plugin"]
    assert told["ReadWritePaths"] == [str(plugin.plugin_dir)]
    assert str(plugin.cdi_dir) == f"/var/run/{told['RuntimeDirectory'][0]}"  # /run, by a link
    assert told["RuntimeDirectoryPreserve"] == ["yes"]
    assert all(each["ProtectSystem"] == ["strict"] for each in places.values())


@each_unit
def test_the_unit_has_no_capability_and_opens_no_device(unit: Path) -> None:
    told = directives(unit)
    assert told["CapabilityBoundingSet"] == told["AmbientCapabilities"] == [""]
    assert told["NoNewPrivileges"] == ["yes"]
    assert told["DevicePolicy"] == ["closed"]
    assert "DeviceAllow" not in told
    # The plugin could not see the GPUs' nodes in a /dev of its own.
    assert told.get("PrivateDevices") == (None if "plugin" in unit.stem else ["yes"])


@each_unit
def test_the_unit_speaks_to_whom_its_program_does(unit: Path) -> None:
    (families,) = directives(unit)["RestrictAddressFamilies"]
    # kubelet and XPU Manager 2.x are at sockets of the plugin's node, XPU Manager 1.x at a port.
    own = {"AF_UNIX"} if "plugin" in unit.stem else {"AF_NETLINK"}
    assert {*families.split()} == {"AF_INET", "AF_INET6", *own}


@each_unit
def test_however_the_program_ends_it_is_started_again_and_never_given_up(unit: Path) -> None:
    told = directives(unit)
    assert told["Restart"] == ["always"]
    assert told["StartLimitIntervalSec"] == ["0"]
    # Not at once, again and again; and soon, as no Pod gets a GPU meanwhile.
    assert 1 <= int(told["RestartSec"][0]) <= 10


@each_unit
def test_the_unit_has_the_memory_of_the_container(unit: Path) -> None:
    overlay = "http" if unit.stem == "xelink-sidecar" else "plugin-only"
    (limits,) = (
        each["resources"]["limits"]
        for pod in pods(overlay)
        for each in pod.containers
        if is_ours(each)
    )
    assert directives(unit)["MemoryMax"] == [limits["memory"].removesuffix("i")]


def test_the_drop_in_of_the_guide_opens_what_it_says() -> None:
    drop_in = block("ini", "systemctl edit")
    variable = re.search(r"^Environment=XELINK_SIDECAR_(\w+)=(\S+)$", drop_in, re.MULTILINE)
    assert variable
    load(SidecarSettings, [f"-{variable[1].lower()}={variable[2]}"])
    for unit in UNITS:  # to which the drop-in adds
        assert directives(unit)["IPAddressDeny"] == ["any"]
        assert directives(unit)["IPAddressAllow"] == ["localhost"]
    allowed = re.search(r"^IPAddressAllow=(\S+)$", drop_in, re.MULTILINE)
    assert allowed
    assert ip_address(allowed[1]).version == 4


@contextmanager
def below_filters_of(unit: str, module: str, *arguments: str) -> Iterator[Running]:
    """Run a daemon with what its unit leaves it, and see that it has no more."""
    wrapper = [sys.executable, "-m", confined.__name__, str(ROOT / f"systemd/{unit}.service")]
    with Running(module, *arguments, before=tuple(wrapper)) as process:
        url = address(process)
        told = Path(f"/proc/{process.process.pid}/status").read_text()
        assert re.search(r"^CapEff:\s+0+$", told, re.MULTILINE)
        assert re.search(r"^CapBnd:\s+0+$", told, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", told, re.MULTILINE)
        assert re.search(r"^Seccomp:\s+2$", told, re.MULTILINE)
        yield process
        assert (
            get(f"{url}/healthz")[0] == get(f"{url}/readyz")[0] == get(f"{url}/metrics")[0] == 200
        )
        assert process.stop() == 0
    assert not [line for line in process.lines if "level=error" in line]


@needs_filters
def test_the_sidecar_lives_with_what_the_unit_leaves_it(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    with (
        Simulator(Blueprint(gpus=3, tiles=2).build()) as xpum,
        below_filters_of(
            "xelink-sidecar",
            "sidecar",
            f"-xpum-port={xpum.port}",
            f"-tmp-dir-prefix={tmp_path}",
            f"-dst-file-path={labels}",
            "-startup-delay=0",
            "-listen=127.0.0.1:0",
        ) as sidecar,
    ):
        sidecar.wait_for("labels published")
        assert labels.read_bytes()


@needs_filters
def test_the_device_plugin_lives_with_what_the_unit_leaves_it() -> None:
    # Not pytest's directory: a unix socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        NodeTree.eight_max_1550(directory / "n")
        (directory / "k").mkdir()
        with (
            Kubelet(directory / "k") as kubelet,
            below_filters_of(
                "xelink-device-plugin",
                "device_plugin",
                f"-prefix={directory / 'n'}",
                f"-plugin-dir={directory / 'k'}",
                f"-label-file={directory / 'labels'}",
                f"-cdi-dir={directory / 'cdi'}",
                "-listen=127.0.0.1:0",
            ),
        ):
            kubelet.wait_for_capacity("gpu.intel.com/i915", 8)
            assert len(kubelet.run_pod("trainer", "gpu.intel.com/i915", 2).ids) == 2
            assert [*(directory / "cdi").iterdir()]
