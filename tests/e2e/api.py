"""The API server as the tests speak to it: objects as JSON, changes as watches."""

import json
import math
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from tests.e2e.programs import PATIENCE

Object: TypeAlias = dict[str, Any]

_MERGE = {"Content-Type": "application/merge-patch+json"}
_CREATED = 201
_OK = 200


class NotThereError(AssertionError):
    """The API server knows no such object."""


class NotYetError(AssertionError):
    """What was waited for has not come."""


@dataclass(frozen=True)
class Seen:
    """An object, and when the watch told of it, by the monotonic clock."""

    object: Object
    at: float


class Api:
    """One connection to the API server, as an administrator."""

    def __init__(self, url: str, token: str, ca: Path) -> None:
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            verify=ssl.create_default_context(cafile=str(ca)),
            timeout=PATIENCE,
            trust_env=False,
        )

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def ready(self) -> bool:
        """Tell whether it answers, and is ready."""
        try:
            return self._client.get("/readyz").status_code == _OK
        except httpx.HTTPError:
            return False

    def get(self, path: str) -> Object:
        """Give an object or a list; raises `NotThereError`."""
        return self._told(self._client.get(path))

    def text(self, path: str) -> str:
        """Give an answer that is no JSON, as a container's log."""
        answer = self._client.get(path)
        assert answer.status_code == _OK, f"{path}: {answer.text}"
        return answer.text

    def create(self, path: str, body: Object) -> Object:
        """Create an object in a collection."""
        return self._told(self._client.post(path, json=body))

    def patch(self, path: str, body: Object) -> Object:
        """Merge a patch into an object."""
        return self._told(self._client.patch(path, content=json.dumps(body), headers=_MERGE))

    def delete(self, path: str) -> None:
        """Ask for an object's end; what is not there is fine."""
        answer = self._client.delete(path)
        assert answer.status_code in {_OK, 202, 404}, answer.text

    def wait(
        self, path: str, true: Callable[[Object], object], what: str, patience: float = PATIENCE
    ) -> Seen:
        """Watch one object until a condition of it holds; deleted, it is `{}`."""
        deadline = time.monotonic() + patience
        last: Object = {}
        while (left := deadline - time.monotonic()) > 0:
            try:
                last = self.get(path)
            except NotThereError:
                last = {}
            if true(last):
                return Seen(last, time.monotonic())
            with self.watching(path, last, left) as seen:
                for event in seen:
                    last = event.object
                    if true(last):
                        return event
        raise NotYetError(f"not within {patience:.0f} s: {what}; last seen: {_brief(last)}")

    @contextmanager
    def watching(self, path: str, since: Object, patience: float) -> Iterator[Iterator[Seen]]:
        """Watch one object from a state of it on, so many seconds long."""
        collection, name = path.rsplit("/", 1)
        parameters = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "timeoutSeconds": str(math.ceil(patience)),
        }
        if since:
            parameters["resourceVersion"] = since["metadata"]["resourceVersion"]
        deadline = time.monotonic() + patience
        with self._client.stream(
            "GET", collection, params=parameters, timeout=httpx.Timeout(PATIENCE, read=patience)
        ) as answer:
            yield self._events(answer, deadline)

    @staticmethod
    def _events(answer: httpx.Response, deadline: float) -> Iterator[Seen]:
        try:
            for line in answer.iter_lines():
                now = time.monotonic()
                event = json.loads(line)
                if event["type"] == "ERROR":  # its cache is younger than what we know: look again
                    return
                yield Seen({} if event["type"] == "DELETED" else event["object"], now)
                if now > deadline:
                    return
        except httpx.ReadTimeout:
            return

    @staticmethod
    def _told(answer: httpx.Response) -> Object:
        told: Object = answer.json()
        if answer.status_code == 404:
            raise NotThereError(told.get("message"))
        assert answer.status_code in {_OK, _CREATED}, told.get("message", told)
        return told


def _brief(thing: Object) -> str:
    return json.dumps(thing.get("status", thing))[:2000]
