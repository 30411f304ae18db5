"""Ledger and venue, compared: what is adopted, what stops entries, what a failed read may not do."""
import asyncio
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from execution_rig import QUICK, alerts, audits, bench_before_the_day_ends, eventually, row, run

from deskbook.core.errors import Refused
from deskbook.trading.book import OrderRow, new_id
from deskbook.trading.desk import running
from deskbook.trading.orders import TERMINAL, OrderRefused
from deskbook.trading.reconcile import LedgerPicture, NotQuiet, VenuePicture, diff_account, one_pass
from deskbook.venues.errors import VenueError
from deskbook.venues.model import Balance, FillPage, VenueOrder, VenuePosition



async def tamper(bench, sql, *params):
    """Change the ledger behind the desk's back, as its owner; the desk goes on meanwhile, for it may hold a lock that this waits for."""
    async with await psycopg.AsyncConnection.connect(bench.ledger_url, autocommit=True) as db:
        return (await db.execute(sql, params)).rowcount


# ---- the comparison itself

def picture(cash="100", units=None, orders=(), cursor="9", end="9"):
    balance = Balance("USD", Decimal(cash), Decimal(cash), Decimal(0), Decimal(0), Decimal(cash), cursor, 0)
    return VenuePicture(balance, {k: VenuePosition(k, Decimal(v), Decimal(1)) for k, v in (units or {}).items()}, orders, FillPage((), end))


def resting(state, there="7"):
    return OrderRow(new_id(), "a", "oanda", "entry", "EUR_USD", "buy", "limit", Decimal(5), "GTC", "db-x", "k", "f", state=state, venue_order_id=there)


@pytest.mark.parametrize("state", ["created", "submitting", "unknown"])
def test_an_order_on_its_way_differs_from_nothing(state):
    order = resting(state, None)
    for there in ([], [VenueOrder("7", "db-x", "EUR_USD", Decimal(5), "limit", "open")]):
        assert diff_account(LedgerPicture({}, [order], Decimal(100)), picture(orders=there)) == []


@pytest.mark.parametrize(("state", "there", "found"), [
    ("open", True, []), ("partially_filled", True, []), ("cancel_pending", True, []), ("open", False, ["order_missing"]), ("cancel_pending", False, ["order_missing"]),
    ("filled", True, ["order_alive"]), ("rejected", True, ["order_alive"]), ("expired", False, []), ("filled", False, [])])
def test_an_order_that_rests_must_be_there_and_one_that_ended_must_not(state, there, found):
    venue = picture(orders=[VenueOrder("7", "db-x", "EUR_USD", Decimal(5), "limit", "open")] if there else [])
    assert [m.what for m in diff_account(LedgerPicture({}, [resting(state)], Decimal(100)), venue)] == found


@pytest.mark.parametrize(("ours", "theirs", "found"), [({"E": 1}, {"E": "1.0"}, 0), ({"E": 1}, {"E": -1}, 1), ({}, {"E": 0}, 0), ({"E": 1}, {}, 1), ({}, {"E": 5, "U": 1}, 2)])
def test_positions(ours, theirs, found):
    assert len(diff_account(LedgerPicture({k: Decimal(v) for k, v in ours.items()}, [], Decimal(100)), picture(units=theirs))) == found


@pytest.mark.parametrize(("ours", "theirs", "found"), [("100", "100.01", []), ("100", "100.02", ["balance"]), ("100", "99.98", ["balance"]), (None, "5", [])])
def test_cash(ours, theirs, found):
    assert [m.what for m in diff_account(LedgerPicture({}, [], ours and Decimal(ours)), picture(theirs))] == found


# ---- the first contact

def test_what_is_there_at_the_first_contact_is_adopted_and_needs_a_person(bench):
    bench.external(700)
    bench.external(300, "USD_JPY", type="LIMIT", price="140.000", timeInForce="GTC")

    async def story():
        async with bench.desk() as desk:
            assert [(h.instrument, h.units, h.average_price) for h in await desk.positions()] == [("EUR_USD", 700, Decimal("1.08424"))]
            assert {(o.kind, o.instrument, o.state) for o in await desk.orders()} == {("external", "EUR_USD", "filled"), ("external", "USD_JPY", "open")}
            account = await row(desk)
            assert account["entries_frozen"] and account["freeze_reason"].startswith("external:")
            with pytest.raises(OrderRefused) as e:
                await desk.submit(bench.intent(1_000))
            assert e.value.reasons == ("entries_frozen",)
            assert (await desk.reconcile()).clean
            assert (await row(desk))["entries_frozen"]  # a clean pass does not lift this
            await desk.unfreeze("anna", "my own position")
            assert (await alerts(desk, "external:%")) == []
            assert (await desk.wait((await desk.submit(bench.intent(1_000)))[0].id)).state == "filled"
            assert [h.units for h in await desk.positions()] == [1_700]
        assert bench.venue().positions == bench.ledger().positions
    run(story())


# ---- orders of others

def test_an_order_of_somebody_else_is_adopted_and_never_closed(bench):
    async def story():
        async with bench.desk() as desk:
            bench.external(500)
            there = bench.external(-200, type="LIMIT", price="1.20000", timeInForce="GTC")["orderCreateTransaction"]["id"]
            found = await desk.reconcile()
            assert found.clean
            assert {(o.kind, o.units, o.state) for o in await desk.orders()} == {("external", 500, "filled"), ("external", 200, "open")}
            assert [h.units for h in await desk.positions()] == [500]
            assert (await alerts(desk, "external:%"))[0]["severity"] == "high" and (await row(desk))["entries_frozen"]
            await asyncio.sleep(0.5)
            assert bench.venue().positions == {"EUR_USD": 500} and bench.venue().orders[there]["state"] == "open"
            # a person can cancel it
            (rest,) = await desk.orders(live=True)
            await desk.cancel(rest.id, "anna")
            assert (await desk.wait(rest.id, 20, TERMINAL)).state == "cancelled"
        assert bench.problems() == []
    run(story())


def test_the_same_client_id_twice_at_the_venue_is_a_double_and_not_ours(bench):
    async def story():
        async with bench.desk() as desk:
            done = await desk.wait((await desk.submit(bench.intent(1_000)))[0].id)
            bench.external(1_000, clientExtensions={"id": done.client_order_id})
            assert (await desk.reconcile()).clean
            (double,) = [o for o in await desk.orders() if o.kind == "external"]
            assert (double.parent_order_id, double.reason, double.filled_units) == (done.id, "double", 1_000)
            assert (await desk.order(done.id)).filled_units == 1_000
            assert "exist twice" in (await alerts(desk, "external:%"))[0]["message"]
        assert bench.venue().positions == bench.ledger().positions == {"EUR_USD": 2_000}
    run(story())


# ---- drift

def test_drift_freezes_and_its_end_lifts_the_freeze(bench):
    async def story():
        async with bench.desk() as desk:
            await desk.wait((await desk.submit(bench.intent(1_000)))[0].id)
            await tamper(bench, "UPDATE positions SET units = 900 WHERE account = %s", bench.account)
            found = await desk.reconcile()
            assert [str(m) for m in found.mismatches] == ["position EUR_USD: 900 in the ledger, 1000 at the venue"]
            account = await row(desk)
            assert account["entries_frozen"] and account["freeze_reason"].startswith("drift: position EUR_USD")
            assert (await alerts(desk, "drift:%"))[0]["metadata"]["mismatches"]
            with pytest.raises(OrderRefused):
                await desk.submit(bench.intent(1_000))
            assert (await desk.wait((await desk.close("EUR_USD", Decimal(100))).id)).state == "filled"  # the way out stays open
            with pytest.raises(Refused):
                await desk.unfreeze("anna", "no idea")
            await tamper(bench, "UPDATE positions SET units = 900 WHERE account = %s", bench.account)
            assert (await desk.reconcile()).clean
            assert not (await row(desk))["entries_frozen"] and await alerts(desk, "drift:%") == []
            assert [a["action"] for a in await audits(desk, "account.unfreeze")] == ["account.unfreeze"]
    run(story())


def test_cash_that_differs_waits_for_a_person(bench):
    async def story():
        async with bench.desk() as desk:
            await desk.wait((await desk.submit(bench.intent(1_000)))[0].id)
            await desk.wait((await desk.close("EUR_USD")).id)
            assert (await desk.reconcile()).clean
            assert (await row(desk))["cash_balance"] == Decimal("99999.86")
            await tamper(bench, "UPDATE accounts SET cash_balance = cash_balance + 5 WHERE account = %s", bench.account)
            assert [m.what for m in (await desk.reconcile()).mismatches] == ["balance"]
            await tamper(bench, "UPDATE accounts SET cash_balance = cash_balance - 5 WHERE account = %s", bench.account)
            assert (await desk.reconcile()).clean
            assert (await row(desk))["freeze_reason"].startswith("balance:")
            await desk.unfreeze("anna", "a test")
            account = await row(desk)
            assert (account["entries_frozen"], account["cash_balance"]) == (False, Decimal("99999.86"))
    run(story())


def test_the_cash_of_many_round_trips_is_the_venues_to_the_cent(bench):
    async def story():
        async with bench.desk() as desk:
            for i, units in enumerate((7_000, -3_000, -9_000, 2_000, 3_001, -1)):
                await desk.wait((await desk.submit(bench.intent(units, instrument="USD_JPY" if i % 2 else "EUR_USD")))[0].id)
            found = await desk.reconcile()
            assert found.clean and abs(found.picture.cash - found.balance.balance) < Decimal("0.0001")
        assert bench.problems() == []
    run(story())


def test_an_order_that_the_ledger_buried_and_the_venue_has(bench):
    """A venue that shows an order only after its absence was proven: the order is alive, and somebody must look."""
    async def story():
        async with bench.desk() as desk:
            (order,) = await desk.submit(bench.intent(1_000, type="limit", price="1.05", time_in_force="GTC"))
            await desk.wait(order.id)
            await tamper(bench, "UPDATE orders SET state = 'expired', version = version + 1 WHERE id = %s", order.id)
            found = await desk.reconcile()
            assert [m.what for m in found.mismatches] == ["order_alive"]
            assert (await row(desk))["entries_frozen"]
    run(story())


def test_a_fill_of_an_order_that_was_taken_for_dead_counts_and_calls_a_person(bench):
    async def story():
        async with bench.desk() as desk:
            (order,) = await desk.submit(bench.intent(1_000, type="limit", price="1.08000", time_in_force="GTC"))
            await desk.wait(order.id)
            await tamper(bench, "UPDATE orders SET state = 'expired', version = version + 1 WHERE id = %s", order.id)
            bench.sandbox.control.market("price", "EUR_USD", bid="1.07980", ask="1.07994")
            try:
                await eventually(lambda: bench.ledger().positions == {"EUR_USD": 1_000})
            finally:
                bench.sandbox.control.market("price", "EUR_USD", bid="1.08410", ask="1.08424")
            assert (await desk.order(order.id)).filled_units == 1_000
            assert "after they had ended" in (await alerts(desk, "external:%"))[0]["message"]
        assert bench.venue().positions == bench.ledger().positions
    run(story())


def test_a_ledger_that_is_older_than_the_venue_catches_up(bench):
    """As after restoring a copy: orders that were never sent are there, and so are fills that nobody wrote down."""
    async def story():
        async with bench.desk() as desk:
            before = await row(desk)
            done = await desk.wait((await desk.submit(bench.intent(1_000)))[0].id)
            await eventually(lambda: bench.ledger().positions == {"EUR_USD": 1_000})
        for sql in ("DELETE FROM fills", "DELETE FROM positions", "UPDATE orders SET state = 'created', version = 1, sent_at = NULL, filled_units = 0, venue_order_id = NULL",
                    "UPDATE outbox SET done_at = NULL, claimed_by = NULL, fencing_token = NULL",
                    f"UPDATE accounts SET fill_cursor = '{before['fill_cursor']}', cash_balance = {before['cash_balance']}"):
            await tamper(bench, sql)
        async with bench.desk(wide=False) as desk:
            again = await desk.wait(done.id, 20, TERMINAL)
            assert (again.state, again.filled_units) == ("filled", 1_000)
            assert (await desk.reconcile()).clean
        assert len(bench.created()) == 1
        assert bench.venue().positions == bench.ledger().positions
    run(story())


# ---- reads that fail, reads that lie

@pytest.mark.parametrize("route", ["positions.*", "orders.pending", "account.summary", "transactions.*"])
def test_a_failed_read_is_not_an_empty_account(bench, route):
    async def story():
        async with bench.desk() as desk:
            await desk.wait((await desk.submit(bench.intent(1_000)))[0].id)
            (rest,) = await desk.submit(bench.intent(1_000, type="limit", price="1.05", time_in_force="GTC"))
            await desk.wait(rest.id)
            bench.fault("html", route, {}, status=403)
            with pytest.raises(VenueError):
                await desk.reconcile()
            assert [h.units for h in await desk.positions()] == [1_000]
            assert (await desk.order(rest.id)).state == "open"
            assert not (await row(desk))["entries_frozen"]
    run(story())


def test_nothing_is_sent_until_the_boot_has_read_everything(bench):
    async def story():
        async with bench.desk():
            pass
        blind = bench.fault("html", "positions.*", {}, status=403)
        async with bench.desk(run=False, wide=False) as desk:
            (early,) = await desk.submit(bench.intent(1_000, expires_s=60))
            async with running(desk):
                assert not await desk.ready(1.0)
                with pytest.raises(OrderRefused) as e:
                    await desk.submit(bench.intent(1_000))
                assert e.value.reasons == ("not_reconciled",)
                assert (await desk.order(early.id)).state == "created" and bench.created() == []
                assert await eventually(lambda: any(a["fingerprint"].startswith("reconcile_failed") for a in bench.ledger().alerts), 20)
                bench.heal(blind)
                assert await desk.ready(20)
                assert (await desk.wait(early.id, 20)).state == "filled"
                assert await alerts(desk, "reconcile_failed:%") == []
        assert bench.problems() == []
    run(story())


@pytest.mark.parametrize("fault", ["late_visibility", "rest_lag"])
def test_a_venue_that_shows_yesterday_proves_no_drift(bench, fault):
    async def story():
        async with bench.desk() as desk:
            await desk.wait((await desk.submit(bench.intent(500)))[0].id)
            if fault == "late_visibility":
                bench.fault(fault, "orders.create", {"times": 1}, delay_s=3.0)
            lag = bench.fault(fault, "", {}, lag_s=600.0) if fault == "rest_lag" else ""
            await desk.wait((await desk.submit(bench.intent(1_000)))[0].id)
            with pytest.raises((NotQuiet, VenueError)):
                await desk.reconcile()
            assert not (await row(desk))["entries_frozen"]
            bench.heal(lag) if lag else await asyncio.sleep(3.2)
            assert (await desk.reconcile()).clean
        assert bench.problems() == []
    run(story())


def test_a_busy_account_raises_no_false_alarm(bench):
    async def story():
        async with bench.desk(config=replace(QUICK, reconcile_every_s=0.15)) as desk:
            async def trade(n):
                for i in range(12):
                    (order,) = await desk.submit(bench.intent(100 if (n + i) % 2 else -100, instrument="EUR_USD" if n % 2 else "USD_JPY"))
                    await desk.wait(order.id, 30, TERMINAL)
            await asyncio.gather(*map(trade, range(8)))
            assert (await desk.reconcile()).clean
            assert not (await row(desk))["entries_frozen"] and await alerts(desk) == []
        assert bench.problems() == []
    run(story())


def test_a_pass_while_the_account_moves_concludes_nothing(bench):
    """Something happens between the first read and the last: such a pass records what it saw and compares nothing."""
    async def story():
        async with bench.desk() as desk:
            await desk.wait((await desk.submit(bench.intent(1_000)))[0].id)
            read = desk.venue.fetch_positions

            async def meanwhile():
                there = await read()
                await asyncio.to_thread(bench.external, 300)
                return there
            desk.venue.fetch_positions = meanwhile
            found = await one_pass(desk.deps, desk.lease)
            assert (found.quiet, found.mismatches) == (False, ())
            desk.venue.fetch_positions = read
            assert (await desk.reconcile()).clean
        assert bench.venue().positions == bench.ledger().positions == {"EUR_USD": 1_300}
    run(story())


def test_financing_is_in_the_expected_cash(ledger, valkey_url, tmp_path):
    """Held over the end of a day in New York, a position costs or earns interest, which no fill tells."""
    with bench_before_the_day_ends(ledger, valkey_url, tmp_path) as bench:
        async def story():
            async with bench.desk() as desk:
                await desk.wait((await desk.submit(bench.intent(100_000)))[0].id)
                before = (await row(desk))["cash_balance"]
                bench.sandbox.control.advance(2*3600)
                assert (await desk.reconcile()).clean
                assert (await row(desk))["cash_balance"] != before
                assert "DAILY_FINANCING" in [t["type"] for t in bench.http.get("/transactions/sinceid", params={"id": "1"}).json()["transactions"]]
        run(story())
