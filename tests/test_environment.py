"""`make demo` and `make test` build what they need, and say so all the while."""

import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from importlib.util import module_from_spec, spec_from_file_location
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest

from tests.patience import NEVER, PATIENCE

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "environment.py"


@pytest.fixture(scope="module")
def environment() -> ModuleType:
    spec = spec_from_file_location("environment", TOOL)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Heard(StringIO):
    """Standard output; what it is told counts when it is flushed, and the third word lets go on."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.pipe = folder / "pipe"
        os.mkfifo(self.pipe)
        self.begun = folder / "begun"
        self.told: list[tuple[str, bool]] = []
        self._kept = ""

    def write(self, text: str) -> int:
        self._kept += text
        return super().write(text)

    def flush(self) -> None:
        if self._kept:
            self.told.append((self._kept, self.begun.exists()))
            self._kept = ""
            if len(self.told) == 3:
                self.pipe.write_text("go on\n")


def command(heard: Heard, code: int) -> list[str]:
    """Give a command that prints, and ends when it has been allowed to."""
    script = f"touch {heard.begun}; echo much; read _ <{heard.pipe}; echo and more >&2; exit {code}"
    return ["sh", "-c", script]


@pytest.mark.parametrize("code", [0, 1])
def test_a_step_is_told_before_it_begins_and_while_it_lasts(
    code: int, environment: ModuleType, tmp_path: Path
) -> None:
    heard = Heard(tmp_path)
    with redirect_stdout(heard):
        done = environment.step("counting sheep", command(heard, code), note_every=0.01)
    first, *rest = heard.told
    assert first == ("counting sheep ...\n", False)
    assert done is (code == 0)
    output = [] if done else [rest.pop()]
    assert len(rest) >= 2
    assert all(text.endswith(" s\n") and len(text) < 10 for text, _ in rest)
    assert output == ([] if done else [("much\nand more\n\ncounting sheep: failed\n", True)])


def test_nobody_waits_for_longer_than_ten_seconds_without_a_word(environment: ModuleType) -> None:
    assert 0 < environment.NOTE_EVERY <= 10
    assert environment.step.__defaults__ == (environment.NOTE_EVERY,)


def built(folder: Path, script: str) -> Path:
    """Make what looks like an environment, whose Python is a shell script."""
    python = folder / "made" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec echo 3.99.0\n{script}\n')
    python.chmod(0o755)
    (folder / "made" / ".built").touch()
    (folder / "some.lock").write_text("one==1 \\\n    --hash=sha256:0\ntwo==2\n")
    return folder / "made"


def begin(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, TOOL, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(*arguments: str | Path) -> tuple[int, str]:
    with begin(*arguments) as process:
        output, _ = process.communicate(timeout=4 * PATIENCE)
    return process.returncode, output


def test_it_installs_checks_and_adds_the_commands_in_this_order(tmp_path: Path) -> None:
    made = built(tmp_path, f'echo "$@" >>{tmp_path}/log')
    code, output = ended(made, tmp_path / "some.lock", "--editable")
    assert (code, output.splitlines()) == (
        0,
        [
            "installing 2 packages from some.lock ...",
            "checking that they fit together ...",
            "installing the commands of xelink ...",
        ],
    )
    install, check, editable = (tmp_path / "log").read_text().splitlines()
    assert f"--no-deps --require-hashes --requirement {tmp_path}/some.lock" in install
    assert check.endswith(" check")
    assert f"--no-deps --no-build-isolation --editable {ROOT}" in editable


@pytest.mark.parametrize("step", ["install", "check"])
def test_a_step_that_fails_ends_it_and_what_it_printed_is_shown(step: str, tmp_path: Path) -> None:
    script = f'echo "$@" >>{tmp_path}/log; case "$*" in *{step}*) echo no luck; exit 3; esac'
    code, output = ended(built(tmp_path, script), tmp_path / "some.lock", "--editable")
    assert code == 1
    assert "\nno luck\n" in output
    assert output.endswith(": failed\n")
    assert step in (tmp_path / "log").read_text().splitlines()[-1]


def test_what_cannot_be_run_ends_it_in_a_line(environment: ModuleType, tmp_path: Path) -> None:
    with redirect_stdout(StringIO()) as said:
        assert not environment.step("asking nobody", [str(tmp_path / "nobody")])
    assert said.getvalue().endswith("nobody: No such file or directory\nasking nobody: failed\n")


def test_a_lock_that_is_not_there_is_a_wrong_call(tmp_path: Path) -> None:
    code, output = ended(tmp_path / "made", tmp_path / "no.lock")
    assert code == 2
    assert f"there is no lock file {tmp_path}/no.lock" in output
    assert not (tmp_path / "made").exists()


def test_an_interrupt_ends_it_without_a_traceback(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "begun")
    script = f"echo >{tmp_path}/begun; exec sleep {NEVER}"
    with begin(built(tmp_path, script), tmp_path / "some.lock") as process:
        (tmp_path / "begun").read_text()
        os.kill(process.pid, signal.SIGINT)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert output == "installing 2 packages from some.lock ...\n"


def test_an_environment_that_was_not_built_to_the_end_is_built_anew(
    environment: ModuleType, tmp_path: Path
) -> None:
    made = built(tmp_path, "")
    assert environment.is_built(made, None)
    assert environment.is_built(made, "3.99.0")
    assert not environment.is_built(made, environment.release()), "another Python was named"
    (made / ".built").unlink()
    assert not environment.is_built(made, None), "interrupted, or there was no pip to be had"
    (made / ".built").touch()
    (made / "bin" / "python").unlink()
    assert not environment.is_built(made, None), "its Python was removed"
    assert not environment.is_built(tmp_path / "nothing", None)


def test_what_is_built_anew_has_nothing_of_before(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" --without-pip\n')  # it takes seconds
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    made = tmp_path / "made"
    left = made / "lib" / "python3.99" / "site-packages" / "old.py"
    left.parent.mkdir(parents=True)
    left.touch()
    with redirect_stdout(StringIO()):
        assert environment.build(made)
    assert environment.is_built(made, None)
    assert not left.exists()


OF_MAKE = {"MAKEFLAGS", "MAKELEVEL", "ARGS", "PYTHON", "VENV"}
"""What a make that runs these tests hands on."""


def planned(*words: str) -> str:
    """Give what `make` would do; it does nothing."""
    return subprocess.run(
        ["make", "--no-print-directory", "--dry-run", *words],  # noqa: S607 - wherever it is
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in OF_MAKE},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_demo_needs_what_runs_and_no_more(tmp_path: Path) -> None:
    demo = planned("demo", f"VENV={tmp_path}/made")
    assert f"environment.py {tmp_path}/made requirements.lock" in demo
    assert f"{tmp_path}/made/bin/python -m xelink demo" in demo.splitlines()[-1]
    assert "requirements-dev.lock" not in demo
    assert "--editable" not in demo
    assert "requirements-dev.lock --editable" in planned("test", f"VENV={tmp_path}/made")


def test_what_is_built_is_not_built_again(tmp_path: Path) -> None:
    made = built(tmp_path, "")
    for stamp in (".runtime", ".ready"):
        (made / stamp).touch()
    for target in ("demo", "test"):
        assert "environment.py" not in planned(target, f"VENV={made}")


def test_a_python_that_is_named_builds_it_anew_but_only_when_it_is_built(tmp_path: Path) -> None:
    made = built(tmp_path, "")
    (made / ".runtime").touch()
    for target in ("demo", "test"):
        plan = planned(target, f"VENV={made}", f"PYTHON={sys.executable}")
        assert "requirements.lock --anew" in plan
    assert "environment.py" not in planned("help", f"VENV={made}", f"PYTHON={sys.executable}")
    assert (made / "bin" / "python").exists(), "a plan removes nothing"
