"""kubelet's protobuf messages, made from responses."""

from collections.abc import Sequence

from device_plugin.responses import AdvertisedDevice, Container
from xelink.api import deviceplugin_pb2 as pb
from xelink.inventory.workload_facts import WorkloadFacts

MESSAGE_LIMIT = 4 << 20
"""Bytes that kubelet receives in one message: of a longer one the stream would die."""

_HEALTH = {True: "Healthy", False: "Unhealthy"}


def device_list(devices: Sequence[AdvertisedDevice]) -> pb.ListAndWatchResponse:
    """Return the message that advertises devices: all, or as many as kubelet can receive."""
    message = pb.ListAndWatchResponse(devices=map(_device, devices))
    while message.ByteSize() > MESSAGE_LIMIT:
        del message.devices[-(len(message.devices) // 8 + 1) :]
    return message


def allocation(given: Container) -> pb.ContainerAllocateResponse:
    """Return the message by which a container gets its devices."""
    return pb.ContainerAllocateResponse(
        mounts=[
            pb.Mount(
                container_path=mount.container_path,
                host_path=mount.host_path,
                read_only=mount.read_only,
            )
            for mount in given.mounts
        ],
        devices=[
            pb.DeviceSpec(
                container_path=node.container_path,
                host_path=node.host_path,
                permissions=node.permissions,
            )
            for node in given.nodes
        ],
        cdi_devices=[pb.CDIDevice(name=name) for name in given.cdi],
    )


def workload_environment(facts: WorkloadFacts, *, with_env: bool) -> pb.ContainerAllocateResponse:
    """Return the message that describes a container's GPUs; to be merged into its `allocation`."""
    return pb.ContainerAllocateResponse(
        envs=facts.environment if with_env else {}, annotations=facts.annotations
    )


def _device(device: AdvertisedDevice) -> pb.Device:
    # TopologyInfo that is there and empty makes admissions fail.
    topology = None if device.numa is None else pb.TopologyInfo(nodes=[pb.NUMANode(ID=device.numa)])
    return pb.Device(ID=device.id, health=_HEALTH[device.healthy], topology=topology)
