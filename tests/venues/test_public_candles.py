"""Unmodified ccxt against a loopback server that speaks Bybit's public protocol, with its faults."""
import random
import signal
import subprocess
import sys
import time
import uuid
from itertools import pairwise

import numpy as np
import pytest
from bybit_public import MINUTE, T0, BybitPublic, bar
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.core.errors import BadInput, NotFound, SourceError
from deskbook.stores.lake import Lake
from deskbook.venues.public_candles import Patience, connect, fetch_candles, missing_spans, pages

@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def lake():
    return Lake(f"memory://fetch-{uuid.uuid4().hex}")


def patience(waits=None, attempts=4):
    return Patience(attempts=attempts, sleep=(waits if waits is not None else []).append, rng=random.Random(0))


def fetch(server, lake, start=T0, end=None, waits=None, symbol="BTCUSDT", **kw):
    return fetch_candles(f"bybit:{symbol}", start, server.now if end is None else end, lake, exchange=connect("bybit", server.url, timeout_s=3), patience=patience(waits), **kw)


def times(lake):
    return ((lake.candles()["time"].dt.epoch("ms").to_numpy() - T0) // MINUTE).tolist()


def test_a_window_of_three_pages_without_the_open_bar(lake):
    seen = []
    with BybitPublic(2500) as server:
        done = fetch(server, lake, progress=lambda k, n: seen.append((k, n)))
        assert [int(c["start"]) // MINUTE - T0 // MINUTE for c in server.calls] == [0, 1000, 2000]
        assert {c["category"] for c in server.calls} == {"linear"} and {c["interval"] for c in server.calls} == {"1"}
    assert times(lake) == list(range(2499))
    assert (done.instrument, done.symbol, done.pages, done.write.added, done.ended) == ("BTCUSDT-PERP", "BTC/USDT:USDT", 3, 2499, "")
    assert seen == [(1000, 2499), (2000, 2499), (2499, 2499)]
    assert lake.inventory()["source"].to_list() == ["bybit via ccxt"]
    first = lake.candles().row(0, named=True)
    assert (first["open"], first["close"], first["volume"], first["complete"]) == (107000.0, 107001.0, 12.5, True)


def test_a_second_fetch_asks_only_for_what_is_new(lake):
    with BybitPublic(1500) as server:
        fetch(server, lake)
        server.bars += [bar(k) for k in range(1500, 1510)]
        server.now += 10 * MINUTE
        before = len(server.calls)
        done = fetch(server, lake)
        assert [int(c["start"]) for c in server.calls[before:]] == [T0 + 1499 * MINUTE]
    assert (done.write.added, done.write.changed) == (10, 0) and times(lake) == list(range(1509))


@pytest.mark.parametrize("fault", ["drop", "half", "html", "limit_body"])
def test_a_fault_in_the_middle_is_tried_again(lake, fault):
    waits = []
    with BybitPublic(2500, {1: fault}) as server:
        done = fetch(server, lake, waits=waits)
    assert times(lake) == list(range(2499)) and done.write.added == 2499 and len(waits) == 1


def test_429_waits_as_long_as_it_is_told(lake):
    waits, told = [], []
    with BybitPublic(1200, {0: "limit", 1: "limit"}) as server:
        fetch(server, lake, waits=waits, on_wait=lambda why, s: told.append(why))
    assert len(waits) == 2 and min(waits) >= 2.0 and len(told) == 2 and times(lake) == list(range(1199))


def test_a_server_that_goes_away_keeps_what_came_and_is_resumed(lake):
    with BybitPublic(2500, {1: "gone"}) as server, pytest.raises(SourceError, match=r"cannot be reached.*what was stored stays"):
        fetch(server, lake)
    assert times(lake) == list(range(1000))
    with BybitPublic(2500) as server:
        fetch(server, lake)
        assert [int(c["start"]) for c in server.calls] == [T0 + 1000 * MINUTE, T0 + 2000 * MINUTE]
    assert times(lake) == list(range(2499))


def test_holes_in_the_lake_are_filled(lake):
    with BybitPublic(5000) as server:
        fetch(server, lake, T0 + 300 * MINUTE, T0 + 400 * MINUTE)
        fetch(server, lake, T0 + 3000 * MINUTE, T0 + 3100 * MINUTE)
        server.calls.clear()
        fetch(server, lake, T0, T0 + 3200 * MINUTE)
        assert [(int(c["start"]) - T0) // MINUTE for c in server.calls] == [0, 1000, 2000, 3000]
    assert times(lake) == list(range(3200))


def test_an_empty_page_ends_the_fetch_and_says_where(lake):
    with BybitPublic(2500, {1: "empty"}) as server:
        done = fetch(server, lake)
    assert times(lake) == list(range(1000)) and done.ended == "2025-11-03T16:40:00Z"


def test_a_page_sent_twice_adds_nothing_and_ends_without_a_loop(lake):
    with BybitPublic(2500, {1: "again", 2: "again"}) as server:
        fetch(server, lake)
        assert len(server.calls) == 2
    assert times(lake) == list(range(1000))


def test_a_window_within_the_open_bar_is_empty_and_costs_no_page(lake):
    with BybitPublic(100) as server:
        done = fetch(server, lake, server.now - 20_000, server.now)
        assert done.write.added == 0 and server.calls == []


def test_refused_by_country(lake):
    with BybitPublic(100, {0: "geo"}) as server, pytest.raises(SourceError, match="refuses requests from this country"):
        fetch(server, lake)


def test_offline_is_said_quickly(lake):
    with BybitPublic(10) as server:
        url = server.url
    ex, waits = connect("bybit", url, timeout_s=2), []
    with pytest.raises(SourceError, match=r"bybit cannot be reached.*simulate"):
        fetch_candles("bybit:BTCUSDT", T0, T0 + MINUTE, lake, exchange=ex, patience=patience(waits, attempts=6))
    assert len(waits) == 2, "the first word of an exchange is not waited for as long as a page in the middle"


def test_unknown_symbols_exchanges_and_windows(lake):
    with BybitPublic(10) as server:
        with pytest.raises(NotFound, match="Did you mean 'BTCUSDT'"):
            fetch(server, lake, symbol="BTCUSTD")
        assert fetch(server, lake, symbol="BTC/USDT").instrument == "BTCUSDT"
        with pytest.raises(BadInput, match="empty"):
            fetch(server, lake, T0, T0)
    with pytest.raises(BadInput, match="Did you mean 'bybit'"):
        connect("bybitt")


KILLED = """
import sys
from deskbook.stores.lake import Lake
from deskbook.venues.public_candles import connect, fetch_candles
url, lake, start, end = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
ex = connect("bybit", url); ex.load_markets()
print("ready", flush=True)
fetch_candles("bybit:BTCUSDT", start, end, Lake(lake), exchange=ex)
"""


def test_a_killed_fetch_goes_on_where_it_was(tmp_path):
    with BybitPublic(30_000) as server:
        p = subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(tmp_path), str(T0), str(server.now)], stdout=subprocess.PIPE)
        p.stdout.readline()
        while len(server.calls) < 4:
            time.sleep(0.005)
        p.send_signal(signal.SIGKILL)
        p.wait()
        lake = Lake(tmp_path)
        kept = times(lake)
        assert kept == list(range(len(kept))) and 2000 <= len(kept) < 29_999
        server.calls.clear()
        fetch(server, lake)
        assert int(server.calls[0]["start"]) == T0 + len(kept) * MINUTE
    assert times(lake) == list(range(29_999))


@given(st.sets(st.integers(0, 60)), st.integers(0, 20), st.integers(21, 60), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_missing_spans_cover_what_is_missing_and_never_more_than_the_window(held, start, end, join):
    spans = missing_spans(np.array(sorted(held), dtype=np.int64) * MINUTE, start * MINUTE, end * MINUTE, MINUTE, join)
    asked = {k for a, b in spans for k in range(a // MINUTE, b // MINUTE)}
    assert set(range(start, end)) - held <= asked <= set(range(start, end))
    assert all(b < c for (_, b), (c, _) in pairwise(spans))
    if join == 1:
        assert asked == set(range(start, end)) - held


@given(st.lists(st.integers(0, 30), unique=True), st.integers(1, 7), st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_pages_give_every_closed_bar_once_from_any_server_order(minutes, size, now):
    rng = random.Random(size)

    def serve(since, rows):
        page = sorted(m for m in minutes if m * MINUTE >= since)[:rows]
        rng.shuffle(page)
        return [[m * MINUTE, 1, 1, 1, 1, 1] for m in page]

    got = [r[0] // MINUTE for p in pages(serve, 0, 31 * MINUTE, MINUTE, now * MINUTE, size) for r in p]
    assert got == sorted(m for m in minutes if m < now)
