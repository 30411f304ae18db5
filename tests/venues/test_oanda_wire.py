"""OANDA's JSON and our nouns: round trips, and nothing but ProtocolError for what cannot be read."""
import copy
import json
from dataclasses import replace
from decimal import Decimal as D

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.core.clock import iso, to_ms
from deskbook.market.candles import candle_frame, clean_candles
from deskbook.venues import errors as e
from deskbook.venues import oanda_wire as w
from deskbook.venues.model import Instrument, OrderRequest

EUR = Instrument("EUR_USD", "EUR", "USD", D("0.00001"), D(1), D(1), D(10**8), D("0.02"))
XAU = Instrument("XAU_USD", "XAU", "USD", D("0.001"), D("0.01"), D("0.01"), D(10**5), D("0.05"), D("0.01"))
JPY = Instrument("USD_JPY", "USD", "JPY", D("0.001"), D(1), D(1), D(10**8), D("0.02"), D("0.01"))

TIME = "2016-06-22T18:41:29.264025555Z"
CREATED = {"type": "MARKET_ORDER", "id": "6372", "accountID": "1", "batchID": "6372", "time": TIME, "instrument": "EUR_USD", "units": "1000", "timeInForce": "FOK",
           "positionFill": "DEFAULT", "reason": "CLIENT_ORDER", "clientExtensions": {"id": "db-7f3a"}}
FILL = {"type": "ORDER_FILL", "id": "6373", "accountID": "1", "batchID": "6372", "time": TIME, "orderID": "6372", "clientOrderID": "db-7f3a", "instrument": "EUR_USD",
        "units": "1000", "price": "1.12876", "pl": "-1.5000", "financing": "-0.0100", "commission": "0.2500", "reason": "MARKET_ORDER",
        "gainQuoteHomeConversionFactor": "0.99", "lossQuoteHomeConversionFactor": "1.01", "accountBalance": "100000.0000"}
CANCEL = {"type": "ORDER_CANCEL", "id": "6373", "accountID": "1", "batchID": "6372", "time": TIME, "orderID": "6372", "reason": "MARKET_HALTED"}
BUY = OrderRequest("db-7f3a", "EUR_USD", D(1000))


# Numbers and times

def steps(i, lo, hi):
    return st.integers(lo, hi).map(lambda n: n*i.tick)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([EUR, XAU, JPY]), st.data())
def test_an_order_is_read_back_as_it_was_asked(i, data):
    r = OrderRequest(
        client_id=data.draw(st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True)), instrument=i.name,
        units=data.draw(st.integers(1, int(i.max_units/i.lot)))*i.lot*data.draw(st.sampled_from([1, -1])),
        reduce_only=data.draw(st.booleans()), **data.draw(st.one_of(
            st.fixed_dictionaries({"type": st.just("market"), "time_in_force": st.sampled_from(["FOK", "IOC"]), "price_bound": st.none() | steps(i, 1, 10**7)}),
            st.fixed_dictionaries({"type": st.just("limit"), "time_in_force": st.sampled_from(["GTC", "GFD", "FOK", "IOC"]), "price": steps(i, 1, 10**7)}),
            st.fixed_dictionaries({"type": st.just("limit"), "time_in_force": st.just("GTD"), "price": steps(i, 1, 10**7), "good_till_ms": st.integers(10**12, 2*10**12)}))),
        stop_loss_price=data.draw(st.none() | steps(i, 1, 10**7)))
    sent = json.loads(json.dumps(w.order_body(r, i)))["order"]
    for field in ("units", "price", "priceBound"):
        if field in sent:
            assert "E" not in sent[field] and "e" not in sent[field]
            step = i.lot if field == "units" else i.tick
            assert -D(sent[field]).as_tuple().exponent == -step.as_tuple().exponent
    assert sent["clientExtensions"]["id"] == sent["tradeClientExtensions"]["id"] == r.client_id
    if r.good_till_ms:
        assert to_ms(sent["gtdTime"]) == r.good_till_ms
    made = {**sent, "type": f"{sent['type']}_ORDER", "id": "9", "time": TIME}
    o = w.read_ack({"orderCreateTransaction": made}, r).order
    assert (o.client_id, o.instrument, o.units, o.type, o.price, o.time_in_force, o.reduce_only) == (
        r.client_id, r.instrument, r.units, r.type, r.price, r.time_in_force, r.reduce_only)
    assert o.state == "open"


@settings(max_examples=150, deadline=None)
@given(st.decimals(allow_nan=True, allow_infinity=True), st.sampled_from([EUR.tick, EUR.lot, XAU.lot]))
def test_a_number_is_on_its_step_or_refused(value, step):
    try:
        text = w.on_step(value, step, "price")
    except e.InvalidOrder as refused:
        assert refused.sent is False
        assert not value.is_finite() or abs(value) >= 10**18 or value % step != 0
    else:
        assert (D(text) == value and not text.startswith("-0")) or D(text) < 0


@given(st.integers(10**12, 4*10**12), st.integers(0, 999_999))
def test_both_spellings_of_a_time_mean_the_same(ms, nanos):
    rfc = iso(ms - ms % 1000)[:-1] + f".{ms % 1000:03d}{nanos:06d}Z"
    unix = f"{ms//1000}.{ms % 1000:03d}{nanos:06d}"
    assert w.as_time_ms(rfc) == w.as_time_ms(unix) == ms


anything = st.recursive(st.none() | st.booleans() | st.integers() | st.decimals(allow_nan=False, allow_infinity=False) | st.text(max_size=12)
    | st.sampled_from(["NaN", "1e9999", "-", "0", "-1", TIME, "6372", "EUR_USD"]), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3), max_leaves=6)


@settings(max_examples=150, deadline=None)
@given(anything)
def test_any_value_is_a_number_a_time_or_a_protocol_error(value):
    for read in (w.as_number, w.as_time_ms):
        try:
            got = read(value, "field")
        except e.ProtocolError:
            continue
        assert got.is_finite() if isinstance(got, D) else isinstance(got, int)


# Whole answers, spoilt in one place each

def spots(value, path=()):
    """Every place in a JSON value."""
    yield path
    for k, v in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from spots(v, (*path, k))


def changed(value, path, new):
    out = copy.deepcopy(value)
    at = out
    for k in path[:-1]:
        at = at[k]
    if new is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return out


PRICE = {"type": "PRICE", "instrument": "EUR_USD", "time": TIME, "tradeable": True, "bids": [{"price": "1.13028", "liquidity": "10000000"}], "asks": [{"price": "1.13042", "liquidity": "1"}],
         "closeoutBid": "1.13024", "closeoutAsk": "1.13046", "status": "tradeable"}
SUMMARY = {"account": {"id": "1", "currency": "USD", "balance": "100000.0000", "NAV": "100000.0000", "unrealizedPL": "0.0000", "marginUsed": "0.0000", "marginAvailable": "100000.0000",
                       "hedgingEnabled": False, "lastTransactionID": "6373"}, "lastTransactionID": "6373"}
POSITIONS = {"positions": [{"instrument": "EUR_USD", "long": {"units": "1000", "averagePrice": "1.12876", "unrealizedPL": "0.1"}, "short": {"units": "0"}, "unrealizedPL": "0.1"}], "lastTransactionID": "6373"}
INSTRUMENT = {"name": "EUR_USD", "type": "CURRENCY", "displayPrecision": 5, "pipLocation": -4, "tradeUnitsPrecision": 0, "minimumTradeSize": "1", "maximumOrderUnits": "100000000", "marginRate": "0.02"}
ORDER = {"id": "6372", "createTime": TIME, "type": "LIMIT", "state": "PENDING", "instrument": "EUR_USD", "units": "1000", "price": "1.10000", "timeInForce": "GTC", "positionFill": "DEFAULT",
         "clientExtensions": {"id": "db-7f3a"}}
TRADE = {"id": "6373", "instrument": "EUR_USD", "price": "1.12876", "openTime": TIME, "initialUnits": "1000", "currentUnits": "400", "unrealizedPL": "-0.1", "clientExtensions": {"id": "db-1"}}
CANDLES = {"instrument": "EUR_USD", "granularity": "M1", "candles": [{"time": TIME, "complete": True, "volume": 12, **{s: dict(o="1.13", h="1.14", l="1.12", c="1.135") for s in ("mid", "bid", "ask")}}]}
ANSWER = {"orderCreateTransaction": CREATED, "orderFillTransaction": FILL, "lastTransactionID": "6373", "relatedTransactionIDs": ["6372", "6373"]}
CANCELLED = {"orderCreateTransaction": CREATED, "orderCancelTransaction": CANCEL, "lastTransactionID": "6373"}
LOG = [CREATED, {**FILL, "units": "400"}, {**CANCEL, "id": "6374", "reason": "CLIENT_REQUEST"}, {"type": "DAILY_FINANCING", "id": "6375", "time": TIME, "financing": "-0.03"},
       {"type": "TRANSFER_FUNDS", "id": "6376", "time": TIME, "amount": "500.0"}]


def all_of_the_log(log):
    if not isinstance(log, list) or not all(isinstance(t, dict) for t in log):
        return
    txs = w.in_order(log)
    w.read_fill_page(txs, "9")
    w.orders_in(txs, "db-7f3a")
    w.rejected_in(txs, "db-7f3a")


READERS = {
    "ack": (ANSWER, lambda x: w.read_ack(x, BUY, "USD", "1")), "cancelled": (CANCELLED, lambda x: w.read_ack(x, BUY, "USD", "1")),
    "price": (PRICE, w.read_quote), "summary": (SUMMARY, lambda x: w.read_balance(x, 0)), "positions": (POSITIONS, w.read_positions),
    "instrument": (INSTRUMENT, w.read_instrument), "order": (ORDER, w.read_order), "trade": (TRADE, w.read_trade), "candles": (CANDLES, lambda x: candle_frame("EUR_USD", w.read_candles(x, "EUR_USD", "M1").rows)),
    "log": ({"t": LOG}, lambda x: all_of_the_log(x.get("t")))}


@pytest.mark.parametrize("name", READERS)
def test_the_unspoilt_answer_is_read(name):
    value, read = READERS[name]
    if name == "cancelled":
        with pytest.raises(e.MarketClosed):
            read(value)
    else:
        read(value)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("new", [..., None, "", "NaN", "1e9999", "abc", True, -1, 10**30, [], {}, [None], {"price": "x"}], ids=repr)
def test_spoilt_in_any_one_place_it_is_read_or_typed(name, new):
    """No KeyError, TypeError, InvalidOperation or OverflowError, wherever a field is missing or nonsense."""
    value, read = READERS[name]
    for path in spots(value):
        if path:
            try:
                read(changed(value, path, new))
            except e.VenueError:
                pass


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(READERS)), st.data())
def test_spoilt_anyhow_it_is_read_or_typed(name, data):
    value, read = READERS[name]
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([p for p in spots(value) if p] or [()]))
        if not path:
            break
        value = changed(value, path, data.draw(anything))
    try:
        read(value)
    except e.VenueError:
        pass


@pytest.mark.parametrize("name", READERS)
def test_unknown_fields_are_ignored(name):
    value, read = READERS[name]
    more = copy.deepcopy(value)
    for path in spots(value):
        at = more
        for k in path:
            at = at[k]
        if isinstance(at, dict):
            at["brandNew"] = {"nested": [1, "x"]}
    if name == "cancelled":
        with pytest.raises(e.MarketClosed):
            read(more)
    else:
        got, same = read(more), read(value)
        assert got.equals(same) if name == "candles" else got == same


# Acks

@pytest.mark.parametrize("reason, kind", [
    ("INSUFFICIENT_MARGIN", e.InsufficientFunds), ("MARKET_HALTED", e.MarketClosed), ("INSTRUMENT_BID_HALTED", e.MarketClosed), ("BOUNDS_VIOLATION", e.Rejected),
    ("INSUFFICIENT_LIQUIDITY", e.Rejected), ("FIFO_VIOLATION", e.Rejected), ("STOP_LOSS_ON_FILL_LOSS", e.InvalidOrder), ("CLIENT_TRADE_ID_ALREADY_EXISTS", e.DuplicateClientId),
    ("POSITION_CLOSEOUT_FAILED", e.ReduceOnlyRejected), ("TIME_IN_FORCE_EXPIRED", e.InvalidOrder), ("SOMETHING_NEW", e.Rejected)])
def test_201_and_cancelled_is_a_rejection_of_the_right_class(reason, kind):
    with pytest.raises(e.Rejected) as error:
        w.read_ack({"orderCreateTransaction": CREATED, "orderCancelTransaction": {**CANCEL, "reason": reason}}, BUY)
    assert (type(error.value), error.value.code, error.value.http_status, error.value.sent) == (kind, reason, 201, True)


@pytest.mark.parametrize("filled, cancel, state", [("1000", None, "filled"), ("400", CANCEL, "cancelled"), ("400", None, "partially_filled"), (None, None, "open")])
def test_what_a_201_can_mean(filled, cancel, state):
    body = {"orderCreateTransaction": CREATED, **({"orderFillTransaction": {**FILL, "units": filled}} if filled else {}), **({"orderCancelTransaction": {**cancel, "id": "6374"}} if cancel else {})}
    ack = w.read_ack(body, BUY)
    assert (ack.order.state, ack.order.filled_units, len(ack.fills)) == (state, D(filled or 0), 1 if filled else 0)


@pytest.mark.parametrize("field, value", [("instrument", "GBP_USD"), ("units", "-1000"), ("units", "1001"), ("accountID", "2"), ("clientExtensions", {"id": "db-else"})])
def test_the_answer_to_somebody_else_is_no_answer(field, value):
    with pytest.raises(e.ProtocolError):
        w.read_ack({**ANSWER, "orderCreateTransaction": {**CREATED, field: value}}, BUY, "USD", "1")


def test_money_of_a_fill():
    f = w.read_fill(FILL, "EUR")
    assert (f.fee, f.fee_currency, f.realised_pnl, f.conversion_rate) == (D("0.25"), "EUR", D("-1.5"), D("1.01"))
    assert w.read_fill({**FILL, "pl": "2"}).conversion_rate == D("0.99")
    nested = {k: v for k, v in FILL.items() if "Factor" not in k} | {"homeConversionFactors": {"gainQuoteHome": {"factor": "0.9"}, "lossQuoteHome": {"factor": "1.1"}}}
    assert w.read_fill(nested).conversion_rate == D("1.1")
    assert w.read_fill({k: v for k, v in FILL.items() if "Factor" not in k}).conversion_rate is None
    assert w.read_fill({k: v for k, v in FILL.items() if k != "price"} | {"fullVWAP": "1.5"}).price == D("1.5")
    assert w.read_fill({**FILL, "guaranteedExecutionFee": "1"}).fee == D("1.25")


# The log

@settings(max_examples=200, deadline=None)
@given(st.permutations(LOG), st.lists(st.sampled_from(LOG), max_size=6), st.integers(6370, 6377))
def test_order_and_repetition_do_not_matter(log, again, after):
    txs = w.in_order([*log, *copy.deepcopy(again)], str(after))
    assert [int(t["id"]) for t in txs] == [n for n in range(6372, 6377) if n > after]
    if after < 6372:
        page = w.read_fill_page(txs, "6376")
        assert ([f.fill_id for f in page.fills], page.cash) == (["6373"], D("-0.01") + D("-0.03") + D(500))
        ended, = page.ended_orders
        assert (ended.state, ended.filled_units, ended.client_id, ended.instrument) == ("cancelled", D(400), "db-7f3a", "EUR_USD")


@pytest.mark.parametrize("other", [{"units": "999"}, {"price": "1.2"}, {"type": "ORDER_CANCEL"}])
def test_one_id_for_two_different_transactions_is_an_error(other):
    with pytest.raises(e.ProtocolError, match="6373"):
        w.in_order([*LOG, {**LOG[1], **other}])


@pytest.mark.parametrize("cancel, fills, kind, state", [
    ({"reason": "TIME_IN_FORCE_EXPIRED", "batchID": "7000"}, [], "LIMIT_ORDER", "expired"), ({"reason": "CLIENT_REQUEST"}, [], "LIMIT_ORDER", "cancelled"),
    ({"reason": "INSUFFICIENT_MARGIN", "batchID": "7000"}, [], "LIMIT_ORDER", "cancelled"), ({"reason": "INSUFFICIENT_MARGIN"}, [], "LIMIT_ORDER", "rejected"),
    ({"reason": "INSUFFICIENT_MARGIN"}, [], "MARKET_ORDER", "rejected"), ({"reason": "INSUFFICIENT_LIQUIDITY"}, [FILL], "MARKET_ORDER", "cancelled"),
    (None, [], "LIMIT_ORDER", "open"), (None, [{**FILL, "units": "10"}], "LIMIT_ORDER", "partially_filled"), (None, [FILL], "LIMIT_ORDER", "filled")])
def test_states_from_the_log(cancel, fills, kind, state):
    made = {**CREATED, "type": kind, **({"price": "1.1"} if kind == "LIMIT_ORDER" else {})}
    log = [made, *fills, *([{**CANCEL, "id": "6380", **cancel}] if cancel else [])]
    (order, got), = w.orders_in(w.in_order(log), "db-7f3a")
    assert (order.state, len(got)) == (state, len(fills))


def test_a_refusal_as_duplicate_is_no_fate_of_the_order():
    no = {**CREATED, "type": "MARKET_ORDER_REJECT", "id": "6390"}
    assert w.rejected_in([{**no, "rejectReason": "CLIENT_ORDER_ID_ALREADY_EXISTS"}], "db-7f3a") is None
    assert w.rejected_in([{**no, "rejectReason": "CLIENT_TRADE_ID_ALREADY_EXISTS"}, {**no, "rejectReason": "UNITS_LIMIT_EXCEEDED"}], "db-7f3a").reason == "UNITS_LIMIT_EXCEEDED"


# Errors

TABLE = {
    e.InsufficientFunds: ["INSUFFICIENT_MARGIN"], e.DuplicateClientId: ["CLIENT_ORDER_ID_ALREADY_EXISTS", "CLIENT_TRADE_ID_ALREADY_EXISTS"],
    e.OrderNotFound: ["NO_SUCH_ORDER", "ORDER_DOESNT_EXIST"], e.ReduceOnlyRejected: ["CLOSEOUT_POSITION_DOESNT_EXIST"],
    e.MarketClosed: ["MARKET_HALTED", "INSTRUMENT_NOT_TRADEABLE"],
    e.InvalidOrder: ["UNITS_INVALID", "UNITS_MISSING", "UNITS_PRECISION_EXCEEDED", "UNITS_LIMIT_EXCEEDED", "UNITS_MINIMUM_NOT_MET", "PRICE_PRECISION_EXCEEDED", "PRICE_MISSING",
                     "INSTRUMENT_UNKNOWN", "TIME_IN_FORCE_INVALID", "STOP_LOSS_ON_FILL_PRICE_INVALID", "CLIENT_ORDER_ID_INVALID"],
    e.Rejected: ["FIFO_VIOLATION", "ACCOUNT_LOCKED", "SOMETHING_ELSE"]}


@pytest.mark.parametrize("kind, code", [(k, c) for k, codes in TABLE.items() for c in codes])
@pytest.mark.parametrize("shape", ["errorCode", "rejectReason", "both"])
def test_the_error_table(kind, code, shape):
    body = {"errorMessage": "no"} | ({"errorCode": code} if shape != "rejectReason" else {})
    if shape != "errorCode":
        body["orderRejectTransaction"] = {"type": "MARKET_ORDER_REJECT", "rejectReason": code}
    error = w.read_error("POST", "/v3/accounts/1/orders", 400, body, "raw", "42")
    assert (type(error), error.code, error.http_status, error.request_id, error.sent) == (kind, code, 400, "42", True)


@pytest.mark.parametrize("status, kind", [(400, e.InvalidOrder), (401, e.AuthError), (403, e.PermissionDenied), (404, e.Rejected)])
def test_a_message_without_a_code(status, kind):
    assert type(w.read_error("POST", "/v3/accounts/1/orders", status, {"errorMessage": "Insufficient authorization to perform request."})) is kind


@pytest.mark.parametrize("status, body", [(400, {}), (400, {"message": "bad gateway"}), (404, {"error": 1}), (500, {"errorMessage": "x"}), (504, {"errorMessage": "Timeout waiting for response."}),
                                          (429, {"errorMessage": "slow"}), (408, {"errorMessage": "late"}), (400, {"errorMessage": 7})])
def test_what_is_not_a_refusal_of_oanda_is_left_to_the_status(status, body):
    assert w.read_error("POST", "/v3/accounts/1/orders", status, body) is None


@settings(max_examples=100, deadline=None)
@given(st.integers(100, 599), st.dictionaries(st.sampled_from(["errorCode", "errorMessage", "orderRejectTransaction", "rejectReason", "x"]), anything, max_size=4))
def test_any_error_body_is_typed_or_left(status, body):
    error = w.read_error("POST", "/v3/accounts/1/orders", status, body)
    assert error is None or isinstance(error, e.VenueError)


# Positions and prices

@pytest.mark.parametrize("spoilt", [
    [("long", {"units": "1000", "averagePrice": "1.1"}), ("short", {"units": "-5", "averagePrice": "1.1"})], [("long", {"units": "-1", "averagePrice": "1.1"})],
    [("short", {"units": "1", "averagePrice": "1.1"})], [("long", {"units": "1000"})], [("long", {"units": "1000", "averagePrice": "0"})]])
def test_a_position_that_is_no_net_position_is_an_error(spoilt):
    row = {**POSITIONS["positions"][0], **dict(spoilt)}
    with pytest.raises(e.ProtocolError):
        w.read_positions({"positions": [row]})


def test_a_closed_market_has_closeout_prices_only():
    q = w.read_quote({**PRICE, "bids": [], "asks": [], "tradeable": False})
    assert (q.bid, q.ask, q.tradeable) == (D("1.13024"), D("1.13046"), False)
    assert w.read_quote({k: v for k, v in PRICE.items() if k != "tradeable"} | {"status": "non-tradeable"}).tradeable is False
    deep = {**PRICE, "bids": [{"price": "1.13"}, {"price": "1.13028"}], "asks": [{"price": "1.2"}, {"price": "1.13042"}]}
    assert w.read_quote(deep).mid == D("1.13035")


def test_a_candle_without_quotes_has_none_and_a_candle_that_makes_no_sense_is_told_as_it_is():
    bars = [{"time": f"2016-06-22T18:0{n}:00Z", "complete": True, "volume": 1, "mid": dict(o="1.13", h=h, l="1.12", c="1.135")} for n, h in ((1, "1.14"), (2, "1.10"))]
    rows = w.read_candles({"candles": bars}, "EUR_USD", "M1").rows
    clean = clean_candles(candle_frame("EUR_USD", rows))
    assert clean.candles.height == 1 and clean.candles["bid_close"].null_count() == 1 and clean.reasons == {"high_below_body": 1}


def test_requests_that_are_wrong_are_not_sent():
    for r in (replace(BUY, units=D("1e9")), replace(BUY, units=1000), replace(BUY, units=D("sNaN")), replace(BUY, client_id=""), replace(BUY, client_id="a"*129), replace(BUY, client_id="a/b"),
              replace(BUY, price_bound=D("Infinity")), replace(BUY, stop_loss_price=D(0)), replace(BUY, good_till_ms=1)):
        with pytest.raises(e.InvalidOrder) as error:
            w.order_body(r, EUR)
        assert error.value.sent is False
