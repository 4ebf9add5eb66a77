"""The chain that the overlays deploy: real gunicorn, real certificates, the real sidecar.

Gunicorn gets the very command of the rendered DaemonSet, and serves the simulator's body.
"""

import re
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.deployment.chain import (
    EXPORTER,
    SIDECAR,
    Chain,
    Secret,
    SecretVolume,
    call,
    certificate_volume,
    chain,
    container,
    exporting,
)
from tests.deployment.issuing import Issued, issue
from tests.deployment.rendering import render
from tests.networks import needs_both_families
from tests.patience import PATIENCE
from tests.processes import get

LINKS = "0.0-1.0_0.0-2.0_0.1-1.1_0.1-2.1_1.0-2.0_1.1-2.1"
EXPIRY = "xelink_sidecar_certificate_expiry_timestamp_seconds"
DAY = timedelta(days=1)
# Gunicorn keeps an idle connection for 2 s and the sidecar asks each 10 s, so each scrape makes a
# new one; when it asks each second, gunicorn must not keep them.
HURRY = {"GUNICORN_CMD_ARGS": "--keep-alive=0"}


class Overlay:
    """What `kubectl kustomize` makes of an overlay."""

    def __init__(self, name: str) -> None:
        documents = render(name)
        self.daemon_set = next(each for each in documents if each["kind"] == "DaemonSet")
        certificates = [each for each in documents if each["kind"] == "Certificate"]
        self.ca, self.leaf = (
            next((each for each in certificates if bool(each["spec"].get("isCA")) is is_ca), {})
            for is_ca in (True, False)
        )

    def certified(self, ca: Issued, life: timedelta = DAY) -> Issued:
        return issue(self.leaf, ca, life=life)

    def probes(self, name: str) -> Iterator[Mapping[str, Any]]:
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe := container(self.daemon_set, name).get(kind):
                yield probe["httpGet"]


class Node:
    """A directory with what kubelet mounts into the Pod's containers at /cert."""

    def __init__(self, overlay: Overlay, directory: Path, secret: Secret | None = None) -> None:
        self._overlay = overlay
        self._directory = directory
        self.volumes = {}
        for name in (EXPORTER, SIDECAR):
            volume = certificate_volume(overlay.daemon_set, name)
            if volume and secret:
                paths = {item["key"]: item["path"] for item in volume["items"]}
                self.volumes[name] = SecretVolume(directory / name, paths, secret)

    def update(self, secret: Secret, *names: str) -> None:
        """Change the Secret; kubelet tells each container in its own time."""
        for name in names or self.volumes:
            self.volumes[name].update(secret)

    @contextmanager
    def pod(self, env: Mapping[str, str] | None = None) -> Iterator[Chain]:
        """Run the two containers' calls."""
        calls = {}
        for name in (EXPORTER, SIDECAR):
            place = self.volumes[name].directory if self.volumes else None
            calls[name], _ = call(container(self._overlay.daemon_set, name), place)
        with chain(calls[EXPORTER], calls[SIDECAR], self._directory, env or {}) as running:
            yield running


@pytest.fixture(scope="module")
def secured() -> Overlay:
    return Overlay("cert-manager")


def test_only_the_port_and_the_place_of_the_certificate_differ_from_the_overlay(
    secured: Overlay, tmp_path: Path
) -> None:
    words, changes = call(container(secured.daemon_set, EXPORTER), tmp_path)
    assert words[0] == "gunicorn"
    assert list(changes) == [
        "127.0.0.1:29999",
        "[$(POD_IP)]:29999",
        "--certfile=/cert/tls.crt",
        "--keyfile=/cert/tls.key",
    ]
    assert list(call(container(secured.daemon_set, SIDECAR), tmp_path)[1]) == ["-cert=/cert/ca.crt"]
    plain, changes = call(container(Overlay("http").daemon_set, EXPORTER), None)
    assert list(changes) == ["127.0.0.1:29999", "[$(POD_IP)]:29999"]
    assert [word for word in words if not word.startswith(("--certfile=", "--keyfile="))] == plain


@needs_both_families
@pytest.mark.parametrize("pod_ip", ["127.0.0.2", "::1"], ids=["IPv4", "IPv6"])
def test_kubelet_s_probes_are_answered_at_the_pod_s_address_of_either_family(pod_ip: str) -> None:
    overlay = Overlay("http")
    words, _ = call(container(overlay.daemon_set, EXPORTER), None, pod_ip)
    with exporting(words) as (exporter, port):
        (line,) = (each for each in exporter.lines if "Listening at: http" in each)
        (other,) = set(re.findall(r"http://([0-9a-f.:\[\]]+):(\d+)", line)) - {
            ("127.0.0.1", str(port))
        }
        assert other[0].strip("[]") == pod_ip
        for probe in overlay.probes(EXPORTER):
            assert get(f"http://{':'.join(other)}{probe['path']}")[0] == 200


@pytest.mark.parametrize(
    ("name", "keys"), [(EXPORTER, {"tls.crt", "tls.key"}), (SIDECAR, {"ca.crt"})]
)
def test_a_container_mounts_of_the_certificate_s_secret_what_it_needs(
    secured: Overlay, name: str, keys: set[str]
) -> None:
    volume = certificate_volume(secured.daemon_set, name)
    assert volume
    assert volume["secretName"] == secured.leaf["spec"]["secretName"]
    assert {item["key"] for item in volume["items"]} == keys


def test_over_http_the_overlay_s_gunicorn_feeds_the_overlay_s_sidecar(tmp_path: Path) -> None:
    overlay = Overlay("http")
    with Node(overlay, tmp_path).pod() as running:
        assert running.wait_for_labels()["gpu.intel.com/xe-links"] == LINKS
        assert_probes_are_answered(overlay, running, ssl.create_default_context())


def test_over_https_the_overlay_s_gunicorn_feeds_the_overlay_s_sidecar(
    secured: Overlay, tmp_path: Path
) -> None:
    ca = issue(secured.ca)
    leaf = secured.certified(ca)
    with Node(secured, tmp_path, leaf.secret).pod() as running:
        assert running.wait_for_labels()["gpu.intel.com/xe-links"] == LINKS
        assert running.metric(EXPIRY) == leaf.expiry
        trust = ssl.create_default_context(cadata=ca.pem.decode())
        assert_probes_are_answered(secured, running, trust)


def assert_probes_are_answered(overlay: Overlay, running: Chain, trust: ssl.SSLContext) -> None:
    asked = list(overlay.probes(EXPORTER))
    assert [probe["path"] for probe in asked] == ["/metrics", "/healtz"]
    for probe in asked:
        scheme = probe.get("scheme", "HTTP").lower()
        url = f"{scheme}://127.0.0.1:{running.port}{probe['path']}"
        with urllib.request.urlopen(url, timeout=PATIENCE, context=trust) as answer:  # noqa: S310 - our own address
            assert answer.status == 200
    running.wait_until_ready()
    for probe in overlay.probes(SIDECAR):
        assert get(f"{running.probes}{probe['path']}") == (200, "ok\n")


def test_a_new_certificate_of_the_same_ca_is_served_and_accepted_without_a_restart(
    secured: Overlay, tmp_path: Path
) -> None:
    ca = issue(secured.ca)
    old, new = secured.certified(ca), secured.certified(ca, life=2 * DAY)
    node = Node(secured, tmp_path, old.secret)
    # With gunicorn's own keep-alive: its 2 s are over before the sidecar asks again.
    with node.pod({"XELINK_SIDECAR_INTERVAL": "5"}) as running:
        running.wait_for_labels()
        assert running.metric(EXPIRY) == old.expiry
        assert shown(running.port) == old.pem
        node.update(new.secret)
        assert shown(running.port) == new.pem
        running.wait_for_scrapes(3)
        assert running.metric(EXPIRY) == new.expiry
        running.assert_nothing_changed()
    assert refusals(running) == []


def shown(port: int) -> bytes:
    """The certificate that a new connection is shown."""
    text = ssl.get_server_certificate(("127.0.0.1", port), timeout=PATIENCE)
    return f"{text.rstrip()}\n".encode()


def refusals(running: Chain) -> list[str]:
    return [line for line in running.sidecar.lines if "no usable answer" in line]


@pytest.mark.parametrize("first", [EXPORTER, SIDECAR])
def test_a_new_ca_reaches_the_containers_in_either_order_while_the_labels_stand(
    secured: Overlay, tmp_path: Path, first: str
) -> None:
    old, new = (secured.certified(issue(secured.ca), life=life) for life in (DAY, 2 * DAY))
    node = Node(secured, tmp_path, old.secret)
    with node.pod(HURRY) as running:
        running.wait_for_labels()
        node.update(new.secret, first)
        running.sidecar.wait_for("reason=tls")
        running.wait_until_ready(ready=False)
        running.assert_nothing_changed()
        node.update(new.secret, SIDECAR if first == EXPORTER else EXPORTER)
        running.sidecar.wait_for("scrape result changed")
        running.wait_until_ready()
        assert running.metric(EXPIRY) == new.expiry
        running.assert_nothing_changed()
    assert len(refusals(running)) == 1


def test_a_new_ca_costs_no_scrape_where_both_are_trusted_for_a_while(
    secured: Overlay, tmp_path: Path
) -> None:
    old, new = (secured.certified(issue(secured.ca), life=life) for life in (DAY, 2 * DAY))
    both = {"ca.crt": old.secret["ca.crt"] + new.secret["ca.crt"]}
    node = Node(secured, tmp_path, old.secret)
    with node.pod(HURRY) as running:
        running.wait_for_labels()
        for secret, name in ((both, SIDECAR), (new.secret, EXPORTER), (new.secret, SIDECAR)):
            node.update(secret, name)
            running.wait_for_scrapes(3)
            running.wait_until_ready()
        assert running.metric(EXPIRY) == new.expiry
        running.assert_nothing_changed()
    assert refusals(running) == []


def test_a_wrong_ca_is_refused_and_nothing_is_published(secured: Overlay, tmp_path: Path) -> None:
    served, other = (secured.certified(issue(secured.ca)) for _ in range(2))
    node = Node(secured, tmp_path, served.secret)
    node.update(other.secret, SIDECAR)
    with node.pod(HURRY) as running:
        line = running.sidecar.wait_for("no usable answer")
        assert "reason=tls" in line
        assert "does not contain its CA" in line
        running.wait_until_ready(ready=False)
        assert not running.labels.exists()
        node.update(served.secret, SIDECAR)
        assert running.wait_for_labels()["gpu.intel.com/xe-links"] == LINKS


def test_a_key_that_does_not_fit_for_a_moment_costs_a_scrape_and_no_label(
    secured: Overlay, tmp_path: Path
) -> None:
    """Gunicorn reads two files, so the swap can come between them."""
    ca = issue(secured.ca)
    old, new = secured.certified(ca), secured.certified(ca)
    node = Node(secured, tmp_path, old.secret)
    with node.pod(HURRY) as running:
        running.wait_for_labels()
        node.update({**new.secret, "tls.crt": old.secret["tls.crt"]}, EXPORTER)
        running.sidecar.wait_for("reason=tls")
        running.assert_nothing_changed()
        node.update(new.secret)
        running.sidecar.wait_for("scrape result changed")
        running.assert_nothing_changed()
