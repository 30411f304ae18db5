"""Streams: every fill once and in order, every silence told, and never a storm of connections."""
import asyncio
import contextlib
import json
import random
from decimal import Decimal as D

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_wire import RawServer, Reply, close_now, half_head, not_http, reset_now
from sandboxed import buy, rest, venue

from deskbook.venues import errors as e
from deskbook.venues.model import Gap, Heartbeat, Quote, Reconnected, VenueFill, VenueOrder
from deskbook.venues.oanda import Oanda
from deskbook.venues.oanda_streams import StreamPolicy, TransactionReader, follow, reconnect_s, split_lines
from deskbook.venues.retry import RetryPolicy, Timing

FAST = StreamPolicy(silence_s=1.5, floor_s=0.02)


async def listen(events, until, s=5.0):
    """What is heard until `until(all of it)` is true."""
    heard = []
    async with asyncio.timeout(s):
        async for event in events:
            heard.append(event)
            if until(heard):
                break
    await events.aclose()
    return heard


def kinds(heard, *skip):
    return [type(x).__name__ for x in heard if not isinstance(x, skip)]


def run(body, *faults, **kw):
    async def whole():
        async with venue(*faults, adapter={"stream": FAST}, heartbeat_s=0.2, **kw) as (s, o):
            return await body(s, o)
    return asyncio.run(whole())


def test_prices_begin_with_each_instrument_and_go_on_with_heartbeats():
    async def body(s, o):
        heard = await listen(o.watch_quotes(["EUR_USD", "USD_JPY"]), lambda h: sum(isinstance(x, Heartbeat) for x in h) >= 2)
        assert {q.instrument for q in heard if isinstance(q, Quote)} == {"EUR_USD", "USD_JPY"} and "Gap" not in kinds(heard)
        assert all(abs(x.time_ms - s.clock()) < 60_000 for x in heard)
    run(body)


def test_every_fill_and_every_end_in_order_from_the_cursor_on():
    async def body(s, o):
        await o.create_order(buy("db-0", 10))  # before anybody listens
        events = o.watch_fills("3")
        listening = asyncio.create_task(listen(events, lambda h: len(kinds(h, Heartbeat)) == 5))
        await asyncio.sleep(0.1)
        for n in (1, 2):
            await o.create_order(buy(f"db-{n}", 10*n))
        order = (await o.create_order(rest("db-3"))).order
        await o.cancel_order(client_id="db-3")
        await o.create_order(buy("db-4", 40))
        heard = [x for x in await listening if not isinstance(x, Heartbeat)]
        assert [x.client_id for x in heard] == ["db-0", "db-1", "db-2", "db-3", "db-4"]
        assert [type(x) for x in heard] == [VenueFill, VenueFill, VenueFill, VenueOrder, VenueFill]
        assert (heard[3].state, heard[3].venue_order_id, heard[3].instrument, heard[3].reason) == ("cancelled", order.venue_order_id, "EUR_USD", "CLIENT_REQUEST")
        page = await o.fetch_fills("3")
        assert [x for x in heard if isinstance(x, VenueFill)] == list(page.fills)
    run(body)


def test_heartbeats_carry_a_cursor_to_go_on_from():
    async def body(s, o):
        await o.create_order(buy("db-1"))
        heard = await listen(o.watch_fills("3"), lambda h: isinstance(h[-1], Heartbeat) and len(h) > 1)
        assert heard[-1].cursor == "5"
        await o.create_order(buy("db-2"))
        again = await listen(o.watch_fills(heard[-1].cursor), lambda h: isinstance(h[-1], VenueFill))
        assert [x.client_id for x in again if isinstance(x, VenueFill)] == ["db-2"]
    run(body)


@pytest.mark.parametrize("fault", ["transactions_duplicated", "transactions_reordered", "garbled_line", "stream_cut"])
def test_a_stuttering_stream_tells_each_fill_once_and_in_order(fault):
    async def body(s, o):
        s.add_fault({"kind": fault, "route": "transactions.stream|transactions.sinceid" if "transactions" in fault else "transactions.stream", "when": {"every": 3}})
        listening = asyncio.create_task(listen(o.watch_fills("3"), lambda h: sum(isinstance(x, VenueFill) for x in h) == 8, 15))
        for n in range(8):
            await asyncio.sleep(0.05)
            await o.create_order(buy(f"db-{n}"))
        heard = await listening
        assert [x.client_id for x in heard if isinstance(x, VenueFill)] == [f"db-{n}" for n in range(8)]
        if fault in ("garbled_line", "stream_cut"):
            told = kinds(heard, VenueFill, Heartbeat)
            assert told and told[:2] == ["Gap", "Reconnected"] and told == (["Gap", "Reconnected"]*len(told))[:len(told)]
    run(body)


@pytest.mark.parametrize("fault, reason", [({"kind": "stream_cut", "params": {"reset": True}}, "cut"), ({"kind": "stream_cut", "params": {"reset": False}}, "cut"),
                                           ({"kind": "stream_frozen"}, "silent"), ({"kind": "garbled_line"}, "cut")], ids=str)
@pytest.mark.parametrize("which", ["pricing", "transactions"])
def test_a_gap_is_told_once_and_what_was_missed_before_the_way_back(fault, reason, which):
    async def body(s, o):
        events = o.watch_quotes(["EUR_USD"]) if which == "pricing" else o.watch_fills("3")
        listening = asyncio.create_task(listen(events, lambda h: isinstance(h[-1], Reconnected), 10))
        await asyncio.sleep(0.15)
        s.add_fault({**fault, "route": f"{which}.stream", "when": {"nth": [1]}})
        if which == "transactions" and reason == "silent":
            await asyncio.sleep(0.3)
            await o.create_order(buy("db-1"))  # while the stream is dead
        heard = await listening
        gap = next(i for i, x in enumerate(heard) if isinstance(x, Gap))
        assert kinds(heard).count("Gap") == 1 and heard[gap].reason == reason
        between = heard[gap + 1:-1]
        if which == "pricing":
            assert [type(x) for x in between] == [Quote]
        if which == "transactions" and reason == "silent":
            assert [x.client_id for x in between] == ["db-1"]
        assert heard[-1].attempts == 1 and heard[gap].since_ms <= heard[-1].time_ms
    run(body)


def test_a_refused_stream_is_one_gap_and_several_tries():
    async def body(s, o):
        s.add_fault({"kind": "stream_refused", "when": {"times": 3}})
        heard = await listen(o.watch_quotes(["EUR_USD"]), lambda h: isinstance(h[-1], Reconnected))
        assert kinds(heard, Quote, Heartbeat) == ["Gap", "Reconnected"] and heard[0].reason == "refused" and heard[-1].attempts == 3
    run(body)


def test_the_way_back_waits_for_rest():
    """The stream is there again, prices by REST are not: still a gap."""
    async def body(s, o):
        s.add_fault({"kind": "stream_cut", "route": "pricing.stream", "when": {"nth": [2]}})
        s.add_fault({"kind": "http_error", "route": "pricing", "name": "rest"})
        listening = asyncio.create_task(listen(o.watch_quotes(["EUR_USD"]), lambda h: isinstance(h[-1], Reconnected), 20))
        await asyncio.sleep(1.0)
        assert not listening.done()
        s.clear_faults()
        heard = await listening
        assert kinds(heard).count("Gap") == 1 and heard[-1].attempts > 1
    run(body, policy=RetryPolicy(base_s=0.01, cap_s=0.02, budget_s=0.1, breaker_failures=99))


@pytest.mark.parametrize("which", ["pricing", "transactions"])
def test_a_wrong_key_ends_it(which):
    async def body(s, o):
        o.currency = "USD"
        events = o.watch_quotes(["EUR_USD"]) if which == "pricing" else o.watch_fills("3")
        with pytest.raises(e.AuthError):
            await listen(events, lambda h: False)
    run(body, token="wrong")


def test_a_revoked_key_ends_it_too_and_a_wrong_instrument():
    async def body(s, o):
        with pytest.raises(e.Rejected):
            await listen(o.watch_quotes(["EUR_XXX"]), lambda h: False)
        listening = asyncio.create_task(listen(o.watch_fills("3"), lambda h: False))
        await asyncio.sleep(0.2)
        s.add_fault({"kind": "revoked"})
        with pytest.raises(e.AuthError):
            await listening
    run(body)


def test_who_stops_listening_leaves_no_connection():
    async def body(s, o):
        for _ in range(3):
            await listen(o.watch_quotes(["EUR_USD"]), lambda h: True)
        await asyncio.sleep(0.3)
        assert len(s.server.streams) == 0
    run(body)


def test_the_adapter_that_is_closed_ends_its_streams():
    async def body(s, o):
        listening = asyncio.create_task(listen(o.watch_fills("3"), lambda h: False, 3))
        await asyncio.sleep(0.2)
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening
        await o.aclose()
        await asyncio.sleep(0.3)
        assert len(s.server.streams) == 0
    run(body)


# Without a server


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_lines_do_not_depend_on_how_bytes_are_cut(data, cuts):
    whole, rest = split_lines(b"", data)
    got, left, at = [], b"", 0
    for c in [*sorted(c for c in cuts if c <= len(data)), len(data)]:
        lines, left = split_lines(left, data[at:c])
        got += lines
        at = c
    assert (got, left) == (whole, rest)


def test_a_line_without_an_end_is_not_collected_for_ever():
    rest = b""
    with pytest.raises(e.ProtocolError):
        for _ in range(100):
            _, rest = split_lines(rest, b"x"*65_536)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.floats(0, 20), min_size=30, max_size=80), st.integers(1, 12))
def test_reconnects_keep_their_distance_and_their_number(seed, lives, attempt):
    timing, policy, now, times = Timing(rng=random.Random(seed)), StreamPolicy(), 0.0, []
    for life in lives:
        now += life
        pause = reconnect_s(times[-policy.most:], attempt, now, policy, RetryPolicy(), timing)
        assert pause >= 1
        now += pause
        times.append(now)
    assert max(sum(t <= u < t + 300 for u in times) for t in times) <= 20


class Tx:
    """A log, and a stream of it that stutters."""
    def __init__(self, n):
        self.log = [{"type": "ORDER_FILL", "id": str(100 + k), "time": "2016-06-22T18:41:29Z", "orderID": str(99), "instrument": "EUR_USD", "units": str(k + 1), "price": "1.1"} for k in range(n)]
        self.reads = 0

    async def read(self, cursor):
        self.reads += 1
        return [t for t in self.log if int(t["id"]) > int(cursor or 0)], self.log[-1]["id"]


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 12))
def test_any_stutter_of_lines_gives_each_fill_once_in_order(data, n):
    """Lines lost, repeated and out of order, heartbeats in between; the last line is a heartbeat that knows the end."""
    tx = Tx(n)
    beat = {"type": "HEARTBEAT", "time": "2016-06-22T18:41:29Z", "lastTransactionID": "0"}
    lines = data.draw(st.lists(st.sampled_from([*tx.log, {**beat, "lastTransactionID": str(data.draw(st.integers(99, 99 + n)))}]), max_size=25))

    async def run():
        reader, out = TransactionReader("99", tx.read, "USD"), []
        for line in [*lines, {**beat, "lastTransactionID": str(99 + n)}]:
            out += [x async for x in reader.line(line)]
        return [x.units for x in out if isinstance(x, VenueFill)], [x.cursor for x in out if isinstance(x, Heartbeat)]
    units, cursors = asyncio.run(run())
    assert units == list(range(1, n + 1)) and cursors[-1] == str(99 + n) and cursors == sorted(cursors, key=int)


def test_a_line_that_was_told_already_costs_nothing():
    tx = Tx(3)

    async def run():
        reader = TransactionReader("99", tx.read, "USD")
        return [x.units for line in [tx.log[0], tx.log[0], tx.log[1], tx.log[0], tx.log[1], tx.log[2]] for x in [y async for y in reader.line(line)]]
    assert asyncio.run(run()) == [1, 2, 3] and tx.reads == 0


def test_a_log_that_is_behind_its_stream_is_a_gap_not_a_hole():
    tx = Tx(5)

    async def lagging(cursor):
        return [], "99"

    async def run():
        reader = TransactionReader("99", lagging, "USD")
        with pytest.raises(e.ProtocolError):
            [x async for x in reader.line(tx.log[2])]
        assert reader.at == 99
        reader.read_log = tx.read
        return [x.units for x in await reader.catch_up()]
    assert asyncio.run(run()) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("line", [{}, {"type": "HEARTBEAT"}, {"type": 7}, {"type": "ORDER_FILL"}, {"type": "ORDER_FILL", "id": "100"}, {"type": "ORDER_CANCEL", "id": "100"},
                                  {"type": "PRICE", "instrument": "EUR_USD"}, {"type": "PRICE", "bids": "x"}], ids=json.dumps)
def test_a_line_that_cannot_be_read_is_a_gap(line):
    """follow() turns whatever reading a line raises into a gap and a way back."""
    async def run():
        reader = TransactionReader("99", Tx(1).read, "USD")

        @contextlib.asynccontextmanager
        async def connect():
            async def lines():
                yield line
            yield lines()

        async def nothing(gap):
            for x in ():
                yield x

        async def instantly(s):
            pass
        return await listen(follow(connect, nothing, reader.line, StreamPolicy(), RetryPolicy(), Timing(sleep=instantly)), lambda h: len(h) >= 1)
    heard = asyncio.run(run())
    assert isinstance(heard[0], Gap)


def test_a_stream_that_answers_with_a_page_or_nothing_is_a_gap():
    async def run(item):
        async with RawServer(plan=[item]*3, default=Reply(200, b'{"type":"HEARTBEAT","time":"2016-06-22T18:41:29Z"}\n')) as server:
            o = Oanda("1", "t", server.url, policy=RetryPolicy(base_s=0.001, cap_s=0.002, budget_s=0.01), stream=FAST)

            async def prices(instruments):
                return {}
            o.fetch_quotes = prices
            heard = await listen(o.watch_quotes(["EUR_USD"]), lambda h: isinstance(h[-1], Reconnected))
            await o.aclose()
            return heard
    for item in (Reply(200, b"<html>\n"), Reply(200, b""), Reply(502, b"<html>"), Reply(200, b"[1]\n"), Reply(302, b""), reset_now, close_now, half_head, not_http):
        heard = asyncio.run(run(item))
        assert kinds(heard) == ["Gap", "Reconnected"] and heard[1].attempts == 3, item


def test_decimals_stay_exact():
    async def body(s, o):
        heard = await listen(o.watch_quotes(["USD_JPY"]), lambda h: isinstance(h[-1], Quote))
        q, price = heard[-1], s.engine.price("USD_JPY")
        assert str(q.bid) == price["bids"][0]["price"] and q.ask - q.bid == D(price["asks"][0]["price"]) - D(price["bids"][0]["price"])
    run(body)
