"""Candle put into Valkey -> gate stored in Valkey: p50 and p99 over seven pairs, against the plain way in the same run.

The plain way is what the older worker did: read the last candles of a pair from Valkey as a whole, build the gates of that window, store the last one.
It forgets hazards and repetitions between two candles, so it answers less; it is given the shortest history that has a gate of the same structure.

Run: python benchmarks/bench_gate_worker.py [--quick] [--candles 1000] [--baseline 60]
"""
import argparse
import asyncio
import json
import tempfile
import time

import numpy as np
import polars as pl

from deskbook.core.loop import run
from deskbook.core.settings import MAJORS, Settings
from deskbook.gates.engine import build_gates
from deskbook.gates.live import put_gate
from deskbook.gates.payload import frame_payloads
from deskbook.gates.settings import GateSettings
from deskbook.gates.worker import GateWorker
from deskbook.market.simulated import simulate_candles
from deskbook.stores.embedded import start_valkey
from deskbook.stores.lake import Lake
from deskbook.stores.live import open_live
from deskbook.stores.live_state import GATE_CHANNEL, put_candles, read_candles

WARM = 2500  # candles of each pair that are there before the clock runs
LOOKBACK = 240  # candles that the plain way reads


def spread(ms):
    return {"p50_ms": round(float(np.percentile(ms, 50)), 2), "p99_ms": round(float(np.percentile(ms, 99)), 2), "max_ms": round(float(max(ms)), 2), "n": len(ms)}


async def ours(live, lake, parts, candles):
    """The running worker in this loop: from just before a candle is put until its gate is announced."""
    settings = Settings(hotband_pairs=",".join(MAJORS), prometheus_port=0)
    worker, stop, took, began = GateWorker(live, lake, settings), asyncio.Event(), [], {}
    for name in MAJORS:
        await put_candles(live, name, "M1", parts[name].head(WARM))
    task = asyncio.create_task(worker.run(stop))
    async with live.redis.pubsub() as ears:
        await ears.subscribe(live.key(GATE_CHANNEL))
        while not all(p.last for p in worker.pairs.values()):
            await asyncio.sleep(0.05)
        await worker.flush()
        while await ears.get_message(timeout=0.3):
            pass
        for i in range(WARM, WARM + candles):
            async def put(name, i=i):
                began[name] = time.perf_counter()
                await put_candles(live, name, "M1", parts[name].slice(i, 1))
            puts = asyncio.gather(*map(put, MAJORS))
            left = len(MAJORS)
            while left:
                said = await ears.get_message(ignore_subscribe_messages=True, timeout=5)
                if said:
                    took.append((time.perf_counter() - began[said["data"]])*1000)
                    left -= 1
            await puts
    stop.set()
    await task
    return took


async def plain(live, parts, candles):
    """Read everything, build everything, keep the last: one pair after another, as it was."""
    took = []
    for i in range(WARM, WARM + candles):
        began = time.perf_counter()
        for name in MAJORS:
            await put_candles(live, name, "M1", parts[name].slice(i, 1))
        for name in MAJORS:
            window = await read_candles(live, name, limit=LOOKBACK)
            gate = frame_payloads(build_gates(window, GateSettings(stride=1)).tail(1))[0]
            await put_gate(live, gate, 900, 5000)
            took.append((time.perf_counter() - began)*1000)
    return took


async def both(url, folder, candles, baseline):
    market = simulate_candles(list(MAJORS), "2025-10-06T00:00:00Z", "2025-10-09T20:00:00Z")
    parts = {n: market.filter(pl.col("instrument") == n) for n in MAJORS}
    a, b = open_live(url, "ours:", 5), open_live(url, "plain:", 5)
    for name in MAJORS:
        await put_candles(b, name, "M1", parts[name].head(WARM))
    slow = await plain(b, parts, baseline)
    quick = await ours(a, Lake(folder), parts, candles)
    await a.aclose()
    await b.aclose()
    return {"worker": spread(quick), "plain": spread(slow), "ratio_p50": round(float(np.median(slow)/np.median(quick)), 1)}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--candles", type=int, help="candles of each pair; 1000, quick: 100")
    p.add_argument("--baseline", type=int, help="candles of each pair for the plain way; 60, quick: 10")
    p.add_argument("--quick", action="store_true", help="a tenth of it")
    o = p.parse_args()
    candles, baseline = o.candles or (100 if o.quick else 1000), o.baseline or (10 if o.quick else 60)
    with start_valkey(temporary=True, durable=False) as s, tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(both(s.url, folder, candles, baseline)), indent=2))


if __name__ == "__main__":
    main()
