"""Blocking SIGTERM and SIGINT while a daemon starts, until its handlers are installed.

Process 1 of a container has no default handlers. A SIGTERM before ours are installed would be lost,
and the Pod would wait for its whole grace period. Before this module is imported, a signal is still
lost (docs/image.md).
"""

# Not `signal`, whose names are enumerations: importing it takes longer than everything before, and
# a signal in that time would be lost.
import _signal  # type: ignore[import-not-found] # has no stub

STOPPING: tuple[int, ...] = (_signal.SIGTERM, _signal.SIGINT)


def hold_signals() -> None:
    """Block SIGTERM and SIGINT; they stay pending."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, STOPPING)


def release_signals() -> None:
    """Deliver pending signals; to be called when handlers are installed."""
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, STOPPING)


def is_stopping() -> bool:
    """Return whether SIGTERM or SIGINT is pending."""
    return not _signal.sigpending().isdisjoint(STOPPING)
