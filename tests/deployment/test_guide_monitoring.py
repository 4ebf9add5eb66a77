"""Monitoring without the operator, as the guide has it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.deployment.rendering import OVERLAYS, render, tool
from tests.deployment.test_monitoring import BY_PROMETHEUS, groups, needs_promtool, ours

GUIDE = (Path(__file__).parents[2] / "docs" / "install.md").read_text()


def _of_the_guide(begins: str) -> dict[str, Any]:
    (text,) = re.findall(rf"^```yaml\n({begins}.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@needs_promtool
def test_prometheus_without_the_operator_gives_the_labels_of_the_alerts(tmp_path: Path) -> None:
    config = _of_the_guide("scrape_configs:")
    (job,) = config["scrape_configs"]
    given = {rule.get("target_label") for rule in job["relabel_configs"]} - {None}
    assert given == BY_PROMETHEUS - {"instance"}  # which Prometheus gives by itself
    (ports,) = [rule for rule in job["relabel_configs"] if rule.get("action") == "keep"]
    names = {port["name"] for box, _ in ours(render("companion")) for port in box["ports"]}
    assert names == {"xelink-sidecar", "xelink-plugin"}
    assert all(re.fullmatch(ports["regex"], name) for name in names)
    (command,) = re.findall(r"^\$ (sed -n '/\^spec.*)$", GUIDE, re.MULTILINE)
    (tmp_path / "overlays").symlink_to(OVERLAYS)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)  # noqa: S602 - ours, from the guide
    # Debian's promtool is built without Kubernetes' part.
    assert job.pop("kubernetes_sd_configs") == [
        {"role": "pod", "namespaces": {"names": ["monitoring"]}}
    ]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    program = tool("promtool")
    assert program
    for what, path in (("config", "prometheus.yml"), ("rules", "xelink-rules.yaml")):
        done = subprocess.run(
            [program, "check", what, path],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert yaml.safe_load((tmp_path / "xelink-rules.yaml").read_text())["groups"] == groups()
