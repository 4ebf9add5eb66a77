"""What can be known of the image without building it; `make image-test` builds and runs it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_PINNED = re.compile(r"docker\.io/library/debian:\w+-\d{8}-slim@sha256:[0-9a-f]{64}")

Instruction = tuple[str, str]


def instructions(text: str) -> list[Instruction]:
    """Read a Containerfile: the instructions with their arguments, each on one line."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = lines.replace("\\\n", " ").splitlines()
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined) if word
    ]


CONTAINERFILE = instructions((ROOT / "Containerfile").read_text())
_STAGES = [number for number, (word, _) in enumerate(CONTAINERFILE) if word == "FROM"]
LAST = CONTAINERFILE[_STAGES[-1] :]


def given(word: str, stage: list[Instruction]) -> list[str]:
    return [rest for found, rest in stage if found == word]


def make(*arguments: str, path: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/usr/bin/make", *arguments],
        cwd=cwd,
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A directory to be the whole of PATH, with what the Makefile uses but no container tool."""
    for name in ("sed", "git", "date", "awk", "sh"):
        found = next(path for path in (Path("/usr/bin", name), Path("/bin", name)) if path.exists())
        (tmp_path / name).symlink_to(found)
    return tmp_path


def test_the_base_is_an_argument_pinned_by_digest() -> None:
    (base,) = [rest for word, rest in CONTAINERFILE[: _STAGES[0]] if word == "ARG"]
    name, _, default = base.partition("=")
    assert name == "BASE"
    assert _PINNED.fullmatch(default)
    assert CONTAINERFILE[_STAGES[0]] == ("FROM", "${BASE} AS build")


def test_the_last_stage_has_nothing_but_what_is_copied_from_the_build() -> None:
    assert given("FROM", LAST) == ["scratch"]
    assert not given("RUN", LAST)
    assert {rest.split()[0] for rest in given("COPY", LAST)} == {"--from=build"}


def test_the_image_runs_as_a_numeric_user_that_is_not_root_and_without_shell_or_health_check() -> (
    None
):
    (user,) = given("USER", LAST)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert given("CMD", LAST) == ['["xelink-sidecar"]']
    assert not given("ENTRYPOINT", LAST)
    assert not given("HEALTHCHECK", CONTAINERFILE)


def test_output_comes_at_once_and_the_commands_are_found_first() -> None:
    """A log that waits in a buffer is lost with the container."""
    (environment,) = given("ENV", LAST)
    assert dict(word.split("=", 1) for word in environment.split()) == {
        "PATH": "/opt/xelink/bin:/usr/bin",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def test_both_commands_are_started_in_the_build_from_what_the_image_will_hold() -> None:
    commands = [
        command.strip() for rest in given("RUN", CONTAINERFILE) for command in rest.split("&&")
    ]
    starts = [command for command in commands if command.startswith("chroot ")]
    assert starts == [
        f"chroot /image /opt/xelink/bin/{name} -version"
        for name in ("xelink-sidecar", "xelink-device-plugin")
    ]
    moved = commands.index("mkdir --parents /venv/opt")
    assert all(commands.index(start) < moved for start in starts)


def test_the_labels_say_what_the_project_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (labels,) = given("LABEL", LAST)
    found = dict(re.findall(r'org\.opencontainers\.image\.([a-z.]+)="([^"]*)"', labels))
    assert found == {
        "title": project["name"],
        "description": project["description"],
        "licenses": project["license"],
        "version": "${VERSION}",
        "revision": "${REVISION}",
        "created": "${CREATED}",
        "base.name": "${BASE}",
    }


def test_every_install_from_an_index_wants_hashes_and_resolves_nothing() -> None:
    installs = [
        command
        for rest in given("RUN", CONTAINERFILE)
        for command in rest.split("&&")
        if "/pip " in command and not command.rstrip().endswith(" check")
    ]
    assert len(installs) == 4
    for command in installs:
        assert ("--require-hashes" in command) != ("--no-index" in command), command
        assert "--no-deps" in command, command


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-build.lock"])
def test_what_the_image_installs_is_locked_with_hashes(lock: str) -> None:
    text = (ROOT / lock).read_text()
    pins = [pin for pin in re.split(r"^(?=\w)", text, flags=re.MULTILINE) if pin]
    assert len(pins) > 3
    for pin in pins:
        assert re.match(r"[a-z0-9-]+==\S+ \\\n +--hash=sha256:[0-9a-f]{64}\b", pin), pin


def test_the_wheel_is_made_by_the_tools_that_the_development_lock_names() -> None:
    development = (ROOT / "requirements-dev.lock").read_text()
    for line in (ROOT / "requirements-build.lock").read_text().splitlines():
        if line[:1].isalnum():
            assert line in development


def test_every_package_of_the_wheel_is_copied_and_let_through() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wanted = {*wheel["targets"]["wheel"]["packages"], "pyproject.toml", "README.md", "LICENSE"}
    copied = {
        source
        for rest in given("COPY", CONTAINERFILE)
        if not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert wanted <= copied
    ignored = (ROOT / ".containerignore").read_text().splitlines()
    assert "*" in ignored
    assert {f"!{name}" for name in copied} == {line for line in ignored if line.startswith("!")}


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (("docker", "buildah", "podman"), "podman"),
        (("docker", "buildah"), "buildah"),
        (("docker",), "docker"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_make_image_takes_the_tool_that_is_there(
    tools: Path, there: tuple[str, ...], chosen: str
) -> None:
    for tool in there:
        (tools / tool).write_text("#!/bin/sh\n")
        (tools / tool).chmod(0o755)
    done = make("--dry-run", "image", "BASE=registry.example.com/debian:13", path=str(tools))
    assert done.returncode == 0, done.stderr
    assert f"{tools / chosen} build --file Containerfile --tag xelink:" in done.stdout
    assert "--build-arg BASE=registry.example.com/debian:13" in done.stdout
    # BuildKit takes the time from SOURCE_DATE_EPOCH; the others have a flag.
    assert ("--timestamp" in done.stdout) == (chosen != "docker")


def test_make_image_without_any_tool_says_what_to_install(tools: Path) -> None:
    done = make("image", path=str(tools))
    assert done.returncode != 0
    first, *rest = done.stderr.splitlines()
    assert first == "make image needs podman, buildah or docker; on Debian: apt-get install buildah"
    assert [line for line in rest if not line.startswith("make")] == []


def test_the_image_test_names_the_tools_that_are_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "image_test.py"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        "image-test: needs debootstrap, buildah, podman, runc, make, git; "
    )
    assert done.stderr.count("\n") == 1


# What `make image-test` looks at, with a podman that runs on this machine whatever it is asked to.
PODMAN = """#!/bin/sh
for word; do case $word in --user=*) uid=${word#--user=}; uid=${uid%%:*};; esac; done
echo "PRINTED"
echo "SAID" >&2
"""
CALL = "import image_test; image_test._privileges()"
READ_ONLY = "OSError: [Errno 30] Read-only file system: '/written'"


@pytest.mark.parametrize(
    ("printed", "said", "fault"),
    [
        pytest.param("$uid 0 1 2", READ_ONLY, "", id="confined"),
        pytest.param("$uid 0 1 2", "", "the root is not read-only", id="a root that is writable"),
        pytest.param("$uid 1024 1 2", READ_ONLY, "privileges are", id="a capability"),
        pytest.param("$uid 0 0 2", READ_ONLY, "privileges are", id="new privileges"),
        pytest.param("$uid 0 1 0", READ_ONLY, "privileges are", id="no seccomp"),
        pytest.param("0 0 1 2", READ_ONLY, "privileges are", id="always root"),
    ],
)
def test_the_image_test_finds_a_container_that_is_not_confined(
    tmp_path: Path, printed: str, said: str, fault: str
) -> None:
    podman = tmp_path / "podman"
    podman.write_text(PODMAN.replace("PRINTED", printed).replace("SAID", said))
    podman.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", CALL],
        cwd=ROOT / "tools",
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is (not fault), done.stderr
    assert fault in done.stderr
    assert done.stdout.startswith("confined: read-only root") is (not fault)


def test_the_image_test_takes_every_look_that_it_has() -> None:
    program = (
        "import image_test; print(*(f'{look.__module__}.{look.__name__}' for look in"
        " image_test.LOOKS))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "tools",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [
        "image_contents.configuration",
        "image_contents.files",
        *(f"image_test.{name}" for name in ("_privileges", "_oneshot", "_daemons", "_demo")),
    ]
    text = (ROOT / "tools" / "image_test.py").read_text()
    assert text.count("for look in LOOKS:\n                look()\n") == 1
