"""The sandbox venue says what OANDA says: fills, cancellations with HTTP 201, rejections with HTTP 400, and what happens while nobody asks."""
from decimal import Decimal

import polars as pl
import pytest

from deskbook.core.clock import DAY_MS, MINUTE_MS, iso, to_ms
from deskbook.core.errors import BadInput, DataError
from deskbook.market.candles import conform
from deskbook.venues.sandbox.clock import SandboxClock, next_rollover
from deskbook.venues.sandbox.engine import SandboxConfig, SandboxEngine
from deskbook.venues.sandbox.market import FrameSource, Market, NoRate, SimulatedSource
from deskbook.venues.sandbox.wire import WireError

ME, START = "101-001-1000001-001", "2025-11-04T14:30:00Z"
MARKET = Market()  # days are loaded once; tests that touch a market make their own


def make(start=START, market=None, balance="100000", currency="USD", **config):
    clock = SandboxClock(start)
    engine = SandboxEngine(market or MARKET, clock, SandboxConfig(**config))
    engine.create_account(ME, balance, currency)
    return engine, clock


def own_market(*names, **more): return Market(SimulatedSource(names or ("EUR_USD",)), **more)


def order(units, kind="MARKET", instrument="EUR_USD", **more): return {"type": kind, "instrument": instrument, "units": str(units), **more}


def submit(engine, *args, **more): return engine.submit_order(ME, order(*args, **more))


def filled(engine, *args, **more):
    status, body = submit(engine, *args, **more)
    assert status == 201 and "orderFillTransaction" in body, body
    return body["orderFillTransaction"]


def cancelled(engine, *args, **more):
    status, body = submit(engine, *args, **more)
    assert status == 201 and "orderFillTransaction" not in body, body
    return body["orderCancelTransaction"]["reason"]


def rejected(engine, *args, **more):
    status, body = submit(engine, *args, **more)
    assert status == 400 and body["orderRejectTransaction"]["rejectReason"] == body["errorCode"] and body["errorMessage"], body
    assert body["orderRejectTransaction"]["type"].endswith("_REJECT") and body["lastTransactionID"] == body["orderRejectTransaction"]["id"]
    return body["errorCode"]


def units(engine, instrument="EUR_USD"):
    p = engine.account_state(ME).positions.get(instrument)
    return int(p.units) if p else 0


def ask(engine, instrument="EUR_USD"): return Decimal(engine.price(instrument)["asks"][0]["price"])
def bid(engine, instrument="EUR_USD"): return Decimal(engine.price(instrument)["bids"][0]["price"])
def types(engine, n): return [t["type"] for t in engine.log(ME)[-n:]]


# -- market orders

def test_a_buy_fills_at_the_ask_and_a_sell_at_the_bid():
    engine, _ = make()
    buy, sell = filled(engine, 1000), filled(engine, -1000)
    assert (Decimal(buy["price"]), Decimal(sell["price"])) == (ask(engine), bid(engine))
    assert Decimal(sell["pl"]) == ((bid(engine) - ask(engine)) * 1000).quantize(Decimal("0.0001"))
    assert units(engine) == 0


def test_the_answer_names_its_transactions():
    engine, _ = make()
    before = engine.account_state(ME).last_id
    _, body = submit(engine, 1000, clientExtensions={"id": "db-1", "tag": "entry"}, tradeClientExtensions={"id": "db-1"})
    made, fill = body["orderCreateTransaction"], body["orderFillTransaction"]
    assert body["relatedTransactionIDs"] == [made["id"], fill["id"]] == [str(before + 1), str(before + 2)]
    assert body["lastTransactionID"] == fill["id"] and made["batchID"] == fill["batchID"] == made["id"] and made["requestID"] == fill["requestID"]
    assert fill["orderID"] == made["id"] and fill["clientOrderID"] == "db-1" and fill["tradeOpened"]["tradeID"] == fill["id"]
    assert made["clientExtensions"] == {"id": "db-1", "tag": "entry"} and fill["tradeOpened"]["clientExtensions"] == {"id": "db-1"}
    assert fill["time"].endswith("000000Z") and len(fill["time"]) == 30


def test_a_market_order_sent_again_after_it_filled_is_a_second_order():
    engine, _ = make()
    same = {"clientExtensions": {"id": "db-1"}}
    filled(engine, 1000, **same), filled(engine, 1000, **same)
    assert units(engine) == 2000
    assert engine.order(ME, "@db-1")["order"]["id"] == engine.orders(ME, "FILLED")["orders"][0]["id"]


def test_a_client_id_is_refused_while_an_order_with_it_is_pending():
    engine, _ = make()
    same = {"price": "1.00000", "clientExtensions": {"id": "db-1"}}
    status, body = submit(engine, 1000, "LIMIT", **same)
    assert status == 201 and "orderFillTransaction" not in body
    assert rejected(engine, 1000, "LIMIT", **same) == rejected(engine, 1000, **{"clientExtensions": {"id": "db-1"}}) == "CLIENT_ORDER_ID_ALREADY_EXISTS"
    assert engine.cancel_order(ME, "@db-1")[0] == 200
    assert submit(engine, 1000, "LIMIT", **same)[0] == 201


def test_a_trade_id_is_refused_while_its_trade_is_open():
    engine, _ = make()
    same = {"tradeClientExtensions": {"id": "db-1"}}
    filled(engine, 1000, **same)
    assert rejected(engine, 1000, **same) == "CLIENT_TRADE_ID_ALREADY_EXISTS"
    filled(engine, -1000)
    filled(engine, 1000, **same)


def test_ioc_takes_what_the_book_has_and_cancels_the_rest():
    engine, _ = make(balance="10000000", levels=((Decimal(5000), Decimal(0)), (Decimal(5000), Decimal("0.5"))))
    _, body = submit(engine, 12000, timeInForce="IOC")
    fill, rest = body["orderFillTransaction"], body["orderCancelTransaction"]
    assert (fill["units"], fill["requestedUnits"], rest["reason"]) == ("10000", "12000", "INSUFFICIENT_LIQUIDITY")
    assert Decimal(fill["price"]) > ask(engine)
    o = engine.order(ME, fill["orderID"])["order"]
    assert (o["state"], o["fillingTransactionID"], o["cancellingTransactionID"]) == ("CANCELLED", fill["id"], rest["id"])
    assert units(engine) == 10000


def test_fok_is_whole_or_nothing():
    engine, _ = make(balance="10000000", levels=((Decimal(5000), Decimal(0)),))
    assert cancelled(engine, 5001) == "INSUFFICIENT_LIQUIDITY"
    assert units(engine) == 0 and filled(engine, 5000)["units"] == "5000"


def test_a_price_bound_stops_a_fill():
    engine, _ = make()
    tick = Decimal("0.00001")
    assert cancelled(engine, 1000, priceBound=str(ask(engine) - tick)) == cancelled(engine, -1000, priceBound=str(bid(engine) + tick)) == "BOUNDS_VIOLATION"
    filled(engine, 1000, priceBound=str(ask(engine)))


def test_slippage_is_adverse_on_both_sides():
    engine, _ = make(slippage_ticks=3)
    assert Decimal(filled(engine, 1000)["price"]) == ask(engine) + Decimal("0.00003")
    assert Decimal(filled(engine, -1000)["price"]) == bid(engine) - Decimal("0.00003")


@pytest.mark.parametrize(("change", "reason"), [
    ({"units": "0"}, "UNITS_INVALID"), ({"units": "0.5"}, "UNITS_PRECISION_EXCEEDED"), ({"units": "100000001"}, "UNITS_LIMIT_EXCEEDED"), ({"units": None}, "UNITS_MISSING"),
    ({"instrument": "EUR_XXX"}, "INSTRUMENT_UNKNOWN"), ({"instrument": None}, "INSTRUMENT_MISSING"), ({"timeInForce": "GTC"}, "TIME_IN_FORCE_INVALID"),
    ({"priceBound": "1.000001"}, "PRICE_BOUND_PRECISION_EXCEEDED"), ({"positionFill": "HEDGE"}, "ORDER_FILL_POSITION_ACTION_INVALID"),
    ({"type": "LIMIT"}, "PRICE_MISSING"), ({"type": "LIMIT", "price": "-1"}, "PRICE_INVALID"), ({"type": "LIMIT", "price": "1.000001"}, "PRICE_PRECISION_EXCEEDED"),
    ({"type": "LIMIT", "price": "1.0", "timeInForce": "GTD"}, "TIME_IN_FORCE_GTD_TIMESTAMP_MISSING"),
    ({"type": "LIMIT", "price": "1.0", "timeInForce": "GTD", "gtdTime": "2025-11-04T14:29:59.000000000Z"}, "TIME_IN_FORCE_GTD_TIMESTAMP_IN_PAST"),
    ({"type": "STOP", "price": "1.0", "timeInForce": "IOC"}, "TIME_IN_FORCE_INVALID"), ({"clientExtensions": {"id": "x" * 129}}, "CLIENT_ORDER_ID_INVALID"),
    ({"clientExtensions": {"id": ""}}, "CLIENT_ORDER_ID_INVALID"), ({"tradeClientExtensions": {"id": "naïve"}}, "CLIENT_TRADE_ID_INVALID"),
    ({"stopLossOnFill": {"price": "1.000001"}}, "STOP_LOSS_ON_FILL_PRICE_PRECISION_EXCEEDED"), ({"takeProfitOnFill": {}}, "TAKE_PROFIT_ON_FILL_PRICE_MISSING"),
    ({"trailingStopLossOnFill": {"distance": "0.01"}}, "TRAILING_STOP_LOSS_ORDERS_NOT_SUPPORTED"),
    ({"stopLossOnFill": {"price": "1.0", "guaranteed": True}}, "STOP_LOSS_ON_FILL_GUARANTEED_NOT_ALLOWED"),
    ({"positionFill": "REDUCE_ONLY"}, "CLOSEOUT_POSITION_DOESNT_EXIST"),
])
def test_what_is_rejected_enters_the_log_and_changes_nothing(change, reason):
    engine, _ = make()
    before = engine.summary(ME)["account"]
    status, body = engine.submit_order(ME, {k: v for k, v in {**order(1000), **change}.items() if v is not None})
    assert (status, body["errorCode"], body["orderRejectTransaction"]["rejectReason"]) == (400, reason, reason)
    after = engine.summary(ME)["account"]
    assert int(after.pop("lastTransactionID")) == int(before.pop("lastTransactionID")) + 1 and after == before


def test_a_smaller_size_than_the_instrument_allows():
    frame = pl.DataFrame({"instrument": "SPX500_USD", "time": [to_ms(START)], "open": [5000.0], "high": [5000.0], "low": [5000.0], "close": [5000.0], "volume": [10.0]})
    engine, _ = make(market=Market(FrameSource(conform(frame))))
    assert rejected(engine, "0.001", instrument="SPX500_USD") == "UNITS_PRECISION_EXCEEDED"
    engine.market.universe["SPX500_USD"] = type(engine.market.universe["SPX500_USD"])(**{**engine.market.universe["SPX500_USD"].__dict__, "minimum_trade_size": Decimal("0.1")})
    assert rejected(engine, "0.05", instrument="SPX500_USD") == "UNITS_MINIMUM_NOT_MET"
    assert filled(engine, "0.15", instrument="SPX500_USD")["units"] == "0.15"


@pytest.mark.parametrize("change", [{"units": "NaN"}, {"units": "Infinity"}, {"units": "ten"}, {"units": True}, {"units": "1e999999"}, {"type": "ICEBERG"}, {"clientExtensions": "x"},
    {"clientExtensions": {"id": 5}}, {"stopLossOnFill": 1}, {"priceBound": []}, {"type": "LIMIT", "price": "1.0", "timeInForce": "GTD", "gtdTime": "tomorrow"}])
def test_what_cannot_be_read_is_400_without_a_transaction(change):
    engine, _ = make()
    last = engine.account_state(ME).last_id
    with pytest.raises(WireError) as e: engine.submit_order(ME, {**order(1000), **change})
    assert e.value.status == 400 and set(e.value.body) == {"errorMessage"} and engine.account_state(ME).last_id == last
    with pytest.raises(WireError): engine.submit_order(ME, "buy")


def test_an_unknown_account_is_forbidden():
    engine, _ = make()
    for ask_for in (engine.summary, engine.pending_orders, engine.positions, engine.log, lambda a: engine.submit_order(a, order(1)), lambda a: engine.cancel_order(a, "1")):
        with pytest.raises(WireError) as e: ask_for("101-001-1000001-999")
        assert e.value.status == 403


# -- netting

def test_trades_close_first_in_first_out():
    engine, _clock = make()
    one, two = filled(engine, 3000), filled(engine, 2000)
    out = filled(engine, -4000)
    assert [(t["tradeID"], t["units"]) for t in out["tradesClosed"]] == [(one["id"], "-3000")] and (out["tradeReduced"]["tradeID"], out["tradeReduced"]["units"]) == (two["id"], "-1000")
    over = filled(engine, -3000)
    assert [t["tradeID"] for t in over["tradesClosed"]] == [two["id"]] and over["tradeOpened"]["units"] == "-2000" and units(engine) == -2000
    p = engine.position(ME, "EUR_USD")["position"]
    assert (p["long"]["units"], p["short"]["units"], p["short"]["tradeIDs"], p["short"]["averagePrice"]) == ("0", "-2000", [over["id"]], over["price"])


def test_position_fill():
    engine, _ = make()
    filled(engine, 3000)
    assert cancelled(engine, -1000, positionFill="OPEN_ONLY") == "FIFO_VIOLATION"
    assert cancelled(engine, -5000, positionFill="REDUCE_ONLY") == "POSITION_CLOSEOUT_FAILED" and units(engine) == 3000
    _, body = submit(engine, -5000, positionFill="REDUCE_ONLY", timeInForce="IOC")
    assert (body["orderFillTransaction"]["units"], body["orderCancelTransaction"]["reason"], units(engine)) == ("-3000", "POSITION_CLOSEOUT_FAILED", 0)
    filled(engine, -1000, positionFill="REDUCE_FIRST")
    assert rejected(engine, -1000, positionFill="REDUCE_ONLY") == "CLOSEOUT_POSITION_DOESNT_EXIST"


def test_a_resting_order_keeps_to_its_position_fill():
    engine, _ = make()
    filled(engine, 3000)
    high = str(ask(engine) + Decimal("0.01"))
    assert cancelled(engine, 1000, "LIMIT", price=high, positionFill="REDUCE_ONLY") == "POSITION_CLOSEOUT_FAILED" and units(engine) == 3000
    filled(engine, 1000, "LIMIT", price=high, positionFill="OPEN_ONLY")
    low = str(bid(engine) - Decimal("0.01"))
    _, body = submit(engine, -9000, "LIMIT", price=low, positionFill="REDUCE_ONLY")
    assert (body["orderFillTransaction"]["units"], body["orderCancelTransaction"]["reason"], units(engine)) == ("-4000", "POSITION_CLOSEOUT_FAILED", 0)
    assert cancelled(engine, -1000, "LIMIT", price=low, positionFill="REDUCE_ONLY") == "POSITION_CLOSEOUT_FAILED"


# -- closing

def test_closing_a_position_whole_and_in_part():
    engine, _ = make()
    filled(engine, 3000)
    status, body = engine.close_position(ME, "EUR_USD", {"longUnits": "1000"})
    assert (status, body["longOrderFillTransaction"]["units"], body["longOrderFillTransaction"]["reason"]) == (200, "-1000", "MARKET_ORDER_POSITION_CLOSEOUT")
    status, body = engine.close_position(ME, "EUR_USD", {"longUnits": "ALL", "longClientExtensions": {"id": "db-exit"}})
    made = body["longOrderCreateTransaction"]
    assert (status, made["longPositionCloseout"], made["clientExtensions"], units(engine)) == (200, {"instrument": "EUR_USD", "units": "ALL"}, {"id": "db-exit"}, 0)
    assert engine.order(ME, "@db-exit")["order"]["state"] == "FILLED"


@pytest.mark.parametrize(("body", "status", "reason"), [
    ({"shortUnits": "ALL"}, 404, "CLOSEOUT_POSITION_DOESNT_EXIST"), ({"longUnits": "ALL", "shortUnits": "ALL"}, 404, "CLOSEOUT_POSITION_DOESNT_EXIST"),
    ({"longUnits": "3001"}, 400, "CLOSEOUT_POSITION_UNITS_EXCEED_POSITION_SIZE"), ({"longUnits": "0"}, 400, "UNITS_INVALID"),
    ({"longUnits": "0.5"}, 400, "UNITS_PRECISION_EXCEEDED"), ({"longUnits": "NONE", "shortUnits": "NONE"}, 400, "CLOSEOUT_POSITION_INCOMPLETE_SPECIFICATION")])
def test_a_closeout_that_cannot_be_closes_nothing(body, status, reason):
    engine, _ = make()
    filled(engine, 3000)
    got, answer = engine.close_position(ME, "EUR_USD", body)
    assert (got, answer["errorCode"], units(engine)) == (status, reason, 3000)
    side = "short" if "shortUnits" in body and status == 404 else "long"
    assert answer[f"{side}OrderRejectTransaction"]["rejectReason"] == reason


def test_closing_twice_is_rejected_the_second_time():
    engine, _ = make()
    filled(engine, 3000)
    assert engine.close_position(ME, "EUR_USD", {"longUnits": "ALL"})[0] == 200
    assert engine.close_position(ME, "EUR_USD", {"longUnits": "ALL"})[0] == 404
    assert engine.close_position(ME, "USD_JPY", {})[0] == 404 and units(engine) == 0


def test_only_the_oldest_trade_can_be_closed_by_hand():
    engine, _ = make()
    one, two = filled(engine, 1000), filled(engine, 1000, tradeClientExtensions={"id": "second"})
    status, body = engine.close_trade(ME, "@second", {"units": "ALL"})
    assert (status, body["orderCancelTransaction"]["reason"]) == (200, "FIFO_VIOLATION")
    status, body = engine.close_trade(ME, one["id"], {"units": "400"})
    assert (status, body["orderFillTransaction"]["tradeReduced"]["units"], body["orderFillTransaction"]["reason"]) == (200, "-400", "MARKET_ORDER_TRADE_CLOSE")
    assert engine.close_trade(ME, one["id"], {"units": "601"})[1]["errorCode"] == "CLOSE_TRADE_UNITS_EXCEED_TRADE_SIZE"
    assert engine.close_trade(ME, one["id"], {})[0] == 200
    assert engine.close_trade(ME, one["id"], {}) [1]["errorCode"] == "TRADE_DOESNT_EXIST"
    engine.configure(fifo=False)
    assert engine.close_trade(ME, two["id"], {})[0] == 200 and units(engine) == 0


# -- closed, halted, frozen

def test_nothing_fills_on_a_weekend():
    engine, _clock = make("2025-11-08T12:00:00Z")
    assert cancelled(engine, 1000) == "MARKET_HALTED"
    assert (engine.price("EUR_USD")["tradeable"], engine.price("EUR_USD")["status"]) == (False, "non-tradeable")
    status, body = submit(engine, 1000, "LIMIT", price="1.50000")
    assert status == 201 and "orderFillTransaction" not in body
    engine.advance(to_ms("2025-11-09T22:30:00Z"))
    fill = engine.log(ME)[-1]
    assert fill["type"] == "ORDER_FILL" and iso(to_ms(fill["time"][:19] + "Z")) >= "2025-11-09T22:00:00Z" and units(engine) == 1000


def test_halt_freeze_and_a_set_price():
    engine, clock = make(market=own_market())
    engine.halt("EUR_USD")
    assert cancelled(engine, 1000) == "MARKET_HALTED" and not engine.price("EUR_USD")["tradeable"]
    engine.release("EUR_USD")
    engine.freeze("EUR_USD")
    frozen = engine.price("EUR_USD")
    clock.advance(10 * MINUTE_MS)
    assert engine.price("EUR_USD") == frozen and frozen["tradeable"]
    assert filled(engine, 1000)["price"] == frozen["asks"][0]["price"]
    engine.set_price("EUR_USD", "1.20000", "1.20010")
    assert filled(engine, 1000)["price"] == "1.20010"
    engine.release()
    assert engine.price("EUR_USD") != frozen


def test_scripts_refuse_the_next_orders():
    engine, _ = make()
    engine.script("INSUFFICIENT_MARGIN", "EUR_USD", n=2)
    engine.script("UNITS_LIMIT_EXCEEDED", "USD_JPY")
    filled(engine, -1000, instrument="GBP_USD")
    assert [cancelled(engine, 1000), cancelled(engine, 1000)] == ["INSUFFICIENT_MARGIN"] * 2
    assert filled(engine, 1000) and rejected(engine, 1000, instrument="USD_JPY") == "UNITS_LIMIT_EXCEEDED"
    filled(engine, 1000, instrument="USD_JPY")
    engine.script("ACCOUNT_LOCKED", cancels=False)
    assert rejected(engine, 1000) == "ACCOUNT_LOCKED"
    engine.script("MARKET_HALTED")
    engine.clear_scripts()
    filled(engine, 1000)
    with pytest.raises(BadInput): engine.script("MARKET_HALTED", n=0)


# -- resting orders

def test_a_limit_order_rests_until_its_price_is_there():
    engine, clock = make()
    limit = ask(engine) - Decimal("0.00060")
    _, body = submit(engine, 1000, "LIMIT", price=str(limit), clientExtensions={"id": "db-limit"})
    assert "orderFillTransaction" not in body and engine.order(ME, "@db-limit")["order"]["state"] == "PENDING"
    clock.advance(12 * 60 * MINUTE_MS)
    o = engine.order(ME, "@db-limit")["order"]
    fill = engine.transaction(ME, o["fillingTransactionID"])["transaction"]
    assert (o["state"], fill["reason"]) == ("FILLED", "LIMIT_ORDER") and Decimal(fill["price"]) <= limit
    at = to_ms(fill["time"][:23] + "Z")
    assert MARKET.quote("EUR_USD", at).ask_price <= limit < MARKET.quote("EUR_USD", at - 1).ask_price


@pytest.mark.parametrize("away", [1, 2, 5, 15, 40])
@pytest.mark.parametrize("kind", ["LIMIT", "STOP"])
def test_it_fills_at_the_first_tick_that_is_there_and_not_later(kind, away):
    engine, clock = make("2025-11-04T14:30:07.300Z", slippage_ticks=0)
    price = ask(engine) - (1 if kind == "LIMIT" else -1) * away * Decimal("0.00001")
    _, body = submit(engine, 1000, kind, price=str(price))
    for _ in range(5):
        clock.advance(23_456)
        engine.advance()
    clock.advance(8 * 60 * MINUTE_MS)
    fill = engine.transaction(ME, engine.order(ME, body["orderCreateTransaction"]["id"])["order"]["fillingTransactionID"])["transaction"]
    t = to_ms("2025-11-04T14:30:07.300Z")
    while (MARKET.quote("EUR_USD", t).ask_price > price) if kind == "LIMIT" else (MARKET.quote("EUR_USD", t).ask_price < price): t += 1
    assert to_ms(fill["time"][:23] + "Z") == t and Decimal(fill["price"]) == MARKET.quote("EUR_USD", t).ask_price


def test_a_marketable_limit_order_fills_at_once_and_better():
    engine, _ = make()
    fill = filled(engine, 1000, "LIMIT", price=str(ask(engine) + Decimal("0.00500")))
    assert (Decimal(fill["price"]), fill["reason"]) == (ask(engine), "LIMIT_ORDER")


def test_orders_of_several_instruments_trigger_in_the_order_of_time():
    engine, clock = make()
    for name in ("GBP_USD", "EUR_USD", "AUD_USD"): submit(engine, 1000, "LIMIT", instrument=name, price=str(ask(engine, name) - Decimal("0.00015")))
    clock.advance(3 * 60 * MINUTE_MS)
    engine.advance()
    fills = [t for t in engine.log(ME) if t["type"] == "ORDER_FILL"]
    assert {t["instrument"] for t in fills} == {"GBP_USD", "EUR_USD", "AUD_USD"} and [t["time"] for t in fills] == sorted({t["time"] for t in fills})


@pytest.mark.parametrize(("sign", "kind", "away"), [(1, "LIMIT", -1), (-1, "LIMIT", 1), (1, "STOP", 1), (-1, "STOP", -1)])
def test_each_order_waits_for_its_own_side(sign, kind, away):
    engine, _clock = make(market=own_market())
    here = ask(engine) if sign > 0 else bid(engine)
    trigger = here + away * Decimal("0.00100")
    submit(engine, sign * 1000, kind, price=str(trigger))
    def at(price): return (price - Decimal("0.00012"), price) if sign > 0 else (price, price + Decimal("0.00012"))
    engine.set_price("EUR_USD", *at(trigger - away * Decimal("0.00001")))
    assert units(engine) == 0
    engine.set_price("EUR_USD", *at(trigger))
    assert units(engine) == sign * 1000 and Decimal(engine.log(ME)[-1]["price"]) == trigger and engine.log(ME)[-1]["reason"] == f"{kind}_ORDER"


def test_slices_fill_a_resting_order_slowly():
    engine, clock = make("2025-11-04T14:30:00.123Z", slices=((0, Decimal("0.3")), (2000, Decimal("0.3")), (5000, Decimal("0.4"))))
    submit(engine, 1000, "LIMIT", price=str(ask(engine) + Decimal("0.01000")), clientExtensions={"id": "slow"}, tradeClientExtensions={"id": "slow"})
    seen = [units(engine)]
    for _ in range(6):
        clock.advance(1000)
        engine.advance()
        seen.append(units(engine))
    assert seen == [300, 300, 600, 600, 600, 1000, 1000] and engine.order(ME, "@slow")["order"]["state"] == "FILLED"


def test_a_partly_filled_order_can_be_cancelled_and_keeps_its_fills():
    engine, clock = make(slices=((0, Decimal("0.3")), (2000, Decimal("0.7"))))
    _, body = submit(engine, 1000, "LIMIT", price=str(ask(engine) + Decimal("0.01000")), clientExtensions={"id": "slow"})
    assert body["orderFillTransaction"]["units"] == "300" and engine.order(ME, "@slow")["order"]["state"] == "PENDING"
    assert engine.cancel_order(ME, "@slow")[1]["orderCancelTransaction"]["reason"] == "CLIENT_REQUEST"
    clock.advance(10_000)
    o = engine.order(ME, "@slow")["order"]
    assert (o["state"], units(engine)) == ("CANCELLED", 300) and {"fillingTransactionID", "cancellingTransactionID"} <= set(o)


def test_a_resting_order_takes_the_liquidity_there_is_and_waits_for_more():
    engine, clock = make(balance="1000000", levels=((Decimal(4000), Decimal(0)),))
    _, body = submit(engine, 10000, "LIMIT", price=str(ask(engine) + Decimal("0.01000")))
    assert body["orderFillTransaction"]["units"] == "4000" and len(engine.pending_orders(ME)["orders"]) == 1
    clock.advance(2000)
    assert engine.pending_orders(ME)["orders"] == [] and units(engine) == 10000


def test_good_till_date_and_good_for_day_expire():
    engine, clock = make()
    submit(engine, 1000, "LIMIT", price="1.00000", timeInForce="GTD", gtdTime="2025-11-04T14:31:00.000000000Z", clientExtensions={"id": "gtd"})
    submit(engine, 1000, "LIMIT", price="1.00000", timeInForce="GFD", clientExtensions={"id": "gfd"})
    clock.advance(MINUTE_MS - 1)
    assert len(engine.pending_orders(ME)["orders"]) == 2
    clock.advance(1)
    assert [o["clientExtensions"]["id"] for o in engine.pending_orders(ME)["orders"]] == ["gfd"]
    assert engine.log(ME)[-1]["reason"] == "TIME_IN_FORCE_EXPIRED" and engine.log(ME)[-1]["time"].startswith("2025-11-04T14:31:00.000")
    clock.set("2025-11-05T00:00:00Z")
    assert engine.pending_orders(ME)["orders"] == [] and engine.log(ME)[-1]["time"].startswith("2025-11-04T22:00:00.000")


def test_cancelling_what_is_not_pending_is_rejected():
    engine, _ = make()
    fill = filled(engine, 1000, clientExtensions={"id": "db-1"})
    for which, key in ((fill["orderID"], "orderID"), ("@db-1", "clientOrderID"), ("@nobody", "clientOrderID"), ("999", "orderID")):
        status, body = engine.cancel_order(ME, which)
        t = body["orderCancelRejectTransaction"]
        assert (status, body["errorCode"], t["type"], t["rejectReason"], t[key]) == (404, "ORDER_DOESNT_EXIST", "ORDER_CANCEL_REJECT", "ORDER_DOESNT_EXIST", which.lstrip("@"))


def test_there_is_a_limit_of_pending_orders():
    engine, _ = make(max_pending_orders=2)
    assert [submit(engine, 1, "LIMIT", price="1.0")[0] for _ in range(3)] == [201, 201, 400]
    filled(engine, 1)


# -- stop loss and take profit

def guarded(engine, sign=1, **more):
    here = ask(engine) if sign > 0 else bid(engine)
    return here, filled(engine, sign * 1000, stopLossOnFill={"price": str(here - sign * Decimal("0.00200"))}, takeProfitOnFill={"price": str(here + sign * Decimal("0.00300"))}, **more)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_fill_brings_its_stop_loss_and_take_profit(sign):
    engine, _ = make(market=own_market())
    here, fill = guarded(engine, sign)
    trade = engine.trade(ME, fill["id"])["trade"]
    assert trade["stopLossOrder"]["price"] == str(here - sign * Decimal("0.00200")) and trade["takeProfitOrder"]["state"] == "PENDING"
    made = engine.transaction(ME, trade["stopLossOrder"]["id"])["transaction"]
    assert (made["reason"], made["tradeID"], made["orderFillTransactionID"], made["batchID"]) == ("ON_FILL", fill["id"], fill["id"], fill["batchID"])
    gap = here - sign * Decimal("0.00250") # the price jumps over the stop
    engine.set_price("EUR_USD", *((gap, gap + Decimal("0.00010")) if sign > 0 else (gap - Decimal("0.00010"), gap)))
    stopped, linked = engine.log(ME)[-2:]
    assert (stopped["reason"], Decimal(stopped["price"]), units(engine)) == ("STOP_LOSS_ORDER", gap, 0)
    assert (linked["type"], linked["reason"], linked["orderID"]) == ("ORDER_CANCEL", "LINKED_TRADE_CLOSED", trade["takeProfitOrder"]["id"])
    assert engine.trade(ME, fill["id"])["trade"]["state"] == "CLOSED"


def test_a_take_profit_fills_at_its_price_or_better():
    engine, _ = make(market=own_market())
    here, _fill = guarded(engine)
    goal = here + Decimal("0.00300")
    engine.set_price("EUR_USD", goal + Decimal("0.00020"), goal + Decimal("0.00030"))
    out = next(t for t in engine.log(ME) if t.get("reason") == "TAKE_PROFIT_ORDER")
    assert Decimal(out["price"]) == goal + Decimal("0.00020") and Decimal(out["pl"]) > 3 and engine.pending_orders(ME)["orders"] == []


def test_closing_a_trade_by_hand_cancels_what_was_tied_to_it():
    engine, _ = make()
    guarded(engine)
    filled(engine, -400)
    assert len(engine.pending_orders(ME)["orders"]) == 2
    filled(engine, -600)
    assert engine.pending_orders(ME)["orders"] == [] and types(engine, 3) == ["ORDER_FILL", "ORDER_CANCEL", "ORDER_CANCEL"]


def test_a_stop_guards_what_is_left_of_its_trade():
    engine, _ = make(market=own_market())
    here, _ = guarded(engine)
    filled(engine, -400)
    engine.set_price("EUR_USD", here - Decimal("0.00300"), here - Decimal("0.00290"))
    assert units(engine) == 0 and engine.log(ME)[-2]["units"] == "-600"


def test_a_stop_that_would_trigger_at_once_prevents_the_fill():
    engine, _ = make()
    assert cancelled(engine, 1000, stopLossOnFill={"price": str(bid(engine))}) == "STOP_LOSS_ON_FILL_LOSS"
    assert cancelled(engine, -1000, stopLossOnFill={"price": str(ask(engine))}) == "STOP_LOSS_ON_FILL_LOSS"
    assert cancelled(engine, 1000, takeProfitOnFill={"price": str(ask(engine))}) == "LOSING_TAKE_PROFIT"
    assert cancelled(engine, 1000, takeProfitOnFill={"price": str(bid(engine))}) == "TAKE_PROFIT_ON_FILL_LOSS"
    assert units(engine) == 0


def test_a_stop_loss_can_be_added_later():
    engine, _ = make(market=own_market())
    fill = filled(engine, 1000, tradeClientExtensions={"id": "t1"})
    stop = {"type": "STOP_LOSS", "tradeID": fill["id"], "price": str(bid(engine) - Decimal("0.00100"))}
    status, body = engine.submit_order(ME, stop)
    assert status == 201 and body["orderCreateTransaction"]["type"] == "STOP_LOSS_ORDER"
    assert engine.submit_order(ME, {**stop, "tradeID": None, "clientTradeID": "t1"})[1]["errorCode"] == "STOP_LOSS_ORDER_ALREADY_EXISTS"
    assert engine.submit_order(ME, {**stop, "tradeID": "999"})[0] == 404
    assert engine.cancel_order(ME, body["orderCreateTransaction"]["id"])[0] == 200
    assert engine.submit_order(ME, {**stop, "price": "1.000001"})[1]["errorCode"] == "PRICE_PRECISION_EXCEEDED"
    assert engine.submit_order(ME, {**stop, "price": str(bid(engine) + Decimal("0.00500"))})[0] == 201 and units(engine) == 0 # already there


# -- margin

def test_an_order_above_the_margin_is_cancelled_with_201():
    engine, _ = make(balance="1000")
    assert cancelled(engine, 60_000) == "INSUFFICIENT_MARGIN"
    filled(engine, 40_000)
    assert cancelled(engine, 10_000) == "INSUFFICIENT_MARGIN"
    filled(engine, -40_000)


@pytest.mark.parametrize(("commission", "spread", "fits"), [(0, 1.0, True), (5000, 1.0, False), (0, 40.0, False)])
def test_commission_and_spread_are_paid_before_margin_is_looked_at(commission, spread, fits):
    engine, _ = make(balance="1300", commission_per_million=Decimal(commission), market=own_market(spread_multiple=spread))
    _, body = submit(engine, 50_000)  # about 1,100 dollars of margin
    assert ("orderFillTransaction" in body) == fits and (fits or body["orderCancelTransaction"]["reason"] == "INSUFFICIENT_MARGIN")
    a = engine.summary(ME)["account"]
    assert Decimal(a["NAV"]) >= Decimal(a["marginUsed"])


def test_reducing_always_passes():
    engine, _ = make(balance="1000", market=own_market())
    filled(engine, 40_000)
    engine.configure(margin_rate_frac=Decimal("0.5"))
    assert cancelled(engine, 1) == "INSUFFICIENT_MARGIN"
    filled(engine, -10_000), filled(engine, -30_000)


def test_margin_call_and_closeout():
    engine, clock = make(balance="1000", market=own_market())
    fill = filled(engine, 40_000)
    entry = Decimal(fill["price"])
    engine.set_price("EUR_USD", entry - Decimal("0.00500"), entry - Decimal("0.00490"))
    clock.advance(MINUTE_MS)
    a = engine.summary(ME)["account"]
    assert types(engine, 1) == ["MARGIN_CALL_ENTER"] and a["marginCallEnterTime"] and Decimal(a["marginCallPercent"]) >= 1 > Decimal(a["marginCloseoutPercent"])
    engine.set_price("EUR_USD", entry, entry + Decimal("0.00010"))
    clock.advance(MINUTE_MS)
    assert "marginCallEnterTime" not in engine.summary(ME)["account"] and types(engine, 1) == ["MARGIN_CALL_EXIT"]
    engine.set_price("EUR_USD", entry - Decimal("0.01500"), entry - Decimal("0.01490"))
    clock.advance(MINUTE_MS)
    made, out = (t for t in engine.advance() or engine.log(ME)[-3:] if t["type"] in ("MARKET_ORDER", "ORDER_FILL"))
    assert (made["reason"], made["marginCloseout"], out["reason"]) == ("MARGIN_CLOSEOUT", {"reason": "MARGIN_CHECK_VIOLATION"}, "MARKET_ORDER_MARGIN_CLOSEOUT")
    assert units(engine) == 0 and Decimal(engine.summary(ME)["account"]["balance"]) == 1000 + Decimal(out["pl"])


def test_a_closeout_waits_while_the_market_is_closed():
    engine, clock = make("2025-11-07T21:59:00Z", balance="1000", market=own_market())
    entry = Decimal(filled(engine, 40_000)["price"])
    clock.set("2025-11-08T12:00:00Z")
    engine.set_price("EUR_USD", entry - Decimal("0.02000"), entry - Decimal("0.01990"))
    clock.advance(MINUTE_MS)
    engine.advance()
    assert units(engine) == 40_000 and "MARKET_ORDER" not in types(engine, 2)
    clock.set("2025-11-09T22:02:00Z")
    written = engine.advance()
    assert units(engine) == 0 and [t["type"] for t in written] == ["MARKET_ORDER", "ORDER_FILL", "MARGIN_CALL_EXIT"] and written == engine.log(ME)[-3:]


# -- money

def test_profit_in_yen_is_booked_in_dollars_at_the_worse_rate():
    engine, _clock = make(market=own_market("USD_JPY"))
    entry = Decimal(filled(engine, 10_000, instrument="USD_JPY")["price"])
    engine.set_price("USD_JPY", entry + 1, entry + Decimal("1.02"))
    out = filled(engine, -10_000, instrument="USD_JPY")
    gain, loss = Decimal(out["gainQuoteHomeConversionFactor"]), Decimal(out["lossQuoteHomeConversionFactor"])
    assert Decimal(out["quotePL"]) == 10_000 and Decimal(out["pl"]) == (10_000 * gain).quantize(Decimal("0.0001")) and gain < loss
    assert abs(gain * (entry + Decimal("1.02")) - 1) < Decimal("1e-9") > abs(loss * (entry + 1) - 1)


def test_a_loss_in_yen_costs_the_rate_of_losses_and_the_fee():
    engine, _clock = make(market=own_market("USD_JPY"), conversion_fee_frac=Decimal("0.005"))
    entry = Decimal(filled(engine, 10_000, instrument="USD_JPY")["price"])
    engine.set_price("USD_JPY", entry - 1, entry - Decimal("0.98"))
    out = filled(engine, -10_000, instrument="USD_JPY")
    loss = Decimal(out["lossQuoteHomeConversionFactor"])
    assert Decimal(out["pl"]) == (-10_000 * loss * Decimal("1.005")).quantize(Decimal("0.0001")) and abs(loss * (entry - 1) - 1) < Decimal("1e-9")


def test_an_account_in_euros():
    engine, _clock = make(currency="EUR")
    fill = filled(engine, 10_000, instrument="GBP_USD")
    f = engine.summary(ME)["account"]
    gbp, eur = MARKET.quote("GBP_USD", engine.now_ms), MARKET.quote("EUR_USD", engine.now_ms)
    assert Decimal(f["marginUsed"]) == (10_000 * gbp.mid / eur.mid * Decimal("0.02")).quantize(Decimal("0.0001"))
    assert Decimal(f["unrealizedPL"]) == ((gbp.bid_price - Decimal(fill["price"])) * 10_000 / eur.bid_price).quantize(Decimal("0.0001"))
    assert engine.pricing(ME, ["USD_JPY"])["prices"][0]["quoteHomeConversionFactors"]["positiveUnits"][:4] == "0.00"


def test_without_a_rate_there_is_no_order_and_no_figure():
    engine, _ = make(market=own_market("USD_CHF", "EUR_USD"), currency="JPY", balance="10000000")
    assert rejected(engine, 1000, instrument="USD_CHF") == "INSTRUMENT_PRICE_UNKNOWN" and units(engine, "USD_CHF") == 0
    assert "quoteHomeConversionFactors" not in engine.pricing(ME, ["USD_CHF"])["prices"][0]
    with_position, _ = make(market=own_market("USD_JPY"), balance="1000")
    filled(with_position, 100, instrument="USD_JPY")
    later = SandboxClock("2026-11-04T14:30:00Z")  # a replay that has no price any more
    with_position.books.market = Market(FrameSource(SimulatedSource(("USD_JPY",)).candles("USD_JPY", to_ms(START), to_ms(START) + MINUTE_MS)))
    with_position.books.clock = later
    with pytest.raises(NoRate): with_position.summary(ME)
    with pytest.raises(DataError, match="USD_JPY"): SandboxEngine.restore({ME: with_position.log(ME)}, own_market("EUR_USD"), SandboxClock(START))


def test_commission_is_a_cost():
    engine, _ = make(commission_per_million=Decimal(50))
    fill = filled(engine, 100_000)
    assert Decimal(fill["commission"]) == (Decimal(fill["price"]) * 5).quantize(Decimal("0.0001"))
    a = engine.summary(ME)["account"]
    assert Decimal(a["balance"]) == 100_000 - Decimal(fill["commission"]) and a["commission"] == fill["commission"] and Decimal(fill["accountBalance"]) == Decimal(a["balance"])


def test_financing_is_booked_at_five_in_new_york_and_three_times_on_wednesday():
    engine, clock = make()
    filled(engine, 100_000)
    filled(engine, -50_000, instrument="GBP_USD")
    clock.set("2025-11-10T00:00:00Z")
    engine.advance()
    booked = [t for t in engine.log(ME) if t["type"] == "DAILY_FINANCING"]
    assert [t["time"][:16] for t in booked] == [f"2025-11-{d:02d}T22:00" for d in (4, 5, 6, 7)]
    mid = MARKET.quote("EUR_USD", to_ms("2025-11-04T22:00:00Z")).mid
    eur = next(p for p in booked[0]["positionFinancings"] if p["instrument"] == "EUR_USD")
    assert Decimal(eur["financing"]) == (100_000 * mid * Decimal("-0.0235") / 365).quantize(Decimal("0.0001"))
    assert float(booked[1]["financing"]) / float(booked[0]["financing"]) == pytest.approx(3, rel=0.02)
    a = engine.summary(ME)["account"]
    assert Decimal(a["balance"]) == 100_000 + sum(Decimal(t["financing"]) for t in booked) == Decimal(booked[-1]["accountBalance"])
    assert Decimal(engine.position(ME, "EUR_USD")["position"]["financing"]) + Decimal(engine.position(ME, "GBP_USD")["position"]["financing"]) == Decimal(a["financing"])


def test_financing_can_be_switched_off():
    engine, clock = make(financing=False)
    filled(engine, 100_000)
    clock.set("2025-11-06T00:00:00Z")
    assert engine.advance() == []


@pytest.mark.parametrize(("at", "then"), [("2025-11-04T21:59:59.999Z", "2025-11-04T22:00:00Z"), ("2025-11-04T22:00:00Z", "2025-11-05T22:00:00Z"), ("2025-03-08T23:00:00Z", "2025-03-09T21:00:00Z")])
def test_rollover_follows_daylight_saving(at, then): assert iso(next_rollover(to_ms(at))) == then


def test_transfers():
    engine, _ = make()
    engine.transfer(ME, "-250.5")
    assert engine.summary(ME)["account"]["balance"] == "99749.5000" and types(engine, 1) == ["TRANSFER_FUNDS"]
    with pytest.raises(BadInput): engine.create_account(ME)
    with pytest.raises(BadInput): engine.create_account("101-001-1000001-002", "NaN")


# -- questions

def test_orders_are_listed_newest_first_and_in_pages():
    engine, _ = make()
    for n in range(7): submit(engine, 1, "LIMIT", price="1.0", clientExtensions={"id": f"db-{n}"})
    filled(engine, 5)
    def ids(**q): return [o["clientExtensions"]["id"] for o in engine.orders(ME, **q)["orders"] if "clientExtensions" in o]
    assert ids() == [f"db-{n}" for n in range(6, -1, -1)] and ids(count=3) == ["db-6", "db-5", "db-4"]
    third = engine.orders(ME, count=3)["orders"][-1]["id"]
    assert ids(count=3, before_id=third) == ["db-3", "db-2", "db-1"]
    assert len(engine.orders(ME, "ALL")["orders"]) == 8 and len(engine.orders(ME, "FILLED")["orders"]) == 1 and engine.orders(ME, "TRIGGERED")["orders"] == []
    assert ids(instrument="USD_JPY") == [] and ids(ids=[third]) == ["db-4"]
    for bad in ({"count": 501}, {"count": 0}, {"state": "OPEN"}, {"before_id": "x"}):
        with pytest.raises(WireError): engine.orders(ME, **bad)
    with pytest.raises(WireError) as e: engine.order(ME, "@nobody")
    assert (e.value.status, e.value.body["errorCode"]) == (404, "NO_SUCH_ORDER")


def test_ended_orders_can_be_hidden_from_client_ids():
    engine, _ = make(find_filled_by_client_id=False)
    fill = filled(engine, 1, clientExtensions={"id": "db-1"})
    with pytest.raises(WireError): engine.order(ME, "@db-1")
    assert engine.order(ME, fill["orderID"])["order"]["state"] == "FILLED"


def test_transactions_by_index_and_by_time():
    engine, clock = make()
    last = engine.account_state(ME).last_id
    filled(engine, 1000)
    clock.advance(1000)
    filled(engine, -1000)
    new = engine.transactions_since(ME, last)["transactions"]
    assert [t["id"] for t in new] == [str(last + n) for n in range(1, 5)] and engine.transactions_since(ME, last + 4)["transactions"] == []
    assert engine.transactions_range(ME, last + 2, last + 3)["transactions"] == new[1:3]
    assert engine.transaction_ids(ME, clock() - 500, clock()) == (last + 3, last + 4) and engine.transaction_ids(ME) == (1, last + 4)
    first, final = engine.transaction_ids(ME, clock() + 1)
    assert final < first
    for bad in ("x", "-1", "1.5", ""):
        with pytest.raises(WireError): engine.transactions_since(ME, bad)
    with pytest.raises(WireError) as e: engine.transaction(ME, "999")
    assert e.value.status == 404


def test_changes_since_a_transaction():
    engine, _clock = make()
    last = engine.account_state(ME).last_id
    submit(engine, 1, "LIMIT", price="1.0", clientExtensions={"id": "rest"})
    fill = filled(engine, 1000)
    filled(engine, -400)
    engine.cancel_order(ME, "@rest")
    told = engine.changes(ME, last)
    c = told["changes"]
    assert [len(c[k]) for k in ("ordersCreated", "ordersFilled", "ordersCancelled", "tradesOpened", "tradesReduced", "tradesClosed")] == [3, 2, 1, 1, 1, 0]
    assert c["positions"][0]["long"]["units"] == "600" and told["state"]["trades"][0]["id"] == fill["id"] and len(c["transactions"]) == 6
    assert engine.changes(ME, told["lastTransactionID"])["changes"]["transactions"] == []


def test_details_and_universe():
    engine, _ = make(margin_rate_frac=Decimal("0.1"))
    guarded(engine)
    a = engine.details(ME)["account"]
    assert len(a["trades"]) == len(a["positions"]) == 1 and len(a["orders"]) == 2 and a["trades"][0]["stopLossOrderID"]
    listed = engine.instruments(ME)["instruments"]
    assert len(listed) == 8 and {i["marginRate"] for i in listed} == {"0.1"} and engine.instruments(ME, ["USD_JPY"])["instruments"][0]["displayPrecision"] == 3
    assert Decimal(a["marginUsed"]) > 100 and a["openTradeCount"] == a["openPositionCount"] == 1 and a["pendingOrderCount"] == 2
    with pytest.raises(WireError): engine.instruments(ME, ["EUR_XXX"])


def test_watchers_hear_whole_batches():
    engine, _ = make()
    heard = []
    stop = engine.subscribe(lambda account, batch: heard.append((account, [t["type"] for t in batch], dict.fromkeys(t["batchID"] for t in batch))))
    guarded(engine)
    submit(engine, "0")
    stop()
    filled(engine, 1)
    assert [h[:2] for h in heard] == [(ME, ["MARKET_ORDER", "ORDER_FILL", "TAKE_PROFIT_ORDER", "STOP_LOSS_ORDER"]), (ME, ["MARKET_ORDER_REJECT"])] and all(len(h[2]) == 1 for h in heard)


# -- determinism and restart

def busy(engine, clock):
    for n in range(12):
        submit(engine, 1000 if n % 3 else -2500, instrument=("EUR_USD", "USD_JPY")[n % 2], clientExtensions={"id": f"db-{n}"})
        submit(engine, 500, "LIMIT", price=str(ask(engine) - Decimal("0.00010") * n), clientExtensions={"id": f"rest-{n}"})
        clock.advance(17 * MINUTE_MS + 321)
    engine.advance()


def test_the_same_requests_make_the_same_log():
    logs = []
    for _ in range(2):
        engine, clock = make(market=own_market("EUR_USD", "USD_JPY"), slices=((0, Decimal("0.5")), (700, Decimal("0.5"))))
        busy(engine, clock)
        logs.append(engine.log(ME))
    assert logs[0] == logs[1] and len(logs[0]) > 40
    other, clock = make(market=own_market("EUR_USD", "USD_JPY"), seed=1)
    busy(other, clock)
    assert other.log(ME)[5]["requestID"] != logs[0][5]["requestID"]


def test_a_restored_venue_is_the_same_and_goes_on_the_same_way():
    engine, clock = make(slices=((0, Decimal("0.5")), (700, Decimal("0.5"))))
    busy(engine, clock)
    guarded(engine)
    again = SandboxEngine.restore({ME: engine.log(ME)}, MARKET, SandboxClock(iso(clock())), engine.config)
    assert again.account_state(ME) == engine.account_state(ME) and again.log(ME) == engine.log(ME)
    later = clock() + 2 * DAY_MS
    for e in (engine, again): e.advance(later)
    assert again.log(ME) == engine.log(ME) and len(engine.log(ME)) > 50
    assert submit(again, 100) == submit(engine, 100)


def test_time_that_passed_while_it_was_down_is_made_up():
    engine, clock = make()
    submit(engine, 1000, "LIMIT", price=str(ask(engine) - Decimal("0.00060")), clientExtensions={"id": "rest"})
    log = engine.log(ME)
    clock.advance(DAY_MS)
    late = SandboxEngine.restore({ME: log}, MARKET, clock, engine.config)
    assert late.order(ME, "@rest")["order"]["state"] == "FILLED"
    engine.advance()
    assert late.log(ME) == engine.log(ME)


def test_a_damaged_log_is_never_an_account():
    engine, clock = make()
    busy(engine, clock)
    log = engine.log(ME)
    n = next(k for k, t in enumerate(log) if t["type"] == "ORDER_FILL")
    for bad in ([*log[:n], *log[n + 1:]], [*log[:n], {**log[n], "pl": "1.0000"}, *log[n + 1:]], [*log, {**log[-1], "id": str(len(log) + 1), "type": "GIFT"}]):
        with pytest.raises(DataError): SandboxEngine.restore({ME: bad}, MARKET, clock)


def test_an_order_costs_the_same_however_long_the_history():
    engine, _clock = make()
    import time
    def once(n):
        t = time.perf_counter()
        submit(engine, 1000 if n % 2 else -1000, clientExtensions={"id": f"db-{n}"})
        return time.perf_counter() - t
    took = [once(n) for n in range(6000)]
    early, late = (sorted(x)[len(x) // 2] for x in (took[500:1500], took[-1000:]))
    assert late < 3 * early, f"{early * 1e6:.0f} us, then {late * 1e6:.0f} us"
