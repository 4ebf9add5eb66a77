"""Logs on standard error: one line per change, with keys, as text or JSON."""

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

import structlog

from xelink.daemon.setting_types import LogFormat
from xelink.topology.text import printable

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor


class _LossyStream:
    """A stream that drops what cannot be written, to a full disk or a closed pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def logger_to_stderr(log_format: LogFormat, *, debug: bool = False) -> "FilteringBoundLogger":
    """Make the process's logger: `event key=value ...` as text, or one JSON object a line."""
    renderer: Processor
    if log_format is LogFormat.JSON:
        renderer = structlog.processors.JSONRenderer()  # ASCII only
    else:
        renderer = structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "event"], drop_missing=True
        )
    level = logging.DEBUG if debug else logging.INFO
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(_LossyStream(sys.stderr)),  # type: ignore[arg-type]  # as far as it is used
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(),
            _one_line(renderer),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    return logger


def _one_line(renderer: "Processor") -> "Processor":
    """Escape control characters in a line; in JSON only DEL is left to escape, within strings."""

    def render(logger: object, name: str, entry: "EventDict") -> str:
        return printable(str(renderer(logger, name, entry)).replace("\x7f", "\\u007f"))

    return render


class Changes:
    """Remembers the last value of each topic, so that each change is logged once."""

    def __init__(self) -> None:
        self._last: dict[str, object] = {}

    def of(self, topic: str, value: object) -> bool:
        """Return whether `value` differs from the last one, which is None at first."""
        changed = self._last.get(topic) != value
        self._last[topic] = value
        return changed
