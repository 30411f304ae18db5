"""The facade: each call of the protocol, without await, from threads and from inside a running loop."""
import asyncio
import inspect
import threading
from contextlib import AsyncExitStack, contextmanager
from decimal import Decimal as D

import pytest
from sandboxed import QUICK, Book, buy, rest
from deskbook.core.errors import Refused
from deskbook.core.loop import run_sync
from deskbook.venues import errors as e
from deskbook.venues.model import Absent, Found, Heartbeat, Quote, Venue, VenueFill
from deskbook.venues.oanda import Oanda
from deskbook.venues.sandbox.server import ServerConfig, start_sandbox
from deskbook.venues.sync import SyncVenue, iterate


@contextmanager
def opened(**kw):
    stack = AsyncExitStack()
    s = run_sync(stack.enter_async_context(start_sandbox(ServerConfig(clock="virtual", start="2025-11-04T14:30:00Z", speed=0, heartbeat_s=0.1))))
    try:
        with SyncVenue(Oanda(s.account, s.token, s.url, policy=QUICK, **{"guard": Book(), **kw})) as venue:
            yield s, venue
    finally:
        run_sync(stack.aclose())


def calls(kind):
    return {n: inspect.signature(f) for n, f in vars(kind).items() if inspect.isfunction(f) and not n.startswith("_")}


def test_it_offers_what_the_protocol_offers():
    """Same names, same parameters after the venue itself, same defaults; streams may wait besides."""
    protocol, facade, adapter = calls(Venue), calls(SyncVenue), {n: inspect.signature(getattr(Oanda, n)) for n in calls(Venue)}
    for name, wanted in protocol.items():
        if name == "aclose":
            continue
        for got in (facade[name], adapter[name]):
            ours = [(p.name, p.default) for p in got.parameters.values() if p.name != "wait_s"]
            assert ours[1:] == [(p.name, p.default) for p in wanted.parameters.values()][1:], name


def test_an_order_from_a_notebook():
    with opened() as (s, v):
        cursor = v.fetch_balance().cursor
        ack = v.create_order(buy())
        assert v.find_order("db-1", cursor) == Found(ack.order, ack.fills) and isinstance(v.find_order("db-2", cursor), Absent)
        v.create_order(rest("db-2"))
        assert [o.client_id for o in v.fetch_open_orders()] == ["db-2"] and v.cancel_order(client_id="db-2").state == "cancelled"
        assert v.close_position("EUR_USD", buy("db-3", -1000, reduce_only=True)).order.state == "filled"
        assert v.fetch_positions() == {} and len(v.fetch_fills(cursor).fills) == 2
        assert v.load_instruments()["EUR_USD"].tick == D("0.00001") and set(v.fetch_quotes(["EUR_USD"])) == {"EUR_USD"}
        assert v.fetch_ohlcv("EUR_USD", limit=3).height == 3 and abs(v.fetch_time_ms() - s.clock()) < 1000 and v.capabilities().venue == "oanda"


def test_errors_come_through():
    with opened(guard=None) as (_, v):
        with pytest.raises(Refused):
            v.create_order(buy())
        with pytest.raises(e.InvalidOrder):
            v.create_order(buy(units="0.5"))


def test_it_works_inside_a_running_loop_and_from_many_threads():
    with opened() as (_, v):
        async def cell():
            return v.fetch_positions()
        assert asyncio.run(cell()) == {}
        got = []
        threads = [threading.Thread(target=lambda: got.append(v.fetch_quotes(["EUR_USD"])["EUR_USD"].bid)) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(got) == 8 and len(set(got)) == 1


def test_streams_are_iterators_that_close_themselves():
    with opened() as (s, v):
        assert isinstance(next(iter(v.watch_quotes(["EUR_USD"]))), Quote)
        v.create_order(buy())
        for event in v.watch_fills("3"):
            if isinstance(event, VenueFill):
                break
        assert event.client_id == "db-1"
        beats = [x for x, _ in zip(v.watch_fills("5"), range(3), strict=False)]
        assert all(isinstance(x, Heartbeat) for x in beats)
        run_sync(asyncio.sleep(0.3))
        assert not s.server.streams


def test_iterate_ends_closes_and_passes_errors_on():
    closed = []

    async def two(then):
        try:
            yield 1
            yield 2
            if isinstance(then, Exception):
                raise then
            await asyncio.sleep(then)
        finally:
            closed.append(True)
    assert list(iterate(two(0))) == [1, 2]
    assert list(iterate(two(60), wait_s=0.05)) == [1, 2]
    with pytest.raises(KeyError):
        list(iterate(two(KeyError("x"))))
    it = iterate(two(60))
    next(it)
    it.close()
    assert len(closed) == 4
