"""`make image-test` sees what is wrong with an image: here podman shows it one that is made up."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import topology
from xelink.simulators.xpu_manager import Blueprint, SimulatedNode
from xelink.topology.publication import DEFAULT_NAMESPACE, Publication, render

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PODMAN = """#!/bin/sh
here=${0%/*}
case "$*" in
*"image inspect"*) cat "$here/inspect.json" ;;
*"image mount"*) echo "$here/root" ;;
*save*) for word; do case $word in --output=*) echo layers >"${word#--output=}" ;; esac; done ;;
esac
"""
UNCHECKED = b"\xf3\r\r\n" + (1).to_bytes(4, "little") + bytes(8)


def call(program: str, tools: Path | str = "") -> subprocess.CompletedProcess[str]:
    """Run a program where the modules of tools/ are, with this podman."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "tools",
        env={"PATH": f"{tools}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def told(done: subprocess.CompletedProcess[str]) -> str:
    """Give what was found; empty where all is well."""
    assert (done.returncode == 0) is ("ImageTestError" not in done.stderr), done.stderr
    return done.stderr.strip().rpartition("ImageTestError: ")[2]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Make an image that is as it must be."""
    head = subprocess.run(
        ["/usr/bin/git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    labels = {
        "title": PROJECT["name"],
        "version": PROJECT["version"],
        "licenses": PROJECT["license"],
        "description": PROJECT["description"],
        "revision": head,
        "created": "2026-01-01T00:00:00Z",
    }
    config = {
        "User": "65532:65532",
        "Env": ["PATH=/opt/xelink/bin:/usr/bin", "PYTHONUNBUFFERED=1"],
        "Labels": {f"org.opencontainers.image.{name}": text for name, text in labels.items()},
    }
    (tmp_path / "inspect.json").write_text(json.dumps([{"Config": config}]))
    for name in ("xelink", "xelink-sidecar", "xelink-device-plugin", "python"):
        write(tmp_path / "root/opt/xelink/bin" / name)
    write(tmp_path / "root/usr/bin/python3")
    module = tmp_path / "root/opt/xelink/lib/python3.13/site-packages/sidecar/loop.py"
    write(module)
    write(module.parent / "__pycache__/loop.cpython-313.pyc", UNCHECKED)
    (tmp_path / "podman").write_text(PODMAN)
    (tmp_path / "podman").chmod(0o755)
    return tmp_path


def write(path: Path, content: bytes = b"", mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


SITE = "root/opt/xelink/lib/python3.13/site-packages"
CODE = f"{SITE}/sidecar/__pycache__/loop.cpython-313.pyc"


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        pytest.param(lambda _: None, "", id="nothing"),
        pytest.param(lambda at: write(at / "root/usr/bin/sh"), "has ['sh']", id="a shell"),
        pytest.param(lambda at: write(at / "root/usr/sbin/apt-get"), "has ['apt-get']", id="apt"),
        pytest.param(
            lambda at: (at / "root/opt/xelink/bin/xelink-sidecar").unlink(),
            "a command is missing: ['xelink-sidecar']",
            id="no sidecar",
        ),
        pytest.param(lambda at: write(at / SITE / "pip/x"), "has ['pip']", id="pip"),
        pytest.param(
            lambda at: write(at / "root/usr/bin/su", mode=0o4755),
            "set-uid or writable by others: /usr/bin/su",
            id="set-uid",
        ),
        pytest.param(
            lambda at: write(at / "root/etc/passwd", mode=0o666),
            "set-uid or writable by others: /etc/passwd",
            id="writable by others",
        ),
        pytest.param(
            lambda at: (at / CODE).unlink(), "1 of 1 modules without byte code", id="no byte code"
        ),
        pytest.param(
            lambda at: write(at / CODE, UNCHECKED[:4] + bytes(12)),
            "1 of 1 modules without byte code",
            id="byte code with a time",
        ),
        pytest.param(
            lambda at: write(at / CODE, UNCHECKED[:4] + b"\3" + bytes(11)),
            "1 of 1 modules without byte code",
            id="byte code that is checked",
        ),
    ],
)
def test_what_must_not_be_in_the_image_is_found(
    image: Path, spoil: Callable[[Path], object], fault: str
) -> None:
    spoil(image)
    found = told(call("import image_contents; image_contents.files()", image))
    assert found.startswith(fault)
    assert bool(found) is bool(fault)


def labeled(name: str, value: str) -> Callable[[dict[str, Any]], object]:
    return lambda found: found["Config"]["Labels"].update(
        {f"org.opencontainers.image.{name}": value}
    )


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        pytest.param(lambda _: None, "", id="nothing"),
        pytest.param(lambda found: found["Config"].update(User="0:0"), "runs as '0:0'", id="root"),
        pytest.param(
            lambda found: found["Config"].update(Entrypoint=["/x"]), "has an entry", id="entry"
        ),
        pytest.param(
            lambda found: found["Config"].update(Env=["PATH=/usr/bin"]), "buffers", id="buffered"
        ),
        pytest.param(
            lambda found: found["Config"].update(Healthcheck={}), "has a health check", id="health"
        ),
        pytest.param(
            lambda found: found.update(HealthCheck={"Test": ["x"]}),
            "has a health check",
            id="health, as Docker writes it",
        ),
        *(
            pytest.param(labeled(name, "wrong"), f"label {name} is 'wrong'", id=name)
            for name in ("title", "version", "licenses", "description", "revision")
        ),
        pytest.param(labeled("created", ""), "label created is empty", id="created"),
    ],
)
def test_a_configuration_that_is_not_the_project_s_is_found(
    image: Path, spoil: Callable[[dict[str, Any]], object], fault: str
) -> None:
    every = json.loads((image / "inspect.json").read_text())
    spoil(every[0])
    (image / "inspect.json").write_text(json.dumps(every))
    found = told(call("import image_contents; image_contents.configuration()", image))
    assert found.startswith(fault)
    assert bool(found) is bool(fault)


def test_a_container_is_run_as_confined_as_in_a_pod() -> None:
    words = call("import container; print(*container.confined('it', user='1:2'))").stdout.split()
    assert words[words.index("localhost/xelink:test") :] == ["localhost/xelink:test", "it"]
    assert {
        *("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--user=1:2"),
        *("--security-opt=no-new-privileges", "--network=host"),
    } <= {*words}
    assert not [word for word in words if word.startswith(("--cap-add", "--privileged", "--tmpfs"))]


def test_nothing_waits_for_a_container_that_has_ended() -> None:
    program = """
import container, os, threading
with container.started(["true"]) as process:
    process.wait()
for each in threading.enumerate():
    if each is not threading.current_thread():
        each.join(container.TIMEOUT / 4)
print(threading.active_count(), flush=True)
os._exit(0)
"""
    assert call(program).stdout == "1\n"


def test_a_command_that_fails_fails_the_test_with_its_last_line() -> None:
    program = "import container; container.run('/bin/sh', '-c', 'echo one; echo two >&2; exit 3')"
    assert told(call(program)) == ("/bin/sh -c echo one; echo two >&2; exit 3: exit code 3: two")


WHOLE = Blueprint(gpus=8, tiles=2).build()


@pytest.mark.parametrize(
    ("node", "mode", "fault"),
    [
        pytest.param(WHOLE, 0o644, "", id="56 links"),
        pytest.param(WHOLE.cut("0.0-1.0"), 0o644, "published 55 links, not 56", id="55 links"),
        pytest.param(WHOLE, 0o600, "NFD cannot read", id="not readable by all"),
    ],
)
def test_a_publication_that_is_not_whole_is_found(
    tmp_path: Path, node: SimulatedNode, mode: int, fault: str
) -> None:
    content = render(Publication(topology(node)), DEFAULT_NAMESPACE)
    write(tmp_path / "xpum-sidecar-labels.txt", content, mode)
    program = f"import image_test, pathlib; image_test._published(pathlib.Path({str(tmp_path)!r}))"
    found = told(call(program))
    assert found.startswith(fault)
    assert bool(found) is bool(fault)
