"""The laws of account risk, and each rule by itself."""
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import reduce

import pytest
from deskbook.core.clock import to_datetime
from deskbook.core.errors import BadInput, Refused
from deskbook.trading import risk as r
from deskbook.trading.orders import REASONS
from deskbook.trading.risk import Pending, RiskPolicy, begin, evaluate, exposures, on_equity, rearm, reserve
from hypothesis import given, settings
from hypothesis import strategies as st
from risk_accounts import INSTRUMENTS, MIDS, NAMES, NOW, QUOTES, UNITS, any_state, order, policies, portfolio, portfolios, quote, states

D = Decimal
DAY = 86_400_000
WIDE = RiskPolicy(max_total_exposure_frac=D(100), max_instrument_exposure_frac=D(100), max_currency_exposure_frac=D(100), max_open_positions=100, max_leverage=D(100),
                  min_margin_headroom_frac=D(0))
NAME = st.sampled_from(NAMES)


# --- laws -------------------------------------------------------------------------------------------------------------------------

@settings(max_examples=200)
@given(policies, any_state, portfolios(), NAME, UNITS, st.integers(1, 1000))
def test_a_larger_order_never_has_fewer_reasons(policy, state, account, name, units, factor):
    small, large = (evaluate(policy, state, account, order(units * k, name)).reasons for k in (1, factor))
    assert set(small) <= set(large)


@settings(max_examples=200)
@given(policies, any_state, portfolios(), NAME, UNITS, NAME, UNITS)
def test_an_order_on_its_way_never_takes_a_reason_away(policy, state, account, name, units, other, more):
    before = evaluate(policy, state, account, order(units, name)).reasons
    after = evaluate(policy, state, reserve(account, other, more), order(units, name)).reasons
    assert set(before) <= set(after)


@settings(max_examples=200)
@given(policies, any_state, portfolios(), NAME, UNITS)
def test_what_is_not_allowed_has_known_reasons_and_the_other_way_round(policy, state, account, name, units):
    for intent in (order(units, name), order(units, name, reduce_only=True)):
        verdict = evaluate(policy, state, account, intent)
        assert verdict.allowed == (not verdict.reasons)
        assert len(set(verdict.reasons)) == len(verdict.reasons) and set(verdict.reasons) <= set(REASONS)
        assert verdict.reserved_usd >= 0


@settings(max_examples=200)
@given(policies, portfolios(), NAME, UNITS)
def test_nothing_passes_a_tripped_breaker_but_what_reduces(policy, account, name, units):
    for state in (states()["tripped"], states()["cooled"]):
        assert "circuit_breaker" in evaluate(policy, state, account, order(units, name)).reasons
        verdict = evaluate(policy, state, account, order(units, name, reduce_only=True))
        if verdict.allowed:
            assert abs(account.units[name] + units) < abs(account.units[name])


@settings(max_examples=200)
@given(policies, any_state, portfolios(), NAME, UNITS)
def test_reduce_only_never_adds_exposure_and_never_changes_the_side(policy, state, account, name, units):
    verdict = evaluate(policy, state, account, order(units, name, reduce_only=True))
    assert verdict.after == exposures(account)
    held, p = account.units.get(name, D(0)), account.pending.get(name, Pending())
    leaving = p.exit_sell_units if held > 0 else p.exit_buy_units
    fits = held * units < 0 and leaving + abs(units) <= abs(held)
    assert verdict.allowed == fits
    assert verdict.reasons == (() if fits else ("exceeds_position",))
    assert verdict.reserved_usd == 0


@pytest.mark.parametrize("side", [1, -1])
@given(st.integers(1, 20), st.lists(st.integers(1, 20), max_size=8))
def test_exits_together_never_exceed_the_position(side, held, exits):
    """Each exit that is allowed is on its way when the next is judged."""
    account, closing = portfolio(units={"EUR_USD": D(held * side)}), 0
    for size in exits:
        fits = size <= held - closing
        assert evaluate(WIDE, None, account, order(-size * side, reduce_only=True)).allowed == fits
        assert not evaluate(WIDE, None, account, order(size * side, reduce_only=True)).allowed
        assert r.exit_room(account, "EUR_USD") == (closing - held) * side
        if fits:
            account, closing = reserve(account, "EUR_USD", D(-size * side), reduce_only=True), closing + size


@given(portfolios(), st.lists(st.tuples(NAME, UNITS), max_size=6), st.randoms())
def test_the_order_of_orders_does_not_matter_for_exposure(account, orders, rng):
    def added(some):
        return reduce(lambda now, o: reserve(now, *o), some, account)

    assert exposures(added(orders)) == exposures(added(rng.sample(orders, len(orders))))


@given(portfolios(always_known=True), st.lists(st.tuples(NAME, UNITS), min_size=1, max_size=6), st.data())
def test_whatever_fills_the_exposure_is_never_above_the_worst_case(account, orders, data):
    """Any subset of the orders, each filled to any part, ends within what was reckoned with before."""
    account = replace(account, pending={})
    waiting = account
    for name, units in orders:
        waiting = reserve(waiting, name, units)
    worst = exposures(waiting)
    held = dict(account.units)
    for name, units in orders:
        held[name] = held.get(name, D(0)) + units * data.draw(st.integers(0, 4)) / 4
    now = exposures(replace(account, units=held))
    assert all(usd <= worst.instrument_usd[name] for name, usd in now.instrument_usd.items())
    assert all(usd <= worst.currency_usd.get(c, D(0)) + D("1e-15") for c, usd in now.currency_usd.items())
    assert now.total_usd <= worst.total_usd and now.open_positions <= worst.open_positions


@given(portfolios(always_known=True))
def test_exposure_is_what_fractions_say(account):
    seen = exposures(account)
    usd = {"EUR": Fraction("1.1"), "GBP": Fraction("1.3"), "USD": Fraction(1), "AUD": Fraction("97.5") / 150}
    want = {}
    for name in NAMES:
        held, p = Fraction(account.units.get(name, 0)), account.pending.get(name, Pending())
        ends = [held + Fraction(more) for more in (0, p.buy_units, -p.sell_units, p.buy_units - p.sell_units)]
        if any(ends):
            want[name] = max(abs(x) for x in ends) * usd[name[:3]]
    assert set(seen.instrument_usd) == set(want)
    for name, value in want.items():
        assert abs(Fraction(seen.instrument_usd[name]) - value) <= value / 10**20
    assert seen.open_positions == len(want) and seen.unknown == ()


@given(portfolios(), NAME, UNITS, policies, any_state)
def test_looking_changes_nothing(account, name, units, policy, state):
    import copy
    before = copy.deepcopy((account, policy, state))
    assert evaluate(policy, state, account, order(units, name)) == evaluate(policy, state, account, order(units, name))
    assert (account, policy, state) == before


# --- one rule at a time -----------------------------------------------------------------------------------------------------------

def why(policy=WIDE, state=None, account=None, intent=None, **more):
    return evaluate(policy, state, account or portfolio(**more), intent or order(10_000)).reasons


def test_the_defaults_are_the_agreed_ones():
    p = RiskPolicy()
    assert (p.max_leverage, p.max_instrument_exposure_frac, p.max_total_exposure_frac, p.max_daily_loss_frac, p.max_drawdown_frac, p.max_currency_exposure_frac, p.cooldown_s) == (
        3, D("0.10"), D("0.30"), D("0.02"), D("0.05"), D("1.5"), 1800)


@pytest.mark.parametrize("limit, at, reason", [
    ("max_total_exposure_frac", "0.11", "max_total_exposure"), ("max_instrument_exposure_frac", "0.11", "max_instrument_exposure"),
    ("max_currency_exposure_frac", "0.11", "max_currency_exposure"), ("max_leverage", "0.11", "max_leverage")])
def test_a_limit_is_kept_exactly(limit, at, reason):
    """10,000 EUR_USD are 11,000 of 100,000 dollars."""
    policy = replace(WIDE, **{limit: D(at)})
    assert why(policy) == ()
    assert why(policy, intent=order("10000.000001")) == (reason,)
    assert why(policy, intent=order("-10000.000001")) == (reason,)


def test_other_instruments_and_orders_on_their_way_count():
    policy = replace(WIDE, max_total_exposure_frac=D("0.22"))
    assert why(policy, units={"USD_JPY": D(-11_000)}) == ()
    assert why(policy, units={"USD_JPY": D(-11_001)}) == ("max_total_exposure",)
    assert why(policy, pending={"USD_JPY": Pending(sell_units=D(11_001))}) == ("max_total_exposure",)
    assert why(policy, pending={"USD_JPY": Pending(exit_sell_units=D(11_001))}) == ()


def test_a_currency_is_netted_over_instruments():
    policy = replace(WIDE, max_currency_exposure_frac=D("0.12"))
    assert why(policy, units={"EUR_JPY": D(1_000)}) == ("max_currency_exposure",)
    assert why(policy, units={"EUR_JPY": D(-1_000)}) == ()
    assert why(policy, units={"GBP_USD": D(5_000)}) == ("max_currency_exposure",), "short dollars in both"
    assert why(policy, units={"AUD_JPY": D(10**6)}) == (), "an order is not blocked for currencies it does not touch"


def test_open_positions_count_instruments():
    policy = replace(WIDE, max_open_positions=2)
    two = {"USD_JPY": D(1), "GBP_USD": D(-1)}
    assert why(policy, units=two) == ("max_open_positions",)
    assert why(policy, units={"EUR_USD": D(1), "GBP_USD": D(-1)}) == ()
    assert why(policy, units={"USD_JPY": D(1)}, pending={"GBP_USD": Pending(buy_units=D(1))}) == ("max_open_positions",)
    assert why(policy, units={"USD_JPY": D(1), "GBP_USD": D(0)}) == ()


def test_margin_headroom():
    """10,000 EUR_USD need 2 % of 11,000 dollars: 220."""
    policy = replace(WIDE, min_margin_headroom_frac=D("0.5"))
    assert why(policy, margin_available=D(50_220)) == ()
    assert why(policy, margin_available=D("50219.99")) == ("margin_headroom",)
    assert why(policy, margin_available=D(50_220), pending={"USD_JPY": Pending(buy_units=D(1))}) == ("margin_headroom",)


@pytest.mark.parametrize("quotes, reasons", [
    ({}, ("mark_stale", "no_usd_rate")),
    ({"EUR_USD": quote("EUR_USD", 61)}, ("mark_stale", "no_usd_rate")),
    ({"EUR_USD": quote("EUR_USD", tradeable=False)}, ("instrument_not_tradeable",)),
    ({"GBP_USD": QUOTES["GBP_USD"]}, ("mark_stale", "no_usd_rate")),
])
def test_an_unknown_price_blocks(quotes, reasons):
    assert why(quotes=quotes) == reasons
    assert why(intent=order(-10, reduce_only=True), quotes=quotes, units={"EUR_USD": D(10)}) == ()


def test_a_held_instrument_without_a_rate_blocks_every_entry():
    assert why(quotes={"EUR_USD": QUOTES["EUR_USD"]}, units={"GBP_USD": D(1)}) == ("no_usd_rate",)
    assert why(quotes={"EUR_USD": QUOTES["EUR_USD"]}, units={"GBP_USD": D(0)}) == ()


def test_a_cross_needs_its_own_fresh_price_as_well():
    assert why(intent=order(1000, "EUR_JPY"), quotes={"EUR_USD": QUOTES["EUR_USD"]}) == ("mark_stale",)


@pytest.mark.parametrize("more", [{"equity": "NaN"}, {"equity_ms": NOW - 61_000}])
def test_unknown_equity_blocks(more):
    assert why(**more) == ("equity_stale",)
    assert evaluate(WIDE, None, replace(portfolio(), equity=None), order(1)).reasons == ("equity_stale",)


def test_no_equity_left_allows_nothing():
    for equity in ("0", "-1"):
        assert {"max_total_exposure", "max_instrument_exposure", "max_leverage"} <= set(why(equity=equity))


def test_equity_in_another_currency_is_converted():
    policy = replace(WIDE, max_total_exposure_frac=D("0.11"))
    account = replace(portfolio(), currency="EUR")
    assert why(policy, account=account, intent=order(11_000)) == ()
    assert why(policy, account=account, intent=order(11_001)) == ("max_total_exposure",)
    lost = replace(account, quotes={"USD_JPY": QUOTES["USD_JPY"]})
    assert why(policy, account=lost, intent=order(1, "USD_JPY")) == ("no_usd_rate",)


def test_the_allow_list():
    policy = replace(WIDE, allowed_instruments=frozenset({"USD_JPY"}))
    assert why(policy) == ("instrument_not_allowed",)
    assert why(policy, intent=order(1, "USD_JPY")) == ()
    assert why(policy, intent=order(-1, reduce_only=True), units={"EUR_USD": D(1)}) == ()
    assert why(account=replace(portfolio(), instruments={})) == ("instrument_unknown",)


@pytest.mark.parametrize("units, reason", [("0", "units_zero"), ("NaN", "units_not_a_number"), ("sNaN", "units_not_a_number"), ("-Infinity", "units_not_a_number"),
                                           ("1E+999999", "units_above_maximum")])
def test_units_that_cannot_be_reckoned_with(units, reason):
    for reduce_only in (False, True):
        assert why(intent=order(units, reduce_only=reduce_only)) == (reason,)


def test_what_an_order_reserves_is_its_own_worth():
    assert evaluate(WIDE, None, portfolio(), order(10_000)).reserved_usd == 11_000
    assert evaluate(WIDE, None, portfolio(units={"EUR_USD": D(-50_000)}), order(10_000)).reserved_usd == 11_000


def test_accounts_and_modes_are_not_mixed_up():
    live = replace(portfolio(), mode="live")
    for args in [(WIDE, None, live, order(1)), (replace(WIDE, account="other"), None, portfolio(), order(1)), (WIDE, begin("other", D(1), NOW), portfolio(), order(1)),
                 (WIDE, None, portfolio(), replace(order(1), account="other"))]:
        with pytest.raises(BadInput):
            evaluate(*args)
    assert evaluate(replace(WIDE, mode="live"), None, live, order(1)).allowed


@pytest.mark.parametrize("bad", [{"max_leverage": D("NaN")}, {"max_leverage": D(-1)}, {"max_leverage": 3.0}, {"cooldown_s": -1}, {"max_open_positions": -1}, {"mode": "demo"}])
def test_a_limit_that_is_no_limit(bad):
    with pytest.raises(BadInput):
        RiskPolicy(**bad)


# --- losses -----------------------------------------------------------------------------------------------------------------------

EQUITY = st.integers(1, 200_000).map(D)
LOOKS = st.lists(st.tuples(EQUITY, st.integers(0, DAY)), min_size=1, max_size=20)


def walk(looks, policy):
    state, now = begin("paper", D(100_000), NOW), NOW
    for equity, wait in looks:
        now += wait
        before, state = state, on_equity(state, policy, equity, now)
        yield before, state, equity, now


@given(LOOKS)
def test_the_peak_never_falls_and_a_trip_stays(looks):
    for before, after, equity, now in walk(looks, RiskPolicy()):
        assert after.peak_equity == max(before.peak_equity, equity)
        assert before.status == "ok" or (after.status, after.reason, after.tripped_at_ms, after.cooldown_until_ms) == (
            before.status, before.reason, before.tripped_at_ms, before.cooldown_until_ms)
        assert after.day == to_datetime(now).date()


@given(LOOKS)
def test_it_trips_exactly_when_a_limit_is_reached(looks):
    """The same rule in fractions: 2 % of the day's first equity, 5 % of the highest ever."""
    start = peak = Fraction(100_000)
    day = to_datetime(NOW).date()
    for before, after, equity, now in walk(looks, RiskPolicy()):
        if to_datetime(now).date() > day:
            day, start = to_datetime(now).date(), Fraction(equity)
        peak = max(peak, Fraction(equity))
        want = [n for n, reached in (("max_daily_loss", Fraction(equity) <= start * 98 / 100), ("max_drawdown", Fraction(equity) <= peak * 95 / 100)) if reached]
        if before.status == "ok":
            assert (after.status == "tripped") == bool(want)
            assert after.reason == ",".join(want)


@given(LOOKS, st.integers(-50_000, 50_000))
def test_a_transfer_changes_no_loss(looks, transfer):
    """Who pays in or out between two looks has lost and won nothing by it."""
    transfer = D(transfer)
    state = begin("paper", D(100_000), NOW)
    moved = on_equity(r.on_transfer(state, transfer), RiskPolicy(), D(100_000) + transfer, NOW)
    assert moved.status == "ok"
    assert r.losses(moved, D(100_000) + transfer) == {"max_daily_loss": 0, "max_drawdown": 0}


def test_the_days_loss_is_net_and_counts_what_is_not_realised():
    state = begin("paper", D(100_000), NOW)
    won_then_lost = on_equity(on_equity(state, RiskPolicy(), D(103_000), NOW), RiskPolicy(), D(99_000), NOW)
    assert won_then_lost.status == "ok", "a winner pays for a loser"
    assert on_equity(won_then_lost, RiskPolicy(), D(98_000), NOW).reason == "max_daily_loss"


def test_a_clock_that_goes_back_does_not_start_an_older_day():
    state = on_equity(begin("paper", D(100_000), NOW), RiskPolicy(), D(99_000), NOW + DAY)
    again = on_equity(state, RiskPolicy(), D(98_500), NOW)
    assert (again.day, again.day_start_equity) == (state.day, D(99_000))


def test_both_reasons_are_told():
    assert on_equity(begin("paper", D(100_000), NOW), RiskPolicy(), D(94_000), NOW).reason == "max_daily_loss,max_drawdown"


@pytest.mark.parametrize("equity", ["NaN", "Infinity"])
def test_an_equity_that_is_no_number_is_an_error(equity):
    with pytest.raises(BadInput):
        on_equity(begin("paper", D(1), NOW), RiskPolicy(), D(equity), NOW)


def test_a_loss_blocks_before_anybody_has_booked_it():
    state = begin("paper", D(100_000), NOW - 1000)
    assert why(state=state, equity="98000") == ("max_daily_loss", "circuit_breaker", "cooldown_active")
    assert why(state=replace(state, peak_equity=D(103_000), day_start_equity=D(98_000)), equity="97500") == ("max_drawdown", "circuit_breaker", "cooldown_active")
    assert why(state=state, equity="98001") == ()
    assert why(state=None, equity="50000") == (), "an account nobody has looked at starts now"


def test_yesterdays_loss_does_not_block_today_but_its_trip_does():
    lost = on_equity(begin("paper", D(100_000), NOW - DAY), RiskPolicy(), D(97_900), NOW - DAY)
    assert why(state=lost, equity="97900") == ("circuit_breaker",)
    assert why(state=rearm(lost, "lead", NOW), equity="97900") == ()


# --- the way back -----------------------------------------------------------------------------------------------------------------

TRIPPED = on_equity(begin("paper", D(100_000), NOW), RiskPolicy(), D(97_000), NOW)


def test_a_cooldown_is_waited_for():
    with pytest.raises(r.CooldownActive) as e:
        rearm(TRIPPED, "lead", NOW + 1_799_999)
    assert isinstance(e.value, Refused) and e.value.reason == "cooldown_active"
    assert rearm(TRIPPED, "lead", NOW + 1_800_000).status == "ok"


def test_only_a_person_with_a_name_rearms():
    for who in ("", "  "):
        with pytest.raises(BadInput, match="nobody is named"):
            rearm(TRIPPED, who, NOW + DAY)
    done = rearm(TRIPPED, " lead ", NOW + DAY)
    assert (done.rearmed_by, done.rearmed_at_ms, done.reason, done.tripped_at_ms, done.cooldown_until_ms) == ("lead", NOW + DAY, "", None, None)
    assert rearm(done, "somebody else", NOW + DAY) is done


def test_rearming_does_not_forget_the_loss_unless_it_is_accepted():
    later = NOW + 2_000_000
    assert on_equity(rearm(TRIPPED, "lead", later), RiskPolicy(), D(97_000), later).status == "tripped"
    accepted = on_equity(rearm(TRIPPED, "lead", later, D(97_000)), RiskPolicy(), D(97_000), later)
    assert (accepted.status, accepted.peak_equity, accepted.day_start_equity) == ("ok", D(97_000), D(97_000))


@given(st.sampled_from([TRIPPED, begin("paper", D(5), NOW), rearm(TRIPPED, "lead", NOW + DAY)]))
def test_a_memory_survives_being_written_down(state):
    assert r.state_of(r.state_row(state)) == state


def test_nulls_of_a_policy_row_have_the_defaults():
    row = {f: None for f in ("max_total_exposure_frac", "max_leverage", "cooldown_s", "account")} | {"mode": "live", "name": "x", "id": 1, "allowed_instruments": ["EUR_USD"]}
    assert r.policy_of(row) == RiskPolicy("live", "x", allowed_instruments=frozenset({"EUR_USD"}))


def test_a_policy_of_the_account_wins_over_a_newer_one_of_its_mode():
    def row(name, account, day, **more):
        return {"mode": "paper", "name": name, "account": account, "active": True, "effective_from": to_datetime(NOW + day * DAY), **more}
    rows = [row("all, new", None, -1), row("mine", "paper", -3), row("mine, older", "paper", -4), row("mine, later", "paper", 1),
            row("mine, off", "paper", -2, active=False), row("live", "paper", -1, mode="live"), row("of another", "sandbox", -1)]
    assert r.choose_policy(rows, "paper", "paper", NOW).name == "mine"
    assert r.choose_policy(rows, "third", "paper", NOW).name == "all, new"
    assert r.choose_policy(rows, "paper", "paper", NOW + 2 * DAY).name == "mine, later"
    assert r.choose_policy([], "paper", "live", NOW) == RiskPolicy("live")


def test_all_instruments_of_these_tests_have_prices():
    assert set(MIDS) == set(QUOTES) == set(INSTRUMENTS)
