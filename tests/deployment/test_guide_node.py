"""docs/install.md: what one sees when it works, when it does not, and when it is gone."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

from tests.deployment.guide import FEATURES_D, GUIDE, Shell, commands, masked, shown
from tests.deployment.pipeline import I915, pipeline
from tests.deployment.rendering import ROOT
from tests.processes import address, get, running
from xelink.simulators.xpu_manager import Blueprint, Simulator


def test_a_pod_that_asks_for_two_gpus_is_told_what_is_shown() -> None:
    with pipeline(8) as (running, kubelet, _):
        running.plugin.wait_for('state="in use"')
        pod = kubelet.run_pod("two-gpus", I915, 2)
    told = [f"{name}={pod.env[name]}" for name in ("XELINK_GPUS", "XELINK_LINKS", "XELINK_LINKED")]
    paths = sorted(device.container_path for device in pod.response.devices)
    lines = [*told, *(f"{path} opens" for path in paths)]
    assert "\n".join(lines) + "\n" == shown("kubectl -n xelink-demo logs two-gpus").output


def test_the_log_is_as_shown() -> None:
    with pipeline(2) as (running, _, _):
        running.sidecar.wait_for("labels published")
    expected = shown("kubectl -n monitoring logs ", "-c xelink-sidecar").output
    assert masked("".join(f"{line}\n" for line in running.sidecar.lines)) == masked(expected)


def test_the_probes_answer_as_shown() -> None:
    with pipeline(2) as (running, _, _):
        url = address(running.sidecar)
        running.plugin.wait_for("event=started")
        plugin = re.search(r"listen=(\S+)", running.plugin.lines[-1])
        assert plugin
        running.plugin.wait_for('state="in use"')
        running.sidecar.wait_for("labels published")
        urls = {"http://127.0.0.1:29998": url, "http://127.0.0.1:29997": f"http://{plugin[1]}"}
        asked = {each for each in commands() if each.line.startswith("curl -s ")}
        assert len(asked) == len(urls)
        for line, output in asked:
            base, _, path = line.removeprefix("curl -s ").rpartition("/")
            assert until_ready(f"{urls[base]}/{path}") == output


def until_ready(url: str) -> str:
    code, text = get(url)
    while code == 503:
        code, text = get(url)
    return text


# When it does not work


def test_without_the_host_s_network_there_are_gpus_and_no_links() -> None:
    lonely = Blueprint(gpus=2).build()
    with (
        Simulator(type(lonely)(lonely.gpus, lonely.links, host_network=False)) as xpum,
        running("sidecar", f"-xpum-port={xpum.port}", "-oneshot", "-dry-run") as process,
    ):
        assert process.wait() == 3
        lines = process.output.splitlines()
        assert {"gpu.intel.com/xe-links=", "gpu.intel.com/xe-links.state=none"} <= {*lines}
        assert "is XPU Manager's Pod on the host network" in "".join(process.lines)


def test_the_words_of_the_table_are_those_of_the_programs() -> None:
    ours = (
        path
        for part in ("xelink", "sidecar", "device_plugin")
        for path in (ROOT / part).rglob("*.py")
    )
    # An error of the scrape has the names of the program's options.
    said = "".join(path.read_text().replace("{cert}", "-cert") for path in ours)
    for words in (
        "labels not published",
        "the file of -cert does not contain its CA",
        "last scrape unknown, ",
        "is served by another process",
        "no CDI devices are named",
        "other specs define the same devices",
        "every GPU is unhealthy",
    ):
        assert f"`{words}" in GUIDE or f"{words}`" in GUIDE
        assert words in said


# From Intel's plugin to ours


def test_what_intels_plugin_leaves_behind_goes_by_the_command_shown() -> None:
    with pipeline(2) as (running, kubelet, directory):
        readyz = f"{address(running.plugin)}/readyz"
        left = [directory / f"d/intel.cdi.k8s.io-gpu-card{number}.yaml" for number in (1, 2)]
        for number, path in enumerate(left, start=1):
            path.write_text(f"devices:\n- name: card{number}\nkind: intel.cdi.k8s.io/gpu\n")
        said = running.plugin.wait_for("no CDI devices are named")
        assert all(str(path) in said for path in left)
        until_said(readyz, lambda text: "then rm" in text)
        assert not kubelet.run_pod("beside", I915, 1).response.cdi_devices
        Shell(directory).run(on(directory, shown("rm -f /var/run/cdi", ".yaml").line))
        assert not any(path.exists() for path in left)
        until_said(readyz, lambda text: "then rm" not in text)
        assert kubelet.run_pod("alone", I915, 1).response.cdi_devices


def until_said(url: str, true: Callable[[str], bool]) -> None:
    while not true(get(url)[1]):
        pass


# Removal


def on(directory: Path, line: str) -> str:
    """Move a command from the node's directories to ours."""
    places = {
        FEATURES_D: "f",
        str(Path(FEATURES_D).parent): "nfd",
        "/var/lib/kubelet/device-plugins": "k",
        "/var/run/cdi": "d",
        "/var/lib/xelink-demo": "n",
    }
    for place, ours in places.items():
        line = line.replace(place, str(directory / ours))
    return line


def test_nothing_is_left_after_an_orderly_removal() -> None:
    leftovers = shown("ls ")
    with pipeline(2, "-on-exit=remove") as (running, _, directory):
        user = Shell(directory)
        running.plugin.wait_for('state="in use"')
        assert len(user.attempt(on(directory, leftovers.line)).stdout.splitlines()) >= 4
        assert running.sidecar.stop() == 0
        assert running.plugin.stop() == 0
        assert user.attempt(on(directory, leftovers.line)).stdout != ""
        user.run(on(directory, shown("rm -f /var/run/cdi", "gpu.json").line))
        assert user.attempt(on(directory, leftovers.line)).stdout == leftovers.output == ""


def test_nothing_is_left_after_a_crash_and_the_commands_for_it() -> None:
    with pipeline(2) as (running, _, directory):
        user = Shell(directory)
        running.plugin.wait_for('state="in use"')
        for process in (running.sidecar, running.plugin):
            process.stop(signal.SIGKILL)
        for beginning, end in (
            ("rm -f /var/run/cdi", "gpu.json"),
            ("rm -rf /etc", ""),
            ("rm -f /var/lib/kubelet", ""),
            ("rm -rf /var/lib/x", ""),
        ):
            user.run(on(directory, shown(beginning, end).line))
        assert user.attempt(on(directory, shown("ls ").line)).stdout == ""
        assert not (directory / "n").exists()


def test_directories_go_when_nobody_uses_them(tmp_path: Path) -> None:
    user = Shell(tmp_path)
    places = [tmp_path / "nfd", tmp_path / "f", tmp_path / "d"]
    for place in places:
        place.mkdir()
    used = places[1] / "another.txt"
    used.touch()
    line = on(tmp_path, shown("rmdir ").line)
    user.run(line)
    assert [place.exists() for place in places] == [False, True, False]
    used.unlink()
    assert "nfd" in user.attempt(line).stderr
    assert not any(place.exists() for place in places)
