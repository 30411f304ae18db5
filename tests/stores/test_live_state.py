"""What stands in a real Valkey after candles and gates were put: once each, whole, revisable, forgettable."""
import asyncio
import json

import polars as pl
import pytest

from deskbook.market.simulated import simulate_candles
from deskbook.stores.live import LiveUnavailable, open_live
from deskbook.stores.live_state import (
    candle_births,
    candles_after,
    candles_key,
    gate_history,
    gate_index_key,
    gate_key,
    get_json,
    last_gate,
    last_gates,
    newest_candles,
    prune_candles,
    put_candles,
    put_gate,
    put_gate_history,
    put_json,
    read_candles,
    revision_key,
)

HOUR = 3_600_000


@pytest.fixture(scope="module")
def day() -> pl.DataFrame:
    return simulate_candles(["EUR_USD"], "2025-11-04T00:00:00Z", "2025-11-05T00:00:00Z")


def ms(frame, row):
    return int(frame["time"].dt.epoch("ms")[row])


def test_a_frame_comes_back_as_it_went(at, day):
    async def body(live):
        assert await put_candles(live, "EUR_USD", "M1", day) == day.height
        return await read_candles(live, "EUR_USD")
    assert at(body).equals(day)


@pytest.mark.parametrize("drop", ["volume", "quotes"])
def test_what_is_not_known_stays_unknown(at, day, drop):
    names = ["volume"] if drop == "volume" else [c for c in day.columns if c.startswith(("bid", "ask"))]
    frame = day.head(5).with_columns(pl.lit(None, pl.Float64).alias(n) for n in names)

    async def body(live):
        await put_candles(live, "EUR_USD", "M1", frame)
        return await read_candles(live, "EUR_USD")
    assert at(body).drop("crossed").equals(frame.drop("crossed"))


def test_one_candle_per_score_whatever_comes(at, day):
    first, other = day.head(100), day.head(100).with_columns(pl.col("close") * 1.00001, pl.col("high") * 1.0001)

    async def body(live):
        counts = [await put_candles(live, "EUR_USD", "M1", f) for f in (first, first, other.tail(3), first.head(50).sample(50, shuffle=True, seed=1))]
        members = await live.redis.zrange(live.key(candles_key("EUR_USD")), 0, -1, withscores=True)
        return counts, members
    counts, members = at(body)
    assert counts == [100, 0, 3, 0]
    assert len(members) == len({s for _, s in members}) == 100
    assert all(json.loads(m)["t"] == s for m, s in members)
    assert [json.loads(m)["c"] for m, _ in members][-3:] == other["close"].to_list()[-3:]


def test_forming_candles_stay_out(at, day):
    frame = day.head(10).with_columns(complete=pl.int_range(10) != 9)

    async def body(live):
        assert await put_candles(live, "EUR_USD", "M1", frame) == 9
        return await read_candles(live, "EUR_USD")
    assert at(body).height == 9


def test_revision_counts_only_what_lies_behind(at, day):
    async def body(live):
        async def revision():
            return (await candles_after(live, {"EUR_USD": None}))["EUR_USD"].revision.split(":")
        seen = []
        await put_candles(live, "EUR_USD", "M1", day.slice(10, 10))
        seen.append(await revision())
        for frame in (day.slice(20, 5), day.slice(20, 5), day.slice(9, 1), day.slice(12, 2).with_columns(pl.col("high") + 1), day.slice(12, 3)):
            await put_candles(live, "EUR_USD", "M1", frame)
            seen.append(await revision())
        await live.redis.delete(live.key(candles_key("EUR_USD")))
        await put_candles(live, "EUR_USD", "M1", day.slice(10, 15))
        return seen, await revision(), await candle_births(live, ["EUR_USD", "USD_JPY"])
    seen, after_loss, births = at(body)
    assert [n for _, n in seen] == ["0", "0", "0", "1", "3", "5"] and len({born for born, _ in seen}) == 1
    assert after_loss[0] > seen[0][0] and after_loss[1] == "0"
    assert births == {"EUR_USD": after_loss[0], "USD_JPY": None}


def test_a_set_of_another_writer_gets_a_revision_too(at, day):
    async def body(live):
        await live.redis.zadd(live.key(candles_key("EUR_USD")), {json.dumps({"t": ms(day, 0), "o": 1, "h": 1, "l": 1, "c": 1, "v": 0}): ms(day, 0)})
        await put_candles(live, "EUR_USD", "M1", day.slice(1, 1))
        got = (await candles_after(live, {"EUR_USD": None}))["EUR_USD"]
        return got.revision, [r["close"] for r in got.rows]
    revision, closes = at(body)
    assert revision and closes == [1, day["close"][1]]


def test_what_is_after(at, day):
    async def body(live):
        await put_candles(live, "EUR_USD", "M1", day.head(10))
        got = await candles_after(live, {"EUR_USD": ms(day, 7), "USD_JPY": None})
        return [r["time"] for r in got["EUR_USD"].rows], got["USD_JPY"], await newest_candles(live, ["EUR_USD", "USD_JPY"])
    times, absent, newest = at(body)
    assert times == [ms(day, 8), ms(day, 9)]
    assert absent.rows == [] and absent.revision is None
    assert newest == {"EUR_USD": ms(day, 9), "USD_JPY": None}


def test_windows(at, day):
    async def body(live):
        await put_candles(live, "EUR_USD", "M1", day.head(20))
        a, b = ms(day, 5), ms(day, 15)
        ask = [{"since_ms": a, "until_ms": b}, {"limit": 3}, {"since_ms": a, "limit": 3}, {"until_ms": a, "limit": 2}, {"since_ms": ms(day, 19) + 1}]
        return [(await read_candles(live, "EUR_USD", "M1", **w))["time"].dt.epoch("ms").to_list() for w in ask]
    found = at(body)
    assert found == [[ms(day, i) for i in r] for r in (range(5, 15), range(17, 20), range(5, 8), range(3, 5), ())]


def test_retention_is_in_days_and_zero_keeps_all(at, day):
    now = ms(day, -1)

    async def body(live):
        kept = []
        for days, frame in ((0, day), (1/24, day.tail(1)), (1/24, day.head(5))):
            await put_candles(live, "EUR_USD", "M1", frame, days, now)
            kept.append((await read_candles(live, "EUR_USD"))["time"].dt.epoch("ms").min())
        return kept, await prune_candles(live, "EUR_USD", "M1", 0, now + 100*HOUR), await prune_candles(live, "EUR_USD", "M1", 0.5/24, now)
    kept, none, half = at(body)
    times = day["time"].dt.epoch("ms")
    assert kept == [times[0], times.filter(times >= now - HOUR)[0], times.filter(times >= now - HOUR)[0]]
    assert (none, half) == (0, times.is_between(now - HOUR, now - HOUR//2, closed="left").sum())


def test_a_gate_has_an_end_and_the_index_a_size(at):
    async def body(live):
        for i in (1, 2, 3, 4, 3):
            await put_gate(live, "EUR_USD", i, json.dumps({"ts_ms": i, "n": "late" if i == 3 else ""}), 900, 3)
        ttl = await live.redis.pttl(live.key(gate_key("EUR_USD")))
        before = await gate_history(live, "EUR_USD")
        await put_gate_history(live, "EUR_USD", [(4, '{"ts_ms":4,"n":"new"}'), (5, '{"ts_ms":5}')], 3)
        return ttl, before, await gate_history(live, "EUR_USD"), await gate_history(live, "EUR_USD", 4), await gate_history(live, "EUR_USD", limit=1), await last_gate(live, "EUR_USD")
    ttl, before, after, since, newest, last = at(body)
    assert 890_000 < ttl <= 900_000
    assert [g["ts_ms"] for g in before] == [2, 3, 4] and [g["ts_ms"] for g in after] == [3, 4, 5]
    assert after[1]["n"] == "new" and [g["ts_ms"] for g in since] == [4, 5] and newest == [{"ts_ms": 5}]
    assert last == {"ts_ms": 4, "n": ""}


def test_a_gate_that_is_no_json_is_no_gate(at):
    async def body(live):
        await live.set({gate_key("EUR_USD"): "{half", gate_key("USD_JPY"): "[1]", gate_key("GBP_USD"): '{"admit":false}'})
        await live.redis.zadd(live.key(gate_index_key("EUR_USD")), {"{half": 1})
        return await last_gates(live, ["EUR_USD", "USD_JPY", "GBP_USD", "AUD_USD"]), await gate_history(live, "EUR_USD")
    gates, history = at(body)
    assert gates == {"EUR_USD": None, "USD_JPY": None, "GBP_USD": {"admit": False}, "AUD_USD": None} and history == []


def test_who_waits_is_told(at, day):
    async def body(live):
        heard = []
        async with live.redis.pubsub() as ears:
            await ears.subscribe(live.key("candles"), live.key("gates"))
            await put_candles(live, "EUR_USD", "M1", day.head(2))
            await put_candles(live, "EUR_USD", "M1", day.head(2))
            await put_gate(live, "EUR_USD", 1, "{}", 1, 1)
            while len(heard) < 4 and (m := await ears.get_message(timeout=0.3)) is not None:
                heard.append((m["type"], m["data"]))
        return heard
    assert [d for t, d in at(body) if t == "message"] == ["EUR_USD M1", "EUR_USD"]


def test_small_values(at):
    async def body(live):
        await put_json(live, "risk:nav_snapshot", {"nav": 1.5, "ts_ms": 1})
        await put_json(live, "ops:health", {"overall": "ok"}, 45)
        await live.set({"broken": "{"})
        return [await get_json(live, n) for n in ("risk:nav_snapshot", "ops:health", "broken", "nothing")], await live.redis.pttl(live.key("ops:health")), await live.redis.pttl(live.key("risk:nav_snapshot"))
    values, ends, stays = at(body)
    assert values == [{"nav": 1.5, "ts_ms": 1}, {"overall": "ok"}, None, None]
    assert 40_000 < ends <= 45_000 and stays == -1


def test_nobody_there():
    async def body():
        live = open_live("unix:///tmp/no-such-valkey.sock")
        try:
            await candles_after(live, {"EUR_USD": None})
        finally:
            await live.aclose()
    with pytest.raises(LiveUnavailable):
        asyncio.run(body())


def test_keys_of_two_desks_do_not_meet(valkey_url, key_prefix, day):
    async def body():
        a, b = open_live(valkey_url, key_prefix), open_live(valkey_url, key_prefix + "b:")
        try:
            await put_candles(a, "EUR_USD", "M1", day.head(1))
            return (await read_candles(b, "EUR_USD")).height, await a.redis.exists(a.key(revision_key("EUR_USD")))
        finally:
            await a.aclose()
            await b.aclose()
    assert asyncio.run(body()) == (0, 1)
