"""Container images without a registry: a docker-archive of a few files, for `ctr images import`."""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

BOX = "docker.io/e2e/box:1"


def box(archive: Path) -> Path:
    """Write an image that holds busybox, statically linked, and nothing else."""
    busybox = shutil.which("busybox")
    assert busybox
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for directory in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        program = tarfile.TarInfo("bin/busybox")
        program.mode, program.size = 0o755, Path(busybox).stat().st_size
        with open(busybox, "rb") as file:  # noqa: PTH123 - its path is a string
            tar.addfile(program, file)
        for name in ("sh", "sleep", "ls", "cat", "env", "tail", "mount"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            # The sandbox of a Pod runs this, for ever; test containers name their own command.
            "config": {"Entrypoint": ["/bin/busybox", "tail", "-f", "/dev/null"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"],
            },
        }
    ).encode()
    manifest = json.dumps(
        [{"Config": "config.json", "RepoTags": [BOX], "Layers": ["layer.tar"]}]
    ).encode()
    with tarfile.open(archive, "w") as tar:
        for name, content in (
            ("manifest.json", manifest),
            ("config.json", config),
            ("layer.tar", layer.getvalue()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive
