"""Intents per second through ledger, desk and venue, and how long an accepted intent takes to reach the venue.

    python benchmarks/bench_orders.py            # 3,000 intents, 64 at a time
    python benchmarks/bench_orders.py --quick    # 600 intents

PostgreSQL runs with fsync on; the sandbox venue is a process of its own, reached over HTTP; the desk (intake, sender, recorder) is this process.
Each intent goes the whole way: accepted in the ledger, claimed, sent, filled, recorded with its position. The baseline in the same run sends the same
intents one by one: each is submitted when the one before is filled, one order per transaction, one call at a time.

Commit to venue: from the event `created`, stamped by the database just before the commit, to the arrival of the request in the sandbox's journal.
"""
import argparse
import asyncio
import tempfile
import time
from decimal import Decimal
from pathlib import Path

INSTRUMENTS = ("EUR_USD", "GBP_USD", "AUD_USD", "USD_JPY", "USD_CHF", "USD_CAD", "NZD_USD")
TARGET_PER_S, TARGET_P99_MS = 300, 50


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
        print("never arrived:", await desk.ledger.rows("SELECT client_order_id, state, reason FROM orders WHERE client_order_id = ANY(%s)", (lost,)))
    return sorted(arrived[r["client"]] - float(r["at"]) for r in rows if r["client"] in arrived)


def quantile(xs, q):
    return xs[min(len(xs) - 1, int(q * len(xs)))]


async def one(home, pg, vk, sandbox, name, n, workers, tag, **config):
    from deskbook.core.settings import Settings
    from deskbook.stores.live import open_live
    from deskbook.trading.book import ExecutionConfig
    from deskbook.trading.controls import clear
    from deskbook.trading.desk import AccountSpec, open_desk, running
    live = open_live(vk.url)
    spec = AccountSpec("sandbox", "sandbox", sandbox.account, sandbox.token, sandbox.url)
    async with open_desk("sandbox", Settings(home=home, kill_switch_boot="keep"), ledger_url=pg.url, live=live, spec=spec, config=ExecutionConfig(**config)) as desk:
        await clear(desk.kill, "bench", "benchmark")
        await wide_limits(desk)
        async with running(desk):
            assert await desk.ready()
            await drive(desk, intents("sandbox", 50, f"warm-{tag}"), workers)
            took, cpu, states = await drive(desk, intents("sandbox", n, tag), workers)
            found = await desk.reconcile()
        ms = await latencies(desk, sandbox, tag)
    await live.aclose()
    filled = states.count("filled")
    rate = n / took
    print(f"{name:12} {n:5} intents  {rate:7.0f}/s  commit to venue p50 {quantile(ms, .5):6.1f} ms  p99 {quantile(ms, .99):6.1f} ms"
          f"  filled {filled}  desk CPU {cpu / n * 1e3:.2f} ms each  reconciled {'clean' if found.clean else found.mismatches}")
    return rate, quantile(ms, .99), filled == n and found.clean


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--n", type=int)
    args = parser.parse_args()
    from deskbook.stores.embedded import start_postgres, start_valkey
    from deskbook.stores.ledger_migrate import migrate
    from deskbook.venues.sandbox.process import sandbox_process
    n = args.n or (600 if args.quick else 3000)
    with tempfile.TemporaryDirectory() as home, start_postgres(temporary=True) as pg, start_valkey(temporary=True, durable=False) as vk:
        migrate(pg.url)
        with sandbox_process(clock="virtual", start="2025-11-05T12:00:00Z") as sandbox:
            slow, _, ok1 = asyncio.run(one(Path(home), pg, vk, sandbox, "one by one", max(100, n // 15), 1, "slow", batch_max=1, max_in_flight=1))
            fast, p99, ok2 = asyncio.run(one(Path(home), pg, vk, sandbox, "the desk", n, args.workers, "fast"))
            twice = sandbox.control.orders()["duplicates"]
    print(f"ratio {fast / slow:.1f} to one by one; orders at the venue twice: {twice}; "
          f"bars: {TARGET_PER_S}/s {'met' if fast >= TARGET_PER_S else 'MISSED'}, p99 {TARGET_P99_MS} ms {'met' if p99 <= TARGET_P99_MS else 'MISSED'}")
    raise SystemExit(0 if ok1 and ok2 and not twice and (args.quick or (fast >= TARGET_PER_S and p99 <= TARGET_P99_MS)) else 1)


if __name__ == "__main__":
    main()
