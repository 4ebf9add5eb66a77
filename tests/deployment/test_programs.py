"""What a container is told, as the program in it understands it; and where kubelet probes it."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pytest
from gunicorn.config import Config  # type: ignore[import-untyped]  # it ships no types

from device_plugin.resources import Monitoring
from device_plugin.settings import PluginSettings
from sidecar.settings import FEATURES_D, SidecarSettings
from tests.deployment.rendering import (
    ROOT,
    Document,
    Pod,
    each_overlay,
    is_ours,
    kustomizations,
    mounts,
    needs_kustomize,
    pods,
    words,
)
from tests.patience import PATIENCE
from tests.processes import address, get, running
from xelink.daemon.flags import DaemonSettings, load
from xelink.daemon.setting_types import split_address
from xelink.kubelet.sockets import SocketName

pytestmark = needs_kustomize

SETTINGS: Mapping[str, type[DaemonSettings]] = {
    "xelink-sidecar": SidecarSettings,
    "xelink-device-plugin": PluginSettings,
}
MODULES = {"xelink-sidecar": "sidecar", "xelink-device-plugin": "device_plugin"}
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
XPUM_PATHS = {"/metrics", "/healtz"}
LOOPBACK = "127.0.0.1"


class Program(NamedTuple):
    """One of our daemons in a Pod."""

    pod: Pod
    container: Document
    settings: Any


def called(container: Document) -> tuple[type[DaemonSettings], list[str]] | None:
    """Tell which of our daemons a container runs, with which arguments; None for another one."""
    name, *arguments = words(container)
    return (SETTINGS[name], arguments) if name in SETTINGS else None


def environment(container: Document) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}


@pytest.fixture
def daemons(overlay: str, monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """Read the settings of each of our daemons in an overlay, as the daemon would."""
    found = []
    for pod in pods(overlay):
        for container in pod.containers:
            if call := called(container):
                with monkeypatch.context() as patch:
                    for name, value in environment(container).items():
                        patch.setenv(name, value)
                    loaded = load(*call)
                assert loaded.warnings == ()
                found.append(Program(pod, container, loaded.settings))
    return found


def only(daemons: list[Program], kind: type[DaemonSettings]) -> list[Program]:
    return [each for each in daemons if isinstance(each.settings, kind)]


def gunicorn(container: Document) -> Any:  # noqa: ANN401 - gunicorn ships no types
    """Read gunicorn's arguments with its own parser."""
    config = Config()
    read = config.parser().parse_args(words(container)[1:])
    assert read.args == ["xpum_rest_main:main()"]
    for name, value in vars(read).items():
        if name != "args" and value is not None:
            config.set(name, value)
    return config


def exporters(overlay: str) -> Iterator[tuple[Pod, Document, Any]]:
    for pod in pods(overlay):
        for container in pod.containers:
            if words(container)[0] == "gunicorn":
                yield pod, container, gunicorn(container)


def place(pod: Pod, container: Document, path: Path) -> tuple[Document, Document, PurePosixPath]:
    """Find the mount on which a container's path lies, its volume, and the path in that."""
    (best,) = [
        (mount, volume, PurePosixPath(path).relative_to(mount["mountPath"]))
        for mount, volume in mounts(pod, container)
        if PurePosixPath(path).is_relative_to(mount["mountPath"])
    ]
    return best


def assert_the_host_s(program: Program, directory: Path, *, writable: bool) -> None:
    """A directory that others on the host use has to be that of the host, by the same path."""
    mount, volume, inside = place(program.pod, program.container, directory)
    assert PurePosixPath(volume["hostPath"]["path"]) / inside == PurePosixPath(directory)
    assert bool(mount.get("readOnly")) is not writable


@each_overlay
def test_each_container_of_ours_starts_a_program_that_takes_its_arguments(
    overlay: str, daemons: list[Program]
) -> None:
    ours = [each for pod in pods(overlay) for each in pod.containers if is_ours(each)]
    others = [each for each in ours if called(each) is None]
    assert len(daemons) + len(others) == len(ours)
    for container in others:
        python, module, *arguments = words(container)
        assert (python, module) == ("python", "-m")
        # All is well but for the one flag that does not exist: nothing is started.
        done = subprocess.run(
            [sys.executable, "-m", *arguments, "--nonsense"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        (line,) = done.stderr.splitlines()
        assert "unrecognized arguments: --nonsense" in line


@each_overlay
def test_each_daemon_is_told_the_names_by_which_it_may_be_asked(overlay: str) -> None:
    daemons = [
        each
        for pod in pods(overlay)
        for each in pod.containers
        if is_ours(each) and called(each) is not None
    ]
    assert daemons or overlay == "base"
    for each in daemons:
        told = {
            entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"]
            for entry in each.get("env", ())
            if "valueFrom" in entry
        }
        assert told == {"NODE_NAME": "spec.nodeName", "POD_NAME": "metadata.name"}


@each_overlay
def test_kubelet_reaches_each_probe_of_ours(daemons: list[Program]) -> None:
    for pod, container, settings in daemons:
        host, port = split_address(settings.listen)
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        for probe in (container[kind]["httpGet"] for kind in PROBES if kind in container):
            assert ports.get(probe["port"], probe["port"]) == port
            assert probe.get("scheme", "HTTP") == "HTTP"
            # Without a host kubelet asks the Pod's address; on the host network that is the node's.
            if pod.on_host_network:
                assert probe["host"] == LOOPBACK
                assert host in {LOOPBACK, "", "0.0.0.0"}  # noqa: S104 - compared, not bound
            else:
                assert "host" not in probe
                assert host == ""


@each_overlay
def test_each_daemon_is_probed_for_life_and_for_readiness(daemons: list[Program]) -> None:
    for _, container, _ in daemons:
        paths = {kind: container[kind]["httpGet"]["path"] for kind in PROBES if kind in container}
        assert paths == {"livenessProbe": "/healthz", "readinessProbe": "/readyz"}
        assert all(container[kind].get("timeoutSeconds", 1) > 1 for kind in paths)


@pytest.mark.parametrize("program", MODULES)
def test_the_paths_that_are_probed_are_served(program: str, tmp_path: Path) -> None:
    paths = {
        container[kind]["httpGet"]["path"]
        for overlay in kustomizations("Kustomization")
        for pod in pods(overlay)
        for container in pod.containers
        if words(container)[0] == program
        for kind in PROBES
        if kind in container
    }
    files = (
        [f"-dst-file-path={tmp_path / 'labels.txt'}", f"-tmp-dir-prefix={tmp_path}"]
        if program == "xelink-sidecar"
        else [f"-prefix={tmp_path}", f"-plugin-dir={tmp_path}", "-cdi=false"]
    )
    with running(MODULES[program], "-listen=127.0.0.1:0", *files) as process:
        url = address(process)
        found = {path: get(url + path) for path in paths}
        # It lives, and has not published or registered yet.
        assert {path: code for path, (code, _) in found.items()} == {
            "/healthz": 200,
            "/readyz": 503,
        }
        assert found["/readyz"][1].strip()
        assert get(f"{url}/nothing")[0] == 404
        process.stop()


@each_overlay
def test_kubelet_reaches_each_probe_of_xpu_manager(overlay: str) -> None:
    for _, container, config in exporters(overlay):
        (loopback, port), (own, same) = config.address
        # The Pod's address, of either family, where kubelet probes; loopback, for the sidecar.
        assert (loopback, own, same) == ("127.0.0.1", "$(pod_ip)", port)  # gunicorn lowers it
        for probe in (container[kind]["httpGet"] for kind in PROBES if kind in container):
            assert {each["name"]: each["containerPort"] for each in container["ports"]}[
                probe["port"]
            ] == port
            assert probe["path"] in XPUM_PATHS
            assert (probe.get("scheme", "HTTP") == "HTTPS") is bool(config.certfile)


@each_overlay
def test_the_sidecar_scrapes_the_exporter_beside_it(overlay: str, daemons: list[Program]) -> None:
    for pod, _, config in exporters(overlay):
        for sidecar in only(daemons, SidecarSettings):
            assert sidecar.pod.workload["metadata"] == pod.workload["metadata"]
            assert sidecar.settings.xpum_port == config.address[0][1]
            assert bool(sidecar.settings.cert) is bool(config.certfile)


@each_overlay
def test_the_files_of_tls_are_mounted_and_the_trust_is_not_the_leaf(
    overlay: str, daemons: list[Program]
) -> None:
    def key(pod: Pod, container: Document, path: Path) -> str:
        mount, volume, inside = place(pod, container, path)
        assert mount["readOnly"] is True
        assert "subPath" not in mount, "kubelet never updates a file that is mounted alone"
        files: dict[str, str] = {item["path"]: item["key"] for item in volume["secret"]["items"]}
        return files[str(inside)]

    for pod, container, config in exporters(overlay):
        if config.certfile:
            assert key(pod, container, Path(config.certfile)) == "tls.crt"
            assert key(pod, container, Path(config.keyfile)) == "tls.key"
    for pod, container, settings in only(daemons, SidecarSettings):
        if settings.cert:
            assert key(pod, container, settings.cert) == "ca.crt"


@each_overlay
def test_the_sidecar_writes_where_nfd_reads(daemons: list[Program]) -> None:
    for sidecar in only(daemons, SidecarSettings):
        assert sidecar.settings.dst_file_path.parent == FEATURES_D
        # One mount: a rename from another one is refused.
        assert sidecar.settings.tmp_dir_prefix == FEATURES_D
        assert_the_host_s(sidecar, FEATURES_D, writable=True)


@each_overlay
def test_the_plugin_has_the_directories_that_it_needs(daemons: list[Program]) -> None:
    for plugin in only(daemons, PluginSettings):
        settings = plugin.settings
        assert_the_host_s(plugin, settings.plugin_dir, writable=True)
        assert_the_host_s(plugin, settings.label_file.parent, writable=False)
        if settings.cdi:
            assert_the_host_s(plugin, settings.cdi_dir, writable=True)
        mount, volume, inside = place(
            plugin.pod, plugin.container, settings.prefix / "dev" / "dri" / "card0"
        )
        assert mount["readOnly"] is True
        assert Path(volume["hostPath"]["path"]) / inside == (
            settings.device_root / "dev" / "dri" / "card0"
        )


@each_overlay
def test_the_plugin_reads_the_file_that_the_sidecar_beside_it_writes(
    daemons: list[Program],
) -> None:
    for plugin in only(daemons, PluginSettings):
        for sidecar in only(daemons, SidecarSettings):
            assert plugin.settings.label_file == sidecar.settings.dst_file_path
            assert plugin.settings.label_namespace == sidecar.settings.label_namespace


@each_overlay
def test_a_rollout_overlaps_only_where_two_plugins_can(
    overlay: str, daemons: list[Program]
) -> None:
    for pod in pods(overlay):
        strategy = pod.workload["spec"]["updateStrategy"]
        assert strategy["type"] == "RollingUpdate"
        surge, pause = (strategy["rollingUpdate"][key] for key in ("maxSurge", "maxUnavailable"))
        assert (surge == 0) is (pause != 0), "the API server takes exactly one of them"
        plugins = only(daemons, PluginSettings)
        can = (
            not pod.on_host_network  # where the old Pod still has the ports
            and all(each.settings.socket_name is SocketName.UNIQUE for each in plugins)
            and not only(daemons, SidecarSettings)  # two would write one file
        )
        assert bool(surge) is can, "a pause that need not be takes the node's GPUs away"
        assert surge in {0, 1}


@each_overlay
def test_a_rollout_goes_from_node_to_node(overlay: str) -> None:
    for pod in pods(overlay):
        pause = pod.workload["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"]
        assert pause in ({"100%"} if overlay == "demo" else {0, 1})


@each_overlay
def test_one_answer_that_is_late_restarts_no_container(overlay: str) -> None:
    for pod in pods(overlay):
        for container in pod.containers:
            if probe := container.get("livenessProbe"):
                assert probe.get("failureThreshold", 3) >= 3


@each_overlay
def test_one_bad_scrape_or_a_loss_to_be_confirmed_makes_no_pod_unready(
    daemons: list[Program],
) -> None:
    for sidecar in only(daemons, SidecarSettings):
        probe = sidecar.container["readinessProbe"]
        patience = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
        settings = sidecar.settings
        looks = settings.confirmations + 1  # one that is bad among those that confirm
        # By default a scrape takes far less than its timeout; one that does not is the bad one.
        assert patience >= looks * settings.interval + min(settings.timeout, settings.interval)
        assert patience <= settings.life / 3, "it is told long before the labels expire"


def test_the_plugin_of_its_own_pod_offers_what_xpumd_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ((_, plugin),) = [(pod, each) for pod in pods("plugin-only") for each in pod.containers]
    call = called(plugin)
    assert call
    with monkeypatch.context() as patch:
        for name, value in environment(plugin).items():
            patch.setenv(name, value)
        settings = load(*call).settings
    assert isinstance(settings, PluginSettings)
    (http,) = pods("http")
    asked = http.container("xpumd")["resources"]["limits"]
    assert asked == {"gpu.intel.com/i915_monitoring": "1"}
    assert settings.enable_monitoring
    assert settings.monitoring_mode is Monitoring.SPLIT


def test_without_tls_the_sidecar_reads_no_secret() -> None:
    (http,) = pods("http")
    assert not [name for name, volume in http.volumes.items() if "secret" in volume]
    assert words(http.container("xelink-sidecar")) == ["xelink-sidecar"]


def test_the_manifests_are_of_this_tree() -> None:
    scripts = (ROOT / "pyproject.toml").read_text()
    assert all(f"{program} = " in scripts for program in SETTINGS)
