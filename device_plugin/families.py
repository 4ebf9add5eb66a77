"""The families of devices beside GPUs: one row each."""

from collections.abc import Mapping
from types import MappingProxyType

from xelink.inventory.units import Finder

FINDERS: Mapping[str, Finder] = MappingProxyType({})
"""What finds the units of each resource, by its full name; none is built in."""
