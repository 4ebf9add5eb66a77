"""docs/not-linked.md: a Pod whose GPUs are not linked, and what each step of the page shows."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from device_plugin.history import Followed
from tests.deployment import api
from tests.deployment.guide import Shell, administrator, masked, needs_kubectl
from tests.deployment.pipeline import I915
from tests.deployment.rendering import ROOT, Document
from tests.processes import get, running
from xelink.inventory.workload_facts import Linked
from xelink.nfd.reader import FileState
from xelink.preference.decision import FALLBACK, NOTHING, POLICY
from xelink.simulators.kubelet.admission import AdmittedPod
from xelink.simulators.kubelet.kubelet import Kubelet
from xelink.simulators.node import tree
from xelink.simulators.node.blueprint import TreeBlueprint as Cards

PAGE = (ROOT / "docs" / "not-linked.md").read_text()
EXAMPLE = ROOT / "xelink" / "examples" / "eight.txt"
FREE = ("card3", "card5")


def shown(beginning: str) -> tuple[str, str]:
    """Give the commands of a block of the page, as one text, and what it shows below them."""
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (block,) = (each for each in blocks if each.startswith(f"$ {beginning}"))
    lines = block.splitlines(keepends=True)
    commands = "".join(line.removeprefix("$ ") for line in lines if line.startswith("$ "))
    return commands, "".join(line for line in lines if not line.startswith("$ "))


class Story(NamedTuple):
    """What the Pod was given, the plugin's log, and what its /readyz said."""

    pod: AdmittedPod
    log: str
    readyz: str


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    """Let Pods come until the only free GPUs are two without a link, and one that asks for two."""
    # Not pytest's directory: a unix socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="x") as name:
        directory = Path(name)
        tree.put(Cards(gpus=8, cards="shuffled"), directory / "n")
        plugin = (
            f"-prefix={directory / 'n'}",
            f"-plugin-dir={directory / 'k'}",
            f"-cdi-dir={directory / 'd'}",
            f"-label-file={EXAMPLE}",
            "-listen=127.0.0.1:0",
        )
        with Kubelet(directory / "k") as kubelet, running("device_plugin", *plugin) as process:
            kubelet.wait_for_allocatable(I915, 8)
            process.wait_for('state="in use"')
            for number in range(8):
                kubelet.run_pod(f"single-{number}", I915, 1)
            for single, pod in [*kubelet.pods.items()]:
                if pod.ids[0].partition("-")[0] in FREE:
                    kubelet.delete_pod(single)
            pod = kubelet.run_pod("two-gpus", I915, 2)
            process.wait_for("linked=none")
            log = "".join(f"{line}\n" for line in process.lines)
            listens = re.search(r"listen=(\S+)", log)
            assert listens
            yield Story(pod, log, get(f"http://{listens[1]}/readyz")[1])


def test_the_environment_is_as_shown(story: Story, tmp_path: Path) -> None:
    commands, output = shown("kubectl exec ")
    env = "".join(f"{name}={value}\n" for name, value in {"HOME": "/", **story.pod.env}.items())
    (tmp_path / "env").write_text(env)
    assert Shell(tmp_path).run(f"cat env | {commands.partition(' | ')[2]}") == output


def pod(name: str, app: str, namespace: str, node: str) -> Document:
    metadata = {"name": name, "namespace": namespace, "labels": {"app": app}}
    spec = {"nodeName": node, "containers": [{"name": app}]}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec}


@needs_kubectl
def test_the_line_of_the_allocation_is_found_on_the_pod_s_node_and_is_as_shown(
    story: Story, tmp_path: Path
) -> None:
    plugin = "xelink-device-plugin"
    objects = [
        pod("two-gpus", "job", "default", "node-1"),
        pod(f"{plugin}-other", plugin, "monitoring", "node-2"),
        pod(f"{plugin}-7xkcd", plugin, "monitoring", "node-1"),
    ]
    logs = {f"{plugin}-7xkcd": story.log, f"{plugin}-other": "another node's\n"}
    commands, output = shown("node=")
    with api.serving(objects, logs) as url:
        found = administrator(tmp_path, url).run(commands)
    assert masked(found) == masked(output)


def test_the_plugin_says_that_its_links_are_in_use(story: Story) -> None:
    assert shown("kubectl -n monitoring port-forward ")[1] == story.readyz


def first_column(title: str) -> str:
    """Give the first cells of the table in a section."""
    section = PAGE.partition(f"## {title}")[2].partition("\n## ")[0]
    return " ".join(re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)[1:])


def test_the_tables_name_every_word_that_the_plugin_may_say() -> None:
    told = {each.value for each in Linked}
    assert {*re.findall(r"`(\w+)`", first_column("1. What did it get"))} == told
    allocated = first_column("2. Was there a better set")
    assert {*re.findall(r"preference=(\w+)", allocated)} == {each.value for each in Followed}
    assert {*re.findall(r"decided=(\w+)", allocated)} == {NOTHING, POLICY, FALLBACK}
    states = {each.value for each in FileState}
    assert {*re.findall(r"`links ([a-z -]+)`", first_column("4. Does the plugin"))} == states
