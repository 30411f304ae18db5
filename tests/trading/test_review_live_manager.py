"""What a review of the live desk found in the manager: old decisions, clocks that jump, one pair that stops the others, two managers for a moment."""
import asyncio
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent))
from execution_rig import run
from manager_rig import ALWAYS, managed

from deskbook.app.workers import Supervised, Supervision
from deskbook.stores.live import open_live
from deskbook.trading import manager as module
from deskbook.trading.leases import holding, release_lease, take_lease

# ---- a decision that grew old before it became an order

def asleep_after_writing(rig, monkeypatch, seconds):
    """The process is stopped between its decision and its order."""
    write = rig.manager.write
    async def slow(decided):
        rows = await write(decided)
        await asyncio.sleep(seconds)
        return rows
    monkeypatch.setattr(rig.manager, "write", slow)


def test_a_gate_that_turned_stale_between_decision_and_order_is_not_traded(bench, monkeypatch):
    async def story():
        async with managed(bench) as rig:
            asleep_after_writing(rig, monkeypatch, 1.0)
            await rig.gate(asof_ms=rig.clock() - 179_300)
            rows = [r for r in await rig.manager.round() if r.instrument == "EUR_USD"]
            assert [(r.verdict, r.reasons) for r in rows] == [("enter", ()), ("refuse", ("intent_expired",))]
            await asyncio.sleep(0.3)
            assert await rig.orders() == [] and bench.created() == []
    run(story())


def test_the_time_an_order_has_counts_from_its_decision(bench, monkeypatch):
    async def story():
        async with managed(bench, run=False) as rig:
            await rig.desk.ledger.rows("UPDATE accounts SET reconciled_at = clock_timestamp() WHERE account = %s", (rig.desk.account,))
            await rig.desk.ledger.rows("""INSERT INTO equity_snapshots (account, at, balance, nav, unrealised_pnl, margin_used, margin_available, source)
                VALUES (%s, clock_timestamp(), 100000, 100000, 0, 0, 100000, 'test')""", (rig.desk.account,))
            asleep_after_writing(rig, monkeypatch, 2.0)
            await rig.gate()
            await rig.manager.round()
            (order,) = await rig.orders()
            assert 7.0 < (order["expires_at"] - order["created_at"]).total_seconds() < 8.2, "ten seconds, of which two are over"
    run(story())


# ---- two managers for a moment

def test_who_lost_the_lease_between_decision_and_order_trades_nothing(bench, monkeypatch):
    async def story():
        async with managed(bench, max_positions_per_pair=1) as rig:
            mine = await take_lease(rig.desk.ledger, f"worker:manager:{rig.desk.account}", "first:1:aa", 30.0)
            holding.set(mine)
            write, second = rig.manager.write, rig.another()
            async def replaced(decided):
                rows = await write(decided)
                if any(p.intents for _, p in decided):
                    await release_lease(rig.desk.ledger, mine)
                    holding.set(await take_lease(rig.desk.ledger, f"worker:manager:{rig.desk.account}", "second:2:bb", 30.0))
                    await rig.gate(asof_ms=rig.clock())
                    assert next(r for r in await second.round() if r.instrument == "EUR_USD").verdict == "enter"
                    holding.set(mine)
                return rows
            monkeypatch.setattr(rig.manager, "write", replaced)
            await rig.gate(asof_ms=rig.clock() - 60_000)
            rows = [r for r in await rig.manager.round() if r.instrument == "EUR_USD"]
            assert [(r.verdict, r.reasons) for r in rows] == [("enter", ()), ("refuse", ("lease_lost",))]
            await rig.settled()
            assert len(await rig.orders()) == 1, "one entry at a time, also of two managers"
    run(story())


def test_a_supervised_worker_works_under_its_lease(bench):
    async def story():
        async with managed(bench, run=False) as rig:
            seen, stop = [], asyncio.Event()
            async def work(stop):
                seen.append(holding.get())
                stop.set()
            await Supervised("manager", work, rig.desk.ledger, rig.desk.account, "me:1:aa", how=Supervision(resolve_s=9)).run(stop)
            assert seen[0].name == f"worker:manager:{rig.desk.account}" and holding.get() is None
    run(story())


# ---- clocks

def test_a_clock_that_is_set_right_holds_up_no_exit(bench):
    async def story():
        async with managed(bench) as rig:
            await rig.entered()
            rig.clock.ahead_ms = 1_801_000 + 3_600_000
            bench.sandbox.control.market("halt", "EUR_USD")
            assert (await rig.round()).verdict == "exit"
            await rig.settled()
            rig.clock.ahead_ms = 1_801_000
            assert (await rig.round()).verdict == "exit", "the last try was an hour in the future"
            await rig.settled()
            assert (await rig.round()).reasons[-1] in ("exit_retry_wait", "instrument_not_tradeable"), "and from then on the pauses count again"
            bench.sandbox.control.market("release", "EUR_USD")
            await asyncio.sleep(1.1)
            rig.clock.ahead_ms += 5_000
            assert (await rig.round()).verdict == "exit"
            await rig.settled()
            assert await rig.units() == 0 and len(await rig.orders("kind = 'exit'")) == 3
    run(story())


def test_a_refused_order_waits_for_no_moment_that_was_taken_back(bench):
    lately = module.Refusals()
    lately.add("key", 3_600_000)
    assert lately.wait("key", 3_600_001) and not lately.wait("key", 60_000)


# ---- one pair's trouble is not the others'

def test_a_decision_that_fails_stops_no_other_pair(bench, monkeypatch):
    async def story():
        async with managed(bench) as rig:
            await rig.entered()
            real = module.decide
            def decide(i):
                if i.instrument == "USD_JPY": raise OverflowError("a number that nobody thought of")
                return real(i)
            monkeypatch.setattr(module, "decide", decide)
            rig.clock.ahead_ms = 1_801_000
            rows = {r.instrument: r for r in await rig.manager.round()}
            assert (rows["USD_JPY"].verdict, rows["USD_JPY"].reasons) == ("refuse", ("decision_failed",))
            assert rows["EUR_USD"].verdict == "exit"
            await rig.settled()
            assert await rig.units() == 0 and len(await rig.rows("'decision_failed' = ANY(reasons)")) == 1
    run(story())


# ---- what the store remembers

def test_the_best_price_is_asked_for_again_when_valkey_was_away_at_the_start(bench):
    async def story():
        async with managed(bench, ALWAYS.replace("session", "trailing_stop_pct: 0.004, session")) as rig:
            await rig.entered()
            bench.sandbox.control.market("price", "EUR_USD", bid="1.09410", ask="1.09424")
            await asyncio.sleep(1.1)
            await rig.round()
            assert (await rig.shown("trade:stack:EUR_USD"))["tickets"][0]["best"] == "1.09410"
            bench.sandbox.control.market("price", "EUR_USD", bid="1.08900", ask="1.08914")
            await asyncio.sleep(1.1)
            away = open_live("redis://127.0.0.1:1/0", "x:", 0.2)
            rig.manager = rig.another()
            rig.manager.live = away
            assert "valkey_unavailable" in (await rig.round()).reasons
            rig.manager.live = rig.live
            assert (await rig.round()).reasons == ("trailing_stop_hit",)
            await away.aclose()
    run(story())


# ---- profiles

def test_a_profile_without_hours_is_said_aloud(bench, monkeypatch):
    async def story():
        async with managed(bench, "instruments: {USD_JPY: {session: '07:00,17:00'}}\n", run=False) as rig:
            said = []
            monkeypatch.setattr(module._log, "warning", lambda text, **more: said.append((text, more)), raising=False)
            rig.another()
            return said
    (text, more), = run(story())
    assert "FX week" in text and more == {"instruments": ["EUR_USD"]}


def test_what_is_no_candle_in_the_store_ends_no_round(bench):
    async def story():
        async with managed(bench, ALWAYS.replace("session", "trailing_stop_pct: 0.5, session")) as rig:
            await rig.entered()
            await rig.flush()
            await rig.live.redis.zadd(rig.live.key("md:candles:EUR_USD:M1"), {"{half": rig.clock(), '{"t": 1, "h": "high"}': rig.clock() + 1})
            rig.manager = rig.another()
            assert (await rig.round()).verdict == "hold"
    run(story())
