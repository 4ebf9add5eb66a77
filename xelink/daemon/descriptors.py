"""File descriptors: enough at the start, and recognizing errors from a shortage."""

import errno
import resource

from xelink.daemon.command import CannotStartError

_NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def is_shortage(error: BaseException) -> bool:
    """Return whether a call failed for lack of descriptors or memory, and has no other meaning."""
    return isinstance(error, OSError) and error.errno in _NONE_LEFT


def require_descriptors(least: int) -> None:
    """Raise the limit as far as necessary; raise `CannotStartError` if it cannot be enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if unlimited in {soft, hard} or soft >= least:
        return
    if hard < least:
        raise CannotStartError(
            f"{hard} open files are too few: at least {least} are needed (ulimit -n)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))
