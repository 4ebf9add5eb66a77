"""An error of a scrape in a sentence, with the names of the program that a person calls. Pure."""

from collections.abc import Mapping
from string import Formatter
from typing import NamedTuple

from xelink.xpu_manager.errors import ErrorCode, ScrapeError

_SHARED = ("cert", "client_cert", "client_key", "username", "password_file")


class Options(NamedTuple):
    """How a program's user sets what a scrape uses."""

    host: str
    """The host that is scraped."""
    dashes: str
    """What comes before the name of a setting that every program has, such as a certificate."""
    port: str
    """What sets the port."""
    max_body: str = ""
    """What sets the longest answer; empty where that is not possible."""
    asks_again: bool = False
    """Whether the program scrapes again by itself."""

    @property
    def names(self) -> Mapping[str, str]:
        """By setting, how a user gives it."""
        shared = {name: f"{self.dashes}{name.replace('_', '-')}" for name in _SHARED}
        return {**shared, "port": self.port, "max_body": self.max_body}


class Words(NamedTuple):
    """An error: `what` went wrong, and the `advice`, which may be empty."""

    what: str
    advice: str

    def __str__(self) -> str:
        return "; ".join(filter(None, self))


def words(error: ScrapeError, options: Options) -> Words:
    """Return an error in words; an advice that needs an option of no name is left out."""
    what, advice = _TEXTS[error.code]
    values = {
        **options.names,
        "host": options.host,
        **dict(zip(("subject", "second"), error.subjects, strict=False)),
        "cause": error.cause,
        "seconds": f"{error.seconds:.0f} s",
        "limit": f"{error.seconds:g} s",
    }
    needed = {name for _, name, _, _ in Formatter().parse(advice) if name}
    if not all(values[name] for name in needed):
        advice = ""
    again = f"asked again in {error.seconds:.0f} s" if error.code in _ASKED_AGAIN else ""
    parts = (advice.format(**values), again if options.asks_again else "")
    return Words(what.format(**values), "; ".join(filter(None, parts)))


_ASKED_AGAIN = {ErrorCode.PASSWORD_WANTED, ErrorCode.PASSWORD_REJECTED}

_CAUSE = ("{cause}", "")
_HTTPS = "does XPU Manager speak HTTPS on this port?"
_CA = "the CA of {cert} needs basicConstraints CA:TRUE"

_TEXTS: Mapping[ErrorCode, tuple[str, str]] = {
    ErrorCode.NOTHING_LISTENS: (
        "nothing listens there",
        "XPU Manager is not up, or on another port ({port})",
    ),
    ErrorCode.NOT_CONNECTED: _CAUSE,
    ErrorCode.HUNG_UP: _CAUSE,
    ErrorCode.HUNG_UP_ON_PLAIN_HTTP: (
        "{cause}",  # a server that expects TLS just drops who speaks plain HTTP
        "XPU Manager restarts, or speaks HTTPS on this port ({cert})",
    ),
    ErrorCode.NO_ANSWER_IN_TIME: ("no whole answer within {limit}", ""),
    ErrorCode.TLS_FILE: ("{cert} {subject}: {cause}", ""),
    ErrorCode.CLIENT_FILE: ("{client_cert} {subject}: {cause}", ""),
    ErrorCode.CLIENT_FILES: ("{client_cert} {subject} and {client_key} {second}: {cause}", ""),
    ErrorCode.NO_HANDSHAKE_IN_TIME: (
        "no TLS handshake within {limit}",
        "XPU Manager hangs, or speaks no HTTPS on this port ({cert})",
    ),
    ErrorCode.NO_TLS: ("{cause}", _HTTPS),
    ErrorCode.TLS_VERSION: ("{cause}", "XPU Manager must offer TLS 1.2 or later"),
    ErrorCode.NOT_VERIFIED: _CAUSE,
    ErrorCode.SELF_SIGNED: ("{cause}", "the file of {cert} does not contain it"),
    ErrorCode.NOT_OF_THAT_CA: ("{cause}", "the file of {cert} does not contain its CA"),
    ErrorCode.NO_CA: ("{cause}", _CA),
    ErrorCode.NOT_YET_VALID: ("{cause}", "wait, or set the clock"),
    ErrorCode.EXPIRED: ("{cause}", "renew it"),
    ErrorCode.NOT_FOR_SERVERS: ("{cause}", "its extendedKeyUsage must allow serverAuth"),
    ErrorCode.NO_NAME: ("{cause}", "it needs a subjectAltName for the host"),
    ErrorCode.NO_ADDRESS: ("{cause}", "it needs subjectAltName=IP:{host}"),
    ErrorCode.CLIENT_PERHAPS_WANTED: ("{cause}", "does XPU Manager ask for a {client_cert}?"),
    ErrorCode.CLIENT_WANTED: ("{cause}", "XPU Manager asks for a {client_cert}"),
    ErrorCode.CLIENT_REJECTED: ("{cause}", "XPU Manager does not accept the {client_cert}"),
    ErrorCode.CLIENT_EXPIRED: ("{cause}", "renew the {client_cert}"),
    ErrorCode.CLIENT_OF_UNKNOWN_CA: (
        "{cause}",
        "XPU Manager does not know the CA of the {client_cert}",
    ),
    ErrorCode.PASSWORD_FILE: ("{password_file} {subject}: {cause}", ""),
    ErrorCode.PASSWORD_WANTED: ("{cause}", "give {username} and {password_file}"),
    ErrorCode.PASSWORD_REJECTED: ("{cause}", "check {username} and {password_file}"),
    ErrorCode.NOT_ASKED_AGAIN: (
        "{cause}",
        "not asked again for {seconds}, or until the password changes",
    ),
    ErrorCode.STATUS: _CAUSE,
    ErrorCode.PROTOCOL: _CAUSE,
    ErrorCode.BODY_TOO_LARGE: ("the body is longer than {subject} bytes", "see {max_body}"),
    ErrorCode.TOO_MANY_ROWS: _CAUSE,
    ErrorCode.NO_RESOURCES: ("{cause}: on this side, whatever XPU Manager does", ""),
}
