"""The streamer on a real sandbox over HTTP, a real Valkey and a lake, with a clock that the test turns."""
import asyncio
import os
import random
import secrets
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from deskbook.core.clock import to_ms
from deskbook.core.errors import DataError, NotFound
from deskbook.core.metrics import REGIME_REJECTED
from deskbook.core.settings import Settings
from deskbook.gates.engine import build_gates
from deskbook.gates.live import gate_history
from deskbook.gates.payload import gates_frame
from deskbook.gates.settings import GateSettings
from deskbook.gates.worker import GateWorker
from deskbook.stores.embedded import start_valkey
from deskbook.stores.lake import Lake
from deskbook.stores.live import open_live
from deskbook.stores.live_state import candles_key, read_candles
from deskbook.venues import streamer as module
from deskbook.venues.candle_fetch import fetch_into
from deskbook.venues.errors import NetworkError
from deskbook.venues.oanda import Oanda
from deskbook.venues.retry import RetryPolicy, Timing
from deskbook.venues.sandbox.process import sandbox_process
from deskbook.venues.streamer import Streamer, end_looks, lake_venue, pause_s
from deskbook.venues.transport import Timeouts

PAIRS = ("EUR_USD", "USD_JPY")
TUESDAY = "2025-11-04T14:30:05Z"
QUICK = RetryPolicy(base_s=0.01, cap_s=0.02, budget_s=0.5, breaker_failures=1000)


@pytest.fixture(scope="module")
def sandbox():
    with sandbox_process(clock="virtual", start=TUESDAY, speed=0, instruments=[*PAIRS, "GBP_USD"]) as s:
        yield s


def same(got, want):
    """Equal frames; a failure says where."""
    assert got["time"].to_list() == want["time"].to_list()
    for c in want.columns:
        differs = [t for t, a, b in zip(want["time"], got[c].to_list(), want[c].to_list()) if a != b]
        assert not differs, (c, differs[:3], len(differs))


class World:
    """Sandbox, Valkey and lake of one test."""

    def __init__(self, sandbox, url, prefix, folder, **settings):
        self.sandbox, self.url, self.prefix, self.lake = sandbox, url, prefix, Lake(folder)
        self.settings = Settings(**{"hotband_pairs": ",".join(PAIRS), "candle_backfill_minutes": 240, "prometheus_port": 0, "candle_interval_s": 0.05, **settings})
        self.now = self.sandbox_now()

    def sandbox_now(self):
        return self.sandbox.control.advance(0)["time_ms"]

    def advance(self, seconds):
        self.sandbox.control.advance(seconds)
        self.now = self.sandbox_now()

    def run(self, body):
        async def whole():
            self.live = open_live(self.url, self.prefix, timeout_s=5)
            self.venue = Oanda(self.sandbox.account, self.sandbox.token, self.sandbox.url, policy=QUICK,
                               timing=Timing(clock=lambda: self.now, rng=random.Random(1)), timeouts=Timeouts(connect_s=1, slot_s=1, read_s=0.5, total_s=1))
            try:
                return await body(self)
            finally:
                await self.venue.aclose()
                await self.live.aclose()
        return asyncio.run(whole())

    def streamer(self, venue=None):
        return Streamer(venue or self.venue, self.live, self.lake, self.settings, clock=lambda: self.now)

    async def truth(self, name, since_ms):
        return await self.venue.fetch_ohlcv(name, "M1", since_ms=since_ms)

    async def flush(self):
        keys = [k async for k in self.live.redis.scan_iter(self.prefix + "*")]
        if keys:
            await self.live.redis.delete(*keys)

    async def check(self, since_ms, live_since_ms=None):
        """Valkey and lake both hold what the venue tells, and nothing else."""
        for name in PAIRS:
            want = await self.truth(name, since_ms)
            from_ms = max(since_ms, live_since_ms or 0)
            same((await read_candles(self.live, name, since_ms=from_ms)), want.filter(pl.col("time").dt.epoch("ms") >= from_ms))
            same(self.lake.candles(name, since_ms, None, "sandbox"), want)


@pytest.fixture
def world(sandbox, valkey_url, key_prefix, tmp_path):
    sandbox.control.clear_faults()
    return World(sandbox, valkey_url, key_prefix, tmp_path / "lake")


def test_backfill_at_the_start_then_each_candle(world):
    async def body(w):
        start = w.now - 240*60_000
        s = w.streamer()
        await s.poll()
        first = await read_candles(w.live, "EUR_USD")
        assert first.height > 230 and to_ms(first["time"][0]) >= start - 60_000
        assert to_ms(first["time"][-1]) + 60_000 <= w.now
        for _ in range(5):
            w.advance(60)
            await s.poll()
        await s.save()
        await w.check(to_ms(first["time"][0]))
        assert await w.live.redis.zcard(w.live.key(candles_key("EUR_USD"))) == (await read_candles(w.live, "EUR_USD"))["time"].n_unique()
        st = s.status()["EUR_USD"]
        assert (st.owed, st.unsaved, st.error, st.stale) == (0, 0, "", False) and st.age_s < 60
    world.run(body)


def test_polling_between_candles_writes_nothing(world):
    async def body(w):
        s = w.streamer()
        await s.poll()
        before = s.status()["EUR_USD"].unsaved
        for _ in range(3):
            await s.poll()
        return before, s.status()["EUR_USD"].unsaved, await w.live.get("md:revision:EUR_USD:M1")
    before, after, revision = world.run(body)
    assert before == after and revision.endswith(":0")


def test_a_venue_that_is_away_for_a_while_leaves_no_gap(world):
    async def body(w):
        venue = Away(w.venue, NOBODY)
        s = w.streamer(venue)
        await s.poll()
        since = w.now - 200*60_000
        venue.only = None
        for _ in range(3):
            w.advance(600)
            await s.poll()
        st = s.status()["EUR_USD"]
        assert "away" in st.error and st.stale and st.market_open
        venue.only = NOBODY
        await s.poll()
        await s.save()
        assert not s.status()["EUR_USD"].stale and not s.status()["EUR_USD"].error
        await w.check(since)
    world.run(body)


def test_a_look_further_back_that_failed_is_made_at_the_next_poll(world):
    async def body(w):
        venue, asked = Away(w.venue, NOBODY), []
        s = w.streamer(venue)
        await s.poll()
        fetch = w.venue.fetch_ohlcv

        async def spied(instrument, *a, since_ms, **k):
            asked.append(since_ms)
            return await fetch(instrument, *a, since_ms=since_ms, **k)
        w.venue.fetch_ohlcv = spied
        usual = [f.since_ms for f in s.feeds.values()]
        for f in s.feeds.values():
            f.deep_s = -1e9
        venue.only = None
        await s.poll()
        venue.only = NOBODY
        await s.poll()
        assert max(asked) <= min(usual) - 50 * 60_000
        asked.clear()
        await s.poll()
        assert sorted(asked) == sorted(usual)
    world.run(body)


class Bent:
    """A venue that tells one candle with its high below its low."""

    def __init__(self, venue):
        self.venue, self.capabilities = venue, venue.capabilities

    async def fetch_ohlcv(self, *a, **k):
        frame = await self.venue.fetch_ohlcv(*a, **k)
        last = pl.int_range(pl.len()) == pl.len() - 1
        return frame.with_columns(high=pl.when(last).then(pl.col("low") * 0.9).otherwise(pl.col("high")))


def test_a_candle_that_makes_no_sense_goes_into_quarantine_and_nowhere_else(world):
    async def body(w):
        bent, seen = Bent(w.venue), REGIME_REJECTED.labels("EUR_USD", "high_below_body")._value.get()
        last = (await w.truth("EUR_USD", w.now - 600_000))["time"][-1]
        s = w.streamer(bent)
        for _ in range(3):
            await s.poll()
        await s.save()
        told = w.lake.quarantine("sandbox", "EUR_USD")
        assert told["time"].to_list() == [last] and told["reason"].to_list() == ["high_below_body"]
        assert REGIME_REJECTED.labels("EUR_USD", "high_below_body")._value.get() == seen + 1
        assert (await fetch_into(bent, w.live, w.lake, w.settings, "USD_JPY", "M1", limit=5, now_ms=w.now)).lake.quarantined == 1
        for name in PAIRS:
            assert last not in (await read_candles(w.live, name))["time"].to_list()
            assert last not in w.lake.candles(name, None, None, "sandbox")["time"].to_list()
    world.run(body)


NOBODY = "nobody"


class Away:
    """A venue that cannot be reached; or only for one pair, or for nobody."""

    def __init__(self, venue, only=None):
        self.venue, self.only = venue, only

    def capabilities(self):
        return self.venue.capabilities()

    async def fetch_ohlcv(self, instrument, *a, **k):
        if self.only in (None, instrument):
            raise NetworkError("the venue is away", venue="oanda", sent=False)
        return await self.venue.fetch_ohlcv(instrument, *a, **k)


def test_one_pair_does_not_hold_up_the_others(world):
    async def body(w):
        s = w.streamer(Away(w.venue, "EUR_USD"))
        await s.poll()
        return s.status(), (await read_candles(w.live, "EUR_USD")).height, (await read_candles(w.live, "USD_JPY")).height
    status, none, some = world.run(body)
    assert none == 0 and some > 200 and status["EUR_USD"].error and not status["USD_JPY"].error


class Slow(Away):
    async def fetch_ohlcv(self, instrument, *a, **k):
        if instrument == self.only:
            await asyncio.sleep(30)
        return await self.venue.fetch_ohlcv(instrument, *a, **k)


def test_a_hanging_pair_does_not_either(world):
    async def body(w):
        s = w.streamer(Slow(w.venue, "EUR_USD"))
        await asyncio.wait_for(s.poll(1.0), 5)
        w.advance(60)
        await asyncio.wait_for(s.poll(0.5), 5)
        at = to_ms((await read_candles(w.live, "USD_JPY"))["time"][-1])
        await end_looks(s.feeds.values())
        return at, w.now
    at, now = world.run(body)
    assert now - at < 2*60_000 + 10_000


def test_a_restart_goes_on_where_the_lake_ends(world):
    async def body(w):
        first = w.streamer()
        await first.poll()
        since = to_ms((await read_candles(w.live, "EUR_USD"))["time"][0])
        await first.save()
        w.advance(300*60)  # longer than the window of a first start
        await w.flush()
        second = w.streamer()
        await second.poll()
        await second.save()
        want = await w.truth("EUR_USD", since)
        assert w.lake.candles("EUR_USD", since, None, "sandbox").equals(want)
        assert (await read_candles(w.live, "EUR_USD")).equals(want.tail((await read_candles(w.live, "EUR_USD")).height))
        assert (await read_candles(w.live, "EUR_USD")).height > 230
    world.run(body)


def test_a_crash_before_the_save_is_made_up_for(world):
    async def body(w):
        first = w.streamer()
        await first.poll()
        since = to_ms((await read_candles(w.live, "EUR_USD"))["time"][0])
        await first.save()
        w.advance(600)
        await first.poll()  # in Valkey, never in the lake
        w.advance(60)
        second = w.streamer()
        await second.poll()
        await second.save()
        await w.check(since)
    world.run(body)


@pytest.mark.parametrize("then", ["same", "later"])
def test_a_flush_is_filled_again(world, then):
    async def body(w):
        s = w.streamer()
        await s.poll()
        since = to_ms((await read_candles(w.live, "EUR_USD"))["time"][0])
        w.advance(120)
        await s.poll()
        await w.flush()
        if then == "later":
            w.advance(60)
        await s.poll()
        await s.save()
        await w.check(since)
    world.run(body)


def test_a_flush_behind_our_back_is_noticed(world, monkeypatch):
    """Flushed, and a newer candle is put before anybody looked: the end looks whole, the birth tells."""
    async def body(w):
        s = w.streamer()
        await s.poll()
        since = to_ms((await read_candles(w.live, "EUR_USD"))["time"][0])
        w.advance(60)
        monkeypatch.setattr(module, "look_at_live", lambda *a: asyncio.sleep(0))
        await w.flush()
        await s.poll()
        assert (await read_candles(w.live, "EUR_USD")).height < 5
        monkeypatch.undo()
        await s.poll()
        await s.save()
        await w.check(since)
    world.run(body)


def test_retention(sandbox, valkey_url, key_prefix, tmp_path):
    w = World(sandbox, valkey_url, key_prefix, tmp_path / "lake", candle_retention_days=0.05)  # 72 minutes

    async def body(w):
        s = w.streamer()
        for _ in range(3):
            await s.poll()
            w.advance(600)
        await s.poll()
        await s.save()
        oldest = to_ms((await read_candles(w.live, "EUR_USD"))["time"][0])
        assert w.now - 72*60_000 <= oldest <= w.now - 70*60_000
        assert w.lake.candles("EUR_USD", None, None, "sandbox").height > 240
    w.run(body)


def test_a_closed_market_makes_nothing_stale(world):
    async def body(w):
        s = w.streamer()
        await s.poll()
        real, seen = w.now, {}
        for name, moment in (("friday", "2025-11-07T21:59:30Z"), ("closed", "2025-11-08T12:00:00Z"), ("open again", "2025-11-09T22:01:00Z"), ("late", "2025-11-09T22:10:00Z")):
            if name == "friday":
                s.feeds["EUR_USD"].newest_ms = to_ms("2025-11-07T21:58:00Z")
            w.now = to_ms(moment)
            st = s.status()["EUR_USD"]
            seen[name] = (st.market_open, st.stale)
        w.now = real
        return seen
    assert world.run(body) == {"friday": (True, False), "closed": (False, False), "open again": (True, False), "late": (True, True)}


class Revising(Away):
    """Tells the newest candles with other numbers at first, now and then leaves some out, in any order, twice."""

    def __init__(self, venue, rng):
        super().__init__(venue)
        self.rng, self.calm = rng, False

    async def fetch_ohlcv(self, instrument, *a, **k):
        frame = await self.venue.fetch_ohlcv(instrument, *a, **k)
        if self.calm or frame.height > 100:
            return frame
        if self.rng.random() < 0.3:
            frame = frame.filter(pl.Series([self.rng.random() < 0.7 for _ in range(frame.height)], dtype=pl.Boolean))
        if frame.height and self.rng.random() < 0.5:
            last = frame["time"] >= frame["time"].max()
            frame = frame.with_columns(high=pl.when(last).then(pl.col("high")*1.0003).otherwise(pl.col("high")), volume=pl.when(last).then(1.0).otherwise(pl.col("volume")))
        if self.rng.random() < 0.3:
            frame = pl.concat([frame, frame.tail(2)]).sample(fraction=1, shuffle=True, seed=self.rng.randrange(99))
        if frame.height and self.rng.random() < 0.2:
            frame = pl.concat([frame, frame.tail(1).with_columns(low=pl.col("high")*2, complete=True)])
        return frame


@pytest.mark.parametrize("seed", range(3))
def test_disorder_ends_in_the_truth_and_so_do_the_gates(world, seed):
    """Revised, doubled, missing and unordered candles, flushes and crashes; at the end Valkey, lake and gates are those of the venue's candles."""
    async def body(w):
        rng = random.Random(seed)
        venue = Revising(w.venue, rng)
        s, g = w.streamer(venue), GateWorker(w.live, w.lake, w.settings, clock=lambda: w.now, venue="sandbox")
        await s.poll()
        since = to_ms((await read_candles(w.live, "EUR_USD"))["time"][0])
        await g.round()
        for _ in range(25):
            w.advance(rng.choice([20, 60, 60, 61, 200]))
            await s.poll()
            await g.round()
            what = rng.random()
            if what < 0.1:
                await w.flush()
            elif what < 0.2:
                await s.save()
            elif what < 0.3:
                s = w.streamer(venue)  # the old one crashed
            elif what < 0.4:
                g = GateWorker(w.live, w.lake, w.settings, clock=lambda: w.now, venue="sandbox")
        venue.calm = True
        for f in s.feeds.values():
            f.deep_s = -1e9
        w.advance(61)
        await s.poll()
        await s.save()
        await g.round()
        await g.flush()
        await w.check(since, w.now - 235*60_000)  # a new streamer fills an empty Valkey for so long back
        want = build_gates(pl.concat([w.lake.candles(p, None, None, "sandbox") for p in PAIRS]), GateSettings(stride=1))
        for name in PAIRS:
            same(gates_frame(await gate_history(w.live, name)), want.filter(pl.col("instrument") == name))
    world.run(body)


def test_a_lake_that_refuses_keeps_the_candles_waiting(world, monkeypatch):
    async def body(w):
        s = w.streamer()
        await s.poll()
        write = w.lake.write_candles

        def full(*a, **k):
            raise DataError("the disk is full")
        monkeypatch.setattr(w.lake, "write_candles", full)
        await s.save()
        waiting = s.status()["EUR_USD"].unsaved
        assert waiting > 200
        monkeypatch.setattr(w.lake, "write_candles", write)
        await s.save()
        assert s.status()["EUR_USD"].unsaved == 0
        assert w.lake.candles("EUR_USD", None, None, "sandbox").height == waiting
    world.run(body)


def test_running_through_a_killed_valkey(sandbox, tmp_path, valkey_url):
    folder = Path("/tmp") / f"deskbook-tests-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o755)
    with start_valkey(folder=folder, durable=False) as server:
        w = World(sandbox, server.url, "t:", tmp_path / "lake")

        async def body(w):
            stop, s = asyncio.Event(), w.streamer()
            task = asyncio.create_task(s.run(stop))

            async def there(since_ms=2**62):
                for _ in range(400):
                    try:
                        frames = [await read_candles(w.live, p) for p in PAIRS]
                        if all(f.height and to_ms(f["time"][-1]) + 120_000 > w.now and to_ms(f["time"][0]) <= since_ms for f in frames):
                            return frames
                    except Exception:
                        pass
                    await asyncio.sleep(0.02)
                raise AssertionError("no candles")
            since = to_ms((await there())[0]["time"][0])
            os.kill(server.pid, signal.SIGKILL)
            w.advance(60)
            await asyncio.sleep(0.5)
            assert s.deps.outage.why and not task.done()
            w.advance(60)
            await asyncio.to_thread(server.revive)
            await there(since)
            stop.set()
            await asyncio.wait_for(task, 10)
            await w.check(since)
        w.run(body)
    shutil.rmtree(folder, ignore_errors=True)


def test_it_saves_when_told_to_stop(world):
    async def body(w):
        with pytest.raises(NotFound):
            w.lake.candles("EUR_USD", venue="sandbox")
        stop, s = asyncio.Event(), w.streamer()
        task = asyncio.create_task(s.run(stop))
        while not s.status()["USD_JPY"].unsaved or not s.status()["EUR_USD"].unsaved:
            await asyncio.sleep(0.02)
        stop.set()
        await asyncio.wait_for(task, 5)
        return w.lake.candles("EUR_USD", venue="sandbox").height
    assert world.run(body) > 200


def test_names_and_pauses():
    def told(environment):
        return SimpleNamespace(capabilities=lambda: SimpleNamespace(environment=environment, venue="oanda"))
    assert [lake_venue(told(e)) for e in ("sandbox", "practice", "live")] == ["sandbox", "oanda", "oanda"]
    assert [pause_s(t, 60_000, 2.0) for t in (0, 57_000, 59_000, 59_999)] == [2.0, 2.0, 1.05, 0.051]
