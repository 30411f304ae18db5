"""The manager over a real ledger, Valkey and sandbox: what it sends, what it writes down, and that nothing it may lose makes it send twice."""
import asyncio
import json
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from execution_rig import eventually, run
from manager_rig import ALWAYS, Rig, managed

from deskbook.core import metrics
from deskbook.core.files import write_json
from deskbook.stores.ledger import LedgerDown
from deskbook.stores.live import open_live
from deskbook.trading import manager as module
from deskbook.trading.controls import clear, engage
from deskbook.trading.manager import Manager

# ---- the straight way

def test_from_gate_to_position_with_every_trace(bench):
    async def story():
        async with managed(bench) as rig:
            gate = await rig.gate()
            decided = await rig.round()
            assert (decided.verdict, decided.action, decided.reasons, decided.new) == ("enter", "BUY", (), True)
            await rig.settled()
            (order,), (row,) = await rig.orders(), await rig.rows("verdict = 'enter'")
            assert (order["state"], order["decision_id"], order["trace_id"], order["run_id"]) == ("filled", row["id"], row["trace_id"], "manager")
            assert row["inputs"]["gate"]["asof_ms"] == gate["asof_ms"] and "bits_b64" not in row["inputs"]["gate"]["components"]
            assert await rig.units() == order["units"] > 1 and bench.problems() == []
            again = await rig.round()
            assert (again.verdict, again.reasons) == ("hold", ("duplicate_signal",))
            stack = await rig.shown("trade:stack:EUR_USD")
            assert [(t["order_id"], t["units"], t["signal"]) for t in stack["tickets"]] == [(str(order["id"]), str(order["units"]), f"gate:{gate['ts_ms']}")]
            assert stack["tickets"][0]["hold_until_ms"] == row["inputs"]["plan"]["hold_until_ms"] and stack["external_units"] == "0"
    run(story())


def test_figures_for_people_are_written_each_round_and_expire(bench):
    async def story():
        async with managed(bench) as rig:
            await rig.entered()
            await rig.manager.round()
            nav, risk = await rig.shown("risk:nav_snapshot"), await rig.shown("ops:risk_summary")
            assert nav["nav"] == pytest.approx(100_000, rel=0.01) and nav["balance"] == pytest.approx(100_000, rel=0.01) and nav["ts_ms"] > 10**12
            assert risk["exposure_usd"] == pytest.approx(float(await rig.units())*1.084, rel=0.01) and risk["nav_snapshot"] == nav["nav"] and risk["last_updated"]
            assert await rig.shown("ops:position_count") == 1 and await rig.live.get("ops:position_count") == "1"
            loop = await rig.shown("desk:loop")
            assert abs(loop["ts_ms"] - rig.clock()) < 5_000 and loop["verdicts"]["EUR_USD"] == "hold"
            for key in ("risk:nav_snapshot", "ops:risk_summary", "ops:position_count", "desk:loop"):
                assert 0 < await rig.live.redis.pttl(rig.live.key(key)) <= 10_000
    run(story())


# ---- what is written down

def test_the_same_again_is_one_row_and_a_changed_reason_another(bench):
    async def story():
        async with managed(bench) as rig:
            await rig.gate(admit=False)
            for _ in range(5):
                await rig.manager.round()
            assert [(r["instrument"], r["verdict"], r["reasons"]) for r in await rig.rows()] == [("EUR_USD", "refuse", ["admit_false"]), ("USD_JPY", "refuse", ["missing_payload"])]
            await engage(rig.desk.kill, "test", "test")
            for _ in range(3):
                await rig.manager.round()
            assert [r["reasons"] for r in await rig.rows("instrument = 'EUR_USD'")] == [["admit_false"], ["kill_switch", "admit_false"]]
            await clear(rig.desk.kill, "test", "test")
            await rig.manager.round()
            assert len(await rig.rows("instrument = 'EUR_USD'")) == 2, "back to reasons that are written already"
            await rig.gate(admit=False)
            await rig.manager.round()
            assert len(await rig.rows("instrument = 'EUR_USD'")) == 3, "another gate"
            await rig.another().round()
            assert len(await rig.rows()) == 5, "a restart writes nothing twice"
    run(story())


def test_every_reason_is_there_and_counted(bench):
    async def story():
        async with managed(bench, "guards: {min_coherence: 0.9}\nglobal: {min_repetitions: 9, session: {start: 00:00, end: 00:01, week: always}}\n") as rig:
            rig.clock.ahead_ms = 12*3_600_000 if rig.clock() % 86_400_000 < 3_600_000 else 0
            await engage(rig.desk.kill, "test", "test")
            before = metrics.DECISIONS.labels("EUR_USD", "refuse")._value.get()
            await rig.gate(admit=False, asof_ms=rig.clock() - 200_000, reasons=["hazard_fallback_requested"], bundle_blocks=["CB002"])
            row = await rig.round()
            assert row.reasons == ("kill_switch", "session_closed", "gate_stale", "admit_false", "hazard_fallback_requested", "repetitions_short",
                                   "bundle_block:CB002", "coherence_below_min")
            assert metrics.DECISIONS.labels("EUR_USD", "refuse")._value.get() == before + 1
    run(story())


# ---- when nothing may be sent

@pytest.mark.parametrize("gate", [{"admit": False}, {"asof_ms": 1_000}, {"direction": "FLAT"}, {"direction": "UP"}, {"instrument": "USD_JPY"}, None])
def test_no_order_without_an_admitted_fresh_gate(bench, gate):
    async def story():
        async with managed(bench) as rig:
            if gate is not None:
                g = await rig.gate()
                await rig.live.set({"gate:last:EUR_USD": json.dumps(g | gate)})
            row = await rig.round()
            assert row.verdict == "refuse" and row.reasons and await rig.orders() == []
    run(story())


@pytest.mark.parametrize("text", ["", "not json", "[]", "null", "1", '{"instrument": NaN}', '{"admit": true}'])
def test_no_order_on_junk_in_place_of_a_gate(bench, text):
    async def story():
        async with managed(bench) as rig:
            await rig.live.set({"gate:last:EUR_USD": text})
            assert (await rig.round()).verdict == "refuse" and await rig.orders() == []
    run(story())


def test_the_kill_switch_pauses_entries_and_exits(bench):
    async def story():
        async with managed(bench) as rig:
            await rig.entered()
            await engage(rig.desk.kill, "test", "test")
            await rig.gate("USD_JPY")
            assert (await rig.round("USD_JPY")).reasons == ("kill_switch",)
            rig.clock.ahead_ms = 1_801_000
            held = await rig.round()
            assert (held.verdict, held.reasons) == ("hold", ("hold_expiry", "kill_switch"))
            assert len(await rig.orders()) == 1
            await clear(rig.desk.kill, "test", "test")
            assert (await rig.round()).verdict == "exit"
            await rig.settled()
            assert await rig.units() == 0
    run(story())


def test_a_missing_or_unreadable_kill_switch_is_engaged(bench):
    async def story():
        async with managed(bench, cleared=False) as rig:
            await rig.gate()
            assert (await rig.round()).reasons == ("kill_switch",)
            away = open_live("redis://127.0.0.1:1/0", "x:", 0.2)
            write_json(rig.desk.kill.file, {"engaged": False})
            rig.desk.kill = replace(rig.desk.kill, live=away)  # the desk's store is gone
            rig.desk.guard = replace(rig.desk.guard, kill=rig.desk.kill)
            blind = Manager(rig.desk, away, rig.profile, rig.settings, rig.clock)
            row = next(r for r in await blind.round() if r.instrument == "EUR_USD")
            assert row.reasons == ("kill_switch_unreadable", "valkey_unavailable", "missing_payload") and await rig.orders() == []
            await away.aclose()
    run(story())


def test_read_only_stops_a_practice_account_and_not_the_sandbox(bench):
    async def story():
        async with managed(bench) as rig:
            await rig.gate()
            assert rig.desk.guard.read_only, "the sandbox trades although the desk is read-only"
            rig.desk.guard = replace(rig.desk.guard, environment="practice")
            await engage(rig.desk.kill, "test", "test")
            assert (await rig.round()).reasons == ("read_only", "kill_switch")
            await clear(rig.desk.kill, "test", "test")
            assert (await rig.round()).reasons == ("read_only",) and await rig.orders() == []
            rig.desk.guard = replace(rig.desk.guard, environment="sandbox")
            assert (await rig.round()).verdict == "enter"
    run(story())


def test_a_closed_session_stops_entries(bench):
    async def story():
        async with managed(bench, "global: {session: {start: 03:00, end: 04:00, week: always}}\n") as rig:
            if rig.clock() % 86_400_000 in range(3*3_600_000, 4*3_600_000):
                rig.clock.ahead_ms = 7_200_000
            await rig.gate(asof_ms=rig.clock() - 1_000)
            assert (await rig.round()).reasons == ("session_closed",) and await rig.orders() == []
    run(story())


def test_frozen_entries_stop_entries_only(bench):
    async def story():
        async with managed(bench) as rig:
            await rig.entered()
            await rig.desk.freeze("test", "test")
            await rig.gate()
            assert "entries_frozen" in (await rig.round()).reasons
            rig.clock.ahead_ms = 1_801_000
            assert (await rig.round()).verdict == "exit"
            await rig.settled()
            assert await rig.units() == 0
    run(story())


# ---- never twice

def test_one_entry_for_a_gate_however_many_rounds_restarts_and_managers(bench):
    async def story():
        async with managed(bench) as rig:
            await rig.gate()
            others = [rig.another() for _ in range(4)]
            await asyncio.gather(*(m.round() for m in others))
            await rig.settled()
            for m in (rig.manager, rig.another(), *others):
                await m.round()
            await rig.settled()
            (order,) = await rig.orders()
            assert await rig.units() == order["units"] and len(bench.created()) == 1 and len(await rig.rows("verdict = 'enter'")) == 1
            assert bench.problems() == []
    run(story())


def test_one_exit_for_a_ticket_however_many_managers(bench):
    async def story():
        async with managed(bench) as rig:
            await rig.entered()
            rig.clock.ahead_ms = 1_801_000
            others = [rig.another() for _ in range(4)]
            await asyncio.gather(*(m.round() for m in others))
            await rig.settled()
            await asyncio.gather(*(m.round() for m in others))
            await rig.settled()
            assert len(await rig.orders("kind = 'exit'")) == 1 and await rig.units() == 0 and bench.problems() == []
            assert await rig.shown("trade:stack:EUR_USD") is None
    run(story())


def test_a_crash_between_decision_and_order(bench, monkeypatch):
    async def story():
        async with managed(bench) as rig:
            await rig.gate()
            async def dies(*_): raise LedgerDown("gone.", "")
            monkeypatch.setattr(rig.desk, "submit_each", dies)
            with pytest.raises(LedgerDown):
                await rig.manager.round()
            monkeypatch.undo()
            assert len(await rig.rows("verdict = 'enter'")) == 1 and await rig.orders() == []
            rig.manager = rig.another()
            row = await rig.round()
            assert (row.verdict, row.new) == ("enter", False)
            await rig.settled()
            (order,), (decision,) = await rig.orders(), await rig.rows("verdict = 'enter'")
            assert order["decision_id"] == decision["id"] and await rig.units() == order["units"]
    run(story())


def test_a_crash_between_order_and_stack(bench, monkeypatch):
    async def story():
        async with managed(bench) as rig:
            await rig.gate()
            async def dies(*_): raise RuntimeError("power cut")
            monkeypatch.setattr(module, "show", dies)
            with pytest.raises(RuntimeError):
                await rig.manager.round()
            monkeypatch.undo()
            assert await rig.shown("trade:stack:EUR_USD") is None
            await rig.settled()
            rig.manager = rig.another()
            assert (await rig.round()).reasons == ("duplicate_signal",)
            (order,), stack = await rig.orders(), await rig.shown("trade:stack:EUR_USD")
            assert [t["order_id"] for t in stack["tickets"]] == [str(order["id"])]
            rig.clock.ahead_ms = 1_801_000
            assert (await rig.round()).verdict == "exit"
            await rig.settled()
            assert await rig.units() == 0
    run(story())


def test_valkey_flushed_in_mid_run(bench):
    async def story():
        async with managed(bench, ALWAYS.replace("session", "trailing_stop_pct: 0.5, session"), position_frac=Decimal("0.05")) as rig:
            await rig.entered()
            await rig.round()
            before = await rig.shown("trade:stack:EUR_USD")
            await rig.flush()
            row = await rig.round()
            assert row.verdict == "hold" and {"kill_switch", "missing_payload"} <= {*row.reasons}
            after = await rig.shown("trade:stack:EUR_USD")
            assert after["tickets"] == before["tickets"] and await rig.shown("risk:nav_snapshot")
            await rig.flush()
            rig.manager = rig.another()
            await rig.round()
            assert (await rig.shown("trade:stack:EUR_USD"))["tickets"] == before["tickets"], "also by one who never saw it"
            await clear(rig.desk.kill, "test", "test")
            await rig.gate()
            assert (await rig.round()).verdict == "enter"
            await rig.settled()
            rig.clock.ahead_ms = 1_900_000
            assert (await rig.round()).verdict == "exit"
            await rig.settled()
            assert await rig.units() == 0 and len(await rig.orders("kind = 'exit'")) == 2
    run(story())


def test_the_best_price_outlives_a_restart(bench):
    async def story():
        async with managed(bench, ALWAYS.replace("session", "trailing_stop_pct: 0.004, session")) as rig:
            await rig.entered()
            bench.sandbox.control.market("price", "EUR_USD", bid="1.09410", ask="1.09424")
            await asyncio.sleep(1.1)
            assert (await rig.round()).verdict == "hold"
            assert (await rig.shown("trade:stack:EUR_USD"))["tickets"][0]["best"] == "1.09410"
            bench.sandbox.control.market("price", "EUR_USD", bid="1.08900", ask="1.08914")
            await asyncio.sleep(1.1)
            rig.manager = rig.another()
            assert (await rig.round()).reasons == ("trailing_stop_hit",)
            await rig.settled()
            assert await rig.units() == 0
    run(story())


# ---- strangers

def test_a_strangers_position_is_never_touched(bench):
    async def story():
        async with managed(bench) as rig:
            ours = await rig.entered()
            bench.external(500)
            async def seen(): return await rig.units() == ours + 500
            await eventually(seen)
            await rig.manager.round()
            stack = await rig.shown("trade:stack:EUR_USD")
            assert (stack["external_units"], len(stack["tickets"])) == ("500", 1)
            rig.clock.ahead_ms = 1_801_000
            rig.manager = rig.another()
            assert (await rig.round()).verdict == "exit"
            await rig.settled()
            assert await rig.units() == 500
            for _ in range(3):
                rig.clock.ahead_ms += 1_801_000
                assert (await rig.round()).verdict == "refuse"
            assert await rig.units() == 500 and len(await rig.orders("kind = 'exit'")) == 1
    run(story())


def test_what_somebody_closed_is_not_closed_again(bench):
    async def story():
        async with managed(bench) as rig:
            await rig.entered()
            await rig.desk.wait((await rig.desk.close("EUR_USD")).id)
            rig.clock.ahead_ms = 1_801_000
            assert (await rig.round()).verdict == "refuse" and await rig.units() == 0
            assert len(await rig.orders("kind = 'exit'")) == 1
    run(story())


def test_an_entry_against_a_stranger_is_blocked(bench):
    async def story():
        async with managed(bench) as rig:
            bench.external(-500)
            async def seen(): return await rig.units() == -500
            await eventually(seen)
            await rig.desk.unfreeze("test", "test", accept=True)
            await rig.gate()
            assert "opposite_side_blocked" in (await rig.round()).reasons and await rig.units() == -500
    run(story())


# ---- trouble

def test_a_refused_exit_is_tried_again_with_pauses_under_new_keys(bench):
    async def story():
        async with managed(bench) as rig:
            await rig.entered()
            rig.clock.ahead_ms = 1_801_000
            bench.sandbox.control.market("halt", "EUR_USD")
            assert (await rig.round()).verdict == "exit"
            await rig.settled()
            waits = await rig.round()
            assert (waits.verdict, waits.reasons) == ("hold", ("hold_expiry", "exit_retry_wait"))
            bench.sandbox.control.market("release", "EUR_USD")
            rig.clock.ahead_ms += 3_000
            await asyncio.sleep(1.1)
            assert (await rig.round()).verdict == "exit"
            await rig.settled()
            exits = await rig.orders("kind = 'exit'")
            assert [o["state"] for o in exits][-1] == "filled" and len({o["idempotency_key"] for o in exits}) == 2 and await rig.units() == 0
    run(story())


def test_an_order_the_desk_refuses_is_a_row_and_is_not_asked_for_at_once_again(bench, monkeypatch):
    async def story():
        async with managed(bench) as rig:
            await rig.gate()
            real = module.controls
            async def blind(desk): return ()
            monkeypatch.setattr(module, "controls", blind)
            await engage(rig.desk.kill, "test", "test")
            rows = [r for r in await rig.manager.round() if r.instrument == "EUR_USD"]
            assert [(r.verdict, r.reasons) for r in rows] == [("enter", ()), ("refuse", ("kill_switch",))]
            assert (await rig.round()).reasons == ("order_refused",)
            assert await rig.orders() == [] and len(await rig.desk.ledger.rows("SELECT 1 FROM ops_audit_events WHERE action = 'order.refused'")) == 1
            monkeypatch.setattr(module, "controls", real)
    run(story())


def test_limits_across_pairs_in_one_round(bench):
    async def story():
        async with managed(bench, max_total_positions=1) as rig:
            await rig.gate()
            await rig.gate("USD_JPY")
            rows = {r.instrument: r for r in await rig.manager.round()}
            assert (rows["EUR_USD"].verdict, rows["USD_JPY"].reasons) == ("enter", ("max_total_positions_reached",))
    run(story())


def test_a_ticket_of_a_pair_that_left_the_roster_still_ends(bench):
    async def story():
        async with managed(bench) as rig:
            await rig.entered()
            gone = Rig(rig.desk, clock=rig.clock)
            gone.settings = gone.settings.model_copy(update={"hotband_pairs": ("USD_JPY",)})
            gone.manager = gone.another()
            assert (await gone.round()).reasons[0] == "not_in_roster"
            rig.clock.ahead_ms = 1_801_000
            assert (await gone.round()).verdict == "exit"
            await gone.settled()
            assert await gone.units() == 0
    run(story())


# ---- the loop

def test_a_gate_wakes_the_loop_and_stop_ends_it(bench):
    async def story():
        async with managed(bench, loop_s=30) as rig:
            stop, task = asyncio.Event(), None
            task = asyncio.create_task(rig.manager.run(stop))
            async def alive(): return await rig.shown("desk:loop")
            await eventually(alive)
            await asyncio.sleep(0.2)
            await rig.gate()
            async def filled(): return await rig.units() > 0
            await eventually(filled, 3)
            stop.set()
            await asyncio.wait_for(task, 2)
    run(story())


def test_the_loop_survives_a_ledger_that_is_away_and_says_so(bench, monkeypatch):
    async def story():
        async with managed(bench, loop_s=0.1) as rig:
            real = module.read_picture
            async def down(*_): raise LedgerDown("gone.", "")
            monkeypatch.setattr(module, "read_picture", down)
            stop = asyncio.Event()
            task = asyncio.create_task(rig.manager.run(stop))
            async def said(): return (await rig.shown("desk:loop") or {}).get("error") == "ledger_down"
            await eventually(said)
            monkeypatch.setattr(module, "read_picture", real)
            async def works(): return "verdicts" in (await rig.shown("desk:loop") or {})
            await eventually(works)
            stop.set()
            await asyncio.wait_for(task, 2)
    run(story())
