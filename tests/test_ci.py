"""`.ci/run` itself, with a fake in place of each program that it calls: nothing is optional."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
STAGES = {
    "make deployment-tools": "programs of the tests",
    "e2e-run.sh --prepare": "the real kubelet, API server and NFD",
    "make test": "tests, as the README says",
    "make test VENV=.venv-3.13.1": "tests and generated files with Python 3.13.1",
    "make generated VENV=.venv-3.13.1": "tests and generated files with Python 3.13.1",
    "make check": "format, lint, types, import contracts, generated files",
    "make wheel-test": "the wheel installs into an empty environment and its commands start",
    "fresh.sh bookworm": "the README's two commands where nobody has been before",
    "make e2e": "the real kubelet, API server and NFD",
}
"""What is called, each as it begins, and the step that it belongs to."""

FAKE = r"""#!/bin/sh
call="$(basename "$0") $*"
echo "$call E2E_REQUIRED=$E2E_REQUIRED XELINK_ALLOWED_SKIPS=$XELINK_ALLOWED_SKIPS" >>"$CALLS"
case "$call" in
  "id -u") echo "${FAKE_USER:-0}" ;;
  "python3 -c"*) echo 3.11. ;;
  "python3 tools/pythons.py") printf '%s\n' $FAKE_PYTHONS | sed 's/.*/& python&/' ;;
esac
case "$call" in "${FAKE_FAILS:-nothing}"*) exit 1 ;; esac
"""
FAKES = ("id", "make", "go", "dpkg-query", "apt-get", "python3")


class Tree:
    """A checkout with the real `.ci/run`, and fakes in place of what it calls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls = root / "calls"
        (root / ".ci").mkdir()
        shutil.copy(ROOT / ".ci" / "run", root / ".ci")
        (root / "bin").mkdir()
        (root / "tools").mkdir()
        for path in (
            *(root / "bin" / name for name in FAKES),
            root / "tools" / "e2e-run.sh",
            root / "tools" / "fresh.sh",
        ):
            path.write_text(FAKE)
            path.chmod(0o755)

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run CI; give how it ended."""
        return subprocess.run(
            ["/bin/bash", self.root / ".ci" / "run"],
            env={
                "PATH": f"{self.root / 'bin'}:{os.defpath}",
                "HOME": str(self.root),
                "CALLS": str(self.calls),
                "EVERYWHERE": "1",
                "FAKE_PYTHONS": "3.11.7 3.13.1",
                **variables,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def called(self) -> list[str]:
        """Give the calls in their order, each with the variables that were set."""
        return self.calls.read_text().splitlines()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_all_stages_are_run_and_told_with_their_times(tree: Tree) -> None:
    done = tree.run()
    assert done.returncode == 0, done.stderr
    calls = tree.called()
    for call in STAGES:
        assert any(each.startswith(call) for each in calls), call
    assert done.stdout.splitlines()[-1].startswith("== all green in ")
    for stage in STAGES.values():
        assert f" s  {stage}\n" in done.stdout


@pytest.mark.parametrize("call", STAGES)
def test_a_stage_that_fails_fails_the_run_and_is_named(tree: Tree, call: str) -> None:
    done = tree.run(FAKE_FAILS=call)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"== FAILED: {STAGES[call]}"
    assert "all green" not in done.stdout


def test_each_python_that_is_here_is_tested_with_once(tree: Tree) -> None:
    done = tree.run(FAKE_PYTHONS="3.11.7 3.12.1 3.13.1 3.14.0")
    assert done.returncode == 0, done.stderr
    tests = [call.split(" E2E")[0] for call in tree.called() if call.startswith("make test")]
    assert tests == [
        "make test",
        *(
            f"make test VENV=.venv-{version} PYTHON=python{version}"
            for version in ("3.12.1", "3.13.1", "3.14.0")
        ),
    ]


def test_what_takes_longest_is_left_out_where_it_is_not_asked_for(tree: Tree) -> None:
    done = tree.run(EVERYWHERE="", FAKE_PYTHONS="3.11.7 3.12.1 3.13.1")
    assert done.returncode == 0, done.stderr
    calls = tree.called()
    assert [call for call in STAGES if not any(each.startswith(call) for each in calls)] == [
        "fresh.sh bookworm"
    ]
    assert not any("3.12" in each for each in calls)


def test_what_is_missing_is_an_error_and_no_reason_to_skip(tree: Tree) -> None:
    assert tree.run().returncode == 0
    calls = tree.called()
    (end_to_end,) = [call for call in calls if call.startswith("make e2e")]
    assert "E2E_REQUIRED=1 " in end_to_end
    for tests in (call for call in calls if call.startswith("make test")):
        assert tests.endswith(f"XELINK_ALLOWED_SKIPS={tree.root}/.ci/allowed-skips")


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"FAKE_USER": "1000"}, "it takes root: for packages, namespaces and device nodes"),
        ({"FAKE_PYTHONS": "3.11.7 3.12.1"}, "Python 3.13 is not here"),
        ({"FAKE_PYTHONS": "3.13.1"}, "Python 3.11 is not here"),
    ],
    ids=["no root", "no Python of the image", "not the oldest"],
)
def test_a_machine_that_cannot_run_all_of_it_is_told_why(
    tree: Tree, variables: dict[str, str], line: str
) -> None:
    done = tree.run(**variables)
    assert done.returncode == 1
    assert line in done.stderr.splitlines()


def test_packages_that_are_missing_and_cannot_be_installed_end_the_run(tree: Tree) -> None:
    (tree.root / "bin" / "dpkg-query").write_text("#!/bin/sh\nexit 1\n")
    done = tree.run(FAKE_FAILS="apt-get")
    assert done.returncode == 1
    assert "packages were not installed" in done.stderr
    assert not any(call.startswith("make") for call in tree.called())
