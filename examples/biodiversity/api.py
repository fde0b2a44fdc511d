"""The old system's API, on top of the public one: the same paths, parameters and bodies.

    HEADRACE_TOKEN=hr_api_… python api.py --pipeline http://127.0.0.1:8080 --give-tokens

It keeps nothing: each answer is made of one of the pipeline's, asked with the caller's own token.
The token in HEADRACE_TOKEN is the owner's, and is used for one thing only, to make short-lived
tokens for reading at `/getToken` where the owner allows it with --give-tokens. See README.md.
"""

import asyncio
import os
import signal
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import click
import httpx2
import msgspec
from granian.constants import Interfaces
from granian.server.embed import Server
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headrace.app.running import end_with_input

KINDS = ("gbif", "obis", "idigbio")
NO_KINGDOM = "Title Unavailable"
UNION = "all sources"
BY_NAME = "distinct names of accepted species"
TOKEN_S = 900
"""How long a token of `/getToken` lives."""
TOKENS_A_MINUTE_MAX = 60
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Settings:
    """What the owner says."""

    pipeline: str
    """Base URL of the public API."""
    owner_token: str | None = None
    """May make tokens: has the scope `admin`."""
    gives_tokens: bool = False
    options: dict[str, dict[str, str | int | float | bool]] = field(default_factory=dict)
    """Kind → options of the sources that are added, such as another `url`."""


class Refused(Exception):
    """Answered with a message and a status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class OldApi:
    """The handlers."""

    def __init__(self, settings: Settings, client: httpx2.AsyncClient) -> None:
        """Ask with `client`, whose base URL is the pipeline's."""
        self._settings = settings
        self._client = client
        self._given_at_s: deque[float] = deque(maxlen=TOKENS_A_MINUTE_MAX)

    async def greeting(self, request: Request) -> Response:
        """Greet whoever has a token."""
        await self._ask("GET", "/v1/tables", token_of(request))
        return said({"message": "Hello, biodiversity!"})

    async def get_token(self, request: Request) -> Response:  # noqa: ARG002 - starlette's signature
        """Give a token that reads for a while, if the owner lets it."""
        settings = self._settings
        if not settings.gives_tokens or settings.owner_token is None:
            raise Refused(403, "Tokens are not given here: ask the owner for one")
        now_s = asyncio.get_running_loop().time()
        full = len(self._given_at_s) == TOKENS_A_MINUTE_MAX
        if full and now_s - self._given_at_s[0] < 60:  # noqa: PLR2004 - seconds of a minute
            raise Refused(429, "Too many tokens were given in this minute")
        self._given_at_s.append(now_s)
        wanted = {"scopes": ["read"], "lifetime_s": TOKEN_S, "name": "getToken"}
        made = await self._ask("POST", "/v1/tokens", settings.owner_token, json=wanted)
        return said({"message": "Success", "token": made["token"]})

    async def add_source(self, request: Request) -> Response:
        """Have a source followed, by the first label of its URL's host."""
        token = token_of(request)
        await self._ask("GET", "/v1/tables", token)
        url = request.query_params.get("url")
        if not url:
            raise Refused(400, "Missing parameter: url")
        kind = first_label(url)
        if kind not in KINDS:
            raise Refused(400, "Unknown source")
        wanted = {
            "name": kind,
            "kind": kind,
            "topic": kind,
            "options": self._settings.options.get(kind, {}),
            "counts": "source_counts",
        }
        await self._ask("POST", "/v1/sources", token, json=wanted, settled=("source_exists",))
        return said({"message": "Success"})

    async def list_sources(self, request: Request) -> Response:
        """List what is followed."""
        found = await self._ask("GET", "/v1/sources", token_of(request))
        names = sorted({s["kind"] for s in found["sources"]} & set(KINDS), key=KINDS.index)
        return said({"message": "Success", "sources": [old_name(name) for name in names]})

    async def count(self, request: Request) -> Response:
        """Count records by kingdom or source, or species."""
        token = token_of(request)
        by = request.query_params.get("by")
        if by == "species":
            rows = (await self._ask("GET", "/count/species", token))["rows"]
            found = {
                UNION if row["source"] is None else old_name(row["source"]): row["species"]
                for row in sorted(rows, key=lambda row: place(row["source"]))
                if row["unit"] == BY_NAME
            }
        elif by in {"kingdom", "source"}:
            rows = (await self._ask("GET", f"/count?by={by}", token))["rows"]
            named = {"kingdom": lambda name: name or NO_KINGDOM, "source": old_name}[by]
            found = {}
            for row in rows:
                name = named(row[by])
                found[name] = found.get(name, 0) + row["records"]
        else:
            await self._ask("GET", "/v1/tables", token)
            raise Refused(404, "Unrecognized parameter")
        return said({"message": "Success", "count": found})

    async def favicon(self, request: Request) -> Response:  # noqa: ARG002 - starlette's signature
        """Say that there is no icon."""
        return Response(status_code=204)

    async def _ask(
        self,
        method: str,
        path: str,
        token: str,
        json: object = None,
        settled: tuple[str, ...] = (),
    ) -> dict:
        """Return the pipeline's answer; errors with a code in `settled` count as done."""
        headers = {"authorization": f"Bearer {token}"}
        try:
            answer = await self._client.request(method, path, headers=headers, json=json)
        except httpx2.TransportError as error:
            raise Refused(503, "The pipeline does not answer") from error
        if answer.is_success:
            return answer.json()
        told = error_of(answer)
        match answer.status_code:
            # The pipeline says 429 to wrong tokens alone, and only after many.
            case 401 | 429:
                raise Refused(401, "Token is invalid!")
            case 403:
                raise Refused(403, "Token does not allow this!")
        if told.get("code") in settled:
            return {}
        status = answer.status_code if answer.is_client_error else 503
        raise Refused(status, told.get("message", "The pipeline failed"))


def error_of(answer: httpx2.Response) -> dict[str, str]:
    """Return what the pipeline says of its refusal."""
    try:
        return answer.json()["error"]
    except (ValueError, LookupError, TypeError):
        return {}


def token_of(request: Request) -> str:
    """Return the request's token."""
    token = request.query_params.get("token")
    if not token:
        raise Refused(401, "Token is missing!")
    if not (token.isascii() and token.isprintable()):
        raise Refused(401, "Token is invalid!")
    return token


def first_label(url: str) -> str | None:
    """Return the first label of a URL's host: what the old system knew a source by.

    None for what is no plain address of a web page. The URL only names a source and is never asked.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises if it is none
    except ValueError:
        return None
    if parts.scheme not in {"http", "https"} or "@" in parts.netloc or not url.isprintable():
        return None
    return parts.hostname and parts.hostname.partition(".")[0]


def old_name(source: str) -> str:
    """Return a source as the old system named it."""
    return f"http://{source}.org"


def place(source: str | None) -> int:
    """Return where a source stands in an answer; the union is last."""
    return KINDS.index(source) if source in KINDS else len(KINDS)


def said(value: object, status: int = 200) -> Response:
    """Return a value as JSON; nobody keeps it, for it may hold a token."""
    body = msgspec.json.encode(value)
    headers = {"cache-control": "no-store"}
    return Response(body, status, headers=headers, media_type="application/json")


async def refused(_: Request, error: Exception) -> Response:
    """Answer a refusal."""
    assert isinstance(error, Refused)
    return said({"message": error.message}, error.status)


async def unknown(_: Request, error: Exception) -> Response:
    """Answer a path or method that is not there."""
    assert isinstance(error, HTTPException)
    words = {404: "Not found", 405: "Method not allowed"}
    return said({"message": words.get(error.status_code, error.detail)}, error.status_code)


def make_app(settings: Settings, client: httpx2.AsyncClient) -> Starlette:
    """Return the application."""
    api = OldApi(settings, client)
    paths = {
        "/": api.greeting,
        "/getToken": api.get_token,
        "/addSource": api.add_source,
        "/listSources": api.list_sources,
        "/count": api.count,
        "/favicon.ico": api.favicon,
    }
    routes = [Route(path, handler, methods=["GET"]) for path, handler in paths.items()]
    for route in routes:
        if route.path in ("/getToken", "/addSource"):
            # They do something, which whoever only asks for the headers does not expect.
            route.methods.discard("HEAD")
    app = Starlette(
        routes=routes,
        exception_handlers={Refused: refused, HTTPException: unknown},
    )
    app.router.redirect_slashes = False
    return app


async def require_tokens(settings: Settings, client: httpx2.AsyncClient) -> None:
    """Stop unless the pipeline asks for tokens: what checks none lets everyone in."""
    try:
        status = (await client.get("/v1/tables")).status_code
    except httpx2.TransportError as error:
        raise click.ClickException(f"{settings.pipeline} does not answer: {error}") from error
    if status != httpx2.codes.UNAUTHORIZED:
        raise click.ClickException(
            f"{settings.pipeline} asks for no tokens, so none could be checked"
        )


async def serve(settings: Settings, port: int) -> None:
    """Serve on the loopback interface until a signal."""
    async with httpx2.AsyncClient(base_url=settings.pipeline, timeout=TIMEOUT_S) as client:
        await require_tokens(settings, client)
        server = Server(
            make_app(settings, client),
            address="127.0.0.1",
            port=port,
            interface=Interfaces.ASGI,
            websockets=False,
            log_enabled=False,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        click.echo(f"the old API is at http://127.0.0.1:{port}", err=True)
        await server.serve()


def read_options(pairs: tuple[str, ...]) -> dict[str, dict[str, str | int | float | bool]]:
    """Return the options of `KIND.OPTION=VALUE` texts."""
    options: dict[str, dict[str, str | int | float | bool]] = {}
    for pair in pairs:
        name, found, value = pair.partition("=")
        kind, dot, option = name.partition(".")
        if not (found and dot and kind in KINDS):
            raise click.BadParameter(f"{pair!r} is not KIND.OPTION=VALUE")
        try:
            options.setdefault(kind, {})[option] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            options.setdefault(kind, {})[option] = value
    return options


@click.command()
@click.option("--pipeline", default="http://127.0.0.1:8080", show_default=True,
              help="Where the pipeline runs.")  # fmt: skip
@click.option("--port", default=8081, show_default=True, help="The port to listen on.")
@click.option("--give-tokens", is_flag=True, help="Let everyone have a token that reads.")
@click.option("--until-eof", is_flag=True, help="End when standard input does.")
@click.option("--option", "pairs", multiple=True, metavar="KIND.OPTION=VALUE",
              help="An option of added sources: gbif.contact=me@example.org.")  # fmt: skip
def main(
    pipeline: str, port: int, pairs: tuple[str, ...], *, give_tokens: bool, until_eof: bool
) -> None:
    """Serve the old API."""
    if until_eof:
        end_with_input()
    settings = Settings(
        pipeline=pipeline,
        owner_token=os.environ.get("HEADRACE_TOKEN"),
        gives_tokens=give_tokens,
        options=read_options(pairs),
    )
    asyncio.run(serve(settings, port))


if __name__ == "__main__":
    main()
