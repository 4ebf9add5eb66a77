# ruff: noqa: INP001 - a program's part, not a package
"""The image at rest: its configuration, and the files of its root."""

import json
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from container import IMAGE, MEGABYTE, PODMAN, ROOT, USER, must, run, say

FORBIDDEN = {
    *("pip", "pip3", "easy_install", "apt", "apt-get", "dpkg", "sh", "bash", "dash", "busybox"),
    *("gcc", "cc", "c++", "g++", "ld", "as", "make", "perl"),
}
COMMANDS = ("xelink", "xelink-device-plugin", "xelink-sidecar")


def configuration() -> None:
    """Hold user, labels and what is not there against the project. Raises `ImageTestError`."""
    found: dict[str, Any] = json.loads(run(*PODMAN, "image", "inspect", IMAGE))[0]
    config = found["Config"]
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    must(config["User"] == USER, f"runs as {config['User']!r} by default, not as {USER}")
    unbuffered = "PYTHONUNBUFFERED=1" in config.get("Env", ())
    must(unbuffered, "buffers its output: the last lines of a log would be lost")
    must(not config.get("Entrypoint"), "has an entry point: command: would not be the command")
    must(not found.get("HealthCheck") and "Healthcheck" not in config, "has a health check")
    for name, wanted in (
        ("title", project["name"]),
        ("version", project["version"]),
        ("licenses", project["license"]),
        ("description", project["description"]),
        ("revision", run("git", "rev-parse", "HEAD").strip()),
    ):
        must(labels.get(name) == wanted, f"label {name} is {labels.get(name)!r}, not {wanted!r}")
    must(bool(labels.get("created")), "label created is empty")
    say(f"configuration: user {USER}, labels, version {labels['version']}, no entry point")


def files() -> None:
    """Look for what must not be there and must be; tell the size. Raises `ImageTestError`."""
    root = Path(run(*PODMAN, "image", "mount", IMAGE).strip())
    found = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    programs = {path.name for path in root.glob("usr/*bin/*")} | {
        path.name for path in root.glob("opt/xelink/bin/*")
    }
    must({*COMMANDS} <= programs, f"a command is missing: {sorted({*COMMANDS} - programs)}")
    must(not programs & FORBIDDEN, f"has {sorted(programs & FORBIDDEN)}")
    unwanted = {
        path.name for path in root.rglob("*") if path.name in {"pip", "setuptools", "ensurepip"}
    }
    must(not unwanted, f"has {sorted(unwanted)}")
    say(f"programs: {' '.join(sorted(programs))}")

    special = [path for path in found if path.stat().st_mode & 0o6022]
    must(not special, f"set-uid or writable by others: {_first(special, root)}")
    source = [path for path in found if path.suffix == ".py"]
    naked = [path for path in source if not _is_compiled(path)]
    must(
        not naked,
        f"{len(naked)} of {len(source)} modules without byte code: {_first(naked, root)}",
    )
    say(f"byte code: {len(source)} modules, never checked against their source")

    site = next(root.glob("opt/xelink/lib/python3*/site-packages"))
    parts = {path.name: _size(path) for path in site.iterdir() if path.is_dir()}
    largest = sorted(parts, key=lambda name: -parts[name])[:5]
    parts = {"Debian": _size(root) - _size(root / "opt")} | {name: parts[name] for name in largest}
    told = ", ".join(f"{name} {size / MEGABYTE:.1f}" for name, size in parts.items())
    say(f"size: {_size(root) / MEGABYTE:.1f} MB in {len(found)} files: {told}, ...")
    run(*PODMAN, "image", "unmount", IMAGE)
    with tempfile.TemporaryDirectory(prefix="xelink-") as name:
        archive = Path(name) / "image.tar"
        run(*PODMAN, "save", "--quiet", "--format=oci-archive", f"--output={archive}", IMAGE)
        say(f"compressed: {archive.stat().st_size / MEGABYTE:.1f} MB")


def _first(paths: Sequence[Path], root: Path) -> str:
    return ", ".join(f"/{path.relative_to(root)}" for path in paths[:3])


def _is_compiled(source: Path) -> bool:
    code = [*(source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")]
    # PEP 552: bit 0 of the second word says hash-based, bit 1 checked.
    return bool(code) and int.from_bytes(code[0].read_bytes()[4:8], "little") == 1


def _size(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if not path.is_dir())
