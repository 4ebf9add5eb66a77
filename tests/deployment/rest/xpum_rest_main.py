"""Stands where XPU Manager's module of this name stands: gunicorn is real, the node simulated."""

from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any, TypeAlias

from xelink.simulators.xpu_manager import Blueprint, render

StartResponse: TypeAlias = Callable[[str, list[tuple[str, str]]], object]
Application: TypeAlias = Callable[[Mapping[str, Any], StartResponse], Iterable[bytes]]

NODE = Blueprint(gpus=3, tiles=2).build()


def main() -> Application:
    """Give the application that gunicorn serves; each answer is a line of its error log."""
    scrapes = count()
    bodies: dict[str, Callable[[], bytes]] = {
        "/metrics": lambda: render(NODE, next(scrapes)),
        "/healtz": lambda: b"OK",
    }

    def application(environ: Mapping[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path, agent = environ["PATH_INFO"], environ.get("HTTP_USER_AGENT", "somebody")
        body = bodies[path]() if path in bodies else b""
        start_response(
            "200 OK" if path in bodies else "404 NOT FOUND",
            [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))],
        )
        environ["wsgi.errors"].write(f"answered {path} to {agent}\n")
        environ["wsgi.errors"].flush()
        return [body]

    return application
