"""The sandbox engine behind the real OANDA adapter without a socket, and a list of lies that it tells on request.

`EngineWire` is an httpx transport. A write obeys the next entry of `writes`, a read the next entry of `reads`; without an entry it is answered.

    lost        carried out, then the connection breaks                      dropped     not carried out, the connection breaks
    silent      carried out, then the client gives up waiting                refused     not one byte leaves
    error       carried out, answered with 502 and a page of HTML            cut         carried out, half a body comes
    late        not carried out now but later (see `deliver`); a time-out    busy        not carried out, 429
"""
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from deskbook.venues.sandbox.engine import SandboxEngine
from deskbook.venues.sandbox.operations import Call, carry_out
from deskbook.venues.sandbox.wire import WireError, dumps, match_route, query

TAKEN = ("lost", "silent", "error", "cut")
NOT_TAKEN = ("dropped", "refused", "busy")


class Crash(BaseException):
    """The process dies here: nothing that catches errors may catch this."""


@dataclass
class EngineWire(httpx.AsyncBaseTransport):
    """One account's way to the engine."""
    engine: SandboxEngine
    clock: Callable[[], int]
    writes: deque = field(default_factory=deque)
    reads: deque = field(default_factory=deque)
    waiting: list = field(default_factory=list)  # (due_ms, Call): taken late
    die: str = ""  # "before" or "after": the process dies at the next write
    requests: int = 0
    told: Counter = field(default_factory=Counter)  # "write lost": how often it was told

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        path, _, text = request.url.raw_path.decode().partition("?")
        route, values = match_route(request.method, path)
        call = Call(route, values, query(text), await request.aread(), "http://127.0.0.1", path, self.clock())
        lies = self.writes if route.writes else self.reads
        lie = lies.popleft() if lies else ""
        self.told[f"{'write' if route.writes else 'read'} {lie or 'answered'}"] += 1
        if route.writes and self.die == "before":
            raise Crash("before the venue had it")
        if lie == "refused":
            raise httpx.ConnectError("refused", request=request)
        if lie == "busy":
            return self.answer(429, {"errorMessage": "too many"})
        if lie == "dropped":
            raise httpx.ReadError("reset", request=request)
        if lie == "late":
            self.waiting.append((self.clock() + 3_000, call))
            raise httpx.ReadTimeout("silence", request=request)
        status, body = self.carry_out(call)
        if route.writes and self.die == "after":
            raise Crash("after the venue had it")
        if lie == "lost":
            raise httpx.ReadError("reset", request=request)
        if lie == "silent":
            raise httpx.ReadTimeout("silence", request=request)
        if lie == "error":
            return httpx.Response(502, content=b"<html>Bad Gateway</html>")
        if lie == "twice":
            body = {**body, **{k: [t for t in body[k] for _ in (1, 2)] for k in ("transactions",) if k in body}}
        if lie == "backwards":
            body = {**body, **{k: body[k][::-1] for k in ("transactions",) if k in body}}
        data = dumps(body)
        return httpx.Response(status, content=data[:len(data) // 2] if lie == "cut" else data, headers={"RequestID": str(self.requests)})

    def carry_out(self, call: Call) -> tuple[int, Any]:
        try:
            answer = carry_out(self.engine, call)
            return answer.status, answer.body
        except WireError as e:
            return e.status, e.body

    @staticmethod
    def answer(status: int, body: Any) -> httpx.Response:
        return httpx.Response(status, content=dumps(body))

    def deliver(self) -> None:
        """What was taken late and is due arrives now."""
        now = self.clock()
        due, self.waiting = [w for w in self.waiting if w[0] <= now], [w for w in self.waiting if w[0] > now]
        for _, call in due:
            self.carry_out(call)
