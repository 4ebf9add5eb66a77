"""Each object is one that the API server knows: every field, of each version of Kubernetes."""

import importlib
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import yaml

from tests.deployment.rendering import (
    CUSTOM_RESOURCES,
    Document,
    each_overlay,
    kustomizations,
    needs_kustomize,
    render,
)

pytestmark = needs_kustomize

VERSIONS = ("1.25", "1.29", "1.33", "1.36")
CUSTOM_GROUPS = ("cert-manager.io", "monitoring.coreos.com")


@cache
def library(name: str) -> Any:  # noqa: ANN401 - neither library ships types
    """Import a library when it is needed, without the grammars of IRIs.

    To compile those takes seconds, and both libraries leave formats alone.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "rfc3987_syntax", None)
        return importlib.import_module(name)


def is_custom(document: Document) -> bool:
    group: str = document["apiVersion"].partition("/")[0]
    return group in CUSTOM_GROUPS


def closed(schema: object) -> object:
    """Allow no property that a schema does not name, as the API server's strict reading does.

    Patterns are Go's, where a flag may stand anywhere; in Python it stands first.
    """
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not open_ended:
        inner.setdefault("additionalProperties", False)
    if isinstance(pattern := schema.get("pattern"), str) and "(?i)" in pattern:
        inner["pattern"] = "(?i)" + pattern.replace("(?i)", "")
    return inner


@cache
def definition(group: str, kind: str, version: str) -> Mapping[str, Any]:
    """Give the schema of a custom resource; skip where its definition is not here."""
    path = CUSTOM_RESOURCES / f"{group}_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip(f"no definition of {kind}: run `make deployment-tools`")
    content = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    (schema,) = (
        each["schema"]["openAPIV3Schema"]
        for each in content["spec"]["versions"]
        if each["name"] == version and each["served"]
    )
    schema["properties"]["metadata"] = {"type": "object"}
    found = closed(schema)
    assert isinstance(found, dict)
    return found


def check_custom(document: Document) -> None:
    group, _, version = document["apiVersion"].partition("/")
    library("jsonschema").validate(document, definition(group, document["kind"], version))


@pytest.mark.parametrize("version", VERSIONS)
@each_overlay
def test_each_object_is_valid(overlay: str, version: str) -> None:
    for document in render(overlay):
        if not is_custom(document):
            used = library("kubernetes_validate").validate(document, version, strict=True)
            assert used == version


@each_overlay
def test_each_custom_resource_is_valid(overlay: str) -> None:
    for document in filter(is_custom, render(overlay)):
        check_custom(document)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_misspelt_field_is_found(version: str) -> None:
    document = render("http")[0]
    document["spec"]["template"]["spec"]["hostNetworks"] = True
    kubernetes = library("kubernetes_validate")
    with pytest.raises(kubernetes.ValidationError, match="hostNetworks"):
        kubernetes.validate(document, version, strict=True)


def test_a_misspelt_field_of_a_custom_resource_is_found() -> None:
    (leaf,) = (
        each
        for each in render("cert-manager")
        if each["kind"] == "Certificate" and not each["spec"].get("isCA")
    )
    check_custom(leaf)
    leaf["spec"]["ipAddress"] = leaf["spec"].pop("ipAddresses")
    with pytest.raises(library("jsonschema").ValidationError, match="ipAddress"):
        check_custom(leaf)


def test_no_kind_is_left_out() -> None:
    kinds = {
        document["kind"]
        for overlay in kustomizations("Kustomization")
        for document in render(overlay)
        if is_custom(document)
    }
    assert {"Certificate", "Issuer"} <= kinds
