"""The stream: what is told, what is told again, and who is left behind."""
import asyncio
import contextlib
import json

import httpx
import pytest
from api_rig import PAIRS, is_problem, story
from test_api_routes import gate, store_gate

from deskbook.app import api_events
from deskbook.app.api_events import Hub, Source
from deskbook.stores.live_state import NAV_SNAPSHOT, put_json
from deskbook.stores.records import raise_alert


class Listener:
    """Reads a stream into events (id, name, data)."""

    def __init__(self, http, last_id=None):
        self.http, self.headers, self.events, self.comments, self.ended = http, {"Last-Event-ID": last_id} if last_id else {}, [], 0, False

    async def __aenter__(self):
        self.stack = self.http.stream("GET", "/events", headers=self.headers, timeout=None)
        self.answer = await self.stack.__aenter__()
        self.task = asyncio.create_task(self.read())
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.stack.__aexit__(None, None, None)

    async def read(self):
        now = {}
        async for line in self.answer.aiter_lines():
            if line.startswith(":"):
                self.comments += 1
            elif line:
                name, _, value = line.partition(": ")
                now[name] = value
            elif "data" in now:
                self.events.append((now.get("id"), now["event"], json.loads(now["data"])))
                now = {}
        self.ended = True

    async def until(self, what, timeout_s=8.0):
        end = asyncio.get_running_loop().time() + timeout_s
        while not (found := [e for e in self.events if what(e)]):
            assert asyncio.get_running_loop().time() < end, self.events[-5:]
            await asyncio.sleep(0.02)
        return found[0]


def named(name, **members):
    return lambda e: e[1] == name and all(e[2].get(k) == v for k, v in members.items())


def test_everything_that_happens_is_told(api_bench):
    async def go():
        async with api_bench.served() as (desk, http), Listener(http) as heard:
            assert heard.answer.headers["content-type"].startswith("text/event-stream") and heard.answer.headers["cache-control"] == "no-store"
            await heard.until(named("kill", kill_switch=False))
            await heard.until(named("price", instrument="EUR_USD", bid=1.0841))
            await store_gate(desk, gate("EUR_USD", desk.deps.clock() - 70_000))
            await heard.until(named("gate", instrument="EUR_USD", admit=False))
            await put_json(desk.kill.store(), NAV_SNAPSHOT, {"nav": 100_001, "balance": 100_000, "ts_ms": 1_762_000_000_000})
            await heard.until(named("nav", nav_snapshot=100_001))
            order = (await http.post("/api/order", json={"instrument": "EUR_USD", "units": 1000})).json()["response"]
            await heard.until(named("order", id=order["id"], state="filled"))
            async with desk.ledger.transaction() as tx:
                await raise_alert(tx, "x", "gates", "high", "", "look")
            await heard.until(named("alert", fingerprint="x", status="open"))
            await http.post("/api/kill-switch", json={"kill_switch": True, "by": "anna"})
            await heard.until(named("kill", kill_switch=True, by="api:anna"))
            numbers = [int(e[0].rpartition("-")[2]) for e in heard.events if e[0]]
            assert numbers == sorted(set(numbers))
    story(go())


def test_who_comes_back_gets_what_was_missed_and_who_was_away_too_long_is_told(api_bench):
    async def go():
        async with api_bench.served(run_desk=False) as (_, http):
            async with Listener(http) as heard:
                at = (await heard.until(named("kill")))[0]
                await heard.until(named("source", source="prices"))
                at = heard.events[-1][0]
            await http.post("/api/kill-switch", json={"kill_switch": True})
            await asyncio.sleep(1.2)
            await http.post("/api/kill-switch", json={"kill_switch": False})
            await asyncio.sleep(1.2)
            async with Listener(http, at) as again:
                await again.until(named("kill", kill_switch=False))
                assert [e[2]["kill_switch"] for e in again.events if e[1] == "kill"] == [True, False] and all(e[1] != "reset" for e in again.events)
            boot = at.rpartition("-")[0]
            for lost in (f"{boot}-999999", "1-5", "nonsense"):
                async with Listener(http, lost) as new:
                    await new.until(named("kill", kill_switch=False))
                    assert new.events[0][1] == "reset" and {e[2].get("instrument") for e in new.events if e[1] == "price"} == set(PAIRS)
    story(go())


def test_one_task_looks_however_many_listen(api_bench):
    async def go():
        async with api_bench.api(run_desk=False, lifespan=True) as (_, http):
            hub = http.app.state.hub
            clients = [hub.join() for _ in range(50)]
            before = hub.looks
            await asyncio.sleep(2.2)
            assert 3 <= hub.looks - before <= 5
            assert sum(t.get_name() == "events" for t in asyncio.all_tasks()) == 1
            assert all(c.waiting for c in clients)
            hub.most_clients = 50
            is_problem(await http.get("/events"), "too_many_streams")
    story(go())


def test_the_venue_is_spared_while_nobody_listens(api_bench):
    async def go():
        async with api_bench.api(run_desk=False, lifespan=True) as (desk, http):
            await asyncio.sleep(1.5)
            assert not desk.marks.asked
            http.app.state.hub.join()
            await asyncio.sleep(1.2)
            assert set(PAIRS) <= set(desk.marks.asked)
    story(go())


def test_a_source_that_fails_is_told_once_and_does_not_stop_the_others(api_bench):
    async def go():
        async with api_bench.served(run_desk=False) as (desk, http), Listener(http) as heard:
            await heard.until(named("source", source="prices", ok=True))
            api_bench.fault("http_error", "pricing", status=503)
            desk.marks.asked = {n: at - 60 for n, at in desk.marks.asked.items()}
            await heard.until(named("source", source="prices", ok=False, code="broker_error"), 20)
            await http.post("/api/kill-switch", json={"kill_switch": True})
            await heard.until(named("kill", kill_switch=True))
            assert len([e for e in heard.events if named("source", source="prices", ok=False)(e)]) == 1
            api_bench.sandbox.control.clear_faults()
            await asyncio.sleep(0)
            seen = len(heard.events)
            await heard.until(lambda e: named("source", source="prices", ok=True)(e) and heard.events.index(e) >= 0 and len(heard.events) > seen, 20)
    story(go())


def test_a_quiet_stream_is_kept_open_and_ends_with_the_api(api_bench, monkeypatch):
    monkeypatch.setattr("deskbook.app.api.PING_S", 0.2)

    async def go():
        async with contextlib.AsyncExitStack() as after:
            async with api_bench.served(run_desk=False) as (_, http):
                other = await after.enter_async_context(httpx.AsyncClient(base_url=http.base_url, headers=http.headers, trust_env=False))
                heard = await after.enter_async_context(Listener(other))
                await asyncio.sleep(2.5)
                assert heard.comments >= 3
            await asyncio.wait_for(heard.task, 2)
            assert heard.ended and heard.events[-1][1:] == ("bye", {"reason": "closing"})
    story(go())


def test_a_slow_client_is_dropped_and_the_others_are_not(api_bench, monkeypatch):
    monkeypatch.setattr(api_events, "SEND_S", 0.5)

    async def go():
        count = iter(range(10**9))

        async def busy(_):
            return {("gate", "EUR_USD"): {"n": next(count), "pad": "x" * 20_000}}

        made = []
        monkeypatch.setattr("deskbook.app.api.Hub", lambda deps: made.append(Hub(deps)) or made[0])
        async with api_bench.served(run_desk=False) as (_, http):
            (hub,) = made
            hub.sources = [Source("gates", busy, 0.0)]
            host, port = http.base_url.host, http.base_url.port
            _, writer = await asyncio.open_connection(host, port, limit=1024)
            writer.write(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: " + http.headers["authorization"].encode() + b"\r\n\r\n")
            async with Listener(http) as heard:
                await heard.until(named("gate"))
                assert len(hub.clients) == 2
                for _ in range(600):
                    await hub.look()
                    if len(hub.clients) == 1:
                        break
                    await asyncio.sleep(0.01)
                assert len(hub.clients) == 1
                at = len(heard.events)
                await hub.look()
                await heard.until(lambda e: len(heard.events) > at)
            writer.close()
    story(go())


@pytest.mark.parametrize("bad", ["x" * 65, "caf\xe9"])
def test_an_id_that_nobody_gave_is_refused(api_bench, bad):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            is_problem(await http.get("/events", headers={"Last-Event-ID": bad.encode("latin-1")}), "invalid_request")
    story(go())
