"""The adapter against the sandbox: orders, lookups, cancels, fills, candles, and the faults in between."""
import asyncio
import json
from decimal import Decimal as D

import polars as pl
import pytest
from sandboxed import buy, creates, rest, run

from deskbook.core.clock import to_ms
from deskbook.core.errors import BadInput, Refused
from deskbook.venues import errors as e
from deskbook.venues.model import Absent, Found, OrderRequest, Unreadable, Write
from deskbook.venues.oanda import Oanda
from deskbook.venues.retry import RetryPolicy
from deskbook.venues.sandbox.engine import SandboxConfig
from deskbook.venues.transport import Timeouts

# Orders


def test_a_filled_order_is_the_same_from_three_sides():
    async def body(s, o):
        before = await o.fetch_balance()
        ack = await o.create_order(buy(units=250_000))
        sold = await o.close_position("EUR_USD", OrderRequest("db-2", "EUR_USD", D(-100_000), reduce_only=True))
        found, page, after = await o.find_order("db-1", before.cursor), await o.fetch_fills(before.cursor), await o.fetch_balance()
        positions = await o.fetch_positions()
        assert ack.order.state == "filled" and found == Found(ack.order, ack.fills)
        assert page.fills == ack.fills + sold.fills and page.cursor == after.cursor
        assert positions["EUR_USD"].units == 150_000 == sum(f.units for f in page.fills)
        trade, = await o.fetch_trades()
        assert (trade.client_id, trade.units, trade.price) == ("db-1", 150_000, ack.fills[0].price)
        assert after.balance - before.balance == sum(f.realised_pnl - f.fee for f in page.fills) + page.cash
        assert o.guard_writes == [Write("order", "EUR_USD"), Write("close", "EUR_USD", True)]
        assert [x.client_id for x in s.orders()] == ["db-1", "db-2"]

    async def with_book(s, o):
        o.guard_writes = o.transport.guard.writes
        await body(s, o)
    run(with_book, engine=SandboxConfig(commission_per_million=D(30)))


def test_the_wire_carries_both_extensions_and_exact_decimals():
    async def body(s, o):
        await o.create_order(buy("db-9", -12, "XAU_USD", stop_loss_price=D("9000.5"), price_bound=D(1)))
        await o.create_order(buy("db-8", 7, "USD_JPY", type="limit", price=D("90.5"), time_in_force="GTD", good_till_ms=to_ms("2025-11-05T00:00:00Z")))
        gold, yen = (json.loads(x.body)["order"] for x in creates(s))
        assert gold["clientExtensions"] == gold["tradeClientExtensions"] == {"id": "db-9"}
        assert (gold["units"], gold["stopLossOnFill"]["price"], gold["priceBound"], gold["positionFill"]) == ("-12", "9000.500", "1.000", "DEFAULT")
        assert (yen["units"], yen["price"], yen["gtdTime"]) == ("7", "90.500", "2025-11-05T00:00:00Z")
    run(body)


@pytest.mark.parametrize("request_, kind", [
    (buy(units="0.5"), e.InvalidOrder), (buy(units=0), e.InvalidOrder), (buy(units="1e9"), e.InvalidOrder), (buy(units="NaN"), e.InvalidOrder), (buy(instrument="EUR_XXX"), e.InvalidOrder),
    (rest(price="1.000001"), e.InvalidOrder), (buy(client_id=""), e.InvalidOrder)], ids=str)
def test_what_is_wrong_is_refused_before_it_is_sent(request_, kind):
    async def body(s, o):
        with pytest.raises(kind) as error:
            await o.create_order(request_)
        assert error.value.sent is False and creates(s) == [] and o.transport.guard.writes == []
    run(body)


@pytest.mark.parametrize("fault, reason, kind, state", [
    ("cancel", "INSUFFICIENT_MARGIN", e.InsufficientFunds, "rejected"), ("cancel", "FIFO_VIOLATION", e.Rejected, "rejected"), ("cancel", "BOUNDS_VIOLATION", e.Rejected, "rejected"),
    ("reject", "UNITS_LIMIT_EXCEEDED", e.InvalidOrder, "rejected"), ("reject", "INSTRUMENT_NOT_TRADEABLE", e.MarketClosed, "rejected"), ("halt", "", e.MarketClosed, "rejected")])
def test_a_refusal_is_of_its_class_and_found_as_rejected(fault, reason, kind, state):
    async def body(s, o):
        cursor = (await o.fetch_balance()).cursor
        with pytest.raises(kind) as error:
            await o.create_order(buy())
        found = await o.find_order("db-1", cursor)
        assert type(error.value) is kind and (not reason or error.value.code == reason) and error.value.sent
        assert isinstance(found, Found) and found.order.state == state and found.order.reason == error.value.code and len(creates(s)) == 1
    run(body, {"kind": fault, "params": {"reason": reason} if reason else {}})


def test_a_part_is_filled_and_the_rest_given_up():
    async def body(s, o):
        ack = await o.create_order(buy(time_in_force="IOC"))
        assert (ack.order.state, ack.order.filled_units, len(ack.fills)) == ("cancelled", D(400), 1)
        assert await o.find_order("db-1") == Found(ack.order, ack.fills)
        with pytest.raises(e.Rejected):
            await o.create_order(buy("db-2"))
    run(body, {"kind": "partial_fill"})


def test_a_limit_order_filled_in_slices_is_told_as_it_grows():
    async def body(s, o):
        price = (await o.fetch_quotes(["EUR_USD"]))["EUR_USD"].ask + D("0.01")
        ack = await o.create_order(rest(price=str(price), units=900))
        first = await o.find_order("db-1")
        s.clock.advance(60_000)
        await asyncio.sleep(0.15)
        last = await o.find_order("db-1")
        taken, = s.orders()
        assert (ack.order.state, first.order.state) == ("partially_filled", "partially_filled") and last.order.state in ("filled", "cancelled")
        assert last.order.filled_units == sum(f.units for f in last.fills) == taken.filled_units > 0
        assert list(last.fills[:len(first.fills)]) == list(first.fills) and {f.client_id for f in last.fills} == {"db-1"}
    run(body, {"kind": "slow_fill"})


def test_oandas_trap_the_same_market_order_is_stopped_by_the_id_of_the_trade():
    async def body(s, o):
        await o.create_order(rest("db-1"))
        with pytest.raises(e.DuplicateClientId) as pending:
            await o.create_order(rest("db-1"))
        await o.create_order(buy("db-2"))
        with pytest.raises(e.DuplicateClientId) as open_trade:
            await o.create_order(buy("db-2"))
        assert (pending.value.code, open_trade.value.code) == ("CLIENT_ORDER_ID_ALREADY_EXISTS", "CLIENT_TRADE_ID_ALREADY_EXISTS")
        assert isinstance(one := await o.find_order("db-1"), Found) and one.order.state == "open"
        assert isinstance(two := await o.find_order("db-2"), Found) and two.order.state == "filled" and len(two.fills) == 1
        assert (await o.fetch_positions())["EUR_USD"].units == 1000
    run(body)


def test_the_guard_stands_before_every_write_and_only_there():
    async def body(s, o):
        o.transport.guard.refuses = True
        for write in (o.create_order(buy()), o.close_position("EUR_USD", buy(reduce_only=True)), o.cancel_order("7")):
            with pytest.raises(Refused):
                await write
        await o.fetch_positions()
        assert [w.kind for w in o.transport.guard.writes] == ["order", "close", "cancel"]
        assert [x for x in s.journal.entries if x.method != "GET"] == []
        o.transport.guard = None
        with pytest.raises(Refused):
            await o.create_order(buy())
    run(body)


def test_a_close_must_be_one():
    async def body(s, o):
        for r in (buy(), buy(instrument="GBP_USD", reduce_only=True)):
            with pytest.raises(e.InvalidOrder):
                await o.close_position("EUR_USD", r)
        with pytest.raises(e.ReduceOnlyRejected):
            await o.close_position("EUR_USD", buy(units=-5, reduce_only=True))
        await o.create_order(buy("db-2", 300))
        with pytest.raises(e.Rejected):
            await o.close_position("EUR_USD", OrderRequest("db-3", "EUR_USD", D(-1000), reduce_only=True))
        await o.close_position("EUR_USD", OrderRequest("db-4", "EUR_USD", D(-300), reduce_only=True))
        assert await o.fetch_positions() == {}
    run(body)


# An answer that never came

LOST = [("accept_then_drop", {}, True), ("accept_then_hang", {}, True), ("drop_before_accept", {}, False), ("hang", {}, False), ("http_error", {"status": 500, "accepted": True}, True),
        ("http_error", {"status": 502, "accepted": False}, False), ("html", {"status": 502, "accepted": True}, True), ("html", {"status": 200, "accepted": False}, False),
        ("truncated_json", {"accepted": True}, True), ("truncated_json", {"keep_frac": 0.97, "accepted": True}, True), ("truncated_json", {"accepted": False}, False),
        ("empty_body", {"accepted": True}, True), ("empty_body", {"accepted": False}, False), ("maintenance", {"status": 504}, False)]


@pytest.mark.parametrize("by_client_id", [True, False])
@pytest.mark.parametrize("kind, params, accepted", LOST, ids=str)
def test_a_lost_answer_is_unknown_then_found_or_absent(kind, params, accepted, by_client_id):
    """Also where the venue forgets the client id of an order that has ended."""
    async def body(s, o):
        cursor = (await o.fetch_balance()).cursor
        with pytest.raises(e.OutcomeUnknown) as unknown:
            await o.create_order(buy())
        assert unknown.value.client_id == "db-1" and unknown.value.sent
        found = await o.find_order("db-1", cursor)
        assert len(creates(s)) == 1 and len(s.orders()) == accepted
        if accepted:
            assert isinstance(found, Found) and found.order.state == "filled" and found.fills[0].units == 1000 and found.order.client_id == "db-1"
        else:
            assert isinstance(found, Absent) and found.cursor == cursor
    run(body, {"kind": kind, "params": params, "route": "orders.create", "when": {"nth": [1]}}, engine=SandboxConfig(find_filled_by_client_id=by_client_id))


def test_an_order_that_is_taken_late_is_absent_first():
    async def body(s, o):
        cursor = (await o.fetch_balance()).cursor
        with pytest.raises(e.OutcomeUnknown):
            await o.create_order(buy())
        first = await o.find_order("db-1", cursor)
        await asyncio.sleep(0.5)
        assert isinstance(first, Absent) and isinstance(await o.find_order("db-1", cursor), Found)
        assert o.capabilities().absence_grace_s == 30
    run(body, {"kind": "accept_late", "params": {"delay_s": 0.3}})


@pytest.mark.parametrize("kind, params, route", [("late_visibility", {"delay_s": 0.5}, "orders.create"), ("rest_lag", {"lag_s": 0.5}, "")])
def test_lookups_that_lag_end_with_the_truth_and_never_raise(kind, params, route):
    async def body(s, o):
        cursor = (await o.fetch_balance()).cursor
        await o.create_order(buy())
        first = await o.find_order("db-1", cursor)
        await asyncio.sleep(0.6)
        assert isinstance(first, (Absent, Unreadable)) and isinstance(await o.find_order("db-1", cursor), Found)
    run(body, {"kind": kind, "params": params, **({"route": route} if route else {})})


PLACES = ["orders.get", "orders.pending", "orders.list", "transactions.sinceid"]


@pytest.mark.parametrize("route", PLACES)
@pytest.mark.parametrize("fault", [{"kind": "http_error"}, {"kind": "html", "params": {"status": 200}}, {"kind": "hang"}, {"kind": "truncated_json", "params": {"accepted": False}}, {"kind": "revoked"}, {"kind": "drop_before_accept"}], ids=lambda f: f["kind"])
def test_one_place_that_cannot_be_read_is_never_absent(route, fault):
    async def body(s, o):
        lookup = await o.find_order("db-none", "3")
        assert isinstance(lookup, Unreadable) and isinstance(lookup.error, e.VenueError)
        s.clear_faults()
        await asyncio.sleep(0.11)
        o.transport.breakers.clear()
        assert isinstance(await o.find_order("db-none", "3"), Absent)
    run(body, {**fault, "route": route}, policy=RetryPolicy(base_s=0.01, cap_s=0.02, budget_s=0.6, breaker_failures=3, breaker_open_s=0.05), timeouts=Timeouts(read_s=0.1, total_s=0.2))


def test_an_answer_that_hides_transactions_is_never_absent():
    """lastTransactionID names what the list does not show."""
    async def body(s, o):
        await o.create_order(buy())
        real = o._get

        async def hides(path, group="account", **params):
            answer = await real(path, group, **params)
            if "sinceid" in path:
                answer.body["transactions"] = [t for t in answer.body["transactions"] if t["type"] != "ORDER_FILL"]
            return answer
        o._get = hides
        assert isinstance(await o.find_order("db-none", "3"), Unreadable)
        assert isinstance(await o.find_order("db-1", "3"), Unreadable)  # its fills cannot be told
        page = await o.fetch_fills("3")
        assert page.fills == () and page.cursor == "4"  # and nothing behind the gap is skipped
        o._get = real
        assert len((await o.fetch_fills(page.cursor)).fills) == 1
    run(body)


@pytest.mark.parametrize("kind", ["transactions_duplicated", "transactions_reordered"])
def test_a_stuttering_log_tells_each_fill_once_and_in_order(kind):
    async def body(s, o):
        for n in range(6):
            await o.create_order(buy(f"db-{n}", 100 + n))
        page = await o.fetch_fills("3")
        assert [f.units for f in page.fills] == [100, 101, 102, 103, 104, 105] and page.cursor == str(3 + 12)
        assert isinstance(await o.find_order("db-4", "3"), Found)
    run(body, {"kind": kind})


def test_a_cursor_that_is_ahead_of_the_venue_is_an_error():
    async def body(s, o):
        for cursor in ("99", "12345678901234567"):
            with pytest.raises(e.ProtocolError, match="cursor"):
                await o.fetch_fills(cursor)
            assert isinstance(await o.find_order("db-1", cursor), Unreadable)
        with pytest.raises(BadInput):
            await o.fetch_fills("abc")
        assert (await o.fetch_fills("")).cursor == "3"
    run(body)


# Cancelling


def test_a_cancel_returns_the_order_as_it_ended():
    async def body(s, o):
        a, b = [(await o.create_order(rest(c))).order for c in ("db-1", "db-2")]
        one, two = await o.cancel_order(venue_order_id=a.venue_order_id), await o.cancel_order(client_id="db-2")
        assert (one.state, one.client_id, two.state, two.venue_order_id) == ("cancelled", "db-1", "cancelled", b.venue_order_id)
        again = await o.cancel_order(venue_order_id=a.venue_order_id)
        assert again == one
        filled = (await o.create_order(buy("db-3"))).order
        assert (await o.cancel_order(venue_order_id=filled.venue_order_id)).state == "filled"
        for unknown in ({"venue_order_id": "4711"}, {"client_id": "db-none"}):
            with pytest.raises(e.OrderNotFound):
                await o.cancel_order(**unknown)
        with pytest.raises(BadInput):
            await o.cancel_order()
    run(body)


@pytest.mark.parametrize("kind, params", [("accept_then_drop", {}), ("drop_before_accept", {}), ("hang", {}), ("http_error", {"accepted": True}), ("truncated_json", {}), ("empty_body", {"accepted": False}),
                                          ("rate_limited", {"retry_after_s": 0.1})])
def test_a_cancel_whose_answer_is_lost_ends_well(kind, params):
    async def body(s, o):
        order = (await o.create_order(rest())).order
        assert (await o.cancel_order(client_id="db-1")).state == "cancelled"
        cancels = [x for x in s.journal.entries if x.route == "orders.cancel"]
        assert len(cancels) <= 2 and [x.state for x in s.orders()] == ["CANCELLED"] and order.state == "open"
        if kind == "accept_then_drop":
            assert len(cancels) == 1  # it was looked at before anything was repeated
    run(body, {"kind": kind, "params": params, "route": "orders.cancel", "when": {"nth": [1]}})


def test_a_cancel_keeps_what_was_filled():
    async def body(s, o):
        price = (await o.fetch_quotes(["EUR_USD"]))["EUR_USD"].ask + D("0.01")
        await o.create_order(rest(price=str(price), units=900))
        ended = await o.cancel_order(client_id="db-1")
        assert (ended.state, ended.filled_units) == ("cancelled", D(299))  # a third, rounded down
    run(body, {"kind": "slow_fill", "params": {"every_s": 3600.0}})


# Key, rate, maintenance


def test_a_wrong_token_is_said_and_stops():
    async def body(s, o):
        for call in (o.load_instruments(), o.fetch_balance(), o.create_order(buy()), o.fetch_positions()):
            with pytest.raises(e.AuthError) as error:
                await call
            assert "wrong" not in str(error.value) and error.value.raw.count("wrong") == 0
        assert creates(s) == []
    run(body, token="wrong-token")


def test_reads_wait_for_the_rate_and_a_create_says_when():
    async def body(s, o):
        s.add_fault({"kind": "rate_limited", "params": {"retry_after_s": 0.2}, "when": {"times": 1}})
        assert await o.fetch_positions() == {}
        s.add_fault({"kind": "rate_limited", "params": {"retry_after_s": 0.2}, "when": {"times": 1}})
        with pytest.raises(e.RateLimited) as limited:
            await o.create_order(buy())
        assert limited.value.retry_at_ms - s.clock() == 200 and len(s.orders()) == 0
        await o.create_order(buy())
    run(body)


def test_maintenance_is_not_a_flat_account():
    async def body(s, o):
        await o.create_order(buy())
        s.add_fault({"kind": "maintenance", "name": "weekend"})
        for call in (o.fetch_positions, o.fetch_open_orders, o.fetch_balance):
            with pytest.raises(e.Transient):
                await call()
        s.clear_faults()
        await asyncio.sleep(0.1)
        assert (await o.fetch_positions())["EUR_USD"].units == 1000
    run(body, policy=RetryPolicy(base_s=0.01, cap_s=0.02, budget_s=0.3, breaker_failures=20, breaker_open_s=0.05))


# Market data


def test_instruments_quotes_and_time():
    async def body(s, o):
        instruments = await o.load_instruments()
        assert (instruments["USD_JPY"].tick, instruments["EUR_USD"].tick, instruments["EUR_USD"].lot) == (D("0.001"), D("0.00001"), D(1))
        quotes = await o.fetch_quotes(["EUR_USD", "USD_JPY"])
        assert set(quotes) == {"EUR_USD", "USD_JPY"} and all(q.bid < q.ask and q.tradeable for q in quotes.values())
        assert await o.fetch_quotes([]) == {}
        with pytest.raises(e.Rejected):
            await o.fetch_quotes(["EUR_XXX"])
        assert abs(await o.fetch_time_ms() - s.clock()) < 1000
        assert o.capabilities().account_currency == "USD" and o.capabilities().environment == "sandbox"
    run(body)


def candles_of(s, start, end, granularity="M1", instrument="EUR_USD"):
    """What the engine has, without any page in between."""
    rows, at = [], to_ms(start)
    while at < to_ms(end):
        got = [c for c in s.engine.candles(instrument, granularity, price="M", start_ms=at, end_ms=min(at + 4000*60_000, to_ms(end)))["candles"] if c["complete"]]
        rows += got
        at += 4000*60_000
    times = sorted({to_ms(c["time"][:19] + "Z") for c in rows})
    return [t for t in times if to_ms(start) <= t < to_ms(end)]


def times_of(frame):
    return frame["time"].dt.epoch("ms").to_list()


def test_candles_over_a_weekend_page_by_page():
    async def body(s, o):
        start, end = "2025-10-28T00:00:00Z", "2025-11-04T00:00:00Z"
        frame = await o.fetch_ohlcv("EUR_USD", "M1", to_ms(start), to_ms(end))
        wanted = candles_of(s, start, end)
        assert times_of(frame) == wanted and 5000 < len(wanted) < 10_080
        assert frame["bid_close"].null_count() == 0 and (frame["bid_close"] <= frame["ask_close"]).all()
        gap = pl.Series(times_of(frame)).diff().max()
        assert gap > 40*3_600_000  # the weekend is in it
        asked = [x for x in s.journal.entries if x.route == "candles"]
        assert 2 <= len(asked) <= 6
        first = await o.fetch_ohlcv("EUR_USD", "M1", to_ms(start), to_ms(end), limit=7000)
        assert times_of(first) == wanted[:7000]
    run(body, timeouts=Timeouts())


def test_the_latest_candles_are_closed_and_as_many_as_asked():
    async def body(s, o):
        for timeframe, n in (("M1", 1), ("M1", 9), ("M5", 500), ("H1", 20), ("D", 5)):
            frame = await o.fetch_ohlcv("EUR_USD", timeframe, limit=n)
            assert frame.height == n and frame["time"].is_sorted() and frame["complete"].all()
            assert times_of(frame)[-1] + {"M1": 60_000, "M5": 300_000, "H1": 3_600_000, "D": 86_400_000}[timeframe] <= s.clock()
        past = await o.fetch_ohlcv("EUR_USD", "M1", until_ms=to_ms("2025-11-03T00:00:00Z"), limit=6000)
        assert past.height == 6000 and times_of(past)[-1] < to_ms("2025-11-03T00:00:00Z")
        assert (await o.fetch_ohlcv("EUR_USD", "M1", s.clock() + 1000, s.clock() + 10**9)).height == 0
        live = await o.fetch_ohlcv("EUR_USD", "M1", s.clock() - 10*60_000, s.clock() + 10**9)
        assert live.height == 10 and times_of(live)[-1] < s.clock() - 59_000
        with pytest.raises(BadInput):
            await o.fetch_ohlcv("EUR_USD", "M7")
        with pytest.raises(BadInput):
            await o.fetch_ohlcv("EUR_USD", limit=0)
        with pytest.raises(e.Rejected):
            await o.fetch_ohlcv("EUR_XXX", limit=5)
    run(body, timeouts=Timeouts())


@pytest.mark.parametrize("kind, params", [("candles_unordered", {"rate": 0.5}), ("candles_duplicated", {"rate": 0.5}), ("candles_missing", {"rate": 0.3}), ("candles_late_close", {"delay_s": 300.0}), ("candles_revised", {})])
def test_whatever_candles_do_the_frame_is_closed_ascending_and_single(kind, params):
    async def body(s, o):
        start, end = s.clock() - 7000*60_000, s.clock()
        truth = candles_of(s, start, end)
        got = times_of(await o.fetch_ohlcv("EUR_USD", "M1", start, end))
        assert got == sorted(set(got)) and set(got) <= set(truth)
        if kind in ("candles_unordered", "candles_duplicated", "candles_revised"):
            assert got == truth
        if kind == "candles_late_close":
            assert got[-1] == end - end % 60_000 - 6*60_000
        if kind == "candles_missing":
            assert 0.6 < len(got)/len(truth) < 0.8
    run(body, {"kind": kind, "params": params}, timeouts=Timeouts())


# Opening it


@pytest.mark.parametrize("kw", [
    dict(environment="practice"), dict(environment="live"), dict(environment="paper"), dict(account=""), dict(account="../1"), dict(account="1/orders"), dict(token=""), dict(token="a b"),
    dict(token="a\nb"), dict(base_url=None), dict(base_url="https://api-fxtrade.oanda.com"), dict(base_url="http://10.0.0.1:80"), dict(base_url="ftp://127.0.0.1"),
    dict(stream_url="https://stream-fxtrade.oanda.com"), dict(environment="live", base_url="https://api-fxpractice.oanda.com"),
    dict(environment="practice", base_url="https://api-fxtrade.oanda.com"), dict(environment="live", base_url="http://api-fxtrade.oanda.com"),
    dict(environment="practice", base_url="https://api-fxpractice.oanda.com@10.0.0.1"), dict(environment="practice", base_url=None, stream_url="https://stream-fxtrade.oanda.com")], ids=str)
def test_what_does_not_agree_is_refused(kw):
    with pytest.raises(BadInput):
        Oanda(**{"account": "101-001-1", "token": "t", "base_url": "http://127.0.0.1:1", **kw})


@pytest.mark.parametrize("environment, host", [("practice", "api-fxpractice.oanda.com"), ("live", "api-fxtrade.oanda.com")])
def test_practice_and_live_use_their_own_host_and_a_limit(environment, host):
    o = Oanda("101-001-1", "t", environment=environment)
    assert host in o.base_url and host.replace("api", "stream") in o.stream_url
    assert [m.budget for m in o.transport.limiter.limits.values()] == [84]
    assert "t" not in repr(o).split("(")[1].replace("practice", "") and o.transport.guard is None
