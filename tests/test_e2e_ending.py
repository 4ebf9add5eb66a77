"""How `make e2e` ends: well only when every story was told well and nothing was left behind."""

import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "tools" / "e2e-run.sh"
FROM = "\nstatus=0\nif [ $# -gt 0 ]; then\n"
# What comes before tells stories on nodes and cleans up: here both end as they are told to.
BEFORE = """
set -euo pipefail
scratch=$PWD
cache=$PWD
nodes=()
node() {
  local name=CODE_$1
  shift
  echo "told $*"
  return "${!name:-0}"
}
cleanup() { return "${CODE_cleanup:-0}"; }
"""


def ended(where: Path, *arguments: str, **codes: int) -> subprocess.CompletedProcess[str]:
    text = RUN.read_text()
    assert text.count(FROM) == 1
    end = text[text.index(FROM) :]
    return subprocess.run(
        ["/bin/bash", "-c", BEFORE + end, "e2e-run.sh", *arguments],
        cwd=where,
        env={
            "PATH": "/usr/bin:/bin",
            **{f"CODE_{name}": str(code) for name, code in codes.items()},
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "codes", "code"),
    [
        pytest.param((), {}, 0, id="all well"),
        pytest.param((), {"one": 1}, 1, id="a story of the first node failed"),
        pytest.param((), {"two": 5}, 1, id="of the second"),
        pytest.param((), {"three": 1}, 1, id="of the third"),
        pytest.param((), {"cleanup": 1}, 1, id="something was left behind"),
        pytest.param(("-k", "x"), {}, 0, id="one node, all well"),
        pytest.param(("-k", "x"), {"one": 5}, 5, id="one node, no story was told"),
        pytest.param(("-k", "x"), {"cleanup": 1}, 1, id="one node left something behind"),
    ],
)
def test_it_ends_well_only_when_all_is_well(
    tmp_path: Path, arguments: tuple[str, ...], codes: dict[str, int], code: int
) -> None:
    done = ended(tmp_path, *arguments, **codes)
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith("e2e: FAILED\n") is (code != 0)
    assert (tmp_path / "summary.txt").read_text().startswith("e2e: ")
    told = done.stdout.count("told tests/e2e")
    assert told == (1 if arguments else 3 if code and "cleanup" not in codes else told)


TRACES = """
set -euo pipefail
scratch=$PWD/scratch
mkdir "$scratch"
nodes=()
before=$(mktemp -p "$PWD") after=$(mktemp -p "$PWD")
cgroups() { :; }
traces() { printf 'file /%s\\n' $TRACES; }
echo 'file /before' >"$before"
"""


@pytest.mark.parametrize(
    ("traces", "code", "said"),
    [
        pytest.param("before", 0, "", id="as before"),
        pytest.param("before new", 1, "e2e: left behind: file /new\n", id="something is left"),
    ],
)
def test_what_is_left_behind_is_told_and_fails_the_run(
    tmp_path: Path, traces: str, code: int, said: str
) -> None:
    """The function that the runs above stand in for."""
    text = RUN.read_text()
    begin = "\ncleanup() {\n"
    assert text.count(begin) == 1
    function = text[text.index(begin) :].partition("\n}\n")[0]
    done = subprocess.run(
        ["/bin/bash", "-c", f"{TRACES}{function}\n}}\ncleanup"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "TRACES": traces},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, said)
