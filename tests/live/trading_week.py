"""Simulated trading: a virtual clock stepped from candle close to candle close, every worker, and everything that fails on the way.

The venue is the sandbox in a process of its own, PostgreSQL and Valkey belong to the test and are killed and revived. The sender runs as it does in a
daemon. Streamer, gate worker and manager are real as well; their rounds are called when a candle has closed, where their own loops would wait for the
wall clock. A kill drops a worker in the middle of a round with all it remembers, and puts a new one in its place.

A step is a minute while the session is open and near its ends, ten minutes in the rest of the week, and an hour while the market is closed.
"""
import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import cycle, groupby

import httpx
from deskbook.app.workers import Parts
from deskbook.core.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso, to_ms
from deskbook.core.errors import DeskbookError
from deskbook.core.settings import Settings
from deskbook.gates.worker import GateWorker
from deskbook.market.calendar import calendar_for
from deskbook.ops.health import hazard_fallback
from deskbook.stores.lake import Lake
from deskbook.stores.ledger import LedgerDown
from deskbook.stores.live import LiveUnavailable, open_live
from deskbook.stores.live_state import (
    DESK_LOOP,
    NAV_SNAPSHOT,
    POSITION_COUNT,
    RISK_SUMMARY,
    candles_key,
    engine_key,
    gate_index_key,
    gate_key,
    last_gates,
    revision_key,
)
from deskbook.trading.book import NOT_NOW, ExecutionConfig
from deskbook.trading.controls import KillSwitch, clear, engage, kill_state
from deskbook.trading.desk import AccountSpec, open_desk
from deskbook.trading.manager import Manager
from deskbook.trading.profile import load_profile
from deskbook.trading.risk import RiskPolicy
from deskbook.trading.risk_ledger import write_policy
from deskbook.venues.errors import VenueError
from deskbook.venues.model import Gap, Heartbeat, Reconnected, VenueFill
from deskbook.venues.oanda_streams import StreamPolicy
from deskbook.venues.streamer import Streamer, lake_venue

PAIRS = ("EUR_USD", "USD_JPY")
ACCOUNT = "week"
SESSION = (7, 14)  # UTC hours
PROFILE = "global: {session: {start: '07:00', end: '14:00', exit_at_close: true}, exit: {max_hold_minutes: 1.9}}\n"
MAX_GATE_AGE_S = 180
QUICK = ExecutionConfig(lease_ttl_s=2.0, send_window_s=2.0, lease_margin_s=0.2, request_timeout_s=1.2, poll_s=0.05, fills_every_s=0.2, reconcile_every_s=20,
                        equity_every_s=1.0, lookup_pauses_s=(0.05, 0.1, 0.2), absence_grace_s=0.8, block_after_s=30, not_sent_pauses_s=(0.05, 0.1, 0.3), drain_s=5)
DOWN = (*NOT_NOW, VenueError, LiveUnavailable)
NOT_ENDED = "state NOT IN ('filled', 'cancelled', 'rejected', 'expired')"

# What the venue does wrong: kind, route, share of the requests, parameters. Each holds for some minutes.
FAULTS = [("candles_duplicated", "", 1.0, {"rate": 0.5}), ("candles_unordered", "", 1.0, {"rate": 0.5}), ("candles_revised", "", 1.0, {"age_s": 90.0, "bp": 3.0}),
          ("candles_late_close", "", 1.0, {"delay_s": 20.0}), ("candles_missing", "", 1.0, {"rate": 0.2}), ("http_error", "candles", 0.3, {"status": 503}),
          ("transactions_duplicated", "", 0.5, {})]
ORDER_FAULTS = [("drop_before_accept", "orders.create", 0.3, {}), ("accept_then_drop", "orders.create", 0.3, {}), ("accept_late", "orders.create", 0.2, {"delay_s": 0.3}),
                ("reject", "orders.create", 0.3, {}), ("late_visibility", "orders.create", 0.3, {"delay_s": 0.4}), ("stale_prices", "", 1.0, {})]
WORKERS = ("streamer", "gates", "manager", "process")

# How often in an hour: at any time, and while the session is open. A trap waits for a gate that would be traded and strikes before the manager sees it,
# or (unsent) between its decision and the sending. Traps and faults take turns.
ANY_HOUR = {"fault": 1.0, "cut": 1.0, "postgres": 0.1, "valkey": 0.08, "flush": 0.05}
SESSION_HOUR = {"fault": 1.0, "order_fault": 1.0, "trap": 0.7}
TRAPS = ("stop", "sleep", "read_only", "stale_prices", "stop_unsent", "read_only_unsent")


class VenueClock:
    """The venue's time: it runs as the wall does, and jumps when the test moves it."""

    def __init__(self, control):
        self.control = control
        self._read(control.advance(0))

    def _read(self, said):
        self.at_ms, self.read_s = said["time_ms"], time.monotonic()

    def __call__(self):
        return self.at_ms + int((time.monotonic() - self.read_s) * 1000)

    def to(self, ms):
        """Forward, never back."""
        if ms > self():
            self._read(self.control.set_clock(ms))

    # as a `ClockWatch`: the desk's clock is the venue's, there is nothing to measure
    offset = None

    def now_ms(self):
        return self()

    async def measure(self):
        """Nothing is done."""


@dataclass
class Window:
    """A time in which nothing may be sent."""
    why: str
    from_ms: int
    until_ms: int | None = None  # None: it goes on


@dataclass
class Story:
    """What happened, as the test saw it."""
    happened: Counter = field(default_factory=Counter)
    kills: dict[int, str] = field(default_factory=dict)  # hour since 1970 -> a worker that was killed in it
    windows: list[Window] = field(default_factory=list)
    gates: dict[tuple[str, int], list[dict]] = field(default_factory=dict)  # every gate that was the last one when the manager looked, by pair and as-of
    creates: list[dict] = field(default_factory=list)  # requests for new orders that reached the venue
    seen: int = 0  # of the venue's journal
    untrue: list[tuple[int, int]] = field(default_factory=list)  # when the venue told candles that it later told otherwise, until the streamer had looked again
    told: list[list[str]] = field(default_factory=list)  # fills that the transaction stream told, one list per follower
    slowest_s: float = 0.0  # that orders took to settle
    wrong: list[str] = field(default_factory=list)  # found on the way
    spent_s: Counter = field(default_factory=Counter)  # wall time, by part of a step


class Week:
    """The world and its operator."""

    def __init__(self, sandbox, postgres, valkey, home, seed=0, pairs=PAIRS, often=None):
        self.sandbox, self.postgres, self.valkey, self.home, self.rng, self.pairs = sandbox, postgres, valkey, home, random.Random(seed), pairs
        self.any_hour, self.session_hour = (ANY_HOUR, SESSION_HOUR) if often is None else often
        self.clock, self.story = VenueClock(sandbox.control), Story()
        self.lake, self.profile, self.read_only = Lake(home / "lake"), load_profile(PROFILE), False
        self.down = {}  # servers that are dead and when they come back
        self.held = self.read_only_until = 0  # when the operator clears the kill switch, and allows writing
        self.faults: dict[str, int] = {}  # name -> until, epoch ms
        self.late = self.cared = self.saved = self.hour = 0
        self.traps = []  # what strikes when a gate would be traded
        self.turns = {"trap": cycle(TRAPS), "fault": cycle(FAULTS), "order_fault": cycle(ORDER_FAULTS)}
        self.cursor = ""  # of the transaction stream
        self.settings = Settings(home=home, kill_switch_boot="keep", hotband_pairs=pairs, prometheus_port=0, candle_backfill_minutes=4320, gate_retention=1500,
                                 gate_ttl_s=3600, default_hold_s=600, log_to_file=False, max_positions_per_pair=2, max_total_positions=7, nav_risk_frac="0.004",
                                 entry_cooldown_s=45)
        self.live = open_live(valkey.url, "w:", timeout_s=5)
        self.kill = KillSwitch(home / "kill_switch.json", self.live)

    # -- the desk
    async def boot(self):
        """A desk process as it starts: nothing remembered."""
        spec = AccountSpec(ACCOUNT, "sandbox", self.sandbox.account, self.sandbox.token, self.sandbox.url, absence_grace_s=0.8)
        self.stack = contextlib.AsyncExitStack()
        opened = open_desk(ACCOUNT, self.settings, ledger_url=self.postgres.url, live=self.live, spec=spec, config=QUICK, read_only=self.read_only, clock=self.clock)
        self.desk = await self.stack.enter_async_context(opened)
        object.__setattr__(self.desk.guard, "environment", "practice")  # READ_ONLY counts there; the adapter itself talks to no practice account but OANDA's
        self.desk.marks.keep_s, self.desk.marks.watch = 0.0, self.clock
        self.desk.venue.stream = StreamPolicy(silence_s=20, floor_s=0.05, most=10**6, settled_s=0)  # hours pass in seconds here
        self.stop = asyncio.Event()
        self.sender = asyncio.create_task(self.desk.run(self.stop))
        self.follower = asyncio.create_task(self.follow())
        for worker in ("streamer", "gates", "manager"):
            self.start(worker)

    def start(self, worker):
        """Put a new one in the place of a worker."""
        parts = Parts(self.settings, self.desk, self.live, self.lake, self.clock)
        if worker == "streamer":
            self.streamer = Streamer(self.desk.venue, self.live, self.lake, self.settings, self.clock)
        elif worker == "gates":
            self.gates = GateWorker(self.live, self.lake, self.settings, self.clock, hazard_fallback(parts), lake_venue(self.desk.venue))
        else:
            self.manager = Manager(self.desk, self.live, self.profile, self.settings, self.clock)

    async def follow(self):
        """Somebody who listens to the venue's transaction stream, from where the one before him had come to."""
        told = []
        self.story.told.append(told)
        async for e in self.desk.venue.watch_fills(self.cursor):
            if isinstance(e, Heartbeat):
                self.cursor = e.cursor
            elif isinstance(e, VenueFill):
                told.append(e.fill_id)
            elif isinstance(e, Gap | Reconnected):
                self.story.happened[f"stream {type(e).__name__}"] += 1

    async def die(self):
        """The desk process is killed. Its lease would run out; that is not waited for."""
        for task in (self.sender, self.follower):
            task.cancel()
        await asyncio.wait([self.sender, self.follower])
        await self.drop("streamer")
        await self.drop("gates")
        await self.stack.aclose()

    async def drop(self, worker):
        """What a dead worker had under way ends with it."""
        if worker == "streamer":
            tasks = [f.task for f in self.streamer.feeds.values() if f.task]
        else:
            tasks = [p.fill for p in self.gates.pairs.values() if p.fill] if worker == "gates" else []
        for t in tasks:
            t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def reboot(self, read_only=None):
        """Kill the whole process and start it anew, with READ_ONLY as it is or as said."""
        await self.die()
        if read_only is not None:
            self.read_only = read_only
            self.shut("read-only") if read_only else self.open("read-only")
        while True:
            try:
                async with await self.connect() as db:
                    await db.execute("UPDATE leases SET expires_at = clock_timestamp() WHERE name = %s", (f"sender:{ACCOUNT}",))
                await self.boot()
                return await self.ready()
            except DOWN:
                await self.stack.aclose()
                await self.revive(desk=False)

    async def connect(self):
        import psycopg

        try:
            return await psycopg.AsyncConnection.connect(self.postgres.url, autocommit=True)
        except psycopg.OperationalError as e:
            raise LedgerDown(str(e), "") from None

    async def ready(self):
        """The sender has its lease and has reconciled."""
        assert await self.desk.ready(30), f"the sender did not become ready; it is {self.sender}"

    async def wide(self):
        """Limits that a week does not reach, so that gates, sessions and controls decide."""
        fracs = ("max_total_exposure_frac", "max_instrument_exposure_frac", "max_currency_exposure_frac", "max_leverage")
        named = {"max_daily_loss_frac": Decimal(1), "max_drawdown_frac": Decimal(1), "min_margin_headroom_frac": Decimal(0), "max_open_positions": 100}
        async with self.desk.ledger.transaction() as tx:
            await write_policy(tx, RiskPolicy(account=ACCOUNT, **dict.fromkeys(fracs, Decimal(1000)), **named), "test", int(time.time() * 1000) - 1000)

    # -- one candle
    async def step(self, close_ms, strike=None):
        """A candle closes, and everybody does what is to be done; `strike` is a worker that dies on the way."""
        with self.timed("venue"):
            self.clock.to(close_ms + 1_200)
        with self.timed("streamer"):
            await self.serve("streamer", self.streamer.poll(3.0), strike)
            if self.late > close_ms:
                self.clock.to(close_ms + 25_000)
                await self.serve("streamer", self.streamer.poll(3.0), None)
        with self.timed("gates"):
            await self.serve("gates", self.gates.round(), strike)
        with self.timed("traps"):
            unsent = await self.trap(close_ms)
        with self.timed("look"):
            await self.look()
        with self.timed("manager"):
            rows = await self.serve("manager", self.manager.round(), strike) or []
        self.story.happened.update(f"decided {r.verdict}" for r in rows if r.new)
        with self.timed("restarts"):
            if unsent:
                await self.too_late(unsent)
            elif strike == "process":
                await self.reboot()
                self.killed("process")
        with self.timed("settle"):
            if any(r.action for r in rows) or strike or unsent:
                await self.settle()

    @contextlib.contextmanager
    def timed(self, part):
        began = time.monotonic()
        yield
        self.story.spent_s[part] += time.monotonic() - began

    async def serve(self, worker, work, strike):
        """Do a round. A worker that is struck dies somewhere in it."""
        task = asyncio.ensure_future(work)
        if strike == worker or (strike == "process" and worker == "manager"):
            await asyncio.wait([task], timeout=self.rng.choice((0.0, 0.002, 0.005, 0.01, 0.02, 0.05)))
            task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                self.story.happened["killed in a round"] += 1
            if strike == worker:
                await self.drop(worker)
                self.start(worker)
                self.killed(worker)
            return None
        try:
            return await task
        except DOWN as e:
            self.story.happened[f"{worker} found {type(e).__name__}"] += 1

    def killed(self, worker):
        self.story.happened[f"{worker} killed"] += 1
        self.story.kills[self.hour] = worker

    async def look(self):
        """What the manager is about to see, and whether somebody else has stopped the desk."""
        with contextlib.suppress(LiveUnavailable):
            for name, gate in (await last_gates(self.live, self.pairs)).items():
                if gate:
                    known = self.story.gates.setdefault((name, gate["asof_ms"]), [])
                    if gate not in known:
                        known.append(gate)
        state = await kill_state(self.kill)
        why = "kill switch unreadable" if state.reason == "kill_switch_unreadable" else "kill switch"
        if not state.engaged:
            self.open("kill switch")
        elif not self.window(why):
            self.story.happened[f"{why}, found"] += 1
            self.shut(why)

    async def settle(self, most_s=8.0):
        """Until nothing is on its way, or the ledger is dead."""
        began = time.monotonic()
        while time.monotonic() - began < most_s:
            try:
                left = await self.desk.ledger.rows(f"""SELECT state, reason, instrument, sent_at FROM orders WHERE account = %s AND {NOT_ENDED}
                    UNION ALL SELECT 'outbox', topic, '', available_at FROM outbox WHERE account = %s AND done_at IS NULL""", (ACCOUNT, ACCOUNT))
            except DOWN:
                if self.down:
                    return
                await asyncio.sleep(0.05)
                continue
            if not left:
                break
            await asyncio.sleep(0.01)
        else:
            self.story.wrong.append(f"{iso(self.clock())}: not settled: {[dict(r) for r in left]}")
        self.story.slowest_s = max(self.story.slowest_s, time.monotonic() - began)

    # -- what goes wrong
    def window(self, why):
        return next((w for w in self.story.windows if w.why == why and w.until_ms is None), None)

    def shut(self, why):
        if not self.window(why):
            self.story.windows.append(Window(why, self.clock()))

    def open(self, why):
        if w := self.window(why):
            w.until_ms = self.clock()

    async def trap(self, now_ms):
        """When the manager is about to trade: something happens first. Returns what shall happen between its decision and the sending."""
        if not self.traps or self.down or self.read_only or self.window("kill switch") or not in_session(self.clock()):
            return None
        flat = [n for n in self.pairs if n not in self.manager.stacks]
        gates = [g for g in (await last_gates(self.live, flat)).values() if g and g["admit"] and g["direction"] in ("BUY", "SELL")]
        if not any(self.clock() - g["asof_ms"] < 60_000 for g in gates):
            return None
        self.story.happened[what := self.traps.pop(0)] += 1
        if what == "stop":
            await self.stop_desk(self.rng.randrange(2, 6))
        elif what == "read_only":
            self.read_only_until = now_ms + self.rng.randrange(3, 8) * MINUTE_MS
            await self.reboot(read_only=True)
        elif what == "sleep":  # of the machine
            self.clock.to(now_ms + (MAX_GATE_AGE_S + 30) * 1000)
        elif what == "stale_prices":
            self.fault(now_ms, 10, ("stale_prices", "", 1.0, {}))
        else:
            self.sender.cancel()  # it is dead when the manager submits
            await asyncio.wait([self.sender])
            return what
        return None

    async def too_late(self, what):
        """The orders stand in the ledger, unsent, and the desk is stopped or starts again read-only."""
        if what == "stop_unsent":
            await self.stop_desk(2)
        else:
            self.read_only_until = self.clock() + 2 * MINUTE_MS
        await self.reboot(read_only=self.read_only or what == "read_only_unsent")
        self.killed("process")

    async def stop_desk(self, minutes):
        """An operator engages the kill switch, and clears it later."""
        await engage(self.kill, "anna", "drill")
        self.shut("kill switch")
        self.held = self.clock() + minutes * MINUTE_MS

    async def may_clear(self):
        """The operator clears what is not to be held."""
        if self.down or self.held > self.clock() or not (await kill_state(self.kill)).engaged:
            return
        self.open("kill switch")
        with contextlib.suppress(DeskbookError):
            await clear(self.kill, "anna", "looked at it")

    def fault(self, now_ms, minutes, which):
        """One more thing is wrong at the venue for a while."""
        kind, route, rate, params = which
        self.faults[self.sandbox.control.add_fault(kind, route, {"rate": rate} if rate < 1 else {}, **params)] = now_ms + minutes * MINUTE_MS
        if kind == "candles_late_close":
            self.late = now_ms + minutes * MINUTE_MS
        if kind in ("candles_missing", "candles_revised"):
            self.story.untrue.append((now_ms - 2 * MINUTE_MS, now_ms + (minutes + 30) * MINUTE_MS))
        self.story.happened[f"fault {kind}"] += 1

    def heal(self, now_ms):
        for name in [n for n, until in self.faults.items() if until <= now_ms]:
            self.sandbox.control.clear_faults(name)
            del self.faults[name]

    def kill_server(self, name, now_ms, minutes):
        os.kill(getattr(self, name).pid, signal.SIGKILL)
        self.down[name] = now_ms + minutes * MINUTE_MS
        self.story.happened[f"{name} killed"] += 1

    async def revive(self, now_ms=None, desk=True):
        """Start dead servers again whose time has come; `desk`: there is one, and it finds back."""
        for name in [n for n, at in self.down.items() if now_ms is None or at <= now_ms]:
            if name == "valkey":
                self.open("kill switch unreadable")
            await asyncio.to_thread(getattr(self, name).revive)
            del self.down[name]
            if desk:
                await self.ready()

    async def collect(self):
        """Requests for new orders, from the venue's own journal."""
        entries = self.sandbox.control.journal(self.story.seen, "orders.create")
        if entries:
            self.story.seen = entries[-1]["seq"]
        self.story.creates += entries

    # -- the whole
    async def begin(self):
        await self.boot()
        await self.wide()
        await clear(self.kill, "anna", "the week begins")
        await self.ready()
        await self.streamer.poll()
        await self.gates.round()
        await self.gates.flush()

    async def run(self, start_ms, end_ms, each_day=None):
        """From the first close to the last; `each_day` is awaited at midnight, when all is well and at rest."""
        for hour, group in groupby(closes(start_ms, end_ms, self.pairs[0]), lambda c: (c - 1) // HOUR_MS):
            times, self.hour = [*group], hour
            plan = self.plan(times)
            for close in times:
                await self.minute(close, plan.get(close, ()))
            if (hour + 1) % 24 == 0 and times[-1] < end_ms:
                await self.rest()
                if each_day:
                    await each_day()
        await self.end()

    async def minute(self, close, plan):
        """One step with all that is planned for it."""
        with self.timed("operator"):
            self.heal(close)
            await self.revive(close)
            if self.read_only and close >= self.read_only_until:
                await self.reboot(read_only=False)
            strike = None
            for what in plan:
                strike = await self.happen(what, close) or strike
        await self.step(close, strike)
        if close - self.cared >= 5 * MINUTE_MS:
            with self.timed("care"):
                await self.care(close)

    def plan(self, times):
        """What happens in this hour, by step: some worker is killed in every one."""
        r, plan = self.rng, {}
        doing = [r.choice(WORKERS)] if self.any_hour else []
        often = [*self.any_hour.items(), *(self.session_hour.items() if in_session(times[0]) else ())]
        doing += [what for what, odds in often if r.random() < odds]
        for what in doing:
            plan.setdefault(r.choice(times), []).append(what)
        return plan

    async def happen(self, what, now_ms):
        """A thing of the plan; a worker's name is returned."""
        if what in WORKERS:
            return what
        if what == "trap":
            self.traps.append(next(self.turns[what]))
        elif what in ("fault", "order_fault"):
            self.fault(now_ms, self.rng.randrange(2, 12), next(self.turns[what]))
        elif what == "cut":
            self.story.happened["streams cut"] += self.sandbox.control.cut_streams()
        elif what in ("postgres", "valkey") and not self.down:
            self.kill_server(what, now_ms, self.rng.randrange(1, 4))
        elif what == "flush" and "valkey" not in self.down:
            await self.live.redis.flushall()
            self.story.happened["Valkey flushed"] += 1
        return None

    async def care(self, now_ms):
        """What the workers' own loops do by the wall clock, and the operator from time to time."""
        self.cared = now_ms
        await self.may_clear()
        await self.collect()
        if now_ms - self.saved >= 10 * MINUTE_MS:
            self.saved = now_ms
            self.look_deep()
            await self.streamer.save()
            with contextlib.suppress(*DOWN):
                for p in self.gates.pairs.values():
                    await self.gates.save(p)

    def look_deep(self):
        """Ten minutes have passed for the streamer: it looks further back."""
        for f in self.streamer.feeds.values():
            f.deep_s = -1e9

    async def rest(self):
        """Nothing is wrong at the venue any more, the servers live, every candle and every order has come home."""
        self.sandbox.control.clear_faults()
        self.faults.clear()
        self.late = 0
        await self.revive()
        for _ in range(2):
            self.look_deep()
            self.clock.to(self.clock() + 1000)
            await self.streamer.poll(5.0)
            await self.gates.round()
        await self.gates.flush()
        for p in self.gates.pairs.values():
            await self.gates.save(p)
        await self.streamer.save()
        await self.ready()
        await self.settle(30)
        await self.manager.round()
        await self.settle(30)
        await self.collect()
        self.story.wrong += [f"{iso(self.clock())}: nobody has written {key}" for key in await self.missing()]

    async def missing(self):
        """Keys that Valkey must hold, whatever it has lost before."""
        of_pairs = [key(p) for p in self.pairs for key in (candles_key, revision_key, gate_key, gate_index_key, engine_key)]
        keys = [*of_pairs, NAV_SNAPSHOT, RISK_SUMMARY, POSITION_COUNT, DESK_LOOP, self.kill.key]
        return [k for k in keys if not await self.live.redis.exists(self.live.key(k))]

    async def end(self):
        """The last rest."""
        await self.rest()
        if self.read_only:
            await self.reboot(read_only=False)
        self.held = 0
        await self.may_clear()
        self.open("kill switch")
        await self.settle(30)
        await self.collect()
        for _ in range(100):  # the follower has heard of the last fill
            if self.told() >= self.filled():
                break
            await asyncio.sleep(0.05)
        self.mismatches = [str(m) for m in (await self.desk.reconcile()).mismatches]

    async def aclose(self):
        if hasattr(self, "desk"):
            self.stop.set()
            self.follower.cancel()
            await asyncio.wait([self.sender, self.follower], timeout=15)
            await self.stack.aclose()
        await self.live.aclose()

    # -- what the venue says
    def transactions(self):
        """All of the account's, page by page."""
        found, headers = [], {"Authorization": f"Bearer {self.sandbox.token}"}
        with httpx.Client(base_url=f"{self.sandbox.url}/v3/accounts/{self.sandbox.account}", headers=headers, trust_env=False, timeout=30) as http:
            while page := http.get("/transactions/sinceid", params={"id": found[-1]["id"] if found else "1"}).json()["transactions"]:
                found += page
        return found

    def filled(self):
        return {t["id"] for t in self.transactions() if t["type"] == "ORDER_FILL"}

    def told(self):
        return {fill for told in self.story.told for fill in told}


def closes(start_ms, end_ms, pair):
    """When the clock stops: at every close near the session, each ten minutes while the market is open, each hour while it is not."""
    times = range(start_ms, end_ms, MINUTE_MS)
    for opened, is_open in zip(times, calendar_for(pair).is_open(list(times)), strict=True):
        close = opened + MINUTE_MS
        every = 60 if not is_open else 1 if in_session(close - 10 * MINUTE_MS) or in_session(close + 10 * MINUTE_MS) else 10
        if close % (every * MINUTE_MS) == 0:
            yield close


def in_session(ms):
    """Of the profile above: its hours, and the FX week from Sunday 22:00 to Friday 21:00."""
    day, at = (ms // DAY_MS + 3) % 7, ms % DAY_MS  # 0: Monday
    week = day < 4 or (day == 4 and at < 21 * HOUR_MS) or (day == 6 and at >= 22 * HOUR_MS)
    return week and SESSION[0] * HOUR_MS <= at < SESSION[1] * HOUR_MS


__all__ = ["ACCOUNT", "FAULTS", "MAX_GATE_AGE_S", "ORDER_FAULTS", "PAIRS", "TRAPS", "Week", "closes", "in_session", "to_ms"]
