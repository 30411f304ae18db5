"""What a review of the senders found, one test for each: orders of another time, machines that sleep, calls that hang, answers that never come."""
import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import httpx
import psycopg
import pytest

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "venues")]
from execution_rig import QUICK, alerts, audits, eventually, row, run
from ledger_orders import NOW, an_order, on_ledger, put_order
from sandboxed import buy, rest
from sandboxed import run as at_sandbox

from deskbook.core.errors import Refused
from deskbook.stores.ledger import Ledger
from deskbook.trading import resolve
from deskbook.trading.book import Deps, ExecutionConfig, not_now
from deskbook.trading.desk import enrol
from deskbook.trading.leases import take_lease
from deskbook.trading.orders import TERMINAL, OrderRefused
from deskbook.trading.recorder import NotSent
from deskbook.trading.sender import Due, claim, plan_batch, send, timed
from deskbook.venues.errors import NetworkError
from deskbook.venues.model import Absent, Found, Write
from deskbook.venues.oanda import Oanda

# ---- orders of another time

@pytest.mark.parametrize("earlier", [buy(), rest()], ids=["filled", "waiting"])
def test_an_order_of_an_earlier_ledger_is_not_taken_for_ours(earlier):
    """The venue's client ids are unique only among waiting orders: a new ledger with the same keys must not adopt what an old one did."""
    async def body(s, o):
        first = await o.create_order(earlier)
        cursor = (await o.fetch_balance()).cursor
        assert int(first.order.venue_order_id) <= int(cursor)
        assert isinstance(await o.find_order("db-1", cursor), Absent)
        assert (await o.find_order("db-1")).order.venue_order_id == first.order.venue_order_id
    at_sandbox(body)


def test_the_later_of_two_orders_with_one_client_id_is_ours():
    async def body(s, o):
        await o.create_order(buy(units=1_000))
        await o.close_position("EUR_USD", buy("db-2", -1_000, reduce_only=True))
        cursor = (await o.fetch_balance()).cursor
        ours = await o.create_order(buy(units=2_000))
        assert await o.find_order("db-1", cursor) == Found(ours.order, ours.fills)
    at_sandbox(body)


def test_ids_are_compared_as_numbers():
    async def body(s, o):
        while int((await o.fetch_balance()).cursor) < 9:
            await o.create_order(buy(f"db-{uuid4().hex}"))
        cursor = (await o.fetch_balance()).cursor
        ours = await o.create_order(buy(units=10))
        assert (len(cursor), len(ours.order.venue_order_id)) == (1, 2), "the point of this test is a number with one digit more"
        assert (await o.find_order("db-1", cursor)).order == ours.order
    at_sandbox(body)


def test_a_resend_looks_back_to_before_the_first_attempt():
    """Its first attempt may have arrived after all; a later cursor would take it for an order of somebody else."""
    (planned,) = plan_batch([Due(2, "submit", 1, an_order(state="submitting", resends=1, sent_cursor="17"))], NOW, 4, "40")
    assert planned.change.after.sent_cursor == "17"
    (planned,) = plan_batch([Due(2, "submit", 0, an_order())], NOW, 4, "40")
    assert planned.change.after.sent_cursor == "40"


# ---- a machine that sleeps

@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux tells how long the machine slept")
def test_nothing_leaves_after_the_machine_was_suspended(ledger, monkeypatch):
    """The monotonic clock stands still meanwhile: by that one the deadline and the lease are as good as before."""
    slept, real, left = [0.0], time.clock_gettime, []
    monkeypatch.setattr(time, "clock_gettime", lambda which: real(which) + (slept[0] if which == time.CLOCK_BOOTTIME else 0.0))

    async def anybody(write):
        pass
    guard = timed(anybody)

    class Venue:
        async def create_order(self, request):
            await guard(Write("order", request.instrument))
            left.append(request)
            raise AssertionError("sent")

    async def story(db):
        await db.rows("INSERT INTO outbox (topic, account, order_id) VALUES ('submit', 'a', %s)", (await put_order(db),))
        deps, lease = Deps("a", db, Venue()), await take_lease(db, "sender:a", "me", 60)
        (claimed,), _ = await claim(deps, lease, 10)
        slept[0] = 3_600.0
        report = await send(deps, claimed)
        assert isinstance(report.finding, NotSent) and report.finding.reason == "send_deadline" and left == []
        assert lease.left_s() < -3_000 and deps.monotonic() > time.monotonic() + 3_000
    on_ledger(ledger, story, 60)


# ---- calls that hang

PATIENT = replace(QUICK, request_timeout_s=6.0, max_in_flight=3, exit_calls=1, lease_ttl_s=10.0, send_window_s=5.0, drain_s=10.0)


def test_entries_that_hang_delay_no_exit(bench):
    async def story():
        async with bench.desk(config=PATIENT) as desk:
            held = (await desk.submit(bench.intent(1_000)))[0]
            assert (await desk.wait(held.id)).state == "filled"
            bench.fault("hang", "orders.create", {"times": 3})
            await desk.submit([bench.intent(100) for _ in range(5)])
            await eventually(lambda: len(bench.created()) == 4)  # the first one, and three that hang; two wait
            began = time.monotonic()
            done = await desk.wait((await desk.close("EUR_USD")).id, 5)
            assert done.state == "filled" and time.monotonic() - began < 2
            assert len(bench.created()) == 5  # no entry took the place of the exit
            bench.sandbox.control.clear_faults()
    run(story())


# ---- getting out

async def two_positions_and_a_rest(bench, desk):
    for units, name in ((1_000, "EUR_USD"), (-2_000, "USD_JPY")):
        await desk.wait((await desk.submit(bench.intent(units, instrument=name)))[0].id)
    (rest_,) = await desk.submit(bench.intent(500, type="limit", price="1.05000", time_in_force="GTC"))
    assert (await desk.wait(rest_.id)).state == "open"


def test_getting_out_freezes_entries_first(bench):
    async def story():
        async with bench.desk() as desk:
            await two_positions_and_a_rest(bench, desk)
            done = await desk.flatten(bench.account)
            assert (done.left, {o.state for o in done.closed}, {o.state for o in done.cancelled}) == ({}, {"filled"}, {"cancelled"})
            assert (await row(desk))["freeze_reason"].startswith("manual") and "risk unfreeze" in done.frozen
            with pytest.raises(OrderRefused) as e:
                await desk.submit(bench.intent(1_000))
            assert e.value.reasons == ("entries_frozen",)
            frozen, = await audits(desk, "account.freeze")
            exits = await desk.ledger.rows("SELECT min(created_at) AS first FROM orders WHERE account = %s AND reduce_only", (bench.account,))
            assert frozen["recorded_at"] < exits[0]["first"]
            await desk.unfreeze("anna", "flat, and looked at")
            assert (await desk.wait((await desk.submit(bench.intent(1_000)))[0].id)).state == "filled"
    run(story())


def test_what_hangs_delays_no_other_way_out(bench):
    """A cancel and one close hang at the venue: the other close goes out at once, and the wait is one wait, not one after the other."""
    async def story():
        async with bench.desk(config=PATIENT) as desk:
            await two_positions_and_a_rest(bench, desk)
            bench.fault("hang", "orders.cancel", {"times": 1})
            bench.sandbox.control.add_fault("hang", "orders.create", {"times": 1}, {"account": bench.venue_account, "instrument": "EUR_USD"})
            began, out = time.monotonic(), asyncio.create_task(desk.flatten(bench.account, timeout_s=2.0))
            await eventually(lambda: set(bench.venue().positions) == {"EUR_USD"}, 1.5)
            done = await out
            assert time.monotonic() - began < 5.5 and done.left == {"EUR_USD": 1_000}
            bench.sandbox.control.clear_faults()
    run(story())


def test_a_cancel_that_gets_nowhere_is_told_and_tried_again(bench):
    async def story():
        async with bench.desk(config=replace(QUICK, cancel_tries=2)) as desk:
            (order,) = await desk.submit(bench.intent(500, type="limit", price="1.05000", time_in_force="GTC"))
            await desk.wait(order.id)
            fault = bench.fault("http_error", "orders.cancel", status=400, message="not today")
            await desk.cancel(order.id)

            async def stuck():
                return await alerts(desk, "cancel_stuck:%")

            async def over():
                return not await stuck()

            told, = await eventually(stuck, 15)
            assert order.client_order_id in told["message"] and "not today" in told["message"] and told["metadata"]["account"] == bench.account
            assert (await desk.order(order.id)).state == "cancel_pending"
            bench.heal(fault)
            assert (await desk.wait(order.id, 15, TERMINAL)).state == "cancelled"
            await eventually(over)
        assert bench.problems() == []
    run(story())


# ---- more unknown orders than one round looks for

class Nowhere:
    """A venue that has none of our orders."""
    def capabilities(self):
        return SimpleNamespace(environment="sandbox", absence_grace_s=0.0)

    async def find_order(self, client_id, since_cursor=""):
        return Absent("900", int(time.time() * 1000))


def test_many_unknown_orders_are_all_remembered(ledger):
    """A search that is forgotten whenever others have their turn never proves an absence."""
    async def story(db):
        for n in range(resolve.PAGE + 50):
            await put_order(db, f"lost-{n:03d}", "unknown")
        config = ExecutionConfig(absence_grace_s=60.0, lookup_pauses_s=(5.0,))
        resolver = resolve.Resolver(Deps("a", db, Nowhere(), config), await take_lease(db, "sender:a", "me", 60), None)
        await resolver.look_round()
        first = dict(resolver.searches)
        assert len(first) == resolve.PAGE and all(s.absent_since for s in first.values())
        await resolver.look_round()
        assert len(resolver.searches) == resolve.PAGE + 50 and {i: resolver.searches[i] for i in first} == first
        await db.rows("UPDATE orders SET state = 'rejected' WHERE client_order_id < 'lost-200'")
        await resolver.look_round()
        assert len(resolver.searches) == 50  # those that are over are forgotten
    on_ledger(ledger, story, 60)


# ---- a ledger that refuses

@pytest.mark.parametrize(("error", "calls"), [
    (psycopg.errors.UndefinedTable("relation outbox does not exist"), 1), (ExceptionGroup("workers", [psycopg.errors.InsufficientPrivilege("permission denied")]), 1),
    (psycopg.errors.DeadlockDetected("deadlock"), 0), (NetworkError("reset"), 0)], ids=["table", "right", "deadlock", "venue"])
def test_an_error_that_does_not_pass_calls_a_person(ledger, caplog, error, calls):
    async def story(db):
        for _ in range(3):
            await not_now(error, Deps("a", db, None))
        assert [r["count"] for r in await db.rows("SELECT count FROM ops_alerts WHERE fingerprint = 'ledger_refuses:a'")] == [3] * calls
        assert {r.levelname for r in caplog.records} == {"ERROR" if calls else "WARNING"}
    on_ledger(ledger, story, 60)


# ---- an account of another kind

def test_a_hedging_account_is_not_enrolled(ledger):
    async def body(s, o):
        hedging = Oanda(s.account, s.token, s.url, http=httpx.AsyncClient(base_url=s.url, transport=Hedging(httpx.AsyncHTTPTransport()), headers=o.headers))
        async with await Ledger.open(ledger) as db:
            with pytest.raises(Refused, match="hedging"):
                await enrol(db, hedging, "sandbox")
            assert await db.rows("SELECT 1 FROM accounts") == []
            await enrol(db, o, "sandbox")
            assert len(await db.rows("SELECT 1 FROM accounts")) == 1
        await hedging.aclose()
    at_sandbox(body)


class Hedging(httpx.AsyncBaseTransport):
    """The sandbox, with what OANDA says of a hedging account."""
    def __init__(self, inner):
        self.inner = inner

    async def handle_async_request(self, request):
        answer = await self.inner.handle_async_request(request)
        body = await answer.aread()
        assert b'"hedgingEnabled":false' in body or "summary" not in request.url.path
        return httpx.Response(answer.status_code, content=body.replace(b'"hedgingEnabled":false', b'"hedgingEnabled":true'), request=request)
