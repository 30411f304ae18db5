"""Every fault of the sandbox, seen by a client that does not know of it, and the journal that says what really happened."""
import asyncio
import contextlib
import json
import time
from email.utils import parsedate_to_datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskbook.core.errors import BadInput, NotFound
from deskbook.venues.sandbox.faults import KINDS, Fault, FaultPlan, When, draw, read_fault, strikes_on
from deskbook.venues.sandbox.server import ServerConfig, start_sandbox

TUESDAY = "2025-11-04T14:30:00Z"


@contextlib.asynccontextmanager
async def venue(*faults, **config):
    """A sandbox whose time stands still, and a client that holds its token."""
    async with start_sandbox(ServerConfig(**{"clock": "virtual", "start": TUESDAY, "speed": 0, "heartbeat_s": 0.2, **config})) as s:
        for f in faults:
            s.add_fault(f)
        async with httpx.AsyncClient(base_url=f"{s.url}/v3/accounts/{s.account}", headers={"Authorization": f"Bearer {s.token}"}, timeout=5, verify=False) as http:
            yield s, http


def body(client_id="db-1", units="1000", type="MARKET", **more):
    tif = {"MARKET": "FOK"}.get(type, "GTC")
    return {"order": {"type": type, "instrument": "EUR_USD", "units": units, "timeInForce": tif, "clientExtensions": {"id": client_id}, **more}}


def positions_of(s):
    return {o.client_id: str(o.filled_units) for o in s.orders()}


async def ids(http, since="3"):
    r = await http.get("/transactions/sinceid", params={"id": since})
    return [t["id"] for t in r.json()["transactions"]]


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_every_kind_is_described():
    for k in KINDS.values():
        assert k.does.endswith(".") and read_fault({"kind": k.name}).params == k.params


specs = st.builds(lambda kind, rate, every, name: Fault(kind, "*", When(rate=rate, every=every), name=name),
    st.sampled_from(["http_error", "drop_before_accept", "spike"]), st.floats(0, 1), st.integers(0, 4), st.text("abc", min_size=1, max_size=3))


@given(st.lists(specs, max_size=4, unique_by=lambda f: f.name), st.integers(0, 2**32), st.lists(st.sampled_from(["orders.create", "pricing", "candles"]), max_size=60))
def test_same_seed_same_requests_same_faults(faults, seed, routes):
    a, b = FaultPlan(seed, faults), FaultPlan(seed, reversed(faults))
    for route in routes:
        assert sorted(s.fault.name for s in strikes_on(a, route, 0)) == sorted(s.fault.name for s in strikes_on(b, route, 0))


def test_another_seed_is_another_run():
    fault = Fault("http_error", "*", When(rate=0.5), name="f")
    runs = {}
    for seed in range(4):
        plan = FaultPlan(seed, [fault])
        runs[seed] = tuple(bool(strikes_on(plan, "pricing", 0)) for _ in range(64))
    assert len(set(runs.values())) == 4


def test_draws_are_uniform():
    u = sorted(draw(1, "f", n) for n in range(5000))
    assert max(abs(x - i / 5000) for i, x in enumerate(u)) < 0.03


def test_windows_and_wear():
    plan = FaultPlan(0, [read_fault({"kind": "html", "when": {"after_s": 10, "for_s": 10, "times": 2}}, 0)])
    hits = [bool(strikes_on(plan, "pricing", ms)) for ms in (0, 9_999, 10_000, 15_000, 19_999, 20_000)]
    assert hits == [False, False, True, True, False, False]


def test_names_are_unique_and_can_be_taken_away():
    plan = FaultPlan(0, [Fault("html", name="a")])
    with pytest.raises(BadInput, match="already set"):
        plan.add(Fault("html", name="a"))
    plan.remove("a")
    with pytest.raises(NotFound):
        plan.remove("a")
    assert not plan


# -- one answer goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec, status, says", [
    ({"kind": "http_error"}, 500, "Internal Server Error"),
    ({"kind": "http_error", "params": {"status": 503, "message": "Service Unavailable"}}, 503, "Service Unavailable"),
    ({"kind": "html"}, 502, "<html>"),
    ({"kind": "maintenance"}, 504, "Timeout waiting for response."),
    ({"kind": "maintenance", "params": {"status": 502}}, 502, "<html>"),
    ({"kind": "revoked"}, 401, "Insufficient authorization to perform request."),
    ({"kind": "rate_limited"}, 429, "Rate limit"),
])
def test_refusals_do_nothing(spec, status, says):
    async def run():
        async with venue(spec) as (s, http):
            r = await http.post("/orders", json=body())
            assert (r.status_code, says in r.text) == (status, True)
            assert s.orders() == [] and [(e.status, e.accepted) for e in s.journal.entries] == [(status, False)]
            s.clear_faults()
            assert (await http.post("/orders", json=body())).status_code == 201
    asyncio.run(run())


def test_rate_limit_with_and_without_a_hint():
    async def run():
        async with venue({"kind": "rate_limited", "when": {"nth": [1]}, "params": {"retry_after_s": 1.5}}, {"kind": "rate_limited", "when": {"nth": [2]}}) as (_, http):
            a, b, c = [await http.get("/summary") for _ in range(3)]
            assert (a.status_code, a.headers["Retry-After"], b.status_code, "Retry-After" in b.headers, c.status_code) == (429, "1.5", 429, False, 200)
    asyncio.run(run())


def test_the_limit_per_second_is_real():
    async def run():
        async with venue(rate_limit_per_s=20) as (_, http):
            await asyncio.sleep(1 - time.monotonic() % 1)  # all in one second
            statuses = [(await http.get("/pendingOrders")).status_code for _ in range(25)]
            assert statuses == [200] * 20 + [429] * 5
            await asyncio.sleep(1.05 - time.monotonic() % 1)
            assert (await http.get("/pendingOrders")).status_code == 200
    asyncio.run(run())


@pytest.mark.parametrize("kind", ["truncated_json", "empty_body", "html", "http_error"])
def test_unreadable_answers_after_acceptance(kind):
    async def run():
        async with venue({"kind": kind, "route": "orders.create", "params": {"accepted": True}}) as (s, http):
            r = await http.post("/orders", json=body())
            with pytest.raises((ValueError, KeyError)):
                r.json()["orderCreateTransaction"]
            assert positions_of(s) == {"db-1": "1000"} and s.journal.entries[0].accepted
    asyncio.run(run())


def test_a_body_that_ends_too_early():
    async def run():
        async with venue({"kind": "truncated_json", "params": {"cut_connection": True}, "when": {"nth": [1]}}) as (s, http):
            with pytest.raises(httpx.RemoteProtocolError):
                await http.post("/orders", json=body())
            assert (await http.get("/orders/@db-1")).json()["order"]["state"] == "FILLED"
            assert (s.journal.entries[0].outcome, s.journal.entries[0].status) == ("cut", 201)
    asyncio.run(run())


@pytest.mark.parametrize("kind, accepted", [("drop_before_accept", False), ("accept_then_drop", True)])
def test_a_reset_tells_nothing(kind, accepted):
    async def run():
        async with venue({"kind": kind, "route": "orders.create", "when": {"nth": [1]}}) as (s, http):
            with pytest.raises(httpx.TransportError):
                await http.post("/orders", json=body())
            assert positions_of(s) == ({"db-1": "1000"} if accepted else {})
            (e,) = s.journal.entries
            assert (e.outcome, e.accepted, e.status, e.client_id) == ("dropped", accepted, None, "db-1")
            assert (await http.get("/orders/@db-1")).status_code == (200 if accepted else 404)
    asyncio.run(run())


@pytest.mark.parametrize("kind, accepted", [("hang", False), ("accept_then_hang", True)])
def test_silence_until_the_client_gives_up(kind, accepted):
    async def run():
        async with venue({"kind": kind, "route": "orders.create"}) as (s, http):
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/orders", json=body(), timeout=0.3)
            await asyncio.sleep(0.2)
            assert positions_of(s) == ({"db-1": "1000"} if accepted else {})
            assert s.journal.entries[0].outcome == "hung"
    asyncio.run(run())


def test_a_cancel_and_a_close_can_be_lost_as_well():
    async def run():
        async with venue() as (s, http):
            limit = (await http.post("/orders", json=body("db-limit", type="LIMIT", price="0.9"))).json()["orderCreateTransaction"]["id"]
            await http.post("/orders", json=body())
            s.add_fault({"kind": "accept_then_drop"})
            for path, what in ((f"/orders/{limit}/cancel", {}), ("/positions/EUR_USD/close", {"longUnits": "ALL"})):
                with pytest.raises(httpx.TransportError):
                    await http.put(path, json=what)
            s.clear_faults()
            assert (await http.get("/pendingOrders")).json()["orders"] == [] == (await http.get("/openPositions")).json()["positions"]
    asyncio.run(run())


@pytest.mark.parametrize("answer", ["reset", "504", "hang"])
def test_an_order_that_is_taken_late(answer):
    async def run():
        async with venue({"kind": "accept_late", "params": {"delay_s": 0.4, "answer": answer}, "when": {"nth": [1]}}) as (s, http):
            try:
                r = await http.post("/orders", json=body(), timeout=0.2)
                assert (r.status_code, r.json()) == (504, {"errorMessage": "Timeout waiting for response."})
            except httpx.TransportError:
                assert answer != "504"
            assert (await http.get("/orders/@db-1")).status_code == 404  # looked too early
            await asyncio.sleep(0.6)
            assert (await http.get("/orders/@db-1")).json()["order"]["state"] == "FILLED"
            assert s.journal.entries[0].accepted
    asyncio.run(run())


def test_latency_is_as_long_as_it_says():
    async def run():
        async with venue({"kind": "latency", "route": "pricing", "params": {"ms": 150.0}}, {"kind": "latency", "route": "orders.create", "params": {"ms": 150.0, "at": "arrival"}}) as (s, http):
            began = time.monotonic()
            await http.get("/pricing", params={"instruments": "EUR_USD"})
            assert time.monotonic() - began >= 0.149
            task = asyncio.create_task(http.post("/orders", json=body()))
            await asyncio.sleep(0.08)
            assert s.orders() == []  # the request has not arrived
            await task
            assert len(s.orders()) == 1
    asyncio.run(run())


def test_spikes_are_rare_and_replayed():
    async def run():
        async with venue({"kind": "spike", "name": "s", "params": {"ms": 60.0, "rate": 0.15}}, seed=5) as (s, http):
            for _ in range(40):
                await http.get("/pendingOrders")
            return [e.took_us > 50_000 for e in s.journal.entries]
    first, second = asyncio.run(run()), asyncio.run(run())
    assert first == second and 0 < sum(first) < 20


# -- orders -------------------------------------------------------------------------------------------------------------


def test_scripted_rejection():
    async def run():
        async with venue({"kind": "reject", "params": {"reason": "INSTRUMENT_NOT_TRADEABLE"}, "where": {"instrument": "EUR_*"}, "when": {"nth": [1]}}) as (_, http):
            r = await http.post("/orders", json=body())
            assert r.status_code == 400 and r.json()["orderRejectTransaction"]["rejectReason"] == r.json()["errorCode"] == "INSTRUMENT_NOT_TRADEABLE"
            assert (await http.post("/orders", json=body())).status_code == 201
    asyncio.run(run())


@pytest.mark.parametrize("reason", ["INSUFFICIENT_MARGIN", "MARKET_HALTED", "BOUNDS_VIOLATION", "FIFO_VIOLATION"])
def test_created_and_cancelled_at_once(reason):
    async def run():
        async with venue({"kind": "cancel", "params": {"reason": reason}, "when": {"nth": [1]}}) as (s, http):
            r = await http.post("/orders", json=body())
            assert r.status_code == 201 and r.json()["orderCancelTransaction"]["reason"] == reason and "orderFillTransaction" not in r.json()
            assert [(o.state, o.reason) for o in s.orders()] == [("CANCELLED", reason)]
            assert "orderFillTransaction" in (await http.post("/orders", json=body())).json()
    asyncio.run(run())


def test_halted_for_one_order():
    async def run():
        async with venue({"kind": "halt", "when": {"nth": [1]}}) as (_, http):
            r = await http.post("/orders", json=body())
            assert r.json()["orderCancelTransaction"]["reason"] == "MARKET_HALTED"
            assert "orderFillTransaction" in (await http.post("/orders", json=body())).json()
    asyncio.run(run())


def test_partial_fill_cancels_the_rest():
    async def run():
        async with venue({"kind": "partial_fill", "params": {"fill_frac": 0.4}}) as (s, http):
            r = (await http.post("/orders", json=body("ioc", timeInForce="IOC"))).json()
            assert (r["orderFillTransaction"]["units"], "orderCancelTransaction" in r) == ("400", True)
            r = (await http.post("/orders", json=body("fok"))).json()
            assert r["orderCancelTransaction"]["reason"] == "INSUFFICIENT_LIQUIDITY" and "orderFillTransaction" not in r
            assert positions_of(s) == {"ioc": "400", "fok": "0"}
    asyncio.run(run())


def test_slow_fill_comes_in_slices():
    async def run():
        async with venue({"kind": "slow_fill", "params": {"slices": 3, "every_s": 60.0}}, speed=0) as (s, http):
            await http.post("/orders", json=body("slow", type="LIMIT", price="1.5"))
            filled = [positions_of(s)["slow"]]
            for _ in range(3):
                s.clock.advance(60_000)
                await http.get("/summary")
                await asyncio.sleep(0.12)
                filled.append(positions_of(s)["slow"])
            assert [int(x) for x in filled] == [333, 666, 1000, 1000]
    asyncio.run(run())


# -- views --------------------------------------------------------------------------------------------------------------


def test_an_acknowledged_order_is_not_seen_for_a_while():
    async def run():
        async with venue({"kind": "late_visibility", "params": {"delay_s": 0.5}, "when": {"nth": [1]}}) as (_, http):
            r = await http.post("/orders", json=body())
            assert r.status_code == 201 and "orderFillTransaction" in r.json()
            for path in ("/orders/@db-1", f"/orders/{r.json()['orderCreateTransaction']['id']}", f"/transactions/{r.json()['lastTransactionID']}"):
                assert (await http.get(path)).status_code == 404
            assert (await http.get("/orders", params={"state": "ALL"})).json()["orders"] == [] == (await http.get("/openPositions")).json()["positions"]
            assert await ids(http) == []
            assert (await http.get("/summary")).json()["lastTransactionID"] == "3"  # consistent with itself
            await asyncio.sleep(0.55)
            assert (await http.get("/orders/@db-1")).json()["order"]["state"] == "FILLED"
            assert (await http.get("/openPositions")).json()["positions"][0]["long"]["units"] == "1000"
            assert await ids(http) == r.json()["relatedTransactionIDs"]
    asyncio.run(run())


def test_rest_lags_the_stream():
    async def run():
        async with venue({"kind": "rest_lag", "params": {"lag_s": 0.5}}) as (_, http):
            async with http.stream("GET", "/transactions/stream") as stream:
                lines = stream.aiter_lines()
                await anext(lines)
                r = (await http.post("/orders", json=body())).json()
                told = [json.loads(await anext(lines))["id"] for _ in r["relatedTransactionIDs"]]
                assert told == r["relatedTransactionIDs"] and await ids(http) == []
                await asyncio.sleep(0.6)
                assert await ids(http) == told
    asyncio.run(run())


@pytest.mark.parametrize("kind", ["transactions_duplicated", "transactions_reordered"])
def test_transactions_told_badly_and_booked_well(kind):
    async def run():
        async with venue() as (s, http):
            for i in range(3):
                await http.post("/orders", json=body(f"db-{i}"))
            good = await ids(http)
            s.add_fault({"kind": kind})
            bad = await ids(http)
            pages = (await http.get("/transactions", params={"from": TUESDAY})).json()["pages"]
            paged = [t["id"] for t in (await http.get(pages[0])).json()["transactions"]]
            assert bad != good and sorted(set(bad)) == sorted(good) and (len(bad) == 2 * len(good)) == (kind == "transactions_duplicated")
            assert paged != sorted(paged, key=int) or len(paged) != len(set(paged))
            s.clear_faults()
            assert await ids(http) == good
    asyncio.run(run())


@pytest.mark.parametrize("kind, told", [("transactions_duplicated", [4, 4, 5, 5]), ("transactions_reordered", [5, 4])])
def test_stream_tells_badly(kind, told):
    async def run():
        async with venue({"kind": kind, "route": "transactions.stream"}) as (_, http):
            async with http.stream("GET", "/transactions/stream") as stream:
                lines, seen = stream.aiter_lines(), []
                await anext(lines)
                await http.post("/orders", json=body())
                while len(seen) < len(told):
                    if (t := json.loads(await anext(lines)))["type"] != "HEARTBEAT":
                        seen.append(int(t["id"]))
                assert seen == told
    asyncio.run(run())


# -- streams ------------------------------------------------------------------------------------------------------------


async def read_for(stream, seconds):
    """The lines that come within some seconds, and how the stream ended: "open", "end" or the name of the error."""
    seen, lines = [], stream.aiter_lines()
    end = time.monotonic() + seconds
    while True:
        try:
            seen.append(await asyncio.wait_for(anext(lines), max(end - time.monotonic(), 0.001)))
        except TimeoutError:
            return seen, "open"
        except StopAsyncIteration:
            return seen, "end"
        except httpx.TransportError as e:
            return seen, type(e).__name__


PRICES = ("GET", "/pricing/stream?instruments=EUR_USD")


@pytest.mark.parametrize("reset", [True, False])
def test_stream_cut_at_a_line(reset):
    async def run():
        async with venue({"kind": "stream_cut", "when": {"nth": [3]}, "params": {"reset": reset}}) as (_, http):
            async with http.stream(*PRICES) as stream:
                seen, how = await read_for(stream, 3)
            assert len(seen) == 2 and how != "open"
            async with http.stream(*PRICES) as stream:
                assert (await read_for(stream, 0.5))[1] == "open"
    asyncio.run(run())


def test_stream_frozen_is_open_and_silent():
    async def run():
        async with venue() as (s, http):
            async with http.stream(*PRICES) as stream:
                lines = stream.aiter_lines()
                await anext(lines)
                s.add_fault({"kind": "stream_frozen", "when": {"times": 1}})
                silent = []
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.8):
                        async for line in lines:
                            silent.append(line)
                assert silent == []
                async with http.stream(*PRICES) as other:
                    assert len((await read_for(other, 0.6))[0]) >= 2
    asyncio.run(run())


def test_stale_prices_with_heartbeats():
    async def run():
        async with venue({"kind": "stale_prices"}, speed=30) as (_, http):
            first = (await http.get("/pricing", params={"instruments": "EUR_USD"})).json()["prices"]
            async with http.stream(*PRICES) as stream:
                seen, how = await read_for(stream, 0.8)
            assert how == "open" and seen and {json.loads(x)["type"] for x in seen} == {"HEARTBEAT"}
            again = (await http.get("/pricing", params={"instruments": "EUR_USD"})).json()
            assert again["prices"] == first and again["time"] > first[0]["time"]
    asyncio.run(run())


def test_garbled_line():
    async def run():
        async with venue({"kind": "garbled_line", "when": {"nth": [2]}}) as (_, http):
            async with http.stream(*PRICES) as stream:
                seen, _ = await read_for(stream, 0.9)
            json.loads(seen[0])
            with pytest.raises(ValueError):
                json.loads(seen[1])
            json.loads(seen[2])
    asyncio.run(run())


def test_stream_refused():
    async def run():
        async with venue({"kind": "stream_refused", "when": {"nth": [1, 2]}}) as (_, http):
            assert [(await http.get(PRICES[1])).status_code for _ in range(2)] == [503, 503]
            async with http.stream(*PRICES) as stream:
                assert stream.status_code == 200
    asyncio.run(run())


@pytest.mark.parametrize("kind, status", [("maintenance", 504), ("revoked", 401)])
def test_a_window_closes_streams_and_opens_again(kind, status):
    async def run():
        async with venue({"kind": kind, "when": {"after_s": 60, "for_s": 600}}) as (s, http):
            async with http.stream(*PRICES) as stream:
                assert (await read_for(stream, 0.3))[1] == "open"
            async with http.stream(*PRICES) as stream:
                s.clock.advance(90_000)
                assert (await read_for(stream, 2))[1] != "open"
            assert (await http.get("/summary")).status_code == status == (await http.get(PRICES[1])).status_code
            s.clock.advance(600_000)
            assert (await http.get("/summary")).status_code == 200
    asyncio.run(run())


def test_twenty_streams_and_no_more():
    async def run():
        async with venue(max_streams=3) as (s, http):
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(3):
                    assert (await stack.enter_async_context(http.stream(*PRICES))).status_code == 200
                assert (await http.get(PRICES[1])).status_code == 429
            for _ in range(40):
                await asyncio.sleep(0.05)
                if not s.server.streams:
                    break
            async with http.stream(*PRICES) as stream:
                assert stream.status_code == 200
    asyncio.run(run())


# -- candles and clock ----------------------------------------------------------------------------------------------------


async def candles(http, **more):
    r = await http.get("/instruments/EUR_USD/candles", params={"granularity": "M1", "count": 120, **more})
    return r.json()["candles"]


@pytest.mark.parametrize("kind", ["candles_unordered", "candles_duplicated", "candles_missing"])
def test_candles_told_badly(kind):
    async def run():
        async with venue() as (s, http):
            good = await candles(http)
            s.add_fault({"kind": kind, "name": "c", "params": {"rate": 0.2}})
            bad, again = await candles(http), await candles(http)
            times = [c["time"] for c in bad]
            assert bad == again != good
            if kind == "candles_unordered":
                assert sorted(times) == [c["time"] for c in good] != times
            if kind == "candles_duplicated":
                assert len(times) > len(good) and sorted(set(times)) == [c["time"] for c in good]
            if kind == "candles_missing":
                assert set(times) < {c["time"] for c in good}
    asyncio.run(run())


def test_a_candle_revised_after_its_close():
    async def run():
        async with venue({"kind": "candles_revised", "params": {"age_s": 90.0}}, start="2025-11-04T14:30:05Z") as (s, http):
            early = {c["time"]: c for c in await candles(http) if c["complete"]}
            s.clock.advance(120_000)
            late = {c["time"]: c for c in await candles(http) if c["complete"]}
            changed = [t for t in early if t in late and early[t] != late[t]]
            assert changed and max(changed) == max(early) and all(early[t]["mid"]["o"] == late[t]["mid"]["o"] for t in changed)
    asyncio.run(run())


def test_a_close_that_comes_late():
    async def run():
        async with venue({"kind": "candles_late_close", "params": {"delay_s": 20.0}}, start="2025-11-04T14:30:05Z") as (s, http):
            before = [c["time"] for c in await candles(http) if c["complete"]][-1]
            s.clock.advance(20_000)
            assert [c["time"] for c in await candles(http) if c["complete"]][-1] > before
    asyncio.run(run())


def test_a_clock_that_is_wrong_and_drifts():
    async def run():
        async with venue({"kind": "clock_offset", "params": {"offset_ms": -90_000.0, "drift_ppm": 1000.0}}) as (s, http):
            def ahead(r):
                return parsedate_to_datetime(r.headers["Date"]).timestamp() - s.clock() / 1000
            assert abs(ahead(await http.get("/pricing", params={"instruments": "EUR_USD"})) + 90) < 1.1
            rows = await candles(http, count=3)
            assert all(c["time"][17:19] == "00" for c in rows)
            s.clock.advance(3_600_000)
            r = await http.get("/pricing", params={"instruments": "EUR_USD"})
            assert abs(ahead(r) + 90 - 3.6) < 1.1 and r.json()["time"] < "2025-11-04T15:29"
    asyncio.run(run())
