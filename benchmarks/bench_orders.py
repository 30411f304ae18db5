"""Intents per second through ledger, desk and venue, and how long an accepted intent takes to reach the venue.

    python benchmarks/bench_orders.py            # 6,000 intents as fast as they go, then 3,000 at a steady pace
    python benchmarks/bench_orders.py --quick    # a tenth of it

PostgreSQL runs with fsync on; the sandbox venue is a process of its own, reached over HTTP; the desk (intake, sender, recorder) is this process.
Each intent goes the whole way: accepted in the ledger, claimed, sent, filled, recorded with its position. Three loads in one run:

one by one   the baseline: each intent is submitted when the one before is filled, one order per transaction, one call at a time
flat out     64 callers, each with its next intent as soon as its last is filled: how many per second go through
steady       intents arrive at random moments at a given rate, whatever becomes of those before: how long each takes to reach the venue

The bar for the rate is held flat out, where every intent queues behind 63 others; the bar for the latency is held at a steady pace, for a desk that
is never asked for more than it can do. The latency flat out is printed too.

Commit to venue: from the event `created`, stamped by the database just before the commit, to the arrival of the request in the sandbox's journal.
"""
import argparse
import asyncio
import random
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

INSTRUMENTS = ("EUR_USD", "GBP_USD", "AUD_USD", "USD_JPY", "USD_CHF", "USD_CAD", "NZD_USD")
TARGET_PER_S, TARGET_P99_MS, STEADY_PER_S = 300, 50, 50.0


def intents(account, n, tag):
    from deskbook.trading.orders import Intent
    return [Intent(account, INSTRUMENTS[i % 7], Decimal(1000 if i // 7 % 2 == 0 else -1000), idempotency_key=f"{tag}-{i}", expires_s=120) for i in range(n)]


async def wide_limits(desk):
    """Limits that nothing here reaches: the benchmark is about the path, not about risk, which is asked all the same."""
    from deskbook.trading.risk import RiskPolicy
    from deskbook.trading.risk_ledger import write_policy
    names = ("max_total_exposure_frac", "max_instrument_exposure_frac", "max_currency_exposure_frac", "max_leverage")
    policy = RiskPolicy(account=desk.account, max_open_positions=100, min_margin_headroom_frac=Decimal(0), max_daily_loss_frac=Decimal(1),
                        max_drawdown_frac=Decimal(1), **dict.fromkeys(names, Decimal(10_000)))
    async with desk.ledger.transaction() as tx:
        await write_policy(tx, policy, "bench", desk.deps.clock() - 60_000)


async def drive(desk, wanted, workers):
    """Each worker submits the next intent and waits until it is filled."""
    queue, states = list(reversed(wanted)), []

    async def work():
        while queue:
            (order,) = await desk.submit(queue.pop())
            states.append((await desk.wait(order.id, 60)).state)
    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(workers)))
    return time.perf_counter() - start, time.process_time() - cpu, states


async def pace(desk, wanted, per_s, seed=1):
    """Submit at random moments, on average `per_s` times a second, without waiting for what was submitted before."""
    chance, states, out = random.Random(seed), [], set()

    async def one(intent):
        (order,) = await desk.submit(intent)
        states.append((await desk.wait(order.id, 60)).state)
    start, cpu = time.perf_counter(), time.process_time()
    at = start
    for intent in wanted:
        at += chance.expovariate(per_s)
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        task = asyncio.create_task(one(intent))
        out.add(task)
        task.add_done_callback(out.discard)
    await asyncio.gather(*out)
    return time.perf_counter() - start, time.process_time() - cpu, states


def offset_ms(sandbox):
    """Venue time minus wall time; the fastest of some answers."""
    def ask():
        t0 = time.time()
        now = sandbox.control.health()["time_ms"]
        t1 = time.time()
        return t1 - t0, now - (t0 + t1) * 500
    return min(ask() for _ in range(50))[1]


async def latencies(desk, sandbox, tag):
    """Commit to arrival, milliseconds, for each order."""
    off = offset_ms(sandbox)
    arrived, page = {}, sandbox.control.journal()
    while page:
        for e in page:
            if e["method"] == "POST" and e["client_id"]:
                arrived.setdefault(e["client_id"], e["at_ms"] - off)
        page = sandbox.control.journal(since=page[-1]["seq"])
    rows = await desk.ledger.rows("""SELECT o.client_order_id AS client, extract(epoch FROM e.recorded_at)*1000 AS at FROM orders o
        JOIN order_events e ON e.order_id = o.id AND e.version = 1 WHERE o.idempotency_key LIKE %s""", (tag + "-%",))
    if lost := [r["client"] for r in rows if r["client"] not in arrived]:
        kinds = await desk.ledger.rows("SELECT state, reason, count(*) AS n FROM orders WHERE client_order_id = ANY(%s) GROUP BY 1, 2", (lost,))
        print("never arrived:", ", ".join(f"{k['n']} {k['state']} {k['reason']}".strip() for k in kinds))
    return sorted(arrived[r["client"]] - float(r["at"]) for r in rows if r["client"] in arrived)


def quantile(xs, q):
    return xs[min(len(xs) - 1, int(q * len(xs)))]


@asynccontextmanager
async def desk_of(home, pg, vk, sandbox, clock=None, **config):
    """A desk that runs, as the daemon runs it, by `clock` or by the system's."""
    from deskbook.core.clock import system_clock
    from deskbook.core.loop import leave_memory_alone
    from deskbook.core.settings import Settings
    from deskbook.stores.live import open_live
    from deskbook.trading.book import ExecutionConfig
    from deskbook.trading.controls import clear
    from deskbook.trading.desk import AccountSpec, open_desk, running
    live = open_live(vk.url)
    spec = AccountSpec("sandbox", "sandbox", sandbox.account, sandbox.token, sandbox.url)
    settings = Settings(home=home, kill_switch_boot="keep")
    async with open_desk("sandbox", settings, ledger_url=pg.url, live=live, spec=spec, config=ExecutionConfig(**config),
                         clock=clock or system_clock) as desk:
        if clock:
            desk.marks.watch = clock
        await clear(desk.kill, "bench", "benchmark")
        await wide_limits(desk)
        async with running(desk):
            assert await desk.ready()
            leave_memory_alone()
            yield desk
    await live.aclose()


@dataclass
class Result:
    per_s: float
    p50_ms: float
    p99_ms: float
    right: bool  # all filled, and venue and ledger agree


async def measure(desk, sandbox, name, n, load):
    """Warm up, run one load, compare with the venue, tell."""
    tag = name.replace(" ", "-")
    await drive(desk, intents("sandbox", 50, f"warm-{tag}"), 8)
    took, cpu, states = await load(desk, intents("sandbox", n, tag))
    found, ms = await desk.reconcile(), await latencies(desk, sandbox, tag)
    r = Result(n / took, quantile(ms, .5), quantile(ms, .99), states.count("filled") == n == len(ms) and found.clean)
    print(f"{name:12} {n:5} intents  {r.per_s:5.0f}/s  commit to venue p50 {r.p50_ms:5.1f} ms  p99 {r.p99_ms:5.1f} ms  filled {states.count('filled')}"
          f"  desk CPU {cpu / n * 1e3:.2f} ms each  reconciled {'clean' if found.clean else found.mismatches}", flush=True)
    return r


async def everything(home, pg, vk, sandbox, args):
    n = args.n or (600 if args.quick else 6000)
    async with desk_of(home, pg, vk, sandbox, batch_max=1, max_in_flight=1) as desk:
        slow = await measure(desk, sandbox, "one by one", max(50, n // 15), lambda d, w: drive(d, w, 1))
    async with desk_of(home, pg, vk, sandbox) as desk:
        fast = await measure(desk, sandbox, "flat out", n, lambda d, w: drive(d, w, args.workers))
        paced = [await measure(desk, sandbox, f"{rate:g}/s steady", n // 2, lambda d, w, r=rate: pace(d, w, r)) for rate in args.rates]
    return slow, fast, paced


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--rates", type=float, nargs="*", default=[3 * STEADY_PER_S, STEADY_PER_S], help="steady loads, intents per second; the bar is held at the last")
    parser.add_argument("--n", type=int)
    args = parser.parse_args()
    from deskbook.core.loop import run
    from deskbook.stores.embedded import start_postgres, start_valkey
    from deskbook.stores.ledger_migrate import migrate
    from deskbook.venues.sandbox.process import sandbox_process
    with tempfile.TemporaryDirectory() as home, start_postgres(temporary=True) as pg, start_valkey(temporary=True, durable=False) as vk:
        migrate(pg.url)
        with sandbox_process(clock="virtual", start="2025-11-05T12:00:00Z") as sandbox:
            slow, fast, paced = run(everything(Path(home), pg, vk, sandbox, args))
            twice = sandbox.control.orders()["duplicates"]
    right = all(r.right for r in (slow, fast, *paced)) and not twice
    met = fast.per_s >= TARGET_PER_S, paced[-1].p99_ms <= TARGET_P99_MS
    print(f"ratio {fast.per_s / slow.per_s:.1f} to one by one; orders at the venue twice: {twice}; bars: {TARGET_PER_S}/s flat out "
          f"{'met' if met[0] else 'MISSED'}, p99 {TARGET_P99_MS} ms at {args.rates[-1]:g}/s {'met' if met[1] else 'MISSED'}")
    raise SystemExit(0 if right and (args.quick or all(met)) else 1)


if __name__ == "__main__":
    main()
