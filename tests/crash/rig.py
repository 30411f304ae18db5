"""A sandbox, a ledger and a Valkey that outlive the desks that are killed above them; cases with accounts of their own; a look from outside.

What runs inside a killed process is in `scenarios`; this side reads the venue over plain HTTP and the ledger with plain SQL.
"""
import asyncio
import contextlib
import json
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import httpx
import psycopg
from order_truth import LedgerSide, VenueSide, at_venue, in_ledger, problems

PRICES = {"EUR_USD": ("1.08410", "1.08424"), "USD_JPY": ("151.402", "151.418")}
POLICY = """INSERT INTO account_risk_policies (mode, name, max_total_exposure_frac, max_instrument_exposure_frac, max_currency_exposure_frac,
  max_open_positions, max_leverage, min_margin_headroom_frac, max_daily_loss_frac, max_drawdown_frac, mark_max_age_s)
VALUES ('paper', 'wide', 1000, 1000, 1000, 100, 1000, 0, 1, 1, 100000000)"""


@dataclass
class Rig:
    """What survives. Make it with `rig`."""
    ledger_url: str
    valkey_url: str
    key_prefix: str
    home: Path
    sandbox: object  # SandboxProcess
    number: int = 0
    http: httpx.Client = field(default_factory=lambda: httpx.Client(trust_env=False, timeout=10))

    @property
    def control(self):
        return self.sandbox.control

    def case(self, name: str, **more) -> dict:
        """A fresh account at the venue and in the ledger; everything that a desk process must know."""
        self.number += 1
        venue_account = f"101-001-{self.number:07d}-001"
        self.control.make_account(venue_account)
        return {"account": f"{name}-{secrets.token_hex(3)}", "venue_account": venue_account, "token": self.sandbox.token, "url": self.sandbox.url,
                "ledger_url": self.ledger_url, "valkey_url": self.valkey_url, "key_prefix": self.key_prefix, "home": str(self.home), **more}

    def fault(self, case: dict, kind: str, route: str = "", when: dict | None = None, **params) -> str:
        """Set a fault for one case alone."""
        return self.control.add_fault(kind, route, when or {}, {"account": case["venue_account"]}, **params)

    def external(self, case: dict, units: int, instrument: str = "EUR_USD", **order) -> dict:
        """An order that somebody else places at the venue."""
        said = {"type": "MARKET", "instrument": instrument, "units": str(units), "timeInForce": "FOK", **order}
        r = self.http.post(f"{case['url']}/v3/accounts/{case['venue_account']}/orders", json={"order": said}, headers={"Authorization": f"Bearer {case['token']}"})
        assert r.status_code == 201, r.text
        return r.json()

    def venue(self, case: dict) -> VenueSide:
        """The venue's side, from its transactions."""
        r = self.http.get(f"{case['url']}/v3/accounts/{case['venue_account']}/transactions/sinceid", params={"id": "1"}, headers={"Authorization": f"Bearer {case['token']}"})
        assert r.status_code == 200, r.text
        return at_venue(r.json()["transactions"])

    def ledger(self, case: dict) -> LedgerSide:
        return in_ledger(self.ledger_url, case["account"])

    def problems(self, case: dict, chains: bool = True) -> list[str]:
        """Everything that is not as promised in this case, the hash chain included."""
        venue, ledger = self.venue(case), self.ledger(case)
        doubles = self.control.orders(account=case["venue_account"])["duplicates"]
        wrong = problems(venue, ledger) + [f"DOUBLED, says the venue's journal: {doubles}"] * bool(doubles)
        return wrong + (self.broken_chains(case) if chains else [])

    def broken_chains(self, case: dict) -> list[str]:
        """Each event's hash, computed again by the database, and its link to the one before."""
        with psycopg.connect(self.ledger_url) as db:
            rows = db.execute("SELECT seq, prev_hash, hash, hash = order_event_hash(prev_hash, account, seq, order_id, version, from_state, to_state, reason, payload, recorded_at) FROM order_events e WHERE account = %s ORDER BY seq", (case["account"],)).fetchall()
        last, wrong = None, []
        for n, (seq, prev, own, right) in enumerate(rows, 1):
            if seq != n or not right or (last is not None and prev != last):
                wrong.append(f"the chain of {case['account']} breaks at {seq}")
            last = own
        return wrong

    @contextlib.contextmanager
    def quick_reaper(self, idle_s: float = 1.0) -> Iterator[None]:
        """The server ends a transaction whose owner does nothing; here after a second and not after a minute."""
        done = threading.Event()

        def reap():
            with psycopg.connect(self.ledger_url, autocommit=True) as db:
                while not done.wait(0.1):
                    db.execute("""SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
                        AND wait_event = 'ClientRead' AND xact_start < clock_timestamp() - make_interval(secs => %s)""", (idle_s,))

        thread = threading.Thread(target=reap)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def free_lease(self, case: dict) -> None:
        """The holder is known to be dead, or its lease is stolen: it need not be waited for."""
        with psycopg.connect(self.ledger_url, autocommit=True) as db:
            db.execute("UPDATE leases SET expires_at = clock_timestamp() WHERE name = %s", (f"sender:{case['account']}",))


async def clear_kill_switch(home: Path, valkey_url: str, key_prefix: str) -> None:
    from deskbook.stores.live import open_live
    from deskbook.trading.controls import KillSwitch, clear

    live = open_live(valkey_url, key_prefix)
    try:
        await clear(KillSwitch(home / "kill_switch.json", live), "anna", "tests begin")
    finally:
        await live.aclose()


@contextlib.contextmanager
def rig(ledger_url: str, valkey_url: str, folder: Path, **sandbox) -> Iterator[Rig]:
    """Start a sandbox whose market is open and whose prices stand where they are put."""
    from deskbook.ops.order_drills import working_moment
    from deskbook.venues.sandbox.process import sandbox_process

    home, prefix = folder / "desk-home", f"t-{secrets.token_hex(6)}:"
    home.mkdir(parents=True, exist_ok=True)
    asyncio.run(clear_kill_switch(home, valkey_url, prefix))
    with psycopg.connect(ledger_url, autocommit=True) as db:
        db.execute(POLICY)
    with sandbox_process(accounts=[], clock="virtual", speed=1.0, start=working_moment(), instruments=list(PRICES), **sandbox) as process:
        for name, (bid, ask) in PRICES.items():
            process.control.market("price", name, bid=bid, ask=ask)
        r = Rig(ledger_url, valkey_url, prefix, home, process)
        try:
            yield r
        finally:
            r.http.close()


def show(case: dict) -> str:
    return json.dumps({k: str(v) if isinstance(v, Decimal) else v for k, v in case.items()})
