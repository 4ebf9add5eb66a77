"""What is answered before there is a daemon: its settings, or -h, -version, a mistake."""

import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

from xelink.daemon.command import CANNOT_START, OK, USAGE
from xelink.daemon.flags import (
    DaemonSettings,
    HelpWanted,
    UsageError,
    help_text,
    load,
    print_config,
)
from xelink.daemon.loaded_settings import Loaded, S
from xelink.daemon.stdio import complain, forget_stdout, say
from xelink.daemon.version import VERSION


def answer(settings: type[S], arguments: Sequence[str] | None) -> Loaded[S] | int:
    """Read the settings, in a form that needs no pydantic; or say what is to be said at once.

    Then it gives the exit code.
    """
    try:
        loaded = load(settings, sys.argv[1:] if arguments is None else arguments)
    except HelpWanted:
        return _say(settings.PROGRAM, help_text(settings))
    except UsageError as error:
        complain(f"{settings.PROGRAM}: {error}")
        return USAGE
    if text := _text(loaded):
        complain(*(f"{settings.PROGRAM}: {line}" for line in loaded.warnings))
        return _say(settings.PROGRAM, text)
    return Loaded(_plain(loaded.settings), loaded.origins, loaded.warnings)


def _plain(settings: S) -> S:
    kind = type(settings)
    own = kind.__mro__[: kind.__mro__.index(DaemonSettings)]
    computed = (
        name for base in own for name, what in vars(base).items() if isinstance(what, property)
    )
    fields = (name for name, field in kind.model_fields.items() if not field.deprecated)
    names = ("PROGRAM", *fields, *computed)
    # To whoever uses them they are the settings, which only they can make.
    return cast("S", SimpleNamespace(**{name: getattr(settings, name) for name in names}))


def _say(program: str, text: str) -> int:
    try:
        say(f"{text}\n")
    except OSError as error:
        forget_stdout()
        complain(f"{program}: cannot print: {error.strerror or error}")
        return CANNOT_START
    return OK


def _text(loaded: Loaded[S]) -> str | None:
    if loaded.settings.version:
        return f"{loaded.settings.PROGRAM} {VERSION}"
    return print_config(loaded) if loaded.settings.print_config else None
