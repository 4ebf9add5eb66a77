"""The certificates that cert-manager makes: renewed long before anybody hears of their end."""

import re
from typing import Any

import pytest

from tests.deployment.rendering import kustomizations, needs_kustomize, render

pytestmark = needs_kustomize

DAY = 24  # hours
OVERLAYS = [name for name in kustomizations("Kustomization") if "cert-manager" in name]


def certificates(overlay: str) -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["name"]: each["spec"]
        for each in render(overlay)
        if each["kind"] == "Certificate"
    }


def hours(text: str) -> int:
    return int(text.removesuffix("h"))


def alert_before() -> float:
    """Give the hours before its end at which an alert tells of a certificate."""
    (rules,) = [each for each in render("monitoring") if each["kind"] == "PrometheusRule"]
    (expr,) = [
        rule["expr"]
        for group in rules["spec"]["groups"]
        for rule in group["rules"]
        if rule["alert"] == "XelinkCertificateEndsSoon"
    ]
    found = re.search(r"< (\d+) \* 86400$", expr)
    assert found
    return float(found[1]) * DAY


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_certificate_is_renewed_long_before_its_end_and_before_an_alert(overlay: str) -> None:
    found = certificates(overlay)
    assert found.keys() == {"xpum-ca", "serving-cert"}
    for spec in found.values():
        life, before = hours(spec["duration"]), hours(spec["renewBefore"])
        assert life / 10 <= before <= life / 2
        assert before >= 2 * alert_before(), "a renewal that fails has a while to be tried again"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_served_lives_for_months_and_its_trust_for_years(overlay: str) -> None:
    found = certificates(overlay)
    assert hours(found["serving-cert"]["duration"]) <= 100 * DAY
    assert hours(found["xpum-ca"]["duration"]) >= 5 * 365 * DAY
    assert found["xpum-ca"]["isCA"] is True
    assert not found["serving-cert"].get("isCA")
    for spec in found.values():
        assert spec["privateKey"]["rotationPolicy"] == "Always"
