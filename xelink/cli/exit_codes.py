"""How a command ends: its exit codes, and the errors that are one line for a person."""

from xelink.topology.text import printable

OK = 0
FAILED = 1
WRONG_CALL = 2
NO_LINKS = 3
UNKNOWN = 4
INTERRUPTED = 130


class FailedError(Exception):
    """The command cannot go on: the user is told why in one line."""

    code = FAILED

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


class WrongCallError(FailedError):
    """What was asked for cannot be: another call may be right."""

    code = WRONG_CALL
