"""IPv6 alone, both families, IPv4 alone: who listens is reached, and what is not there is told."""

import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment.chain import EXPORTER, SIDECAR, call, container, exporting
from tests.deployment.rendering import needs_kustomize, render
from tests.faults.shim import LackingError, Shim
from tests.faults.test_listen import MANIFESTS, arguments
from tests.networks import (
    ADDRESS,
    IPV6_ALONE,
    IPV6_NODE,
    Namespace,
    namespace,
    needs_both_families,
    needs_namespaces,
)
from tests.processes import Running, address, get
from xelink.simulators.xpu_manager import Blueprint, Serving, Simulator

ASK = """
import json, sys, urllib.error, urllib.request
told = {}
for url in sys.argv[1:]:
    try:
        told[url] = urllib.request.urlopen(url, timeout=20).status
    except urllib.error.HTTPError as error:
        told[url] = error.code
    except OSError as error:
        told[url] = str(error)
print(json.dumps(told))
"""

each_daemon = pytest.mark.parametrize("module", MANIFESTS)


def asked(inside: Namespace, *urls: str) -> list[object]:
    """Ask from inside a namespace; give each status, or what went wrong."""
    told = json.loads(inside.run("python3", "-c", ASK, *urls))
    return [told[url] for url in urls]


@pytest.fixture
def ipv6_alone() -> Iterator[Namespace]:
    with namespace(*IPV6_ALONE) as inside:
        yield inside


@pytest.fixture
def ipv6_node() -> Iterator[Namespace]:
    with namespace(*IPV6_NODE) as inside:
        yield inside


@needs_namespaces
@each_daemon
def test_with_ipv6_alone_a_port_is_reached_at_loopback_and_at_the_node_s_address(
    module: str, tmp_path: Path, ipv6_alone: Namespace
) -> None:
    words = [*arguments(module, tmp_path), "-listen=:0"]
    with Running(module, *words, before=ipv6_alone.before) as daemon:
        port = address(daemon).rpartition(":")[2]
        urls = [f"http://[{host}]:{port}/healthz" for host in ("::1", ADDRESS)]
        assert asked(ipv6_alone, *urls) == [200, 200]
        assert daemon.stop() == 0


@needs_namespaces
@each_daemon
def test_a_family_that_is_not_there_is_told_in_one_line(
    module: str, tmp_path: Path, ipv6_alone: Namespace
) -> None:
    words = arguments(module, tmp_path)
    with Running(module, *words, before=ipv6_alone.before) as daemon:
        assert daemon.wait() == 1
        (line,) = (line for line in daemon.lines if "cannot listen" in line)
        assert "Cannot assign requested address; give -listen another address" in line
        assert not any("Traceback" in line for line in daemon.lines)


@needs_namespaces
@needs_kustomize
def test_on_an_ipv6_node_xpu_manager_is_scraped_and_kubelet_reaches_every_probe(
    tmp_path: Path, ipv6_node: Namespace
) -> None:
    (daemon_set,) = (each for each in render("http") if each["kind"] == "DaemonSet")
    gunicorn, sidecar = (container(daemon_set, name) for name in (EXPORTER, SIDECAR))
    words, _ = call(gunicorn, None, ADDRESS)
    with exporting(words, before=ipv6_node.before) as (exporter, port):
        (line,) = (each for each in exporter.lines if "Listening at: http" in each)
        at = re.search(rf"http://(\[{ADDRESS}\]:\d+)", line)
        assert at
        program = [*arguments("sidecar", tmp_path), "-startup-delay=0", "-interval=1"]
        own = [word for word in program if not word.startswith("-xpum-port")]
        with Running("sidecar", *own, f"-xpum-port={port}", before=ipv6_node.before) as running:
            loopback = address(running).removeprefix("http://")
            running.wait_for("labels published")
            probes = [
                *(gunicorn[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe")),
                *(sidecar[kind]["httpGet"] for kind in ("livenessProbe", "readinessProbe")),
            ]
            # Where a probe names no host, kubelet asks the Pod's address.
            hosts = [loopback if each.get("host") == "127.0.0.1" else at[1] for each in probes]
            urls = [
                f"http://{host}{each['path']}" for host, each in zip(hosts, probes, strict=True)
            ]
            assert asked(ipv6_node, *urls) == [200] * 4
            assert running.stop() == 0


@needs_namespaces
def test_the_simulated_xpu_manager_serves_both_families(ipv6_alone: Namespace) -> None:
    with Running(
        "xelink.simulators.xpu_manager", "--bind=::", "--port=0", before=ipv6_alone.before
    ) as simulator:
        assert simulator.process.stdout
        port = simulator.process.stdout.readline().rpartition("http://[::1]:")[2].partition("/")[0]
        assert asked(ipv6_alone, f"http://[{ADDRESS}]:{port}/metrics") == [200]
        assert simulator.stop() == 0


@needs_both_families
def test_a_simulator_bound_to_both_families_is_reached_by_each() -> None:
    with Simulator(Blueprint().build(), Serving(bind="::")) as xpum:
        for host in ("127.0.0.1", "[::1]"):
            assert get(f"http://{host}:{xpum.port}/metrics")[0] == 200


@needs_both_families
@each_daemon
def test_with_both_families_one_port_is_reached_by_each(module: str, tmp_path: Path) -> None:
    with Running(module, *arguments(module, tmp_path), "-listen=:0") as daemon:
        port = address(daemon).rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            assert get(f"http://{host}:{port}/healthz")[0] == 200


@each_daemon
def test_where_the_kernel_has_no_ipv6_a_port_is_one_of_ipv4(module: str, tmp_path: Path) -> None:
    try:
        shim = Shim(tmp_path / "wrong", tmp_path)
    except LackingError as lacking:
        pytest.skip(str(lacking))
    shim.say("ipv6", errno.EAFNOSUPPORT)
    words = [*arguments(module, tmp_path), "-listen=:0"]
    with Running(module, *words, env={**shim.environment}) as daemon:
        port = address(daemon).rpartition(":")[2]
        assert get(f"http://127.0.0.1:{port}/healthz")[0] == 200
        assert daemon.process.poll() is None
        listening = Path(f"/proc/{daemon.process.pid}/net/tcp6").read_text()
        assert f":{int(port):04X} " not in listening
