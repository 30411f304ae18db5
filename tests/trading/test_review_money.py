"""The ledger tells the truth about money: transfers, interest, holes in the log, errors that nobody foresaw."""
import asyncio
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from execution_rig import QUICK, alerts, bench_before_the_day_ends, eventually, row, run

from deskbook.core.errors import BadInput, DataError
from deskbook.stores.ledger import LedgerDown
from deskbook.trading import marks, reconcile, recorder
from deskbook.trading.book import Deps, Overtaken, new_id
from deskbook.trading.desk import until_done
from deskbook.trading.leases import take_lease
from deskbook.trading.marks import write_equity
from deskbook.trading.orders import Intent, OrderRefused
from deskbook.trading.recorder import record
from deskbook.trading.risk import Portfolio, RiskPolicy, evaluate
from deskbook.venues.model import Instrument, Quote, Unreadable, VenueOrder

D = Decimal


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
    with bench_before_the_day_ends(ledger, valkey_url, tmp_path) as bench:
        async def story():
            async with bench.desk() as desk:
                await desk.wait((await desk.submit(bench.intent(100_000)))[0].id)
                await desk.wait((await desk.submit(bench.intent(-50_000, instrument="USD_JPY")))[0].id)
                bench.sandbox.control.advance(2*3600)
                assert (await desk.reconcile()).clean
                told = bench.http.get("/transactions/sinceid", params={"id": "1"}).json()["transactions"]
                paid = {p["instrument"]: D(p["financing"]) for t in told if t["type"] == "DAILY_FINANCING" for p in t["positionFinancings"]}
                found = await desk.ledger.rows("SELECT instrument, financing FROM positions WHERE account = %s", (desk.account,))
                assert {r["instrument"]: r["financing"] for r in found} == paid and len(paid) == 2 and all(paid.values())
                await desk.close("EUR_USD")
                found = await desk.ledger.rows("SELECT financing FROM positions WHERE account = %s AND instrument = 'EUR_USD'", (desk.account,))
                assert found[0]["financing"] == paid["EUR_USD"], "a later fill forgets nothing"
        run(story())


# ---- holes in the log

def hide(desk, monkeypatch, wanted, *paths):
    """The venue leaves one transaction out of what it shows under these paths."""
    ask, asked = desk.venue._get, []

    async def without(path, group="account", **params):
        asked.append((path, params))
        answer = await ask(path, group, **params)
        if path not in paths:
            return answer
        rows = [t for t in answer.body["transactions"] if t["id"] != wanted]
        return replace(answer, body={**answer.body, "transactions": rows})
    monkeypatch.setattr(desk.venue, "_get", without)
    return asked


def test_a_transaction_that_a_page_leaves_out_is_asked_for(bench, monkeypatch):
    async def story():
        async with bench.desk(run=False) as desk:
            await desk.reconcile()
            since = (await row(desk))["fill_cursor"]
            first, second = bench.external(1_000), bench.external(500)
            asked = hide(desk, monkeypatch, gone := first["orderFillTransaction"]["id"], "transactions/sinceid")
            page = await desk.venue.fetch_fills(since)
            assert [f.fill_id for f in page.fills] == [gone, second["orderFillTransaction"]["id"]] and page.missing == ()
            assert [p for path, p in asked if path.endswith("idrange")] == [{"from": gone, "to": gone}], "once, and only for it"
    run(story())


def test_a_hole_that_stays_is_passed_over_aloud_and_hides_no_order(bench, monkeypatch):
    async def story():
        async with bench.desk() as desk:
            since = (await row(desk))["fill_cursor"]
            order = (await desk.submit(bench.intent(1_000)))[0]
            order = await desk.wait(order.id)
            made = bench.external(700)
            gone = made["orderFillTransaction"]["id"]
            hide(desk, monkeypatch, gone, "transactions/sinceid", "transactions/idrange")
            bench.external(300)  # the log goes on after the hole
            assert (await desk.venue.fetch_fills(since)).missing == (gone,)
            assert isinstance(await desk.venue.find_order("nobody", since), Unreadable), "it may be in the hole"

            async def told():
                return await alerts(desk, f"log_hole:{desk.account}")
            (alert,) = await eventually(told)
            assert gone in alert["message"]
            assert [m.what for m in (await desk.reconcile()).mismatches] == ["position"], "the fill in the hole is missed"
            assert (await row(desk))["entries_frozen"]
    run(story())


# ---- what makes no sense

def test_a_figure_that_makes_no_sense_stops_entries_and_not_the_desk(bench, monkeypatch):
    """Each worker in turn meets what it cannot reckon with; reductions go on, and the worker gets well by itself."""
    real = {"look": marks.look, "record": reconcile.record, "one_pass": reconcile.one_pass}
    hit = []

    async def frozen(desk, name):
        return hit.count(name) >= 2 and (await row(desk))["entries_frozen"]

    def senseless(name):
        async def broken(*args, **more):
            if name == "record" and args[3] is None:
                return await real[name](*args, **more)  # only pages of the log
            hit.append(name)
            raise (BadInput if name == "look" else DataError)(f"{name} is not a number.")
        return broken

    async def story():
        async with bench.desk(config=replace(QUICK, reconcile_every_s=0.3, equity_every_s=0.6)) as desk:
            await desk.wait((await desk.submit(bench.intent(10_000)))[0].id)
            for where, name in ((marks, "look"), (reconcile, "record"), (reconcile, "one_pass")):
                with monkeypatch.context() as m:
                    m.setattr(where, name, senseless(name))
                    bench.sandbox.control.transfer(bench.venue_account, "1")
                    while not await frozen(desk, name):
                        await asyncio.sleep(0.03)
                    assert f"{name} is not a number" in (await alerts(desk, f"manual:{desk.account}"))[0]["message"]
                    with pytest.raises(OrderRefused, match="entries_frozen"):
                        await desk.submit(bench.intent(1_000))
                    exit_ = (await desk.submit(bench.intent(-1_000, reduce_only=True, kind="exit")))[0]
                    assert (await desk.wait(exit_.id)).state == "filled", name
                assert desk.lease is not None and await eventually(lambda: desk.deps.signals.ready.is_set())
                await desk.unfreeze("lead", "understood", accept=True)
            assert (await desk.wait((await desk.submit(bench.intent(1_000)))[0].id)).state == "filled"

            async def agreed():
                return not bench.problems()
            await eventually(agreed)
            assert (await row(desk))["cash_balance"] == (await desk.venue.fetch_balance()).balance
    run(story())


# ---- two who adopt at once

def test_an_order_that_two_processes_adopt_at_once_alarms_nobody(bench, monkeypatch):
    async def story():
        async with bench.desk(run=False) as one, bench.desk(run=False) as two:
            await one.reconcile()
            bench.external(1_000, type="LIMIT", price="1.05000", timeInForce="GTC")
            (shown,) = await one.venue.fetch_open_orders()
            read, both = recorder.read_for_record, asyncio.Barrier(2)
            calls = []

            async def read_together(*args):
                got = await read(*args)
                calls.append(1)
                if len(calls) <= 2:
                    await both.wait()  # both have read that it is nobody's
                return got
            monkeypatch.setattr(recorder, "read_for_record", read_together)
            lease = await take_lease(one.ledger, "test", "me", 30)
            writers = [recorder.Recorder(desk.deps, lease) for desk in (one, two)]
            assert await asyncio.gather(*(w.write([recorder.Report(recorder.Told(shown))]) for w in writers)) == [True, True]
            assert len(calls) == 3, "one of them read it again"
            assert [o["kind"] for o in await one.ledger.rows("SELECT kind FROM orders WHERE account = %s", (one.account,))] == ["external"]
            assert await alerts(one, "unwritable:%") == []
    run(story())


# ---- the money of fills, and stopping

def test_cash_follows_the_cursor_once_whoever_reads_the_page_first(bench):
    """The same page is recorded by two readers; the balance of the venue is the sum."""
    async def story():
        async with bench.desk(run=False) as desk:
            await desk.reconcile()
            for units in (20_000, -20_000):
                since = (await row(desk))["fill_cursor"]
                bench.external(units)
                page = await desk.venue.fetch_fills(since)
                said = await asyncio.gather(*(record(desk.deps, None, [], page, since) for _ in range(3)), return_exceptions=True)
                assert sorted(type(x).__name__ for x in said) == ["Overtaken", "Overtaken", "Recorded"]
                account = await row(desk)
                assert (account["cash_balance"], account["fill_cursor"]) == ((await desk.venue.fetch_balance()).balance, page.cursor)
            assert account["cash_balance"] < 100_000, "the spread was paid"
    run(story())


def test_who_waits_for_the_ledger_stops_when_asked_to():
    async def story():
        stop, tries = asyncio.Event(), []

        async def away(deps):
            tries.append(1)
            raise LedgerDown("away")
        waiting = asyncio.create_task(until_done(stop, away, Deps("a", None, None, QUICK)))
        while len(tries) < 3:
            await asyncio.sleep(0.01)
        stop.set()
        assert await asyncio.wait_for(waiting, 1) is False
        before = len(tries)
        assert not await until_done(stop, away, Deps("a", None, None, QUICK)) and len(tries) == before
    run(story())


# ---- margin

def test_margin_of_a_fill_that_the_venue_s_figure_does_not_know_is_not_free():
    """The fill is in the positions, and the free margin was read before it."""
    wide = RiskPolicy(**dict.fromkeys(("max_total_exposure_frac", "max_instrument_exposure_frac", "max_currency_exposure_frac", "max_leverage"), D(1000)))
    eur = Instrument("EUR_USD", "EUR", "USD", D("0.00001"), D(1), D(1), D(100_000_000), D("0.02"))
    quote = Quote("EUR_USD", D("1.1"), D("1.1"), 1000)
    account = Portfolio("a", 1000, D(100_000), 1000, margin_available=D(100_000), quotes={"EUR_USD": quote}, instruments={"EUR_USD": eur})
    ask = Intent("a", "EUR_USD", D(1_500_000), idempotency_key="k")
    for held, told, reasons in ((0, 100_000, ()), (2_000_000, 56_000, ("margin_headroom",)), (2_000_000, 100_000, ("margin_headroom",)), (1_000_000, 100_000, ())):
        assert evaluate(wide, None, replace(account, units={"EUR_USD": D(held)}, margin_available=D(told)), ask).reasons == reasons, (held, told)


def test_a_stop_that_replaced_another_is_adopted_beside_it(bench):
    """Both carry the name of our entry's stop; a client id stands in the ledger once."""
    async def story():
        async with bench.desk(run=False) as desk:
            await desk.reconcile()
            await desk.ledger.rows("""INSERT INTO orders (id, account, venue, kind, instrument, side, type, units, time_in_force, client_order_id, idempotency_key, request_fingerprint)
                VALUES (%s, %s, 'oanda', 'entry', 'EUR_USD', 'buy', 'market', 1000, 'FOK', %s, 'k', '')""", (new_id(), desk.account, "db-entry"))
            for there in ("9001", "9002"):
                stop = VenueOrder(there, "db-entry-sl", "", D(0), "stop", "open", price=D("1.05"), time_in_force="GTC")
                await record(desk.deps, None, [recorder.Report(recorder.Told(stop))])
            found = await desk.ledger.rows("SELECT kind, client_order_id FROM orders WHERE account = %s AND kind <> 'entry' ORDER BY venue_order_id", (desk.account,))
            assert [(o["kind"], o["client_order_id"]) for o in found] == [("protective", "db-entry-sl"), ("protective", "ext-9002")]
    run(story())
