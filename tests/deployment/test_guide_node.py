"""docs/install.md: what one sees when it works, when it does not, and when it is gone."""

import json
import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from device_plugin.simulator import tree
from device_plugin.simulator.blueprint import Blueprint as Cards
from device_plugin.simulator.kubelet import Kubelet
from sidecar.simulator import Blueprint, Simulator
from tests.deployment import api
from tests.deployment.chain import published
from tests.deployment.guide import (
    FEATURES_D,
    GUIDE,
    Shell,
    commands,
    daemon_set,
    needs_kubectl,
    shown,
)
from tests.deployment.rendering import ROOT, needs_kustomize
from tests.processes import Running, address, get, running

I915 = "gpu.intel.com/i915"


class Pipeline:
    """The sidecar and the plugin on a simulated node, until kubelet knows the GPUs."""

    def __init__(self, directory: Path, sidecar: Running, plugin: Running) -> None:
        self.labels = directory / "f" / "xpum-sidecar-labels.txt"
        self.sidecar = sidecar
        self.plugin = plugin


@contextmanager
def pipeline(gpus: int, *more: str) -> Iterator[tuple[Pipeline, Kubelet, Path]]:
    # Not pytest's directory: a unix socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="x") as name:
        directory = Path(name)
        labels = directory / "f" / "xpum-sidecar-labels.txt"
        for each in ("f", "d"):
            (directory / each).mkdir()
        tree.put(Cards(gpus=gpus), directory / "n")
        sidecar = [f"-tmp-dir-prefix={labels.parent}", f"-dst-file-path={labels}"]
        plugin = [
            f"-prefix={directory / 'n'}",
            f"-plugin-dir={directory / 'k'}",
            f"-cdi-dir={directory / 'd'}",
            f"-label-file={labels}",
            "-listen=127.0.0.1:0",
        ]
        with (
            Simulator(Blueprint(gpus=gpus).build()) as xpum,
            Kubelet(directory / "k") as kubelet,
            running(
                "sidecar",
                *sidecar,
                f"-xpum-port={xpum.port}",
                "-startup-delay=0",
                "-interval=1",
                "-listen=127.0.0.1:0",
                *more,
            ) as writer,
            running("device_plugin", *plugin) as reader,
        ):
            kubelet.wait_for_allocatable(I915, gpus)
            yield Pipeline(directory, writer, reader), kubelet, directory


@needs_kubectl
@needs_kustomize
def test_the_answers_of_kubectl_are_those_shown(tmp_path: Path) -> None:
    with pipeline(2) as (running, kubelet, _):
        running.sidecar.wait_for("labels published")
        labels = published(running.labels)
        allocatable = {I915: str(kubelet.allocatable(I915))}
    node = {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": "node-1",
            "labels": {**labels, "intel.feature.node.kubernetes.io/gpu": "true"},
        },
        "status": {"allocatable": allocatable},
    }
    (tmp_path / "without").mkdir()
    bare = {**node, "metadata": {"name": "node-1"}}
    with api.serving([node, daemon_set("http")]) as url, api.serving([bare]) as after:
        user = administrator(tmp_path, url)
        gone = shown("kubectl get nodes -l gpu.intel.com/xe-links.state ")
        for each in commands():
            if each.line.startswith(("kubectl get nodes ", "kubectl -n monitoring get ")):
                expected = "node/node-1\n" if each == gone else each.output
                assert user.run(each.line) == expected
        assert administrator(tmp_path / "without", after).run(gone.line) == gone.output == ""


def administrator(directory: Path, url: str) -> Shell:
    """Give a shell whose kubectl talks to this server."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": ""}}],
    }
    (directory / "config").write_text(yaml.safe_dump(config))
    return Shell(directory, KUBECONFIG=str(directory / "config"))


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
    expected = shown("kubectl -n monitoring logs ").output
    assert masked("".join(f"{line}\n" for line in running.sidecar.lines)) == masked(expected)


def masked(text: str) -> str:
    """Take out times and ports."""
    text = re.sub(r"[0-9-]{10}T[0-9:.]+(Z|\+00:00)", "TIME", text)
    return re.sub(r"127\.0\.0\.1:[0-9]+", "ADDRESS", text)


def test_the_probes_answer_as_shown() -> None:
    with pipeline(2) as (running, _, _):
        url = address(running.sidecar)
        running.plugin.wait_for("event=started")
        plugin = re.search(r"listen=(\S+)", running.plugin.lines[-1])
        assert plugin
        running.plugin.wait_for('state="in use"')
        running.sidecar.wait_for("labels published")
        urls = {"http://127.0.0.1:29998": url, "http://127.0.0.1:29997": f"http://{plugin[1]}"}
        asked = [each for each in commands() if each.line.startswith("curl -s ")]
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
    ours = (*(ROOT / "sidecar").glob("*.py"), *(ROOT / "device_plugin").glob("*.py"))
    said = "".join(path.read_text() for path in ours)
    for words in (
        "labels not published",
        "the file of -cert does not contain its CA",
        "last scrape unknown, ",
        "is served by another process",
    ):
        assert f"`{words}" in GUIDE or f"{words}`" in GUIDE
        assert words in said


# Removal


@needs_kubectl
def test_a_resource_is_taken_off_the_node_and_nothing_else(tmp_path: Path) -> None:
    status = {kind: {"cpu": "8", I915: "0"} for kind in ("capacity", "allocatable")}
    node = {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "node-1"}, "status": status}
    (tmp_path / "node.json").write_text(json.dumps(node))
    line = shown("kubectl patch node ").line
    # Without a server there is no part of an object by itself.
    local = line.replace("node node-1 --subresource=status", "--local -f node.json -o yaml")
    after = yaml.safe_load(Shell(tmp_path).run(local))["status"]
    assert {kind: after[kind] for kind in status} == {kind: {"cpu": "8"} for kind in status}


def on(directory: Path, line: str) -> str:
    """Move a command from the node's directories to ours."""
    places = {
        FEATURES_D: "f",
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
        user.run(on(directory, shown("rm -f /var/run/cdi").line))
        assert user.attempt(on(directory, leftovers.line)).stdout == leftovers.output == ""


def test_nothing_is_left_after_a_crash_and_the_commands_for_it() -> None:
    with pipeline(2) as (running, _, directory):
        user = Shell(directory)
        running.plugin.wait_for('state="in use"')
        for process in (running.sidecar, running.plugin):
            process.stop(signal.SIGKILL)
        for beginning in (
            "rm -f /var/run/cdi",
            "rm -rf /etc",
            "rm -f /var/lib/kubelet",
            "rm -rf /var/lib/x",
        ):
            user.run(on(directory, shown(beginning).line))
        assert user.attempt(on(directory, shown("ls ").line)).stdout == ""
        assert not (directory / "n").exists()
