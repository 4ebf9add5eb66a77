"""The Xe Link driver's netlink family on a unix socket: `python -m xelink.simulators.iaf -h`.

with SimulatedDriver(path, Behavior(Blueprint(gpus=4).build())) as driver:
driver.behavior = driver.behavior.after(node.cut("0.0-1.0"))
"""

from xelink.simulators.iaf.driver import Behavior, FrameFault, PortFault
from xelink.simulators.iaf.server import SimulatedDriver

__all__ = ["Behavior", "FrameFault", "PortFault", "SimulatedDriver"]
