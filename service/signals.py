"""Signals that come while a daemon starts wait until somebody listens.

As process 1 of a container, which has no default handlers, a SIGTERM that comes before ours are in
place would be lost, and the Pod would wait for its whole grace period.
"""

import signal

STOPPING = (signal.SIGTERM, signal.SIGINT)


def hold_signals() -> None:
    """Keep SIGTERM and SIGINT waiting."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def release_signals() -> None:
    """Deliver what waits; to be called when handlers are in place."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def is_stopping() -> bool:
    """Tell whether SIGTERM or SIGINT waits to be delivered."""
    return not signal.sigpending().isdisjoint(STOPPING)
