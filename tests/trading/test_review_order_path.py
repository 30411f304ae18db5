"""Races and lost answers that once could cost money: each test is one of them."""
import asyncio
import sys
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from ledger_orders import NOW, an_order, on_ledger, put_order

from deskbook.trading import marks, reconcile
from deskbook.trading.book import Deps
from deskbook.trading.leases import take_lease
from deskbook.trading.recorder import NotSent, Report, Told, adopt, next_state, write_fills
from deskbook.trading.resolve import block
from deskbook.trading.risk import Pending, Portfolio, RiskState, exposures
from deskbook.trading.sender import Due, Step, claim, plan_batch, plan_step
from deskbook.venues.errors import NetworkError
from deskbook.venues.model import Balance, FillPage, Unreadable, VenueOrder

# ---- the ledger

def fill(n: int, order_id) -> dict:
    return {"venue": "oanda", "account": "a", "fill_id": str(n), "order_id": order_id, "instrument": "EUR_USD", "units": Decimal(1_000), "price": Decimal("1.08"),
            "fee": Decimal(0), "fee_currency": "USD", "liquidity": "", "venue_realised_pnl": Decimal(0), "conversion_rate": Decimal(1), "filled_at": NOW + timedelta(seconds=n)}


def test_two_first_fills_of_an_instrument_at_once_are_both_in_the_position(ledger):
    """The answer of one order and the log's page with another are written by two transactions, and there is no row to lock yet."""
    async def story(db):
        one, two = [await put_order(db, k) for k in ("one", "two")]
        deps = SimpleNamespace(account="a")
        async with db.transaction() as first:
            await write_fills(first, deps, "USD", [fill(7, one)])

            async def other():
                async with db.transaction() as second:
                    await write_fills(second, deps, "USD", [fill(8, two)])

            second = asyncio.create_task(other())
            await asyncio.sleep(0.4)
        await second
        assert [r["units"] for r in await db.rows("SELECT units FROM positions WHERE account = 'a'")] == [2_000]
    on_ledger(ledger, story)


def test_the_row_that_cancels_is_seen_by_the_row_that_sends(ledger):
    """The cancel row waits until the lookup is over; the absence is proven, the order goes into the outbox again, and must not leave it."""
    async def story(db):
        made = await put_order(db)
        await db.rows("UPDATE orders SET state = 'submitting', resends = 1 WHERE id = %s", (made,))
        await db.rows("INSERT INTO outbox (topic, account, order_id, available_at) VALUES ('cancel', 'a', %s, now() + interval '1 hour')", (made,))
        await db.rows("INSERT INTO outbox (topic, account, order_id) VALUES ('submit', 'a', %s)", (made,))
        lease = await take_lease(db, "sender:a", "me", 60)
        claims, _ = await claim(Deps("a", db, None), lease, 10)
        (after,) = await db.rows("SELECT state, sent_at, reason FROM orders")
        assert (claims, *after.values()) == ([], "cancelled", None, "cancelled_before_sending")
    on_ledger(ledger, story)


@pytest.mark.parametrize(("state", "blocks"), [("unknown", 1), ("filled", 0)])
def test_an_order_that_was_found_meanwhile_blocks_nothing(ledger, state, blocks):
    async def story(db):
        made = await put_order(db)
        await db.rows("UPDATE orders SET state = %s WHERE id = %s", (state, made))
        await block(Deps("a", db, None), an_order(id=made, state="unknown"), "unknown_order", {})
        assert len(await db.rows("SELECT 1 FROM instrument_blocks")) == len(await db.rows("SELECT 1 FROM ops_alerts")) == blocks
    on_ledger(ledger, story)


# ---- the recorder

def test_an_old_report_that_nothing_left_says_nothing_about_a_later_attempt():
    """COMMIT went out and the connection broke: the report is written again, maybe after the order was claimed and sent once more."""
    first = an_order(state="submitting", sent_at=NOW, fencing_token=4)
    report = NotSent("network_error", 0.25, NOW)
    back = next_state(first, report, Decimal(0), None, NOW)
    assert (back.state, back.sent_at) == ("submitting", None)
    second = replace(back, sent_at=NOW + timedelta(seconds=2), fencing_token=4)  # on its way to the venue
    assert next_state(second, report, Decimal(0), None, NOW) == second


def test_an_order_on_a_trade_of_somebody_else_blocks_nothing():
    """A take-profit has no instrument of its own; it can only reduce."""
    profit = VenueOrder("31", "", "", Decimal(0), "TAKE_PROFIT", "open", price=Decimal("1.1"), time_in_force="GTC")
    row = adopt([Report(Told(profit))], "a", "oanda")
    assert (row.kind, row.reduce_only) == ("external", True)
    pending = {row.instrument: Pending(exit_buy_units=row.units)}
    assert exposures(Portfolio("a", 0, Decimal(1), 0, Decimal(1), pending=pending)).unknown == ()


# ---- the sender

@pytest.mark.parametrize("order", [an_order(), an_order(state="submitting", resends=1)], ids=["created", "resent"])
def test_what_shall_be_cancelled_is_not_sent(order):
    """Its cancel row waits half a second for the lookup; the row that sends it again does not."""
    due = Due(2, "submit", 0, order, unwanted=True)
    assert plan_step(due, NOW) == Step("end", "cancelled", "cancelled_before_sending")
    (planned,) = plan_batch([due], NOW, 4, "17")
    assert planned.change is not None and planned.change.after.state == "cancelled" and planned.change.after.sent_at is None


def test_a_tripped_breaker_stops_what_waits():
    assert plan_step(Due(2, "submit", 0, an_order(), tripped=True), NOW) == Step("end", "cancelled", "circuit_breaker")
    assert plan_step(Due(2, "submit", 0, an_order(reduce_only=True), tripped=True), NOW) == Step("send")


# ---- the reconciler

def test_an_order_that_could_not_be_looked_for_is_not_explained(monkeypatch):
    async def unreadable(deps, order):
        return Unreadable(NetworkError("down"))

    monkeypatch.setattr(reconcile, "find", unreadable)
    lost = an_order(state="open", venue_order_id="12")
    missing = reconcile.Mismatch("order_missing", lost.client_order_id, "open", "")
    with pytest.raises(NetworkError):
        asyncio.run(reconcile.look_for(None, None, reconcile.LedgerPicture({}, [lost], None), [missing]))


class OneRow:
    """A ledger that knows one account."""
    async def rows(self, sql, params=()):
        return [{"fill_cursor": ""}]


def test_the_history_before_the_first_contact_is_left_alone(monkeypatch):
    """The first reconciliation takes over what is held; the log before it is not ours to read."""
    read, stop = [], asyncio.Event()

    class Venue:
        async def fetch_fills(self, cursor):
            read.append(cursor)
            return FillPage((), "900")

    async def nothing(*_):
        pass

    monkeypatch.setattr(reconcile, "record", nothing)

    async def story():
        task = asyncio.create_task(reconcile.read_fills(Deps("a", OneRow(), Venue()), None, stop))
        await asyncio.sleep(0.2)
        stop.set()
        await asyncio.wait([task], timeout=5)

    asyncio.run(story())
    assert read == []


# ---- equity

def test_a_breaker_that_tripped_elsewhere_cancels_entries_too(monkeypatch):
    """The reconciler looks at the equity as well; and a cancellation that fails is tried again."""
    balance = Balance("USD", Decimal(90), Decimal(90), Decimal(0), Decimal(0), Decimal(90), "5", 0)
    tripped = RiskState("a", NOW.date(), Decimal(100), Decimal(100), "tripped", tripped_at_ms=1)
    calls = []

    class Venue:
        async def fetch_balance(self):
            return balance

        name = "oanda"

    async def write_equity(deps, balance, source):
        return tripped, False

    async def on_trip(state):
        calls.append(state)
        if len(calls) == 1:
            from deskbook.stores.ledger import LedgerDown
            raise LedgerDown("away")

    monkeypatch.setattr(marks, "write_equity", write_equity)

    async def story():
        stop, deps = asyncio.Event(), Deps("a", None, Venue())
        task = asyncio.create_task(marks.watch_equity(deps, stop, on_trip, least_s=0.01))
        for _ in range(4):
            await asyncio.sleep(0.1)
            deps.signals.equity.set()
        stop.set()
        deps.signals.equity.set()
        await asyncio.wait([task], timeout=5)

    asyncio.run(story())
    assert calls == [tripped, tripped]


