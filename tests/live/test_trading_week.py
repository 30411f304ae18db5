"""What simulated trading with everything failing must show: no order that should not be, a ledger that equals the venue, gates that equal a rebuild."""
import asyncio
import json
import secrets
import shutil
import sys
import time
from pathlib import Path

import polars as pl
import psycopg
import pytest
from deskbook.gates.engine import build_gates
from deskbook.gates.live import gate_history
from deskbook.gates.payload import gates_frame
from deskbook.gates.worker import live_gate_settings
from deskbook.stores.embedded import start_postgres, start_valkey
from deskbook.stores.ledger_migrate import migrate
from deskbook.venues.sandbox.process import sandbox_process
from psycopg.rows import dict_row

sys.path.insert(0, str(Path(__file__).resolve().parent))
from trading_week import ACCOUNT, MAX_GATE_AGE_S, PAIRS, Week, in_session, to_ms

MONDAY = "2025-11-10T00:00:00Z"


def orders_with_decisions(url):
    """Every order of ours with the decision it came from."""
    with psycopg.connect(url, row_factory=dict_row) as db:
        return {r["client_order_id"]: r for r in db.execute("""SELECT o.client_order_id, o.instrument, o.side, o.kind, o.reduce_only, o.state, o.run_id, d.verdict, d.reasons,
            d.decided_at, d.inputs->'gate' AS gate FROM orders o LEFT JOIN decisions d ON d.id = o.decision_id WHERE o.account = %s""", (ACCOUNT,)).fetchall()}


def wrong_orders(week, orders):
    """Every request for an order that should never have reached the venue, and why."""
    wrong = []
    for e in week.story.creates:
        at, o = e["at_ms"], orders.get(e["client_id"])
        name = f"{e['client_id']} at {at}"
        wrong += [f"{name} was sent while: {w.why}" for w in week.story.windows if w.from_ms < at < (w.until_ms or 2**62)]
        if o is None:
            wrong.append(f"{name} is not in the ledger")
            continue
        if o["kind"] == "exit":
            wrong += [f"{name} is an exit that may open"] * (not o["reduce_only"])
            continue
        gate = o["gate"]
        if not gate:
            wrong.append(f"{name} has no gate")
            continue
        if not in_session(at):
            wrong.append(f"{name} was sent outside the session")
        if gate["admit"] is not True or gate["reasons"]:
            wrong.append(f"{name} came from a gate that was not admitted: {gate['reasons']}")
        if not 0 <= at - gate["asof_ms"] <= MAX_GATE_AGE_S * 1000:
            wrong.append(f"{name} came from a gate {(at - gate['asof_ms']) / 1000} s old")
        if gate["instrument"] != o["instrument"] or {"BUY": "buy", "SELL": "sell"}.get(gate["direction"]) != o["side"]:
            wrong.append(f"{name} is not what its gate says: {gate['direction']} {gate['instrument']}")
        if o["verdict"] != "enter" or o["run_id"] != "manager":
            wrong.append(f"{name} has no decision to enter")
        stored = week.story.gates.get((o["instrument"], gate["asof_ms"]), [])
        if not any(all(g[k] == gate[k] for k in ("admit", "direction", "hazard", "ts_ms")) for g in stored):
            wrong.append(f"{name}: its gate was never in Valkey")
    return wrong


async def gates_that_differ(week):
    """Live gates against gates made at once of the candles that the venue tells now, and against those of the lake."""
    wrong = []
    for name in PAIRS:
        lake = week.lake.candles(name, None, None, "sandbox")
        first, last = (int(lake["time"].dt.epoch("ms")[i]) for i in (0, -1))
        truth, at = [], first
        while at <= last:
            part = await week.desk.venue.fetch_ohlcv(name, "M1", since_ms=at, limit=4000)
            truth.append(part.filter(pl.col("time").dt.epoch("ms") <= last))
            if part.height < 2:
                break
            at = int(part["time"].dt.epoch("ms")[-1]) + 60_000
        truth = pl.concat(truth).unique("time").sort("time")
        columns = ["time", "open", "high", "low", "close", "volume", "bid_close", "ask_close"]
        if not lake.select(columns).equals(truth.select(columns)):
            wrong.append(f"{name}: the lake has {lake.height} candles, the venue {truth.height}, or they differ")
        want = build_gates(truth, live_gate_settings(week.settings))
        got = gates_frame(await gate_history(week.live, name))
        times = set(got["time"].to_list()) ^ set(want["time"].to_list())
        if times:
            wrong.append(f"{name}: {len(times)} gates are only on one side, first {min(times)}, last {max(times)}; {got.height} live, {want.height} rebuilt")
        elif not got.equals(want):
            wrong.append(f"{name}: gates differ in {[c for c in want.columns if not got[c].equals(want[c])]}")
    return wrong


@pytest.fixture
def servers(postgres_url, valkey_url):
    """Servers of this test alone, with their data on disk; those of the run are asked for so that the programs are there."""
    folder = Path("/tmp") / f"dbk-{secrets.token_hex(4)}"
    with start_postgres(folder=folder) as postgres, start_valkey(folder=folder) as valkey:
        migrate(postgres.url)
        yield postgres, valkey
    shutil.rmtree(folder, ignore_errors=True)


def trade(servers, home, hours, seed, start=MONDAY):
    """Run it; what is wrong afterwards, and the story."""
    home.mkdir(parents=True, exist_ok=True)
    with sandbox_process(clock="virtual", speed=1.0, start=start, instruments=list(PAIRS), seed=seed) as sandbox:

        async def whole():
            week = Week(sandbox, *servers, home, seed)
            try:
                await week.run(to_ms(start), to_ms(start) + round(hours * 3_600_000))
                orders = orders_with_decisions(servers[0].url)
                return week, orders, {"orders": wrong_orders(week, orders), "ledger": week.disagreements(), "gates": await gates_that_differ(week),
                                      "stuck": week.story.stuck}
            finally:
                await week.aclose()

        return asyncio.run(whole())


def told(week, orders, began):
    """For people, when it is run with -s."""
    s = week.story
    print(json.dumps({"took_s": round(time.monotonic() - began, 1), "creates": len(s.creates), "orders": len(orders), "slowest_s": round(s.slowest_s, 2),
                      "windows": len(s.windows), "gates": len(s.gates), **dict(sorted(s.happened.items())), **dict(s.reasons.most_common())}, indent=1))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trading_day_with_faults(servers, tmp_path):
    began = time.monotonic()
    week, orders, wrong = trade(servers, tmp_path / "home", 24, seed=1)
    told(week, orders, began)
    assert wrong == {"orders": [], "ledger": [], "gates": [], "stuck": []}
