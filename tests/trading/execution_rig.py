"""Desks over a real PostgreSQL, a real Valkey and the sandbox as another process; quick pauses, one account per test."""
import asyncio
import contextlib
import itertools
import secrets
import sys
from decimal import Decimal
from pathlib import Path

import httpx

from deskbook.core.settings import Settings
from deskbook.ops.order_drills import working_moment as working_day
from deskbook.stores.live import open_live
from deskbook.trading.book import ExecutionConfig
from deskbook.trading.controls import clear
from deskbook.trading.desk import AccountSpec, open_desk, running
from deskbook.trading.orders import Intent
from deskbook.trading.risk import RiskPolicy
from deskbook.trading.risk_ledger import write_policy
from deskbook.venues.sandbox.process import sandbox_process

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "crash"))
from order_truth import at_venue, in_ledger, problems

QUICK = ExecutionConfig(lease_ttl_s=2.0, send_window_s=2.0, lease_margin_s=0.2, request_timeout_s=1.2, poll_s=0.1, fills_every_s=0.2, reconcile_every_s=60,
                        lookup_pauses_s=(0.05, 0.1, 0.2), absence_grace_s=0.8, block_after_s=1.5, not_sent_pauses_s=(0.05, 0.1, 0.3), drain_s=5)
PRICES = {"EUR_USD": ("1.08410", "1.08424"), "USD_JPY": ("151.402", "151.418")}
numbers = itertools.count(1)


def hold_prices(sandbox):
    """Whatever a test did to them: the usual prices, standing still."""
    for name, (bid, ask) in PRICES.items():
        sandbox.control.market("release", name)
        sandbox.control.market("price", name, bid=bid, ask=ask)


@contextlib.contextmanager
def steady_sandbox():
    """A venue whose market is open whenever the tests run, and whose prices stand where they are put."""
    with sandbox_process(clock="virtual", start=working_day()) as s:
        hold_prices(s)
        yield s


@contextlib.contextmanager
def bench_before_the_day_ends(ledger_url, valkey_url, home):
    """A bench at a venue of its own, where in two hours the day in New York is over and interest is paid."""
    with sandbox_process(clock="virtual", start=working_day().replace("T10:", "T21:")) as s:
        yield Bench(s, ledger_url, valkey_url, home)


class Bench:
    """One account at the venue, and as many desks on it as a test wants."""

    def __init__(self, sandbox, ledger_url, valkey_url, home, number=None):
        number = number or next(numbers)
        self.sandbox, self.ledger_url, self.valkey_url, self.home = sandbox, ledger_url, valkey_url, home
        self.venue_account, self.account, self.prefix = f"101-001-{number:07d}-001", f"t{number}", f"t-{secrets.token_hex(4)}:"
        sandbox.control.make_account(self.venue_account)
        self.http = httpx.Client(base_url=f"{sandbox.url}/v3/accounts/{self.venue_account}", headers={"Authorization": f"Bearer {sandbox.token}"}, trust_env=False)

    @contextlib.asynccontextmanager
    async def desk(self, run=True, wide=True, cleared=True, config=QUICK, url=None):
        live = open_live(self.valkey_url, self.prefix)
        settings = Settings(home=self.home, kill_switch_boot="keep")
        spec = AccountSpec(self.account, "sandbox", self.venue_account, self.sandbox.token, url or self.sandbox.url)
        try:
            async with open_desk(self.account, settings, ledger_url=self.ledger_url, live=live, spec=spec, config=config) as desk:
                if cleared:
                    await clear(desk.kill, "test", "test")
                if wide:
                    await self.wide(desk)
                if not run:
                    yield desk
                    return
                async with running(desk):
                    assert await desk.ready(20)
                    yield desk
        finally:
            await live.aclose()

    async def wide(self, desk, **limits):
        """Limits that a test does not reach unless it says so."""
        fracs = ("max_total_exposure_frac", "max_instrument_exposure_frac", "max_currency_exposure_frac", "max_leverage")
        named = {"max_daily_loss_frac": Decimal(1), "max_drawdown_frac": Decimal(1), "min_margin_headroom_frac": Decimal(0), "max_open_positions": 100} | limits
        async with desk.ledger.transaction() as tx:
            await write_policy(tx, RiskPolicy(account=self.account, **dict.fromkeys(fracs, Decimal(1000)), **named), "test", desk.deps.clock() - 1000)

    def intent(self, units, key=None, instrument="EUR_USD", **more):
        return Intent(self.account, instrument, Decimal(units), idempotency_key=key or secrets.token_hex(6), **more)

    def fault(self, kind, route="", when=None, **params):
        return self.sandbox.control.add_fault(kind, route, when or {}, {"account": self.venue_account}, **params)

    def heal(self, name):
        self.sandbox.control.clear_faults(name)

    def external(self, units, instrument="EUR_USD", **more):
        """An order that somebody else places."""
        r = self.http.post("/orders", json={"order": {"type": "MARKET", "instrument": instrument, "units": str(units), "timeInForce": "FOK", **more}})
        assert r.status_code == 201, r.text
        return r.json()

    def venue(self):
        """The venue's side, from its transactions."""
        return at_venue(self.http.get("/transactions/sinceid", params={"id": "1"}).json()["transactions"])

    def ledger(self):
        return in_ledger(self.ledger_url, self.account)

    def problems(self):
        """Everything that venue and ledger disagree about, and what the ledger says about itself."""
        return problems(self.venue(), self.ledger())

    def created(self):
        """Requests for new orders that reached the venue, whatever became of them."""
        return [e for e in self.sandbox.control.journal() if e["method"] == "POST" and self.venue_account in e["target"] and e["target"].endswith("/orders")]

    def at_venue_for(self, order):
        return self.venue().of(order.client_order_id)


def run(story):
    return asyncio.run(asyncio.wait_for(story, 60))


async def eventually(what, timeout_s=10.0):
    """Wait until `what()` is true, and return it. Fails with its last value."""
    end = asyncio.get_running_loop().time() + timeout_s
    while not (said := await what() if asyncio.iscoroutinefunction(what) else what()):
        assert asyncio.get_running_loop().time() < end, f"not in {timeout_s} s: {said}"
        await asyncio.sleep(0.03)
    return said


async def audits(desk, action):
    return await desk.ledger.rows("SELECT * FROM ops_audit_events WHERE chain = %s AND action = %s ORDER BY seq", (desk.account, action))


async def alerts(desk, like="%"):
    return await desk.ledger.rows("SELECT * FROM ops_alerts WHERE status <> 'resolved' AND fingerprint LIKE %s", (like,))


async def row(desk):
    return (await desk.ledger.rows("SELECT * FROM accounts WHERE account = %s", (desk.account,)))[0]
