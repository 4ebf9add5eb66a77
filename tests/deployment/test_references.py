"""What one object says of another: mounts of volumes, keys of Secrets, selectors, issuers."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.deployment.rendering import (
    WORKLOADS,
    Document,
    each_overlay,
    mounts,
    needs_kustomize,
    pods,
    render,
)

pytestmark = needs_kustomize

LONGEST_PORT_NAME = 15
WRITTEN_BY_A_CERTIFICATE = {"tls.crt", "tls.key", "ca.crt"}


def repeated(values: Sequence[object]) -> list[object]:
    return [value for value, times in Counter(values).items() if times > 1]


def of_kind(overlay: str, *kinds: str) -> list[Document]:
    return [each for each in render(overlay) if each["kind"] in kinds]


def name_of(document: Mapping[str, Any]) -> str:
    name: str = document["metadata"]["name"]
    return name


def keys(overlay: str) -> dict[tuple[str, str], set[str]]:
    """Give the keys of each ConfigMap and Secret that is there once the overlay is applied."""
    found = {
        (each["kind"], name_of(each)): {*each.get("data", ()), *each.get("stringData", ())}
        for each in of_kind(overlay, "ConfigMap", "Secret")
    }
    for certificate in of_kind(overlay, "Certificate"):
        found["Secret", certificate["spec"]["secretName"]] = WRITTEN_BY_A_CERTIFICATE
    return found


def references(value: object) -> Iterator[tuple[str, str, set[str]]]:
    """Find whatever a Pod takes from ConfigMaps and Secrets: kind, name, keys."""
    if isinstance(value, list):
        for each in value:
            yield from references(each)
    if not isinstance(value, dict):
        return
    for field, name_field, kind in (
        ("secret", "secretName", "Secret"),
        ("secret", "name", "Secret"),
        ("configMap", "name", "ConfigMap"),
        ("secretKeyRef", "name", "Secret"),
        ("configMapKeyRef", "name", "ConfigMap"),
        ("secretRef", "name", "Secret"),
        ("configMapRef", "name", "ConfigMap"),
    ):
        if isinstance(inner := value.get(field), dict) and name_field in inner:
            named = {item["key"] for item in inner.get("items", ())}
            yield kind, inner[name_field], named | ({inner["key"]} if "key" in inner else set())
    for each in value.values():
        yield from references(each)


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items()
    rules = selector.get("matchExpressions", ())
    assert all(rule["operator"] == "In" for rule in rules), "teach this test the operator"
    return wanted <= labels.items() and all(
        labels.get(rule["key"]) in rule["values"] for rule in rules
    )


@each_overlay
def test_each_mount_is_of_a_volume_and_each_volume_is_mounted(overlay: str) -> None:
    for pod in pods(overlay):
        used = {
            mount["name"]
            for container in pod.containers
            for mount in container.get("volumeMounts", ())
        }
        assert used == set(pod.volumes)


@each_overlay
def test_nothing_is_there_twice(overlay: str) -> None:
    for pod in pods(overlay):
        assert not repeated([volume["name"] for volume in pod.spec.get("volumes", ())])
        assert not repeated([container["name"] for container in pod.containers])
        ports = [port for each in pod.containers for port in each.get("ports", ())]
        assert not repeated([port["name"] for port in ports])
        assert not repeated([port["containerPort"] for port in ports])
        assert all(len(port["name"]) <= LONGEST_PORT_NAME for port in ports)
        for container in pod.containers:
            paths = [each["mountPath"].rstrip("/") for each in container.get("volumeMounts", ())]
            assert not repeated(paths)
            assert not repeated([each["name"] for each in container.get("env", ())])


@each_overlay
def test_a_path_of_the_host_is_mounted_under_one_name(overlay: str) -> None:
    for pod in pods(overlay):
        paths = [
            volume["hostPath"]["path"].rstrip("/")
            for volume in pod.volumes.values()
            if "hostPath" in volume
        ]
        assert not repeated(paths)


@each_overlay
def test_a_directory_of_others_is_made_by_us_only_where_that_helps(overlay: str) -> None:
    made = {"/etc/kubernetes/node-feature-discovery/features.d", "/var/run/cdi"}
    for pod in pods(overlay):
        for volume in pod.volumes.values():
            host = volume.get("hostPath", {})
            if host.get("type") == "DirectoryOrCreate" and overlay != "demo":
                assert host["path"].rstrip("/") in made
            if host.get("path") == "/var/lib/kubelet/device-plugins":
                assert host["type"] == "Directory"


@each_overlay
def test_each_port_that_a_probe_names_is_the_container_s(overlay: str) -> None:
    for pod in pods(overlay):
        for container in pod.containers:
            named = {port["name"] for port in container.get("ports", ())}
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                if kind in container:
                    assert container[kind]["httpGet"]["port"] in named


@each_overlay
def test_what_a_pod_takes_from_secrets_and_config_maps_is_there(overlay: str) -> None:
    there = keys(overlay)
    for pod in pods(overlay):
        for kind, name, wanted in references(pod.spec):
            assert (kind, name) in there
            assert wanted <= there[kind, name]


@each_overlay
def test_a_secret_s_files_are_named_and_a_key_only_its_server_s(overlay: str) -> None:
    for pod in pods(overlay):
        for container in pod.containers:
            for _, volume in mounts(pod, container):
                if "secret" in volume:
                    found = {item["key"] for item in volume["secret"]["items"]}
                    assert ("tls.key" in found) is (container["name"] == "python-exporter")


@each_overlay
def test_a_selector_finds_its_own_pods(overlay: str) -> None:
    for each in of_kind(overlay, *WORKLOADS):
        labels = each["spec"]["template"]["metadata"]["labels"]
        assert selects(each["spec"]["selector"], labels)


@each_overlay
def test_a_monitor_or_service_finds_pods_with_its_ports(overlay: str) -> None:
    for each in of_kind(overlay, "PodMonitor", "Service"):
        spec = each["spec"]
        plain = each["kind"] == "Service"
        selector = {"matchLabels": spec["selector"]} if plain else spec["selector"]
        found = [
            pod
            for pod in pods(overlay)
            if selects(selector, pod.workload["spec"]["template"]["metadata"]["labels"])
            and pod.workload["metadata"]["namespace"] == each["metadata"]["namespace"]
        ]
        assert found
        names = {
            port["name"]
            for pod in found
            for container in pod.containers
            for port in container.get("ports", ())
        }
        wanted = (
            {port["targetPort"] for port in spec["ports"]}
            if plain
            else {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]}
        )
        assert wanted <= names


@each_overlay
def test_each_certificate_is_issued_and_its_root_is_our_own_ca(overlay: str) -> None:
    issuers = {name_of(each): each["spec"] for each in of_kind(overlay, "Issuer")}
    certificates = of_kind(overlay, "Certificate")
    by_secret = {each["spec"]["secretName"]: each["spec"] for each in certificates}
    assert len(by_secret) == len(certificates)
    for certificate in certificates:
        spec = certificate["spec"]
        assert spec["issuerRef"]["kind"] == "Issuer"
        issuer = issuers[spec["issuerRef"]["name"]]
        if spec.get("isCA"):
            assert "selfSigned" in issuer
            assert "cert sign" in spec["usages"]
        else:
            ca = by_secret[issuer["ca"]["secretName"]]
            assert ca["isCA"] is True
            assert ca["commonName"] != spec["commonName"]
    used = {certificate["spec"]["issuerRef"]["name"] for certificate in certificates}
    assert used == set(issuers)


@each_overlay
def test_the_serving_certificate_names_the_address_that_the_sidecar_asks(overlay: str) -> None:
    for certificate in of_kind(overlay, "Certificate"):
        spec = certificate["spec"]
        if not spec.get("isCA"):
            assert spec["ipAddresses"] == ["127.0.0.1"]
            assert spec["commonName"]
            assert "server auth" in spec["usages"]
            assert spec["privateKey"]["rotationPolicy"] == "Always"


@each_overlay
def test_the_ca_outlives_what_it_signs_also_while_it_is_renewed(overlay: str) -> None:
    def hours(text: str) -> int:
        return int(text.removesuffix("h"))

    certificates = [each["spec"] for each in of_kind(overlay, "Certificate")]
    for ca in (each for each in certificates if each.get("isCA")):
        for leaf in (each for each in certificates if not each.get("isCA")):
            # A leaf that the old CA signed just before its renewal ends before the old CA does.
            assert hours(leaf["duration"]) < hours(ca["renewBefore"]) < hours(ca["duration"])
        assert all(hours(each["renewBefore"]) < hours(each["duration"]) for each in certificates)
