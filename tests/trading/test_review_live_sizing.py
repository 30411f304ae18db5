"""The limits in units and dollars that the environment names, which nothing read."""
import itertools
from dataclasses import replace
from decimal import Decimal as D

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from risk_accounts import NAMES, portfolio, portfolios

from deskbook.core.errors import BadInput
from deskbook.core.settings import Settings
from deskbook.trading.risk import RiskPolicy, exposures, reserve, worst_units
from deskbook.trading.sizing import SizingPolicy, size

BIG = SizingPolicy(risk_frac=D(1), position_frac=D(1), top_k=100)
WIDE = RiskPolicy(**{f"max_{n}_frac": D(1000) for n in ("total_exposure", "instrument_exposure", "currency_exposure")}, max_leverage=D(1000),
                  min_margin_headroom_frac=D(0), max_open_positions=100)


@pytest.mark.parametrize("limit, units", [({"pair_units": D(40_000)}, 36_000), ({"total_units": D(45_000)}, 31_000), ({"pair_usd": D(11_000)}, 6_000),
                                          ({"total_usd": D(30_000)}, 11_454), ({"pair_units": D(4_000)}, 0), ({"pair_units": D(3_000)}, 0)])
def test_each_limit_leaves_its_room(limit, units):
    account = portfolio("5000000", units={"EUR_USD": D(4_000), "GBP_USD": D(-10_000)}, margin_available=D(10**9))
    got = size(replace(BIG, **limit), WIDE, None, account, "EUR_USD", 1)
    assert (got.units, got.binding) == (units, name := f"max_{next(iter(limit))}")
    assert got.reasons == (() if units else (name, "units_below_minimum"))


@settings(max_examples=150)
@given(portfolios(always_known=True), st.sampled_from(NAMES), st.sampled_from([1, -1]), st.lists(st.sampled_from([0, 500, 20_000]), min_size=4, max_size=4))
def test_no_size_goes_beyond_them(account, name, sign, limits):
    sizing = replace(BIG, **dict(zip(("pair_units", "total_units", "pair_usd", "total_usd"), map(D, limits), strict=True)))
    if not (units := size(sizing, WIDE, None, account, name, sign).units):
        return
    after = reserve(account, name, units)
    seen, all_units = exposures(after), sum(worst_units(after, n) for n in {*after.units, *after.pending})
    for limit, is_now in zip(limits, (worst_units(after, name), all_units, seen.instrument_usd[name], seen.total_usd), strict=True):
        assert not limit or is_now <= limit


@pytest.mark.parametrize("bad", ["-1", "NaN"])
def test_a_limit_that_is_none(bad):
    with pytest.raises(BadInput, match="not a limit"):
        SizingPolicy(pair_units=D(bad))


def test_the_environment_says_them(monkeypatch):
    names = ("RISK_MAX_NET_UNITS_PER_PAIR", "RISK_MAX_TOTAL_UNITS", "RISK_MAX_POSITION_SIZE", "RISK_MAX_TOTAL_EXPOSURE")
    for name, value in zip(names, itertools.count(1)):
        monkeypatch.setenv(name, str(value))
    s = Settings()
    assert (s.max_pair_units, s.max_total_units, s.max_pair_usd, s.max_total_usd) == (1, 2, 3, 4)
