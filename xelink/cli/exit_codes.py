"""Exit codes of commands, and errors that are printed as one line."""

from xelink.topology.text import printable

OK = 0
FAILED = 1
WRONG_CALL = 2
NO_LINKS = 3
UNKNOWN = 4
INTERRUPTED = 130


class FailedError(Exception):
    """The command failed: one line with the reason is printed."""

    code = FAILED

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


class WrongCallError(FailedError):
    """The call is wrong: other arguments may work."""

    code = WRONG_CALL
