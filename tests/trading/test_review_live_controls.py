"""What a review of the live desk found in its controls: a boot that nobody hears fail, a spare that stops the desk it waits for, clocks."""
import asyncio
import contextlib
import itertools
import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from execution_rig import Bench, eventually, working_day
from risk_accounts import NOW, order, portfolio

from deskbook.core.clock import DAY_MS
from deskbook.core.files import write_json
from deskbook.stores.live import open_live
from deskbook.trading.book import Deps
from deskbook.trading.controls import KillSwitch, boot_kill, clear, kill_state
from deskbook.trading.desk import AccountSpec, open_desk, running
from deskbook.trading.marks import Marks
from deskbook.trading.risk import RiskPolicy, evaluate
from deskbook.venues.sandbox.process import sandbox_process

numbers = itertools.count(7_601)


@pytest.fixture(scope="module")
def sandbox():
    with sandbox_process(clock="virtual", start=working_day()) as s:
        yield s


@pytest.fixture
def bench(sandbox, ledger, valkey_url, tmp_path):
    yield Bench(sandbox, ledger, valkey_url, tmp_path, next(numbers))
    sandbox.control.clear_faults()


# ---- at boot

def test_a_boot_that_reaches_only_one_place_says_so(tmp_path, caplog):
    async def story():
        away = open_live("redis://127.0.0.1:1/0", "x:", 0.2)
        switch = KillSwitch(tmp_path / "desk" / "kill_switch.json", away)
        write_json(switch.file, {"engaged": False})
        with caplog.at_level(logging.WARNING):
            state = await boot_kill(switch, "engage")
        await away.aclose()
        return state
    assert asyncio.run(story()).engaged
    (said,) = [r for r in caplog.records if "boot" in r.getMessage()]
    assert said.levelno >= logging.ERROR and "127.0.0.1:1" in said.getMessage()


def test_a_spare_that_waits_for_the_lease_leaves_the_kill_switch_alone(bench):
    async def story():
        async with bench.desk() as first, bench.desk(run=False, cleared=False) as spare:
            spare.settings = spare.settings.model_copy(update={"kill_switch_boot": "engage"})
            async with contextlib.AsyncExitStack() as running_spare:
                await running_spare.enter_async_context(running(spare))
                await asyncio.sleep(0.5)
                assert spare.lease is None and not (await kill_state(first.kill)).engaged
                assert (await first.wait((await first.submit(bench.intent(100)))[0].id)).state == "filled"
                await first.ledger.rows("UPDATE leases SET owner = 'nobody', expires_at = clock_timestamp() WHERE name = %s", (f"sender:{first.account}",))
                async def taken(): return first.lease is not None or spare.lease is not None
                await eventually(taken)
    asyncio.run(asyncio.wait_for(story(), 60))


def test_a_desk_is_halted_when_it_gets_the_lease_and_only_then(bench):
    async def story():
        async with bench.desk(run=False) as desk:
            desk.settings = desk.settings.model_copy(update={"kill_switch_boot": "engage"})
            async with running(desk):
                assert await desk.ready(20)
                assert (await kill_state(desk.kill)).by == "boot"
                await clear(desk.kill, "test", "test")
                await desk.ledger.rows("UPDATE leases SET fencing_token = fencing_token + 1 WHERE name = %s", (f"sender:{desk.account}",))
                async def again(): return desk.lease is not None and desk.lease.token > 2
                await desk.ledger.rows("UPDATE leases SET expires_at = clock_timestamp() WHERE name = %s", (f"sender:{desk.account}",))
                await eventually(again)
                assert not (await kill_state(desk.kill)).engaged, "a lease that was lost for a moment is no boot"
    asyncio.run(asyncio.wait_for(story(), 60))


# ---- clocks

@pytest.mark.parametrize("ahead_ms, reasons", [(0, ()), (5_000, ()), (5_001, ("equity_stale",)), (DAY_MS, ("equity_stale",))])
def test_an_equity_of_the_future_is_not_fresh(ahead_ms, reasons):
    assert evaluate(RiskPolicy(), None, replace(portfolio(), equity_ms=NOW + ahead_ms), order(1)).reasons == reasons


def test_the_venue_s_clock_is_compared_with_the_desk_s_own():
    class Venue:
        name = "oanda"
        async def fetch_time_ms(self): return NOW
    async def story():
        marks = Marks(Deps("paper", None, Venue(), clock=lambda: NOW))
        await marks.see_clock()
        return marks.watch
    watch = asyncio.run(story())
    assert watch.status == "ok" and abs(watch.offset.offset_ms) < 100


# ---- settings that nobody read

def test_the_desk_reconciles_as_often_as_the_environment_says(bench, tmp_path):
    async def story():
        async with bench.desk(run=False) as desk:
            settings = desk.settings.model_copy(update={"reconcile_s": 7.0})
            spec = AccountSpec(bench.account, "sandbox", bench.venue_account, bench.sandbox.token, bench.sandbox.url)
            async with open_desk(bench.account, settings, ledger_url=bench.ledger_url, live=desk.kill.live, spec=spec) as other:
                return other.deps.config.reconcile_every_s
    assert asyncio.run(asyncio.wait_for(story(), 60)) == 7.0
