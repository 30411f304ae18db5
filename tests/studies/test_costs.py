"""Cost models: the archived formula, real spreads, and what a person can get wrong."""
import polars as pl
import pytest
from deskbook.core.errors import BadInput, DataError
from deskbook.studies.costs import CostModel, cost_model, has_quotes, median_spread, pip_size, resolve_cost


def quotes(spread, n=3, **columns):
    b = pl.Series([1.1] * n)
    return pl.DataFrame({"bid_open": b, "bid_close": b, "ask_open": b + spread, "ask_close": b + spread} | columns)


def test_pips():
    assert pip_size("EUR_HUF") == 0.01 and pip_size("GBP_JPY") == 0.01 and pip_size("XAG_USD") == 0.0001
    assert pip_size("6EH4") is None and pip_size("BTCUSDT") is None and pip_size("US_30") is None
    assert pip_size("US_30", {"US_30": 1.0}) == 1.0


@pytest.mark.parametrize(("instrument", "spread", "price"), [("EUR_USD", 1.6e-4, 1.0869), ("USD_JPY", 0.018, 153.4), ("XAU_USD", 0.4, 4000.0)])
def test_the_archived_formula(instrument, spread, price):
    c = resolve_cost(cost_model("median_spread_plus_half_slip", spreads={instrument: spread}), instrument, pl.DataFrame())
    pip = {"EUR_USD": 1e-4}.get(instrument, 1e-2)
    assert c.charge_frac(price) == pytest.approx((spread * 1.5 + 0.1 * pip) / price, rel=1e-12)


def test_settings_reach_the_charge():
    m = cost_model("median_spread_plus_half_slip", slippage_multiplier=1.0, commission_pips=1, commission_bp=2, spreads={"EUR_USD": 1e-4})
    assert 1e4 * resolve_cost(m, "EUR_USD", pl.DataFrame()).charge_frac(1.0) == pytest.approx(1e4 * (2e-4 + 1e-4) + 2)


def test_a_configured_spread_beats_the_quotes_unless_prices_are_quoted():
    m = cost_model("median_spread_plus_half_slip", spreads={"EUR_USD": 9e-4})
    assert resolve_cost(m, "EUR_USD", quotes(1e-4)).source == "configured"
    assert resolve_cost("median_spread_plus_half_slip", "EUR_USD", quotes(1e-4)).median_spread == pytest.approx(1e-4)
    q = resolve_cost(cost_model("quoted", spreads={"EUR_USD": 9e-4}), "EUR_USD", quotes(1e-4))
    assert (q.kind, q.source, q.charge_price) == ("quoted", "quotes", 0.0)


def test_a_stray_quote_is_no_quote():
    few = quotes(1e-4, 4, bid_open=pl.Series([1.1, None, None, None]))
    assert not has_quotes(few) and median_spread(few) is None
    assert has_quotes(quotes(1e-4, 4, bid_open=pl.Series([1.1, float("nan"), 1.1, None])))
    assert not has_quotes(pl.DataFrame({"close": [1.0]})) and not has_quotes(quotes(1e-4, 0))


def test_a_feed_that_swaps_bid_and_ask_is_not_free():
    swapped, right = quotes(-1e-4), quotes(1e-4)
    assert median_spread(swapped) == pytest.approx(1e-4)
    a, b = (resolve_cost("median_spread_plus_half_slip", "EUR_USD", c).charge_price for c in (swapped, right))
    assert a == pytest.approx(b) and a > 1.4e-4


def test_quotes_at_the_opens_alone_give_no_median_spread():
    opens = quotes(1e-4).with_columns(bid_close=pl.lit(None, pl.Float64))
    assert median_spread(opens) is None and resolve_cost("quoted", "EUR_USD", opens).kind == "quoted"
    with pytest.raises(DataError, match="spread of EUR_USD"): resolve_cost("median_spread_plus_half_slip", "EUR_USD", opens)
    assert resolve_cost(cost_model("median_spread_plus_half_slip", fallback_spread_bp=2.0), "EUR_USD", opens).source == "fallback_spread_bp"


def test_every_model_says_what_it_used():
    for kind, asked in (("none", "none"), ("quoted", "quoted"), ("median_spread_plus_half_slip", "median_spread_plus_half_slip")):
        c = resolve_cost(kind, "EUR_USD", quotes(1e-4))
        assert (c.kind, c.asked, c.to_dict()["instrument"]) == (kind, asked, "EUR_USD")


def test_wrong_models_are_named():
    with pytest.raises(BadInput, match="no field 'spred'"):
        cost_model("quoted", spred=1)
    with pytest.raises(BadInput, match="cost model 'median' is unknown"):
        cost_model("median")
    for bad in ({"slippage_multiplier": -1}, {"spreads": {"EUR_USD": float("nan")}}, {"fallback_spread_bp": -0.1}):
        with pytest.raises(BadInput, match="negative or not a number"):
            cost_model(CostModel(), **bad)
    with pytest.raises(DataError, match="spread of EUR_USD"):
        resolve_cost("median_spread_plus_half_slip", "EUR_USD", pl.DataFrame({"close": [1.0]}))


@pytest.mark.data
@pytest.mark.parametrize(("file", "spread"), [("oanda_EURUSD_M1_201405", 1.1e-4), ("oanda_XAUUSD_M1_201405", 0.261), ("fxcm_USDJPY_M1_201302", 0.003)])
def test_real_median_spreads(shared_data, file, spread):
    assert median_spread(pl.read_parquet(shared_data / "candles" / f"{file}.parquet")) == pytest.approx(spread, rel=0.15)
