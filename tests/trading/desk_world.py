"""One account of the desk over a real ledger, the real adapter and the sandbox's engine, step by step and without waiting.

A `Process` is what a desk keeps in memory; throwing it away is a crash. Every step runs the code of the order path itself: intake, sender,
recorder, resolver, reconciler. What is made up is time (the venue's clock moves when told, pauses cost nothing) and the wire.
"""
import asyncio
import random
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import httpx
from sandbox_wire import Crash, EngineWire

from deskbook.core.clock import to_ms
from deskbook.core.errors import DeskbookError
from deskbook.ops.order_drills import working_moment
from deskbook.stores.ledger import Ledger
from deskbook.trading.book import Deps, ExecutionConfig
from deskbook.trading.desk import Desk
from deskbook.trading.leases import Lease, new_owner, take_lease
from deskbook.trading.orders import Intent
from deskbook.trading.recorder import NotSent, Recorder, record
from deskbook.trading.resolve import Resolver
from deskbook.trading.sender import Claim, Sender, claim, take_over
from deskbook.venues.errors import VenueError
from deskbook.venues.oanda import Oanda
from deskbook.venues.retry import RetryPolicy, Timing
from deskbook.venues.sandbox.clock import SandboxClock
from deskbook.venues.sandbox.engine import SandboxEngine
from deskbook.venues.sandbox.market import Market, SimulatedSource

INSTRUMENTS = ("EUR_USD", "USD_JPY")
PRICES = {"EUR_USD": ("1.08410", "1.08424"), "USD_JPY": ("151.402", "151.418")}
CONFIG = ExecutionConfig(lease_ttl_s=3600, send_window_s=1800, lookup_pauses_s=(0.0,), not_sent_pauses_s=(0.0,), block_after_s=120.0)
POLICY = """INSERT INTO account_risk_policies (account, mode, name, max_total_exposure_frac, max_instrument_exposure_frac, max_currency_exposure_frac,
  max_open_positions, max_leverage, min_margin_headroom_frac, max_daily_loss_frac, max_drawdown_frac, mark_max_age_s)
VALUES (%s, 'paper', 'wide', 1000, 1000, 1000, 100, 1000, 0, 1, 1, 100000000)"""
ACCOUNT = "INSERT INTO accounts (account, venue, venue_account, environment, mode, currency) VALUES (%s, 'oanda', %s, 'sandbox', 'paper', 'USD')"
# A ledger keeps the database's time. Time passes for one account when everything it wrote moves into the past.
AGE = (
    """UPDATE orders SET sent_at = sent_at - %(d)s, unknown_since = unknown_since - %(d)s, next_lookup_at = next_lookup_at - %(d)s, expires_at = expires_at - %(d)s
       WHERE account = %(a)s AND state NOT IN ('filled', 'cancelled', 'rejected', 'expired')""",
    "UPDATE outbox SET available_at = available_at - %(d)s, claimed_at = claimed_at - %(d)s WHERE account = %(a)s AND done_at IS NULL",
)


class DyingLedger:
    """The ledger, and a process that dies around the next commit: "before" undoes it, "after" has it done."""

    def __init__(self, ledger: Ledger):
        self.ledger, self.die, self.skip = ledger, "", 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)

    def due(self, when: str) -> bool:
        if self.die != when:
            return False
        self.skip -= 1
        return self.skip < 0

    @asynccontextmanager
    async def transaction(self):
        async with self.ledger.transaction() as tx:
            yield tx
            if self.due("before"):
                raise Crash("before a commit")
        if self.due("after"):
            raise Crash("after a commit")


@dataclass
class Process:
    """What a desk has in memory."""
    deps: Deps
    lease: Lease
    desk: Desk
    recorder: Recorder
    sender: Sender
    resolver: Resolver
    claims: list[Claim] = field(default_factory=list)


@dataclass
class World:
    """One account, its venue, and the desk process that trades it."""
    ledger: DyingLedger
    engine: SandboxEngine
    clock: SandboxClock
    account: str  # in the ledger
    venue_account: str
    wire: EngineWire
    process: Process | None = None
    died: Counter = field(default_factory=Counter)  # where processes died
    aged_s: float = 0.0  # how much time was made to pass in the ledger

    # ---- the process

    async def boot(self) -> None:
        """Start a desk: lease, take over, reconcile; as often as it takes."""
        if self.process:
            return
        await self.ledger.rows("UPDATE leases SET expires_at = clock_timestamp() WHERE name = %s", (f"sender:{self.account}",))
        self.wire.die = self.ledger.die = ""
        venue = Oanda(self.venue_account, "token", "http://127.0.0.1", policy=RetryPolicy(breaker_failures=10**6, budget_s=4.0, create_budget_s=4.0),
                      guard=self.guard, timing=Timing(self.clock, lambda: self.clock() / 1000, self.sleep, random.Random(1)),
                      http=httpx.AsyncClient(transport=self.wire, base_url="http://127.0.0.1", trust_env=False))
        deps = Deps(self.account, self.ledger, venue, CONFIG, clock=self.clock, monotonic=lambda: self.clock() / 1000)
        lease = await take_lease(self.ledger, f"sender:{self.account}", new_owner(), CONFIG.lease_ttl_s)
        assert lease is not None
        recorder, desk = Recorder(deps, lease), Desk(deps, self.guard, None, None)
        desk.lease = lease
        self.process = Process(deps, lease, desk, recorder, Sender(deps, lease, recorder), Resolver(deps, lease, recorder))
        await take_over(deps, lease, boot=True)
        for _ in range(3):
            if await self.reconcile():
                break

    async def sleep(self, seconds: float) -> None:
        """A pause of the adapter: the venue's time moves on, ours does not."""
        self.pass_time(seconds)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(int(seconds * 1000) + 1)
        self.wire.deliver()
        self.engine.advance(self.clock())

    async def guard(self, write) -> None:
        """Nothing is forbidden here: guards have tests of their own."""

    def crash(self, where: str = "between two steps") -> None:
        """The process is gone, with everything it remembered."""
        self.died[where] += self.process is not None
        self.process = None
        self.wire.die = self.ledger.die = ""

    async def mortal(self, step) -> Any:
        """Run a step that the process may not survive."""
        try:
            return await step
        except (Crash, asyncio.CancelledError) as e:
            self.crash(str(e) or "cancelled")

    # ---- steps of the order path

    async def submit(self, intent: Intent) -> Any:
        """An order, a typed error, or None when nobody knows."""
        async def step():
            with suppress(VenueError):
                return (await self.process.desk.submit_each([intent]))[0]
        return await self.mortal(step())

    async def cancel(self, order_id: Any) -> Any:
        return await self.mortal(self.process.desk.cancel(order_id))

    async def unfreeze(self) -> None:
        """A person has looked and lets the desk go on."""
        async def step():
            with suppress(DeskbookError):
                await self.process.desk.unfreeze("anna", "looked at it", accept=True)
            for name in INSTRUMENTS:
                await self.process.desk.unblock(name, "anna", "explained")
        await self.mortal(step())

    async def claim(self) -> None:
        p = self.process

        async def step():
            claims, _ = await claim(p.deps, p.lease, 10)
            p.claims += claims
            p.deps.signals.in_flight |= {c.order.id for c in claims}
        await self.mortal(step())

    async def send(self, count: int = 100) -> None:
        """Make the calls that were claimed."""
        p = self.process

        async def step():
            while p.claims and p.recorder.waiting is not None and count - len(p.recorder.waiting) > 0:
                one = p.claims.pop(0)
                await p.sender.handle(one)
                p.deps.signals.in_flight.discard(one.order.id)
        await self.mortal(step())

    async def write(self, twice: bool = False) -> None:
        """Write what was heard; `twice`: the same message comes again."""
        p = self.process

        async def step():
            batch, p.recorder.waiting = p.recorder.waiting, []
            if batch:
                await p.recorder.write(batch)
                if twice:
                    self.wire.told["message written twice"] += 1
                    await p.recorder.write(batch)
        await self.mortal(step())

    async def pump(self, twice: bool = False) -> None:
        """Claim, send, write; `twice`: what was heard comes again."""
        for step in (self.claim, self.send, partial(self.write, twice)):
            if self.process:
                await step()

    async def read_log(self) -> None:
        """Follow the venue's transactions once."""
        p = self.process

        async def step():
            since = (await p.deps.ledger.rows("SELECT fill_cursor FROM accounts WHERE account = %s", (self.account,)))[0]["fill_cursor"]
            with suppress(VenueError):
                page = await p.deps.venue.fetch_fills(since)
                if page.cursor != since:
                    await record(p.deps, p.lease, [], page, since)
        await self.mortal(step())

    async def resolve(self) -> None:
        """Look for every unknown order now."""
        p = self.process

        async def step():
            p.resolver.searches = {k: replace(s, due=0.0) for k, s in p.resolver.searches.items()}
            await p.resolver.look_round()
        await self.mortal(step())
        if self.process:
            await self.write()

    async def reconcile(self) -> bool:
        """Whether it could be done."""
        async def step():
            with suppress(DeskbookError):
                await self.process.desk.reconcile()
                return True
        return bool(await self.mortal(step()))

    async def age(self, seconds: float) -> None:
        """Time passes, at the venue and in the ledger."""
        self.pass_time(seconds)
        self.aged_s += seconds
        for sql in AGE:
            await self.ledger.rows(sql, {"a": self.account, "d": timedelta(seconds=seconds)})
        if p := self.process:  # an attempt is known by when it was claimed: in memory, too
            p.claims = [replace(c, order=replace(c.order, sent_at=earlier(c.order.sent_at, seconds))) for c in p.claims]
            p.recorder.waiting = [replace(r, finding=replace(r.finding, attempt=earlier(r.finding.attempt, seconds)))
                                  if isinstance(r.finding, NotSent) else r for r in p.recorder.waiting]

    # ---- the end

    async def settle(self, rounds: int = 12) -> None:
        """The venue is well again and nobody crashes: everything must come to rest."""
        self.wire.writes.clear()
        self.wire.reads.clear()
        self.wire.die = self.ledger.die = ""
        for _ in range(rounds):
            await self.boot()
            await self.pump()
            await self.resolve()
            await self.read_log()
            left = await self.ledger.rows("""SELECT 1 FROM orders WHERE account = %s AND state IN ('created', 'submitting', 'unknown', 'cancel_pending')
                UNION ALL SELECT 1 FROM outbox WHERE account = %s AND done_at IS NULL""", (self.account, self.account))
            if not left and not self.wire.waiting:
                break
            await self.age(20)
            await self.reconcile()
        await self.reconcile()


def earlier(time: datetime | None, seconds: float) -> datetime | None:
    return time and time - timedelta(seconds=seconds)


_numbers = iter(range(1, 10**9))


async def new_world(ledger: Ledger, market: Market) -> World:
    """A fresh account at a fresh venue."""
    number = next(_numbers)
    clock = SandboxClock(to_ms(working_moment()))
    engine = SandboxEngine(market, clock)
    account, venue_account = f"sm{number}-{random.SystemRandom().randrange(10**9)}", f"101-001-{number:07d}-001"
    engine.create_account(venue_account, "100000")
    for name, (bid, ask) in PRICES.items():
        engine.set_price(name, bid, ask)
    await ledger.rows(ACCOUNT, (account, venue_account))
    await ledger.rows(POLICY, (account,))
    return World(DyingLedger(ledger), engine, clock, account, venue_account, EngineWire(engine, clock))


def new_market() -> Market:
    """Two instruments; prices stand where they are put."""
    return Market(SimulatedSource(INSTRUMENTS))


def crossing_price(instrument: str, buy: bool) -> Decimal:
    bid, ask = PRICES[instrument]
    return Decimal(ask if buy else bid)
