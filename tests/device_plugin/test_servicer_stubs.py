import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor

from xelink.api import deviceinfo_pb2, deviceplugin_pb2

ROOT = Path(__file__).resolve().parents[2]
STUB = Path("xelink/api/deviceplugin_pb2.py")

# message: type name = number, "+" for repeated
PLUGIN = """
DevicePluginOptions: bool pre_start_required=1, bool get_preferred_allocation_available=2
RegisterRequest: string version=1, string endpoint=2, string resource_name=3, \
DevicePluginOptions options=4
ListAndWatchResponse: Device+ devices=1
Device: string ID=1, string health=2, TopologyInfo topology=3
TopologyInfo: NUMANode+ nodes=1
NUMANode: int64 ID=1
PreferredAllocationRequest: ContainerPreferredAllocationRequest+ container_requests=1
ContainerPreferredAllocationRequest: string+ available_deviceIDs=1, \
string+ must_include_deviceIDs=2, int32 allocation_size=3
PreferredAllocationResponse: ContainerPreferredAllocationResponse+ container_responses=1
ContainerPreferredAllocationResponse: string+ deviceIDs=1
AllocateRequest: ContainerAllocateRequest+ container_requests=1
ContainerAllocateRequest: string+ devices_ids=1
AllocateResponse: ContainerAllocateResponse+ container_responses=1
ContainerAllocateResponse: EnvsEntry+ envs=1, Mount+ mounts=2, DeviceSpec+ devices=3, \
AnnotationsEntry+ annotations=4, CDIDevice+ cdi_devices=5
Mount: string container_path=1, string host_path=2, bool read_only=3
DeviceSpec: string container_path=1, string host_path=2, string permissions=3
CDIDevice: string name=1
PreStartContainerRequest: string+ devices_ids=1
PreStartContainerResponse:
Empty:
Registration.Register: RegisterRequest -> Empty
DevicePlugin.GetDevicePluginOptions: Empty -> DevicePluginOptions
DevicePlugin.ListAndWatch: Empty -> ListAndWatchResponse+
DevicePlugin.GetPreferredAllocation: PreferredAllocationRequest -> PreferredAllocationResponse
DevicePlugin.Allocate: AllocateRequest -> AllocateResponse
DevicePlugin.PreStartContainer: PreStartContainerRequest -> PreStartContainerResponse
"""

HEALTH = """
WatchDeviceHealthRequest:
DeviceHealthResponse: DeviceHealth+ devices=1
DeviceHealth: DeviceInformation info=1, HealthStatus+ health=2
DeviceInformation: string uuid=1, string model=2, PciInfo pci=3
PciInfo: string bdf=1, string device_id=2, string vendor_id=3
HealthStatus: string name=1, SeverityLevel severity=2, string reason=3, string message=4
SeverityLevel: UNKNOWN=0, OK=1, WARNING=2, CRITICAL=3, FAILED=4
DeviceInfo.WatchDeviceHealth: WatchDeviceHealthRequest -> DeviceHealthResponse+
"""

TYPES = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_STRING: "string",
}


def kind(field: FieldDescriptor) -> str:
    named = field.message_type or field.enum_type
    return f"{named.name if named else TYPES[field.type]}{'+' * field.is_repeated}"


def facts(file: FileDescriptor) -> Iterator[str]:
    for name, message in file.message_types_by_name.items():
        fields = (f"{kind(field)} {field.name}={field.number}" for field in message.fields)
        yield f"{name}: {', '.join(fields)}".strip()
    for name, enum in file.enum_types_by_name.items():
        yield f"{name}: {', '.join(f'{value.name}={value.number}' for value in enum.values)}"
    for name, service in file.services_by_name.items():
        for method in service.methods:
            output = f"{method.output_type.name}{'+' * method.server_streaming}"
            yield f"{name}.{method.name}: {method.input_type.name} -> {output}"


@pytest.mark.parametrize(
    ("file", "package", "wire"),
    [
        pytest.param(deviceplugin_pb2.DESCRIPTOR, "v1beta1", PLUGIN, id="kubelet"),
        pytest.param(deviceinfo_pb2.DESCRIPTOR, "deviceinfo", HEALTH, id="XPU Manager"),
    ],
)
def test_names_types_and_numbers_are_those_of_the_wire(
    file: FileDescriptor, package: str, wire: str
) -> None:
    assert file.package == package
    assert sorted(facts(file)) == sorted(wire.strip().splitlines())


# Only the stubs: other generators of the table have tests of their own, and take longer. protoc is
# asked once what it makes of the same files.
PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
import generate
(stubs,) = (generator for generator in generate.GENERATORS if generator.name == "stubs")
made = {}
def remembered(tree):
    protos = sorted((tree / "device_plugin").rglob("*.proto"))
    read = tuple((path.name, path.read_bytes()) for path in protos)
    if read not in made:
        made[read] = stubs.generate(tree)
    return made[read]
for line in sys.stdin:
    step, tree = line.split()
    told = getattr(generate, step)(Path(tree), [replace(stubs, generate=remembered)])
    print(told, flush=True)
"""


class Generating:
    """`check` and `write` of tools/generate.py, where its modules are."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, step: str, tree: Path) -> str:
        """Return what a step returns."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{step} {tree}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="module")
def generate() -> Iterator[Generating]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT / "tools",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Generating(process)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "xelink/api", tmp_path / "xelink/api")
    return tmp_path


def stubs(tree: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tree / STUB).parent.glob("*_pb2*.py*")}


def test_the_stubs_of_the_tree_are_current(generate: Generating) -> None:
    assert generate("check", ROOT) == "None"


@pytest.mark.parametrize("damage", ["edited", "missing", "left over"])
def test_a_stale_stub_is_named_in_one_line_and_mended(
    generate: Generating, tree: Path, damage: str
) -> None:
    before = stubs(tree)
    stale = STUB.with_name("gone_pb2.pyi") if damage == "left over" else STUB
    if damage == "missing":
        (tree / stale).unlink()
    else:
        (tree / stale).write_text("stale")
    assert generate("check", tree) == f"{stale} is stale: run tools/generate.py (stubs)"
    assert stubs(tree) != before, "a check changes nothing"
    assert generate("write", tree) == f"[{stale!r}]"
    assert stubs(tree) == before
    assert generate("check", tree) == "None"
