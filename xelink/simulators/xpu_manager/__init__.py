"""An XPU Manager exporter in one process, for tests, demos and trying things out.

In a test, or anywhere in Python::

    node = Blueprint(gpus=8, tiles=2, wiring="mesh").build()
    with Simulator(node) as xpum:
        ...                                   # scrape xpum.url
        xpum.node = xpum.node.cut("0.0-1.0")  # nodes are values: each change is another node
        xpum.misbehave("hang")                # until xpum.recover(), or times=3, or seconds=10
        xpum.wait_for_request()

On a command line, `python -m xelink.simulators.xpu_manager --help`. With `--control` the
same can be done over HTTP, beside the metrics::

    curl localhost:29999/control              # the state of the node and of the server
    curl localhost:29999/control/help         # every call and misbehaviour, with its arguments
    curl localhost:29999/control/cut -d '{"links": ["0.0-1.0"]}'
    curl localhost:29999/control/degrade -d '{"links": ["0.1-1.1"], "lanes": 2, "lanes_back": 4}'
    curl localhost:29999/control/ports -d '{"gpu": 3, "state": "degraded"}'
    curl localhost:29999/control/misbehave -d '{"name": "daemon-down", "times": 3}'
    curl localhost:29999/control/misbehave -d '{"name": "refuse", "seconds": 30}'
    curl -X POST localhost:29999/control/recover
    curl -X POST localhost:29999/control/reset

Calls take a JSON object and answer with the new state; what cannot be done changes nothing and
answers 400 with an `error`. Misbehaviours concern `/metrics` alone; `/healtz` fails with it only
for `daemon-down` and `no-devices`, and everything does for `refuse`.
"""

from xelink.simulators.xpu_manager.blueprint import Blueprint
from xelink.simulators.xpu_manager.exchange import Exchange, MetricsRequest
from xelink.simulators.xpu_manager.exposition import render
from xelink.simulators.xpu_manager.faults import MISBEHAVIOURS, misbehaviour
from xelink.simulators.xpu_manager.gpu import GpuPod, SimulatedGpu
from xelink.simulators.xpu_manager.node import SimulatedNode, parse_link
from xelink.simulators.xpu_manager.server import Serving, Simulator

__all__ = [
    "MISBEHAVIOURS",
    "Blueprint",
    "Exchange",
    "GpuPod",
    "MetricsRequest",
    "Serving",
    "SimulatedGpu",
    "SimulatedNode",
    "Simulator",
    "misbehaviour",
    "parse_link",
    "render",
]
