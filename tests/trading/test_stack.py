"""Laws of the trade stack: what is whose adds up, strangers' units are never ours to close, time runs on the wall, prices at their edges."""
import json
from dataclasses import replace
from decimal import Decimal as D

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskbook.trading.profile import ExitRule, InstrumentProfile
from deskbook.trading.sessions import Session
from deskbook.trading.stack import (
    Stack, StackFacts, StackFill, StackLimits, Ticket, after_fill, fold_stack, hold_s, marked, plan_entry, plan_exits, stack_document, with_best,
)

OPEN = Session(True, False, "profile_open", 0, 10**15)
RULES = InstrumentProfile("EUR_USD")


def entry(order_id, units, price="1.0840"):
    return StackFill(D(units), D(price), order_id, Ticket("", D(0), D(0), 0, 600_000))


def foreign(units):
    return StackFill(D(units), D("1.0850"), "x")


@st.composite
def histories(draw):
    fills = []
    for i in range(draw(st.integers(0, 12))):
        units, kind = draw(st.integers(-5, 5).filter(bool))*100, draw(st.sampled_from(["entry", "foreign", "exit", "more"]))
        entries = [f.order_id for f in fills if f.entry]
        if kind == "entry" or (kind == "more" and not entries):
            fills.append(entry(f"e{i}", units))
        elif kind == "foreign" or not entries:
            fills.append(foreign(units))
        elif kind == "more":
            chosen = draw(st.sampled_from(entries))
            same = next(f for f in fills if f.order_id == chosen)
            fills.append(entry(same.order_id, abs(units)*(1 if same.units > 0 else -1)))
        else:
            fills.append(StackFill(D(units), D("1.0850"), f"o{i}", parent=draw(st.sampled_from(entries))))
    return fills


@given(histories())
def test_the_parts_add_up_and_have_one_sign(fills):
    stack = fold_stack("EUR_USD", fills)
    assert stack.total == sum((f.units for f in fills), D(0))
    parts = [*(t.units for t in stack.tickets), *([stack.external] if stack.external else [])]
    assert all(parts) and len({p > 0 for p in parts}) <= 1
    assert len({t.order_id for t in stack.tickets}) == len(stack.tickets)


@given(histories())
def test_a_ticket_is_never_more_than_its_own_fills(fills):
    for t in fold_stack("EUR_USD", fills).tickets:
        assert abs(t.units) <= abs(sum(f.units for f in fills if f.order_id == t.order_id and f.entry))


@given(histories(), st.integers(-9, 9).filter(bool))
def test_a_stranger_never_gives_us_anything_and_is_eaten_first(fills, units):
    before = fold_stack("EUR_USD", fills)
    after = after_fill(before, foreign(units*100))
    assert abs(after.ours) <= abs(before.ours)
    if abs(units*100) <= abs(before.external) or before.total*units >= 0:
        assert after.tickets == before.tickets
    assert not after.tickets or all(any(t.order_id == b.order_id and abs(t.units) <= abs(b.units) for b in before.tickets) for t in after.tickets)


@given(histories(), st.data())
def test_closing_our_own_ticket_leaves_everything_else_alone(fills, data):
    before = fold_stack("EUR_USD", fills)
    if not before.tickets:
        return
    t = data.draw(st.sampled_from(before.tickets))
    after = after_fill(before, StackFill(-t.units, D("1.0850"), "out", parent=t.order_id))
    assert after.external == before.external
    assert after.tickets == tuple(o for o in before.tickets if o.order_id != t.order_id)


@given(histories())
def test_it_may_be_folded_from_any_moment_when_the_venue_was_flat(fills):
    whole, total, start = fold_stack("EUR_USD", fills), D(0), 0
    for i, f in enumerate(fills):
        total += f.units
        start = i + 1 if not total else start
    assert fold_stack("EUR_USD", fills[start:]) == whole


@given(histories())
def test_a_picture_of_it_is_read_back_whole(fills):
    stack = marked(fold_stack("EUR_USD", fills), D("1.0855"))
    assert with_best(fold_stack("EUR_USD", fills), json.loads(json.dumps(stack_document(stack, 5)))) == stack


@given(histories(), st.integers(0, 2_000_000), st.booleans(), st.booleans(), st.none() | st.just(D("1.0845")))
def test_exits_never_name_what_is_not_ours_and_a_gate_that_blocks_ends_nothing(fills, now_ms, blocked, flip, price):
    stack = fold_stack("EUR_USD", fills)
    exits = plan_exits(stack, RULES, now_ms, price, OPEN, blocked, flip)
    assert sum((abs(e.ticket.units) for e in exits), D(0)) <= abs(stack.ours)
    assert [e.ticket for e in exits] == ([*stack.tickets] if now_ms >= 600_000 else [])
    assert all(e.reasons == ("hold_expiry",) for e in exits)


def test_the_average_price_of_an_entry_filled_in_parts():
    stack = fold_stack("EUR_USD", [entry("a", 100, "1.00"), entry("a", 300, "2.00")])
    assert stack.tickets[0].price == D("1.75") and stack.tickets[0].units == 400


def a_stack(sign=1, **more):
    return Stack("EUR_USD", (replace(Ticket("a", D(1000*sign), D("1.0000"), 0, 600_000), **more),))


PRICES = [
    ({"stop_loss_pct": 0.01}, 1, "0.9900", ["stop_loss_hit"]), ({"stop_loss_pct": 0.01}, 1, "0.9901", []),
    ({"stop_loss_pct": 0.01}, -1, "1.0100", ["stop_loss_hit"]), ({"stop_loss_pct": 0.01}, -1, "0.9000", []),
    ({"take_profit_pct": 0.01}, 1, "1.0100", ["take_profit_hit"]), ({"take_profit_pct": 0.01}, -1, "0.9900", ["take_profit_hit"]),
    ({"take_profit_pct": 0.01}, 1, "1.0099", []), ({"trailing_stop_pct": 0.01}, 1, "0.9900", ["trailing_stop_hit"]),
]


@pytest.mark.parametrize("rule, sign, price, reasons", PRICES)
def test_a_price_at_its_edge(rule, sign, price, reasons):
    stack = marked(a_stack(sign), D(price))
    assert [r for e in plan_exits(stack, replace(RULES, **rule), 0, D(price), OPEN) for r in e.reasons] == reasons
    assert plan_exits(stack, replace(RULES, **rule), 0, None, OPEN) == [], "without a price no rule about prices"


@pytest.mark.parametrize("sign, best, now", [(1, "1.0200", "1.0000"), (-1, "0.9800", "1.0000")])
def test_breakeven_needs_the_gain_first(sign, best, now):
    rules = replace(RULES, breakeven_trigger_pct=0.02)
    seen = marked(marked(a_stack(sign), D(best)), D(now))
    assert [e.reasons for e in plan_exits(seen, rules, 0, D(now), OPEN)] == [("breakeven_stop_hit",)]
    assert plan_exits(marked(a_stack(sign), D(now)), rules, 0, D(now), OPEN) == []
    assert plan_exits(marked(a_stack(sign), D(best)), rules, 0, D(best), OPEN) == []


def test_all_reasons_of_an_exit_are_told_in_their_order():
    rules = replace(RULES, stop_loss_pct=0.01, trailing_stop_pct=0.01, exit=ExitRule(exit_on_block=True), allow_flip=True)
    session = replace(OPEN, exit_required=True)
    (e,) = plan_exits(marked(a_stack(), D("1.5")), rules, 600_000, D("0.9"), session, blocked=True, flip=True)
    assert e.reasons == ("stop_loss_hit", "trailing_stop_hit", "hold_expiry", "session_exit", "gate_blocked", "flip")


@pytest.mark.parametrize("most, said, seconds", [(None, None, 1800), (None, 10, 600), (5, 10, 300), (5, None, 300), (60, 10, 600)])
def test_how_long_a_ticket_is_held(most, said, seconds):
    assert hold_s(replace(RULES, exit=ExitRule(max_hold_minutes=most)), said, 1800) == seconds


ENTRIES = [
    (Stack("EUR_USD"), {}, {}, ()), (Stack("EUR_USD"), {"used": True}, {}, ("duplicate_signal",)),
    (Stack("EUR_USD"), {"pending": D(100)}, {}, ("entry_pending",)), (Stack("EUR_USD"), {"pending": D(-100)}, {}, ("entry_pending", "opposite_side_blocked")),
    (a_stack(-1), {}, {}, ("opposite_side_blocked",)), (Stack("EUR_USD", (), D(-1)), {}, {}, ("opposite_side_blocked",)), (Stack("EUR_USD", (), D(5)), {}, {}, ()),
    (a_stack(), {}, {"allow_stacking": False}, ("stacking_disabled",)), (Stack("EUR_USD"), {}, {"allow_stacking": False}, ()),
    (Stack("EUR_USD"), {"pairs": frozenset("ABCD")}, {}, ("max_total_positions_reached",)), (a_stack(), {"pairs": frozenset(["A", "B", "C", "EUR_USD"])}, {}, ()),
    (Stack("EUR_USD", tuple(Ticket(str(i), D(1), D(1), 0, 9) for i in range(5))), {"pairs": frozenset(["EUR_USD"])}, {}, ("max_stack_limit_reached",)),
    (Stack("EUR_USD"), {"last_entry_ms": 40_001}, {}, ("cooldown_active",)), (Stack("EUR_USD"), {"last_entry_ms": 40_000}, {}, ()),
]


@pytest.mark.parametrize("stack, facts, rule, reasons", ENTRIES)
def test_what_speaks_against_an_entry(stack, facts, rule, reasons):
    facts = StackFacts(**{"pairs": frozenset([stack.instrument] if stack.total else [])} | facts)
    assert plan_entry(stack, 1, replace(RULES, **rule), StackLimits(), facts, 100_000) == reasons
