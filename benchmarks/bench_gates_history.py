"""Years of one-minute candles rebuilt into gates with a process pool: time and peak memory, beside the plain numpy twin.

    python benchmarks/bench_gates_history.py [--quick] [--workers 2] [--lake FOLDER]

Full size: 7 currency pairs x 5 years, about 13 million simulated candles, a gate every 16 minutes; target under 60 s and under 2 GB on two
cores. The lake is filled first and not timed; with --lake it is kept and used again. --quick: 2 pairs x 2 months.
"""
import argparse
import resource
import tempfile
from pathlib import Path
from time import perf_counter, sleep
from threading import Event, Thread

from deskbook.core.clock import DAY_MS, iso, to_ms
from deskbook.gates.backfill import executor_for, plan_backfill, run_backfill
from deskbook.gates.direction import example_tapes
from deskbook.gates.settings import GateSettings
from deskbook.gates.sound_regime import plain_gates, tape_candles
from deskbook.market.simulated import simulate_candles
from deskbook.stores.lake import Lake

PAIRS = ("AUD_USD", "EUR_USD", "GBP_USD", "NZD_USD", "USD_CAD", "USD_CHF", "USD_JPY")


def fill(lake, pairs, start, end):
    """Simulated candles, a quarter at a time."""
    held = set(lake.inventory()["instrument"]) if lake.partitions("candles") else set()
    for pair in pairs:
        if pair in held: continue
        for a in range(to_ms(start), to_ms(end), 90 * DAY_MS):
            lake.write_candles(simulate_candles([pair], a, min(a + 90 * DAY_MS, to_ms(end))), "simulated")


def warm_up():
    """Imported and compiled, as a running worker is. Long enough that each process of the pool takes one."""
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(folder)
        lake.write_candles(simulate_candles(["EUR_USD"], "2025-11-03", "2025-11-05"), "simulated")
        run_backfill(plan_backfill(lake))
    sleep(1)


def processes():
    """This process and its children, by id."""
    me = Path("/proc/self/task")
    ids = [int(c) for t in me.iterdir() for c in (t / "children").read_text().split()]
    return [int(Path("/proc/self").resolve().name), *ids]


def resident_mb():
    """Resident memory of this process and its children now; shared pages are counted once per process."""
    total = 0
    for pid in processes():
        try: total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError: pass
    return total * resource.getpagesize() / 1e6


class Peak(Thread):
    """Watches `resident_mb` ten times a second."""
    def __init__(self):
        super().__init__(daemon=True)
        self.mb, self.done = 0.0, Event()

    def run(self):
        while not self.done.wait(0.1): self.mb = max(self.mb, resident_mb())


def main(quick, workers, folder):
    pairs, start, end = (PAIRS[:2], "2024-11-01", "2025-01-01") if quick else (PAIRS, "2020-01-01", "2025-01-01")
    lake = Lake(folder)
    began = perf_counter()
    fill(lake, pairs, start, end)
    print(f"lake filled in {perf_counter() - began:.0f} s (not counted)")
    jobs = plan_backfill(lake, pairs, start, end, warmup=0)
    with executor_for(workers) as pool:
        began = perf_counter()
        if pool: list(f.result() for f in [pool.submit(warm_up) for _ in range(workers)])
        started = perf_counter() - began
        peak = Peak()
        peak.start()
        began = perf_counter()
        report = run_backfill(jobs, pool, lambda done, of, r: print(f"  {done}/{of} {r.instrument}: {r.gates:,} gates in {r.seconds:.1f} s", flush=True))
        seconds = perf_counter() - began
        peak.done.set()
        peak.join()
    candles = sum(r.candles for r in report.results)
    began = perf_counter()
    x = tape_candles(example_tapes(1_000)["random walk"])
    twin = plain_gates(x, GateSettings())
    each = (perf_counter() - began) / len(twin)
    print(f"{len(jobs)} pairs, {iso(jobs[0].start_ms)[:10]} to {iso(jobs[0].end_ms)[:10]}: {candles:,} candles, {report.gates:,} gates, {workers} processes")
    print(f"  rebuild          {seconds:8.1f} s   {candles / seconds:,.0f} candles/s   {report.gates / seconds:,.0f} gates/s (lake read and write included)")
    print(f"  plain numpy twin {each * report.gates:8.0f} s   extrapolated from {len(twin)} gates, thresholds and files not included: ratio {each * report.gates / seconds:,.0f} x")
    print(f"  peak memory      {peak.mb:8.0f} MB  all processes together;   workers were ready after {started:.1f} s")
    if not quick: print(f"  target 60 s: {'met' if seconds < 60 else 'MISSED'}; target 2,000 MB: {'met' if peak.mb < 2000 else 'MISSED'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small")
    parser.add_argument("--workers", type=int, default=2, help="processes; 0: in this one")
    parser.add_argument("--lake", help="keep the candles here and use them again")
    args = parser.parse_args()
    if args.lake: main(args.quick, args.workers, args.lake)
    else:
        with tempfile.TemporaryDirectory() as folder: main(args.quick, args.workers, folder)
