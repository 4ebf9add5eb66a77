"""The sysfs and devfs of a node that is not there."""

from xelink.simulators.node.blueprint import Blueprint
from xelink.simulators.node.sysfs import Damage, Node, SimulatedGpu

__all__ = ["Blueprint", "Damage", "Node", "SimulatedGpu"]
