"""Settings that have been read: what a daemon holds of them, without the library that reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from xelink.daemon.flags import DaemonSettings

S = TypeVar("S", bound="DaemonSettings")


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """Settings, where each that is not a default comes from, and what to tell the user."""

    settings: S
    origins: Mapping[str, str]
    warnings: tuple[str, ...]
