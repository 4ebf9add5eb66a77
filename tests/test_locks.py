"""A lock is installed as it stands, by any pip, whatever the index has by now."""

import base64
import hashlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "environment.py"
MINORS = range(11, 15)

# What a lock says of them, and what the index has beside it: newer ones of everything that an extra
# names. `roof` needs `wall[door]`, and that extra needs `hinge`.
LOCKED = {"roof": "1.0", "wall": "1.0", "hinge": "1.0"}
NEWER = {"wall": "2.0", "hinge": "2.0"}
METADATA: Mapping[str, str] = {
    "roof": "Requires-Dist: wall[door]>=1.0\n",
    "wall": 'Provides-Extra: door\nRequires-Dist: hinge>=1.0; extra == "door"\n',
    "hinge": "",
}


def wheel(index: Path, name: str, version: str) -> Path:
    """Write a wheel with nothing but metadata; give its path."""
    path = index / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + METADATA[name],
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{file},{_digest(text.encode())},{len(text)}" for file, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


def _digest(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    return f"sha256={digest}"


def lock(wheels: Mapping[str, Path], path: Path) -> Path:
    """Write a lock as uv does."""
    path.write_text(
        "".join(
            f"{name}=={LOCKED[name]} \\\n"
            f"    --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"
            for name, file in wheels.items()
        )
    )
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of wheels that serves as an index."""
    folder = tmp_path_factory.mktemp("index")
    for name, version in NEWER.items():
        wheel(folder, name, version)
    return folder


@pytest.fixture(scope="module")
def wheels(index: Path) -> Mapping[str, Path]:
    """Give the wheels that the lock names."""
    return {name: wheel(index, name, version) for name, version in LOCKED.items()}


def local(index: Path, pip: Path) -> dict[str, str]:
    """Give an environment in which this is the pip, and this index all that it has."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return {
        **bare,
        "HOME": str(index),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": str(index),
        "PIP_NO_CACHE_DIR": "1",
        "PIP_NO_INDEX": "1",
        "PYTHONPATH": str(pip),
    }


def ended(environment: Mapping[str, str], *command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@cache
def tool(name: str) -> ModuleType:
    """Load a program of tools/ as a module."""
    spec = spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    sys.modules[name] = module  # where a class of it is looked for
    spec.loader.exec_module(module)
    return module


@cache
def pythons() -> Mapping[int, Path]:
    """Give the oldest Python of each minor version on this machine."""
    every = reversed(tool("pythons").pythons(os.environ))
    return {python.release[1]: python.path for python in every}


BUNDLED = """
import ensurepip, pathlib, sysconfig
ours = pathlib.Path(ensurepip.__file__).parent / "_bundled"
print(sysconfig.get_config_var("WHEEL_PKG_DIR") or ours)
"""


def bare(python: Path, folder: Path) -> tuple[Path, Path]:
    """Make an environment without pip; give it, and the pip that this Python would put there.

    That takes most of the time, as it is compiled; here only what is used of it.
    """
    made, pip = folder / "made", folder / "pip"
    subprocess.run([python, "-m", "venv", "--without-pip", made], check=True)
    (made / ".built").touch()
    asked = ended(os.environ, python, "-I", "-c", BUNDLED)
    (bundled,) = Path(asked.stdout.strip()).glob("pip-*.whl")
    with zipfile.ZipFile(bundled) as archive:
        archive.extractall(pip)
    return made, pip


def installed(environment: Path) -> set[str]:
    """Give the names and versions of the packages in an environment."""
    return {path.stem for path in environment.glob("lib/python3.*/site-packages/*.dist-info")}


@pytest.mark.parametrize("minor", MINORS, ids=lambda minor: f"3.{minor}")
def test_a_lock_is_installed_as_it_stands_whatever_the_index_has_by_now(
    minor: int, index: Path, wheels: Mapping[str, Path], tmp_path: Path
) -> None:
    if minor not in pythons():
        pytest.skip(f"there is no Python 3.{minor} with pip on this machine")
    made, pip = bare(pythons()[minor], tmp_path)
    locked = lock(wheels, tmp_path / "some.lock")
    done = ended(local(index, pip), sys.executable, TOOL, made, locked)
    assert done.returncode == 0, done.stdout
    assert installed(made) == {f"{name}-{version}" for name, version in LOCKED.items()}


def test_the_package_names_the_pythons_that_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {one.rpartition(" ")[2] for one in project["classifiers"] if ":: 3." in one}
    assert named == {f"3.{minor}" for minor in MINORS}
    assert project["requires-python"] == f">=3.{MINORS[0]}"


def test_what_is_called_python_and_never_answers_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool("pythons"), "_TIMEOUT", 0.1)
    program = tmp_path / "python3"
    program.write_text("#!/bin/sh\nexec sleep 3600\n")
    program.chmod(0o755)
    assert tool("pythons").ask(program) is None


def test_the_python_that_runs_the_tests_is_one_of_the_machine() -> None:
    here = Path(os.path.realpath(sys.executable))
    assert here in {python.path for python in tool("pythons").pythons(os.environ)}


@pytest.mark.parametrize(
    ("names", "spoiled", "said"),
    [
        pytest.param(("hinge", "roof"), "", "requires wall", id="incomplete"),
        pytest.param(("wall",), "wall", "DO NOT MATCH THE HASHES", id="another file"),
    ],
)
def test_a_lock_that_is_wrong_fails_and_pip_says_why(
    names: tuple[str, ...],
    spoiled: str,
    said: str,
    index: Path,
    wheels: Mapping[str, Path],
    tmp_path: Path,
) -> None:
    made, pip = bare(Path(os.path.realpath(sys.executable)), tmp_path)
    locked = lock({name: wheels[name] for name in names}, tmp_path / "wrong.lock")
    if spoiled:
        digest = hashlib.sha256(wheels[spoiled].read_bytes()).hexdigest()
        locked.write_text(locked.read_text().replace(digest, "0" * len(digest)))
    done = ended(local(index, pip), sys.executable, TOOL, made, locked)
    assert done.returncode == 1
    assert said in done.stdout
    assert done.stdout.endswith(": failed\n")


def installations(text: str) -> Iterator[str]:
    """Give each command that has pip install a lock."""
    for line in text.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|;", line):
            if re.search(r"\bpip\b.* install\b", command) and ".lock" in command:
                yield command


# What has a command of its own, beside tools/environment.py.
INSTALLERS = {"Makefile", "Containerfile", "docs/install.md"}
READ = ("*file", ".ci/*", "*.md", "docs/*.md", "tools/*")


def test_whoever_installs_a_lock_does_it_as_it_stands_and_checks_it() -> None:
    texts = {
        str(path.relative_to(ROOT)): path.read_text()
        for pattern in READ
        for path in ROOT.glob(pattern)
        if path.is_file()
    }
    commands = {file: found for file, text in texts.items() if (found := [*installations(text)])}
    assert commands.keys() >= INSTALLERS
    for file, found in commands.items():
        for command in found:
            assert {"--no-deps", "--require-hashes"} <= {*command.split()}, f"{file}: {command}"
        assert re.search(r"\bpip\b[^\n|&;]* check\b", texts[file]), f"{file} checks nothing"
