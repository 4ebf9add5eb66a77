from dataclasses import replace
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_plugin.telemetry import NodeTelemetry
from xelink.daemon.metrics import Metrics
from xelink.inventory.gpus import Card
from xelink.inventory.health import (
    GpuHealth,
    Health,
    HealthReport,
    HealthStatus,
    Message,
    Severity,
    Threshold,
    age,
    complaints,
    evaluate,
    unknown,
)
from xelink.topology.pci import PciAddress

FIRST = "0000:29:00.0"
SECOND = "0000:3a:00.0"


def message(*severities: int, at: float = 0.0, bdf: str = FIRST) -> Message:
    statuses = tuple(HealthStatus(f"check{n}", severity) for n, severity in enumerate(severities))
    return Message(at, (HealthReport(bdf, statuses),))


def verdicts(
    story: list[list[int]],
    severity: Severity = Severity.CRITICAL,
    confirmations: int = 2,
) -> list[bool]:
    """Return the verdict on the GPU after each message, True where it is healthy."""
    health, found = Health(), []
    for severities in story:
        health = evaluate(health, message(*severities), severity, confirmations)
        found.append(FIRST not in health.unhealthy)
    return found


OK, WARNING, CRITICAL, FAILED = 1, 2, 3, 4


# The verdict


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        pytest.param([[OK], [OK]], "hh", id="well"),
        pytest.param([[CRITICAL]], "h", id="one message confirms nothing"),
        pytest.param([[CRITICAL], [CRITICAL]], "hu", id="two do"),
        pytest.param([[CRITICAL], [FAILED]], "hu", id="at the severity or above"),
        pytest.param([[WARNING], [WARNING], [WARNING]], "hhh", id="below it"),
        pytest.param([[CRITICAL], [OK], [CRITICAL], [OK]], "hhhh", id="flapping"),
        pytest.param([[CRITICAL], [CRITICAL], [OK]], "huu", id="one good message heals nothing"),
        pytest.param([[CRITICAL], [CRITICAL], [OK], [OK]], "huuh", id="two do, too"),
        pytest.param(
            [[CRITICAL], [CRITICAL], [OK], [FAILED], [OK], [OK]], "huuuuh", id="in a row only"
        ),
        pytest.param([[OK, CRITICAL], [FAILED, OK]], "hu", id="whichever check is bad"),
        pytest.param([[CRITICAL], [0], [CRITICAL]], "hhu", id="unknown keeps the count"),
        pytest.param([[CRITICAL], [], [CRITICAL]], "hhu", id="nothing keeps the count"),
        pytest.param([[CRITICAL], [7], [CRITICAL]], "hhu", id="an unknown number keeps it, too"),
        pytest.param([[0, CRITICAL], [7, CRITICAL]], "hu", id="beside unknown ones"),
        pytest.param([[CRITICAL], [CRITICAL], [0], [0], [0]], "huuuu", id="unknown heals nothing"),
    ],
)
def test_messages_in_a_row_make_a_verdict(story: list[list[int]], expected: str) -> None:
    assert ["u" if not verdict else "h" for verdict in verdicts(story)] == list(expected)


@pytest.mark.parametrize("threshold", Threshold)
def test_a_threshold_is_the_severity_of_its_name(threshold: Threshold) -> None:
    severity = threshold.severity
    assert severity.name.lower() == threshold.value
    assert verdicts([[severity]], severity, 1) == [False]
    assert verdicts([[severity - 1]], severity, 1) == [True]


@pytest.mark.parametrize("confirmations", [1, 2, 3, 5])
def test_as_many_messages_must_agree_as_are_asked_for(confirmations: int) -> None:
    ill = verdicts([[FAILED]] * confirmations, confirmations=confirmations)
    assert ill == [True] * (confirmations - 1) + [False]
    both = verdicts(
        [[FAILED]] * confirmations + [[OK]] * confirmations, confirmations=confirmations
    )
    assert both[confirmations:] == [False] * (confirmations - 1) + [True]


@given(
    story=st.lists(st.lists(st.integers(-1, 6), max_size=3), max_size=20),
    severity=st.sampled_from([Severity.WARNING, Severity.CRITICAL, Severity.FAILED]),
    confirmations=st.integers(1, 4),
)
def test_a_verdict_changes_when_the_last_messages_that_tell_agree(
    story: list[list[int]], severity: Severity, confirmations: int
) -> None:
    telling: list[bool] = []
    healthy = True
    for severities, verdict in zip(story, verdicts(story, severity, confirmations), strict=True):
        known = [number for number in severities if 1 <= number <= 4]
        if known:
            telling.append(max(known) < severity)
            if len(telling) >= confirmations and len(set(telling[-confirmations:])) == 1:
                healthy = telling[-1]
        assert verdict is healthy


def test_a_gpu_that_is_not_mentioned_keeps_verdict_and_count() -> None:
    health = reduce(
        lambda before, bdf: evaluate(before, message(FAILED, bdf=bdf), Severity.CRITICAL, 2),
        [FIRST, SECOND, FIRST],
        Health(),
    )
    assert health.unhealthy == {FIRST: "check0 is failed"}
    assert health.gpus[SECOND].contrary == 1


def test_two_reports_of_one_gpu_are_one() -> None:
    told = Message(
        0.0,
        (
            HealthReport(FIRST, (HealthStatus("memory", FAILED),)),
            HealthReport(FIRST, (HealthStatus("power", OK),)),
        ),
    )
    assert evaluate(Health(), told, Severity.CRITICAL, 1).unhealthy == {FIRST: "memory is failed"}


def test_the_reason_names_what_is_bad_the_worst_first() -> None:
    told = Message(
        0.0,
        (
            HealthReport(
                FIRST,
                (
                    HealthStatus("power", CRITICAL, "over limit", "700 W"),
                    HealthStatus("fan", WARNING),
                    HealthStatus("memory", FAILED, message="ECC\nerrors \x1b[31m"),
                ),
            ),
        ),
    )
    assert evaluate(Health(), told, Severity.CRITICAL, 1).unhealthy == {
        FIRST: r"memory is failed (ECC\nerrors \x1b[31m); power is critical (over limit, 700 W)"
    }


def test_a_reason_changes_with_what_is_bad_and_not_with_its_words() -> None:
    def told(severity: int, words: str) -> Message:
        return Message(
            0.0, (HealthReport(FIRST, (HealthStatus("heat", severity, message=words),)),)
        )

    first = evaluate(Health(), told(CRITICAL, "101 C"), Severity.CRITICAL, 1)
    assert evaluate(first, told(CRITICAL, "102 C"), Severity.CRITICAL, 1) == first
    worse = evaluate(first, told(FAILED, "120 C"), Severity.CRITICAL, 1)
    assert worse.unhealthy == {FIRST: "heat is failed (120 C)"}
    assert not evaluate(worse, told(OK, ""), Severity.CRITICAL, 1).unhealthy


def test_a_reason_is_never_long() -> None:
    told = Message(0.0, (HealthReport(FIRST, (HealthStatus("x" * 10_000, FAILED),)),))
    assert len(evaluate(Health(), told, Severity.CRITICAL, 1).unhealthy[FIRST]) <= 300


# Addresses and numbers that are none


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0000:29:00.0", "0000:29:00.0"),
        ("0000:9A:1F.7", "0000:9a:1f.7"),
        ("9a:00.0", "0000:9a:00.0"),
        ("00000000:9A:00.0", "0000:9a:00.0"),
        ("10000:9a:00.0", "10000:9a:00.0"),
        ("0:9a:00.0", "0000:9a:00.0"),
        (" 0000:29:00.0\n", "0000:29:00.0"),
    ],
)
def test_a_gpu_is_reported_under_its_address_in_the_kernels_form(text: str, address: str) -> None:
    report = message(FAILED, bdf=text)
    assert set(evaluate(Health(), report, Severity.CRITICAL, 1).gpus) == {address}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0000:29:00",
        "0000:29:00.8",
        "0000:29:20.0",
        "0000:2g:00.0",
        "000000000:29:00.0",
        "\u0660:29:00.0",
        "-",
    ],
)
def test_what_is_no_address_is_of_no_gpu_and_counted(text: str) -> None:
    health = evaluate(Health(), message(FAILED, bdf=text), Severity.CRITICAL, 1)
    assert (dict(health.gpus), health.bad_addresses) == ({}, 1)


def test_spellings_of_one_address_are_one_gpu() -> None:
    health = Health()
    for bdf in ("9A:00.0", "0000:9a:00.0", "00000000:9A:00.0"):
        health = evaluate(health, message(FAILED, bdf=bdf), Severity.CRITICAL, 3)
    assert health.unhealthy == {"0000:9a:00.0": "check0 is failed"}


def test_what_is_not_understood_is_counted_and_harms_nobody() -> None:
    told = Message(
        0.0,
        (
            HealthReport("rubbish", (HealthStatus("memory", FAILED),)),
            HealthReport(""),
            HealthReport(
                FIRST,
                (HealthStatus("memory", 9), HealthStatus("power", -1), HealthStatus("fan", 0)),
            ),
            HealthReport(SECOND, (HealthStatus("memory", OK),)),
        ),
    )
    health = evaluate(evaluate(Health(), told, Severity.CRITICAL, 1), told, Severity.CRITICAL, 1)
    assert not health.unhealthy
    assert set(health.gpus) == {SECOND}
    assert (health.messages, health.bad_addresses, health.bad_severities) == (2, 4, 4)


@given(
    reports=st.lists(
        st.tuples(
            st.one_of(st.text(max_size=12), st.sampled_from([FIRST, SECOND])),
            st.lists(
                st.builds(
                    HealthStatus,
                    st.text(),
                    st.integers(-(2**31), 2**31 - 1) | st.integers(0, 4),
                    st.text(),
                    st.text(),
                ),
                max_size=4,
            ),
        ),
        max_size=5,
    )
)
def test_no_message_is_too_strange(reports: list[tuple[str, list[HealthStatus]]]) -> None:
    told = Message(0.0, tuple(HealthReport(bdf, tuple(statuses)) for bdf, statuses in reports))
    health = evaluate(Health(), told, Severity.CRITICAL, 1)
    assert all(PciAddress(bdf) == bdf for bdf in health.gpus)
    assert all(reason.isprintable() and reason for reason in health.unhealthy.values())
    assert str(HealthStatus("memory", 12)) == "memory is severity 12"


# Silence


def ill() -> Health:
    told = Message(100.0, (*message(FAILED).reports, *message(OK, bdf=SECOND).reports))
    return evaluate(Health(), told, Severity.CRITICAL, 1)


def test_no_news_is_unknown_and_changes_no_verdict() -> None:
    health = ill()
    assert age(health, 130.0) == health
    silent = age(health, 130.1)
    assert silent != health
    assert silent.error == "no news for 30 s"
    assert silent.unhealthy == health.unhealthy
    assert not any(gpu.known for gpu in silent.gpus.values())
    assert silent.gpus[SECOND].healthy
    again = evaluate(silent, message(FAILED, at=200.0), Severity.CRITICAL, 1)
    assert again.error == ""
    assert again.gpus[FIRST].known
    assert not again.gpus[SECOND].known


def test_a_gpu_that_messages_no_longer_mention_is_unknown_alone() -> None:
    health = ill()
    for at in (110.0, 120.0, 131.0):
        health = age(evaluate(health, message(FAILED, at=at), Severity.CRITICAL, 1), at)
    assert health.error == ""
    assert (health.gpus[FIRST].known, health.gpus[SECOND].known) == (True, False)


def test_a_trouble_that_is_known_is_not_hidden_by_silence() -> None:
    lost = replace(ill(), error="UNAVAILABLE: gone")
    assert age(lost, 1000.0).error == "UNAVAILABLE: gone"
    assert age(Health(), 1000.0) == Health()


@given(
    times=st.lists(st.floats(0, 1000), max_size=8),
    severities=st.lists(st.integers(0, 5), max_size=8),
)
def test_time_never_changes_a_verdict(times: list[float], severities: list[int]) -> None:
    health = Health()
    for at, severity in zip(sorted(times), severities, strict=False):
        health = evaluate(health, message(severity, at=at), Severity.CRITICAL, 2)
        assert age(health, at + 500).unhealthy == health.unhealthy
        assert age(age(health, at + 500), at + 500) == age(health, at + 500)


def test_a_message_that_says_the_same_is_an_equal_value() -> None:
    first = evaluate(Health(), message(OK, at=1.0), Severity.CRITICAL, 2)
    assert evaluate(first, message(OK, at=6.0), Severity.CRITICAL, 2) == first
    assert first.gpus[FIRST] == GpuHealth(known=True)


# Cards


def card(bdf: str, physfn: str | None = None) -> Card:
    return Card("card0", bdf, "i915", 0x0BD5, physfn=physfn)


def test_complaints_are_of_cards_and_a_vf_is_as_ill_as_its_physical_function() -> None:
    cards = [card(FIRST), card(SECOND), card("0000:29:00.1", FIRST), card("0000:3a:00.1", SECOND)]
    assert complaints(ill(), cards) == {
        FIRST: "check0 is failed",
        "0000:29:00.1": f"its physical function {FIRST}: check0 is failed",
    }


def test_cards_without_recent_news_are_named() -> None:
    cards = [card(FIRST), card("0000:29:00.1", FIRST), card("0000:99:00.0")]
    assert unknown(ill(), cards) == ("0000:99:00.0",)
    assert unknown(age(ill(), 1000.0), cards) == tuple(each.bdf for each in cards)
    assert unknown(Health(), cards[:1]) == (FIRST,)


def test_metrics_tell_whether_health_is_known_and_count_what_was_not_understood_once() -> None:
    metrics = Metrics("x")
    telemetry = NodeTelemetry(metrics)

    def told() -> tuple[float | None, float | None]:
        value = metrics.registry.get_sample_value
        return value("x_health_known"), value("x_health_unread_total")

    telemetry.health_reported(Health())
    assert told() == (0, 0)
    telemetry.health_reported(Health(error="", bad_messages=1, bad_addresses=2, bad_severities=3))
    assert told() == (1, 6)
    telemetry.health_reported(Health(error="", bad_messages=2, bad_addresses=2, bad_severities=3))
    assert told() == (1, 7)
    telemetry.health_reported(
        Health(error="gone", bad_messages=2, bad_addresses=2, bad_severities=3)
    )
    assert told() == (0, 7)
