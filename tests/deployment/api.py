"""The little of an API server that `kubectl get` needs to show objects."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_KINDS = {
    "/api/v1": {"name": "nodes", "singularName": "node", "namespaced": False, "kind": "Node"},
    "/apis/apps/v1": {
        "name": "daemonsets",
        "singularName": "daemonset",
        "namespaced": True,
        "kind": "DaemonSet",
    },
}
_APPS = {"groupVersion": "apps/v1", "version": "v1"}


@contextmanager
def serving(objects: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Serve nodes and DaemonSets; give the URL."""
    answers = _discovery() | _objects(objects)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            answer = answers.get(url.path, {"kind": "Status", "apiVersion": "v1", "code": 404})
            selector = parse_qs(url.query).get("labelSelector")
            if selector:
                items = [each for each in answer["items"] if _matches(each, selector[0])]
                answer = {**answer, "items": items}
            body = json.dumps(answer).encode()
            self.send_response(200 if url.path in answers else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _discovery() -> dict[str, dict[str, Any]]:
    group = {"name": "apps", "versions": [_APPS], "preferredVersion": _APPS}
    found: dict[str, dict[str, Any]] = {
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]},
    }
    for path, kind in _KINDS.items():
        version = path.removeprefix("/apis/").removeprefix("/api/")
        resources = [{**kind, "verbs": ["get", "list"]}]
        found[path] = {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": resources,
        }
    return found


def _objects(objects: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    nodes = [each for each in objects if each["kind"] == "Node"]
    found: dict[str, dict[str, Any]] = {
        "/api/v1/nodes": {"kind": "NodeList", "apiVersion": "v1", "metadata": {}, "items": nodes}
    }
    for each in objects:
        if each["kind"] == "DaemonSet":
            name, space = each["metadata"]["name"], each["metadata"]["namespace"]
            found[f"/apis/apps/v1/namespaces/{space}/daemonsets/{name}"] = dict(each)
    return found


def _matches(item: Mapping[str, Any], selector: str) -> bool:
    """Tell whether labels fit `name` or `name=value`."""
    name, equals, value = selector.partition("=")
    labels = item["metadata"].get("labels", {})
    return name in labels and (not equals or labels[name] == value)
