"""oandapyV20, unmodified, against the sandbox. It was written for the real venue by people who never saw the sandbox."""
import itertools
import json
from datetime import UTC, datetime, timedelta

import pytest
from oandapyV20 import API
from oandapyV20.contrib.factories import InstrumentsCandlesFactory
from oandapyV20.contrib.requests import LimitOrderRequest, MarketOrderRequest, PositionCloseRequest, StopLossDetails
from oandapyV20.endpoints import accounts, instruments, orders, positions, pricing, trades, transactions
from oandapyV20.exceptions import StreamTerminated, V20Error
from oandapyV20.oandapyV20 import TRADING_ENVIRONMENTS

from deskbook.venues.sandbox.process import sandbox_process

TUESDAY = "2025-11-04T14:30:00Z"
_new = itertools.count(2_000_001)


@pytest.fixture(scope="module")
def sandbox():
    with sandbox_process(clock="virtual", start=TUESDAY, speed=0, heartbeat_s=0.3) as s:
        yield s


@pytest.fixture
def api(sandbox, monkeypatch):
    monkeypatch.setitem(TRADING_ENVIRONMENTS, "sandbox", {"api": sandbox.url, "stream": sandbox.url})
    with API(access_token=sandbox.token, environment="sandbox", request_params={"timeout": 10}) as client:
        yield client


@pytest.fixture
def account(sandbox):
    """A fresh account."""
    name = f"101-001-{next(_new)}-001"
    sandbox.control.make_account(name)
    return name


def when(text: str) -> datetime:
    return datetime.fromisoformat(text[:19]).replace(tzinfo=UTC)


def market(api, account, units, instrument="EUR_USD", **more):
    return api.request(orders.OrderCreate(account, data=MarketOrderRequest(instrument=instrument, units=units, **more).data))


def test_account_and_instruments(api, account):
    assert account in [a["id"] for a in api.request(accounts.AccountList())["accounts"]]
    summary = api.request(accounts.AccountSummary(account))["account"]
    assert (summary["balance"], summary["currency"], summary["hedgingEnabled"]) == ("100000.0000", "USD", False)
    full = api.request(accounts.AccountDetails(account))["account"]
    assert full["orders"] == full["trades"] == [] and full["id"] == account
    euro = api.request(accounts.AccountInstruments(account, params={"instruments": "EUR_USD"}))["instruments"]
    assert [(i["name"], i["displayPrecision"], i["pipLocation"]) for i in euro] == [("EUR_USD", 5, -4)]


def test_candles_of_the_middle(api):
    r = api.request(instruments.InstrumentsCandles("EUR_USD", params={"granularity": "M1", "count": 10}))
    assert (r["instrument"], r["granularity"]) == ("EUR_USD", "M1")
    times = [when(c["time"]) for c in r["candles"]]
    assert times == sorted(set(times)) and len(times) <= 10
    assert [c["complete"] for c in r["candles"][:-1]] == [True] * (len(times) - 1)
    for c in r["candles"]:
        assert isinstance(c["volume"], int) and set(c["mid"]) == set("ohlc")
        assert float(c["mid"]["l"]) <= min(float(c["mid"]["o"]), float(c["mid"]["c"])) <= float(c["mid"]["h"])


def test_candles_of_bid_and_ask(api):
    r = api.request(instruments.InstrumentsCandles("EUR_USD", params={"granularity": "M5", "price": "BA", "count": 5}))
    for c in r["candles"]:
        assert "mid" not in c and all(float(c["ask"][k]) > float(c["bid"][k]) for k in "ohlc")


def test_paging_over_a_weekend(api):
    """From Friday to Monday, 500 at a time, as the client's own factory pages."""
    params = {"granularity": "M1", "from": "2025-10-31T12:00:00Z", "to": "2025-11-03T12:00:00Z", "count": 500}
    seen = []
    for request in InstrumentsCandlesFactory("EUR_USD", params=params):
        seen += api.request(request)["candles"]
    times = [when(c["time"]) for c in seen]
    assert times == sorted(set(times)) and 1200 < len(times) < 1680
    gap, after = max((b - a, b) for a, b in itertools.pairwise(times))
    assert timedelta(hours=47) < gap < timedelta(hours=50) and after.weekday() == 6  # no row between Friday's close and Sunday's open
    whole = api.request(instruments.InstrumentsCandles("EUR_USD", params={k: v for k, v in params.items() if k != "count"}))
    assert whole["candles"] == seen


@pytest.mark.parametrize("params, says", [
    ({"granularity": "M1", "count": 5001}, "Maximum value for 'count' exceeded"),
    ({"granularity": "M1", "from": "2024-01-01T00:00:00Z", "to": "2025-01-01T00:00:00Z"}, "Maximum value for 'count' exceeded"),
    ({"granularity": "M7"}, "granularity"),
    ({"granularity": "M1", "to": "2031-01-01T00:00:00Z"}, "to"),
])
def test_candles_refused(api, params, says):
    with pytest.raises(V20Error) as e:
        api.request(instruments.InstrumentsCandles("EUR_USD", params=params))
    assert e.value.code == 400 and says in json.loads(e.value.msg)["errorMessage"]


def test_price(api, account):
    (p,) = api.request(pricing.PricingInfo(account, params={"instruments": "EUR_USD"}))["prices"]
    assert p["tradeable"] and float(p["bids"][0]["price"]) < float(p["asks"][0]["price"]) and when(p["time"]) <= when(TUESDAY)


def test_pricing_stream_with_heartbeats(api, account, sandbox):
    sandbox.control.set_speed(20)
    try:
        r = pricing.PricingStream(account, params={"instruments": "EUR_USD,USD_JPY"})
        seen = []
        with pytest.raises(StreamTerminated):
            for line in api.request(r):
                seen.append(line)
                if sum(x["type"] == "HEARTBEAT" for x in seen) >= 2 and len(seen) > 8:
                    r.terminate("enough")
    finally:
        sandbox.control.set_speed(0)
    prices = [x for x in seen if x["type"] == "PRICE"]
    assert {p["instrument"] for p in prices[:2]} == {"EUR_USD", "USD_JPY"}  # the snapshot
    for name in ("EUR_USD", "USD_JPY"):
        times = [p["time"] for p in prices if p["instrument"] == name]
        assert times == sorted(times) and len(set(times)) == len(times)
    assert set(next(x for x in seen if x["type"] == "HEARTBEAT")) == {"type", "time"}


def test_market_order_filled(api, account):
    ext = {"id": "db-entry-1", "tag": "deskbook"}
    rv = market(api, account, 1000, clientExtensions=ext, stopLossOnFill=StopLossDetails(price=0.9).data)
    fill = rv["orderFillTransaction"]
    assert (fill["units"], fill["orderID"], fill["type"]) == ("1000", rv["orderCreateTransaction"]["id"], "ORDER_FILL")
    assert rv["orderCreateTransaction"]["clientExtensions"] == ext
    assert rv["lastTransactionID"] == rv["relatedTransactionIDs"][-1]
    (trade,) = api.request(trades.OpenTrades(account))["trades"]
    assert (trade["id"], trade["currentUnits"], trade["stopLossOrder"]["price"]) == (fill["tradeOpened"]["tradeID"], "1000", "0.90000")
    assert api.request(trades.TradeDetails(account, trade["id"]))["trade"]["instrument"] == "EUR_USD"
    (p,) = api.request(positions.OpenPositions(account))["positions"]
    assert (p["instrument"], p["long"]["units"], p["short"]["units"]) == ("EUR_USD", "1000", "0")
    assert api.request(orders.OrderDetails(account, fill["orderID"]))["order"]["state"] == "FILLED"


def test_market_order_cancelled_with_201(api, account):
    r = orders.OrderCreate(account, data=MarketOrderRequest(instrument="EUR_USD", units=90_000_000).data)
    rv = api.request(r)
    assert r.status_code == 201 and "orderFillTransaction" not in rv
    assert rv["orderCancelTransaction"]["reason"] in ("INSUFFICIENT_MARGIN", "INSUFFICIENT_LIQUIDITY")
    assert api.request(positions.OpenPositions(account))["positions"] == []


def test_market_order_rejected_with_400(api, account):
    with pytest.raises(V20Error) as e:
        market(api, account, "0.5")
    said = json.loads(e.value.msg)
    assert e.value.code == 400 and said["errorCode"] == said["orderRejectTransaction"]["rejectReason"] == "UNITS_PRECISION_EXCEEDED"
    assert said["lastTransactionID"] == said["orderRejectTransaction"]["id"]


def test_limit_order_waits_and_is_cancelled(api, account):
    rv = api.request(orders.OrderCreate(account, data=LimitOrderRequest(instrument="EUR_USD", units=100, price=0.9, clientExtensions={"id": "db-limit-1"}).data))
    order_id = rv["orderCreateTransaction"]["id"]
    assert [o["id"] for o in api.request(orders.OrdersPending(account))["orders"]] == [order_id]
    assert api.request(orders.OrderDetails(account, "@db-limit-1"))["order"]["id"] == order_id
    done = api.request(orders.OrderCancel(account, "@db-limit-1"))
    assert done["orderCancelTransaction"]["orderID"] == order_id
    with pytest.raises(V20Error) as e:
        api.request(orders.OrderCancel(account, order_id))
    assert e.value.code == 404 and json.loads(e.value.msg)["errorCode"] == "ORDER_DOESNT_EXIST"
    states = [o["state"] for o in api.request(orders.OrderList(account, params={"state": "ALL"}))["orders"]]
    assert states == ["CANCELLED"]


def test_client_id_is_unique_only_while_pending(api, account):
    """The venue's own trap: a filled order's id may be used again, a waiting one's may not."""
    ext = {"id": "db-again"}
    assert "orderFillTransaction" in market(api, account, 100, clientExtensions=ext)
    assert "orderFillTransaction" in market(api, account, 100, clientExtensions=ext)
    api.request(orders.OrderCreate(account, data=LimitOrderRequest(instrument="EUR_USD", units=100, price=0.9, clientExtensions=ext).data))
    with pytest.raises(V20Error) as e:
        market(api, account, 100, clientExtensions=ext)
    assert json.loads(e.value.msg)["errorCode"] == "CLIENT_ORDER_ID_ALREADY_EXISTS"


def test_position_close(api, account):
    market(api, account, 1000)
    market(api, account, 500)
    rv = api.request(positions.PositionClose(account, "EUR_USD", data=PositionCloseRequest(longUnits=600).data))
    assert rv["longOrderFillTransaction"]["units"] == "-600"
    rv = api.request(positions.PositionClose(account, "EUR_USD", data={"longUnits": "ALL"}))
    assert rv["longOrderFillTransaction"]["units"] == "-900"
    assert api.request(positions.OpenPositions(account))["positions"] == []
    assert api.request(positions.PositionDetails(account, "EUR_USD"))["position"]["long"]["units"] == "0"


def test_trade_close(api, account):
    trade = market(api, account, -1000)["orderFillTransaction"]["tradeOpened"]["tradeID"]
    assert api.request(trades.TradeClose(account, trade, data={"units": "400"}))["orderFillTransaction"]["units"] == "400"
    assert api.request(trades.TradesList(account))["trades"][0]["currentUnits"] == "-600"


def test_transactions_since_and_pages(api, account):
    before = api.request(accounts.AccountSummary(account))["lastTransactionID"]
    fills = [market(api, account, 10 * i)["orderFillTransaction"]["id"] for i in (1, 2, 3)]
    rv = api.request(transactions.TransactionsSinceID(account, params={"id": before}))
    ids = [int(t["id"]) for t in rv["transactions"]]
    assert ids == list(range(int(before) + 1, int(rv["lastTransactionID"]) + 1))
    assert [t["id"] for t in rv["transactions"] if t["type"] == "ORDER_FILL"] == fills
    assert api.request(transactions.TransactionDetails(account, fills[0]))["transaction"]["id"] == fills[0]
    pages = api.request(transactions.TransactionList(account, params={"pageSize": 2, "type": "ORDER_FILL"}))
    got = []
    for url in pages["pages"]:
        r = api.client.get(url, timeout=10)
        assert r.status_code == 200
        got += [t["id"] for t in r.json()["transactions"]]
    assert len(pages["pages"]) > 1 and got == fills
    changes = api.request(accounts.AccountChanges(account, params={"sinceTransactionID": before}))
    assert [o["state"] for o in changes["changes"]["ordersFilled"]] == ["FILLED"] * 3


def test_order_pages(api, account):
    made = [market(api, account, 10)["orderCreateTransaction"]["id"] for _ in range(7)]
    r = orders.OrderList(account, params={"state": "ALL", "count": 3})
    first = api.client.get(f"{TRADING_ENVIRONMENTS['sandbox']['api']}/{r}", params=r.params, timeout=10)
    seen = []
    while True:
        seen += [o["id"] for o in first.json()["orders"]]
        if "next" not in first.links:
            break
        first = api.client.get(first.links["next"]["url"], timeout=10)
    assert seen == made[::-1]


def test_transaction_stream(api, account):
    r = transactions.TransactionsStream(account)
    lines = api.request(r)
    beat = next(lines)
    assert beat["type"] == "HEARTBEAT"
    rv = market(api, account, 100)
    seen = [x for x in itertools.islice(lines, 6) if x["type"] != "HEARTBEAT"]
    assert [t["id"] for t in seen] == rv["relatedTransactionIDs"]
    lines.close()


def test_wrong_token(sandbox, account, monkeypatch):
    monkeypatch.setitem(TRADING_ENVIRONMENTS, "sandbox", {"api": sandbox.url, "stream": sandbox.url})
    with API(access_token="revoked", environment="sandbox") as stranger, pytest.raises(V20Error) as e:
        stranger.request(accounts.AccountSummary(account))
    assert e.value.code == 401 and json.loads(e.value.msg) == {"errorMessage": "Insufficient authorization to perform request."}
