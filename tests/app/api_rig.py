"""The API over a real ledger, a real Valkey and the sandbox as another process, without a socket and over one."""
import asyncio
import contextlib
import itertools
import sys
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "trading"))
from execution_rig import Bench

from deskbook.app.api import ApiDeps, create_app, run
from deskbook.core.settings import Settings

TOKEN = "tok-5f1d3a9c77"
RIGHT = {"Authorization": f"Bearer {TOKEN}"}
PAIRS = ("EUR_USD", "USD_JPY")
numbers = itertools.count(7_000_001)


class ApiBench(Bench):
    """A desk with an API in front of it."""

    def __init__(self, sandbox, ledger_url, valkey_url, home, number=None):
        super().__init__(sandbox, ledger_url, valkey_url, home, number or next(numbers))

    def settings(self, token=TOKEN, **more):
        return Settings(home=self.home, lake=str(self.home / "lake"), kill_switch_boot="keep", hotband_pairs=PAIRS, api_token=token, http_port=0,
                        **{"rate_limit": 0, **more})

    def deps(self, desk, **settings):
        clock = settings.pop("clock", desk.deps.clock)
        return ApiDeps(self.settings(**settings), desk.kill.store(), desk.ledger, desk, clock, self.home / "reports")

    @contextlib.asynccontextmanager
    async def api(self, run_desk=True, cleared=True, headers=RIGHT, client=("127.0.0.1", 4711), host="127.0.0.1", lifespan=False, **settings):
        """desk, and a client of the API on it."""
        async with self.desk(run=run_desk, cleared=cleared) as desk:
            app = create_app(self.deps(desk, **settings))
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, client=client)
            async with contextlib.AsyncExitStack() as stack:
                if lifespan:
                    await stack.enter_async_context(app.router.lifespan_context(app))
                http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url=f"http://{host}:8000", headers=headers or {}))
                http.app = app
                yield desk, http

    @contextlib.asynccontextmanager
    async def served(self, run_desk=True, headers=RIGHT, **settings):
        """The same over a socket."""
        async with self.desk(run=run_desk) as desk:
            stop, told = asyncio.Event(), asyncio.get_running_loop().create_future()
            serving = asyncio.create_task(run(self.deps(desk, **settings), stop, told.set_result))
            try:
                await asyncio.wait([told, serving], return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    await serving
                async with httpx.AsyncClient(base_url=await told, headers=headers or {}, trust_env=False, timeout=20) as http:
                    yield desk, http
            finally:
                stop.set()
                await serving


def story(coro, timeout_s=60):
    return asyncio.run(asyncio.wait_for(coro, timeout_s))


def is_problem(response, code):
    """The one shape of everything that goes wrong."""
    body = response.json()
    assert response.headers["content-type"] == "application/problem+json", response.text
    assert (body["code"], body["error"], body["status"], body["trace_id"]) == (code, code, response.status_code, response.headers["x-trace-id"]), body
    return body
