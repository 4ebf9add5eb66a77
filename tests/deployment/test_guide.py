"""docs/install.md: what it names is there, and each of its commands is accounted for.

A command is either run in a test, as far as that goes without a cluster, or named with the reason.
"""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from sidecar.settings import SidecarSettings
from tests.deployment.chain import container
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
from tests.deployment.rendering import (
    OVERLAYS,
    ROOT,
    WORKLOADS,
    Document,
    kustomizations,
    needs_kustomize,
    render,
)
from tests.deployment.test_schemas import VERSIONS
from xelink.daemon.flags import load

CHANGES = "it changes a cluster; what it leads to is in tests/e2e"
KIND = "it makes a cluster, or loads an image into one"
FETCHES = "it fetches a release of others, which a test below holds to what is known here"
IMAGE = "it needs a tool that builds images; tools/image_test.py builds and runs one"
NODE = "it changes the machine that it runs on"
INDEX = "it needs a package index; .ci/run installs the wheel"

ELSEWHERE = {
    "kubectl create namespace monitoring": CHANGES,
    "kubectl apply -f https://github.com/cert-manager/cert-manager/releases/download/v1.21.2/"
    "cert-manager.yaml": FETCHES,
    "kubectl delete -f https://github.com/cert-manager/cert-manager/releases/download/v1.21.2/"
    "cert-manager.yaml": FETCHES,
    "curl -fsSL https://github.com/kubernetes-sigs/node-feature-discovery/archive/refs/tags/"
    "v0.19.0.tar.gz | tar -xz": FETCHES,
    "kubectl apply -k node-feature-discovery-0.19.0/deployment/overlays/default": FETCHES,
    "kubectl apply -k overlays/base": CHANGES,
    "kubectl apply -k overlays/http": CHANGES,
    "kubectl apply -k overlays/plugin-only": CHANGES,
    "kubectl apply -k overlays/standalone": CHANGES,
    "kubectl apply -k overlays/cert-manager": CHANGES,
    "kubectl apply -k overlays/companion": CHANGES,
    "kubectl apply -k overlays/monitoring": CHANGES,
    "kubectl -n monitoring apply -f overlays/cert-manager/certificates.yaml": CHANGES,
    "kubectl apply -k overlays/demo": CHANGES,
    "kubectl apply -f overlays/demo/pod.yaml": CHANGES,
    "kubectl delete -f overlays/demo/pod.yaml": CHANGES,
    "kubectl delete -k overlays/http": CHANGES,
    "kubectl delete -k overlays/cert-manager": CHANGES,
    "kubectl delete -k overlays/companion": CHANGES,
    "kubectl delete -k overlays/companion-cert-manager": CHANGES,
    "kubectl delete -k overlays/monitoring": CHANGES,
    "kubectl delete -k overlays/plugin-only": CHANGES,
    "kubectl delete -k overlays/standalone": CHANGES,
    "kubectl delete -k overlays/demo": CHANGES,
    "kubectl delete namespace monitoring": CHANGES,
    "kubectl delete gpudeviceplugins --all": CHANGES,
    "kubectl -n default delete daemonset intel-gpu-plugin": CHANGES,
    "kubectl -n monitoring delete --ignore-not-found -f overlays/cert-manager/certificates.yaml": (
        CHANGES
    ),
    "kubectl -n monitoring delete --ignore-not-found secret xpum-ca xpum-server-cert": CHANGES,
    "kubectl -n monitoring delete --ignore-not-found podmonitor/xelink prometheusrule/xelink "
    "configmap/xelink-dashboard": CHANGES,
    "kubectl -n monitoring rollout undo daemonset intel-xpumanager": CHANGES,
    "kubectl diff -k overlays/http": "it compares with a cluster",
    "kind create cluster": KIND,
    "kind delete cluster": KIND,
    "kind load image-archive xelink.tar": KIND,
    "make image IMAGE=docker.io/library/xelink:0.1.0": IMAGE,
    "make image IMAGE=registry.example.com/xelink:0.1.0": IMAGE,
    "podman push registry.example.com/xelink:0.1.0": IMAGE,
    "podman save --output xelink.tar docker.io/library/xelink:0.1.0": IMAGE,
    "make wheel": INDEX,
    "python3 -m venv /opt/xelink": INDEX,
    "/opt/xelink/bin/pip install --no-deps --require-hashes -r requirements.lock": INDEX,
    "/opt/xelink/bin/pip install --no-deps dist/xelink-*.whl": INDEX,
    "/opt/xelink/bin/pip check": INDEX,
    "systemctl enable --now xelink-sidecar xelink-device-plugin": NODE,
    "install -m 644 systemd/xelink-sidecar.service systemd/xelink-device-plugin.service "
    "/etc/systemd/system/": NODE,
    "systemctl disable --now xelink-sidecar xelink-device-plugin": NODE,
    "systemctl daemon-reload": NODE,
    "/opt/xelink/bin/xelink doctor": NODE,
    "rm -rf /opt/xelink /etc/systemd/system/xelink-sidecar.service "
    "/etc/systemd/system/xelink-device-plugin.service": NODE,
    "restorecon -R /etc/kubernetes/node-feature-discovery": NODE,
    f"semanage fcontext --add --type container_file_t '{Path(FEATURES_D).parent}(/.*)?'": NODE,
    f"semanage fcontext --delete '{Path(FEATURES_D).parent}(/.*)?'": NODE,
}
"""Whole commands that are not run here, and why not."""

HERE = {
    "sed 's|image:": "the_patch_adds_the_sidecar_alone",
    f"{PATCH} --patch-file xpumanager.yaml": "the_patch_adds_the_sidecar_alone",
    f"{PATCH} --patch-file overlays/cert-manager/https.yaml": "https_by_hand",
    f"{PATCH} --patch-file overlays/cert-manager/no-https.yaml": "https_is_taken_out",
    f"{PATCH} -p ": "taken_out_again",
    "sed -n ": "prometheus_without_the_operator",
    "promtool check ": "prometheus_without_the_operator",
    "openssl req ": "https_by_hand",
    "openssl verify ": "https_by_hand",
    SECRET: "https_by_hand",
    "kubectl get nodes ": "the_answers_of_kubectl",
    "kubectl get daemonsets ": "the_answers_of_kubectl",
    "kubectl -n monitoring get daemonset ": "the_answers_of_kubectl",
    "kubectl get node node-1 ": "labels_that_nfd_left",
    "kubectl label ": "a_label_is_set",
    "kubectl -n monitoring rollout status ": "what_waits",
    "kubectl -n xelink-demo rollout status ": "what_waits",
    "kubectl -n cert-manager rollout status ": "what_waits",
    "kubectl -n monitoring wait ": "what_waits",
    "kubectl -n xelink-demo wait ": "what_waits",
    "kubectl -n xelink-demo logs two-gpus": "a_pod_that_asks_for_two",
    "kubectl -n monitoring logs ": "the_log_is_as_shown",
    "kubectl -n monitoring set image ": "the_image_and_the_settings_are_set",
    "kubectl -n monitoring set env ": "the_image_and_the_settings_are_set",
    "kubectl -n monitoring exec ": "the_calls_are_right",
    "curl -s http://127.0.0.1:2999": "the_probes_answer",
    "kubectl patch node ": "a_resource_is_taken_off",
    "rm -f /var/": "nothing_is_left",
    "rm -rf /etc/": "nothing_is_left",
    "rm -rf /var/": "nothing_is_left",
    "rmdir ": "directories_go",
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


PLUGIN = "xelink-device-plugin"


def is_workload(document: Document) -> bool:
    return document["kind"] in WORKLOADS


def name_of(document: Document) -> str:
    return f"{document['kind'].lower()}/{document['metadata']['name']}"


@needs_kustomize
def test_the_overlays_and_objects_that_are_named_are_there() -> None:
    for name in re.findall(r"(?<!/)overlays/[a-z-]+(?:/[a-z.-]+)?", GUIDE):
        assert (ROOT / name).exists(), name
    secrets = {
        each["spec"]["secretName"]
        for each in render("cert-manager")
        if each["kind"] == "Certificate"
    }
    deleted = shown("kubectl -n monitoring delete ", "xpum-server-cert").line
    assert set(deleted.split("secret ")[1].split()) == secrets
    watched = {name_of(each) for each in render("monitoring")}
    told = shown("kubectl -n monitoring delete --ignore-not-found podmonitor/").line
    assert {*told.split()[5:]} == watched - {name_of(each) for each in render("companion")}
    assert daemon_set("http")["metadata"]["namespace"] == "monitoring"
    assert daemon_set("demo")["metadata"]["name"] == "xelink-demo"


def of_the_site(directory: Path, kustomization: str) -> list[Document]:
    """Render the directory `site` beside a copy of the overlays."""
    shutil.copytree(OVERLAYS, directory / "overlays")
    (directory / "site").mkdir()
    (directory / "site/kustomization.yaml").write_text(kustomization)
    return list(yaml.safe_load_all(Shell(directory).run("kubectl kustomize site")))


@needs_kubectl
@pytest.mark.parametrize(
    "overlay", [*sorted(kustomizations("Kustomization")), "http\n- ../overlays/plugin-only"]
)
def test_a_kustomization_of_one_s_own_names_the_registry(overlay: str, tmp_path: Path) -> None:
    own = block("yaml", "registry.example.com")
    assert "- ../overlays/http\n" in own
    rendered = of_the_site(tmp_path, own.replace("/http\n", f"/{overlay}\n"))
    asked = re.search(r"`kustomize edit set image xelink=(\S+)`", GUIDE)
    assert asked
    for spec in (each["spec"]["template"]["spec"] for each in rendered if is_workload(each)):
        containers = [*spec.get("initContainers", ()), *spec["containers"]]
        images = {each["image"] for each in containers}
        assert "xelink:0.1.0" not in images
        assert (asked[1] in images) is (overlay != "base")


def changed(directory: Path, form: str) -> tuple[Document, Document]:
    """Give both containers of ours, as they are with one form of a changed flag, but the image."""
    own = block("yaml", "registry.example.com").replace("/http\n", "/companion-cert-manager\n")
    rendered = of_the_site(directory, own + block("yaml", form))
    (workload,) = filter(is_workload, rendered)
    sidecar, plugin = (container(workload, name) for name in ("xelink-sidecar", PLUGIN))
    sidecar["image"] = plugin["image"] = "xelink:0.1.0"
    return sidecar, plugin


def as_overlaid(name: str) -> Document:
    return container(daemon_set("companion-cert-manager"), name)


@needs_kubectl
def test_an_argument_takes_nothing_away_from_what_the_overlay_needs(tmp_path: Path) -> None:
    sidecar, plugin = changed(tmp_path, "args: [-lane-count=8")
    arguments = sidecar.pop("args")
    assert arguments == ["-lane-count=8", "-allow-subdeviceless-links"]
    assert load(SidecarSettings, arguments).warnings == ()
    assert sidecar == as_overlaid("xelink-sidecar")
    assert plugin == as_overlaid(PLUGIN)


@needs_kubectl
def test_a_variable_takes_nothing_away_from_what_the_overlay_needs(tmp_path: Path) -> None:
    sidecar, plugin = changed(tmp_path, "SHARED_DEV_NUM")
    plugin["env"].remove({"name": "XELINK_DEVICE_PLUGIN_SHARED_DEV_NUM", "value": "2"})
    assert sidecar == as_overlaid("xelink-sidecar")
    assert plugin == as_overlaid(PLUGIN)


@needs_kubectl
def test_a_file_of_flags_takes_nothing_away_from_what_the_overlay_needs(tmp_path: Path) -> None:
    sidecar, plugin = changed(tmp_path, "configMapGenerator")
    sidecar["env"].remove({"name": "XELINK_SIDECAR_CONFIG_FILE", "value": "/flags/flags.yaml"})
    sidecar["volumeMounts"].remove({"name": "flags", "mountPath": "/flags", "readOnly": True})
    assert sidecar == as_overlaid("xelink-sidecar")
    assert plugin == as_overlaid(PLUGIN)


@needs_kubectl
def test_xpu_manager_s_containers_get_requests_and_limits(tmp_path: Path) -> None:
    both = block("yaml", "registry.example.com") + block("yaml", "requests:")
    (rendered,) = filter(is_workload, of_the_site(tmp_path, both))
    before = daemon_set("http")
    for name in ("xpumd", "python-exporter"):
        own = container(rendered, name)
        assert {*own["resources"]["requests"]} == {"cpu", "memory"}
        limits = own["resources"]["limits"]
        assert limits.pop("memory")
        assert limits == container(before, name).get("resources", {}).get("limits", {})
        del own["resources"]
        rest = container(before, name)
        rest.pop("resources", None)
        assert own == rest


def test_a_namespace_that_is_made_may_have_what_the_pods_need() -> None:
    (enforced,) = (
        each["metadata"]["labels"] for each in render("demo") if each["kind"] == "Namespace"
    )
    ((label, level),) = enforced.items()
    lines = [each.line for each in commands()]
    made = lines.index("kubectl create namespace monitoring")
    assert lines[made + 1] == f"kubectl label namespace monitoring {label}={level}"
    assert f"kubectl label namespace monitoring {label}-" in lines
    assert made < min(lines.index(each) for each in lines if each.startswith("kubectl apply -k"))


def test_the_calls_are_right() -> None:
    for line in re.findall(r"^\$ .* xelink-sidecar( -[^-].*)$", GUIDE, re.MULTILINE):
        assert load(SidecarSettings, line.split()).warnings == ()


def test_the_releases_of_others_are_those_that_our_tests_know() -> None:
    nfd = re.search(r"/tags/v([0-9.]+)\.tar\.gz", shown("curl -fsSL ").line)
    assert nfd
    assert f"node-feature-discovery-{nfd[1]}/" in shown("kubectl apply -k node-").line
    known = (ROOT / "tests/e2e/programs/nfd/go.mod").read_text()
    assert f"node-feature-discovery v{nfd[1]} " in known
    cert_manager = re.search(r"/download/(v[0-9.]+)/", shown("kubectl apply -f https:").line)
    assert cert_manager
    applied, deleted = shown("kubectl apply -f https:"), shown("kubectl delete -f https:")
    assert applied.line.replace(" apply ", " delete ") == deleted.line
    assert f"CERT_MANAGER={cert_manager[1]}\n" in (ROOT / "tools/deployment-tools.sh").read_text()
