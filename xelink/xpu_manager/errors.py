"""The errors of a scrape: a code, and what it is about; `wording` puts them in words. Pure."""

from enum import Enum

from xelink.topology.text import printable
from xelink.xpu_manager.reasons import ScrapeReason

_REFUSED, _RESET, _TLS = ScrapeReason.REFUSED, ScrapeReason.RESET, ScrapeReason.TLS


class ErrorCode(Enum):
    """What went wrong: finer than the reason, as an advice depends on it."""

    def __init__(self, _: int, reason: ScrapeReason) -> None:
        self.reason = reason

    NOTHING_LISTENS = 1, _REFUSED
    NOT_CONNECTED = 2, _REFUSED
    HUNG_UP = 3, _RESET
    HUNG_UP_ON_PLAIN_HTTP = 4, _RESET
    NO_ANSWER_IN_TIME = 5, ScrapeReason.TIMEOUT

    TLS_FILE = 10, _TLS
    CLIENT_FILE = 11, _TLS
    CLIENT_FILES = 12, _TLS
    NO_HANDSHAKE_IN_TIME = 13, _TLS
    NO_TLS = 14, _TLS
    TLS_VERSION = 15, _TLS
    NOT_VERIFIED = 16, _TLS
    SELF_SIGNED = 17, _TLS
    NOT_OF_THAT_CA = 18, _TLS
    NO_CA = 19, _TLS
    NOT_YET_VALID = 20, _TLS
    EXPIRED = 21, _TLS
    NOT_FOR_SERVERS = 22, _TLS
    NO_NAME = 23, _TLS
    NO_ADDRESS = 24, _TLS
    CLIENT_PERHAPS_WANTED = 25, _TLS
    CLIENT_WANTED = 26, _TLS
    CLIENT_REJECTED = 27, _TLS
    CLIENT_EXPIRED = 28, _TLS
    CLIENT_OF_UNKNOWN_CA = 29, _TLS

    PASSWORD_FILE = 40, ScrapeReason.UNAUTHORIZED
    PASSWORD_WANTED = 41, ScrapeReason.UNAUTHORIZED
    PASSWORD_REJECTED = 42, ScrapeReason.UNAUTHORIZED
    NOT_ASKED_AGAIN = 43, ScrapeReason.UNAUTHORIZED

    STATUS = 50, ScrapeReason.STATUS
    PROTOCOL = 51, ScrapeReason.PROTOCOL
    BODY_TOO_LARGE = 52, ScrapeReason.TOO_LARGE
    TOO_MANY_ROWS = 53, ScrapeReason.TOO_LARGE
    NO_RESOURCES = 54, ScrapeReason.RESOURCES


class ScrapeError(Exception):
    """XPU Manager gave no usable answer: what is published stays."""

    def __init__(
        self, code: ErrorCode, *subjects: str, cause: str = "", seconds: float = 0
    ) -> None:
        """Take what the error is about, such as a file, and its cause in the words of others.

        `seconds` is the time that is up, or after which the server is asked again.
        """
        self.code = code
        self.subjects = tuple(map(printable, subjects))
        self.cause = printable(cause)
        self.seconds = seconds
        about = " ".join(filter(None, (*self.subjects, self.cause)))
        super().__init__(f"{code.reason}: {code.name} {about}")

    @property
    def reason(self) -> ScrapeReason:
        """The word for logs and metrics."""
        return self.code.reason
