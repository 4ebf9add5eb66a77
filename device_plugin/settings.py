"""The flags of `xelink-device-plugin`: those of Intel's GPU plugin that we share, and our own."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from device_plugin.resources import Monitoring
from xelink.daemon.flags import LISTEN_NAMES, Directory, HostNames, KlogSettings, listen_address
from xelink.inventory.by_path import ByPath
from xelink.inventory.cdi import DIRECTORY as CDI_DIRECTORY
from xelink.inventory.health import Threshold
from xelink.kubelet.sockets import DIRECTORY as PLUGIN_DIRECTORY
from xelink.kubelet.sockets import SocketName
from xelink.nfd.reader import DEFAULT_PATH as LABEL_FILE
from xelink.preference.engine import DEFAULT_TIMEOUT
from xelink.preference.policies import AllocationPolicy
from xelink.topology.nfd_format import namespace
from xelink.topology.publication import DEFAULT_NAMESPACE

# ids = id *( "," id ) ; id = "0x" 4hexdigit : as lspci -n prints them
_HIGHEST_ID = 0xFFFF
_DEVICE_ID = re.compile(r"0x[0-9a-fA-F]{4}", re.ASCII)


def _device_ids(value: object) -> frozenset[int]:
    """Read a list as text, or as YAML has it: numbers and texts, one or many."""
    if isinstance(value, str):
        value = [word.strip() for word in value.split(",") if word.strip()]
    many = value if isinstance(value, list | frozenset) else [value]
    return frozenset(map(_device_id, many))


def _device_id(value: object) -> int:
    if isinstance(value, str) and _DEVICE_ID.fullmatch(value):
        return int(value, 16)
    if type(value) is int and 0 <= value <= _HIGHEST_ID:
        return value
    raise ValueError("should be PCI device ids, 0x and four hexadecimal digits each: 0x0bd5,0x0bda")


def _formatted(ids: frozenset[int]) -> str:
    return ",".join(f"0x{device_id:04x}" for device_id in sorted(ids))


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("should be an absolute path, as it is one of the host: /var/lib/tree")
    return path


DeviceIds = Annotated[
    frozenset[int], NoDecode, BeforeValidator(_device_ids), PlainSerializer(_formatted)
]


_XPUMD_INSTEAD = "XPU Manager 2.x judges health by limits of its own, use -xpumd-endpoint"


class PluginSettings(KlogSettings):
    """One field is one flag."""

    model_config = SettingsConfigDict(env_prefix="XELINK_DEVICE_PLUGIN_")

    PROGRAM: ClassVar[str] = "xelink-device-plugin"
    SUMMARY: ClassVar[str] = (
        "advertises Intel GPUs to kubelet, and prefers GPUs for a Pod that are linked"
    )
    ELSEWHERE: ClassVar[Mapping[str, str]] = {
        "health_management": _XPUMD_INSTEAD,
        "temp_limit": _XPUMD_INSTEAD,
        "gpu_temp_limit": _XPUMD_INSTEAD,
        "memory_temp_limit": _XPUMD_INSTEAD,
        "wsl": "nodes run Linux",
    }

    allocation_policy: AllocationPolicy = Field(
        AllocationPolicy.TOPOLOGY,
        description="which devices are best for a Pod: linked ones, spread over GPUs, packed on"
        " few GPUs, or no preference",
    )
    allocation_timeout: int = Field(
        round(DEFAULT_TIMEOUT * 1000),
        ge=1,
        le=5000,
        description="milliseconds to search for the best set beyond 16 GPUs",
    )
    require_links: bool = Field(
        default=False,
        description="reject a container with several GPUs that are known not to be all linked: its"
        " Pod fails, and its Job or Deployment must try again",
    )
    shared_dev_num: int = Field(
        1, ge=1, le=1000, description="containers that may use one GPU at the same time"
    )
    allow_ids: DeviceIds = Field(
        frozenset(), description="advertise only these PCI device ids: 0x0bd5,0x0bda"
    )
    deny_ids: DeviceIds = Field(frozenset(), description="do not advertise these PCI device ids")
    bypath: ByPath = Field(
        ByPath.SINGLE,
        description="links in /dev/dri/by-path to mount: those of the GPU, none, all",
    )
    enable_monitoring: bool = Field(
        default=False,
        description="advertise a resource with access to all GPUs, for monitoring",
    )
    monitoring_mode: Monitoring = Field(
        Monitoring.SINGLE,
        description="one resource for all GPUs (monitoring), or one for each driver"
        " (i915_monitoring, xe_monitoring)",
    )
    label_file: Directory = Field(
        LABEL_FILE, description="feature file of the sidecar, with the links"
    )
    label_namespace: Annotated[str, AfterValidator(namespace)] = Field(
        DEFAULT_NAMESPACE, description="namespace of the labels in that file"
    )
    allocate_env: bool = Field(
        default=True,
        description="describe the GPUs of a container, and how they are linked, in its environment",
    )
    cdi: bool = Field(default=True, description="write a CDI spec and name CDI devices")
    cdi_dir: Directory = Field(CDI_DIRECTORY, description="directory of the CDI spec")
    xpumd_endpoint: str = Field(
        "",
        description="gRPC endpoint of XPU Manager 2.x, for device health"
        " (/run/xpumd/intelxpuinfo.sock); empty for none",
    )
    health_severity: Threshold = Field(
        Threshold.CRITICAL, description="lowest severity at which a GPU is unhealthy"
    )
    health_confirmations: int = Field(
        2, ge=1, le=1000, description="messages in a row that must agree before health changes"
    )
    socket_name: SocketName = Field(
        SocketName.DEFAULT,
        description="names of our sockets; unique names let two instances overlap in a rolling"
        " update",
    )
    plugin_dir: Directory = Field(
        PLUGIN_DIRECTORY, description="kubelet's directory of device plugin sockets"
    )
    prefix: Directory = Field(Path("/"), description="directory with the host's /sys and /dev")
    device_root: Annotated[Directory, AfterValidator(_absolute)] = Field(
        Path("/"),
        description="where the host has the directory of -prefix; the container runtime takes the"
        " device nodes from there",
    )
    listen: Annotated[str, AfterValidator(listen_address)] = Field(
        "127.0.0.1:29997",
        description="address of the page, /healthz, /readyz and /metrics; empty for none",
    )
    listen_names: HostNames = Field(frozenset(), description=LISTEN_NAMES)

    @model_validator(mode="after")
    def _belong_together(self) -> "PluginSettings":
        if self.allow_ids and self.deny_ids:
            raise ValueError("-allow-ids and -deny-ids exclude each other; see -h")
        return self
