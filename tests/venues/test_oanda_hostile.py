"""A server that answers everything wrongly: each call ends in a typed error, and a lookup in `Unreadable`; never in a KeyError, never in "nothing there"."""
import asyncio
import copy
import json
import random
from decimal import Decimal as D

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_wire import RawServer, Reply, bad_gzip, half_body, hang, huge, reset_now
from test_oanda_wire import ANSWER, CANDLES, CREATED, FILL, INSTRUMENT, ORDER, POSITIONS, PRICE, SUMMARY, TIME, anything, changed, spots

from deskbook.venues import errors as e
from deskbook.venues.model import Absent, Found, OrderRequest, Unreadable
from deskbook.venues.oanda import Oanda, listed_order
from deskbook.venues.oanda_wire import read_ack
from deskbook.venues.retry import RetryPolicy, Timing
from deskbook.venues.transport import Timeouts

BUY = OrderRequest("db-7f3a", "EUR_USD", D(1000))
BASE = "/v3/accounts/1"
GOOD = {  # what a healthy venue answers, by path
    f"{BASE}/instruments": {"instruments": [INSTRUMENT], "lastTransactionID": "6373"}, f"{BASE}/summary": SUMMARY, f"{BASE}/pricing": {"prices": [PRICE], "time": TIME},
    f"{BASE}/openPositions": POSITIONS, f"{BASE}/pendingOrders": {"orders": [ORDER], "lastTransactionID": "6373"}, f"{BASE}/orders": {"orders": [ORDER], "lastTransactionID": "6373"},
    f"{BASE}/orders/@db-7f3a": {"order": {**ORDER, "type": "MARKET", "state": "FILLED", "price": None}, "lastTransactionID": "6373"},
    f"{BASE}/orders/6372": {"order": {**ORDER, "type": "MARKET", "state": "FILLED", "price": None}, "lastTransactionID": "6373"},
    f"{BASE}/transactions/sinceid": {"transactions": [CREATED, FILL], "lastTransactionID": "6373"}, "/v3/instruments/EUR_USD/candles": CANDLES}
CALLS = {
    "instruments": (f"{BASE}/instruments", lambda o: o.load_instruments()), "time": (f"{BASE}/pricing", lambda o: o.fetch_time_ms()),
    "quotes": (f"{BASE}/pricing", lambda o: o.fetch_quotes(["EUR_USD"])), "balance": (f"{BASE}/summary", lambda o: o.fetch_balance()),
    "positions": (f"{BASE}/openPositions", lambda o: o.fetch_positions()), "open orders": (f"{BASE}/pendingOrders", lambda o: o.fetch_open_orders()),
    "fills": (f"{BASE}/transactions/sinceid", lambda o: o.fetch_fills("6371")), "candles": ("/v3/instruments/EUR_USD/candles", lambda o: o.fetch_ohlcv("EUR_USD", "M1", limit=5)),
    "window": ("/v3/instruments/EUR_USD/candles", lambda o: o.fetch_ohlcv("EUR_USD", "M1", 1_466_000_000_000, 1_467_000_000_000)),
    "order": (f"{BASE}/orders/@db-7f3a", lambda o: o.fetch_order(client_id="db-7f3a"))}
WRONG = [Reply(200, b""), Reply(200, b"<html>OK</html>"), Reply(200, b"{}"), Reply(200, b"[]"), Reply(200, b"null"), Reply(200, b'"x"'), Reply(200, b"7"), Reply(200, b"\xff\xff"),
         Reply(200, b'{"a": NaN}'), Reply(200, b"[" * 50_000), Reply(404, b"nginx"), Reply(400, b"{}"), Reply(500, b"{}"), Reply(502, b"<html>"), Reply(204, b""), Reply(302, b"")]


def answers(path, spoilt):
    """A venue that is healthy but at one place. A 404 for orders it does not know."""
    def answer(request):
        at = request.path.split("?")[0]
        if at == path:
            return spoilt
        if at in GOOD:
            return Reply(200, GOOD[at])
        return Reply(404, {"errorMessage": "The order does not exist", "errorCode": "NO_SUCH_ORDER"})
    return answer


async def allow(write):
    pass


async def nap(s):
    await asyncio.sleep(0)


async def at_a_venue(path, spoilt, body):
    timeouts = Timeouts(read_s=0.1, total_s=0.2) if spoilt is hang else Timeouts()
    async with RawServer() as server:
        server.default = answers(path, spoilt)
        policy = RetryPolicy(base_s=0.001, cap_s=0.002, budget_s=0.02, create_budget_s=0.02, breaker_failures=3, breaker_open_s=0.001)
        o = Oanda("1", "t", server.url, guard=allow, policy=policy, timing=Timing(sleep=nap, rng=random.Random(1), clock=lambda: 1_466_630_000_000), timeouts=timeouts)
        try:
            async with asyncio.timeout(20):
                return await body(o), server.requests
        finally:
            await o.aclose()


@pytest.mark.parametrize("call", CALLS)
def test_the_healthy_venue_is_read(call):
    _, ask = CALLS[call]
    result, _ = asyncio.run(at_a_venue("", None, ask))
    assert result is not None


@pytest.mark.parametrize("spoilt", [*WRONG, reset_now, half_body, hang, bad_gzip, huge], ids=lambda x: getattr(x, "__name__", None) or f"{x.status} {x.body[:8]!r}")
def test_each_call_ends_in_a_typed_error(spoilt):
    async def one(call):
        path, ask = CALLS[call]

        async def body(o):
            with pytest.raises(e.VenueError) as error:
                await ask(o)
            return error.value
        error, _ = await at_a_venue(path, spoilt, body)
        assert not isinstance(error, (e.OutcomeUnknown, e.AuthError)), call

    async def every():
        for call in CALLS:
            await one(call)
    asyncio.run(every())


def mutants(seed, n):
    rng = random.Random(seed)
    for _ in range(n):
        call = rng.choice(sorted(CALLS))
        good = GOOD[CALLS[call][0]]
        value = good
        for _ in range(rng.choice([1, 1, 2, 4])):
            path = rng.choice([p for p in spots(value) if p] or [()])
            if path:
                value = changed(value, path, rng.choice([..., None, "", "NaN", "-", "1e400", -1, True, [], {}, [{}], "x"*3000, "0", {"id": 1}]))
        yield call, value


def test_spoilt_fields_end_in_a_result_or_a_typed_error():
    """600 answers of a venue, spoilt at random, through the whole adapter."""
    async def every():
        for call, value in mutants(7, 600):
            async def body(o, call=call):
                try:
                    return await CALLS[call][1](o)
                except e.VenueError:
                    return None
            server.default = answers(CALLS[call][0], Reply(200, value))
            o.instruments, o.currency = {}, ""
            await body(o)

    async def whole():
        nonlocal server, o
        async with RawServer() as server:
            policy = RetryPolicy(base_s=0.001, cap_s=0.001, budget_s=0.004, breaker_failures=10**6)
            o = Oanda("1", "t", server.url, policy=policy, timing=Timing(sleep=nap, clock=lambda: 1_466_630_000_000))
            await every()
            await o.aclose()
    server = o = None
    asyncio.run(whole())


# Lookups

LOOKS = [f"{BASE}/orders/@db-7f3a", f"{BASE}/pendingOrders", f"{BASE}/orders", f"{BASE}/transactions/sinceid"]


def empty_venue(path, spoilt):
    """A venue that has no order of ours; `path` is spoilt."""
    nothing = {f"{BASE}/pendingOrders": {"orders": [], "lastTransactionID": "6371"}, f"{BASE}/orders": {"orders": [], "lastTransactionID": "6371"},
               f"{BASE}/transactions/sinceid": {"transactions": [], "lastTransactionID": "6371"}, f"{BASE}/summary": SUMMARY}
    def answer(request):
        at = request.path.split("?")[0]
        return spoilt if at == path else Reply(200, nothing[at]) if at in nothing else Reply(404, {"errorMessage": "The order does not exist"})
    return answer


@pytest.mark.parametrize("path", LOOKS)
@pytest.mark.parametrize("spoilt", [*WRONG, reset_now, half_body, Reply(404, b"<html>"), Reply(401, b"{}"), Reply(429, b"{}"), Reply(403, b"")], ids=lambda x: getattr(x, "__name__", None) or f"{x.status} {x.body[:8]!r}")
def test_a_lookup_that_could_not_look_says_so(path, spoilt):
    async def run():
        async with RawServer() as server:
            server.default = empty_venue(path, spoilt)
            o = Oanda("1", "t", server.url, policy=RetryPolicy(base_s=0.001, cap_s=0.002, budget_s=0.01, breaker_failures=1000), timing=Timing(sleep=nap))
            lookup = await o.find_order("db-7f3a", "6371")
            server.default = empty_venue("", None)
            o.transport.breakers.clear()
            sound = await o.find_order("db-7f3a", "6371")
            await o.aclose()
            return lookup, sound
    lookup, sound = asyncio.run(run())
    assert isinstance(lookup, Unreadable) and isinstance(lookup.error, e.VenueError)
    assert sound == Absent("6371", sound.looked_at_ms)


def test_an_order_in_any_single_place_is_found():
    """The order shows in one of the four places only; the log has it or does not."""
    pending = {**ORDER, "id": "6372"}
    for path, there in ((LOOKS[0], {"order": pending, "lastTransactionID": "6372"}), (LOOKS[1], {"orders": [pending], "lastTransactionID": "6372"}),
                        (LOOKS[2], {"orders": [pending], "lastTransactionID": "6372"}), (LOOKS[3], {"transactions": [{**CREATED, "type": "LIMIT_ORDER"}], "lastTransactionID": "6372"})):
        async def run(path=path, there=there):
            async with RawServer() as server:
                server.default = empty_venue(path, Reply(200, there))
                o = Oanda("1", "t", server.url, timing=Timing(sleep=nap))
                lookup = await o.find_order("db-7f3a", "6371")
                await o.aclose()
                return lookup
        lookup = asyncio.run(run())
        # The empty log of the others names 6371 as the last transaction, before the order: it cannot tell the fills of 6372.
        assert isinstance(lookup, (Found, Unreadable)) and not isinstance(lookup, Absent), path
        if path == LOOKS[3]:
            assert isinstance(lookup, Found) and lookup.order.venue_order_id == "6372"


AGAIN = {**CREATED, "id": "6380", "batchID": "6380"}
REFUSED = {"type": "ORDER_CANCEL", "id": "6381", "batchID": "6380", "time": TIME, "orderID": "6380", "clientOrderID": "db-7f3a", "reason": "CLIENT_TRADE_ID_ALREADY_EXISTS"}


@pytest.mark.parametrize("by_id", ["6380", None])
@pytest.mark.parametrize("cursor", ["6371", ""])
def test_of_two_orders_with_one_client_id_the_filled_one_counts(by_id, cursor):
    """It was sent twice after all; the venue's own lookup shows the second, which it cancelled."""
    log = {"transactions": [CREATED, FILL, AGAIN, REFUSED], "lastTransactionID": "6381"}

    async def run():
        async with RawServer() as server:
            def answer(request):
                at, _, q = request.path.partition("?")
                if at == LOOKS[0] and by_id:
                    return Reply(200, {"order": {**ORDER, "id": by_id, "type": "MARKET", "state": "CANCELLED", "price": None}, "lastTransactionID": "6381"})
                if at == LOOKS[3]:
                    since = int(q.partition("id=")[2])
                    return Reply(200, {**log, "transactions": [t for t in log["transactions"] if int(t["id"]) > since]})
                return empty_venue("", None)(request)
            server.default = answer
            o = Oanda("1", "t", server.url, timing=Timing(sleep=nap))
            lookup = await o.find_order("db-7f3a", cursor)
            await o.aclose()
            return lookup
    lookup = asyncio.run(run())
    assert isinstance(lookup, Found)
    assert (lookup.order.venue_order_id, lookup.order.state, lookup.fills[0].fill_id) == ("6372", "filled", "6373")


def test_pages_of_orders_are_walked_to_the_cursor_and_not_for_ever():
    def server_of(repeat):
        def answer(request):
            at, _, q = request.path.partition("?")
            if at == f"{BASE}/orders":
                before = int(dict(x.split("=") for x in q.split("&")).get("beforeID", 9000))
                start = 9000 if repeat else before
                page = [{**ORDER, "id": str(n), "clientExtensions": {"id": f"db-{n}"}} for n in range(start - 1, max(start - 501, 6000), -1)]
                return Reply(200, {"orders": page, "lastTransactionID": "9000"})
            return empty_venue("", None)(request)
        return answer
    async def look(repeat, client_id, cursor):
        async with RawServer() as server:
            server.default = server_of(repeat)
            o = Oanda("1", "t", server.url, timing=Timing(sleep=nap))
            async with asyncio.timeout(20):
                got = await listed_order(o, client_id, cursor)
            await o.aclose()
            return got, sum("/orders?" in r.path for r in server.requests)
    got, n = asyncio.run(look(False, "db-7100", "7000"))
    assert got["id"] == "7100" and n == 4
    assert asyncio.run(look(False, "db-none", "7000")) == (None, 4)
    assert asyncio.run(look(True, "db-none", "7000")) == (None, 2)


# Orders


@pytest.mark.parametrize("body", [
    {}, {"lastTransactionID": "6373"}, {"orderCreateTransaction": None}, {"orderCreateTransaction": {}}, {"orderFillTransaction": FILL}, {"orderCancelTransaction": {"reason": "INSUFFICIENT_MARGIN"}},
    {"orderCreateTransaction": CREATED, "orderFillTransaction": {}}, {"orderCreateTransaction": CREATED, "orderFillTransaction": []}, {"orderCreateTransaction": CREATED, "orderCancelTransaction": "x"},
    {"orderCreateTransaction": CREATED, "orderCancelTransaction": {}}, {"orderCreateTransaction": CREATED, "orderCancelTransaction": {"orderID": "99", "reason": "INSUFFICIENT_MARGIN"}},
    {**ANSWER, "orderFillTransaction": {**FILL, "units": "x"}}, {**ANSWER, "orderFillTransaction": {**FILL, "price": None, "fullVWAP": None}}, {**ANSWER, "orderFillTransaction": {**FILL, "orderID": "1"}},
    {**ANSWER, "orderCreateTransaction": {**CREATED, "clientExtensions": {"id": "db-else"}}}, {**ANSWER, "orderCreateTransaction": {**CREATED, "units": "-1000"}}], ids=lambda b: json.dumps(b)[:40])
def test_a_201_that_does_not_fit_is_an_unknown_outcome(body):
    async def call(o):
        with pytest.raises(e.OutcomeUnknown) as error:
            await o.create_order(BUY)
        return error.value
    error, requests = asyncio.run(at_a_venue(f"{BASE}/orders", Reply(201, body), call))
    assert error.client_id == "db-7f3a" and error.http_status == 201 and error.request_id == "4211" and error.raw
    assert sum(r.method == "POST" for r in requests) == 1


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_201_is_an_ack_of_this_order_or_a_venue_error(data):
    value = copy.deepcopy(ANSWER)
    for _ in range(data.draw(st.integers(1, 4))):
        path = data.draw(st.sampled_from([p for p in spots(value) if p] or [()]))
        value = changed(value, path, data.draw(anything)) if path else value
    try:
        ack = read_ack(value, BUY, "USD", "1")
    except e.VenueError:
        return
    assert (ack.order.client_id, ack.order.instrument, ack.order.units) == ("db-7f3a", "EUR_USD", 1000)


@pytest.mark.parametrize("what", ["instruments", "summary"])
@pytest.mark.parametrize("spoilt", [Reply(200, b"<html>"), Reply(200, b"{}"), Reply(500, b""), reset_now], ids=lambda x: getattr(x, "__name__", None) or repr(x.body))
def test_what_fails_before_the_order_is_certainly_no_order(what, spoilt):
    async def call(o):
        with pytest.raises(e.Transient) as error:
            await o.create_order(BUY)
        return error.value
    error, requests = asyncio.run(at_a_venue(f"{BASE}/{what}", spoilt, call))
    assert error.sent is False and "was not sent" in error.what and not any(r.method == "POST" for r in requests)
