"""The sysfs and devfs of a simulated node."""

from xelink.simulators.node.blueprint import TreeBlueprint
from xelink.simulators.node.sysfs import Damage, NodeTree, PciGpu

__all__ = ["Damage", "NodeTree", "PciGpu", "TreeBlueprint"]
