"""SIGKILL at every await of the order path: whatever a process was doing, the next one ends it, and no order is lost or doubled.

The points are found by a recorded run. Points of one uninterrupted step of the event loop find the same world, so its first and its last
stand for it (`points.thinned`); `benchmarks/bench_crash_matrix.py` kills at every one of them, and at every line.
"""
import asyncio
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cases import SCENARIOS, WATCHED, record_points, scenario
from matrix import run_matrix, shuffled
from rig import rig
from zygote import Zygote

MOST = {"submit": 170}  # cases of one scenario in a run of the tests; another choice every day
DEFAULT_MOST = 36
MINUTES = 4


@pytest.mark.slow
@pytest.mark.timeout(60 * MINUTES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_killed_process_is_carried_on(name, ledger, valkey_url, tmp_path):
    async def main(r):
        async with Zygote(["scenarios"], WATCHED) as z:
            one = scenario(r, name)
            await z.warm(one.recover, await one.prepare("warm"))
            seen, began = await record_points(z, one), time.monotonic()
            most = min(MOST.get(name, DEFAULT_MOST), len(seen))
            report = await run_matrix(z, one, shuffled(seen, seed=int(time.time() // 86_400)), at_once=4, enough=most)
            print(f"{report}; {len(seen)} points, {time.monotonic() - began:.0f} s, {report.cpu_s:.0f} CPU-s")
            assert not report.problems, report
            assert report.killed >= most, report
            assert len(seen) >= 20, "the scenario did next to nothing"

    with rig(ledger, valkey_url, tmp_path) as r:
        asyncio.run(main(r))
