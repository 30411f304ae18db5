"""Promises of the manager that no other test holds: against a real ledger, Valkey and sandbox, over restarts."""
import asyncio
import json
import signal
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent))
from execution_rig import audits, eventually, run
from manager_rig import ALWAYS, managed

from deskbook.core.clock import to_ms
from deskbook.trading import manager as module
from deskbook.trading.controls import clear
from deskbook.trading.leases import holding, take_lease
from deskbook.trading.profile import load_profile

BUDGET = {"nav_risk_frac": "0.002", "position_frac": "0.05"}  # small entries, room for many


def test_the_cooldown_is_in_the_ledger_and_outlives_a_restart(bench):
    async def story():
        async with managed(bench, entry_cooldown_s=60, **BUDGET) as rig:
            await rig.entered(asof_ms=rig.clock() - 60_000)
            rig.manager = rig.another()
            await rig.gate()
            assert (await rig.round()).reasons == ("cooldown_active",)
            rig.clock.ahead_ms = 61_000
            await rig.gate(asof_ms=rig.clock() - 1_000)
            assert (await rig.round()).verdict == "enter"
    run(story())


def test_entries_are_stacked_up_to_their_limit_and_no_further(bench):
    async def story():
        async with managed(bench, max_positions_per_pair=2, **BUDGET) as rig:
            for i in (3, 2):
                await rig.entered(asof_ms=rig.clock() - i*10_000)
            held = await rig.units()
            rig.manager = rig.another()
            await rig.gate()
            assert (await rig.round()).reasons == ("max_stack_limit_reached",)
            assert len((await rig.shown("trade:stack:EUR_USD"))["tickets"]) == 2 and await rig.units() == held
    run(story())


def test_an_order_is_filled_whole_or_not_at_all_and_an_exit_that_was_not_is_sent_again(bench):
    async def story():
        async with managed(bench) as rig:
            bench.fault("partial_fill", "orders.create", {"times": 1}, fill_frac=0.4)
            assert await rig.entered() == 0, "half a position was never decided on"
            assert (await rig.round()).reasons == ("duplicate_signal",), "and the gate has had its entry"
            held = await rig.entered(asof_ms=rig.clock())
            assert held > 0
            rig.clock.ahead_ms = 1_801_000
            bench.fault("partial_fill", "orders.create", {"times": 1}, fill_frac=0.5)
            assert (await rig.round()).verdict == "exit"
            await rig.settled()
            assert await rig.units() == held
            rig.clock.ahead_ms += 5_000
            assert (await rig.round()).verdict == "exit", "under a new key"
            await rig.settled()
            assert await rig.units() == 0 and bench.problems() == []
    run(story())


def test_another_profile_at_a_restart_keeps_the_holds_and_brings_its_own_exits(bench):
    async def story():
        async with managed(bench) as rig:
            await rig.entered()
            (row,) = await rig.rows("verdict = 'enter'")
            rig.profile = load_profile(ALWAYS.replace("session", "exit: {max_hold_minutes: 1}, session"))
            rig.manager = rig.another()
            rig.clock.ahead_ms = 120_000
            assert (await rig.round()).verdict == "hold", "a ticket keeps the time it was given"
            assert (await rig.shown("trade:stack:EUR_USD"))["tickets"][0]["hold_until_ms"] == row["inputs"]["plan"]["hold_until_ms"]
            rig.profile = load_profile(ALWAYS.replace("session", "stop_loss_pct: 0.00001, session"))
            rig.manager = rig.another()
            assert (await rig.round()).reasons == ("stop_loss_hit",)
    run(story())


def test_a_hold_that_ends_on_a_weekend_is_closed_by_the_wall_clock(bench):
    """Not by candles or gates, of which there are none then; the session does not keep it, the venue may."""
    async def story():
        async with managed(bench, "global: {bundles: {MB003: {}}}\n") as rig:
            thursday = to_ms("2026-01-08T10:00:00Z")
            rig.clock.ahead_ms = thursday - (rig.clock() - rig.clock.ahead_ms)
            await rig.entered(asof_ms=rig.clock() - 1_000, bundle_hits=[{"id": "MB003", "action": "promote", "score": 0.9, "hold_minutes": 3*1440}])
            rig.clock.ahead_ms += 3*86_400_000 - 60_000  # Sunday, a minute before
            kept = await rig.round()
            assert (kept.verdict, "session_closed" in kept.reasons) == ("hold", True)
            rig.clock.ahead_ms += 61_000
            assert (await rig.round()).reasons == ("hold_expiry",)
            await rig.settled()
            assert await rig.units() == 0
    run(story())


def test_what_is_gone_between_reading_and_deciding_is_decided_once(bench, monkeypatch):
    async def story():
        async with managed(bench) as rig:
            await rig.gate()
            remember = module.remember
            async def flushed(*told):
                await rig.flush()
                await remember(*told)
            monkeypatch.setattr(module, "remember", flushed)
            row = await rig.round()
            assert row.verdict == "enter"
            monkeypatch.undo()
            await rig.settled()
            assert await rig.units() == 0 and bench.created() == [], "the kill switch went with the flush, and what is missing is engaged"
            await clear(rig.desk.kill, "test", "test")
            await rig.live.set({"gate:last:EUR_USD": json.dumps(row.inputs["gate"])})
            assert (await rig.round()).verdict != "enter" and len(await rig.rows("verdict = 'enter'")) == 1
    run(story())


# ---- a process that is stopped between its decision and its order

STOPPED = """
import asyncio, json, sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}]
from execution_rig import QUICK
from manager_rig import ALWAYS
from deskbook.app.workers import Supervised, Supervision
from deskbook.core.settings import Settings
from deskbook.stores.live import open_live
from deskbook.trading.desk import AccountSpec, open_desk
from deskbook.trading.manager import Manager
from deskbook.trading.leases import holding, take_lease
from deskbook.trading.profile import load_profile

async def main(told):
    live, home = open_live(told["valkey"], told["prefix"]), Path(told["home"])
    settings = Settings(home=home, kill_switch_boot="keep", hotband_pairs=("EUR_USD",), entry_cooldown_s=0, max_positions_per_pair=1)
    spec = AccountSpec(told["account"], "sandbox", told["venue_account"], told["token"], told["url"])
    async with open_desk(told["account"], settings, ledger_url=told["ledger"], live=live, spec=spec, config=QUICK) as desk:
        manager, stop = Manager(desk, live, load_profile(ALWAYS), settings), asyncio.Event()
        write = manager.write
        async def slowly(decided):
            rows = await write(decided)
            if any(p.intents for _, p in decided) and not (home / "decided").exists():
                (home / "decided").write_text("now")
                time.sleep(0.3) # the parent stops us here
            return rows
        manager.write = slowly
        await Supervised("manager", manager.run, desk.ledger, desk.account, "child:1:aa", how=Supervision(lease_ttl_s=1.5, poll_s=0.1)).run(stop)

asyncio.run(main(json.loads(sys.argv[1])))
"""


def test_a_process_stopped_between_decision_and_order_adds_none_to_those_of_its_successor(bench):
    async def story():
        async with managed(bench, max_positions_per_pair=1) as rig:
            told = {"valkey": bench.valkey_url, "prefix": bench.prefix, "home": str(bench.home), "account": bench.account, "venue_account": bench.venue_account,
                    "token": bench.sandbox.token, "url": bench.sandbox.url, "ledger": bench.ledger_url}
            await rig.gate(asof_ms=rig.clock() - 60_000)
            child = await asyncio.create_subprocess_exec(sys.executable, "-c", STOPPED.format(tests=str(Path(__file__).resolve().parent)), json.dumps(told))
            try:
                await eventually((bench.home / "decided").exists, 40)
                child.send_signal(signal.SIGSTOP)
                name, mine = f"worker:manager:{bench.account}", None
                while mine is None:
                    mine = await take_lease(rig.desk.ledger, name, "parent:2:bb", 30.0)
                    await asyncio.sleep(0.1)
                holding.set(mine)
                await rig.gate()
                assert (await rig.round()).verdict == "enter"
                await rig.settled()
                held = await rig.units()
                child.send_signal(signal.SIGCONT)
                async def refused(): return [a for a in await audits(rig.desk, "order.refused") if "lease_lost" in a["metadata"]["reasons"]]
                assert len(await eventually(refused, 20)) == 1
                await asyncio.sleep(1.0)
                assert len(await rig.orders()) == 1 and await rig.units() == held and child.returncode is None
            finally:
                child.kill()
                await child.wait()
    run(story())
