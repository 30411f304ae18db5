"""Intents, keys, client ids, states and the checks of an order's form."""
from dataclasses import fields, replace
from decimal import Decimal
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deskbook.core.errors import BadInput, DeskbookError, Refused
from deskbook.trading import orders as o
from deskbook.trading.orders import Cause, Intent
from deskbook.venues.model import Capabilities, Instrument

EUR_USD = Instrument("EUR_USD", "EUR", "USD", Decimal("0.00001"), Decimal(1), Decimal(1), Decimal(100_000_000), Decimal("0.02"))
OANDA = Capabilities("oanda", "sandbox", "[A-Za-z0-9_-]+", 128, 30.0, frozenset({"FOK", "IOC", "GTC"}), frozenset({"market", "limit"}))
TEXT = st.text(max_size=30)
CAUSES = st.builds(Cause, run=TEXT, bar_close_ms=st.integers(), action=TEXT)
NUMBERS = st.decimals(allow_nan=False, allow_infinity=False)


def intent(units="1000", **more):
    return Intent(**{"account": "paper", "instrument": "EUR_USD", "units": units, "idempotency_key": "k", **more})


# --- keys -------------------------------------------------------------------------------------------------------------------------

@given(CAUSES, CAUSES, st.sampled_from(["EUR_USD", "USD_JPY"]), st.sampled_from(["EUR_USD", "USD_JPY"]))
@example(Cause("x:1", 2, "enter"), Cause("x", 1, "2:enter"), "EUR_USD", "EUR_USD")
@example(Cause("x%3A1", 1, "enter"), Cause("x:1", 1, "enter"), "EUR_USD", "EUR_USD")
def test_two_causes_have_one_key_only_when_they_are_one(a, b, i, j):
    key = [o.idempotency_key(Intent("paper", name, 1, cause=c)) for c, name in ((a, i), (b, j))]
    assert (key[0] == key[1]) == ((a, i) == (b, j))


@given(CAUSES)
def test_a_retry_has_the_key_of_the_first_try(cause):
    first = Intent("paper", "EUR_USD", 1000, cause=cause, trace_id="a", decision_id="1", expires_s=5)
    again = Intent("paper", "EUR_USD", "1000.0", cause=cause, trace_id="b", decision_id="2")
    assert o.idempotency_key(first) == o.idempotency_key(again)
    assert o.fingerprint(first) == o.fingerprint(again)


def test_the_callers_key_wins_and_is_checked():
    assert o.idempotency_key(intent(cause=Cause("r", 1, "enter"))) == "k"
    for key in ("", "a b", "a\n", "ä", "x" * 201):
        with pytest.raises(BadInput, match="not usable"):
            o.idempotency_key(intent(idempotency_key=key))
    with pytest.raises(BadInput, match="neither a cause"):
        o.idempotency_key(Intent("paper", "EUR_USD", 1))


@pytest.mark.parametrize("change", [
    {"account": "sandbox"}, {"instrument": "USD_JPY"}, {"units": Decimal(-1000)}, {"units": Decimal("1000.1")}, {"type": "limit"}, {"price": Decimal("1.1")},
    {"time_in_force": "IOC"}, {"kind": "exit"}, {"reduce_only": True}, {"stop_loss_price": Decimal("1.0")}, {"parent_order_id": "x"}, {"override_kill": True}])
def test_another_body_has_another_fingerprint(change):
    assert o.fingerprint(replace(intent(), **change)) != o.fingerprint(intent())


@given(NUMBERS, NUMBERS)
def test_fingerprints_compare_numbers_and_not_digits(a, b):
    assert (o.fingerprint(intent(a)) == o.fingerprint(intent(b))) == (a == b)


def test_every_field_of_an_intent_is_body_or_knowingly_left_out():
    assert {f.name for f in fields(Intent)} == set(o._BODY) | {"cause", "idempotency_key", "decision_id", "expires_s", "decided_s", "trace_id"}


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40), st.integers(19, 128), st.sampled_from(["[A-Za-z0-9_-]+", "[a-z0-9]+"]))
def test_client_ids_fit_the_venue_and_never_change(account, key, length, pattern):
    venue = replace(OANDA, client_id_max_length=length, client_id_pattern=pattern)
    made = o.client_order_id(account, key, venue)
    assert made == o.client_order_id(account, key, venue) == made.lower()
    assert len(made) <= length and made.startswith("db")
    assert made != o.client_order_id(account, key + "x", venue)
    assert made != o.client_order_id(account + "x", key, venue)


def test_account_and_key_do_not_run_together():
    assert o.client_order_id("paper", "1:x", OANDA) != o.client_order_id("paper:1", "x", OANDA)


def test_a_venue_without_room_for_an_id_is_refused():
    for venue in (replace(OANDA, client_id_max_length=17), replace(OANDA, client_id_pattern="[0-9]+")):
        with pytest.raises(BadInput, match="allows client ids"):
            o.client_order_id("paper", "k", venue)


# --- numbers ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bad", [0.1, True, "1e", "", None, [1]])
def test_an_inexact_or_unreadable_number_is_bad_input(bad):
    with pytest.raises(BadInput):
        intent(bad) if bad is not None else o.to_decimal(None)


@given(st.one_of(NUMBERS, st.integers()), st.booleans())
def test_numbers_are_kept_exactly(value, as_text):
    assert intent(str(value) if as_text else value).units == value


@given(st.decimals(min_value="1e-8", max_value="1e12", places=8).filter(bool), st.sampled_from(["1", "0.1", "0.001", "0.00000001", "25", "1000"]))
def test_units_on_a_step_are_told_as_fractions_tell_them(units, step):
    lot = Decimal(step)
    instrument = replace(EUR_USD, lot=lot, min_units=lot, max_units=Decimal(10**9))
    exact = (Fraction(units) / Fraction(lot)).denominator == 1
    reasons = o.check_units(units, instrument)
    assert ("units_precision" in reasons) == (not exact)
    assert ("units_below_minimum" in reasons) == (units < lot)
    assert ("units_above_maximum" in reasons) == (units > 10**9)
    assert o.check_units(-units, instrument) == reasons


@given(st.decimals())
def test_any_decimal_is_checked_without_an_error(value):
    reasons = o.check_intent(intent(value), EUR_USD, OANDA)
    assert set(reasons) <= set(o.REASONS)
    if not value.is_finite():
        assert reasons == ["units_not_a_number"]
    price = o.check_intent(intent(1, type="limit", time_in_force="GTC", price=value, stop_loss_price=value), EUR_USD, OANDA)
    assert set(price) <= {"price_invalid", "price_off_tick", "stop_price_invalid", "stop_price_off_tick"}


@pytest.mark.parametrize("units, reasons", [
    ("0", ["units_zero"]), ("-0", ["units_zero"]), ("NaN", ["units_not_a_number"]), ("sNaN", ["units_not_a_number"]), ("-Infinity", ["units_not_a_number"]),
    ("1000.5", ["units_precision"]), ("0.5", ["units_below_minimum", "units_precision"]), ("-100000001", ["units_above_maximum"]),
    ("100000000.5", ["units_above_maximum", "units_precision"]), ("1E+999999", ["units_above_maximum"]), ("1E-999999", ["units_below_minimum", "units_precision"]),
    ("100000000", []), ("-1", []), ("1E+3", [])])
def test_units(units, reasons):
    assert o.check_intent(intent(units), EUR_USD) == reasons


@pytest.mark.parametrize("more, reasons", [
    ({"type": "limit"}, ["price_missing"]),
    ({"price": "1.1"}, ["price_not_allowed"]),
    ({"type": "limit", "price": "1.084123"}, ["price_off_tick"]),
    ({"type": "limit", "price": "0"}, ["price_invalid"]),
    ({"type": "limit", "price": "-1.1"}, ["price_invalid"]),
    ({"type": "limit", "price": "NaN"}, ["price_invalid"]),
    ({"type": "limit", "price": "1.1"}, []),
    ({"type": "limit", "price": "1E+2000"}, ["price_off_tick"]),
    ({"type": "limit", "price": "1E-2000"}, ["price_off_tick"]),
    ({"type": "stop"}, ["type_not_supported", "time_in_force_not_allowed"]),
    ({"time_in_force": "GTC"}, ["time_in_force_not_allowed"]),
    ({"type": "limit", "price": "1.1", "time_in_force": "GTD"}, ["time_in_force_not_allowed"]),
    ({"type": "limit", "price": "1.1", "time_in_force": "GFD"}, ["time_in_force_not_allowed"]),
    ({"override_kill": True}, ["override_needs_reduce_only"]),
    ({"override_kill": True, "reduce_only": True}, []),
    ({"stop_loss_price": "1.000001"}, ["stop_price_off_tick"]),
    ({"stop_loss_price": "-1"}, ["stop_price_invalid"]),
])
def test_the_rest_of_the_form(more, reasons):
    assert o.check_intent(intent(**more), EUR_USD, OANDA) == reasons


def test_everything_wrong_is_told_at_once():
    bad = intent("0.5", type="limit", price="1.000001", time_in_force="GTD", override_kill=True, stop_loss_price="0")
    assert o.check_intent(bad, replace(EUR_USD, tradeable=False), OANDA) == [
        "units_below_minimum", "units_precision", "time_in_force_not_allowed", "override_needs_reduce_only", "instrument_not_tradeable", "price_off_tick", "stop_price_invalid"]
    assert o.check_intent(intent(), None) == ["instrument_unknown"]


# --- states -----------------------------------------------------------------------------------------------------------------------

def test_the_table_is_closed_and_every_state_can_be_reached_and_left():
    assert set(o.TRANSITIONS) == set(o.STATES)
    reached, todo = {"created"}, ["created"]
    while todo:
        for state in o.TRANSITIONS[todo.pop()] - reached:
            reached.add(state)
            todo.append(state)
    assert reached == set(o.STATES)
    assert {s for s in o.STATES if not o.TRANSITIONS[s]} == o.TERMINAL
    for state in set(o.STATES) - o.TERMINAL:
        assert o.TRANSITIONS[state] & o.TERMINAL


def test_only_the_arrows_of_the_table():
    for now in o.STATES:
        for to in o.STATES:
            if now == to:
                assert o.check_transition(now, to) is False
            elif to in o.TRANSITIONS[now]:
                assert o.check_transition(now, to) is True
            else:
                with pytest.raises(o.BadTransition, match=f"{now} cannot become {to}"):
                    o.check_transition(now, to)
    with pytest.raises(o.BadTransition, match="is not a state"):
        o.check_transition("open", "closed")


def test_only_two_states_lead_to_a_request():
    assert {s for s in o.STATES if "submitting" in o.TRANSITIONS[s]} == {"created", "unknown"}


SENT = [s for s in o.STATES if s != "created"]


@given(st.sampled_from(SENT), st.integers(1, 100), st.integers(0, 120), st.sampled_from([1, -1]))
def test_fills_lead_along_the_arrows_and_never_back(state, units, filled, sign):
    to = o.state_after_fills(state, Decimal(units * sign), Decimal(filled * sign))
    o.check_transition(state, to)
    if state in o.TERMINAL:
        assert to == state
    elif filled >= units:
        assert to == "filled"
    else:
        assert to in (state, "partially_filled")


@given(st.sampled_from([s for s in SENT if s != "created"]), st.sampled_from(["open", "partially_filled", "filled", "cancelled", "expired"]), st.integers(0, 120))
def test_what_the_venue_says_leads_along_the_arrows(state, told, filled):
    to = o.state_after_venue(state, told, Decimal(100), Decimal(filled))
    o.check_transition(state, to)
    assert state not in o.TERMINAL or to == state


@pytest.mark.parametrize("messages, end", [
    (["open", 40, 60, "filled"], "filled"), (["open", "partially_filled", 40, "cancelled"], "cancelled"), ([100, "filled"], "filled"), (["open", "open", "expired"], "expired")])
def test_the_order_of_messages_does_not_matter(messages, end):
    for told in permutations(messages):
        state, done = "submitting", 0
        for message in told:
            before = state
            if isinstance(message, int):
                done += message
                state = o.state_after_fills(state, Decimal(100), Decimal(done))
            else:
                state = o.state_after_venue(state, message, Decimal(100), Decimal(done))
            o.check_transition(before, state)
        assert state == end, told


# --- reasons and errors -----------------------------------------------------------------------------------------------------------

def test_errors_say_what_and_carry_facts():
    refused = o.OrderRefused(["kill_switch", "max_leverage"], "17")
    assert isinstance(refused, Refused) and refused.reasons == ("kill_switch", "max_leverage") and refused.order_id == "17"
    assert "[kill_switch]" in str(refused) and "too much leverage" in str(refused)
    conflict = o.IdempotencyConflict("k", "17")
    assert isinstance(conflict, DeskbookError) and (conflict.key, conflict.order_id) == ("k", "17") and "17" in str(conflict)
    assert "no explanation" in o.explain(["something_new"])
