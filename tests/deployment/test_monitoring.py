"""What Prometheus is told to scrape, to alert on and to draw: all of it exists, and fires.

Alerts are tested by promtool; the cases are in `rules/`.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from device_plugin.settings import PluginSettings
from device_plugin.telemetry import NodeTelemetry, ServingTelemetry
from sidecar.debounce import Confirmed
from sidecar.settings import SidecarSettings
from sidecar.telemetry import Telemetry as SidecarTelemetry
from tests.deployment.rendering import FRUGAL, OVERLAYS, needs, needs_kustomize, render, tool
from tests.deployment.variants import variants
from xelink.daemon.flags import DaemonSettings, load
from xelink.daemon.metrics import Metrics
from xelink.inventory.observation import NodeObservation
from xelink.simulators.xpu_manager import Blueprint
from xelink.xpu_manager.source import XpuManagerSource

pytestmark = needs_kustomize
needs_promtool = needs("promtool")

CASES = Path(__file__).parent / "rules"
SETTINGS: dict[str, type[DaemonSettings]] = {
    "xelink-sidecar": SidecarSettings,
    "xelink-device-plugin": PluginSettings,
}
BY_PROMETHEUS = {"namespace", "node", "pod", "container", "instance"}
SEVERITIES = {"critical", "warning"}

# What a test looks for in PromQL: a metric with its matchers, and what a sum is made by.
SELECTOR = re.compile(r"\b(xelink_[a-z_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
TEMPLATE = re.compile(r"\$labels\.(\w+)")
WHERE = "or $labels.node $labels.instance"


def the(kind: str, overlay: str = "monitoring") -> dict[str, Any]:
    (found,) = [each for each in render(overlay) if each["kind"] == kind]
    return found


def groups() -> list[dict[str, Any]]:
    every: list[dict[str, Any]] = the("PrometheusRule")["spec"]["groups"]
    return every


def alerts() -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"]]


def source() -> dict[str, Any]:
    """Give the rule object as it is written: names of cases must not need a tool."""
    text = (OVERLAYS / "components/metrics/rules.yaml").read_text()
    found: dict[str, Any] = yaml.safe_load(text)
    return found


NAMES = [rule["alert"] for group in source()["spec"]["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    (text,) = the("ConfigMap")["data"].values()
    found: dict[str, Any] = json.loads(text)
    return found


def drawn() -> list[tuple[str, str, str]]:
    """Give title, expression and legend of everything that the dashboard draws."""
    return [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    ]


# Metrics


@cache
def metrics() -> dict[str, tuple[str, ...]]:
    """Give the labels of each metric that our daemons tell, histograms by each of their series."""
    node = Metrics("xelink_device_plugin")
    ServingTelemetry(node)
    NodeTelemetry(node)
    rows = (*SidecarTelemetry(XpuManagerSource.reasons).rows, *node.rows)
    found = {name: labels for name, labels, _ in rows}
    for name, labels in list(found.items()):
        for suffix in ("_bucket", "_sum", "_count"):
            found[name + suffix] = (*labels, "le") if suffix == "_bucket" else labels
    return found


@cache
def values() -> dict[tuple[str, str], set[str]]:
    """Give the values that a label of a metric has been seen with, once everything was told."""
    sidecar, node = SidecarTelemetry(XpuManagerSource.reasons), Metrics("xelink_device_plugin")
    sidecar.confirmed(Confirmed(Blueprint(gpus=2).build().topology))
    plugin = ServingTelemetry(node)
    plugin.begin("any")
    plugin.advertised("any", ())
    NodeTelemetry(node).observed(NodeObservation())
    found: dict[tuple[str, str], set[str]] = {}
    for registry in (sidecar.registry, node.registry):
        for sample in (sample for family in registry.collect() for sample in family.samples):
            for label, value in sample.labels.items():
                found.setdefault((sample.name, label), set()).add(value)
    return found


def faults(expression: str, legend: str = "") -> Iterator[str]:
    """Name what an expression wants and no daemon tells."""
    used = SELECTOR.findall(expression)
    told = BY_PROMETHEUS | {label for name, _ in used for label in metrics().get(name, ())}
    for name, matchers in used:
        if name not in metrics():
            yield f"no metric {name}"
            continue
        for label, operator, value in MATCHER.findall(matchers):
            if label in BY_PROMETHEUS:
                continue
            if label not in metrics()[name]:
                yield f"{name} has no label {label}"
                continue
            wanted = value.split("|") if operator in {"=~", "!~"} else [value]
            for one in set(wanted) - values()[name, label]:
                yield f"{name} is never told with {label}={one!r}"
    grouped = {
        label.strip() for labels in GROUPING.findall(expression) for label in labels.split(",")
    }
    named = set(re.findall(r"\{\{(\w+)\}\}", legend))
    for label in (grouped | named) - told:
        yield f"no metric here has a label {label}"


def test_every_metric_and_label_of_the_alerts_exists() -> None:
    assert {rule["alert"]: list(faults(rule["expr"])) for rule in alerts()} == {
        name: [] for name in NAMES
    }


def test_every_metric_and_label_of_the_dashboard_exists() -> None:
    assert {title: list(faults(expr, legend)) for title, expr, legend in drawn()} == {
        title: [] for title, _, _ in drawn()
    }


@pytest.mark.parametrize(
    ("expression", "legend", "fault"),
    [
        ("xelink_sidecar_link", "", "no metric xelink_sidecar_link"),
        ('xelink_sidecar_links{kind="link"}', "", "xelink_sidecar_links has no label kind"),
        (
            'xelink_sidecar_scrapes_total{result=~"links|unkown"}',
            "",
            "xelink_sidecar_scrapes_total is never told with result='unkown'",
        ),
        ("sum by (nod) (xelink_sidecar_links)", "", "no metric here has a label nod"),
        ("xelink_sidecar_links", "{{kind}}", "no metric here has a label kind"),
    ],
)
def test_what_does_not_exist_is_found(expression: str, legend: str, fault: str) -> None:
    assert list(faults(expression, legend)) == [fault]


# Alerts


def promtool(directory: Path, verb: str, *paths: str) -> subprocess.CompletedProcess[str]:
    program = tool("promtool")
    assert program
    return subprocess.run(
        [program, verb, "rules", *paths],
        cwd=directory,
        env={**os.environ, **FRUGAL},
        capture_output=True,
        text=True,
        check=False,
    )


def write(directory: Path, every: Iterable[dict[str, Any]]) -> None:
    (directory / "rules.yaml").write_text(json.dumps({"groups": list(every)}))


def without_prose(change: Callable[[dict[str, Any]], object] | None = None) -> Any:  # noqa: ANN401 - YAML
    """Give the groups with summaries only, and every alert changed."""
    found = groups()
    for rule in (rule for group in found for rule in group["rules"]):
        del rule["annotations"]["description"]
        if change:
            change(rule)
    return found


def unit_tests(directory: Path) -> subprocess.CompletedProcess[str]:
    names = [path.name for path in sorted(CASES.glob("*.yaml"))]
    for name in names:
        (directory / name).write_text((CASES / name).read_text())
    return promtool(directory, "test", *names)


@needs_promtool
def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    write(tmp_path, groups())
    done = promtool(tmp_path, "check", "rules.yaml")
    assert (done.returncode, f"{len(NAMES)} rules found" in done.stdout) == (0, True), done.stderr


@needs_promtool
def test_every_alert_fires_when_it_should_and_is_silent_when_it_should_be(tmp_path: Path) -> None:
    write(tmp_path, without_prose())
    done = unit_tests(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "never fires": lambda rule: rule.update(expr="vector(0) > 1"),
    "fires whenever it is asked": lambda rule: rule.update(expr="vector(1)"),
    "fires later": lambda rule: rule.update({"for": "2d"}),
    "is milder": lambda rule: rule["labels"].update(severity="none"),
}


@needs_promtool
@pytest.mark.parametrize("what", CHANGES)
def test_the_cases_notice_when_an_alert(what: str, tmp_path: Path) -> None:
    write(tmp_path, without_prose(CHANGES[what]))
    assert noticed(tmp_path) == set(NAMES)


@needs_promtool
def test_the_cases_notice_when_an_alert_fires_at_once(tmp_path: Path) -> None:
    write(tmp_path, without_prose(lambda rule: rule.pop("for", None)))
    assert noticed(tmp_path) == {rule["alert"] for rule in alerts() if "for" in rule}


@needs_promtool
@pytest.mark.parametrize("name", NAMES)
def test_the_cases_notice_a_slip_of_the_hand(name: str, tmp_path: Path) -> None:
    (rule,) = [rule for rule in alerts() if rule["alert"] == name]
    del rule["annotations"]["description"]
    slips = list(variants(rule))
    files = []
    for number, (_, slip) in enumerate(slips):
        group = {"name": "alone", "rules": [slip]}
        (tmp_path / f"rules{number}.yaml").write_text(json.dumps({"groups": [group]}))
        for path in CASES.glob("*.yaml"):
            if tests := _tests_of(name, path, f"slip {number}"):
                files.append(f"{number}-{path.name}")
                content = _texts(path) | {"rule_files": [f"rules{number}.yaml"], "tests": tests}
                (tmp_path / files[-1]).write_text(json.dumps(content))
    done = promtool(tmp_path, "test", *files)
    caught = set(map(int, re.findall(r"name: slip (\d+),", done.stderr)))
    assert done.stdout.count("Unit Testing:") == len(files)
    missed = [what for number, (what, _) in enumerate(slips) if number not in caught]
    assert not missed, "\n".join(missed)


@cache
def _texts(path: Path) -> dict[str, Any]:
    """Read YAML as promtool does, to which `0x30` is no number."""
    found: dict[str, Any] = yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # noqa: S506 - it makes texts only
    return found


def _tests_of(alert: str, path: Path, name: str) -> list[dict[str, Any]]:
    """Give the cases that ask for an alert, without what they ask of others."""
    return [
        {**case, "name": name, "alert_rule_test": asked}
        for case in _texts(path)["tests"]
        if (asked := [one for one in case["alert_rule_test"] if one["alertname"] == alert])
    ]


def noticed(directory: Path) -> set[str]:
    """Name the alerts of which a case fails."""
    return set(re.findall(r"alertname: (\w+)", unit_tests(directory).stderr))


def _tried() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for path in CASES.glob("*.yaml"):
        for case in yaml.safe_load(path.read_text())["tests"]:
            for one in case["alert_rule_test"]:
                yield one["alertname"], one["exp_alerts"]


def test_every_alert_has_a_case_that_fires_and_one_that_is_silent() -> None:
    assert {name for name, expected in _tried() if expected} == set(NAMES)
    assert {name for name, expected in _tried() if not expected} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_says_what_is_wrong_what_to_do_and_how_bad_it_is(name: str) -> None:
    (rule,) = [rule for rule in alerts() if rule["alert"] == name]
    assert rule["labels"]["severity"] in SEVERITIES
    assert set(rule["annotations"]) == {"summary", "description"}
    # A template names only labels that the alert has when it fires.
    fired = [set(one["exp_labels"]) for tried, found in _tried() if tried == name for one in found]
    said = " ".join(rule["annotations"].values())
    named = set(TEMPLATE.findall(said.replace(WHERE, "")))
    assert fired
    assert all(named <= labels for labels in fired)
    if WHERE in said:
        assert all({"node", "instance"} & labels for labels in fired)


# Dashboard


def test_grafana_finds_the_dashboard_and_its_panels_do_not_overlap() -> None:
    config = the("ConfigMap")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config["metadata"]["namespace"] == "monitoring"
    assert [*config["data"]] == ["xelink.json"]
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_dashboard_asks_the_data_source_that_is_chosen() -> None:
    variables = [each["name"] for each in dashboard()["templating"]["list"]]
    assert variables == ["datasource", "namespace", "node"]
    for panel in dashboard()["panels"]:
        if panel["type"] != "row":
            assert {
                panel["datasource"]["uid"],
                *(target["datasource"]["uid"] for target in panel["targets"]),
            } == {"${datasource}"}
            assert panel["description"]


def test_the_dashboard_shows_links_expiry_registrations_allocations_and_health() -> None:
    shown = {name for _, expr, _ in drawn() for name, _ in SELECTOR.findall(expr)}
    assert shown >= {
        "xelink_sidecar_links",
        "xelink_sidecar_lanes",
        "xelink_sidecar_pending_losses",
        "xelink_sidecar_scrapes_total",
        "xelink_sidecar_expiry_timestamp_seconds",
        "xelink_device_plugin_registered",
        "xelink_device_plugin_registrations_total",
        "xelink_device_plugin_allocations_total",
        "xelink_device_plugin_preferences_total",
        "xelink_device_plugin_preference_seconds_bucket",
        "xelink_device_plugin_devices",
    }


@needs_promtool
def test_promtool_accepts_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    filled = [expr.replace("$__rate_interval", "5m") for _, expr, _ in drawn()]
    rules = [{"record": f"panel:{at}", "expr": expr} for at, expr in enumerate(filled)]
    write(tmp_path, [{"name": "dashboard", "rules": rules}])
    done = promtool(tmp_path, "check", "rules.yaml")
    assert done.returncode == 0, done.stderr


def test_the_dashboard_begins_with_a_table_of_nodes() -> None:
    row, table, *_ = sorted(dashboard()["panels"], key=lambda panel: panel["gridPos"]["y"])
    assert (row["type"], table["type"], table["gridPos"]["w"]) == ("row", "table", 24)
    assert all("by (node)" in target["expr"] for target in table["targets"])
    renamed = table["transformations"][1]["options"]["renameByName"]
    assert renamed == {f"Value #{each['refId']}": each["legendFormat"] for each in table["targets"]}


# What is scraped


def ours(rendered: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Give our daemons' containers, each with its Pod's template."""
    for each in rendered:
        if each["kind"] == "DaemonSet":
            template = each["spec"]["template"]
            for container in template["spec"]["containers"]:
                if container["name"] in SETTINGS:
                    yield container, template


def listens(container: dict[str, Any], environment: pytest.MonkeyPatch) -> str:
    """Give where a container listens: what its program makes of arguments and environment."""
    with environment.context() as scope:
        for variable in container.get("env", ()):
            scope.setenv(variable["name"], variable.get("value", "as kubelet gives it"))
        loaded = load(SETTINGS[container["name"]], container.get("args", ()))
    assert loaded.warnings == ()
    return str(loaded.settings.model_dump()["listen"])


def customized(directory: Path, overlay: str, *components: str) -> list[dict[str, Any]]:
    """Render a kustomization of somebody's own, elsewhere, on top of an overlay."""
    place = Path(os.path.relpath(OVERLAYS, directory.resolve()))
    (directory / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": [str(place / overlay)],
                "components": [str(place / "components" / each) for each in components],
            }
        )
    )
    return render(str(directory))


BOTH = ("metrics", "metrics-plugin")


@pytest.mark.parametrize(
    ("overlay", "components", "daemons"),
    [
        ("http", ("metrics",), 1),
        ("cert-manager", ("metrics",), 1),
        ("companion", BOTH, 2),
        ("companion-cert-manager", BOTH, 2),
    ],
)
def test_each_daemon_listens_beyond_loopback_on_a_port_that_is_scraped(
    overlay: str,
    components: tuple[str, ...],
    daemons: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rendered = customized(tmp_path, overlay, *components)
    (monitor,) = [each for each in rendered if each["kind"] == "PodMonitor"]
    scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    found = list(ours(rendered))
    assert len(found) == daemons
    for container, template in found:
        (port,) = container["ports"]
        assert port["name"] in scraped
        assert listens(container, monkeypatch) == f":{port['containerPort']}"
        assert _selects(monitor, template["metadata"]["labels"])
        # Loopback answers, too: the probes stay as they are.
        assert container["livenessProbe"]["httpGet"]["host"] == "127.0.0.1"
    assert {each["metadata"]["namespace"] for each in rendered} == {"monitoring"}


def test_the_overlay_is_the_companion_with_both_components(tmp_path: Path) -> None:
    assert render("monitoring") == customized(tmp_path, "companion", *BOTH)


def test_without_the_component_nothing_listens_beyond_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for overlay in ("http", "cert-manager", "companion", "companion-cert-manager"):
        for container, _ in ours(render(overlay)):
            assert listens(container, monkeypatch).startswith("127.0.0.1:")


def test_a_plugin_in_a_pod_of_its_own_is_scraped_without_a_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ((container, template),) = ours(render("plugin-only"))
    (port,) = container["ports"]
    monitor = the("PodMonitor")
    assert port["name"] in {each["port"] for each in monitor["spec"]["podMetricsEndpoints"]}
    assert _selects(monitor, template["metadata"]["labels"])
    assert listens(container, monkeypatch) == f":{port['containerPort']}"


def test_the_component_leaves_a_plugin_without_a_sidecar_as_it_is(tmp_path: Path) -> None:
    rendered = customized(tmp_path, "plugin-only", "metrics")
    kinds = {each["kind"] for each in render("plugin-only")}
    assert [each for each in rendered if each["kind"] in kinds] == render("plugin-only")
    assert {each["kind"] for each in rendered} >= {"PodMonitor", "PrometheusRule", "ConfigMap"}


def test_every_target_is_told_by_its_node() -> None:
    for endpoint in the("PodMonitor")["spec"]["podMetricsEndpoints"]:
        assert endpoint["relabelings"] == [
            {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}
        ]
        assert "path" not in endpoint  # /metrics


def _selects(monitor: dict[str, Any], labels: dict[str, str]) -> bool:
    (wanted,) = monitor["spec"]["selector"]["matchExpressions"]
    assert wanted["operator"] == "In"
    return labels.get(wanted["key"]) in wanted["values"]


@needs_kustomize
def test_it_is_scraped_often_enough_for_what_the_alerts_look_back() -> None:
    expressions = " ".join(alert["expr"] for alert in alerts())
    shortest = min(int(minutes) for minutes in re.findall(r"\[(\d+)m\]", expressions))
    for endpoint in the("PodMonitor")["spec"]["podMetricsEndpoints"]:
        seconds = re.fullmatch(r"(\d+)s", endpoint["interval"])
        assert seconds
        assert 4 * int(seconds[1]) <= 60 * shortest  # a rate takes two, and one may be missed
