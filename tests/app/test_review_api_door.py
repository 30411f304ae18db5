"""Who comes through a proxy is not this machine; who is slow does not stay; what the store holds is not trusted."""
import asyncio
import itertools
import json
import time

import pytest
from api_rig import RIGHT, is_problem, story
from test_api_auth import ask, routes

from deskbook.app import api, api_events
from deskbook.app.api_events import Source
from deskbook.stores.live_state import DESK_LOOP, NAV_SNAPSHOT, RISK_SUMMARY, gate_key

PROXIED = [{"X-Forwarded-For": "203.0.113.5"}, {"X-Forwarded-For": "127.0.0.1"}, {"X-Real-IP": "203.0.113.5"}, {"Forwarded": "for=203.0.113.5"}, {"Via": "1.1 edge"}]


def test_without_a_token_nobody_behind_a_proxy_is_answered(api_bench):
    """The proxy is on this machine; whom it speaks for is not."""
    async def go():
        async with api_bench.api(run_desk=False, token=None, headers=None) as (_, http):
            for (method, path), headers in itertools.product(routes(http.app), PROXIED):
                is_problem(await ask(http, method, path, headers=headers), "not_loopback")
            assert (await http.get("/api/status")).status_code == 200
    story(go())


BAD = ["{}", "[]", "null", "7", "no json", '{"nav": "much"}', '{"nav": NaN, "ts_ms": "x"}', '{"nav": 1e999}', '{"nav": {}, "balance": []}', '{"ts_ms": 1e300}', '{"ts_ms": true}',
       '{"nav": 5, "ts_ms": "x"}', '{"nav": 5, "ts_ms": 1e300}', '{"exposure_usd": "x"}', '{"instrument": 5, "ts_ms": "x", "reasons": 5, "admit": "yes"}', '{"asof_ms": 1e300}',
       '{"reasons": [1, {}], "ts_ms": -9e18}', '{"reasons": null, "bundle_hits": 7}']


@pytest.mark.parametrize("text", BAD)
def test_whatever_stands_in_the_store_is_no_error(api_bench, text):
    """Other programs write there, too; a dashboard that gets a 500 shows nothing of the rest."""
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            live = desk.kill.store()
            for key in (NAV_SNAPSHOT, RISK_SUMMARY, DESK_LOOP, gate_key("EUR_USD")):
                await live.redis.set(live.key(key), text)
            for path in ("/health", "/api/status", "/api/metrics/nav", "/api/metrics/gates"):
                answer = await http.get(path)
                assert answer.status_code == 200, (path, answer.text)
                json.loads(answer.text, parse_constant=lambda name: pytest.fail(name))
            hub = http.app.state.hub
            await hub.look()
            assert {name: e.text for (name, _), e in hub.ring.newest.items() if name == "source" and '"ok":false' in e.text.replace(" ", "")} == {}
    story(go())


def test_a_source_that_hangs_does_not_hold_up_the_kill_switch(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            hung = asyncio.Event()

            async def hangs(deps):
                await hung.wait()
                return {}

            hub = api_events.Hub(api_bench.deps(desk), every=[Source("prices", hangs), Source("kill", api_events.look_kill)])
            running = asyncio.create_task(hub.run())
            try:
                client, began = hub.join(), time.monotonic()
                await asyncio.sleep(0.2)
                await http.post("/api/kill-switch", json={"kill_switch": True, "by": "anna", "reason": "now"})
                seen = b""
                while b'"by":"api:anna"' not in seen.replace(b" ", b"") and time.monotonic() - began < 5:
                    seen += await client.next(0.5)
                assert time.monotonic() - began < 3, seen
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
    story(go())


HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n"
BODY = b"POST /api/kill-switch HTTP/1.1\r\nHost: x\r\nAuthorization: %b\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{" % RIGHT["Authorization"].encode()


@pytest.mark.parametrize("begun", [b"", HEAD, HEAD + b"\r\n" + HEAD, BODY], ids=["nothing", "half a head", "half a second head", "half a body"])
def test_who_never_ends_a_request_is_left(api_bench, monkeypatch, begun):
    """Each open connection costs a file; a thousand of them and nobody reaches the kill switch."""
    monkeypatch.setattr(api, "ARRIVE_S", 1.0)

    async def go():
        async with api_bench.served(run_desk=False) as (_, http):
            reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
            writer.write(begun)

            async def drip():
                while True:
                    await asyncio.sleep(0.3)
                    writer.write(b"a")

            dripping, began = asyncio.create_task(drip()), time.monotonic()
            try:
                said = await asyncio.wait_for(reader.read(), 10)
            except ConnectionResetError:
                said = b""
            finally:
                dripping.cancel()
            assert 0.5 < time.monotonic() - began < 5, said
            assert (await http.get("/api/status")).status_code == 200
            if begun == BODY:
                assert b" 408 " in said.split(b"\r\n")[0] and b'"request_timeout"' in said
    story(go())


def test_a_stream_and_a_slow_answer_are_not_left(api_bench, monkeypatch):
    monkeypatch.setattr(api, "ARRIVE_S", 0.5)

    async def go():
        async with api_bench.served(run_desk=False) as (_, http), http.stream("GET", "/events") as stream:
            began = time.monotonic()
            async for _ in stream.aiter_bytes():
                if time.monotonic() - began > 2:
                    break
    story(go())
