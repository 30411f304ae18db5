"""A simulated stretch of trading: a virtual clock stepped from candle close to candle close, every worker, and everything that fails on the way.

The venue is the sandbox in a process of its own, PostgreSQL and Valkey belong to the test and are killed and revived. The sender runs as it does in a
daemon. Streamer, gate worker and manager are real as well; their rounds are called when a candle has closed, where their own loops would wait for the
wall clock. A kill drops a worker in the middle of a round with all it remembers, and puts a new one in its place.
"""
import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import httpx
from deskbook.app.workers import Parts
from deskbook.core.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso, to_ms
from deskbook.core.errors import DeskbookError
from deskbook.core.settings import Settings
from deskbook.gates.worker import GateWorker
from deskbook.ops.health import hazard_fallback
from deskbook.stores.lake import Lake
from deskbook.stores.ledger import LedgerDown
from deskbook.stores.live import LiveUnavailable, open_live
from deskbook.stores.live_state import last_gates
from deskbook.trading.book import NOT_NOW, ExecutionConfig
from deskbook.trading.controls import KillSwitch, clear, engage, kill_state
from deskbook.trading.desk import AccountSpec, open_desk
from deskbook.trading.manager import Manager
from deskbook.trading.profile import load_profile
from deskbook.trading.risk import RiskPolicy
from deskbook.trading.risk_ledger import write_policy
from deskbook.venues.errors import VenueError
from deskbook.venues.streamer import Streamer, lake_venue

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "crash"))
from order_truth import at_venue, in_ledger, problems

PAIRS = ("EUR_USD", "USD_JPY")
ACCOUNT = "week"
SESSION = (6, 20)  # UTC hours
PROFILE = "global: {session: {start: '06:00', end: '20:00', exit_at_close: true}, exit: {max_hold_minutes: 12}}\n"
MAX_GATE_AGE_S = 180
QUICK = ExecutionConfig(lease_ttl_s=2.0, send_window_s=2.0, lease_margin_s=0.2, request_timeout_s=1.2, poll_s=0.05, fills_every_s=0.2, reconcile_every_s=20,
                        equity_every_s=1.0, lookup_pauses_s=(0.05, 0.1, 0.2), absence_grace_s=0.8, block_after_s=30, not_sent_pauses_s=(0.05, 0.1, 0.3), drain_s=5)
DOWN = (*NOT_NOW, VenueError, LiveUnavailable)

# What the venue does wrong: kind, route, share of the requests, parameters. Each holds for some minutes.
FAULTS = [("candles_duplicated", "", 1.0, {"rate": 0.5}), ("candles_unordered", "", 1.0, {"rate": 0.5}), ("candles_revised", "", 1.0, {"age_s": 90.0, "bp": 3.0}),
          ("candles_late_close", "", 1.0, {"delay_s": 20.0}), ("candles_missing", "", 1.0, {"rate": 0.2}), ("stale_prices", "", 1.0, {}),
          ("http_error", "candles", 0.3, {"status": 503}), ("drop_before_accept", "orders.create", 0.3, {}), ("accept_then_drop", "orders.create", 0.3, {}),
          ("accept_late", "orders.create", 0.2, {"delay_s": 0.3}), ("reject", "orders.create", 0.3, {}), ("stream_cut", "", 0.3, {}),
          ("late_visibility", "orders.create", 0.3, {"delay_s": 0.4}), ("transactions_duplicated", "", 0.5, {})]


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
    reasons: Counter = field(default_factory=Counter)  # of decisions
    windows: list[Window] = field(default_factory=list)
    gates: dict[tuple[str, int], list[dict]] = field(default_factory=dict)  # every gate that was the last one when the manager looked, by pair and as-of
    creates: list[dict] = field(default_factory=list)  # requests for new orders that reached the venue
    seen: int = 0  # of the venue's journal
    slowest_s: float = 0.0  # that orders took to settle
    stuck: list[str] = field(default_factory=list)


class Week:
    """The world and its operator."""

    def __init__(self, sandbox, postgres, valkey, home, seed=0):
        self.sandbox, self.postgres, self.valkey, self.home, self.rng = sandbox, postgres, valkey, home, random.Random(seed)
        self.clock, self.story = VenueClock(sandbox.control), Story()
        self.lake, self.profile, self.read_only = Lake(home / "lake"), load_profile(PROFILE), False
        self.down, self.held = {}, None  # servers that are dead and when they come back; when the operator clears the kill switch
        self.faults: dict[str, int] = {}  # name -> until, epoch ms
        self.late = 0  # until when candles close late
        self.settings = Settings(home=home, kill_switch_boot="keep", hotband_pairs=PAIRS, prometheus_port=0, candle_backfill_minutes=1440, gate_retention=20_000,
                                 gate_ttl_s=3600, default_hold_s=600, log_to_file=False, max_positions_per_pair=2)
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
        self.stop = asyncio.Event()
        self.sender = asyncio.create_task(self.desk.run(self.stop))
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

    async def die(self):
        """The desk process is killed. Its lease would run out; that is not waited for."""
        self.sender.cancel()
        await asyncio.wait([self.sender])
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

    async def reboot(self):
        """Kill the whole process and start it anew."""
        await self.die()
        while True:
            try:
                async with await self.connect() as db:
                    await db.execute("UPDATE leases SET expires_at = clock_timestamp() WHERE name = %s", (f"sender:{ACCOUNT}",))
                await self.boot()
                return
            except DOWN:
                await self.stack.aclose()
                await self.revive()

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
        self.clock.to(close_ms + 1_200)
        await self.serve("streamer", self.streamer.poll(3.0), strike)
        if self.late > close_ms:
            self.clock.to(close_ms + 25_000)
            await self.serve("streamer", self.streamer.poll(3.0), None)
        await self.serve("gates", self.gates.round(), strike)
        await self.look()
        rows = await self.serve("manager", self.manager.round(), strike) or []
        self.story.happened.update(f"decided {r.verdict}" for r in rows if r.new)
        self.story.reasons.update(reason for r in rows if r.new for reason in r.reasons)
        if strike == "all":
            await self.reboot()
        if any(r.action for r in rows) or strike:
            await self.settle()

    async def serve(self, worker, work, strike):
        """Do a round. A worker that is struck dies somewhere in it."""
        task = asyncio.ensure_future(work)
        if strike == worker or (strike == "all" and worker == "manager"):
            await asyncio.wait([task], timeout=self.rng.choice((0.0, 0.002, 0.005, 0.01, 0.02, 0.05)))
            task.cancel()
            await asyncio.wait([task])
            if strike == worker:
                await self.drop(worker)
                self.start(worker)
                self.story.happened[f"{worker} killed" + (" in a round" if task.cancelled() else "")] += 1
            return None
        try:
            return await task
        except DOWN as e:
            self.story.happened[f"{worker} found {type(e).__name__}"] += 1

    async def look(self):
        """What the manager is about to see, and whether somebody else has stopped the desk."""
        with contextlib.suppress(LiveUnavailable):
            for name, gate in (await last_gates(self.live, PAIRS)).items():
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
                left = await self.desk.ledger.rows("""SELECT state, reason, instrument, sent_at FROM orders WHERE account = %s
                    AND state NOT IN ('filled', 'cancelled', 'rejected', 'expired')
                    UNION ALL SELECT 'outbox', topic, '', available_at FROM outbox WHERE account = %s AND done_at IS NULL""", (ACCOUNT, ACCOUNT))
            except DOWN:
                if self.down:
                    return
                await asyncio.sleep(0.05)
                continue
            if not left:
                break
            await asyncio.sleep(0.004)
        else:
            self.story.stuck.append(f"{iso(self.clock())}: {[dict(r) for r in left]}")
        self.story.slowest_s = max(self.story.slowest_s, time.monotonic() - began)

    # -- what goes wrong
    def window(self, why):
        return next((w for w in self.story.windows if w.why == why and w.until_ms is None), None)

    def shut(self, why):
        self.story.windows.append(Window(why, self.clock()))

    def open(self, why):
        if w := self.window(why):
            w.until_ms = self.clock()

    async def stop_desk(self, minutes):
        """An operator engages the kill switch, and clears it later."""
        await engage(self.kill, "anna", "drill")
        if not self.window("kill switch"):
            self.shut("kill switch")
        self.held = self.clock() + minutes * MINUTE_MS
        self.story.happened["kill switch engaged by hand"] += 1

    async def may_clear(self):
        """The operator looks every few minutes, and clears what is not to be held."""
        if self.down or (self.held or 0) > self.clock() or not (await kill_state(self.kill)).engaged:
            return
        self.open("kill switch")
        with contextlib.suppress(DeskbookError):
            await clear(self.kill, "anna", "looked at it")

    def fault(self, now_ms, minutes):
        """One more thing is wrong at the venue for a while."""
        kind, route, rate, params = self.rng.choice(FAULTS)
        self.faults[self.sandbox.control.add_fault(kind, route, {"rate": rate} if rate < 1 else {}, **params)] = now_ms + minutes * MINUTE_MS
        if kind == "candles_late_close":
            self.late = now_ms + minutes * MINUTE_MS
        self.story.happened[f"fault {kind}"] += 1

    def heal(self, now_ms):
        for name in [n for n, until in self.faults.items() if until <= now_ms]:
            self.sandbox.control.clear_faults(name)
            del self.faults[name]

    def kill_server(self, name, now_ms, minutes):
        os.kill(getattr(self, name).pid, signal.SIGKILL)
        self.down[name] = now_ms + minutes * MINUTE_MS
        self.story.happened[f"{name} killed"] += 1

    async def revive(self, now_ms=None):
        for name in [n for n, at in self.down.items() if now_ms is None or at <= now_ms]:
            if name == "valkey":
                self.open("kill switch unreadable")
            await asyncio.to_thread(getattr(self, name).revive)
            del self.down[name]
            await self.ready()

    async def collect(self):
        """Requests for new orders, from the venue's own journal."""
        entries = self.sandbox.control.journal(self.story.seen)
        if entries:
            self.story.seen = entries[-1]["seq"]
        self.story.creates += [e for e in entries if e["route"] == "orders.create"]

    # -- the whole
    async def run(self, start_ms, end_ms):
        """From the first close to the last."""
        await self.boot()
        await self.wide()
        await clear(self.kill, "anna", "the week begins")
        await self.ready()
        hour, plan = None, {}
        for close in closes(start_ms, end_ms):
            if close // HOUR_MS != hour:
                hour = close // HOUR_MS
                plan = self.plan(hour)
            self.heal(close)
            await self.revive(close)
            minute = close // MINUTE_MS % 60
            strike = None
            for what in plan.get(minute, ()):
                strike = await self.happen(what, close) or strike
            await self.step(close, strike)
            if minute % 5 == 4:
                await self.care()
        await self.end(end_ms)

    def plan(self, hour):
        """What happens in this hour, by minute: some worker is killed in every one."""
        r, plan = self.rng, {}
        doing = [r.choice(("streamer", "gates", "manager", "all")), "fault", "fault", "cut"]
        doing += [w for w, odds in (("stop", 0.2), ("postgres", 0.15), ("valkey", 0.15), ("flush", 0.08), ("read_only", 0.08)) if r.random() < odds]
        for what in doing:
            plan.setdefault(r.randrange(2, 50), []).append(what)
        if "read_only" in doing:
            plan.setdefault(58, []).append("read_write")
        return plan

    async def happen(self, what, now_ms):
        if what in ("streamer", "gates", "manager", "all"):
            return what
        if what == "fault":
            self.fault(now_ms, self.rng.randrange(2, 12))
        elif what == "cut":
            self.story.happened["streams cut"] += self.sandbox.control.cut_streams()
        elif what == "stop":
            await self.stop_desk(self.rng.randrange(2, 15))
        elif what in ("postgres", "valkey"):
            if not self.down:
                self.kill_server(what, now_ms, self.rng.randrange(1, 4))
        elif what == "flush" and "valkey" not in self.down:
            await self.live.redis.flushall()
            self.story.happened["Valkey flushed"] += 1
        elif what == "read_only" and not self.read_only:
            self.read_only = True
            await self.reboot()
            self.shut("read-only")
            self.story.happened["read-only"] += 1
        elif what == "read_write" and self.read_only:
            self.open("read-only")
            self.read_only = False
            await self.reboot()

    async def care(self):
        """What the workers' own loops do by the wall clock, once in five minutes of the market."""
        await self.may_clear()
        await self.collect()
        if "valkey" not in self.down:
            with contextlib.suppress(*DOWN):
                for p in self.gates.pairs.values():
                    await self.gates.save(p)
        await self.streamer.save()
        if self.rng.random() < 0.5:
            for f in self.streamer.feeds.values():
                f.deep_s = -1e9  # ten minutes have passed: it looks further back

    async def end(self, end_ms):
        """Everything is well again, and comes to rest."""
        self.sandbox.control.clear_faults()
        await self.revive()
        if self.read_only:
            await self.happen("read_write", end_ms)
        self.held = None
        await self.may_clear()
        self.open("kill switch")
        for _ in range(2):
            for f in self.streamer.feeds.values():
                f.deep_s = -1e9
            self.clock.to(self.clock() + 1000)
            await self.streamer.poll(5.0)
            await self.gates.round()
        await self.gates.flush()
        await self.streamer.save()
        await self.ready()
        await self.settle(30)
        await self.collect()
        self.mismatches = [str(m) for m in (await self.desk.reconcile()).mismatches]

    async def aclose(self):
        if hasattr(self, "desk"):
            self.stop.set()
            await asyncio.wait([self.sender], timeout=15)
            await self.stack.aclose()
        await self.live.aclose()

    # -- what is asked afterwards
    def transactions(self):
        """All of the account's, page by page."""
        found, headers = [], {"Authorization": f"Bearer {self.sandbox.token}"}
        with httpx.Client(base_url=f"{self.sandbox.url}/v3/accounts/{self.sandbox.account}", headers=headers, trust_env=False, timeout=30) as http:
            while page := http.get("/transactions/sinceid", params={"id": found[-1]["id"] if found else "1"}).json()["transactions"]:
                found += page
        return found

    def disagreements(self):
        """Between venue and ledger."""
        return problems(at_venue(self.transactions()), in_ledger(self.postgres.url, ACCOUNT)) + self.mismatches


def closes(start_ms, end_ms):
    """The minutes at whose end a candle closes, weekends left out as the calendar has them."""
    from deskbook.market.calendar import calendar_for

    calendar = calendar_for(PAIRS[0])
    times = range(start_ms, end_ms, MINUTE_MS)
    for opened, is_open in zip(times, calendar.is_open(list(times)), strict=True):
        if is_open:
            yield opened + MINUTE_MS


def in_session(ms):
    """Of the profile above: its hours, and the FX week from Sunday 22:00 to Friday 21:00."""
    day, at = (ms // DAY_MS + 3) % 7, ms % DAY_MS  # 0: Monday
    week = day < 4 or (day == 4 and at < 21 * HOUR_MS) or (day == 6 and at >= 22 * HOUR_MS)
    return week and SESSION[0] * HOUR_MS <= at < SESSION[1] * HOUR_MS


__all__ = ["ACCOUNT", "MAX_GATE_AGE_S", "PAIRS", "Week", "in_session", "to_ms"]
