"""A whole day of the desk: how long from a candle's close to an order that the venue filled, and whether the memory stays flat.

    python benchmarks/bench_candle_to_fill.py            # a day: 1,440 closes of seven pairs
    python benchmarks/bench_candle_to_fill.py --quick    # 60 closes

PostgreSQL runs with fsync on; the sandbox venue is a process of its own, reached over HTTP. As in production the workers are processes: streamer and
gate worker in one (`--together`: not), manager and desk in this one; all run their own loops. The venue's clock stands at a candle's close when the streamer asks; its pause of 50 ms after each close is not counted, for it is
waited on purpose. The venue replays a made-up market whose returns persist, and gates have the widest settings, so that almost all of them are admitted
and walk the whole way in the same minute: the worst that seven pairs can ask for. The tickets of one minute are closed before the next; that is not
measured.

one by one   the baseline: one program, pair after pair, each with a manager of its own, as a script would do it
desk         the workers, woken by what the one before has stored

Stages, from the close: gate stored (announced in Valkey), order accepted (committed in the ledger), order filled (answer of the venue in the ledger).
Decisions are committed together with, and just before, the orders they ask for. Memory: resident sets of all workers, second against last hour.
"""
import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]
from bench_manager import PAIRS, manager_of, until
from bench_orders import desk_of, quantile
from persistent_market import persistent_candles

START = "2025-11-05T00:00:00Z"
TARGET_P99_MS, TARGET_GROWTH_MB = 100.0, 10.0
MINUTE_MS, WARM = 60_000, 2880  # WARM: minutes of market before the day
STAGES = ("gate stored", "order accepted", "order filled")


class VenueClock:
    """The venue's time; it runs as the wall does and is moved by hand. It stands in for the desk's measured one, too: that one expects no jumps."""

    offset = None

    def __init__(self, control=None):
        self.control = control
        self.read(control.advance(0)["time_ms"] if control else 0)

    def read(self, ms):
        self.at_ms, self.read_s = ms, time.monotonic()

    def __call__(self):
        return self.at_ms + int((time.monotonic() - self.read_s) * 1000)

    def to(self, ms):
        self.read(self.control.set_clock(ms)["time_ms"])

    now_ms = __call__

    async def measure(self):
        """Nothing to measure."""


class Feed:
    """Streamer and gate worker."""

    def __init__(self, venue, live, home, clock):
        from deskbook.core.settings import Settings
        from deskbook.gates.settings import GateSettings
        from deskbook.gates.worker import GateWorker
        from deskbook.stores.lake import Lake
        from deskbook.venues.streamer import Streamer
        settings = Settings(home=home, hotband_pairs=PAIRS, prometheus_port=0, candle_backfill_minutes=1440)
        self.streamer = Streamer(venue, live, Lake(home / "lake"), settings, clock)
        wide = GateSettings(stride=1, hazard_percentile=0.99, trend_min=1e-9, vol_low_quantile=0.0, vol_high_quantile=1.0, fallback_multiplier=100.0)
        self.gates = GateWorker(live, Lake(home / "lake"), settings, clock, venue="sandbox", gates=wide)

    async def begin(self):
        await self.streamer.poll(30.0)
        await self.gates.round()
        await self.gates.flush()

    async def poll(self, close_ms):
        await self.streamer.poll(10.0)


class FeedProcess:
    """The same as a process of its own, which is told the time on its standard input."""

    def __init__(self, sandbox, valkey_url, home, now_ms):
        told = json.dumps({"url": sandbox.url, "token": sandbox.token, "account": sandbox.account, "valkey": valkey_url, "home": str(home)})
        self.process = subprocess.Popen([sys.executable, __file__, "--feed", told], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.say(now_ms)

    def say(self, ms):
        self.process.stdin.write(f"{ms}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n", "the feed has ended"

    async def poll(self, close_ms):
        await asyncio.to_thread(self.say, close_ms)

    def end(self):
        self.process.stdin.close()
        self.process.wait(30)


async def be_feed(told):
    """What the process does."""
    from deskbook.core.loop import leave_memory_alone
    from deskbook.stores.live import open_live
    from deskbook.venues.oanda import Oanda
    from deskbook.venues.retry import Timing
    clock, live, stop = VenueClock(), open_live(told["valkey"]), asyncio.Event()
    venue = Oanda(told["account"], told["token"], told["url"], timing=Timing(clock=clock))
    feed, loop = Feed(venue, live, Path(told["home"]), clock), None
    while line := await asyncio.to_thread(sys.stdin.readline):
        clock.read(int(line))
        await (feed.poll(int(line)) if loop else feed.begin())
        if loop is None:
            leave_memory_alone()
            loop = asyncio.create_task(feed.gates.run(stop))
            await asyncio.sleep(1.0)
        print("done", flush=True)
    stop.set()
    await loop
    await venue.aclose()
    await live.aclose()


class Street:
    """Feed and desk around one venue."""

    def __init__(self, desk, home, clock):
        self.desk, self.home, self.clock, self.live = desk, home, clock, desk.kill.live
        self.feed = self.own = Feed(desk.venue, self.live, home, clock)
        self.stored = {}  # instrument -> wall time in ms when its newest gate was announced

    @asynccontextmanager
    async def ears(self):
        """Note when each gate is announced."""
        from deskbook.stores.live_state import GATE_CHANNEL
        async with self.live.redis.pubsub() as heard:
            await heard.subscribe(self.live.key(GATE_CHANNEL))

            async def note():
                async for said in heard.listen():
                    if said["type"] == "message":
                        self.stored[said["data"]] = time.time() * 1e3
            task = asyncio.create_task(note())
            yield
            task.cancel()

    async def rows(self, sql, *params):
        return await self.desk.ledger.rows(sql, (self.desk.account, *params))

    async def at_rest(self):
        """Nothing is on its way, and nothing is held."""
        (said,) = await self.rows("""SELECT (SELECT count(*) FROM orders WHERE account = %s AND state NOT IN ('filled', 'cancelled', 'rejected', 'expired')) AS live,
            (SELECT count(*) FROM positions WHERE account = %s AND units <> 0) AS held""", self.desk.account)
        return not said["live"] and not said["held"]

    async def why(self):
        return [dict(r) for r in await self.rows("SELECT instrument, verdict, reasons FROM decisions WHERE account = %s ORDER BY decided_at DESC LIMIT 7")]

    async def minute(self, close_ms, run, act):
        """One close; `act` does what the desk does by itself. Milliseconds of each stage, for every pair whose gate was admitted."""
        self.stored.clear()
        self.clock.to(close_ms)
        closed = time.time() * 1e3
        await self.feed.poll(close_ms)
        await act()

        async def decided():
            """Each pair has its decision, and each entry its order, which has come to its end."""
            (said,) = await self.rows("""SELECT count(DISTINCT d.instrument) AS pairs, count(*) FILTER (WHERE d.verdict = 'enter' AND (o.id IS NULL OR o.state NOT IN
                ('filled', 'cancelled', 'rejected', 'expired'))) AS waiting FROM decisions d LEFT JOIN orders o ON o.decision_id = d.id AND o.kind = 'entry'
                WHERE d.account = %s AND d.run_id = %s AND d.inputs->'gate'->>'asof_ms' = %s""", run, str(close_ms))
            return said["pairs"] == len(PAIRS) and not said["waiting"]
        await until(decided, self.why, 30)
        orders = await self.rows("""SELECT o.instrument, extract(epoch FROM min(e.recorded_at))*1000 AS accepted,
            extract(epoch FROM max(e.recorded_at) FILTER (WHERE e.to_state = 'filled'))*1000 AS filled
            FROM orders o JOIN order_events e ON e.order_id = o.id JOIN decisions d ON d.id = o.decision_id
            WHERE o.account = %s AND o.run_id = %s AND o.kind = 'entry' AND d.inputs->'gate'->>'asof_ms' = %s GROUP BY o.instrument""", run, str(close_ms))
        found = [(self.stored[o["instrument"]] - closed, float(o["accepted"]) - closed, float(o["filled"]) - closed) for o in orders if o["filled"]]
        await act(True)
        await until(self.at_rest, self.why, 30)
        return found


def rss_mb(pid):
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


async def minutes(street, closes, run, act, memory=None, pids=()):
    found = []
    for i, close_ms in enumerate(closes):
        found += await street.minute(close_ms, run, act)
        if memory is not None and i % 20 == 19:
            memory.append(sum(map(rss_mb, pids)))
    return found


async def one_by_one(street, closes):
    managers = {n: manager_of(street.desk, street.home, (n,), "single", street.clock) for n in PAIRS}

    async def act(exits=False):
        for name, manager in managers.items():
            if not exits:
                await street.own.gates.round([name])
            await manager.round()
    return await minutes(street, closes, "single", act)


async def by_desk(street, sandbox, vk, closes, memory, together):
    manager, stop = manager_of(street.desk, street.home, PAIRS, "desk", street.clock), asyncio.Event()
    if not together:
        street.feed = await asyncio.to_thread(FeedProcess, sandbox, vk.url, street.home, street.clock())
    pids = [os.getpid()] if together else [os.getpid(), street.feed.process.pid]
    loops = [asyncio.create_task(worker.run(stop)) for worker in ((street.own.gates, manager) if together else (manager,))]
    await asyncio.sleep(1.0)

    async def act(exits=False):
        if exits:
            manager.wake.set()
    try:
        return await minutes(street, closes, "desk", act, memory, pids)
    finally:
        stop.set()
        await asyncio.gather(*loops)
        if not together:
            street.feed.end()


async def everything(home, pg, vk, sandbox, n, together):
    from deskbook.core.clock import to_ms
    clock = VenueClock(sandbox.control)
    start = to_ms(START)
    clock.to(start)
    closes = [start + (i + 1) * MINUTE_MS for i in range(n + 40)]
    async with desk_of(home, pg, vk, sandbox, clock) as desk:
        desk.marks.keep_s = 0.0  # a second by the wall is a minute here
        await desk.load()
        street = Street(desk, home, clock)
        await street.own.begin()
        await street.own.streamer.save()
        memory = []
        async with street.ears():
            await one_by_one(street, closes[:10])
            slow = await one_by_one(street, closes[10:40])
            fast = await by_desk(street, sandbox, vk, closes[40:], memory, together)
        found = await desk.reconcile()
        return slow, fast, memory, found.clean


def table(name, found):
    print(f"{name:11} {len(found):5} orders", end="")
    for k, stage in enumerate(STAGES):
        ms = sorted(f[k] for f in found)
        print(f"   {stage} p50 {quantile(ms, .5):6.1f} p99 {quantile(ms, .99):6.1f} ms", end="")
    print(flush=True)
    return sorted(f[-1] for f in found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--closes", type=int, help="how many; 1440, quick: 60")
    parser.add_argument("--together", action="store_true", help="all workers in one process, as `deskbook up` runs them")
    parser.add_argument("--feed", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.feed:
        from deskbook.core.loop import run
        return run(be_feed(args.feed))
    n = args.closes or (60 if args.quick else 1440)
    from deskbook.core.clock import to_ms
    from deskbook.core.loop import run
    from deskbook.stores.embedded import start_postgres, start_valkey
    from deskbook.stores.lake import Lake
    from deskbook.stores.ledger_migrate import migrate
    from deskbook.venues.sandbox.process import sandbox_process
    with tempfile.TemporaryDirectory() as home, start_postgres(temporary=True) as pg, start_valkey(temporary=True, durable=False) as vk:
        migrate(pg.url)
        market = Path(home) / "market"
        os.environ["DESKBOOK_LAKE"] = str(market)
        first = to_ms(START) - WARM * MINUTE_MS
        Lake(market).write_candles(persistent_candles(PAIRS, first, WARM + n + 60), "made-up")
        with sandbox_process(clock="virtual", start=first, end=to_ms(START) + (n + 60) * MINUTE_MS, instruments=list(PAIRS), source="lake", venue="made-up") as sandbox:
            slow, fast, memory, right = run(everything(Path(home), pg, vk, sandbox, n, args.together))
            right = right and not sandbox.control.orders()["duplicates"]
    slow, fast = table("one by one", slow), table("desk", fast)
    print(f"{len(fast) / (7 * n):.0%} of the gates were traded; ratio {quantile(slow, .5) / quantile(fast, .5):.1f} at the median, "
          f"{quantile(slow, .99) / quantile(fast, .99):.1f} at p99; venue and ledger agree and nothing is double: {right}")
    hours = len(memory) // 3
    grown = sum(memory[-3:]) / 3 - sum(memory[3:6]) / 3 if hours >= 4 else 0.0
    print(f"memory: {memory[0]:.0f} MB after 20 minutes, {memory[-1]:.0f} MB at the end; from the second to the last of {hours} hours {grown:+.1f} MB")
    met = quantile(fast, .99) <= TARGET_P99_MS, grown <= TARGET_GROWTH_MB
    print(f"bars: close to filled p99 {TARGET_P99_MS:g} ms {'met' if met[0] else 'MISSED'}, growth {TARGET_GROWTH_MB:g} MB {'met' if met[1] else 'MISSED'}")
    raise SystemExit(0 if right and (args.quick or all(met)) else 1)


if __name__ == "__main__":
    main()
