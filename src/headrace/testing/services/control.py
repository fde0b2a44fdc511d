"""`/control` over HTTP: what tests of other processes say to the stand-ins, as JSON.

`POST /control/<what>` takes the named arguments of the method of `StandIn` as an object; `GET`
asks. An answer is `{"result": …}`, but for truth: the records, one a line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from headrace.model.errors import HeadraceError
from headrace.testing.services.exchange import Reply, Request, json_reply
from headrace.testing.services.stand_in import StandIn


class Control:
    """Answers for `/control`."""

    def __init__(self, stand_in: StandIn) -> None:
        """Steer these stand-ins."""
        self._stand_in = stand_in
        self._posts: dict[str, Callable[..., object]] = {
            name: getattr(stand_in, name)
            for name in (
                *("fail", "heal", "mark", "forget", "cache"),
                *("change", "reidentify", "remove", "add", "advance", "as_of"),
            )
        }
        self._gets: dict[str, Callable[..., object]] = {
            name: getattr(stand_in, name) for name in ("report", "requests", "keys", "versions")
        }

    def answer(self, request: Request) -> Reply | Iterator[bytes]:
        """Do what is asked, or say why not."""
        name = request.path.removeprefix("/control/")
        asked = {key: values[0] for key, values in request.query.items()}
        try:
            if request.method == "POST" and name in self._posts:
                arguments = msgspec.json.decode(request.body or b"{}", type=dict[str, Any])
                return _called(self._posts[name], arguments)
            if request.method == "GET" and name in self._gets:
                return _called(self._gets[name], asked)
            if request.method == "GET" and name == "truth":
                service = asked.get("service", "")
                self._stand_in.keys(service)
                return (msgspec.json.encode(r) + b"\n" for r in self._stand_in.truth(service))
        except (HeadraceError, msgspec.DecodeError) as error:
            return json_reply({"error": str(error)}, 400)
        return json_reply({"error": f"There is no {request.method} {request.path}"}, 404)


def _called(method: Callable[..., object], arguments: dict[str, Any]) -> Reply:
    try:
        inspect.signature(method).bind(**arguments)
    except TypeError as error:
        return json_reply({"error": str(error)}, 400)
    return json_reply({"result": method(**arguments)})
