"""docs/install.md: its patches and its HTTPS by hand do what they are said to do."""

import json
import threading
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from operator import itemgetter
from pathlib import Path

import yaml

from tests.deployment.chain import (
    EXPORTER,
    SIDECAR,
    Chain,
    SecretVolume,
    call,
    certificate_volume,
    chain,
    container,
)
from tests.deployment.guide import (
    GUIDE,
    PATCH,
    SECRET,
    Shell,
    daemon_set,
    masked,
    needs_kubectl,
    patched,
    shown,
)
from tests.deployment.rendering import OVERLAYS, Document, needs, needs_kustomize

pytestmark = [needs_kubectl, needs_kustomize]

needs_openssl = needs("openssl")


def test_the_patch_adds_the_sidecar_alone(tmp_path: Path) -> None:
    user = Shell(tmp_path)
    (tmp_path / "overlays").symlink_to(OVERLAYS)
    user.run(shown("sed 's|image:").line)
    before = daemon_set("base")
    line = shown(f"{PATCH} --patch-file xpumanager.yaml").line
    after = patched(user, line, before)
    ours = {**container(daemon_set("http"), SIDECAR), "image": "registry.example.com/xelink:0.1.0"}
    assert container(after, SIDECAR) == ours
    assert container(after, EXPORTER) == container(before, EXPORTER)
    names = [each["name"] for each in after["spec"]["template"]["spec"]["containers"]]
    assert sorted(names) == ["python-exporter", "xelink-sidecar", "xpumd"]


@contextmanager
def tree_server(directory: Path) -> Iterator[str]:
    handler = partial(QuietHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_kubectl_reads_no_patch_from_an_address(tmp_path: Path) -> None:
    user = Shell(tmp_path)
    (tmp_path / "before.json").write_text(json.dumps(daemon_set("base")))
    with tree_server(OVERLAYS) as url:
        address = f"{url}/http/xpumanager.yaml"
        done = user.attempt(f"kubectl patch --local -f before.json --patch-file {address}")
    assert "unable to read patch file" in done.stderr


def unchanged(directory: Path, overlay: str) -> Document:
    """Give an overlay's DaemonSet as kubectl writes it."""
    return patched(Shell(directory), f"{PATCH} -p '{{}}'", daemon_set(overlay))


def test_the_sidecar_is_taken_out_again_and_nothing_else(tmp_path: Path) -> None:
    line = shown(f"{PATCH} -p ", '"features-d","$patch":"delete"}]}}}}\'').line
    after = patched(Shell(tmp_path), line, daemon_set("http"))
    assert after["spec"]["template"] == unchanged(tmp_path, "base")["spec"]["template"]


def test_the_sidecar_is_taken_out_of_a_companion_whose_plugin_keeps_its_mounts(
    tmp_path: Path,
) -> None:
    line = shown(f"{PATCH} -p ", '"xelink-sidecar","$patch":"delete"}]}}}}\'').line
    after = patched(Shell(tmp_path), line, daemon_set("companion"))["spec"]["template"]["spec"]
    before = unchanged(tmp_path, "companion")["spec"]["template"]["spec"]
    before["containers"] = [each for each in before["containers"] if each["name"] != SIDECAR]
    assert after == before
    volumes = {each["name"] for each in after["volumes"]}
    mounted = {
        mount["name"] for each in after["containers"] for mount in each.get("volumeMounts", ())
    }
    assert mounted == volumes


def test_https_is_taken_out_again_and_nothing_else(tmp_path: Path) -> None:
    user = Shell(tmp_path)
    (tmp_path / "overlays").symlink_to(OVERLAYS)
    secured = patched(user, shown(f"{PATCH} --patch-file ", "/https.yaml").line, daemon_set("http"))
    cert = {"name": "XELINK_SIDECAR_CERT", "value": "/cert/ca.crt"}
    assert cert in container(secured, SIDECAR)["env"]
    after = patched(user, shown(f"{PATCH} --patch-file ", "/no-https.yaml").line, secured)
    assert ordered(after) == ordered(unchanged(tmp_path, "http"))


def ordered(found: Document) -> Document:
    """Give what is in the Pod; a strategic merge keeps no order of containers and volumes."""
    spec: Document = found["spec"]["template"]["spec"]
    for field in ("containers", "volumes"):
        spec[field] = sorted(spec[field], key=itemgetter("name"))
    return spec


def test_the_image_and_the_settings_are_set_at_the_sidecar_alone(tmp_path: Path) -> None:
    user, before = Shell(tmp_path), daemon_set("http")
    image = container(
        patched(user, shown("kubectl -n monitoring set image ").line, before), SIDECAR
    )
    assert image["image"] == "registry.example.com/xelink:0.1.0"
    for name, value in (("ON_EXIT", "remove"), ("LANE_COUNT", "8")):
        line = shown("kubectl -n monitoring set env ", f"XELINK_SIDECAR_{name}={value}").line
        after = patched(user, line, before)
        assert container(after, SIDECAR)["env"] == [
            *container(before, SIDECAR)["env"],
            {"name": f"XELINK_SIDECAR_{name}", "value": value},
        ]
        assert container(after, EXPORTER)["env"] == container(before, EXPORTER)["env"]


# HTTPS by hand


class ByHand:
    """What an administrator has after the commands of the guide: files, a Secret, a DaemonSet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.user = Shell(directory)
        (directory / "overlays").symlink_to(OVERLAYS)

    def certify(self, line: str | None = None) -> None:
        self.user.run(line or shown("openssl req ").line)

    def secret(self, line: str) -> dict[str, bytes]:
        manifest = yaml.safe_load(self.user.run(line))
        assert manifest["type"] == "kubernetes.io/tls"
        return {key: b64decode(value) for key, value in manifest["data"].items()}

    @contextmanager
    def deployed(self, secret: Mapping[str, bytes]) -> Iterator[tuple[Chain, list[SecretVolume]]]:
        """Run what the patched DaemonSet runs; give it with the volumes of its containers."""
        line = shown(f"{PATCH} --patch-file ", "/https.yaml").line
        after = patched(self.user, line, daemon_set("http"))
        calls, volumes = [], []
        for name in (EXPORTER, SIDECAR):
            volume = certificate_volume(after, name)
            assert volume
            assert volume["secretName"] == "xpum-server-cert"
            paths = {item["key"]: item["path"] for item in volume["items"]}
            volumes.append(SecretVolume(self.directory / name, paths, secret))
            calls.append(call(container(after, name), volumes[-1].directory)[0])
        hurry = {"GUNICORN_CMD_ARGS": "--keep-alive=0"}
        with chain(calls[0], calls[1], self.directory, hurry) as running:
            yield running, volumes


@needs_openssl
def test_https_by_hand_works_and_is_renewed_while_the_labels_stand(tmp_path: Path) -> None:
    site = ByHand(tmp_path)
    site.certify()
    verify = shown("openssl verify ")
    assert site.user.run(verify.line) == verify.output
    first = site.secret(f"{shown(SECRET, '=tls.crt').line} --dry-run=client -o yaml")
    with site.deployed(first) as (running, volumes):
        assert "gpu.intel.com/xe-links" in running.wait_for_labels()
        asked = shown("kubectl -n monitoring logs ", "source=")
        (tmp_path / "log").write_text("".join(f"{each}\n" for each in running.sidecar.lines))
        found = site.user.run(f"cat log | {asked.line.partition(' | ')[2]}")
        assert masked(found) == masked(asked.output)
        site.certify()
        line, _, rest = shown(SECRET, "kubectl apply -f -").line.partition(" | ")
        assert rest == "kubectl apply -f -"
        second = site.secret(line)
        assert second != first
        volumes[0].update(second)
        running.sidecar.wait_for("reason=tls")
        running.assert_nothing_changed()
        volumes[1].update(second)
        running.sidecar.wait_for("scrape result changed")
        running.assert_nothing_changed()


@needs_openssl
def test_a_certificate_with_a_common_name_alone_is_refused_as_the_table_says(
    tmp_path: Path,
) -> None:
    site = ByHand(tmp_path)
    line = shown("openssl req ").line
    line = line.replace("/CN=intel-xpumanager", "/CN=127.0.0.1")
    site.certify(line.replace(" -addext subjectAltName=IP:127.0.0.1", ""))
    secret = site.secret(f"{shown(SECRET, '=tls.crt').line} --dry-run=client -o yaml")
    assert site.user.attempt(shown("openssl verify ").line).returncode != 0
    with site.deployed(secret) as (running, _):
        told = running.sidecar.wait_for("no usable answer")
        assert "reason=tls" in told
        advice = "it needs subjectAltName=IP:127.0.0.1"
        assert advice in told
        assert f"`{advice}`" in GUIDE
        assert not running.labels.exists()
