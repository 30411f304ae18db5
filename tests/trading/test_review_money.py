"""The ledger tells the truth about money: transfers, interest, holes in the log, errors that nobody foresaw."""
import asyncio
import itertools
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from execution_rig import Bench, alerts, eventually, row, working_day

from deskbook.trading import recorder
from deskbook.trading.book import Overtaken
from deskbook.trading.marks import write_equity
from deskbook.trading.recorder import record
from deskbook.venues.sandbox.process import sandbox_process

numbers = itertools.count(7001)
D = Decimal


@pytest.fixture(scope="module")
def sandbox():
    with sandbox_process(clock="virtual", start=working_day()) as s:
        s.control.market("price", "EUR_USD", bid="1.08410", ask="1.08424")
        yield s


@pytest.fixture
def bench(sandbox, ledger, valkey_url, tmp_path):
    b = Bench(sandbox, ledger, valkey_url, tmp_path, next(numbers))
    yield b
    sandbox.control.clear_faults()


def run(story):
    return asyncio.run(asyncio.wait_for(story, 60))


async def risk(desk):
    return (await desk.ledger.rows("SELECT * FROM account_risk_state WHERE account = %s", (desk.account,)))[0]


# ---- transfers

@pytest.mark.parametrize("amount", ["40000", "-40000"])
def test_money_paid_in_or_out_is_neither_gain_nor_loss(bench, amount):
    """A withdrawal of 40 % trips no breaker; after a deposit the next small loss is no drawdown of 28 %."""
    async def story():
        async with bench.desk(wide=False) as desk:
            async def counted():
                return (await risk(desk))["day_start_equity"] == 100_000 + D(amount)

            bench.sandbox.control.transfer(bench.venue_account, amount)
            await eventually(counted)
            for _ in range(3):  # looks after it
                desk.deps.signals.equity.set()
                await asyncio.sleep(0.6)
            after = await risk(desk)
            assert (after["status"], after["peak_equity"], after["day_start_equity"]) == ("ok", *[100_000 + D(amount)] * 2)
            assert (await row(desk))["cash_balance"] == 100_000 + D(amount)
            assert (await desk.reconcile()).clean
            assert await alerts(desk) == []
    run(story())


@pytest.mark.parametrize("amount", ["40000", "-40000"])
def test_balance_and_log_may_be_read_in_any_order(bench, amount):
    """The balance knows of the transfer before the ledger's cursor has passed it, or an old balance comes after that."""
    async def story():
        async with bench.desk(run=False, wide=False) as desk:
            await desk.reconcile()
            before = await desk.venue.fetch_balance()
            bench.sandbox.control.transfer(bench.venue_account, amount)
            after, since = await desk.venue.fetch_balance(), (await row(desk))["fill_cursor"]
            state, _ = await write_equity(desk.deps, after, "test")  # the balance first
            assert (state.status, state.peak_equity) == ("ok", 100_000)
            await record(desk.deps, None, [], await desk.venue.fetch_fills(since), since)
            for balance in (before, after):  # the old balance after the log
                state, _ = await write_equity(desk.deps, balance, "test")
                assert (state.status, state.peak_equity, state.day_start_equity) == ("ok", *[100_000 + D(amount)] * 2)
    run(story())


def test_a_page_that_is_read_twice_counts_its_money_once(bench):
    async def story():
        async with bench.desk(run=False) as desk:
            await desk.reconcile()
            since = (await row(desk))["fill_cursor"]
            bench.sandbox.control.transfer(bench.venue_account, "500")
            page = await desk.venue.fetch_fills(since)
            await record(desk.deps, None, [], page, since)
            with pytest.raises(Overtaken):
                await record(desk.deps, None, [], page, since)
            assert ((await row(desk))["cash_balance"], (await risk(desk))["peak_equity"]) == (100_500, 100_500)
            empty = await desk.venue.fetch_fills(page.cursor)
            await record(desk.deps, None, [], empty, page.cursor)
            assert ((await row(desk))["cash_balance"], (await row(desk))["fill_cursor"]) == (100_500, page.cursor)
    run(story())


def test_a_transfer_in_a_transaction_that_fails_is_not_counted(bench, monkeypatch):
    """Cursor, cash and risk move together or not at all."""
    async def story():
        async with bench.desk(run=False) as desk:
            await desk.reconcile()
            since = (await row(desk))["fill_cursor"]
            bench.sandbox.control.transfer(bench.venue_account, "-500")
            page = replace(await desk.venue.fetch_fills(since), missing=("5",))

            async def broken(*_):
                raise psycopg.errors.DeadlockDetected("the last statement")
            with monkeypatch.context() as m:
                m.setattr(recorder, "report_missing", broken)
                with pytest.raises(psycopg.Error):
                    await record(desk.deps, None, [], page, since)
            account, state = await row(desk), await risk(desk)
            assert (account["fill_cursor"], account["cash_balance"], state["peak_equity"]) == (since, 100_000, 100_000)
    run(story())


# ---- interest

def test_interest_is_written_to_the_position_that_paid_it(ledger, valkey_url, tmp_path):
    with sandbox_process(clock="virtual", start=working_day().replace("T10:", "T21:")) as venue:
        bench = Bench(venue, ledger, valkey_url, tmp_path, next(numbers))

        async def story():
            async with bench.desk() as desk:
                await desk.wait((await desk.submit(bench.intent(100_000)))[0].id)
                await desk.wait((await desk.submit(bench.intent(-50_000, instrument="USD_JPY")))[0].id)
                venue.control.advance(2*3600)
                assert (await desk.reconcile()).clean
                told = bench.http.get("/transactions/sinceid", params={"id": "1"}).json()["transactions"]
                paid = {p["instrument"]: D(p["financing"]) for t in told if t["type"] == "DAILY_FINANCING" for p in t["positionFinancings"]}
                found = await desk.ledger.rows("SELECT instrument, financing FROM positions WHERE account = %s", (desk.account,))
                assert {r["instrument"]: r["financing"] for r in found} == paid and len(paid) == 2 and all(paid.values())
                await desk.close("EUR_USD")
                found = await desk.ledger.rows("SELECT financing FROM positions WHERE account = %s AND instrument = 'EUR_USD'", (desk.account,))
                assert found[0]["financing"] == paid["EUR_USD"], "a later fill forgets nothing"
        run(story())
