"""What each route says and does, over the real servers and the sandbox."""
import asyncio
import json
import os
from decimal import Decimal
from uuid import UUID

import polars as pl
import pytest
from api_rig import PAIRS, TOKEN, is_problem, story
from execution_rig import alerts, audits

from deskbook.core.clock import iso, to_ms
from deskbook.core.errors import Refused
from deskbook.stores.lake import Lake
from deskbook.stores.ledger import LedgerDown
from deskbook.stores.live_state import DESK_LOOP, NAV_SNAPSHOT, RISK_SUMMARY, put_candles, put_gate, put_json, read_candles
from deskbook.stores.records import raise_alert
from deskbook.trading.controls import ReadOnlyOn


def gate(instrument, ts_ms, **more):
    return {"instrument": instrument, "ts_ms": ts_ms, "asof_ms": ts_ms + 60_000, "admit": False, "direction": "FLAT", "lambda": 0.02, "hazard": 0.2,
            "hazard_threshold": 0.3, "repetitions": 1, "structure": {"coherence": 0.4}, "regime": {"label": "neutral", "confidence": 0.3}, "components": {},
            "reasons": ["repetitions_short", "regime_filtered"], **more}


async def store_gate(desk, said, ttl_s=900):
    await put_gate(desk.kill.store(), said["instrument"], said["ts_ms"], json.dumps(said), ttl_s, 100)


# ---- state

def test_health_and_status_follow_loop_kill_switch_and_readiness(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            live, now = desk.kill.store(), desk.deps.clock()
            said = (await http.get("/health")).json()
            assert (said["status"], said["kill_switch"], said["trading_active"], said["enabled_pairs"]) == ("ok", False, False, list(PAIRS))
            await put_json(live, DESK_LOOP, {"ts_ms": now})
            await store_gate(desk, gate("EUR_USD", now - 90_000))
            said = (await http.get("/api/status")).json()
            assert (said["status"], said["trading_active"], said["read_only"], said["credentials"], said["valkey_ok"], said["oanda_environment"]) == ("running", True, False, True, True, "sandbox")
            assert 0 <= said["last_loop_age"] < 5 and 30 <= said["gate_ages"]["EUR_USD"] < 35 and said["gate_ages"]["USD_JPY"] is None
            assert (await http.get("/api/health")).json()["trading_active"] is True
            assert (await http.post("/api/kill-switch", json={"kill_switch": True})).json()["kill_switch"] is True
            for path in ("/health", "/api/health", "/api/status"):
                said = (await http.get(path)).json()
                assert (said["kill_switch"], said["trading_active"]) == (True, False), path
            await http.post("/api/kill-switch", json={"kill_switch": False})
            await put_json(live, DESK_LOOP, {"ts_ms": now - 60_000})
            said = (await http.get("/api/status")).json()
            assert (said["status"], said["trading_active"]) == ("stopped", False)
    story(go())


def test_readyz_and_health_when_the_servers_are_away(api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            assert (await http.get("/readyz")).json() == {"ready": True, "checks": {"ledger": True, "live": True}}
            live = desk.kill.store()
            object.__setattr__(live, "redis", type(live.redis).from_url("redis://127.0.0.1:1/0", socket_connect_timeout=0.2))
            answer = await http.get("/readyz")
            assert (answer.status_code, answer.json()["checks"]) == (503, {"ledger": True, "live": False})
            said = (await http.get("/health")).json()
            assert (said["kill_switch"], said["trading_active"]) == (True, False)  # unreadable counts as engaged
            assert (await http.get("/api/status")).json()["valkey_ok"] is False
            is_problem(await http.get("/api/metrics/gates"), "valkey_unavailable")
            is_problem(await http.post("/api/kill-switch", json={"kill_switch": False}), "valkey_unavailable")
            done = (await http.post("/api/kill-switch", json={"kill_switch": True})).json()
            assert (done["kill_switch"], done["local"], done["stored"]) == (True, True, False)
            async def down():
                raise LedgerDown("gone")
            monkeypatch.setattr(desk.ledger, "borrow", down)
            is_problem(await http.get("/api/decisions"), "ledger_unavailable")
            assert (await http.post("/api/kill-switch", json={"kill_switch": True}, headers={"Idempotency-Key": "stop-1"})).status_code == 200
    story(go())


def test_metrics_are_text(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            answer = await http.get("/metrics")
            assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain") and "# TYPE" in answer.text
    story(go())


# ---- the kill switch

BAD_SWITCHES = [b"", b"{}", b"[]", b"true", b"{", b'{"kill_switch":"false"}', b'{"kill_switch":0}', b'{"kill_switch":null}', b'{"enabled":true}',
                b'{"kill_switch":false,"enabled":false}', b'{"kill_switch":true,"kill_switch":false}', b'{"kill_switch":NaN}', b"\xff\xfe", b'{"KILL_SWITCH":false}']


@pytest.mark.parametrize("engaged", [True, False])
def test_a_malformed_body_leaves_the_kill_switch_as_it_is(api_bench, engaged):
    async def go():
        async with api_bench.api(run_desk=False, cleared=not engaged) as (_, http):
            before = (await http.get("/api/kill-switch")).json()
            assert before["kill_switch"] is engaged
            for body in BAD_SWITCHES:
                is_problem(await http.post("/api/kill-switch", content=body, headers={"Content-Type": "application/json"}), "invalid_request")
            for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
                is_problem(await http.post("/api/kill-switch", content=b'{"kill_switch":%s}' % (b"false" if engaged else b"true"), headers={"Content-Type": kind}), "invalid_request")
            assert (await http.get("/api/kill-switch")).json() == before
    story(go())


def test_who_switched_and_why_is_kept(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            await http.post("/api/kill-switch", json={"kill_switch": True, "by": "anna", "reason": "prices look wrong"})
            said = (await http.get("/api/kill-switch")).json()
            assert (said["kill_switch"], said["local"], said["stored"], said["by"], said["reason"]) == (True, "on", "on", "api:anna", "prices look wrong")
            events = (await http.get("/api/audit", params={"chain": "audit", "limit": 1})).json()["events"]
            assert (events[0]["actor"], events[0]["action"], events[0]["metadata"]["engaged"]) == ("api:anna", "kill_switch.update", True)
    story(go())


def test_clearing_needs_credentials(api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False, cleared=False) as (desk, http):
            monkeypatch.setattr(desk.venue, "environment", "practice")
            is_problem(await http.post("/api/kill-switch", json={"kill_switch": False}), "missing_credentials")
            assert (await http.get("/api/kill-switch")).json()["kill_switch"] is True
            is_problem(await http.post("/api/order", json={"instrument": "EUR_USD", "units": 1000}), "missing_credentials")
            assert (await http.get("/api/status")).json()["credentials"] is False
    story(go())


def test_clearing_may_need_fresh_gates(api_bench):
    async def go():
        async with api_bench.api(run_desk=False, cleared=False, kill_require_fresh_gates=True) as (desk, http):
            said = is_problem(await http.post("/api/kill-switch", json={"kill_switch": False}), "gates_stale")
            assert said["instruments"] == sorted(PAIRS)
            now = desk.deps.clock()
            for name in PAIRS:
                await store_gate(desk, gate(name, now - 70_000))
            assert (await http.post("/api/kill-switch", json={"kill_switch": False})).json()["kill_switch"] is False
    story(go())


# ---- market

def test_prices_of_the_venue(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            one = (await http.get("/api/pricing", params={"instrument": "EUR_USD"})).json()["prices"]
            assert list(one) == ["EUR_USD"] and (one["EUR_USD"]["bid"], one["EUR_USD"]["ask"], one["EUR_USD"]["mid"]) == (1.08410, 1.08424, 1.08417)
            both = (await http.get("/api/pricing?instrument=EUR_USD&instrument=USD_JPY")).json()["prices"]
            listed = (await http.get("/api/pricing?instruments=EUR_USD,USD_JPY")).json()["prices"]
            assert set(both) == set(listed) == set((await http.get("/api/pricing")).json()["prices"]) == set(PAIRS)
            is_problem(await http.get("/api/pricing?instrument=ABC_XYZ"), "unknown_instrument")
            for bad in ("instrument=eur_usd", "instruments=../etc", "instrument="):
                is_problem(await http.get(f"/api/pricing?{bad}"), "invalid_request")
    story(go())


def test_old_prices_are_not_shown_as_prices(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            assert (await http.get("/api/pricing")).status_code == 200
            api_bench.fault("http_error", "pricing", status=503)
            desk.marks.asked = {n: at - 60 for n, at in desk.marks.asked.items()}
            is_problem(await http.get("/api/pricing"), "broker_error")
    story(go())


def candles(name, start, n, step_s=300, close=1.08):
    rows = [{"instrument": name, "time": start + i*step_s*1000, "open": close, "high": close + 0.002, "low": close - 0.002, "close": close + i/10_000, "volume": 5.0, "complete": True} for i in range(n)]
    from deskbook.market.candles import conform
    return conform(pl.DataFrame(rows))


def test_price_history_says_where_it_comes_from(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            live, ask = desk.kill.store(), {"instrument": "EUR_USD", "granularity": "M5", "count": 3}
            async def history(**more):
                return (await http.get("/api/pricing/history", params={**ask, **more})).json()
            first = await history()
            assert (first["source"], len(first["points"])) == ("oanda", 3)
            assert (await history())["source"] == "cache" and (await history())["points"] == first["points"]
            start = to_ms("2025-11-03T00:00:00Z")
            await put_candles(live, "EUR_USD", "M5", candles("EUR_USD", start, 5))
            said = await history()
            assert said["source"] == "valkey" and said["points"][-1] == {"time": iso(start + 4*300_000), "close": 1.0804} and len(said["points"]) == 3
            Lake(str(api_bench.home / "lake")).write_candles(candles("USD_JPY", start, 4, close=151.0), "oanda", "M5")
            api_bench.sandbox.control.add_fault("http_error", "candles", status=503)
            said = await history(instrument="USD_JPY")
            assert (said["source"], len(said["points"])) == ("lake", 3)
            said = await history(instrument="GBP_USD")
            assert (said["source"], said["points"]) == ("empty", [])
            await live.redis.delete(*(live.key(k) for k in ("md:candles:EUR_USD:M5", "pricing:history:M5:EUR_USD")))
            said = await history()
            assert (said["source"], said["points"]) == ("cache_stale", first["points"])
            for bad in ({"count": 0}, {"count": 501}, {"granularity": "M7"}, {"instrument": "x"}):
                is_problem(await http.get("/api/pricing/history", params={**ask, **bad}), "invalid_request")
            is_problem(await http.get("/api/pricing/history"), "invalid_request")
    story(go())


def test_fetched_candles_are_stored(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            body = {"instrument": "EUR_USD", "granularity": "M5", "count": 20}
            said = (await http.post("/api/candles/fetch", json=body)).json()
            assert (said["success"], said["candles"], said["stored_live"], said["stored_lake"]) == (True, 20, 20, 20)
            held = await read_candles(desk.kill.store(), "EUR_USD", "M5")
            kept = Lake(str(api_bench.home / "lake")).candles("EUR_USD", timeframe="M5")
            assert held.height == kept.height == 20 and held["close"].to_list() == kept["close"].to_list()
            again = (await http.post("/api/candles/fetch", json=body)).json()
            assert (again["stored_live"], again["stored_lake"]) == (0, 0)
            for bad in ({"granularity": "M5"}, {**body, "count": "20"}, {**body, "count": 0}, {**body, "more": 1}):
                is_problem(await http.post("/api/candles/fetch", json=bad), "invalid_request")
            is_problem(await http.post("/api/candles/fetch", json={**body, "instrument": "ABC_XYZ"}), "unknown_instrument")
            api_bench.sandbox.control.add_fault("http_error", "candles", status=503)
            is_problem(await http.post("/api/candles/fetch", json=body), "broker_error")
    story(go())


def test_evidence_is_handed_on_byte_for_byte_and_says_how_old_it_is(api_bench):
    async def go():
        shelf, other = api_bench.home / "reports" / "evidence", api_bench.home / "elsewhere.json"
        async with api_bench.api(run_desk=False, bundle_evidence=str(other), clock=lambda: 1_762_000_100_000) as (_, http):
            is_problem(await http.get("/api/evidence/signal-outcomes"), "evidence_missing")
            shelf.mkdir(parents=True)
            raw, file = b'{ "edge_bp":  -2.8,\n "a": 1.50 }', shelf / "outcome_weekly_costs.json"
            file.write_bytes(raw)
            os.utime(file, (1_762_000_000, 1_762_000_000))
            answer = await http.get("/api/evidence/signal-outcomes")
            assert (answer.content, answer.headers["x-evidence-age-seconds"], answer.headers["last-modified"]) == (raw, "100", "Sat, 01 Nov 2025 12:26:40 GMT")
            file.write_bytes(b'{"edge_bp": NaN}')
            is_problem(await http.get("/api/evidence/signal-outcomes"), "evidence_invalid")
            other.write_bytes(b'{"MB003": 67}')
            assert (await http.get("/api/evidence/bundle-outcomes")).content == b'{"MB003": 67}'
            is_problem(await http.get("/api/evidence/roc-summary"), "evidence_missing")
            (shelf / "roc_regime_summary.json").mkdir()
            is_problem(await http.get("/api/evidence/roc-summary"), "evidence_unreadable")
    story(go())


# ---- metrics

def test_gates_as_a_dashboard_reads_them(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            now = desk.deps.clock()
            await store_gate(desk, gate("EUR_USD", now - 90_000, bundle_hits=[{"id": "MB003", "score": 0.7}]))
            said = (await http.get("/api/metrics/gates")).json()
            (one,) = said["gates"]
            assert (one["instrument"], one["admit"], one["reasons"], one["regime"]["label"], one["structure_metrics"]["coherence"]) == (
                "EUR_USD", False, ["repetitions_short", "regime_filtered"], "neutral", 0.4)
            assert 30 <= one["age_seconds"] < 35 and one["bundle_hits"][0]["id"] == "MB003" and one["raw"]["lambda"] == 0.02
            assert (said["missing"], said["reason_counts"]) == (["USD_JPY"], {"regime_filtered": 1, "repetitions_short": 1})
    story(go())


def test_nav_comes_from_the_manager_and_else_from_the_ledger(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            nav = (await http.get("/api/metrics/nav")).json()["nav"]
            assert (nav["nav_snapshot"], nav["total_units"], nav["positions"]) == (100_000, 0, [])
            (order,) = await desk.submit(api_bench.intent(3_000))
            await desk.wait(order.id)
            live = desk.kill.store()
            await put_json(live, NAV_SNAPSHOT, {"nav": 100_123.5, "balance": 100_000, "ts_ms": 1_762_000_000_000})
            await put_json(live, RISK_SUMMARY, {"exposure_usd": 3251.5})
            nav = (await http.get("/api/metrics/nav")).json()["nav"]
            assert (nav["nav_snapshot"], nav["balance"], nav["exposure_usd"], nav["total_units"], nav["last_updated"]) == (100_123.5, 100_000, 3251.5, 3000, "2025-11-01T12:26:40Z")
            (held,) = nav["positions"]
            assert (held["instrument"], Decimal(held["units"]), Decimal(held["mark"])) == ("EUR_USD", 3000, Decimal("1.08410"))
            assert (await http.get("/api/positions")).json()["positions"] == nav["positions"]  # shown although nothing trades
            account = (await http.get("/api/account")).json()
            assert (account["currency"], Decimal(account["balance"])) == ("USD", 100_000)
    story(go())


# ---- orders

def test_an_order_and_its_story(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            answer = await http.post("/api/order", json={"instrument": "EUR_USD", "units": 3000})
            said = answer.json()
            order = said["response"]
            assert (answer.status_code, said["ok"], order["state"], Decimal(order["filled_units"]), order["trace_id"]) == (200, True, "filled", 3000, answer.headers["x-trace-id"])
            story_ = (await http.get(f"/api/orders/{order['id']}")).json()
            assert [e["to_state"] for e in story_["events"]] == ["created", "submitting", "filled"]
            assert [(Decimal(f["units"]), Decimal(f["price"])) for f in story_["fills"]] == [(3000, Decimal("1.08424"))]
            assert [o["id"] for o in (await http.get("/api/orders")).json()["orders"]] == [order["id"]]
            assert (await http.get("/api/orders", params={"live": True})).json()["orders"] == []
            closed = (await http.post("/api/trade/close", json={"instrument": "EUR_USD", "units": 1000})).json()
            assert (closed["ok"], closed["response"]["kind"], closed["response"]["side"]) == (True, "exit", "sell")
            assert (await http.post("/api/trade/close", json={"instrument": "EUR_USD"})).json()["ok"] is True
            assert await desk.positions() == []
            said = is_problem(await http.post("/api/trade/close", json={"instrument": "EUR_USD"}), "nothing_to_close")
            assert said["ok"] is False
            is_problem(await http.get("/api/orders/00000000-0000-0000-0000-000000000001"), "not_found")
            is_problem(await http.get("/api/orders/x"), "invalid_request")
        assert api_bench.problems() == []
    story(go())


def test_what_the_desk_and_the_broker_refuse(api_bench, monkeypatch):
    async def go():
        async with api_bench.api() as (desk, http):
            async def order(**more):
                return await http.post("/api/order", json={"instrument": "EUR_USD", "units": 1000, **more})
            said = is_problem(await order(units=10**11), "order_refused")
            assert (said["ok"], said["reasons"][0]) == (False, "units_above_maximum")
            is_problem(await order(instrument="ABC_XYZ"), "unknown_instrument")
            api_bench.fault("reject", "orders.create", reason="INSUFFICIENT_MARGIN")
            said = is_problem(await order(), "broker_reject")
            assert said["reasons"] == ["INSUFFICIENT_MARGIN"]
            api_bench.sandbox.control.clear_faults()
            for bad in ({"units": 0}, {"units": True}, {"units": 1.5}, {"units": "abc"}, {"take_profit": 1.2}, {"instrument": None}, {"side": "buy"}, {"stop_loss": -1}):
                is_problem(await order(**bad), "invalid_request")
            for bad in ({"units": 1000}, {"instrument": "EUR_USD"}):
                is_problem(await http.post("/api/order", json=bad), "invalid_request")
            is_problem(await http.post("/api/trade/close", json={}), "invalid_request")
            before = len(api_bench.created())
            await http.post("/api/kill-switch", json={"kill_switch": True})
            said = is_problem(await order(), "kill_switch")
            assert (said["ok"], said["status"]) == (False, 423)
            is_problem(await http.post("/api/trade/close", json={"instrument": "EUR_USD"}), "nothing_to_close")
            await http.post("/api/kill-switch", json={"kill_switch": False})
            async def refuse(write):
                raise ReadOnlyOn("The desk is read-only.")
            monkeypatch.setattr(desk.intake, "guard", refuse)
            is_problem(await order(), "read_only")
            assert len(api_bench.created()) == before
    story(go())


def test_a_person_gets_out_under_the_kill_switch_but_never_read_only(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            await http.post("/api/order", json={"instrument": "EUR_USD", "units": 2000})
            await http.post("/api/kill-switch", json={"kill_switch": True})
            said = is_problem(await http.post("/api/trade/close", json={"instrument": "EUR_USD"}), "kill_switch")
            assert (said["ok"], said["response"]) == (False, None)
            done = await http.post("/api/trade/close", json={"instrument": "EUR_USD", "reduce_only": True})
            assert (done.status_code, done.json()["response"]["state"]) == (200, "filled")
            assert await desk.positions() == []
        assert api_bench.problems() == []
    story(go())


def test_an_order_that_rests_is_cancelled_with_a_reason(api_bench, monkeypatch):
    async def go():
        async with api_bench.api() as (desk, http):
            order, = await desk.submit([api_bench.intent(1000, type="limit", price="1.05", time_in_force="GTC")])
            await desk.wait(order.id)
            url, body = f"/api/orders/{order.id}/cancel", {"by": "anna", "reason": "wrong price"}
            for bad in ({}, {"by": "anna"}, {**body, "reason": ""}, {**body, "state": "cancelled"}):
                is_problem(await http.post(url, json=bad), "invalid_request")
            is_problem(await http.post(f"/api/orders/{UUID(int=1)}/cancel", json=body), "not_found")
            async def refuse(write):
                raise ReadOnlyOn("The desk is read-only.")
            with monkeypatch.context() as m:
                m.setattr(desk, "guard", refuse)
                is_problem(await http.post(url, json=body), "read_only")
            assert (await desk.order(order.id)).state == "open"
            await http.post("/api/kill-switch", json={"kill_switch": True})
            done = await http.post(url, json=body)
            assert (done.status_code, done.json()["response"]["state"]) == (200, "cancelled")
            row, = await audits(desk, "order.cancel")
            assert (row["actor"], row["metadata"]["why"]) == ("api:anna", "wrong price")
            assert (await http.post(url, json=body)).json()["response"]["state"] == "cancelled" and len(await audits(desk, "order.cancel")) == 1
    story(go())


def test_an_order_that_takes_long_is_on_its_way(api_bench, monkeypatch):
    async def go():
        monkeypatch.setattr("deskbook.app.api_routes_ledger.WAIT_S", 0.3)
        async with api_bench.api() as (desk, http):
            api_bench.fault("hang", "orders.create", {"nth": 1})
            answer = await http.post("/api/order", json={"instrument": "EUR_USD", "units": 1000})
            assert (answer.status_code, answer.json()["ok"], answer.json()["response"]["state"]) == (202, True, "submitting")
            assert (await desk.wait(answer.json()["response"]["id"], until=("filled",))).state == "filled"
    story(go())


# ---- once

def test_the_same_key_orders_once(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            async def order(units, key):
                return await http.post("/api/order", json={"instrument": "EUR_USD", "units": units}, headers={"Idempotency-Key": key})
            first = await order(1000, "button-1")
            again = await order(1000, "button-1")
            assert (again.status_code, again.json(), again.headers["idempotency-replayed"]) == (200, first.json(), "true")
            is_problem(await order(2000, "button-1"), "idempotency_conflict")
            both = await asyncio.gather(*(order(1000, "button-2") for _ in range(4)))
            assert sorted(r.status_code for r in both) == [200, 409, 409, 409]
            is_problem(next(r for r in both if r.status_code == 409), "in_flight")
            assert len(await desk.orders()) == 2
            await desk.ledger.rows("DELETE FROM http_idempotency")  # the answer is lost, the order is not
            assert (await order(1000, "button-1")).json()["response"]["id"] == first.json()["response"]["id"]
            is_problem(await order(5000, "button-1"), "idempotency_conflict")
            for bad in ("", " ", "x" * 181):
                is_problem(await order(1000, bad), "invalid_request")
            assert len(await desk.orders()) == 2
            row = (await desk.ledger.rows("SELECT expires_at - clock_timestamp() AS left, response FROM http_idempotency"))[0]
            assert 86_300 < row["left"].total_seconds() <= 86_400 and TOKEN not in json.dumps(row["response"])
        assert api_bench.problems() == []
    story(go())


def test_a_refusal_of_the_moment_does_not_burn_the_key(api_bench):
    async def go():
        async with api_bench.api() as (_, http):
            async def order():
                return await http.post("/api/order", json={"instrument": "EUR_USD", "units": 1000}, headers={"Idempotency-Key": "k"})
            await http.post("/api/kill-switch", json={"kill_switch": True})
            is_problem(await order(), "kill_switch")
            await http.post("/api/kill-switch", json={"kill_switch": False})
            assert (await order()).json()["response"]["state"] == "filled"
    story(go())


# ---- records

def test_decisions_alerts_and_audit(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            for n, verdict in enumerate(("enter", "refuse", "hold")):
                await desk.ledger.rows("""INSERT INTO decisions (account, run_id, instrument, decided_at, verdict, action, reasons, inputs)
                    VALUES (%s, 'r1', 'EUR_USD', to_timestamp(%s), %s, 'buy', %s, '{"gate": {"admit": false}}')""", (desk.account, 1_762_000_000 + n, verdict, ["gate_stale", "admit_false"]))
            found = (await http.get("/api/decisions")).json()["decisions"]
            assert [d["verdict"] for d in found] == ["hold", "refuse", "enter"] and found[0]["reasons"] == ["gate_stale", "admit_false"] and found[0]["inputs"] == {"gate": {"admit": False}}
            assert [d["verdict"] for d in (await http.get("/api/decisions", params={"before_ms": 1_762_000_002_000, "limit": 1})).json()["decisions"]] == ["refuse"]
            assert [d["verdict"] for d in (await http.get("/api/decisions", params={"verdict": "enter"})).json()["decisions"]] == ["enter"]
            assert (await http.get("/api/decisions", params={"instrument": "USD_JPY"})).json()["decisions"] == []
            for bad in ({"limit": 0}, {"limit": 501}, {"verdict": "maybe"}, {"before_ms": -1}):
                is_problem(await http.get("/api/decisions", params=bad), "invalid_request")
            async with desk.ledger.transaction() as tx:
                await raise_alert(tx, "gates_stale:EUR_USD", "gates", "high", "gate_age_s", "no gate for ten minutes", 600, 180)
            (alert,) = (await http.get("/api/alerts", params={"status": "open"})).json()["alerts"]
            assert (alert["severity"], alert["value"], alert["count"]) == ("high", 600, 1)
            is_problem(await http.post(f"/api/alerts/{alert['id']}/acknowledge", json={}), "invalid_request")
            done = (await http.post(f"/api/alerts/{alert['id']}/acknowledge", json={"by": "anna"})).json()
            assert (done["acknowledged"], done["alert"]["status"], done["alert"]["acknowledged_by"]) == (True, "acknowledged", "anna")
            again = (await http.post(f"/api/alerts/{alert['id']}/acknowledge", json={"by": "ben"})).json()
            assert (again["acknowledged"], again["alert"]["acknowledged_by"]) == (False, "anna")
            is_problem(await http.post("/api/alerts/00000000-0000-0000-0000-000000000001/acknowledge", json={"by": "anna"}), "not_found")
            events = (await http.get("/api/audit")).json()["events"]
            assert (events[0]["actor"], events[0]["action"]) == ("api:anna", "alert.acknowledge")
            assert len(await alerts(desk)) == 1 and await audits(desk, "alert.acknowledge") == []
    story(go())


# ---- errors and the socket

def test_no_error_shows_a_secret_or_its_own_words(api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            async def broken(*_, **__):
                raise RuntimeError(f"password=hunter2 {TOKEN}")
            monkeypatch.setattr(desk, "positions", broken)
            answer = await http.get("/api/positions")
            is_problem(answer, "internal")
            assert "hunter2" not in answer.text and TOKEN not in answer.text and "RuntimeError" not in answer.text
            answer = await http.post("/api/kill-switch", json={"kill_switch": True, "password": "hunter2", "by": TOKEN, "reason": 5})
            is_problem(answer, "invalid_request")
            assert "hunter2" not in answer.text and TOKEN not in answer.text
            is_problem(await http.get("/nowhere"), "not_found")
            answer = await http.delete("/api/order")
            is_problem(answer, "method_not_allowed")
            assert answer.headers["allow"] == "POST"
            is_problem(await http.post("/api/order", content=b" " * 70_000, headers={"Content-Type": "application/json"}), "too_large")
    story(go())


def test_over_a_socket(api_bench):
    async def go():
        async with api_bench.served() as (_, http):
            assert (await http.get("/readyz")).json()["ready"] is True
            done = await http.post("/api/order", json={"instrument": "EUR_USD", "units": 1000}, headers={"Idempotency-Key": "k"})
            assert done.json()["response"]["state"] == "filled" and "server" not in done.headers
            assert (await http.get("/api/positions", headers={"Authorization": "Bearer wrong"})).status_code == 401
        assert api_bench.problems() == []
    story(go())


def test_without_a_token_it_does_not_listen_elsewhere(api_bench):
    async def go():
        for host in ("0.0.0.0", "::", "10.0.0.7"):
            with pytest.raises(Refused, match="API_TOKEN"):
                async with api_bench.served(run_desk=False, token=None, http_host=host):
                    pass
        async with api_bench.served(run_desk=False, token=None, headers=None) as (_, http):
            assert (await http.get("/api/status")).status_code == 200
            is_problem(await http.post("/api/kill-switch", json={"kill_switch": True}), "no_api_token")
    story(go())
