"""What each path of the reading side asks of a token: one scope for every method and path.

A path that is served and not named here stops the server as it starts, so none is left open by
mistake. All that these paths do on a pipeline that asks for no tokens, anyone may do who reaches
the port.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from headrace.control import sessions
from headrace.control.admission import OPEN_PATH, Admission
from headrace.control.tokens import ADMIN, APPEND, READ, SQL
from headrace.model.errors import Internal
from headrace.model.plan import Plan
from headrace.serve.dashboard import handlers as dashboard
from headrace.serve.dashboard.handlers import OPEN, dashboard_paths

SCHEME = "token"
"""What the OpenAPI document calls the way to show a token."""

SCOPES = {
    ("GET", "/v1/tables"): READ,
    ("GET", "/v1/tables/{table}"): READ,
    ("GET", "/v1/views"): READ,
    ("GET", "/v1/views/{view}"): READ,
    ("GET", "/v1/views/{view}/live"): READ,
    ("GET", "/v1/dead-letters"): READ,
    ("GET", "/v1/dead-letters/{letter}"): READ,
    ("POST", "/v1/dead-letters/replay"): ADMIN,
    ("POST", "/v1/dead-letters/discard"): ADMIN,
    ("GET", "/v1/sources"): READ,
    ("POST", "/v1/sources"): ADMIN,
    ("GET", "/v1/sources/{source}"): READ,
    ("DELETE", "/v1/sources/{source}"): ADMIN,
    ("POST", "/v1/sources/{source}/pause"): ADMIN,
    ("POST", "/v1/sources/{source}/resume"): ADMIN,
    ("POST", "/v1/sql"): SQL,
    ("GET", "/v1/tokens"): ADMIN,
    ("POST", "/v1/tokens"): ADMIN,
    ("DELETE", "/v1/tokens/{token}"): ADMIN,
    ("GET", "/openapi.json"): READ,
    ("GET", "/docs"): READ,
    ("GET", "/ready"): READ,
    ("GET", "/metrics"): READ,
    ("GET", OPEN_PATH): OPEN,
    **dashboard.SCOPES,
}
"""Dead letters hold records as they were sent, so to read them is to read the topic."""


def scope_of(method: str, path: str, plan: Plan) -> str:
    """Return the scope that a path asks for."""
    declared = {("GET", q.path): READ for q in plan.queries}
    declared |= {("GET", p): READ for p in dashboard_paths(plan)}
    declared |= SCOPES
    if (method, path) not in declared:
        raise Internal(f"No scope is declared for {method} {path}", hint="Name it in SCOPES.")
    return declared[method, path]


def secure(paths: dict[str, dict[str, Any]], plan: Plan) -> None:
    """Write into the paths of an OpenAPI document which scope each asks for."""
    named = {route.path: f"{APPEND}{route.topic}" for route in plan.routes}
    named |= {f"/v1/topics/{t.name}": f"{APPEND}{t.name}" for t in plan.topics}
    kept = (*(t.name for t in plan.topics), *plan.change_topics)
    named |= {f"/v1/topics/{name}/records": READ for name in kept}
    named["/v1/topics"] = READ
    alike = {f"/v1/tables/{t.name}": "/v1/tables/{table}" for t in plan.tables}
    alike |= {f"/v1/views/{v.name}": "/v1/views/{view}" for v in plan.views}
    alike |= {f"/v1/views/{v.name}/live": "/v1/views/{view}/live" for v in plan.views}
    for path, operations in paths.items():
        for method, operation in operations.items():
            scope = named.get(path)
            if scope is None:
                scope = scope_of(method.upper(), alike.get(path, path), plan)
            operation["security"] = [{SCHEME: [scope]}] if scope else []


class Access:
    """Lets requests in, or not."""

    def __init__(self, admission: Admission | None, *, alone: bool) -> None:
        """Without `admission` everyone is; `alone` says that no collector stands before this."""
        self._admission = admission
        self._alone = alone

    def check(self, request: Request, scope: str = "") -> None:
        """Raise unless the request's token has a scope; keep the token in `request.state.token`."""
        if self._admission is None:
            return
        request.state.token = self._admission.admit(
            request.headers.get("authorization"),
            scope,
            origin=request.headers.get("origin"),
            client=self.client(request),
            session=sessions.shown(request.headers, request.method),
        )

    def client(self, request: Request) -> str:
        """Return the address that a request comes from."""
        if not self._alone:
            # What the collector saw: nobody else reaches its socket, and it lets no other through.
            return request.headers.get("x-forwarded-for", "")
        return request.client.host if request.client is not None else ""
