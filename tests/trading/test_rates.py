"""Rates between currencies: right, fresh, the same for the same quotes, or none."""
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskbook.core.errors import Refused
from deskbook.trading import rates as r
from deskbook.venues.model import Quote

NOW = 1_762_131_660_000
COINS = ["USD", "EUR", "JPY", "GBP", "CHF"]
PRICE = st.decimals("0.0001", "200000", places=6).filter(lambda x: x > 0)


def quote(name, mid, age_s=1, half="0"):
    return Quote(name, Decimal(mid) - Decimal(half), Decimal(mid) + Decimal(half), NOW - round(age_s * 1000))


@st.composite
def quotes(draw):
    pairs = draw(st.lists(st.permutations(COINS).map(lambda c: (c[0], c[1])), max_size=6, unique_by=frozenset))
    return {f"{a}_{b}": quote(f"{a}_{b}", draw(PRICE), draw(st.sampled_from([0, 30, 60, 61, 1000]))) for a, b in pairs}


def fresh(quotes):
    return {name: q for name, q in quotes.items() if NOW - q.time_ms <= 60_000}


@given(quotes(), st.sampled_from(COINS), st.sampled_from(COINS))
def test_a_rate_is_there_exactly_when_one_or_two_fresh_quotes_lead_there(made, frm, to):
    edges = {frozenset(name.split("_")) for name in fresh(made)}
    reachable = frm == to or {frm, to} in edges or any({frm, via} in edges and {via, to} in edges for via in COINS)
    try:
        found = r.rate(frm, to, made, NOW)
    except r.NoRate as e:
        assert not reachable and e.reason == "no_usd_rate" and isinstance(e, Refused)
        return
    assert reachable and len(found.path) <= 2 and set(found.path) <= set(fresh(made))
    at, value = frm, Fraction(1)
    for name in found.path:
        base, counter = name.split("_")
        value = value * Fraction(made[name].mid) if at == base else value / Fraction(made[name].mid)
        at = counter if at == base else base
    assert at == to
    assert abs(Fraction(found.value) - value) <= value / 10**30
    assert found.time_ms == min([made[n].time_ms for n in found.path], default=NOW)


@given(quotes(), st.sampled_from(COINS), st.sampled_from(COINS), st.randoms())
def test_the_order_of_the_quotes_does_not_matter(made, frm, to, rng):
    shuffled = list(made.items())
    rng.shuffle(shuffled)
    try:
        expected = r.rate(frm, to, made, NOW)
    except r.NoRate:
        with pytest.raises(r.NoRate):
            r.rate(frm, to, dict(shuffled), NOW)
    else:
        assert r.rate(frm, to, dict(shuffled), NOW) == expected


@pytest.mark.parametrize("there", [["CHF", "EUR", "GBP", "USD"], ["AUD", "CHF", "EUR", "GBP"], ["AUD", "CAD", "CHF", "GBP", "NZD"]])
def test_of_several_crosses_the_dollar_comes_first_then_the_euro_then_the_alphabet(there):
    made = {name: quote(name, "1.5") for via in there for name in (f"SEK_{via}", f"{via}_JPY")}
    first = "USD" if "USD" in there else "EUR" if "EUR" in there else min(there)
    assert r.rate("SEK", "JPY", made, NOW).path == (f"SEK_{first}", f"{first}_JPY")


@given(quotes())
def test_a_direct_quote_wins_and_there_and_back_is_one(made):
    for name in fresh(made):
        frm, to = name.split("_")
        there, back = r.rate(frm, to, made, NOW), r.rate(to, frm, made, NOW)
        assert there.path == back.path == (name,)
        assert abs(there.value * back.value - 1) < Decimal("1e-26")


@pytest.mark.parametrize("age_s, ok", [(0, True), (60, True), (60.001, False), (-5, True), (-5.001, False)])
def test_staleness_ends_at_its_limit_on_both_sides(age_s, ok):
    assert r.usable(quote("EUR_USD", "1.1", age_s), NOW, 60) is ok


@pytest.mark.parametrize("bid, ask", [("1.2", "1.1"), ("0", "1.1"), ("-1", "1"), ("NaN", "1.1"), ("1.1", "Infinity")])
def test_a_quote_that_is_no_price_is_not_used(bid, ask):
    with pytest.raises(r.NoRate):
        r.rate("EUR", "USD", {"EUR_USD": Quote("EUR_USD", Decimal(bid), Decimal(ask), NOW)}, NOW)


@given(st.decimals("-1e9", "1e9", places=2), PRICE)
def test_the_two_legs_of_a_position_cancel(units, price):
    made = {"GBP_USD": quote("GBP_USD", price)}
    usd = r.usd_notional("GBP_JPY", units, made, NOW)
    assert usd == units * price
    assert sum(r.usd_legs("GBP_JPY", usd).values()) == 0


@pytest.mark.parametrize("name", ["GER40", "EUR_", "_USD", "A_B_C", ""])
def test_a_name_without_two_currencies_has_no_rate(name):
    with pytest.raises(r.NoRate, match="two currencies"):
        r.usd_notional(name, Decimal(1), {}, NOW)


def test_the_error_names_the_old_quote():
    with pytest.raises(r.NoRate, match=r"from EUR to USD that is at most 60 s old \(there is EUR_USD of 2025-11-03T00:59"):
        r.rate("EUR", "USD", {"EUR_USD": replace(quote("EUR_USD", "1.1"), time_ms=NOW - 61_000)}, NOW)
