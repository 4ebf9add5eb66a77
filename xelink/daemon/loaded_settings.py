"""The parsed settings of a daemon, without the library that parsed them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from xelink.daemon.flags import DaemonSettings

S = TypeVar("S", bound="DaemonSettings")


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """Settings, the origin of each one that is not a default, and warnings for the user."""

    settings: S
    origins: Mapping[str, str]
    warnings: tuple[str, ...]
