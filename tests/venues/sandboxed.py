"""The adapter on a sandbox of its own, with little patience and a clock that stands still."""
import asyncio
import contextlib
import random
from decimal import Decimal as D

from deskbook.core.errors import Refused
from deskbook.venues.model import OrderRequest
from deskbook.venues.oanda import Oanda
from deskbook.venues.retry import RetryPolicy, Timing
from deskbook.venues.sandbox.server import ServerConfig, start_sandbox
from deskbook.venues.transport import Timeouts

TUESDAY = "2025-11-04T14:30:00Z"
QUICK = RetryPolicy(base_s=0.01, cap_s=0.05, budget_s=5, create_budget_s=2, breaker_failures=8, breaker_open_s=0.05)
SHORT = Timeouts(connect_s=1, slot_s=1, read_s=0.4, total_s=1)


class Book:
    """The guard of these tests: it writes down what it is asked."""
    def __init__(self):
        self.writes, self.refuses = [], False

    async def __call__(self, write):
        self.writes.append(write)
        if self.refuses:
            raise Refused("The kill switch is engaged.")


@contextlib.asynccontextmanager
async def venue(*faults, policy=QUICK, timeouts=SHORT, token=None, guard=None, adapter=None, **config):
    async with start_sandbox(ServerConfig(**{"clock": "virtual", "start": TUESDAY, "speed": 0, **config})) as s:
        timing = Timing(clock=s.clock, rng=random.Random(1))
        o = Oanda(s.account, token or s.token, s.url, guard=guard or Book(), policy=policy, timeouts=timeouts, timing=timing, **(adapter or {}))
        if not token:
            await o.load_instruments()
            await o.fetch_balance()
        for f in faults:
            s.add_fault(f)
        try:
            yield s, o
        finally:
            await o.aclose()


def run(body, *faults, **kw):
    async def whole():
        async with venue(*faults, **kw) as (s, o):
            return await body(s, o)
    return asyncio.run(whole())


def buy(client_id="db-1", units=1000, instrument="EUR_USD", **more):
    return OrderRequest(client_id, instrument, D(units), **more)


def rest(client_id="db-1", price="0.90000", **more):
    return buy(client_id, type="limit", price=D(price), time_in_force="GTC", **more)


def creates(s):
    return [x for x in s.journal.entries if x.route == "orders.create"]
