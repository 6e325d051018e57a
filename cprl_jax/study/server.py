"""The server of a study: the page, the images of a session, and one door for answers.

    GET    /                           the page, and /web/NAME, its parts
    POST   /api/sessions               {"token", "participant"} begins a session, or finds it again
    GET    /api/session                what is to be done, and how much of it is
    GET    /api/images/ID              an image
    POST   /api/steps                  {"step", "record", "events"}: answers a step; the reply comes when it is on disk
    DELETE /api/session                withdraws: everything about this observer is deleted
    GET    /api/admin/status, study.json, answers.csv, observers.csv, events.csv, pairs.csv
    DELETE /api/admin/observers/NUMBER

An observer shows its token, and who runs the study the one that `serve` prints, as `Authorization: Bearer TOKEN`.
Nothing is a path into a folder: every name is looked up in a table.
"""

import hmac
import json
import sqlite3
import time
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cprl_jax.runtime import program
from cprl_jax.runtime.errors import UserError
from cprl_jax.study import export, page, plan, records
from cprl_jax.study.store import Refused, Session, Store

LARGEST_BODY = 64 * 1024
SESSIONS_PER_MINUTE = 60  # from one address: a class in a computer room may share one
STEPS_PER_SECOND, STEPS_AT_ONCE = 10, 100  # of one session
FAILURES_PER_MINUTE = 60  # wrong tokens from one address
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",  # with the next one, browsers give finer times
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Limit:
    """So many requests of one kind per second from each key, `burst` of them at once."""

    def __init__(self, per_second: float, burst: int):
        self.per_second, self.burst = per_second, burst
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, key: str, *, cost: float = 1.0) -> None:
        """Raises Refused (429) where there have been too many; with cost=0 it only looks."""
        moment = time.monotonic()
        left, before = self._left.get(key, (float(self.burst), moment))
        left = min(self.burst, left + self.per_second * (moment - before))
        if left < 1:
            raise Refused(429, "too many requests; wait a moment")
        if len(self._left) > 100_000:  # whoever had enough left is as good as new
            self._left = {name: entry for name, entry in self._left.items() if entry[1] > moment - 60}
        if cost:
            self._left[key] = (left - cost, moment)


def create_app(store: Store, *, admin: str) -> Starlette:
    """The server as an ASGI application.

    Args:
      store: of the study.
      admin: the token for exports and deletions.
    """
    return Starlette(routes=_Doors(store, admin).routes())


class _Doors:
    """The handlers of requests, and what they share."""

    def __init__(self, store: Store, admin: str):
        self.store, self.admin = store, admin
        self.parts = page.parts()
        self.study = page.study(store)
        self.images: dict[str, frozenset[str]] = {}  # token -> those of the session
        self.sessions = Limit(SESSIONS_PER_MINUTE / 60, SESSIONS_PER_MINUTE)
        self.steps = Limit(STEPS_PER_SECOND, STEPS_AT_ONCE)
        self.failures = Limit(FAILURES_PER_MINUTE / 60, FAILURES_PER_MINUTE)

    def routes(self) -> list[Route]:
        return [
            Route("/", self._door(self.page)),
            Route("/web/{name}", self._door(self.page)),
            Route("/api/sessions", self._door(self.begin), methods=["POST"]),
            Route("/api/session", self._door(self.session), methods=["GET"]),
            Route("/api/session", self._door(self.withdraw), methods=["DELETE"]),
            Route("/api/steps", self._door(self.submit), methods=["POST"]),
            Route("/api/images/{image}", self._door(self.image)),
            Route("/api/admin/observers/{observer:int}", self._door(self.delete), methods=["DELETE"]),
            Route("/api/admin/{name}", self._door(self.export)),
        ]

    def _door(self, handler):
        """What every request meets: headers on every reply, and a refusal as JSON."""

        async def door(request: Request) -> Response:
            try:
                response = await handler(request)
            except Refused as refusal:
                response = JSONResponse({"error": str(refusal)}, refusal.status)
                if refusal.status == 429:
                    response.headers["Retry-After"] = "1"
            except (sqlite3.Error, OSError, UserError) as error:
                # A full disk, a lock that is not let go of, a damaged image: the page tries again, until it is mended.
                program.complain(f"observers wait: {error}")
                response = JSONResponse({"error": "the server cannot do that at the moment"}, 503)
            except ClientDisconnect:
                response = Response(status_code=400)
            for name, value in _HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return door

    async def page(self, request: Request) -> Response:
        part = self.parts.get(request.path_params.get("name", "index.html"))
        if part is None:
            raise Refused(404, "there is no such page")
        return Response(part.content, media_type=part.type)

    async def begin(self, request: Request) -> Response:
        self.sessions.take(_address(request))
        body = await _object(request, {"token", "participant"})
        session = await run_in_threadpool(self.store.begin, body["token"], body["participant"])
        return JSONResponse(self._state(session))

    async def session(self, request: Request) -> Response:
        token = await self._observer(request)
        return JSONResponse(self._state(await run_in_threadpool(self.store.session, token)))

    async def submit(self, request: Request) -> Response:
        token = await self._observer(request)
        self.steps.take(token)
        body = await _object(request, {"step", "record", "events"})
        done = await run_in_threadpool(self.store.submit, token, body["step"], body["record"], body["events"])
        return JSONResponse({"done": done})

    async def image(self, request: Request) -> Response:
        token = await self._observer(request)
        image = request.path_params["image"]
        if token not in self.images:
            session = await run_in_threadpool(self.store.session, token)
            self.images[token] = frozenset(plan.images_of(session.steps))
        if image not in self.images[token]:
            raise Refused(404, "there is no such image in this session")
        content = await run_in_threadpool(self.store.catalogue.content, image)
        # An image never changes under its name, so a page that is loaded again need not ask again.
        keep = {"Cache-Control": "private, max-age=604800, immutable"}
        return Response(content, media_type="image/png", headers=keep)

    async def withdraw(self, request: Request) -> Response:
        await self._with_token(request, self.store.withdraw)
        return JSONResponse({"deleted": True})

    async def export(self, request: Request) -> Response:
        self._is_admin(request)
        name = request.path_params["name"]
        table = name.removesuffix(".csv")
        if name == "status":
            return Response(await run_in_threadpool(export.status, self.store) + "\n", media_type="text/plain")
        if name == "study.json":
            return JSONResponse(await run_in_threadpool(export.as_json, self.store))
        if name.endswith(".csv") and table in records.TABLES:
            return Response(await run_in_threadpool(export.as_csv, self.store, table), media_type="text/csv")
        raise Refused(404, "there is no such export")

    async def delete(self, request: Request) -> Response:
        self._is_admin(request)
        if not await run_in_threadpool(self.store.delete, request.path_params["observer"]):
            raise Refused(404, "there is no such observer")
        return JSONResponse({"deleted": True})

    def _is_admin(self, request: Request) -> None:
        self.failures.take(_address(request), cost=0)
        if not hmac.compare_digest(_bearer(request).encode(), self.admin.encode()):
            self.failures.take(_address(request))
            raise Refused(401, "give the token that `serve` printed, as Authorization: Bearer TOKEN")

    async def _observer(self, request: Request) -> str:
        """The token of a session that there is."""
        await self._with_token(request, self.store.check)
        return _bearer(request)

    async def _with_token(self, request: Request, work: Callable[[str], None]) -> None:
        """Does something with the token of a request; wrong ones are counted."""
        self.failures.take(_address(request), cost=0)
        try:
            await run_in_threadpool(work, _bearer(request))
        except Refused as refusal:
            if refusal.status == 401:
                self.failures.take(_address(request))
            raise

    def _state(self, session: Session) -> dict[str, Any]:
        steps = [plan.public(step) for step in session.steps]
        catalogue = self.store.catalogue
        return {
            "study": self.study,
            "steps": steps,
            "done": session.done,
            "code": session.code,
            "images": {image: catalogue.images[image]._asdict() for image in plan.images_of(steps)},
        }


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _bearer(request: Request) -> str:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


async def _object(request: Request, names: set[str]) -> dict[str, Any]:
    """The body of a request: a JSON object with exactly these names."""
    # A form of another site cannot send this type without asking the server first, which says no.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "send application/json")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST_BODY:
            raise Refused(413, f"send at most {LARGEST_BODY} bytes")
    try:
        content = json.loads(body.decode(), parse_constant=lambda name: float("nan"))
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON") from None
    if not isinstance(content, dict) or content.keys() != names:
        raise Refused(422, f"send an object with {', '.join(sorted(names))}")
    return content
