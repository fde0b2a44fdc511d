"""A page: its frame, its policy, and the files that it loads.

The policy allows nothing but the files in `static/`, every text on a page is escaped (rows come
from outside), and a page that somebody looks at is replaced in parts when something has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from headrace.model.errors import HeadraceError
from headrace.model.plan import Plan
from headrace.serve.dashboard import shown
from headrace.serve.errors import status_of

ROOT = "/_/"
"""The dashboard's own paths begin so."""
ASSETS = f"{ROOT}static/"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
}

_HERE = Path(__file__).parent
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_ASSETS = {p.name: p for p in (_HERE / "static").rglob("*") if p.suffix in _TYPES}


class Link(NamedTuple):
    """An entry of the navigation."""

    path: str
    name: str


def root_of(plan: Plan) -> str:
    """Return where the dashboard begins: at `/`, unless the pipeline declares that itself."""
    declared = {r.path for r in plan.routes} | {q.path for q in plan.queries}
    return ROOT if "/" in declared else "/"


class Shell:
    """Makes pages of templates, each in the same frame."""

    def __init__(self, plan: Plan, *, has_sources: bool) -> None:
        """`has_sources` says that a pull role may run beside."""
        self._plan = plan
        self._root = root_of(plan)
        self._links = _links(self._root, has_sources=has_sources)
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(shown.FILTERS)

    def page(
        self,
        template: str,
        title: str,
        request: Request | None = None,
        *,
        status: int = 200,
        every_s: float = 10.0,
        **values: object,
    ) -> Response:
        """Return a page; its script looks for news every so often, and when told of a change."""
        path = request.url.path if request is not None else ""
        text = self._templates.get_template(template).render(
            title=title,
            pipeline=self._plan.name,
            root=self._root,
            links=self._links,
            here=_here(self._links, path),
            assets=ASSETS,
            is_signed_in=request is not None and _has_session(request),
            every_s=every_s,
            **values,
        )
        return Response(text, status, headers=HEADERS, media_type="text/html")

    def fault(self, error: HeadraceError, request: Request) -> Response:
        """Return the page that says what is wrong."""
        return self.page("fault.html", "Not so", request, status=status_of(error), error=error)

    def plain(self, title: str, body: str, request: Request) -> Response:
        """Return a page whose body is made already, as HTML."""
        return self.page("plain.html", title, request, body=Markup(body))  # noqa: S704 - made by us, escaped


async def asset(request: Request) -> Response:
    """Answer one of the pages' files; these are the same for everyone."""
    path = _ASSETS.get(request.path_params["asset"])
    if path is None:
        raise HTTPException(404)
    headers = {"content-type": _TYPES[path.suffix], "cache-control": "max-age=300"}
    return Response(path.read_bytes(), headers=headers)


def _links(root: str, *, has_sources: bool) -> Sequence[Link]:
    sources = [Link(f"{ROOT}sources", "Sources")] if has_sources else []
    return (
        Link(root, "Overview"),
        Link(f"{ROOT}topics", "Topics"),
        Link(f"{ROOT}tables", "Tables"),
        Link(f"{ROOT}dead-letters", "Dead letters"),
        *sources,
        Link(f"{ROOT}health", "Health"),
        Link(f"{ROOT}sql", "SQL"),
        Link("/docs", "HTTP"),
    )


def _here(links: Sequence[Link], path: str) -> str:
    """Return the path of the entry that a page belongs to."""
    for link in links[1:]:
        if path == link.path or path.startswith(f"{link.path}/"):
            return link.path
    return f"{ROOT}tables" if path.startswith(f"{ROOT}views/") else links[0].path


def _has_session(request: Request) -> bool:
    token = getattr(request.state, "token", None)
    return token is not None and token.kind == "session"
