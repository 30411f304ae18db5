"""A size is allowed, as large as it may be, on the venue's steps, and zero with its reasons."""
from dataclasses import replace
from decimal import Decimal

import pytest
from deskbook.core.errors import BadInput
from deskbook.trading.orders import REASONS, check_units
from deskbook.trading.risk import Pending, RiskPolicy, evaluate, reserve
from deskbook.trading.sizing import SizingPolicy, caps, size
from hypothesis import given, settings
from hypothesis import strategies as st
from risk_accounts import INSTRUMENTS, NAMES, QUOTES, any_state, instrument, order, policies, portfolio, portfolios, states

D = Decimal
OWN = {"budget", "position", "portfolio"}  # caps of the sizing policy; the others are account risk's
LOTS = {n: instrument(n, lot) for n, lot in zip(NAMES, ("1", "0.001", "10", "1000", "1"), strict=True)}
SIDE = st.sampled_from([1, -1])
SIZING = st.builds(SizingPolicy, risk_frac=st.sampled_from(["0.000001", "0.0001", "0.01", "1"]).map(D), position_frac=st.sampled_from(["0.0001", "0.01", "1"]).map(D),
                   top_k=st.integers(1, 30))


@settings(max_examples=200)
@given(SIZING, policies, any_state, portfolios(), st.sampled_from(NAMES), SIDE, st.sampled_from([INSTRUMENTS, LOTS]))
def test_a_size_is_allowed_or_zero_with_reasons(sizing, policy, state, account, name, sign, offered):
    account = replace(account, instruments=offered)
    got = size(sizing, policy, state, account, name, sign)
    if got.units:
        assert got.units * sign > 0 and got.reasons == ()
        assert check_units(got.units, offered[name]) == []
        assert evaluate(policy, state, account, order(got.units, name)).allowed
        assert all(got.notional_usd <= room for room in got.caps_usd.values())
    else:
        assert got.reasons and got.notional_usd == 0
        assert {r for r in got.reasons if r not in OWN} <= set(REASONS)


@settings(max_examples=200)
@given(SIZING, policies, st.none(), portfolios(always_known=True), st.sampled_from(NAMES), SIDE, st.sampled_from([INSTRUMENTS, LOTS]))
def test_one_lot_more_would_be_too_much(sizing, policy, state, account, name, sign, offered):
    account = replace(account, instruments=offered)
    got = size(sizing, policy, state, account, name, sign)
    if not got.units or got.binding == "units_above_maximum":
        return
    more = got.units + offered[name].lot * sign
    if got.binding in OWN:
        assert got.notional_usd / got.units * more > got.caps_usd[got.binding]
    else:
        assert got.binding in evaluate(policy, state, account, order(more, name)).reasons


@given(policies, portfolios(always_known=True), st.sampled_from(NAMES), SIDE, st.integers(-20_000, 20_000).filter(bool))
def test_an_order_on_its_way_never_makes_a_size_larger(policy, account, name, sign, units):
    waiting = reserve(account, name, D(units))
    assert abs(size(SizingPolicy(), policy, None, waiting, name, sign).units) <= abs(size(SizingPolicy(), policy, None, account, name, sign).units)


def test_the_figures_of_the_rule():
    """100,000 dollars, 1 % at a margin of 2 %: 50,000 dollars a position, three of them at most."""
    room = caps(SizingPolicy(), RiskPolicy(), portfolio(), "EUR_USD", 1)
    assert room == {"budget": 50_000, "position": 50_000, "portfolio": 150_000, "max_instrument_exposure": 10_000, "max_total_exposure": 30_000, "max_leverage": 300_000,
                    "max_currency_exposure": 150_000, "margin_headroom": 3_750_000}
    assert caps(SizingPolicy(), RiskPolicy(), portfolio(), "EUR_USD", 1, multiplier=D("0.75"))["budget"] == 37_500


def test_what_is_held_takes_its_room():
    account = portfolio(units={"EUR_USD": D(4_000), "GBP_USD": D(-10_000)})
    room = caps(SizingPolicy(), RiskPolicy(), account, "EUR_USD", 1)
    assert (room["position"], room["max_instrument_exposure"], room["max_total_exposure"]) == (45_600, 5_600, 12_600)
    selling = caps(SizingPolicy(), RiskPolicy(), account, "EUR_USD", -1)
    assert (selling["position"], selling["max_instrument_exposure"], selling["max_total_exposure"]) == (54_400, 14_400, 21_400), "selling passes through flat"
    assert caps(SizingPolicy(), RiskPolicy(), account, "GBP_USD", -1)["max_instrument_exposure"] == 0


def test_the_smaller_currency_room_counts():
    account = portfolio(units={"EUR_JPY": D(100_000)})
    assert caps(SizingPolicy(), RiskPolicy(), account, "EUR_USD", 1)["max_currency_exposure"] == 40_000
    assert caps(SizingPolicy(), RiskPolicy(), account, "USD_JPY", 1)["max_currency_exposure"] == 40_000
    assert caps(SizingPolicy(), RiskPolicy(), account, "USD_JPY", -1)["max_currency_exposure"] == 150_000, "no dollars are held; buying yen back has more room"


@pytest.mark.parametrize("account, state, reasons", [
    (portfolio(quotes={}), None, ("mark_stale", "no_usd_rate")),
    (portfolio(quotes={"EUR_USD": QUOTES["EUR_USD"]}, units={"USD_JPY": D(1), "GBP_USD": D(1)}), None, ("no_usd_rate",)),
    (portfolio(), states()["tripped"], ("circuit_breaker", "cooldown_active")),
    (portfolio(units={"EUR_USD": D(10_000)}), None, ("max_instrument_exposure",)),
    (portfolio(instruments={}), None, ("instrument_unknown",)),
    (portfolio(pending={n: Pending(buy_units=D(1)) for n in NAMES if n != "EUR_USD"}), None, ()),
])
def test_zero_says_why(account, state, reasons):
    got = size(SizingPolicy(), RiskPolicy(), state, account, "EUR_USD", 1)
    assert got.reasons == reasons and bool(got.units) == (not reasons)


def test_what_is_flat_needs_no_rate():
    """An instrument that was held once and is flat has no price in the stream any more."""
    account = portfolio(quotes={"EUR_USD": QUOTES["EUR_USD"]}, units={"GBP_USD": D(0)}, pending={"AUD_JPY": Pending(), "USD_JPY": Pending(exit_buy_units=D(5))})
    for sign in (1, -1):
        assert size(SizingPolicy(), RiskPolicy(), None, account, "EUR_USD", sign).units == sign * 9_090


def test_less_than_the_smallest_order_is_zero_and_not_one():
    account = portfolio(instruments={"EUR_USD": instrument("EUR_USD", "100")})
    for frac, units in (("0.0000219", 0), ("0.000022", 100), ("0.0000439", 100)):
        got = size(SizingPolicy(risk_frac=D(frac)), RiskPolicy(), None, account, "EUR_USD", 1)
        assert got.units == units
        assert got.reasons == (() if units else ("budget", "units_below_minimum"))


def test_a_venues_largest_order_is_kept():
    account = replace(portfolio("100000000000"), instruments=INSTRUMENTS)
    got = size(SizingPolicy(), RiskPolicy(), None, account, "EUR_USD", -1)
    assert (got.units, got.binding) == (D(-100_000_000), "units_above_maximum")


def test_correlation_shrinks_only_on_the_same_side():
    account = portfolio(units={"USD_JPY": D(1_000), "GBP_USD": D(-1_000)})
    small = SizingPolicy(risk_frac=D("0.0001"), top_k=1000)
    def units(sign, **r):
        return size(small, RiskPolicy(), None, account, "EUR_USD", sign, correlations=r or None).units
    assert units(1) == 454 and units(1, USD_JPY=0.44) == 378 and units(1, GBP_USD=0.9) == 454 and units(1, USD_JPY=-0.9) == 454
    assert units(-1, GBP_USD=0.44) == -378


@pytest.mark.parametrize("bad", [{"risk_frac": D(0)}, {"risk_frac": 0.01}, {"position_frac": D("1.1")}, {"margin_frac": D("NaN")}, {"top_k": 0}])
def test_a_fraction_that_is_none(bad):
    with pytest.raises(BadInput):
        SizingPolicy(**bad)


def test_a_remainder_that_is_not_worth_a_ticket():
    """An account of 100,000 with half a per cent as its smallest order: 500 dollars, 455 euros at 1.1."""
    policy = SizingPolicy(min_order_frac=D("0.005"))
    for held, units in ((8_600, 490), (8_636, 0), (9_089, 0), (0, 9_090)):
        got = size(policy, RiskPolicy(), None, portfolio(units={"EUR_USD": D(held)}), "EUR_USD", 1)
        assert (got.units, got.reasons) == (units, () if units else ("max_instrument_exposure", "units_not_worth_it"))
    for bad in (D(1), D("-0.1"), D("NaN"), 0.1):
        with pytest.raises(BadInput):
            SizingPolicy(min_order_frac=bad)
