"""The fold of fills against an oracle in fractions that keeps every lot, and the laws it must keep."""
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deskbook.core.errors import DataError
from deskbook.trading import positions as p
from deskbook.trading.positions import Position
from deskbook.venues.model import Quote, VenueFill

NOW = 1_762_131_600_000


def fill(n, units, price="1.1", fee="0", rate="1", instrument="EUR_USD", at=None, currency="USD"):
    return VenueFill(str(n), f"o{n}", "", instrument, Decimal(units), Decimal(price), Decimal(fee), currency, NOW + (n if at is None else at),
                     conversion_rate=None if rate is None else Decimal(rate))


UNITS = st.one_of(st.integers(-30, 30).filter(bool).map(Decimal), st.decimals("-1e7", "1e7", places=3).filter(bool))
PRICES = st.one_of(st.sampled_from(["1.1", "1.2", "0.9"]).map(Decimal), st.decimals("0.00001", "200000", places=5))


@st.composite
def fills(draw, most=25, rates=True):
    made = draw(st.lists(st.tuples(UNITS, PRICES, st.decimals("-1", "5", places=4), st.decimals("0.001", "2", places=6)), max_size=most))
    return [fill(n, u, price, fee, rate if rates else None) for n, (u, price, fee, rate) in enumerate(made)]


class Lots:
    """Average cost the long way: every lot is kept, and each closing takes the same share of all of them."""

    def __init__(self):
        self.lots, self.realised, self.account, self.fees = [], Fraction(0), Fraction(0), Fraction(0)

    @property
    def units(self):
        return sum((u for u, _ in self.lots), Fraction(0))

    @property
    def cost(self):
        return sum((u * price for u, price in self.lots), Fraction(0))

    def add(self, f):
        units, price = Fraction(f.units), Fraction(f.price)
        self.fees += Fraction(f.fee)
        held = self.units
        if held * units < 0:
            closed = min(abs(units), abs(held))
            share = closed / abs(held)
            pnl = sum((u * share * (price - bought) for u, bought in self.lots), Fraction(0))
            self.realised += pnl
            self.account += pnl * Fraction(f.conversion_rate)
            self.lots = [(u * (1 - share), bought) for u, bought in self.lots] if share != 1 else []
            units += closed * (1 if held > 0 else -1)
        if units:
            self.lots.append((units, price))
        return self


@given(fills())
def test_the_fold_is_what_the_oracle_says(made):
    oracle = Lots()
    for f in made:
        oracle.add(f)
    got = p.fold(made).get("EUR_USD", Position("EUR_USD"))
    tolerance = Fraction(len(made), 10**15)
    assert Fraction(got.units) == oracle.units
    assert abs(Fraction(got.cost) - oracle.cost) <= tolerance
    assert abs(Fraction(got.realised_pnl) - oracle.realised) <= tolerance
    assert abs(Fraction(got.realised_pnl_account) - oracle.account) <= tolerance * 2
    assert Fraction(got.fees_in("USD")) == oracle.fees
    assert got.fills == len(made)


@given(fills())
def test_no_cent_appears_or_disappears(made):
    """Realised less the cost of what is held is the cash that went in and out: exactly, after every fill."""
    cash = Fraction(0)
    for f, position in p.walk(made):
        cash -= Fraction(f.units) * Fraction(f.price)
        assert Fraction(position.realised_pnl) - Fraction(position.cost) == cash
        if not position.units:
            assert position.cost == 0 and position.average_price is None


@given(fills(), PRICES)
def test_closing_realises_the_unrealised(made, price):
    before = p.fold(made).get("EUR_USD", Position("EUR_USD"))
    if before.units:
        after = p.apply_fill(before, fill(10_000, -before.units, price))
        assert after.realised_pnl == before.realised_pnl + p.unrealised_pnl(before, price)
        assert (after.units, after.cost) == (0, 0)


@given(fills(), st.randoms())
def test_the_order_and_number_of_messages_do_not_matter(made, rng):
    heard = made + rng.sample(made, k=len(made) // 2)
    rng.shuffle(heard)
    assert p.fold(heard) == p.fold(made)


@given(fills(), st.integers(0, 25))
def test_going_on_from_a_position_is_folding_from_the_start(made, cut):
    now = p.fold(made[:cut])
    for f in made[cut:]:
        now["EUR_USD"] = p.apply_fill(now.get("EUR_USD", Position("EUR_USD")), f)
    assert now == p.fold(made)


@given(fills())
@example([fill(0, 1, "1.0840"), fill(1, 2, "1.0850"), fill(2, -1, "1.0851")])
def test_a_position_written_with_its_average_price_comes_back(made):
    got = p.fold(made).get("EUR_USD", Position("EUR_USD"))
    back = p.restore("EUR_USD", got.units, got.average_price, got.realised_pnl, got.realised_pnl_account, got.fees_in("USD"))
    assert (back.units, back.cost, back.realised_pnl, back.fees_in("USD")) == (got.units, got.cost, got.realised_pnl, got.fees_in("USD"))


@given(UNITS, UNITS, st.decimals("-5", "5", places=4))
@example(Decimal(10), Decimal(-10), Decimal("0.3"))
@example(Decimal(10), Decimal(-15), Decimal("0.3"))
def test_a_flip_is_split_exactly(held, units, fee):
    closing, opening = p.split_fill(held, fill(1, units, fee=fee))
    parts = [x for x in (closing, opening) if x]
    assert sum(x.units for x in parts) == units and sum(x.fee for x in parts) == fee
    assert all(x.units for x in parts)
    for part in parts:
        assert abs(Fraction(part.fee) - Fraction(fee) * Fraction(part.units) / Fraction(units)) <= Fraction(1, 10**17)
    if closing:
        assert (closing.units < 0) != (held < 0) and abs(closing.units) <= abs(held)
    if opening:
        rest = held + closing.units if closing else held
        assert rest == 0 or (rest < 0) == (opening.units < 0)


@given(fills(), fills())
def test_a_flip_is_a_close_and_an_open(made, more):
    """Every fill that flips may be booked as its two parts, and nothing changes but the count."""
    whole = split = p.fold(made).get("EUR_USD", Position("EUR_USD"))
    for n, f in enumerate(more):
        f = replace(f, fill_id=str(1000 + n), time_ms=NOW + 1000 + n)
        parts = [x for x in p.split_fill(split.units, f) if x]
        whole = p.apply_fill(whole, f)
        for part in parts:
            split = p.apply_fill(split, part)
    assert replace(whole, fills=0) == replace(split, fills=0)


@given(fills(), fills())
def test_instruments_do_not_touch_each_other(a, b):
    b = [replace(f, instrument="USD_JPY", fill_id=f"b{f.fill_id}") for f in b]
    assert p.fold(a + b) == {**p.fold(a), **p.fold(b)}


def test_a_closing_fill_without_a_rate_makes_the_account_figure_unknown():
    opened = fill(0, 10, "1.0", rate=None)
    assert p.fold([opened])["EUR_USD"].realised_pnl_account == 0
    flat = p.fold([opened, fill(1, -10, "1.0", rate=None)])["EUR_USD"]
    assert (flat.realised_pnl, flat.realised_pnl_account) == (0, 0)
    lost = p.fold([opened, fill(1, -10, "0.9", rate=None), fill(2, 5), fill(3, -5, "1.2")])["EUR_USD"]
    assert lost.realised_pnl == Decimal("-0.5") and lost.realised_pnl_account is None


def test_fees_in_two_currencies_are_not_added_up():
    position = p.fold([fill(0, 1, fee="0.1"), fill(1, 1, fee="0.0001", currency="BTC"), fill(2, 1, fee="0", currency="JPY")])["EUR_USD"]
    assert position.fees == (("BTC", Decimal("0.0001")), ("USD", Decimal("0.1")))
    assert position.fees_in("USD") is None


def test_fills_of_one_millisecond_are_ordered_by_the_venues_number():
    made = [fill(n, 1, at=0) for n in (9, 10, 100)]
    assert [f.fill_id for f in p.in_order(reversed(made))] == ["9", "10", "100"]


@pytest.mark.parametrize("bad", [fill(1, "0"), fill(1, "NaN"), fill(1, 1, "Infinity"), fill(1, 1, fee="NaN"), fill(1, 1, instrument="USD_JPY")])
def test_what_is_no_fill_is_an_error(bad):
    with pytest.raises(DataError):
        p.apply_fill(Position("EUR_USD"), bad)


def test_two_fills_under_one_id_are_a_contradiction():
    with pytest.raises(DataError, match="told twice and differently"):
        p.fold([fill(1, 1), fill(1, 2)])


@given(fills())
def test_an_orders_fills_have_the_average_of_the_oracle(made):
    units, average = p.filled(made)
    assert Fraction(units) == sum((Fraction(f.units) for f in made), Fraction(0))
    if units:
        exact = sum(Fraction(f.units) * Fraction(f.price) for f in made) / Fraction(units)
        assert abs(Fraction(average) - exact) <= abs(exact) / 10**50 + Fraction(1, 10**60)
    else:
        assert average is None


def test_a_position_is_marked_where_it_could_be_closed():
    quote = Quote("EUR_USD", Decimal("1.1"), Decimal("1.2"), NOW)
    assert [p.closing_price(quote, Decimal(u)) for u in (5, -5)] == [Decimal("1.1"), Decimal("1.2")]
