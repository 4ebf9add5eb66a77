"""The tables of families: those of XPU Manager 1.x in their order, and those of 2.x."""

from collections.abc import Iterator

from xelink.simulators.xpu_manager.fabric import fabric_bytes, port_status, throughput, topology
from xelink.simulators.xpu_manager.families import Family, Sample, Value, per_engine, series_of
from xelink.simulators.xpu_manager.node import SimulatedNode

_BOOT = 1795170514.0


def _scaled(low: float, high: float, digits: int) -> Value:
    return lambda x, _: round(low + (high - low) * x, digits)


def _growing(most: float, step: float, digits: int = 0) -> Value:
    return lambda x, ticks: round(most * x + step * x * ticks, digits)


def _ratio(x: float, _ticks: int) -> float:
    return round(x * 100, 2) * 0.01  # percent to ratio, with the noise that it makes


def _few(x: float, _ticks: int) -> float:
    return float(int(x * 5))


def _one(_x: float, _ticks: int) -> float:
    return 1.0


def _born(x: float, _ticks: int) -> float:
    return _BOOT + 0.9 + x / 100


_ERRORS = ({"type": "correctable"}, {"type": "uncorrectable"})
_GROUPS = tuple({"type": kind} for kind in ("3d", "compute", "copy", "media", "render"))
_CLOCKS = tuple({"location": "gpu", "type": kind} for kind in ("actual", "request"))
_SENSORS = ({"location": "gpu"}, {"location": "mem"})


def _counter(family: Family) -> tuple[Family, Family]:
    """Return a counter as the library prints it: beside its total, the moment it was made."""
    created = Family(
        f"{family.name}_created",
        family.text,
        whole=family.whole,
        variants=family.variants,
        value=_born,
        make=family.make,
    )
    total = Family(
        f"{family.name}_total",
        family.text,
        "counter",
        whole=family.whole,
        variants=family.variants,
        repeats=family.repeats,
        value=family.value,
        make=family.make,
    )
    return total, created


_SINCE = "since Sysman init, per GPU"

FAMILIES: tuple[Family, ...] = (
    Family(
        "xpum_power_watts",
        "Avg GPU power (in watts), per GPU and per card",
        whole="direct",
        value=_scaled(250, 500, 2),
    ),
    *_counter(
        Family(
            "xpum_energy_joules",
            "Total GPU energy consumption since boot (in Joules), per GPU",
            whole="direct",
            value=_growing(9.9e6, 400.0, 5),
        )
    ),
    Family(
        "xpum_engine_ratio",
        "GPU active time of the elapsed time (in %), per GPU tile",
        whole="avg",
        value=_ratio,
    ),
    Family(
        "xpum_memory_bandwidth_ratio",
        "Avg memory throughput / max memory bandwidth (in %), per GPU tile",
        whole="avg",
        value=lambda x, _: int(x * 100) * 0.01,
    ),
    Family(
        "xpum_memory_ratio",
        "Used GPU memory / Total used GPU memory (in %), per GPU tile",
        whole="avg",
        value=_ratio,
    ),
    *_counter(
        Family(
            "xpum_cache_errors",
            f"Total number of GPU cache errors {_SINCE}",
            whole="sum",
            variants=_ERRORS,
            value=_few,
        )
    ),
    *_counter(
        Family(
            "xpum_driver_errors",
            f"Total number of GPU driver errors {_SINCE}",
            whole="sum",
        )
    ),
    *_counter(
        Family(
            "xpum_non_compute_errors",
            f"Total number of GPU non-compute errors {_SINCE}",
            whole="sum",
            variants=_ERRORS,
            value=_few,
        )
    ),
    *_counter(
        Family(
            "xpum_programming_errors",
            f"Total number of GPU programming errors {_SINCE}",
            whole="sum",
        )
    ),
    *_counter(
        Family(
            "xpum_resets",
            f"Total number of GPU reset {_SINCE}",
            whole="sum",
        )
    ),
    *_counter(
        Family(
            "xpum_fabric_tx_bytes",
            "Data transmitted through fabric link (in bytes)",
            repeats=2,
            value=_growing(9.9e12, 7e8),
            make=fabric_bytes,
        )
    ),
    Family(
        "xpum_xelink_throughput",
        "The Xelink throughput (in KB/s)",
        repeats=2,
        value=_scaled(0, 70_000, 2),
        make=throughput,
    ),
    Family(
        "xpum_topology_link",
        "Connection type of two GPU tiles",
        make=topology,
        always=True,
    ),
    Family("xpum_xelink_port_status", "The Xelink port status", make=port_status),
    Family(
        "xpum_frequency_mhz",
        "Avg (GPU) frequency (in MHz), per GPU tile",
        variants=_CLOCKS,
        value=_scaled(800, 1600, 0),
    ),
    Family(
        "xpum_temperature_celsius",
        "Avg GPU temperature (in Celsius degree), per tile",
        variants=_SENSORS,
        value=_scaled(30, 50, 2),
    ),
    Family(
        "xpum_max_temperature_celsius",
        "Max GPU temperature (in Celsius degree), per tile",
        variants=_SENSORS,
        value=_scaled(30, 50, 2),
    ),
    Family(
        "xpum_memory_used_bytes",
        "Used GPU memory (in bytes), per GPU tile",
        value=_scaled(1e9, 3e10, 0),
    ),
    *_counter(
        Family(
            "xpum_memory_read_bytes",
            "Total memory read bytes (in bytes), per GPU tile",
            value=_growing(9e13, 9e9),
        )
    ),
    *_counter(
        Family(
            "xpum_memory_write_bytes",
            "Total memory write bytes (in bytes), per GPU tile",
            value=_growing(9e13, 9e9),
        )
    ),
    Family(
        "xpum_engine_group_ratio",
        "Avg utilization of engine group (in %), per GPU tile",
        variants=_GROUPS,
        value=_ratio,
    ),
    Family(
        "xpum_per_engine_ratio",
        "Per-engine utilization (in %)",
        repeats=2,
        value=_ratio,
        make=per_engine,
    ),
)


# XPU Manager 2.x: other names, keyed by uuid and PCI address, and nothing of the fabric.


def _second_generation(family: Family, node: SimulatedNode, scrape: int) -> Iterator[Sample]:
    for gpu in node.present:
        for variant in family.variants:
            labels = {
                "hw_id": gpu.uuid,
                "hw_name": gpu.model.name,
                "pci_bdf": gpu.bdf,
                "uuid": gpu.uuid,
            }
            series = series_of(family.name, labels | variant)
            yield series, family.number(series, scrape)


SECOND_GENERATION: tuple[Family, ...] = (
    Family("hw_energy_joules_total", "Energy consumed", "counter", value=_growing(9.9e6, 400.0, 5)),
    Family(
        "hw_errors_total",
        "Errors since start",
        "counter",
        variants=_ERRORS,
        value=_few,
        make=_second_generation,
    ),
    Family("hw_frequency_hertz", "Operating frequency", value=_scaled(8e8, 1.6e9, 0)),
    Family("hw_gpu_memory_usage_bytes", "Memory in use", value=_scaled(1e9, 3e10, 0)),
    Family(
        "hw_gpu_utilization_ratio",
        "Share of time in use",
        variants=_GROUPS,
        value=_ratio,
        make=_second_generation,
    ),
    Family("hw_power_watts", "Power drawn", value=_scaled(250, 500, 2)),
    Family("hw_status", "1 when the state holds", value=_one, make=_second_generation),
    Family("hw_temperature_celsius", "Temperature", variants=_SENSORS, value=_scaled(30, 50, 2)),
)
