"""The little of an API server that kubectl needs to show objects, and to wait for them."""

import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_Object = Mapping[str, Any]
_UNKNOWN = {"kind": "Status", "apiVersion": "v1", "code": 404}


@contextmanager
def serving(objects: Sequence[_Object], logs: Mapping[str, str] | None = None) -> Iterator[str]:
    """Serve objects of whatever kind, which nothing changes, and logs of Pods; give the URL."""
    told = {f"/{name}/log": text for name, text in (logs or {}).items()}
    answers = _discovery(objects) | _objects(objects)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            for end, text in told.items():
                if url.path.endswith(end):
                    self._answer(text.encode(), found=True)
                    return
            query = parse_qs(url.query)
            answer = answers.get(url.path, _UNKNOWN)
            if "items" in answer:
                items = [each for each in answer["items"] if _selected(each, query)]
                answer = {**answer, "items": items}
            # A watch ends at once: nothing ever changes.
            body = b"" if "watch" in query else json.dumps(answer).encode()
            self._answer(body, found=url.path in answers)

        def _answer(self, body: bytes, *, found: bool) -> None:
            self.send_response(200 if found else 404)
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


def _plural(each: _Object) -> str:
    return f"{each['kind'].lower()}s"


def _root(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def _discovery(objects: Sequence[_Object]) -> dict[str, dict[str, Any]]:
    kinds: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for each in objects:
        kinds[each["apiVersion"]][each["kind"]] = {
            "name": _plural(each),
            "singularName": each["kind"].lower(),
            "namespaced": "namespace" in each["metadata"],
            "kind": each["kind"],
            "verbs": ["get", "list", "watch"],
        }
    versions = [
        {"groupVersion": name, "version": name.rpartition("/")[2]} for name in kinds if "/" in name
    ]
    groups = [
        {
            "name": each["groupVersion"].partition("/")[0],
            "versions": [each],
            "preferredVersion": each,
        }
        for each in versions
    ]
    found: dict[str, dict[str, Any]] = {
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
    }
    for version, resources in {"v1": {}, **kinds}.items():
        found[_root(version)] = {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": [*resources.values()],
        }
    return found


def _objects(objects: Sequence[_Object]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for each in objects:
        root, metadata = _root(each["apiVersion"]), each["metadata"]
        everywhere = f"{root}/{_plural(each)}"
        space = metadata.get("namespace")
        own = f"{root}/namespaces/{space}/{_plural(each)}" if space else everywhere
        found[f"{own}/{metadata['name']}"] = dict(each)
        for collection in {everywhere, own}:
            listed = {
                "kind": f"{each['kind']}List",
                "apiVersion": each["apiVersion"],
                "metadata": {"resourceVersion": "1"},
                "items": [],
            }
            found.setdefault(collection, listed)["items"].append(each)
    return found


def _selected(item: _Object, query: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether an object fits `labelSelector` (`name`, `name=value`) and `fieldSelector`."""
    (labels,) = query.get("labelSelector", [""])
    name, equals, value = labels.partition("=")
    has = item["metadata"].get("labels", {})
    if name and (name not in has or (equals and has[name] != value)):
        return False
    (fields,) = query.get("fieldSelector", [""])
    node = item.get("spec", {}).get("nodeName")
    return fields in {"", f"metadata.name={item['metadata']['name']}", f"spec.nodeName={node}"}
