"""The flags of `xelink-sidecar`: all of Intel's XeLink sidecar, and our own."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import SettingsConfigDict

from sidecar.source_choice import SourceChoice
from xelink.daemon.flags import LISTEN_NAMES, Directory, HostNames, KlogSettings, listen_address
from xelink.nfd.writer import OnExit
from xelink.topology.nfd_format import namespace
from xelink.topology.publication import DEFAULT_NAMESPACE, SUMMARIES

FEATURES_D = Path("/etc/kubernetes/node-feature-discovery/features.d")

_DAY = 86400
_SHORTEST_LIFE = 300
_INTERVALS_IN_LIFE = 6
_LEAST_INTERVALS = 3


def _file(value: Path) -> Path:
    if not value.name:
        raise ValueError("should be the path of a file")
    return value


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_none)]


class SidecarSettings(KlogSettings):
    """One field is one flag; the names of Intel's XeLink sidecar mean what they mean there."""

    model_config = SettingsConfigDict(env_prefix="XELINK_SIDECAR_")

    PROGRAM: ClassVar[str] = "xelink-sidecar"
    SUMMARY: ClassVar[str] = (
        "publishes the Xe Links that XPU Manager or the kernel driver reports as node labels,"
        " through NFD"
    )

    source: SourceChoice = Field(
        SourceChoice.XPUM,
        description="who reports the links: XPU Manager 1.2 or 1.3; the kernel driver, which needs"
        " the host's network namespace (hostNetwork: true) and nothing else; or the driver if it"
        " answers and XPU Manager if not, decided again when the chosen one has reported nothing"
        " for half of -expiry",
    )
    lane_count: int = Field(
        4,
        ge=0,
        lt=10**9,
        description="lanes that a link needs in at least one direction to be published",
    )
    interval: int = Field(10, ge=1, le=_DAY, description="seconds from one scrape to the next")
    startup_delay: int = Field(
        10, ge=0, le=_DAY, description="seconds before the first scrape; none with -oneshot"
    )
    label_namespace: Annotated[str, AfterValidator(namespace)] = Field(
        DEFAULT_NAMESPACE, description="namespace of the labels"
    )
    allow_subdeviceless_links: bool = Field(
        default=False, description="also publish links of GPUs with one tile (Max 1100)"
    )
    xpum_port: int = Field(29999, ge=1, le=65535, description="XPU Manager's port on 127.0.0.1")
    cert: OptionalPath = Field(
        None,
        description="use HTTPS and verify XPU Manager against this PEM file: a CA, or XPU"
        " Manager's own certificate; read again when it changes",
    )
    client_cert: OptionalPath = Field(
        None, description="PEM file with the certificate to show to XPU Manager (mTLS)"
    )
    client_key: OptionalPath = Field(
        None, description="PEM file with the key of -client-cert, if that file does not contain it"
    )
    username: str = Field("", description="user for HTTP Basic; needs -password-file")
    password_file: OptionalPath = Field(
        None, description="file with the password of -username; read for each scrape"
    )
    timeout: float = Field(
        30, gt=0, le=_DAY, description="seconds for one complete scrape, with its retries"
    )
    max_body: int = Field(
        64 << 20, ge=1, description="maximum size of an answer in bytes; a larger one is not used"
    )
    confirmations: int = Field(
        2,
        ge=1,
        le=1000,
        description="good scrapes in a row that must agree before a loss (a link, a tile, a GPU)"
        " is published; a gain counts at once",
    )
    tmp_dir_prefix: Directory = Field(
        FEATURES_D,
        description="directory for .stage, in which the file is prepared; on the file system of"
        " -dst-file-path",
    )
    dst_file_path: Annotated[Path, AfterValidator(_file)] = Field(
        FEATURES_D / "xpum-sidecar-labels.txt", description="the feature file that NFD reads"
    )
    summary_labels: bool = Field(default=True, description=f"also publish {', '.join(SUMMARIES)}")
    expiry: int | None = Field(
        None,
        ge=0,
        le=365 * _DAY,
        description="life of the labels in seconds, renewed after a third of it while scrapes"
        " succeed; 0: no expiry; default: 6 intervals, but at least 300",
    )
    on_exit: OnExit = Field(
        OnExit.EXPIRE,
        description="what happens to the labels when the sidecar is stopped: they stay until they"
        " expire, are removed at once, or stay without an expiry",
    )
    oneshot: bool = Field(
        default=False,
        description="publish the result of one scrape, and end; exit code 0: links, 3: no links,"
        " 4: the source gave no usable answer, 5: the file could not be written, or another"
        " sidecar writes it",
    )
    dry_run: bool = Field(default=False, description="print the feature file instead of writing it")
    listen: Annotated[str, AfterValidator(listen_address)] = Field(
        "127.0.0.1:29998",
        description="address of the page, /healthz, /readyz and /metrics; empty for none",
    )
    listen_names: HostNames = Field(frozenset(), description=LISTEN_NAMES)
    prefix: Directory = Field(Path("/"), description="where the host's /sys is seen")
    driver_socket: OptionalPath = Field(
        None,
        description="socket of a simulated driver, in place of the kernel's: for tests and demos;"
        " refused where the real driver is",
    )
    use_https: bool = Field(
        default=False, deprecated="-cert alone decides: with it HTTPS, without it HTTP"
    )

    @model_validator(mode="after")
    def _belong_together(self) -> "SidecarSettings":
        if self.client_cert and not self.cert:
            raise ValueError("-client-cert needs -cert: without it HTTP is used; see -h")
        if self.client_key and not self.client_cert:
            raise ValueError("-client-key needs -client-cert; see -h")
        if bool(self.username) != bool(self.password_file):
            raise ValueError("-username and -password-file need each other; see -h")
        if self.driver_socket and self.source is SourceChoice.XPUM:
            raise ValueError("-driver-socket needs -source driver or auto; see -h")
        return self

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed, and still is hardly meant."""
        short = (
            f"-expiry={self.life} is less than {_LEAST_INTERVALS} intervals of {self.interval} s:"
            " labels may expire before they are renewed"
        )
        return (short,) if 0 < self.life < _LEAST_INTERVALS * self.interval else ()

    @property
    def life(self) -> int:
        """Seconds that the labels live unless they are renewed; 0 means without an expiry."""
        if self.expiry is None:
            return max(_INTERVALS_IN_LIFE * self.interval, _SHORTEST_LIFE)
        return self.expiry
