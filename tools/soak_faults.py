# ruff: noqa: INP001 - a program's part, not a package
"""What goes wrong in the soak: rows of the tables of `tests/faults`, and changes, and kills."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from itertools import permutations
from pathlib import Path
from threading import Event
from typing import NamedTuple

from soak_node import ENDS_WELL, Node, ViolationError

from tests.faults import test_file_system, test_kubelet, test_tls, test_xpu_manager
from tests.xpu_manager.test_tls_rotation import replaced
from tests.xpu_manager.test_tls_servers import ACCEPTED, CA, HERE, REFUSED, Authority
from xelink.simulators.xpu_manager import Serving, Simulator

LONGEST = 3.0
_HALF_A_DAY = 43_200
"""Seconds: certificates are good for a day before and after."""


class Fault(NamedTuple):
    """One thing that goes wrong: its subject, its name, and how; it is undone at its end."""

    subject: str
    name: str
    act: Callable[[Node], None]


def faults_of_the_sidecar(node: Node) -> list[Fault]:
    """Return what goes wrong before XPU Manager, in the file system, with TLS and the clock."""
    return [
        *_xpu_manager(),
        *_file_system(node),
        *_tls(),
        *_clock(node),
        *_changes(),
    ]


def faults_of_the_plugin() -> list[Fault]:
    """Return what kubelet does wrong; each row waits until the plugin is known again."""
    rows = [Fault("kubelet", name, _row_of_kubelet(name)) for name in test_kubelet.TABLE]
    return [*rows, Fault("kill", "the plugin", _quietly(Node.kill_plugin))]


def _lasting(node: Node) -> None:
    Event().wait(node.chance.uniform(0.2, LONGEST))


def _xpu_manager() -> Iterator[Fault]:
    for row in test_xpu_manager.TABLE:
        if row.name == "unauthorized":
            continue  # not asked again for a minute, the whole life of the labels here

        def act(node: Node, row: test_xpu_manager.Row = row) -> None:
            row.befall(node.xpum)
            _lasting(node)
            node.xpum.recover()
            node.wait_for_truth(row.name)

        yield Fault("thin answer" if row.once else "XPU Manager", row.name, act)


def _file_system(node: Node) -> Iterator[Fault]:
    for name, row in test_file_system.TABLE.items():
        if row.needs in node.lacking:
            continue

        def act(node: Node, name: str = name, row: test_file_system.Row = row) -> None:
            harmless = bool(row.says) and row.stands
            with ExitStack() as stack:
                if not harmless:
                    stack.enter_context(node.quiet)
                    stack.enter_context(node.spoiling())
                with row.spoil(node.place):
                    node.gain()
                    _lasting(node)
                    node.place.is_safe()
                node.wait_for_truth(name)
                node.place.is_safe()

        yield Fault("file system", name, act)


def _tls() -> Iterator[Fault]:
    for name, pair in {**ACCEPTED, **{name: pair for name, (pair, _) in REFUSED.items()}}.items():

        def act(node: Node, name: str = name, pair: tuple[bytes, bytes] = pair) -> None:
            node.site.serve(*pair)
            _lasting(node)
            node.site.serve(test_tls.RIGHT, CA.pem)
            node.wait_for_truth(name)

        yield Fault("TLS", name, act)
    for order in permutations(("cert", "key", "trust")):

        def rotate(node: Node, order: tuple[str, ...] = order) -> None:
            authority = Authority("of the soak")
            new = {"cert": authority.issue(HERE), "trust": authority.pem}
            new["key"] = new["cert"]
            for what in order:
                replaced(getattr(node.site, what), new[what])
                Event().wait(node.chance.uniform(0, 2))
            node.gain()
            node.wait_for_truth(f"rotation {'-'.join(order)}")

        yield Fault("TLS", f"rotation {'-'.join(order)}", rotate)
    yield Fault("TLS", "plaintext", _taken(lambda node: Simulator(serving=_at(node))))
    yield Fault("TLS", "TLS 1.1", _taken(lambda node: test_tls.OldServer(*_old(node))))


def _at(node: Node) -> Serving:
    return Serving(port=node.xpum.port)


def _old(node: Node) -> tuple[int, Path]:
    return node.xpum.port, node.site.cert


def _taken(
    server: Callable[[Node], AbstractContextManager[object]],
) -> Callable[[Node], None]:
    """Let a server that is not to be spoken to take XPU Manager's port for a while."""

    def act(node: Node) -> None:
        node.xpum.misbehave("refuse")
        with server(node):
            _lasting(node)
        node.xpum.recover()
        node.gain()
        node.wait_for_truth("another server on the port")

    return act


def _clock(node: Node) -> Iterator[Fault]:
    if node.place.shim is None:
        return
    for seconds in (15, -15, 3600, -3600, _HALF_A_DAY, -_HALF_A_DAY):

        def jump(node: Node, seconds: int = seconds) -> None:
            with node.quiet, node.spoiling():
                _set_clock(node, seconds)
                node.wait_for_truth(f"a jump of the clock by {seconds} s")
                _lasting(node)
                _set_clock(node, 0)
                node.wait_for_truth("the clock's return")

        yield Fault("clock", f"{seconds:+d} s", jump)


def _set_clock(node: Node, seconds: int) -> None:
    if node.place.shim is None:
        raise AssertionError("no shim, no jump")
    node.place.shim.say("clock", seconds)
    node.truth.set_ahead(seconds)


def _changes() -> Iterator[Fault]:
    def change(node: Node) -> None:
        node.change(node.some_node())
        node.wait_for_truth("a change of the links")

    def change_in_an_outage(node: Node) -> None:
        node.xpum.misbehave("refuse", seconds=None)
        node.change(node.some_node())
        _lasting(node)
        node.xpum.recover()
        node.wait_for_truth("a change in an outage")

    def kill(node: Node) -> None:
        node.kill_sidecar()
        node.gain()
        node.wait_for_truth("the sidecar was killed")

    def second(node: Node) -> None:
        another = node.another_sidecar()
        node.gain()
        _lasting(node)
        node.wait_for_truth("a second sidecar beside us")
        if another.stop():
            raise ViolationError(ENDS_WELL, f"the second sidecar: {another.lines[-3:]}")
        node.gain()
        node.wait_for_truth("a second sidecar was beside us")

    yield Fault("file system", "a second sidecar", second)
    for _ in range(6):
        yield Fault("change", "links come and go", change)
        yield Fault("change", "in an outage", change_in_an_outage)
        yield Fault("kill", "the sidecar", kill)


def _row_of_kubelet(name: str) -> Callable[[Node], None]:
    def act(node: Node) -> None:
        with node.quiet, node.admitting:
            node.wait_for_links("a fault of the file")
            node.plugin.forget()
            test_kubelet.TABLE[name](node.scene, node.plugin)
            _known(node, name)

    return act


def _quietly(kill: Callable[[Node], None]) -> Callable[[Node], None]:
    def act(node: Node) -> None:
        with node.quiet, node.admitting:
            kill(node)
            _known(node, "the plugin was killed")

    return act


def _known(node: Node, fault: str) -> None:
    node.kubelet.wait_for_allocatable(test_kubelet.I915, 8, test_kubelet.LONG)
    node.kubelet.wait_for_streams(1, test_kubelet.LONG)
    node.wait_for_links(fault)


__all__ = ["Fault", "faults_of_the_plugin", "faults_of_the_sidecar"]
