"""Settings with Go's flags, so that arguments for Intel's XeLink sidecar still work.

One field of a settings class is one flag, one environment variable, one key of the configuration
file and one line of help. A flag overrides the environment, the environment overrides the
file, and the file overrides the default.
"""

import os
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_origin

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from xelink.daemon.files import TimedReader
from xelink.daemon.loaded_settings import Loaded, S
from xelink.daemon.setting_types import LogFormat, split_address
from xelink.topology.text import printable

# What Kubernetes puts into the environment for a Service of the daemon's name is no setting.
_AT_ONCE = frozenset({"print_config", "version"})
_SERVICE_VARIABLE = re.compile(r"SERVICE_(HOST|PORT\w*)|PORT(_\w+)?")


_TO_STDERR = "logs always go to standard error, nowhere else"
_NO_HEADER = "log lines have one form: -log-format"
_DEBUG_FROM = 4

_MOST_CONFIG = 1 << 16  # bytes of a configuration file
_CONFIG_SECONDS = 10.0  # to read it


class UsageError(Exception):
    """The program was called wrongly: say this one line and end with exit code 2."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


class HelpRequested(Exception):  # noqa: N818 - not an error
    """The user asks for help: print it and end with exit code 0."""


class DaemonSettings(BaseSettings):
    """What every daemon's settings share; a subclass adds its fields and the prefix."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        defer_build=True,  # validators of the class that is used, not of those that it extends
    )

    PROGRAM: ClassVar[str]
    SUMMARY: ClassVar[str]
    ELSEWHERE: ClassVar[Mapping[str, str]] = {}
    """What to do without each flag that only the program has whose place this one takes."""

    config_file: Path | None = Field(None, description="YAML file with any of these flags as keys")
    print_config: bool = Field(
        default=False, description="print the settings in force and where each comes from, and end"
    )
    version: bool = Field(default=False, description="print the version and end")

    @classmethod
    def settings_customise_sources(
        cls,
        *_: Any,  # noqa: ANN401 - as the base
        **sources: Any,  # noqa: ANN401 - as the base
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what `load` has read: pydantic would read the variables that it left out, too."""
        return (sources["init_settings"],)


def listen_address(value: str) -> str:
    """Check an address to listen on: `host:port`, or empty for none. Raises `ValueError`."""
    if value:
        split_address(value)
    return value


def _not_empty(value: object) -> object:
    if not str(value):
        raise ValueError("should be a path")
    return value


# name = label *( "." label ), of letters, digits, "-" and "_"
_HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", re.ASCII)
_LONGEST_NAME = 253


def _host_names(value: object) -> frozenset[str]:
    """Read a list as text, or as YAML gives it."""
    if isinstance(value, str):
        value = [word.strip() for word in value.split(",") if word.strip()]
    many = value if isinstance(value, list | frozenset) else [value]
    return frozenset(map(_host_name, many))


def _host_name(value: object) -> str:
    if isinstance(value, str) and (
        value == "*" or (len(value) <= _LONGEST_NAME and _HOST_NAME.fullmatch(value))
    ):
        return value
    raise ValueError(
        "should be names without ports: node-1.example.com,xelink.monitoring.svc; or *"
    )


def _listed_text(names: frozenset[str]) -> str:
    return ",".join(sorted(names))


HostNames = Annotated[
    frozenset[str], NoDecode, BeforeValidator(_host_names), PlainSerializer(_listed_text)
]
"""Names of hosts, as text with commas, or as a list in YAML."""

LISTEN_NAMES = (
    "names for which -listen answers, besides addresses, localhost, this host's name, $NODE_NAME"
    " and $POD_NAME: node-1.example.com,xelink.monitoring.svc; * for any"
)


Directory = Annotated[Path, BeforeValidator(_not_empty)]
"""A path that is not empty; an empty one would mean the current directory."""


class KlogSettings(DaemonSettings):
    """The logging flags of a Kubernetes program, as far as they mean something here."""

    log_format: LogFormat = Field(LogFormat.TEXT, description="form of a log line")
    v: int = Field(2, description="log verbosity as klog counts it: from 4 on, debug lines, too")
    logtostderr: bool = Field(default=True, deprecated=_TO_STDERR)
    alsologtostderr: bool = Field(default=False, deprecated=_TO_STDERR)
    stderrthreshold: str = Field("", deprecated=_TO_STDERR)
    legacy_stderr_threshold_behavior: bool = Field(default=True, deprecated=_TO_STDERR)
    one_output: bool = Field(default=False, deprecated=_TO_STDERR)
    log_dir: str = Field("", deprecated=_TO_STDERR)
    log_file: str = Field("", deprecated=_TO_STDERR)
    log_file_max_size: str = Field("", deprecated=_TO_STDERR)
    add_dir_header: bool = Field(default=False, deprecated=_NO_HEADER)
    skip_headers: bool = Field(default=False, deprecated=_NO_HEADER)
    skip_log_headers: bool = Field(default=False, deprecated=_NO_HEADER)
    log_backtrace_at: str = Field("", deprecated=_NO_HEADER)
    vmodule: str = Field("", deprecated="there is one verbosity for all: -v")

    @property
    def debug(self) -> bool:
        """Whether debug lines are wanted."""
        return self.v >= _DEBUG_FROM


def print_config(loaded: Loaded[S]) -> str:
    """Return settings as a configuration file, each with its origin."""
    import yaml  # noqa: PLC0415 - needed by one flag only

    lines: list[str] = []
    values = loaded.settings.model_dump(mode="json")
    for name in _listed(type(loaded.settings)):
        if name in DaemonSettings.model_fields:
            continue
        value = values[name]
        text = yaml.safe_dump({_flag(name): value}, width=1000).strip()
        origin = printable(loaded.origins.get(name, "default"))
        lines.append(f"{text:<44} # {origin}".rstrip())
    return "\n".join(lines)


def load(settings: type[S], arguments: Sequence[str]) -> Loaded[S]:
    """Read the settings from flags, environment and file. Raises as `parse` does."""
    flags = parse(arguments, settings)
    environment = _environment(settings)
    path = flags.get("config_file", environment.get("config_file"))
    file = _read_file(Path(path), settings) if path else {}
    origins = {
        **dict.fromkeys(file, f"file {path}"),
        **{name: f"environment {_variable(settings, name)}" for name in environment},
        **dict.fromkeys(flags, "flag"),
    }
    values: dict[str, Any] = {
        name: _as_go_reads(value, settings.model_fields[name])
        for name, value in {**file, **environment, **flags}.items()
    }
    try:
        loaded = settings(**values)
    except ValidationError as error:
        raise UsageError(_explain(error, values, origins)) from None
    warnings = (*_without_effect(settings, origins), *_unknown_variables(settings))
    return Loaded(loaded, origins, warnings)


# flag = ( "-" / "--" ) name [ "=" value ] ; a flag that is no boolean may take the next word as its
# value, whatever that word looks like ; a boolean takes a value behind "=" only
def parse(arguments: Sequence[str], settings: type[DaemonSettings]) -> dict[str, str]:
    """Read flags by the grammar of Go's `flag` package.

    Raises `UsageError`, and `HelpRequested` at -h or -help.
    """
    values: dict[str, str] = {}
    words = iter(arguments)
    bare = ""
    for word in words:
        if not word.startswith("-") or word == "-":
            raise UsageError(_unexpected(word, bare))
        bare = ""
        if word == "--":
            break
        flag, has_value, value = word.removeprefix("-").removeprefix("-").partition("=")
        name = flag.replace("-", "_")
        if name in {"h", "help"}:
            raise HelpRequested
        if name not in settings.model_fields or flag.startswith("-"):
            instead = settings.ELSEWHERE.get(name) or _similar(flag, settings)
            raise UsageError(f"there is no flag -{flag}{instead and f': {instead}'}; see -h")
        if has_value:
            values[name] = value
        elif settings.model_fields[name].annotation is bool:
            values[name] = "true"
            bare = flag
        elif (following := next(words, None)) is not None:
            values[name] = following
        else:
            raise UsageError(f"-{flag} needs a value: {_help_text(settings.model_fields[name])}")
    for word in words:
        raise UsageError(_unexpected(word))
    return values


def _unexpected(word: str, boolean: str = "") -> str:
    if boolean:
        return (
            f"unexpected argument {word!r}: a boolean takes its value with '=': -{boolean}={word}"
        )
    return f"unexpected argument {word!r}: all settings are flags; see -h"


def _similar(flag: str, settings: type[DaemonSettings]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - needed after a mistake only

    close = get_close_matches(flag, map(_flag, settings.model_fields), n=1)
    return f"did you mean -{close[0]}?" if close else ""


def help_text(settings: type[DaemonSettings]) -> str:
    """Return the help: every flag with its description, its value and its default."""
    width = min(100, shutil.get_terminal_size().columns)
    own = _listed(settings)
    prefix = settings.model_config["env_prefix"]
    return "\n".join(
        [
            *textwrap.wrap(f"{settings.PROGRAM}: {settings.SUMMARY}", width),
            "",
            f"Usage: {settings.PROGRAM} [flags]",
            "Forms: -flag value, -flag=value, --flag value, --flag=value; booleans also bare.",
            f"Each is also a variable ({prefix}{own[0].upper()}) and a key of -config-file",
            f"({_flag(own[0])}: ...). A flag overrides the environment, which overrides the file.",
            "",
            *(
                line
                for name in own
                for line in _help_lines(name, settings.model_fields[name], width)
            ),
            "  -h",
            "        print this help and end",
            "",
            *textwrap.wrap(
                "Accepted without effect, so that older arguments still work: "
                + " ".join(
                    f"-{_flag(name)}"
                    for name, field in settings.model_fields.items()
                    if field.deprecated
                ),
                width,
                break_on_hyphens=False,
            ),
        ]
    )


def flag_rows(settings: type[DaemonSettings]) -> Iterator[tuple[str, str, str]]:
    """Return flag, default and description of each setting, for the documentation."""
    for name in _listed(settings):
        field = settings.model_fields[name]
        yield f"-{_flag(name)} {_takes(field)}".strip(), _default(field), field.description or ""


def _listed(settings: type[DaemonSettings]) -> list[str]:
    """Return the settings that have an effect, the daemon's own before the shared ones."""
    current = [name for name, field in settings.model_fields.items() if not field.deprecated]
    shared = (KlogSettings.model_fields, DaemonSettings.model_fields)
    return sorted(current, key=lambda name: sum(name in fields for fields in shared))


def _help_lines(name: str, field: FieldInfo, width: int) -> Iterator[str]:
    yield f"  -{_flag(name)} {_takes(field)}".rstrip()
    yield from textwrap.wrap(
        _help_text(field),
        width,
        initial_indent=" " * 8,
        subsequent_indent=" " * 8,
        break_on_hyphens=False,
    )


def _help_text(field: FieldInfo) -> str:
    default = _default(field)
    return f"{field.description}{f' (default {default})' if default else ''}"


def _takes(field: FieldInfo) -> str:
    if field.annotation is bool:
        return ""
    if isinstance(field.annotation, type) and issubclass(field.annotation, Enum):
        return "|".join(str(choice.value) for choice in field.annotation)
    if get_origin(field.annotation) is frozenset:
        return "LIST"
    kinds = get_args(field.annotation) or (field.annotation,)
    if int in kinds or float in kinds:
        return "N"
    return "FILE" if Path in kinds else "TEXT"


def _default(field: FieldInfo) -> str:
    value = field.default.value if isinstance(field.default, Enum) else field.default
    if isinstance(value, bool):
        return "true" if value else ""
    return "" if value in (None, frozenset()) else str(value)


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _variable(settings: type[DaemonSettings], name: str) -> str:
    return f"{settings.model_config['env_prefix']}{name.upper()}"


def _environment(settings: type[DaemonSettings]) -> dict[str, Any]:
    try:
        found = EnvSettingsSource(settings)()
        # Many an image sets ..._VERSION; and neither is a setting that lasts.
        return {name: value for name, value in found.items() if name not in _AT_ONCE}
    except SettingsError as error:
        raise UsageError(str(error)) from None


# number = [ sign ] ( "0x" hex / "0o" octal / "0b" binary ), as Go's flags take them beside decimals
_PREFIXED = re.compile(r"[+-]?0[xXoObB][0-9a-fA-F]+", re.ASCII)


def _as_go_reads(value: object, field: FieldInfo) -> object:
    numeric = field.annotation in {int, int | None}
    if numeric and isinstance(value, str) and _PREFIXED.fullmatch(value):
        with suppress(ValueError):
            return int(value, 0)
    return value


def _without_effect(settings: type[DaemonSettings], given: Iterable[str]) -> Iterator[str]:
    for name in given:
        if reason := settings.model_fields[name].deprecated:
            yield f"-{_flag(name)} has no effect: {reason}"


def _unknown_variables(settings: type[DaemonSettings]) -> Iterator[str]:
    prefix = settings.model_config["env_prefix"]
    for variable in sorted(os.environ):
        name = variable.removeprefix(prefix)
        if (
            name != variable
            and name.lower() not in settings.model_fields
            and not _SERVICE_VARIABLE.fullmatch(name)
        ):
            yield f"the environment variable {variable} is no setting: ignored"


def _read_file(path: Path, settings: type[DaemonSettings]) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 - needed with a configuration file only

    from xelink.daemon.yaml_documents import read_yaml  # noqa: PLC0415 - as above

    try:
        text = TimedReader(_CONFIG_SECONDS)(path, _MOST_CONFIG).decode()
        content = read_yaml(text, lambda key: key.replace("-", "_"), decimal=False, merges=False)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        told = (error.strerror if isinstance(error, OSError) else None) or str(error)
        reason = " ".join(told.split())
        raise UsageError(f"-config-file {path}: {reason}") from None
    if content is None:  # nothing but comments
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"-config-file {path}: must be a list of `flag: value` lines")
    names = {str(key): str(key).replace("-", "_") for key in content}
    for key, name in names.items():
        if name not in settings.model_fields or name in DaemonSettings.model_fields:
            raise UsageError(f"-config-file {path}: {key!r} is no setting; see -h")
    written = yaml.load(text, yaml.BaseLoader)  # noqa: S506 - it makes texts only
    found: dict[str, Any] = {}
    for key, value in content.items():
        name, word = names[str(key)], written[str(key)]
        field = settings.model_fields[name]
        if problem := _misread(str(key), value, field, word):
            raise UsageError(f"-config-file {path}: {problem}")
        # As text, a boolean is refused where a number is wanted, like everywhere else. And ids are
        # hexadecimal, whatever number YAML makes of their digits.
        ids = field.annotation == frozenset[int] and value is not None
        found[name] = word if ids else str(value).lower() if isinstance(value, bool) else value
    return found


def _misread(key: str, value: object, field: FieldInfo, written: object) -> str | None:
    """Return why YAML's value cannot be what was meant; None if it can."""
    parts: list[object] = [value]
    if isinstance(value, list) and get_origin(field.annotation) is frozenset:
        parts = value
    # Not only no setting: with aliases a few lines can stand for more than fits into any memory.
    if any(isinstance(part, list | dict | set | tuple) for part in parts):
        return f"{key!r} takes one value"
    words = written if isinstance(written, list) else [written]
    if not all(isinstance(word, str) for word in words):  # a mapping that is tagged as a text
        return f"{key!r} takes one value"
    for part, word in zip(parts, words, strict=False):
        if problem := _yaml_problem(key, part, word, field):
            return f"{key}: {problem}"
    return None


def _yaml_problem(key: str, value: object, written: str, field: FieldInfo) -> str | None:
    """Return why YAML reads a word differently from a flag; None if it does not."""
    from xelink.daemon.yaml_documents import is_decimal  # noqa: PLC0415 - needed with a configuration file only

    takes = _takes(field)
    if value is None or isinstance(value, str) or not takes or field.annotation == frozenset[int]:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if takes == "N" and not _is_choice(field):
        plain = not number or is_decimal(written)
        return None if plain else f"{written} is {value} to YAML; write a plain decimal number"
    kinds = ((bool, "a boolean"), (int | float, "a number"), (date, "a date"))
    kind = next((name for kind, name in kinds if isinstance(value, kind)), "no text")
    place = "" if takes == "LIST" else f"{key}: "
    return f"{written} is {kind} to YAML; quote it: {place}'{written}'"


def _is_choice(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Enum)


_PLAINER = {
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_parsing": "should be a number",
    "bool_parsing": "should be true or false",
}


def _explain(
    error: ValidationError, values: Mapping[str, object], origins: Mapping[str, str]
) -> str:
    problems: Iterable[Any] = error.errors(include_url=False, include_context=False)
    first = next(iter(problems))
    message = _PLAINER.get(
        first["type"], str(first["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    )
    if not first["loc"]:
        return message
    name = str(first["loc"][0])
    origin = origins.get(name, "default")
    source = "" if origin == "flag" else f" (from {origin})"
    return f"-{_flag(name)}: {str(values.get(name, ''))!r} {message}{source}; see -h"
