"""OANDA's own v20 bindings, unmodified, against the sandbox. They turn every answer into typed objects, so a wrong type fails here."""
import itertools
import urllib.parse

import pytest
import v20

from deskbook.venues.sandbox.process import sandbox_process

TUESDAY = "2025-11-04T14:30:00Z"
_new = itertools.count(3_000_001)


@pytest.fixture(scope="module")
def sandbox():
    with sandbox_process(clock="virtual", start=TUESDAY, speed=0, heartbeat_s=0.3) as s:
        yield s


@pytest.fixture(params=["RFC3339", "UNIX"])
def api(sandbox, request):
    """The client asks for either format of times."""
    at = urllib.parse.urlsplit(sandbox.url)
    return v20.Context(at.hostname, at.port, ssl=False, token=sandbox.token, datetime_format=request.param, poll_timeout=10)


@pytest.fixture
def account(sandbox):
    name = f"101-001-{next(_new)}-001"
    sandbox.control.make_account(name)
    return name


def seconds(api, text):
    """A time in the format that was asked for, as seconds."""
    if api.datetime_format == "UNIX":
        assert len(text.partition(".")[2]) == 9
        return float(text)
    from datetime import datetime
    assert text.endswith("000000Z")
    return datetime.fromisoformat(text[:23] + "+00:00").timestamp()


def test_account(api, account):
    assert account in [a.id for a in api.account.list().get("accounts", 200)]
    summary = api.account.summary(account).get("account", 200)
    assert (summary.balance, summary.currency, summary.openTradeCount) == (100000.0, "USD", 0)
    assert seconds(api, summary.createdTime) > 1_700_000_000
    assert api.account.get(account).get("account", 200).positions == []
    euro = api.account.instruments(account, instruments="EUR_USD").get("instruments", 200)[0]
    assert (euro.name, euro.displayPrecision, euro.marginRate) == ("EUR_USD", 5, 0.02)


def test_candles(api):
    r = api.instrument.candles("EUR_USD", granularity="M1", price="MBA", count=20)
    candles = r.get("candles", 200)
    times = [seconds(api, c.time) for c in candles]
    assert times == sorted(set(times)) and all(t % 60 == 0 for t in times)
    for c in candles:
        assert c.bid.l <= c.mid.l <= c.ask.l and c.mid.l <= c.mid.o <= c.mid.h and isinstance(c.volume, int)


def test_candles_page_over_a_weekend(api):
    """As the documentation of the venue tells it: the next page begins after the last candle."""
    at, got = ("1761998400" if api.datetime_format == "UNIX" else "2025-11-01T12:00:00Z"), []
    for _ in range(3):
        page = api.instrument.candles("EUR_USD", granularity="M1", fromTime=at, count=300, includeFirst=not got).get("candles", 200)
        got += page
        at = page[-1].time
    times = [seconds(api, c.time) for c in got]
    assert times == sorted(set(times)) and len(times) == 900
    assert times[0] > 1762100000  # the first candle is Sunday's


def test_pricing(api, account):
    r = api.pricing.get(account, instruments="EUR_USD,USD_JPY")
    euro, yen = r.get("prices", 200)
    assert (euro.instrument, yen.instrument) == ("EUR_USD", "USD_JPY") and euro.bids[0].price < euro.asks[0].price
    assert seconds(api, r.get("time", 200)) >= seconds(api, euro.time)


def test_pricing_stream_with_heartbeats(api, account, sandbox):
    sandbox.control.set_speed(20)
    try:
        r = api.pricing.stream(account, instruments="EUR_USD", snapshot=True)  # the client writes True
        kinds, times = [], []
        for kind, value in r.parts():
            kinds.append(kind)
            times.append(seconds(api, value.time))
            if len(kinds) > 8 and kinds.count("pricing.PricingHeartbeat") >= 2:
                break
    finally:
        sandbox.control.set_speed(0)
    assert kinds[0] == "pricing.ClientPrice" and set(kinds) == {"pricing.ClientPrice", "pricing.PricingHeartbeat"}


def test_market_order_filled(api, account):
    r = api.order.market(account, instrument="EUR_USD", units=1000, clientExtensions={"id": "db-entry-1"})
    fill = r.get("orderFillTransaction", 201)
    assert (fill.units, fill.reason, fill.tradeOpened.units) == (1000.0, "MARKET_ORDER", 1000.0)
    assert r.get("orderCreateTransaction", 201).clientExtensions.id == "db-entry-1"
    trade = api.trade.list_open(account).get("trades", 200)[0]
    assert (trade.currentUnits, trade.price) == (1000.0, fill.tradeOpened.price)
    assert api.position.list_open(account).get("positions", 200)[0].long.units == 1000.0
    assert api.order.get(account, "@db-entry-1").get("order", 200).state == "FILLED"


def test_market_order_cancelled_with_201(api, account):
    r = api.order.market(account, instrument="EUR_USD", units=90_000_000)
    assert r.status == 201 and "orderFillTransaction" not in r.body
    assert r.get("orderCancelTransaction", 201).reason in ("INSUFFICIENT_MARGIN", "INSUFFICIENT_LIQUIDITY")


def test_market_order_rejected_with_400(api, account):
    r = api.order.market(account, instrument="EUR_USD", units=0.5)
    assert r.get("orderRejectTransaction", 400).rejectReason == r.get("errorCode", 400) == "UNITS_PRECISION_EXCEEDED"
    assert r.get("errorMessage", 400)


def test_limit_order_and_cancel(api, account):
    r = api.order.limit(account, instrument="EUR_USD", units=-500, price=1.5, clientExtensions={"id": "db-limit"})
    order_id = r.get("orderCreateTransaction", 201).id
    assert [o.id for o in api.order.list_pending(account).get("orders", 200)] == [order_id]
    assert api.order.cancel(account, order_id).get("orderCancelTransaction", 200).reason == "CLIENT_REQUEST"
    assert api.order.cancel(account, order_id).get("orderCancelRejectTransaction", 404).rejectReason == "ORDER_DOESNT_EXIST"


def test_position_close(api, account):
    api.order.market(account, instrument="EUR_USD", units=-1000)
    fill = api.position.close(account, "EUR_USD", shortUnits="ALL").get("shortOrderFillTransaction", 200)
    assert fill.units == 1000.0
    assert api.position.list_open(account).get("positions", 200) == []
    assert api.position.close(account, "EUR_USD", shortUnits="ALL").status in (400, 404)


def test_transactions_since(api, account):
    before = api.account.summary(account).get("lastTransactionID", 200)
    made = [api.order.market(account, instrument="EUR_USD", units=u).get("orderFillTransaction", 201).id for u in (10, -20)]
    r = api.transaction.since(account, id=before)
    assert [t.id for t in r.get("transactions", 200) if t.type == "ORDER_FILL"] == made
    assert r.get("lastTransactionID", 200) == made[-1]
    assert [t.id for t in api.transaction.range(account, fromID=made[0], toID=made[0]).get("transactions", 200)] == made[:1]
    assert api.transaction.list(account, pageSize=100).get("count", 200) == int(made[-1])
    changes = api.account.changes(account, sinceTransactionID=before).get("changes", 200)
    assert len(changes.ordersFilled) == 2


def test_transaction_stream(api, account):
    parts = api.transaction.stream(account).parts()
    assert next(parts)[0] == "transaction.TransactionHeartbeat"
    made = api.order.market(account, instrument="EUR_USD", units=100).get("relatedTransactionIDs", 201)
    seen = [value.id for kind, value in itertools.islice(parts, 6) if kind == "transaction.Transaction"]
    assert seen == made


def test_wrong_token(api, account):
    api.set_token("other")
    r = api.account.summary(account)
    assert r.status == 401 and r.body["errorMessage"] == "Insufficient authorization to perform request."
