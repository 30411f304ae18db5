"""Decisions: nothing begins without an admitted, fresh gate and a free desk; what ends, ends; the same again is the same row."""
from dataclasses import fields, replace
from decimal import Decimal as D

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskbook.core.clock import to_ms
from deskbook.trading.decide import DecisionInputs, ExitFacts, Signal, decide, entry_key, inputs_document, retry_pause_s, sign_of, signal_of
from deskbook.trading.guards import gate_reasons
from deskbook.trading.intake import ask
from deskbook.trading.book import rows_json
from deskbook.trading.orders import idempotency_key
from deskbook.trading.profile import BundleRule, ExitRule, Guards, InstrumentProfile
from deskbook.trading.risk import Portfolio, RiskPolicy, evaluate
from deskbook.trading.sessions import Session
from deskbook.trading.stack import Stack, StackFacts, StackLimits, Ticket
from deskbook.venues.model import Instrument, Quote

NOW = to_ms("2025-11-05T10:01:40Z")
E1, E2 = "01890a5d-ac96-774b-bcce-b302099a8057", "01890a5d-ac96-774b-bcce-b302099a8058"
OFFERED = {"EUR_USD": Instrument("EUR_USD", "EUR", "USD", D("0.00001"), D(1), D(1), D(10_000_000), D("0.02"))}
QUOTES = {"EUR_USD": Quote("EUR_USD", D("1.0840"), D("1.0842"), NOW - 300)}
RULES = InstrumentProfile("EUR_USD")
OPEN, CLOSED = Session(True, False, "profile_open", 0, NOW*2), Session(False, False, "session_closed", NOW*2, NOW*3)


def a_gate(**more):
    return {"instrument": "EUR_USD", "ts_ms": NOW - 100_000, "asof_ms": NOW - 40_000, "admit": True, "direction": "BUY", "lambda": 0.4, "hazard": 0.4,
            "repetitions": 3, "structure": {"coherence": 0.5}, "reasons": []} | more


def account(units=0, **more):
    return replace(Portfolio("paper", NOW, D(100_000), NOW, D(100_000), {"EUR_USD": D(units)} if units else {}, quotes=QUOTES, instruments=OFFERED), **more)


def inputs(gate=None, **more):
    return replace(DecisionInputs("paper", "manager", RULES, a_gate() if gate is None else gate, NOW, OPEN, Stack("EUR_USD"), account(), RiskPolicy(), None), **more)


def ticket(order_id=E1, units=1000, until=NOW + 60_000, **more):
    return replace(Ticket(order_id, D(units), D("1.0800"), NOW - 60_000, until, gate_ms=NOW - 100_000), **more)


def holding(*tickets, external=0, **more):
    stack = Stack("EUR_USD", tickets or (ticket(),), D(external))
    return inputs(stack=stack, portfolio=account(stack.total), facts=StackFacts(frozenset(["EUR_USD"])), **more)


BLOCKS = st.lists(st.sampled_from(["kill_switch", "read_only", "entries_frozen"]), max_size=2, unique=True).map(tuple)
GATES = st.builds(a_gate, admit=st.sampled_from([True, True, True, False]), direction=st.sampled_from(["BUY", "SELL", "FLAT", "UP"]),
                  asof_ms=st.sampled_from([NOW - 40_000, NOW - 180_000, NOW - 180_001, NOW + 6_000]), hazard=st.floats(0, 1), repetitions=st.integers(0, 3),
                  structure=st.fixed_dictionaries({"coherence": st.floats(-1, 1) | st.just(None)}), bundle_blocks=st.sampled_from([None, ["CB002"]]))


@st.composite
def situations(draw):
    more = {"entry_blocks": draw(BLOCKS), "session": draw(st.sampled_from([OPEN, OPEN, CLOSED])), "rules": replace(RULES, guards=Guards(min_coherence=draw(st.none() | st.floats(-1, 1))))}
    units, external = draw(st.sampled_from([0, 0, 1000, -1000])), draw(st.sampled_from([0, 0, 500]))
    made = inputs(draw(GATES), **more)
    if units:
        tickets = (ticket(units=units, until=draw(st.sampled_from([NOW, NOW + 1]))),)
        made = replace(made, stack=Stack("EUR_USD", tickets, D(external if units > 0 else -external)))
    return replace(made, portfolio=account(made.stack.total, equity=draw(st.sampled_from([D(100_000), D(100_000), None, D(1)]))), exit_blocks=draw(BLOCKS),
                   facts=StackFacts(used=draw(st.booleans()), pending=draw(st.sampled_from([D(0), D(5)]))))


@given(situations())
def test_an_entry_needs_all_of_it(i):
    plan = decide(i)
    if plan.verdict != "enter":
        return
    assert not gate_reasons(i.gate, i.rules, i.now_ms, 180) and i.gate["admit"] is True and i.now_ms - i.gate["asof_ms"] <= 180_000
    assert i.session.entry_allowed and not i.entry_blocks and not i.facts.used and not i.facts.pending and not plan.reasons
    assert not [t for t in i.stack.tickets if t.hold_until_ms <= i.now_ms]
    (order,) = plan.intents
    assert (order.units > 0) == (i.gate["direction"] == "BUY") and i.stack.total*order.units >= 0 and not order.reduce_only
    assert evaluate(i.policy, i.state, i.portfolio, order).allowed and order.expires_s <= max(0.1, 180 - (i.now_ms - i.gate["asof_ms"])/1000)
    assert order.decision_id == str(plan.id) and order.trace_id == plan.id.hex


@given(situations())
def test_a_refusal_tells_everything_and_sends_nothing(i):
    plan = decide(i)
    if plan.verdict not in ("refuse", "hold"):
        return
    assert not plan.intents and plan.reasons and len(set(plan.reasons)) == len(plan.reasons)
    if not any(t.hold_until_ms <= i.now_ms for t in i.stack.tickets):
        assert {*i.entry_blocks, *gate_reasons(i.gate, i.rules, i.now_ms, 180)} <= {*plan.reasons}
        assert i.session.entry_allowed or "session_closed" in plan.reasons
    assert (plan.verdict == "hold") == bool(i.stack.tickets)


@given(situations())
def test_an_exit_is_ours_reduces_and_only_when_the_desk_may(i):
    plan = decide(i)
    due = [t for t in i.stack.tickets if t.hold_until_ms <= i.now_ms]
    assert (plan.verdict == "exit") == (bool(due) and not i.exit_blocks)
    for order in plan.intents if plan.verdict == "exit" else ():
        assert order.reduce_only and order.kind == "exit" and order.parent_order_id == E1 and abs(order.units) <= 1000 and order.units*i.stack.ours < 0


@given(situations(), st.floats(0, 2))
def test_a_tighter_guard_never_enters_more(i, step):
    floor = i.rules.guards.min_coherence
    tight = replace(i, rules=replace(i.rules, guards=Guards(min_coherence=(-1.0 if floor is None else floor) + step)))
    if decide(tight).verdict == "enter":
        assert decide(i).verdict == "enter"


@given(situations(), situations())
def test_the_id_says_what_was_decided_and_nothing_else(a, b):
    p, q = decide(a), decide(b)
    def said(i, plan):
        return plan.verdict, plan.reasons, i.gate["asof_ms"], [idempotency_key(o) for o in plan.intents]
    assert (p.id == q.id) == (said(a, p) == said(b, q))
    assert decide(replace(a, portfolio=replace(a.portfolio, now_ms=NOW + 1))).id == p.id or p.reasons != decide(replace(a, portfolio=replace(a.portfolio, now_ms=NOW + 1))).reasons


@given(situations())
def test_what_is_kept_is_json_and_rebuilds_the_ticket(i):
    plan = decide(i)
    kept = inputs_document(i, plan)
    assert rows_json([kept])
    assert (kept["plan"] is not None) == (plan.verdict == "enter")
    if kept["plan"]:
        assert kept["plan"]["hold_until_ms"] == NOW + 1_800_000 and kept["plan"]["gate_ms"] == i.gate["asof_ms"]


def test_without_a_gate_there_is_a_row_an_hour():
    nothing = replace(inputs(), gate=None)
    assert decide(nothing).reasons == ("missing_payload",)
    assert decide(nothing).id == decide(replace(nothing, now_ms=NOW + 60_000)).id != decide(replace(nothing, now_ms=NOW + 3_600_000)).id


def test_the_key_of_an_entry_comes_from_the_gate_alone():
    a, b = decide(inputs()), decide(inputs(now_ms=NOW + 5_000, portfolio=account(equity=D(50_000))))
    assert a.intent.units != b.intent.units and idempotency_key(a.intent) == idempotency_key(b.intent) == entry_key("manager", "EUR_USD", a_gate())
    assert idempotency_key(decide(inputs(a_gate(asof_ms=NOW - 20_000))).intent) != idempotency_key(a.intent)


@pytest.mark.parametrize("word, sign", [("promote", 1), ("BUY", 1), (" long ", 1), ("scalp", 1), ("fade", -1), ("sell", -1), ("SHORT", -1), ("", None), ("quarantine", None), (None, None), (1, None)])
def test_words_for_sides(word, sign):
    assert sign_of(word) == sign


B = {"MB003": BundleRule(min_score=0.3, hold_minutes=360), "NB001": BundleRule(exposure_multiplier=D("0.75")), "CB002": BundleRule(False)}
HITS = [
    ([{"id": "MB003", "action": "promote", "score": 0.3}], Signal(1, f"bundle:MB003:{NOW - 100_000}", "MB003", D(1), 360)),
    ([{"id": "MB003", "action": "promote", "score": 0.29}], Signal(1, f"gate:{NOW - 100_000}")), ([{"id": "CB002", "action": "sell", "score": 9}], Signal(1, f"gate:{NOW - 100_000}")),
    ([{"id": "XX", "action": "sell", "score": 9}, "junk", {}], Signal(1, f"gate:{NOW - 100_000}")), ([{"id": "MB003", "action": "sell", "score": float("nan")}], Signal(1, f"gate:{NOW - 100_000}")),
    ([{"id": "MB003", "action": "buy", "score": 0.5}, {"id": "NB001", "action": "fade", "score": 0.6, "hold_minutes": 10}], Signal(-1, f"bundle:NB001:{NOW - 100_000}", "NB001", D("0.75"), 10)),
    ([{"id": "NB001", "action": "fade", "score": 0.6, "hold_minutes": -1}], Signal(-1, f"bundle:NB001:{NOW - 100_000}", "NB001", D("0.75"), None)),
    ([{"id": "NB001", "action": "hm", "score": 0.6}], "unknown_action:hm"),
]


@pytest.mark.parametrize("hits, signal", HITS)
def test_which_hit_decides(hits, signal):
    assert signal_of(a_gate(bundle_hits=hits), replace(RULES, bundles=B)) == signal
    if isinstance(signal, Signal) and signal.bundle:
        assert signal_of(a_gate(bundle_hits=hits), replace(RULES, bundles=B, invert_bundles=True)).sign == -signal.sign


def test_an_unknown_action_is_refused():
    assert decide(inputs(a_gate(direction="UP"))).reasons == ("unknown_action:UP",)
    assert decide(inputs(a_gate(direction="FLAT"))).reasons == ("flat_direction",)


def test_the_size_is_floored_never_one_for_zero_and_says_why():
    assert decide(inputs()).intent.units == D(9224)
    assert decide(inputs(portfolio=account(equity=D(5)))).reasons == ("max_instrument_exposure",)
    assert decide(inputs(portfolio=account(quotes={}))).reasons == ("mark_stale", "no_usd_rate")
    assert "equity_stale" in decide(inputs(portfolio=account(equity=None))).reasons


def test_no_rate_to_dollars_is_no_order():
    cross = {"EUR_GBP": Instrument("EUR_GBP", "EUR", "GBP", D("0.00001"), D(1), D(1), D(10_000_000), D("0.02"))}
    quotes = {"EUR_GBP": Quote("EUR_GBP", D("0.8840"), D("0.8842"), NOW)}
    i = inputs(a_gate(instrument="EUR_GBP"), rules=InstrumentProfile("EUR_GBP"), portfolio=account(quotes=quotes, instruments=cross), stack=Stack("EUR_GBP"))
    assert decide(i).reasons == ("no_usd_rate",)


def test_every_ticket_is_closed_by_an_order_of_its_own_within_the_position():
    two = holding(ticket(until=NOW), ticket(E2, 500, NOW))
    plan = decide(two)
    assert [(o.parent_order_id, o.units) for o in plan.intents] == [(E1, D(-1000)), (E2, D(-500))] and len({idempotency_key(o) for o in plan.intents}) == 2
    short = replace(two, portfolio=account(1200))
    assert [o.units for o in decide(short).intents] == [D(-1000), D(-200)]
    assert decide(replace(two, portfolio=account(-10))).reasons == ("hold_expiry", "exceeds_position")


def test_strangers_units_stay():
    plan = decide(holding(ticket(until=NOW), external=5000))
    assert [o.units for o in plan.intents] == [D(-1000)]
    assert decide(inputs(stack=Stack("EUR_USD", (), D(5000)), portfolio=account(5000), gate=a_gate(admit=False))).verdict == "refuse"


@pytest.mark.parametrize("facts, reason", [(ExitFacts(D(1000), 1, 0, NOW), "exit_pending"), (ExitFacts(D(0), 1, 0, NOW - 1_999), "exit_retry_wait"), (ExitFacts(D(0), 4, 0, NOW - 15_999), "exit_retry_wait"), (ExitFacts(D(0), 0, 4, NOW - 15_999), "exit_retry_wait")])
def test_an_exit_on_its_way_is_not_sent_again(facts, reason):
    assert decide(holding(ticket(until=NOW), exits={E1: facts})).reasons == ("hold_expiry", reason)


def test_a_failed_exit_is_tried_again_under_a_new_key():
    keys = [idempotency_key(decide(holding(ticket(until=NOW), exits={E1: ExitFacts(attempts=n)})).intent) for n in (0, 1, 2, 1)]
    assert len(set(keys)) == 3 and keys[1] == keys[3]
    assert [retry_pause_s(n) for n in (0, 1, 2, 8, 9, 10_000)] == [0, 2, 4, 256, 300, 300]


def test_a_block_stops_entries_only_unless_the_profile_says_else():
    gate = a_gate(admit=False)
    assert decide(holding(gate=gate)).verdict == "hold"
    assert decide(holding(gate=gate, rules=replace(RULES, exit=ExitRule(exit_on_block=True)))).reasons == ("gate_blocked",)


def test_no_flip_by_default_and_with_it_out_before_in():
    sell = holding(gate=a_gate(direction="SELL"))
    assert (decide(sell).verdict, decide(sell).reasons) == ("hold", ("opposite_side_blocked",))
    flip = replace(sell, rules=replace(RULES, allow_flip=True))
    assert (decide(flip).verdict, decide(flip).reasons, decide(flip).intent.units) == ("exit", ("flip",), D(-1000))
    assert decide(replace(flip, session=CLOSED)).verdict == "hold"
    assert decide(replace(flip, gate=a_gate(direction="SELL", admit=False))).verdict == "hold"


def test_the_bits_of_a_gate_are_not_kept_twice():
    seen = decide(inputs(a_gate(components={"bits_b64": "AAEB", "codec_meta": {"delta_scale": 1.0}}))).gate_seen
    assert seen["components"] == {"codec_meta": {"delta_scale": 1.0}}


def test_names_of_orders_fit_the_intake():
    from deskbook.venues.model import Capabilities
    room = Capabilities("oanda", "sandbox", "[A-Za-z0-9_-]+", 128, 1.0, frozenset(["FOK"]), frozenset(["market"]))
    for plan in (decide(inputs()), decide(holding(ticket(until=NOW)))):
        assert ask(plan.intent, "paper", room).key


def test_limits_are_fields_of_the_settings():
    assert {f.name for f in fields(StackLimits)} == {"max_per_pair", "max_pairs", "cooldown_s", "default_hold_s"}


def test_a_gate_with_odd_numbers_can_be_written_down():
    i = inputs(a_gate(structure={"coherence": float("nan"), "x": [float("inf")]}), rules=replace(RULES, guards=Guards(min_coherence=0.1)))
    assert '"nan"' in rows_json([inputs_document(i, decide(i))]) and decide(i).reasons == ("coherence_invalid",)


def test_a_try_in_the_future_holds_up_no_exit_also_while_the_venue_does_not_trade():
    """The clock was set back after the last try."""
    shut = {"EUR_USD": replace(QUOTES["EUR_USD"], tradeable=False)}
    i = holding(ticket(until=NOW - 1), exits={E1: ExitFacts(attempts=1, last_ms=NOW + 3_600_000)})
    assert decide(replace(i, portfolio=replace(i.portfolio, quotes=shut))).verdict == "exit"
