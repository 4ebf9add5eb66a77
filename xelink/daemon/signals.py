"""Signals that come while a daemon starts wait until somebody listens.

As process 1 of a container, which has no default handlers, a SIGTERM that comes before ours are in
place would be lost, and the Pod would wait for its whole grace period. One that comes before this
module is imported still is: docs/image.md says so.
"""

# Not `signal`, whose names are enumerations: to import these takes longer than all before it, and
# what comes meanwhile is lost.
import _signal  # type: ignore[import-not-found] # has no stub

STOPPING: tuple[int, ...] = (_signal.SIGTERM, _signal.SIGINT)


def hold_signals() -> None:
    """Keep SIGTERM and SIGINT waiting."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, STOPPING)


def release_signals() -> None:
    """Deliver what waits; to be called when handlers are in place."""
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, STOPPING)


def is_stopping() -> bool:
    """Return whether SIGTERM or SIGINT waits to be delivered."""
    return not _signal.sigpending().isdisjoint(STOPPING)
