"""A daemon's command line: its settings, or -h, -version, -print-config and errors."""

import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

from xelink.daemon.command import CANNOT_START, OK, USAGE
from xelink.daemon.flags import (
    DaemonSettings,
    HelpRequested,
    UsageError,
    help_text,
    load,
    print_config,
)
from xelink.daemon.loaded_settings import Loaded, S
from xelink.daemon.stdio import discard_stdout, write_stderr, write_stdout
from xelink.daemon.version import VERSION


def parse_command_line(settings: type[S], arguments: Sequence[str] | None) -> Loaded[S] | int:
    """Return the settings in a form that needs no pydantic.

    For -h, -version, -print-config and errors: print, and return the exit code.
    """
    try:
        loaded = load(settings, sys.argv[1:] if arguments is None else arguments)
    except HelpRequested:
        return _print(settings.PROGRAM, help_text(settings))
    except UsageError as error:
        write_stderr(f"{settings.PROGRAM}: {error}")
        return USAGE
    if text := _text(loaded):
        write_stderr(*(f"{settings.PROGRAM}: {line}" for line in loaded.warnings))
        return _print(settings.PROGRAM, text)
    return Loaded(_namespace(loaded.settings), loaded.origins, loaded.warnings)


def _namespace(settings: S) -> S:
    kind = type(settings)
    own = kind.__mro__[: kind.__mro__.index(DaemonSettings)]
    computed = (
        name for base in own for name, what in vars(base).items() if isinstance(what, property)
    )
    fields = (name for name, field in kind.model_fields.items() if not field.deprecated)
    names = ("PROGRAM", *fields, *computed)
    # Users of the settings see their type; only pydantic can create it.
    return cast("S", SimpleNamespace(**{name: getattr(settings, name) for name in names}))


def _print(program: str, text: str) -> int:
    try:
        write_stdout(f"{text}\n")
    except OSError as error:
        discard_stdout()
        write_stderr(f"{program}: cannot print: {error.strerror or error}")
        return CANNOT_START
    return OK


def _text(loaded: Loaded[S]) -> str | None:
    if loaded.settings.version:
        return f"{loaded.settings.PROGRAM} {VERSION}"
    return print_config(loaded) if loaded.settings.print_config else None
