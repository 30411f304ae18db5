"""Accounts, orders and policies drawn at random, for the tests of risk and sizing."""
from decimal import Decimal

from deskbook.trading.orders import Intent
from deskbook.trading.risk import Pending, Portfolio, RiskPolicy, begin, on_equity
from deskbook.venues.model import Instrument, Quote
from hypothesis import strategies as st

NOW = 1_762_171_200_000  # 2025-11-03 12:00 UTC
MIDS = {"EUR_USD": "1.1", "USD_JPY": "150", "EUR_JPY": "165", "GBP_USD": "1.3", "AUD_JPY": "97.5"}
NAMES = sorted(MIDS)


def quote(name, age_s=1, **more):
    mid = Decimal(MIDS[name])
    return Quote(name, mid * Decimal("0.9999"), mid * Decimal("1.0001"), NOW - round(age_s * 1000), **more)


def instrument(name, lot="1", margin="0.02"):
    return Instrument(name, name[:3], name[4:], Decimal("0.00001"), Decimal(lot), Decimal(lot), Decimal(100_000_000), Decimal(margin))


QUOTES = {n: quote(n) for n in NAMES}
INSTRUMENTS = {n: instrument(n) for n in NAMES}


def portfolio(equity="100000", **more):
    return Portfolio(**{"account": "paper", "now_ms": NOW, "equity": Decimal(equity), "equity_ms": NOW - 1000, "margin_available": Decimal(equity),
                        "quotes": QUOTES, "instruments": INSTRUMENTS, **more})


def order(units, name="EUR_USD", **more):
    return Intent("paper", name, Decimal(units), idempotency_key="k", **more)


def states(equity="100000"):
    """An account that is well, one that tripped just now, one whose cooldown is over."""
    start = begin("paper", Decimal(equity), NOW - 7_200_000)
    return {"ok": start, "tripped": on_equity(start, RiskPolicy(), Decimal(equity) / 2, NOW - 1000), "cooled": on_equity(start, RiskPolicy(), Decimal(equity) / 2, NOW - 3_600_000)}


FRACTION = st.sampled_from(["0", "0.01", "0.1", "0.3", "1", "5"]).map(Decimal)
SIZE = st.one_of(st.just(0), st.integers(1, 30_000)).map(Decimal)
UNITS = st.one_of(st.integers(-30_000, 30_000).filter(bool), st.sampled_from([-10**7, 10**7, 1, -1])).map(Decimal)

policies = st.builds(
    RiskPolicy, max_total_exposure_frac=FRACTION, max_instrument_exposure_frac=FRACTION, max_currency_exposure_frac=FRACTION, max_open_positions=st.integers(0, 6),
    max_leverage=FRACTION, min_margin_headroom_frac=st.sampled_from(["0", "0.25", "0.9", "1"]).map(Decimal), max_daily_loss_frac=st.sampled_from(["0.02", "1"]).map(Decimal),
    allowed_instruments=st.one_of(st.just(()), st.sets(st.sampled_from(NAMES), min_size=1)))


@st.composite
def portfolios(draw, always_known=False):
    held = draw(st.dictionaries(st.sampled_from(NAMES), UNITS, max_size=4))
    pending = draw(st.dictionaries(st.sampled_from(NAMES), st.builds(Pending, SIZE, SIZE, SIZE, SIZE), max_size=3))
    ages = {n: 1 if always_known else draw(st.sampled_from([1, 1, 1, 61])) for n in NAMES}
    quotes = {n: quote(n, age) for n, age in ages.items() if always_known or draw(st.integers(0, 9))}
    equity = draw(st.sampled_from(["100000", "1000000", "98000"] if always_known else ["100000", "97999", "0", "-5"]))
    more = {} if always_known else {"equity_ms": NOW - draw(st.sampled_from([1000, 61_000]))}
    return portfolio(equity, units=held, pending=pending, quotes=quotes, margin_available=Decimal(draw(st.sampled_from(["100000", "30000", "0"]))), **more)


any_state = st.one_of(st.none(), st.sampled_from(list(states().values())))
