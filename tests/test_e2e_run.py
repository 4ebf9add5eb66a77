"""`make e2e`: a run changes no file of the machine, and what it misses is said, or is an error."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from select import select
from uuid import uuid4

import pytest

ROOT = Path(__file__).parents[1]
APART = ROOT / "tools" / "apart.sh"
# Where no process of the machine is seen, such as a kubelet of another run.
ALONE = (
    *(shutil.which("unshare") or "unshare", "--mount", "--pid", "--fork"),
    *("--kill-child", "--mount-proc"),
)
IN_NAMESPACES = (*ALONE, "--ipc")
PATIENCE = 150.0  # seconds until a run that hangs is given up

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces")

# Written by the programs of the bench, and by none of them: no list of paths is complete.
WRITTEN = (
    "/boot",
    "/etc",
    "/etc/cni/net.d",
    "/home",
    "/opt/cni/bin",
    "/root/.kube/cache",
    "/srv",
    "/usr/libexec/kubernetes/kubelet-plugins",
    "/usr/local",
    "/var/cache",
    "/var/lib/cni/results",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log/pods",
)


def in_a_node(work: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script as what runs in a node, in namespaces that end with it."""
    work.mkdir()
    return subprocess.run(
        [*IN_NAMESPACES, APART, work, "sh", "-euc", script, "sh", *arguments],
        env={**os.environ, "E2E_WORK": str(work)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A node's directory, that is not there yet."""
    return tmp_path / "node"


@needs_root
def test_what_a_node_writes_is_not_on_the_machine(work: Path) -> None:
    unheard_of = f"xelink-{uuid4()}"
    paths = [f"{directory}/{unheard_of}/file" for directory in WRITTEN]
    script = 'for each; do mkdir -p "${each%/*}"; echo mine >"$each"; cat "$each"; done'
    done = in_a_node(work, script, *paths)
    left = [path for path in paths if Path(path).exists()]
    for path in left:
        shutil.rmtree(Path(path).parent)
    assert done.stdout.split() == ["mine"] * len(paths), done.stderr
    assert left == []


@needs_root
def test_what_a_node_changes_and_removes_stays_on_the_machine(work: Path, tmp_path: Path) -> None:
    kept, changed = tmp_path / "kept", tmp_path / "changed"
    for file in (kept, changed):
        file.write_text("the machine's\n")
    script = 'rm "$1"; chmod 0 "$2"; echo mine >>"$2"; cat "$2"; [ ! -e "$1" ]'
    done = in_a_node(work, script, str(kept), str(changed))
    assert done.stdout == "the machine's\nmine\n", done.stderr
    assert kept.read_text() == changed.read_text() == "the machine's\n"
    assert changed.stat().st_mode & 0o777 == 0o644


@needs_root
def test_a_node_makes_no_directory_at_the_root(work: Path) -> None:
    path = Path(f"/xelink-{uuid4()}")
    done = in_a_node(work, 'mkdir "$1"', str(path))
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr
    assert not path.exists()


@needs_root
@pytest.mark.parametrize("separate", [False, True], ids=["one file system", "file systems below"])
def test_a_node_sees_nothing_of_earlier_runs_and_leaves_them_alone(
    work: Path, *, separate: bool
) -> None:
    """On a machine of its own: a node's view, in which file systems are mounted and files made."""
    machine = """
        if [ "$1" = True ]; then mount -t tmpfs var /var/lib; mount -t tmpfs opt /opt; fi
        mkdir -p /var/lib/cni/results /var/lib/kubelet/pki /opt/cni/bin
        touch /var/lib/cni/results/old /var/lib/kubelet/pki/old /opt/cni/bin/old /var/lib/beside
        before=$(find /var/lib /opt | sort)
        mkdir "$E2E_WORK/inner"
        unshare --mount "$2" "$E2E_WORK/inner" sh -euc '
            ls -A /var/lib/cni /var/lib/kubelet /opt/cni
            for each in /var/lib/cni /var/lib/kubelet /var/lib /opt/cni /opt; do
                mkdir "$each/mine"
                touch "$each/mine/new"
            done
            ls /var/lib/beside /opt/mine
        '
        [ "$before" = "$(find /var/lib /opt | sort)" ]
    """
    done = in_a_node(work, machine, str(separate), str(APART))
    assert done.returncode == 0, done.stderr
    seen = [line for line in done.stdout.split() if not line.endswith(":")]
    assert seen == ["/var/lib/beside", "new"]


@needs_root
def test_a_node_keeps_the_tree_and_its_own_directory(work: Path) -> None:
    script = 'touch "$E2E_WORK/mine"; [ "$(pwd)" = "$1" ]; [ "$1" -ef "$2" ]; stat -fc %T .'
    done = in_a_node(work, script, str(ROOT), ".")
    assert done.returncode == 0, done.stderr
    assert "overlay" not in done.stdout
    assert (work / "mine").exists()


def test_every_file_of_stories_is_told_by_a_run() -> None:
    script = (ROOT / "tools" / "e2e-run.sh").read_text()
    files = [path.relative_to(ROOT) for path in (ROOT / "tests" / "e2e").glob("test_*.py")]
    assert files
    assert [file for file in files if script.count(str(file)) != 1] == []


# What a run is told by programs that stand before the machine's in PATH, and without which it would
# have what it needs: a directory for them, what it prepares, and where it goes to look.
PROGRAMS = (
    *("kubelet", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"),
    *("nfd-worker", "nfd-master", "etcd", "containerd", "containerd-shim-runc-v2", "ctr", "runc"),
    *("busybox", "ip", "iptables", "setpriv"),
)


class Tree:
    """A tree that holds the run's scripts, where everything that they build is there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.image = root / "image.tar"
        self.definitions = root / ".cache" / "tools" / "crds"
        (root / "tools").mkdir(parents=True)
        for name in ("e2e-run.sh", "e2e-node.sh", "e2e-image.sh", "apart.sh"):
            shutil.copy(ROOT / "tools" / name, root / "tools")
        for name in ("e2e-build.sh", "deployment-tools.sh"):
            self.program(f"tools/{name}", "exit 0")
        for name in PROGRAMS:
            self.program(f"bin/{name}", "exit 0")
        self.program("bin/id", "echo 0")
        self.program("bin/uname", "echo x86_64")
        self.program("bin/unshare", "echo nothing; exit 1")
        for name in ("Containerfile", "pyproject.toml", "README.md", "LICENSE"):
            (root / name).touch()
        (root / "requirements.lock").touch()
        for name in ("xelink", "sidecar", "device_plugin"):
            (root / name).mkdir()
        self.image.touch()
        self.definitions.mkdir(parents=True)
        (self.definitions / "one.yaml").touch()

    def program(self, path: str, script: str) -> None:
        file = self.root / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def run(self, env: Mapping[str, str], without: str = "") -> subprocess.CompletedProcess[str]:
        ready = {"E2E_BIN": str(self.bin), "E2E_IMAGE": str(self.image)}
        ready.pop(without, None)
        alone = ALONE if os.geteuid() == 0 else ()
        return subprocess.run(
            [*alone, self.root / "tools" / "e2e-run.sh", "--collect-only"],
            env={"PATH": f"{self.bin}:{os.environ['PATH']}", **ready, **env},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A tree where nothing is missing but what a namespace gives."""
    return Tree(tmp_path / "tree")


@needs_root
def test_building_the_image_leaves_nothing_but_the_image(tree: Tree) -> None:
    unheard_of = f"xelink-{uuid4()}"
    kept = [f"{path}/{unheard_of}" for path in ("/etc/cni/net.d", "/var/lib/containers/cache")]
    (tree.bin / "unshare").unlink()
    tree.program("bin/debootstrap", 'mkdir -p "$3/etc"')
    tree.program("bin/make", "exit 0")
    tree.program(
        "bin/buildah",
        f"mkdir -p {' '.join(kept)}\n"
        'for last; do :; done; archive=${last#docker-archive:}; [ "$1" != push ] || '
        'echo built >"${archive%%:*}"',
    )
    done = subprocess.run(
        [tree.root / "tools" / "e2e-image.sh"],
        env={"PATH": f"{tree.bin}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout == "e2e: building the image\n", done.stderr
    assert (tree.root / ".cache" / "e2e" / "xelink.tar").read_text() == "built\n"
    assert [path for path in kept if Path(path).exists()] == []


@needs_root
def test_the_image_test_leaves_nothing_that_its_tools_keep(tree: Tree) -> None:
    kept = Path(f"/var/lib/containers/xelink-{uuid4()}")
    for name in ("debootstrap", "buildah", "podman", "runc", "make", "git"):
        tree.program(f"bin/{name}", f"mkdir -p {kept}; test -d {kept} && echo kept >&2; exit 1")
    (tree.bin / "unshare").unlink()
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "image_test.py"],
        env={**os.environ, "PATH": f"{tree.bin}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert done.stderr.endswith(": exit code 1: kept\n")
    assert not kept.exists()


def no_root(tree: Tree) -> None:
    tree.program("bin/id", "echo 1000")


def another_processor(tree: Tree) -> None:
    tree.program("bin/uname", "echo aarch64")


def no_program(tree: Tree) -> None:
    (tree.bin / "nfd-worker").unlink()


def no_definitions(tree: Tree) -> None:
    shutil.rmtree(tree.definitions)


def no_image(tree: Tree) -> None:
    tree.image.unlink()


def assert_skipped(done: subprocess.CompletedProcess[str], why: str, *, required: bool) -> None:
    """See the one line that says why no story was told, and the exit code that belongs to it."""
    assert done.returncode == int(required), done.stdout + done.stderr
    (line,) = (done.stderr if required else done.stdout).splitlines()[-1:]
    assert line.startswith("e2e: FAILED, nothing was run: " if required else "e2e: skipped: ")
    assert why in line


each_way = pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])


@each_way
@pytest.mark.parametrize(
    ("lose", "why"),
    [
        pytest.param(no_root, "it takes root", id="no root"),
        pytest.param(another_processor, "this machine is aarch64", id="another processor"),
        pytest.param(no_program, "not here: nfd-worker", id="a program is missing"),
    ],
)
def test_what_is_missing_skips_the_run_or_is_an_error(
    tree: Tree, lose: Callable[[Tree], None], why: str, *, required: bool
) -> None:
    lose(tree)
    done = tree.run({"E2E_REQUIRED": "1"} if required else {})
    assert_skipped(done, why, required=required)


@each_way
def test_a_build_that_fails_skips_the_run_or_is_an_error(tree: Tree, *, required: bool) -> None:
    tree.program("tools/e2e-build.sh", "echo no such module >&2; exit 1")
    done = tree.run({"E2E_REQUIRED": "1"} if required else {}, without="E2E_BIN")
    assert "no such module" in done.stderr
    assert_skipped(done, "could not be built", required=required)


@pytest.mark.parametrize(
    ("lose", "why"),
    [
        pytest.param(no_definitions, "no definitions of custom resources", id="definitions"),
        pytest.param(no_image, "no image ", id="an image"),
    ],
)
def test_what_only_some_stories_need_is_said_or_is_an_error(
    tree: Tree, lose: Callable[[Tree], None], why: str
) -> None:
    lose(tree)
    no_program(tree)
    assert_skipped(tree.run({"E2E_REQUIRED": "1"}), why, required=True)
    lenient = tree.run({})
    said, skipped = lenient.stdout.splitlines()
    assert said.startswith(f"e2e: some tests will be skipped: {why}")
    assert "not here: nfd-worker" in skipped


def beside_a_kubelet(tree: Tree) -> tuple[str, str]:
    shutil.copy("/bin/sleep", tree.root / "kubelet")
    return (
        '"$tree/kubelet" infinity & until grep -sq ^kubelet /proc/$!/comm; do :; done',
        "runs here",
    )


def on_a_node(_: Tree) -> tuple[str, str]:
    return "touch /var/lib/kubelet/config.yaml", "/var/lib/kubelet holds files"


def without_namespaces(_: Tree) -> tuple[str, str]:
    return (
        "mkdir -p /usr/lib/cni; touch /usr/lib/cni/bridge; chmod +x /usr/lib/cni/bridge",
        "does not give root nothing",
    )


@needs_root
@each_way
@pytest.mark.parametrize("machine", [beside_a_kubelet, on_a_node, without_namespaces])
def test_a_machine_that_cannot_take_it_skips_the_run_or_is_an_error(
    tree: Tree, work: Path, machine: Callable[[Tree], tuple[str, str]], *, required: bool
) -> None:
    """In a node's view of this machine, in which a kubelet may run."""
    prepare, why = machine(tree)
    script = f"""
        tree=$1
        {prepare}
        export E2E_BIN=$tree/bin E2E_IMAGE=$tree/image.tar PATH=$tree/bin:$PATH
        [ "$2" = False ] || export E2E_REQUIRED=1
        unset E2E_WORK
        "$tree/tools/e2e-run.sh" --collect-only
    """
    done = in_a_node(work, script, str(tree.root), str(required))
    assert_skipped(done, why, required=required)


has_bridge = pytest.mark.skipif(
    not Path("/usr/lib/cni/bridge").exists(), reason="containernetworking-plugins is not installed"
)


@has_bridge
@pytest.mark.parametrize(
    ("arguments", "nodes"), [([], 3), (["-k", "expiry"], 1)], ids=["all stories", "some"]
)
def test_a_run_that_is_interrupted_ends_its_nodes(
    tree: Tree, arguments: list[str], nodes: int
) -> None:
    """Each node is a process that waits, and that hands us a pipe when it has begun."""
    begun = tree.root / "begun"
    os.mkfifo(begun)
    tree.program(
        "bin/unshare",
        f'case "$*" in *probe*) exit 0 ;; esac; echo $$ >{begun}; exec sleep infinity',
    )
    for name in ("cat", "find", "flock"):  # other runs on this machine are not looked for
        tree.program(f"bin/{name}", "exit 0")
    said = tree.root / "said"
    with (
        said.open("wb") as errors,
        begun.open("rb+", buffering=0) as pipe,
        subprocess.Popen(
            [tree.root / "tools" / "e2e-run.sh", *arguments],
            env={
                "PATH": f"{tree.bin}:{os.environ['PATH']}",
                "E2E_BIN": str(tree.bin),
                "E2E_IMAGE": str(tree.image),
            },
            stderr=errors,
        ) as run,
    ):
        started: list[int] = []
        while len(started) < nodes:
            assert select([pipe], [], [], PATIENCE)[0], said.read_text()
            started += map(int, pipe.read(4096).split())
        run.terminate()
        try:
            run.wait(PATIENCE)
        finally:
            left = [pid for pid in started if Path(f"/proc/{pid}").exists()]
            for pid in left:
                os.kill(pid, signal.SIGKILL)
    assert left == []
    assert run.returncode != 0
    assert "left behind" not in said.read_text()


STORIES = """
import pytest

def test_told(): ...

def test_not_told():
    pytest.skip("there is no moon")

@pytest.fixture
def moon():
    pytest.skip("there is no moon")

def test_not_begun(moon): ...
"""


@each_way
def test_a_skipped_story_is_told_of_or_is_an_error(tmp_path: Path, *, required: bool) -> None:
    (tmp_path / "test_stories.py").write_text(STORIES)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(
        "from tests.e2e.conftest import pytest_runtest_makereport\n"
        "from tests.e2e.summary import table\n"
        "def pytest_terminal_summary(terminalreporter):\n"
        "    stats = terminalreporter.stats\n"
        "    told = stats.get('failed', []) + stats.get('error', []) + stats.get('skipped', [])\n"
        "    terminalreporter.write_line('\\n'.join(table(told)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=no", tmp_path],
        cwd=tmp_path,
        env={
            **{name: value for name, value in os.environ.items() if name != "E2E_REQUIRED"},
            "PYTHONPATH": str(ROOT),
            **({"E2E_REQUIRED": "1"} if required else {}),
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == int(required), done.stdout + done.stderr
    counted = "1 failed, 1 passed, 1 error" if required else "1 passed, 2 skipped"
    assert counted in done.stdout
    table = [line for line in done.stdout.splitlines() if line.startswith(("failed ", "skipped "))]
    assert len(table) == 2
    assert all("there is no moon" in line for line in table)
    assert all(("E2E_REQUIRED is set" in line) is required for line in table)
