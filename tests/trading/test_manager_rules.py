"""The manager's rules without a server: pairs take turns, one pair's trouble is its own, and what is held may always end."""
import sys
from dataclasses import replace
from decimal import Decimal as D
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_decide import NOW, a_gate, account, ticket

from deskbook.core.clock import to_datetime
from deskbook.core.settings import Settings
from deskbook.trading import manager as module
from deskbook.trading.decide import entry_key
from deskbook.trading.intake import View
from deskbook.trading.manager import Picture, Refusals, Seen, Written, decide_each, entry_blocks, exit_blocks, mandate_of, marked_now, price_now
from deskbook.trading.profile import InstrumentProfile, Profile, SessionRule
from deskbook.trading.risk import RiskPolicy, worst_units
from deskbook.trading.stack import Stack
from deskbook.venues.model import Capabilities, Instrument, Quote

NAMES = ("EUR_USD", "USD_JPY", "GBP_USD", "AUD_USD")
PRICES = dict(zip(NAMES, (("1.0840", "1.0842"), ("154.20", "154.22"), ("1.3040", "1.3043"), ("0.6500", "0.6502")), strict=True))
QUOTES = {n: Quote(n, D(bid), D(ask), NOW - 300) for n, (bid, ask) in PRICES.items()}
OFFERED = {n: Instrument(n, *n.split("_"), D("0.001"), D(1), D(1), D(10_000_000), D("0.02")) for n in NAMES}
VENUE = Capabilities("oanda", "sandbox", "[a-z]+", 128, 15, frozenset(), frozenset())
ALWAYS = Profile(InstrumentProfile(session=SessionRule(0, 1439, "always")))


def the_mandate(names=NAMES, **more):
    """Small entries, so that there is room for each."""
    return mandate_of("paper", "manager", ALWAYS, Settings(hotband_pairs=names, **{"nav_risk_frac": "0.001", "top_k": 4, **more}))


def what_is_seen(gates=(), stacks=(), blocks=(), reconciled=True, frozen=False, blocked=()):
    stacks = {s.instrument: s for s in stacks}
    portfolio = replace(account(), quotes=QUOTES, instruments=OFFERED, units={n: s.total for n, s in stacks.items()})
    view = View({"reconciled_at": NOW if reconciled else None, "entries_frozen": frozen}, to_datetime(NOW), portfolio, RiskPolicy(), None, VENUE,
                blocked=frozenset(blocked))
    told = {n: a_gate(instrument=n) for n in gates}
    keys = {n: entry_key("manager", n, g) for n, g in told.items()}
    return Seen(Picture(view, stacks, frozenset(), {}, {}, {}, None), told, keys, blocks, NOW, 0.0)


def verdicts(seen, mandate, lately=None):
    return {i.instrument: p.verdict for i, p in decide_each(seen, mandate, lately or Refusals())}


@settings(deadline=None)
@given(st.permutations(NAMES), st.sets(st.sampled_from(NAMES)), st.integers(1, 4))
def test_the_first_of_the_roster_get_the_places_that_there_are(names, wanted, places):
    entered = [n for n, v in verdicts(what_is_seen(wanted), the_mandate(tuple(names), max_total_positions=places)).items() if v == "enter"]
    assert entered == [n for n in names if n in wanted][:places]


@settings(deadline=None)
@given(st.permutations(NAMES))
def test_each_is_decided_with_what_those_before_it_take(names):
    decided = decide_each(what_is_seen(names), the_mandate(tuple(names)), Refusals())
    taken = {}
    for i, plan in decided:
        assert {n: worst_units(i.portfolio, n) for n in i.portfolio.pending} == taken
        for order in plan.intents:
            taken[i.instrument] = abs(order.units)
    assert len(taken) > 1


@settings(deadline=None)
@given(st.sampled_from(NAMES))
def test_a_pair_that_cannot_be_decided_changes_no_other(broken):
    seen, mandate, real = what_is_seen(stacks=[Stack(n, (ticket(until=NOW - 1),)) for n in NAMES]), the_mandate(), module.decide
    def decide(i):
        if i.instrument == broken:
            raise OverflowError("a number that nobody thought of")
        return real(i)
    module.decide = decide
    try:
        assert verdicts(seen, mandate) == dict.fromkeys(NAMES, "exit") | {broken: "hold"}
    finally:
        module.decide = real


def test_what_is_ours_ends_also_where_nobody_asks_for_the_pair_and_what_is_not_ours_is_left_alone():
    seen = what_is_seen(stacks=[Stack("AUD_USD", (ticket(until=NOW - 1),)), Stack("GBP_USD", (), D(500))])
    assert verdicts(seen, the_mandate(("EUR_USD",))) == {"EUR_USD": "refuse", "AUD_USD": "exit"}


@settings(deadline=None)
@given(st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_only_what_concerns_the_desk_as_a_whole_forbids_an_exit(frozen, blocked, asked, reconciled, killed):
    flat, seen = (what_is_seen(["EUR_USD"], stacks, ("kill_switch",)*killed, reconciled, frozen, ["EUR_USD"]*blocked)
                  for stacks in ([], [Stack("EUR_USD", (ticket(until=NOW - 1),))]))
    assert exit_blocks(seen) == ("kill_switch",)*killed + ("not_reconciled",)*(not reconciled)
    assert entry_blocks(seen, "EUR_USD", asked, False) == ("entries_frozen",)*frozen + ("instrument_blocked",)*blocked + ("not_in_roster",)*(not asked)
    mandate = the_mandate(("EUR_USD",) if asked else ("USD_JPY",))
    assert verdicts(seen, mandate)["EUR_USD"] == ("hold" if killed or not reconciled else "exit")
    assert verdicts(flat, the_mandate(("EUR_USD",)))["EUR_USD"] == ("refuse" if frozen or blocked or killed or not reconciled else "enter")


def test_an_order_that_was_refused_is_not_asked_for_again_at_once():
    seen, lately = what_is_seen(["EUR_USD", "USD_JPY"]), Refusals()
    lately.add(seen.keys["EUR_USD"], NOW - 1_000)
    said = {i.instrument: p.reasons for i, p in decide_each(seen, the_mandate(NAMES[:2]), lately)}
    assert said == {"EUR_USD": ("order_refused",), "USD_JPY": ()}
    assert verdicts(replace(seen, now_ms=NOW + 1_000), the_mandate(NAMES[:2]), lately)["EUR_USD"] == "enter"


MONEY = st.decimals("1.05", "1.12", places=4)


@settings(deadline=None)
@given(MONEY, MONEY | st.none(), st.sampled_from([1000, -1000]), st.integers(-10_000, 120_000))
def test_the_best_price_never_gets_worse_and_an_old_quote_says_nothing(bid, best, units, age_ms):
    stack = Stack("EUR_USD", (ticket(units=units, best=best),))
    portfolio = account(units, quotes={"EUR_USD": Quote("EUR_USD", bid, bid + D("0.0002"), NOW - age_ms)})
    price = price_now(portfolio, stack, 60)
    (after,) = marked_now({"EUR_USD": ("mark", stack)}, portfolio, 60)["EUR_USD"].tickets
    if not -5_000 <= age_ms <= 60_000:
        assert price is None and after.best == best
        return
    assert price == (bid if units > 0 else bid + D("0.0002"))
    seen = [p for p in (price, best, after.price if best is None else None) if p is not None]
    assert after.best == (max if units > 0 else min)(seen)
    assert price_now(portfolio, Stack("EUR_USD"), 60) is None, "who holds nothing needs no price"


def test_what_was_written_is_known_until_the_next_gate():
    written = Written()
    (first, plan), (other, _) = decide_each(what_is_seen(["EUR_USD", "USD_JPY"]), the_mandate(NAMES[:2]), Refusals())
    written.about(first).add(plan.id)
    assert plan.id in written.about(first) and plan.id not in written.about(other)
    later = replace(first, gate=first.gate | {"asof_ms": first.gate["asof_ms"] + 60_000})
    assert not written.about(later) and not written.about(first)
    written.about(first).update(range(1001))
    assert not written.about(first), "and never grows without end"


def test_the_roster_is_read_once_and_a_stranger_has_the_rules_of_the_profile():
    mandate = the_mandate(("EUR_USD",))
    assert [*mandate.rules] == ["EUR_USD"] and mandate.rules_of("EUR_USD") is mandate.rules["EUR_USD"]
    assert mandate.rules_of("NZD_USD") == replace(ALWAYS.global_, instrument="NZD_USD")
