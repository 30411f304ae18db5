"""An order's way from intent to position, and every way on which it can go wrong."""
import asyncio
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from execution_rig import QUICK, alerts, audits, eventually, row, run

from deskbook.core.errors import BadInput, NotFound
from deskbook.trading.controls import engage
from deskbook.trading.desk import running
from deskbook.trading.orders import TERMINAL, IdempotencyConflict, OrderRefused
from deskbook.venues.errors import VenueError

# ---- the straight way

def test_from_intent_to_position(bench):
    async def story():
        async with bench.desk() as desk:
            (order,) = await desk.submit(bench.intent(3_000, "first"))
            assert (order.state, order.reserved_usd > 3_000) == ("created", True)
            done = await desk.wait(order.id)
            assert (done.state, done.filled_units, done.average_price) == ("filled", 3_000, Decimal("1.08424"))
            events, fills = await desk.history(order.id)
            assert [e["to_state"] for e in events] == ["created", "submitting", "filled"]
            assert [(f["units"], f["price"]) for f in fills] == [(3_000, Decimal("1.08424"))]
            (held,) = await desk.positions()
            assert (held.units, held.average_price, held.mark) == (3_000, Decimal("1.08424"), Decimal("1.08410"))
            assert held.unrealised_pnl == Decimal("-0.42")
            exit = await desk.wait((await desk.close("EUR_USD")).id)
            assert (exit.kind, exit.reduce_only, exit.state, await desk.positions()) == ("exit", True, "filled", [])
            assert (await desk.ledger.rows("SELECT realised_pnl FROM positions"))[0]["realised_pnl"] == Decimal("-0.42")
            assert (await desk.reconcile()).clean
        assert bench.problems() == []
    run(story())


def test_a_desk_that_does_not_run_submits_and_is_told(bench):
    async def story():
        async with bench.desk() as runner, bench.desk(run=False, wide=False) as other:
            (order,) = await other.submit(bench.intent(1_000))
            assert (await other.wait(order.id)).state == "filled"
            assert [h.units for h in await other.positions()] == [1_000]
            assert runner.lease and not other.lease
        assert bench.problems() == []
    run(story())


def test_a_resting_order_is_filled_later_and_the_log_tells(bench):
    async def story():
        async with bench.desk() as desk:
            (order,) = await desk.submit(bench.intent(2_000, type="limit", price="1.08000", time_in_force="GTC"))
            assert (await desk.wait(order.id)).state == "open"
            bench.sandbox.control.market("price", "EUR_USD", bid="1.07980", ask="1.07994")
            try:
                done = await desk.wait(order.id, 10, TERMINAL)
            finally:
                bench.sandbox.control.market("price", "EUR_USD", bid="1.08410", ask="1.08424")
            assert (done.state, done.filled_units) == ("filled", 2_000)
        assert bench.problems() == []
    run(story())


# ---- once

def test_fifty_submits_of_one_key_are_one_order(bench):
    async def story():
        async with bench.desk() as one, bench.desk(run=False, wide=False) as two:
            answers = await asyncio.gather(*(d.submit(bench.intent(1_000, "the-one")) for d in (one, two) for _ in range(25)))
            assert len({orders[0].id for orders in answers}) == 1
            done = await one.wait(answers[0][0].id)
            assert done.state == "filled"
            again = (await one.submit(bench.intent("1000.0", "the-one")))[0]
            assert (again.id, again.state) == (done.id, "filled")
        assert len(bench.at_venue_for(done)) == len(bench.created()) == 1
        assert bench.problems() == []
    run(story())


def test_one_key_with_another_body_is_a_conflict(bench):
    async def story():
        async with bench.desk() as desk:
            (first,) = await desk.submit(bench.intent(1_000, "k"))
            with pytest.raises(IdempotencyConflict) as e:
                await desk.submit(bench.intent(1_001, "k"))
            assert e.value.order_id == str(first.id)
            assert (await audits(desk, "order.refused"))[0]["metadata"]["reasons"] == ["idempotency_conflict"]
            await desk.wait(first.id)
        assert len(bench.created()) == 1
    run(story())


def test_a_stolen_lease_makes_no_second_order(bench):
    """The first sender hangs in the middle of its call; its lease is taken from it; both live on."""
    async def story():
        async with bench.desk() as one:
            bench.fault("accept_then_hang", "orders.create", {"times": 1})
            (order,) = await one.submit(bench.intent(1_000))
            await eventually(bench.created)
            await one.ledger.rows("UPDATE leases SET expires_at = clock_timestamp()")
            async with bench.desk(wide=False) as two:
                assert (two.lease.token, one.account) == (2, two.account)
                done = await two.wait(order.id, 20, TERMINAL)
                assert (done.state, done.resends) == ("filled", 0)
                assert "sender_changed" in [e["reason"] for e in (await two.history(order.id))[0]]
                await eventually(lambda: one.lease is None)
        assert len(bench.created()) == 1
        assert bench.problems() == []
    run(story())


def test_a_sender_that_lost_its_lease_sends_nothing_that_it_has_not_claimed(bench):
    async def story():
        async with bench.desk() as one:
            async with one.ledger.transaction() as tx:
                await tx.execute("UPDATE leases SET owner = 'thief', fencing_token = 9, expires_at = clock_timestamp() + interval '1 minute'")
            (order,) = await one.submit(bench.intent(1_000))
            await eventually(lambda: one.lease is None)
            await asyncio.sleep(0.5)
            assert (await one.order(order.id)).state == "created"
        assert bench.created() == []
    run(story())


# ---- answers that do not come

@pytest.mark.parametrize("fault", ["accept_then_drop", "accept_then_hang", "truncated_json", "empty_body"])
def test_an_answer_lost_after_acceptance(bench, fault):
    async def story():
        async with bench.desk() as desk:
            bench.fault(fault, "orders.create", {"times": 1}, **({"accepted": True} if fault in ("truncated_json", "empty_body") else {}))
            (order,) = await desk.submit(bench.intent(1_000))
            done = await desk.wait(order.id, 20, TERMINAL)
            assert (done.state, done.filled_units, done.resends) == ("filled", 1_000, 0)
            filled = (await desk.history(order.id))[0][-1]
            assert filled["to_state"] == "filled" and filled["payload"]["heard"] in ("lookup", "log", "reconcile"), "not from the answer, which was lost"
        assert len(bench.created()) == 1
        assert bench.problems() == []
    run(story())


@pytest.mark.parametrize("answer", ["reset", "504"])
def test_accepted_late(bench, answer):
    """Nothing is there when one looks first; sending again would be the second order."""
    async def story():
        async with bench.desk() as desk:
            bench.fault("accept_late", "orders.create", {"times": 1}, delay_s=0.4, answer=answer)
            (order,) = await desk.submit(bench.intent(1_000))
            done = await desk.wait(order.id, 20, TERMINAL)
            assert (done.state, done.resends) == ("filled", 0)
        assert len(bench.created()) == 1
        assert bench.problems() == []
    run(story())


def test_proven_absent_and_sent_once_more(bench):
    async def story():
        async with bench.desk() as desk:
            bench.fault("drop_before_accept", "orders.create", {"times": 1})
            (order,) = await desk.submit(bench.intent(1_000))
            done = await desk.wait(order.id, 20, TERMINAL)
            assert (done.state, done.resends) == ("filled", 1)
            proof = next(e["payload"] for e in (await desk.history(order.id))[0] if e["reason"] == "absence_proven")
            assert proof["looked_at_ms"] - proof["absent_since_ms"] >= 800
        assert [e["client_id"] for e in bench.created()] == [done.client_order_id]*2
        assert len(bench.at_venue_for(done)) == 1
        assert bench.problems() == []
    run(story())


def test_lost_twice_blocks_the_instrument_and_calls_a_person(bench):
    async def story():
        async with bench.desk() as desk:
            bench.fault("drop_before_accept", "orders.create")
            (order,) = await desk.submit(bench.intent(1_000))
            done = await desk.wait(order.id, 20, TERMINAL)
            assert (done.state, done.reason, done.resends) == ("rejected", "absent_after_resend", 1)
            assert len(bench.created()) == 2
            assert await eventually(lambda: bench.ledger().blocked) == {"EUR_USD"}
            with pytest.raises(OrderRefused) as e:
                await desk.submit(bench.intent(1_000))
            assert e.value.reasons == ("instrument_blocked",)
            assert (await alerts(desk, "absent_after_resend:%"))[0]["severity"] == "high"
            assert await desk.unblock("EUR_USD", "anna", "the venue confirms that it has nothing")
            assert await alerts(desk, "absent_after_resend:%") == []
        assert bench.problems() == []
    run(story())


def test_an_expired_intent_is_not_sent_again(bench):
    async def story():
        async with bench.desk() as desk:
            bench.fault("drop_before_accept", "orders.create", {"times": 1})
            (order,) = await desk.submit(bench.intent(1_000, expires_s=0.5))
            done = await desk.wait(order.id, 20, TERMINAL)
            assert (done.state, done.reason, done.resends) == ("expired", "intent_expired", 0)
        assert len(bench.created()) == 1
        assert bench.problems() == []
    run(story())


def test_unreadable_is_not_absent(bench):
    """As long as one of the places cannot be read, nothing is concluded; the instrument is blocked, and freed when the order is found."""
    async def story():
        async with bench.desk() as desk:
            bench.fault("accept_then_drop", "orders.create", {"times": 1})
            blind = bench.fault("html", "orders.get|orders.list|orders.pending|transactions.*", {}, status=403)
            (order,) = await desk.submit(bench.intent(1_000))
            await eventually(lambda: bench.ledger().blocked == {"EUR_USD"}, 20)
            assert (await desk.order(order.id)).state == "unknown"
            bench.heal(blind)
            assert (await desk.wait(order.id, 20, TERMINAL)).state == "filled"
            assert await eventually(lambda: not bench.ledger().blocked)
            assert await alerts(desk, "unknown_order:%") == []
        assert bench.problems() == []
    run(story())


# ---- the venue says no

@pytest.mark.parametrize(("fault", "params", "reason"), [
    ("cancel", {"reason": "INSUFFICIENT_MARGIN"}, "INSUFFICIENT_MARGIN"),  # 201, and cancelled in the same breath
    ("reject", {"reason": "INSTRUMENT_NOT_TRADEABLE"}, "INSTRUMENT_NOT_TRADEABLE"),
    ("halt", {}, "MARKET_HALTED")])
def test_a_refusal_keeps_its_reason_and_is_not_repeated(bench, fault, params, reason):
    async def story():
        async with bench.desk() as desk:
            bench.fault(fault, "orders.create", {"times": 1}, **params)
            (order,) = await desk.submit(bench.intent(1_000))
            done = await desk.wait(order.id, 20, TERMINAL)
            assert (done.state, done.reason, done.filled_units) == ("rejected", reason, 0)
            await asyncio.sleep(0.5)
        assert len(bench.created()) == 1
        assert bench.problems() == []
    run(story())


def test_a_rate_limit_is_waited_out_under_the_same_id(bench):
    async def story():
        async with bench.desk() as desk:
            bench.fault("rate_limited", "orders.create", {"times": 2})
            (order,) = await desk.submit(bench.intent(1_000))
            done = await desk.wait(order.id, 20, TERMINAL)
            assert (done.state, done.resends) == ("filled", 0)
        assert {e["client_id"] for e in bench.created()} == {done.client_order_id}
        assert bench.problems() == []
    run(story())


def test_a_revoked_key_stops_everything_and_calls_a_person(bench):
    async def story():
        async with bench.desk() as desk:
            await desk.wait((await desk.submit(bench.intent(1_000)))[0].id)
            gone = bench.fault("revoked")
            orders = [(await desk.submit(bench.intent(1_000, expires_s=3)))[0] for _ in range(2)]
            done = [await desk.wait(o.id, 20, TERMINAL) for o in orders]
            assert {o.state for o in done} <= {"rejected", "expired"}
            account = await row(desk)
            assert account["entries_frozen"] and account["freeze_reason"].startswith("auth:")
            assert (await alerts(desk, "auth:%"))[0]["severity"] == "high"
            assert len([e for e in bench.created() if e["accepted"]]) == 1
            bench.heal(gone)
            desk.venue.transport.breakers.clear()  # it would let a request pass by itself after a while
            assert (await desk.reconcile()).clean
            assert (await row(desk))["entries_frozen"]  # a person lifts it, not the next read that works
            await desk.unfreeze("anna", "new key")
            (order,) = await desk.submit(bench.intent(1_000))
            assert (await desk.wait(order.id, 20, TERMINAL)).state == "filled"
        assert bench.problems() == []
    run(story())


def test_an_unreachable_venue_gets_nothing_and_the_intent_expires(bench):
    async def story():
        async with bench.desk():
            pass
        async with bench.desk(wide=False, run=False, url="http://127.0.0.1:9") as desk:
            with pytest.raises(VenueError):
                await desk.submit(bench.intent(1_000))
    run(story())


# ---- parts

def test_a_part_is_kept_when_the_rest_is_cancelled_at_once(bench):
    async def story():
        async with bench.desk() as desk:
            bench.fault("partial_fill", "orders.create", {"times": 1}, fill_frac=0.4)
            (order,) = await desk.submit(bench.intent(1_000, time_in_force="IOC"))
            done = await desk.wait(order.id, 20, TERMINAL)
            assert (done.state, done.filled_units) == ("cancelled", 400)
            assert [h.units for h in await desk.positions()] == [400]
        assert bench.problems() == []
    run(story())


def test_partly_filled_then_cancelled_keeps_its_fills(bench):
    async def story():
        async with bench.desk() as desk:
            slow = bench.fault("slow_fill", "orders.create", {}, slices=4, every_s=1.5)
            (order,) = await desk.submit(bench.intent(4_000, type="limit", price="1.09000", time_in_force="GTC"))
            part = await desk.wait(order.id, 20)
            assert part.state == "partially_filled" and 0 < part.filled_units < 4_000
            await desk.cancel(order.id)
            done = await desk.wait(order.id, 20, TERMINAL)
            bench.heal(slow)
            assert done.state == "cancelled" and 0 < done.filled_units < 4_000
            assert [h.units for h in await desk.positions()] == [done.filled_units]
        assert bench.problems() == []
    run(story())


def test_the_stop_behind_an_entry_is_known_as_ours(bench):
    async def story():
        async with bench.desk() as desk:
            (order,) = await desk.submit(bench.intent(1_000, stop_loss_price="1.08200"))
            assert (await desk.wait(order.id, 20, TERMINAL)).state == "filled"
            assert (await desk.reconcile()).clean
            (stop,) = [o for o in await desk.orders(live=True)]
            assert (stop.kind, stop.parent_order_id, stop.client_order_id) == ("protective", order.id, order.client_order_id + "-sl")
            bench.sandbox.control.market("price", "EUR_USD", bid="1.08100", ask="1.08114")
            try:
                done = await desk.wait(stop.id, 20, TERMINAL)
            finally:
                bench.sandbox.control.market("price", "EUR_USD", bid="1.08410", ask="1.08424")
            assert (done.state, await desk.positions(), (await row(desk))["entries_frozen"]) == ("filled", [], False)
        assert bench.problems() == []
    run(story())


def test_a_stop_does_not_stand_in_the_way_of_an_exit(bench):
    async def story():
        async with bench.desk() as desk:
            (order,) = await desk.submit(bench.intent(1_000, stop_loss_price="1.08200"))
            await desk.wait(order.id, 20, TERMINAL)
            assert (await desk.reconcile()).clean
            (stop,) = [o for o in await desk.orders(live=True)]
            assert (stop.side, stop.units, stop.reduce_only) == ("sell", 1_000, True)
            assert (await desk.wait((await desk.close("EUR_USD")).id, 20, TERMINAL)).state == "filled"
            assert (await desk.wait(stop.id, 20, TERMINAL)).state == "cancelled"
        assert bench.problems() == []
    run(story())


# ---- exits

def test_exits_together_never_exceed_the_position(bench):
    async def story():
        async with bench.desk() as desk:
            await desk.wait((await desk.submit(bench.intent(1_000)))[0].id)
            out = [bench.intent(-400, kind="exit", reduce_only=True) for _ in range(5)]
            answers = await desk.submit_each(out)
            assert [type(a).__name__ for a in answers].count("OrderRow") == 2
            assert {a.reasons for a in answers if isinstance(a, OrderRefused)} == {("exceeds_position",)}
            closes = await asyncio.gather(*(desk.close("EUR_USD") for _ in range(3)), return_exceptions=True)
            for order in [a for a in [*answers, *closes] if not isinstance(a, Exception)]:
                await desk.wait(order.id, 20, TERMINAL)
            assert await desk.positions() == []
            with pytest.raises(NotFound):
                await desk.close("EUR_USD")
        assert bench.venue().positions == {}
        assert bench.problems() == []
    run(story())


def test_flatten_needs_its_confirmation_and_takes_everything(bench):
    async def story():
        async with bench.desk() as desk:
            for units, name in ((1_000, "EUR_USD"), (-2_000, "USD_JPY")):
                await desk.wait((await desk.submit(bench.intent(units, instrument=name)))[0].id)
            (rest,) = await desk.submit(bench.intent(500, type="limit", price="1.05000", time_in_force="GTC"))
            await desk.wait(rest.id)
            with pytest.raises(BadInput):
                await desk.flatten("yes")
            done = await desk.flatten(bench.account)
            assert ({o.state for o in done.cancelled}, {o.state for o in done.closed}, done.left) == ({"cancelled"}, {"filled"}, {})
        assert (bench.venue().positions, bench.problems()) == ({}, [])
    run(story())


# ---- what stops the desk

def test_the_kill_switch_engaged_between_commit_and_send(bench):
    async def story():
        async with bench.desk():
            pass
        async with bench.desk(run=False, wide=False) as desk:
            orders = await desk.submit([bench.intent(1_000), bench.intent(1_000, type="limit", price="1.05", time_in_force="GTC")])
            await engage(desk.kill, "anna", "prices look wrong")
            async with running(desk):
                done = [await desk.wait(o.id, 20, TERMINAL) for o in orders]
                assert [(o.state, o.reason) for o in done] == [("rejected", "kill_switch")]*2
                with pytest.raises(OrderRefused) as e:
                    await desk.submit(bench.intent(1_000))
                assert e.value.reasons == ("kill_switch",)
        assert bench.created() == []
        assert bench.problems() == []
    run(story())


def test_under_the_kill_switch_a_person_can_still_get_out(bench):
    async def story():
        async with bench.desk() as desk:
            await desk.wait((await desk.submit(bench.intent(1_000)))[0].id)
            await engage(desk.kill, "anna", "out")
            with pytest.raises(OrderRefused):
                await desk.close("EUR_USD")
            done = await desk.wait((await desk.close("EUR_USD", override_kill=True)).id, 20, TERMINAL)
            assert (done.state, await desk.positions()) == ("filled", [])
        assert bench.problems() == []
    run(story())


def test_an_intent_that_waited_too_long_is_never_sent(bench):
    async def story():
        async with bench.desk():
            pass
        async with bench.desk(run=False, wide=False) as desk:
            (order,) = await desk.submit(bench.intent(1_000, expires_s=0.3))
            await asyncio.sleep(0.4)
            async with running(desk):
                done = await desk.wait(order.id, 20, TERMINAL)
                assert (done.state, done.reason) == ("expired", "intent_expired")
        assert bench.created() == []
    run(story())


def test_nothing_is_accepted_before_the_account_was_reconciled(bench):
    async def story():
        async with bench.desk(run=False) as desk:
            with pytest.raises(OrderRefused) as e:
                await desk.submit(bench.intent(1_000))
            assert "not_reconciled" in e.value.reasons
    run(story())


@pytest.mark.parametrize(("units", "more", "reasons"), [
    ("0", {}, {"units_zero"}), ("NaN", {}, {"units_not_a_number"}), ("-Infinity", {}, {"units_not_a_number"}), ("1000.5", {}, {"units_precision"}),
    ("0.5", {}, {"units_below_minimum", "units_precision"}), ("1e12", {}, {"units_above_maximum"}), ("1000", {"instrument": "EUR_XXX"}, {"instrument_unknown"}), ("1000", {"instrument": "nonsense"}, {"instrument_unknown"}), ("1e999999", {}, {"units_above_maximum"}),
    ("1000", {"type": "limit", "time_in_force": "GTC", "price": "1.084123"}, {"price_off_tick"}), ("1000", {"type": "limit", "time_in_force": "GTC"}, {"price_missing"})])
def test_a_bad_order_is_refused_written_down_and_not_sent(bench, units, more, reasons):
    async def story():
        async with bench.desk() as desk:
            with pytest.raises(OrderRefused) as e:
                await desk.submit(bench.intent(units, "bad", **more))
            assert reasons <= set(e.value.reasons)
            (told,) = await audits(desk, "order.refused")
            assert set(told["metadata"]["reasons"]) == set(e.value.reasons) and told["resource_id"] == "bad"
            assert await desk.orders() == []
        assert bench.created() == []
    run(story())


def test_limits_count_what_is_on_its_way(bench):
    async def story():
        async with bench.desk(wide=False, run=False) as desk:
            await bench.wide(desk, max_open_positions=1)
            async with running(desk):
                await desk.ready()
                answers = await desk.submit_each([bench.intent(1_000), bench.intent(1_000, instrument="USD_JPY"), bench.intent(1_000)])
                assert [getattr(a, "reasons", "ok") for a in answers] == ["ok", ("max_open_positions",), "ok"]
                for a in (answers[0], answers[2]):
                    await desk.wait(a.id)
        assert bench.problems() == []
    run(story())


def test_an_intent_that_the_ledger_cannot_hold_does_not_take_others_with_it(bench):
    async def story():
        async with bench.desk() as desk:
            answers = await asyncio.gather(desk.submit_each([bench.intent(1_000)]), desk.submit_each([bench.intent(1_000, "orphan", decision_id=str(uuid4()))]),
                                           desk.submit_each([bench.intent(1_000)]))
            assert [type(a[0]).__name__ for a in answers] == ["OrderRow", "BadInput", "OrderRow"]
            for a in (answers[0], answers[2]):
                assert (await desk.wait(a[0].id)).state == "filled"
            with pytest.raises(BadInput):
                await desk.submit(replace(bench.intent(1_000), account="somebody-else"))
        assert bench.problems() == []
    run(story())


# ---- cancelling

def test_cancelled_before_it_was_sent(bench):
    async def story():
        async with bench.desk():
            pass
        async with bench.desk(run=False, wide=False) as desk:
            (order,) = await desk.submit(bench.intent(1_000))
            assert (await desk.cancel(order.id)).state == "cancelled"
            assert (await desk.cancel(order.id)).state == "cancelled"
            async with running(desk):
                await desk.ready()
                await asyncio.sleep(0.3)
        assert bench.created() == []
        assert bench.problems() == []
    run(story())


@pytest.mark.parametrize("fault", ["", "accept_then_drop", "accept_then_hang", "drop_before_accept"])
def test_cancelling_an_order_that_rests(bench, fault):
    async def story():
        async with bench.desk() as desk:
            (order,) = await desk.submit(bench.intent(1_000, type="limit", price="1.05", time_in_force="GTC"))
            await desk.wait(order.id)
            if fault:
                bench.fault(fault, "orders.cancel", {"times": 1})
            assert (await desk.cancel(order.id, "anna")).state == "cancel_pending"
            assert (await desk.wait(order.id, 20, TERMINAL)).state == "cancelled"
        assert bench.problems() == []
    run(story())


def test_an_unknown_order_is_understood_before_it_is_cancelled(bench):
    async def story():
        async with bench.desk() as desk:
            bench.fault("accept_then_drop", "orders.create", {"times": 1})
            blind = bench.fault("html", "orders.get|orders.list|orders.pending|transactions.*", {}, status=403)
            (order,) = await desk.submit(bench.intent(1_000, type="limit", price="1.05", time_in_force="GTC"))
            await desk.wait(order.id, 20, {"unknown"})
            assert (await desk.cancel(order.id)).state == "unknown"
            bench.heal(blind)
            assert (await desk.wait(order.id, 20, TERMINAL)).state == "cancelled"
        assert bench.problems() == []
    run(story())


def test_what_the_venue_ended_by_itself_is_told_by_the_log(bench):
    async def story():
        async with bench.desk() as desk:
            (order,) = await desk.submit(bench.intent(1_000, type="limit", price="1.05", time_in_force="GTC"))
            there = (await desk.wait(order.id)).venue_order_id
            assert bench.http.put(f"/orders/{there}/cancel").status_code == 200
            assert (await desk.wait(order.id, 20, TERMINAL)).state == "cancelled"
            assert not (await row(desk))["entries_frozen"]
        assert bench.problems() == []
    run(story())


# ---- the ledger goes away, the desk goes away

def test_connections_of_the_ledger_are_cut_again_and_again(bench):
    async def story():
        async with bench.desk() as desk:
            import psycopg
            killer = await psycopg.AsyncConnection.connect(bench.ledger_url, autocommit=True)
            wanted, orders = [bench.intent(100 if i % 2 else -100, f"n{i}") for i in range(60)], {}

            async def place(intent):
                while intent.idempotency_key not in orders:
                    try:
                        orders[intent.idempotency_key] = (await desk.submit(intent))[0]
                    except Exception as e:
                        assert type(e).__name__ in ("LedgerDown", "AdminShutdown", "OperationalError", "OrderRefused"), repr(e)
                        await asyncio.sleep(0.05)

            async def cut():
                for _ in range(8):
                    await killer.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
                    await asyncio.sleep(0.08)
            await asyncio.gather(cut(), *map(place, wanted))
            done = [await desk.wait(o.id, 25, TERMINAL) for o in orders.values()]
            await killer.close()
            assert {o.state for o in done} == {"filled"}, [(o.state, o.reason) for o in done if o.state != "filled"]
        assert len(bench.venue().orders) == 60
        assert bench.problems() == []
    run(story())


def test_a_claim_whose_commit_was_answered_by_nobody_is_given_back(bench, monkeypatch):
    """The claim is in the ledger, the sender never got it: nobody sends these orders, and that is certain."""
    from deskbook.stores.ledger import LedgerDown
    from deskbook.trading import sender
    real, lost = sender.claim, []

    async def claim(*args):
        got = await real(*args)
        if got[0] and not lost:
            lost.extend(got[0])
            raise LedgerDown("gone", maybe_committed=True)
        return got
    monkeypatch.setattr(sender, "claim", claim)

    async def story():
        async with bench.desk() as desk:
            (order,) = await desk.submit(bench.intent(1_000))
            done = await desk.wait(order.id, 3, TERMINAL)
            assert (done.state, done.resends, len(lost)) == ("filled", 0, 1)
            assert "claim_lost" in [e["reason"] for e in (await desk.history(order.id))[0]]
        assert len(bench.created()) == 1
        assert bench.problems() == []
    run(story())


def test_stopping_waits_for_what_is_under_way(bench):
    async def story():
        async with bench.desk() as desk:
            bench.fault("latency", "orders.create", {}, ms=400)
            orders = await desk.submit([bench.intent(1_000) for _ in range(5)])
            await eventually(lambda: len(bench.created()) == 5)
        ledger = bench.ledger()
        assert {o["state"] for o in ledger.orders} == {"filled"} and len(orders) == 5
        assert bench.problems() == []
    run(story())


def test_the_circuit_breaker_cancels_what_rests_and_stops_entries(bench):
    async def story():
        async with bench.desk(wide=False, run=False, config=replace(QUICK, equity_every_s=0.3)) as desk:
            await bench.wide(desk, max_daily_loss_frac=Decimal("0.001"))
            async with running(desk):
                await desk.ready()
                await desk.wait((await desk.submit(bench.intent(20_000)))[0].id)
                (rest,) = await desk.submit(bench.intent(1_000, type="limit", price="1.05", time_in_force="GTC"))
                await desk.wait(rest.id)
                bench.sandbox.control.market("price", "EUR_USD", bid="1.07410", ask="1.07424")
                try:
                    assert (await desk.wait(rest.id, 20, TERMINAL)).state == "cancelled"
                    with pytest.raises(OrderRefused) as e:
                        await desk.submit(bench.intent(1_000))
                    assert {"max_daily_loss", "circuit_breaker", "cooldown_active"} <= set(e.value.reasons)
                    assert (await desk.risk()).state.status == "tripped"
                    assert (await desk.wait((await desk.close("EUR_USD")).id, 20, TERMINAL)).state == "filled"
                finally:
                    bench.sandbox.control.market("price", "EUR_USD", bid="1.08410", ask="1.08424")
        assert bench.problems() == []
    run(story())
