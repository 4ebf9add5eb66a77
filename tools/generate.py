# ruff: noqa: INP001 - a program, not a package
"""Write the generated files of this tree, or check that they are current.

    tools/generate.py            write what is stale, name it
    tools/generate.py --check    write nothing; fail with one line that names the first stale file

A new kind of generated file is one more row of `GENERATORS`.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import cli
import readme
from grpc_tools import protoc  # type: ignore[import-untyped]  # it ships no types

ROOT = Path(__file__).resolve().parent.parent

Contents = Mapping[Path, bytes]
"""Path relative to the root of the tree, to what must stand there."""


class GenerateError(Exception):
    """A generator failed: nothing of it was written."""


@dataclass(frozen=True)
class Generator:
    """One kind of generated file.

    `generate` makes them from the tree below the root that it is given. `owned` are patterns of
    all such files: one that matches and is not made any more is stale, too.
    """

    name: str
    generate: Callable[[Path], Contents]
    owned: tuple[str, ...] = ()

    def stale(self, root: Path) -> dict[Path, bytes | None]:
        """Return what differs from the tree: what should stand there, None for nothing at all."""
        wanted = self.generate(root)
        found = {path.relative_to(root) for pattern in self.owned for path in root.glob(pattern)}
        leftovers: dict[Path, bytes | None] = dict.fromkeys(sorted(found - wanted.keys()))
        return leftovers | {
            path: content
            for path, content in sorted(wanted.items())
            if not (root / path).is_file() or (root / path).read_bytes() != content
        }


def stubs(root: Path) -> Contents:
    """Make messages, services and their types from every `.proto` of the device plugin.

    protoc is given paths from the root of the tree, so that the stubs import each other as parts
    of the package `xelink.api`.
    """
    protos = sorted(path.relative_to(root) for path in root.glob("xelink/api/*.proto"))
    plugins = Path(sys.executable).parent
    with TemporaryDirectory() as directory:
        arguments = [
            "protoc",
            f"--proto_path={root}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--plugin={plugins / 'protoc-gen-mypy'}",
            f"--plugin={plugins / 'protoc-gen-mypy_grpc'}",
            *(f"--{kind}_out={directory}" for kind in ("python", "grpc_python")),
            *(f"--{kind}_out=quiet:{directory}" for kind in ("mypy", "mypy_grpc")),
            *map(str, protos),
        ]
        if status := protoc.main(arguments):
            raise GenerateError(f"protoc failed with status {status}")
        made = Path(directory)
        return {
            path.relative_to(made): path.read_bytes() for path in made.rglob("*") if path.is_file()
        }


GENERATORS: tuple[Generator, ...] = (
    Generator("stubs", stubs, ("xelink/api/*_pb2*.py", "xelink/api/*_pb2*.pyi")),
    Generator("tables", readme.tables),
    Generator("outputs", readme.outputs),
    Generator("examples", cli.examples),
    Generator("cli", cli.pages),
)


def check(root: Path, generators: Iterable[Generator]) -> str | None:
    """Return in one line what is stale, None when everything is current."""
    for generator in generators:
        for path in generator.stale(root):
            return f"{path} is stale: run tools/generate.py ({generator.name})"
    return None


def write(root: Path, generators: Iterable[Generator]) -> list[Path]:
    """Write what is stale and remove what is left over; give the paths."""
    changed: list[Path] = []
    for generator in generators:
        for path, content in generator.stale(root).items():
            if content is None:
                (root / path).unlink()
            else:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(content)
            changed.append(path)
    return changed


def main(
    arguments: Sequence[str] | None = None,
    root: Path = ROOT,
    generators: Iterable[Generator] = GENERATORS,
) -> int:
    """Write, or check; give the exit code."""
    parser = argparse.ArgumentParser(description="write the generated files of this tree")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if one is stale")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            problem = check(root, generators)
            if problem:
                sys.stderr.write(f"{problem}\n")
            return 1 if problem else 0
        for path in write(root, generators):
            sys.stdout.write(f"{path}\n")
    except (GenerateError, readme.BlockError, cli.CommandError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
