"""docs/install.md as a list of commands, and a shell to run them without a cluster."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.deployment.rendering import ROOT, TOOLS, needs, render
from tests.patience import PATIENCE

GUIDE = (ROOT / "docs/install.md").read_text()
FEATURES_D = "/etc/kubernetes/node-feature-discovery/features.d"
PATCH = "kubectl -n monitoring patch daemonset intel-xpumanager"
SECRET = "kubectl -n monitoring create secret generic xpum-server-cert"  # noqa: S105 - a command

needs_kubectl = needs("kubectl")


class Command(NamedTuple):
    """A command of the guide and what it shows below."""

    line: str
    output: str


def commands() -> Iterator[Command]:
    """Give every command of every console block."""
    for block in re.findall(r"^```console\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            yield Command(line, output)


def shown(beginning: str, end: str = "") -> Command:
    """Find a command of the guide."""
    found = {
        each for each in commands() if each.line.startswith(beginning) and each.line.endswith(end)
    }
    assert len(found) == 1, f"{beginning}...{end}: {found}"
    return found.pop()


def block(language: str, word: str) -> str:
    """Find a file that the guide shows."""
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    (found,) = (each for each in blocks if word in each)
    return found


class Shell:
    """Runs commands in a directory as somebody who has no cluster."""

    def __init__(self, directory: Path, **env: str) -> None:
        self.directory = directory
        path = f"{os.environ['PATH']}:{TOOLS / 'bin'}"
        self._env = {"PATH": path, "HOME": str(directory / "home"), "LC_ALL": "C", **env}

    def run(self, line: str) -> str:
        """Give what a command prints; it must not fail."""
        done = self.attempt(line)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        return done.stdout

    def attempt(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail."""
        return subprocess.run(
            ["bash", "-c", line],  # noqa: S607 - as the reader types it
            cwd=self.directory,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )


def daemon_set(overlay: str) -> dict[str, Any]:
    """Give the one DaemonSet of an overlay."""
    (found,) = (each for each in render(overlay) if each["kind"] == "DaemonSet")
    return found


def patched(shell: Shell, line: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """Run a command on the object that it changes, without a cluster."""
    (shell.directory / "before.json").write_text(json.dumps(before))
    where = "--local -f before.json -o yaml"
    kind, name = before["kind"].lower(), before["metadata"]["name"]
    local, times = re.subn(rf"(?<!get ){kind}[ /]{name}\b", where, line)
    assert times == 1
    after: dict[str, Any] = yaml.safe_load(shell.run(local))
    return after


def administrator(directory: Path, url: str) -> Shell:
    """Give a shell whose kubectl talks to this server."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": ""}}],
    }
    (directory / "config").write_text(yaml.safe_dump(config))
    return Shell(directory, KUBECONFIG=str(directory / "config"))


def masked(text: str) -> str:
    """Take times and ports out of a log."""
    text = re.sub(r"[0-9-]{10}T[0-9:.]+(Z|\+00:00)", "TIME", text)
    return re.sub(r"127\.0\.0\.1:[0-9]+", "ADDRESS", text)
