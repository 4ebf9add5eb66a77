"""Completion: what the shells make of the script."""

import shutil
import subprocess
import sys

import pytest

from tests.cli.commands import Xelink


def test_the_script_knows_every_command_and_option(xelink: Xelink) -> None:
    for shell in ("bash", "zsh", "fish"):
        said = xelink("completion", shell)
        assert said.code == 0
        for word in ("show", "explain", "simulate", "demo", "completion"):
            assert word in said.out
        for option in ("features", "want"):
            assert f"--{option}" in said.out or f"-l {option}" in said.out
    assert xelink("completion", "tcsh").code == 2


def _completed(words: str) -> set[str]:
    """Ask bash what it would complete the last of these words to."""
    script = f"""
        source <({sys.executable} -m xelink completion bash)
        COMP_WORDS=({words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        $(complete -p xelink | sed 's/.*-F \\([^ ]*\\).*/\\1/') xelink "${{COMP_WORDS[-1]}}"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script],  # noqa: S607 - wherever it is
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_completes_commands_options_and_choices() -> None:
    assert _completed("xelink sh") == {"show"}
    assert "--node-json" in _completed("xelink show --no")
    assert _completed("xelink show --output s") == {"svg"}
    assert _completed("xelink explain --policy pa") == {"packed"}


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_reads_the_script(xelink: Xelink) -> None:
    script = xelink.file("_xelink", xelink("completion", "zsh").out)
    done = subprocess.run(["zsh", "-n", script], capture_output=True, check=False)  # noqa: S607 - wherever it is
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("xelink sh", {"show"}),
        ("xelink show --node-j", {"--node-json"}),
        ("xelink explain --policy pa", {"packed"}),
    ],
)
def test_fish_completes_commands_options_and_choices(
    xelink: Xelink, line: str, completed: set[str]
) -> None:
    script = xelink.file("xelink.fish", xelink("completion", "fish").out)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {script}; complete --do-complete '{line}'"],  # noqa: S607 - wherever it is
        capture_output=True,
        text=True,
        check=True,
    )
    assert {found.partition("\t")[0] for found in done.stdout.splitlines()} == completed
