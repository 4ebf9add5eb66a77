"""docs/install.md: what it names is there, and each of its commands is accounted for.

A command is either run in a test, as far as that goes without a cluster, or named with the reason.
"""

import re
import shutil
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from device_plugin.settings import PluginSettings
from service.flags import load
from sidecar.settings import SidecarSettings
from tests.deployment.chain import SIDECAR, container
from tests.deployment.guide import (
    FEATURES_D,
    GUIDE,
    PATCH,
    SECRET,
    Shell,
    block,
    commands,
    daemon_set,
    needs_kubectl,
    shown,
)
from tests.deployment.rendering import OVERLAYS, ROOT, needs_kustomize, render
from tests.deployment.test_schemas import VERSIONS

CHANGES = "it changes a cluster"
WAITS = "it waits for a cluster"
KIND = "it makes a cluster, or loads an image into one"
FETCHES = "it fetches a release of others, which a test below holds to what is known here"
IMAGE = "it needs a tool that builds images; tools/image_test.py builds and runs one"
NODE = "it changes the machine that it runs on"
INDEX = "it needs a package index; .ci/run installs the wheel"

ELSEWHERE = {
    "kubectl create namespace monitoring": CHANGES,
    "kubectl label namespace monitoring pod-security.kubernetes.io/enforce=privileged": CHANGES,
    "kubectl apply -f https://github.com/cert-manager/cert-manager/releases/download/v1.21.2/"
    "cert-manager.yaml": FETCHES,
    "curl -fsSL https://github.com/kubernetes-sigs/node-feature-discovery/archive/refs/tags/"
    "v0.19.0.tar.gz | tar -xz": FETCHES,
    "kubectl apply -k node-feature-discovery-0.19.0/deployment/overlays/default": FETCHES,
    "kubectl apply -k overlays/http": CHANGES,
    "kubectl apply -k overlays/cert-manager": CHANGES,
    "kubectl apply -k overlays/companion": CHANGES,
    "kubectl apply -k overlays/monitoring": CHANGES,
    "kubectl -n monitoring apply -f overlays/cert-manager/certificates.yaml": CHANGES,
    "kubectl apply -k overlays/demo": CHANGES,
    "kubectl apply -f overlays/demo/pod.yaml": CHANGES,
    "kubectl delete -k overlays/cert-manager": CHANGES,
    "kubectl delete -k overlays/demo": CHANGES,
    "kubectl delete namespace monitoring": CHANGES,
    "kubectl -n monitoring delete secret xpum-ca xpum-server-cert": CHANGES,
    "kubectl -n monitoring rollout undo daemonset intel-xpumanager": CHANGES,
    "kubectl diff -k overlays/http": "it compares with a cluster",
    "kubectl -n monitoring rollout status daemonset intel-xpumanager": WAITS,
    "kubectl -n xelink-demo rollout status daemonset xelink-demo": WAITS,
    "kubectl -n cert-manager rollout status deployment cert-manager-webhook": WAITS,
    "kubectl -n xelink-demo wait pod/two-gpus --for=jsonpath='{.status.phase}'=Succeeded": WAITS,
    "kind create cluster": KIND,
    "kind load image-archive xelink.tar": KIND,
    "make image IMAGE=docker.io/library/xelink:0.1.0": IMAGE,
    "make image IMAGE=registry.example.com/xelink:0.1.0": IMAGE,
    "podman push registry.example.com/xelink:0.1.0": IMAGE,
    "podman save --output xelink.tar docker.io/library/xelink:0.1.0": IMAGE,
    "make wheel": INDEX,
    "python3 -m venv /opt/xelink": INDEX,
    "/opt/xelink/bin/pip install --require-hashes -r requirements.lock": INDEX,
    "/opt/xelink/bin/pip install --no-deps dist/xelink-*.whl": INDEX,
    "/opt/xelink/bin/xelink-sidecar": INDEX,
    "systemctl enable --now xelink-sidecar": NODE,
    "systemctl disable --now xelink-sidecar": NODE,
    f"mkdir -p {FEATURES_D}": NODE,
    "rm -rf /opt/xelink /etc/systemd/system/xelink-sidecar.service": NODE,
    "restorecon -R /etc/kubernetes/node-feature-discovery": NODE,
    f"semanage fcontext --add --type container_file_t '{Path(FEATURES_D).parent}(/.*)?'": NODE,
}
"""Whole commands that are not run here, and why not."""

HERE = {
    "curl -fsSO https://git.example.com/": "a_patch_is_downloaded",
    "sed -i ": "a_patch_is_downloaded",
    f"{PATCH} --patch-file xpumanager.yaml": "a_patch_is_downloaded",
    f"{PATCH} --patch-file overlays/": "https_by_hand",
    f"{PATCH} -p ": "taken_out_again",
    "openssl req ": "https_by_hand",
    "openssl verify ": "https_by_hand",
    SECRET: "https_by_hand",
    "kubectl get nodes ": "the_answers_of_kubectl",
    "kubectl -n monitoring get daemonset ": "the_answers_of_kubectl",
    "kubectl -n xelink-demo logs two-gpus": "a_pod_that_asks_for_two",
    "kubectl -n monitoring logs ": "the_log_is_as_shown",
    "kubectl -n monitoring set image ": "the_image_and_the_end_are_set",
    "kubectl -n monitoring set env ": "the_image_and_the_end_are_set",
    "kubectl -n monitoring exec ": "the_calls_are_right",
    "curl -s http://127.0.0.1:2999": "the_probes_answer",
    "kubectl patch node ": "a_resource_is_taken_off",
    "rm -f /var/": "nothing_is_left",
    "rm -rf /etc/": "nothing_is_left",
    "rm -rf /var/": "nothing_is_left",
    "ls ": "nothing_is_left",
}
"""Beginnings of commands, and a part of the name of the test that runs them."""


@pytest.mark.parametrize("line", sorted({each.line for each in commands()}))
def test_a_command_is_run_here_or_has_a_reason_why_not(line: str) -> None:
    here = [beginning for beginning in HERE if line.startswith(beginning)]
    assert len(here) + (line in ELSEWHERE) == 1, "run it in a test, or say why not"


def test_the_lists_name_nothing_that_is_not_in_the_guide() -> None:
    lines = {each.line for each in commands()}
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_guide*.py"))
    assert lines >= ELSEWHERE.keys()
    for beginning, test in HERE.items():
        assert any(line.startswith(beginning) for line in lines), beginning
        assert re.search(rf"^def test_\w*{test}", tests, re.MULTILINE), test


# The overlays and files that are named


def test_the_versions_of_kubernetes_are_those_that_the_overlays_are_valid_in() -> None:
    match = re.search(
        r"^\| Kubernetes \| ([0-9.]+) or later \|.* against ([^C]+)\.", GUIDE, re.MULTILINE
    )
    assert match
    assert match[1] == VERSIONS[0]
    assert tuple(re.findall(r"\d\.\d+", match[2])) == VERSIONS


@pytest.mark.parametrize("link", re.findall(r"\]\(([^):]+)\)", GUIDE))
def test_the_links_of_the_guide_lead_somewhere(link: str) -> None:
    path, _, anchor = link.partition("#")
    target = ROOT / "docs" / path if path else ROOT / "docs/install.md"
    titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
    assert not anchor or anchor in {title.lower().replace(" ", "-") for title in titles}


@needs_kustomize
def test_the_overlays_and_objects_that_are_named_are_there() -> None:
    for name in re.findall(r"(?<!/)overlays/[a-z-]+(?:/[a-z.-]+)?", GUIDE):
        assert (ROOT / name).exists(), name
    secrets = {
        each["spec"]["secretName"]
        for each in render("cert-manager")
        if each["kind"] == "Certificate"
    }
    deleted = shown("kubectl -n monitoring delete secret ").line
    assert set(deleted.split("secret ")[1].split()) == secrets
    assert daemon_set("http")["metadata"]["namespace"] == "monitoring"
    assert daemon_set("demo")["metadata"]["name"] == "xelink-demo"


@needs_kubectl
def test_a_kustomization_of_one_s_own_names_the_registry(tmp_path: Path) -> None:
    shutil.copytree(OVERLAYS, tmp_path / "overlays")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/kustomization.yaml").write_text(block("yaml", "registry.example.com"))
    rendered = yaml.safe_load(Shell(tmp_path).run("kubectl kustomize site"))
    assert container(rendered, SIDECAR)["image"] == "registry.example.com/xelink:0.1.0"
    image = re.search(r"`kustomize edit set image xelink=(\S+)`", GUIDE)
    assert image
    assert image[1] == container(rendered, SIDECAR)["image"]


def test_a_namespace_that_is_made_may_have_what_the_pods_need() -> None:
    (enforced,) = (
        each["metadata"]["labels"] for each in render("demo") if each["kind"] == "Namespace"
    )
    ((label, level),) = enforced.items()
    lines = [each.line for each in commands()]
    made = lines.index("kubectl create namespace monitoring")
    assert lines[made + 1] == f"kubectl label namespace monitoring {label}={level}"
    assert made < min(lines.index(each) for each in lines if each.startswith("kubectl apply -k"))


def test_the_calls_are_right() -> None:
    for line in re.findall(r"^\$ .* xelink-sidecar( -[^-].*)$", GUIDE, re.MULTILINE):
        assert load(SidecarSettings, line.split()).warnings == ()
    unit = ConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # as its documentation says
    unit.read_string(block("ini", "ExecStart"))
    program, *arguments = unit["Service"]["ExecStart"].split()
    assert program == "/opt/xelink/bin/xelink-sidecar"
    settings = load(SidecarSettings, arguments).settings
    assert unit["Service"]["ReadWritePaths"] == str(settings.dst_file_path.parent) == FEATURES_D
    plugin = load(PluginSettings, []).settings
    assert f"`ReadWritePaths={plugin.plugin_dir} {plugin.cdi_dir}`" in " ".join(GUIDE.split())


def test_the_releases_of_others_are_those_that_our_tests_know() -> None:
    nfd = re.search(r"/tags/v([0-9.]+)\.tar\.gz", shown("curl -fsSL ").line)
    assert nfd
    assert f"node-feature-discovery-{nfd[1]}/" in shown("kubectl apply -k node-").line
    known = (ROOT / "tests/e2e/programs/nfd/go.mod").read_text()
    assert f"node-feature-discovery v{nfd[1]} " in known
    cert_manager = re.search(r"/download/(v[0-9.]+)/", shown("kubectl apply -f https:").line)
    assert cert_manager
    assert f"CERT_MANAGER={cert_manager[1]}\n" in (ROOT / "tools/deployment-tools.sh").read_text()
