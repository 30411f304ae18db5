"""What a desk does in a process that may be killed, and what the next one does. Runs in children of the zygote."""
import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path

from deskbook.core.settings import Settings
from deskbook.stores.live import open_live
from deskbook.trading.book import ExecutionConfig
from deskbook.trading.desk import SETTLED, AccountSpec, Desk, open_desk, running
from deskbook.trading.orders import TERMINAL, Intent
from points import Watch

CONFIG = ExecutionConfig(lease_ttl_s=2.0, send_window_s=1.0, lease_margin_s=0.2, request_timeout_s=1.0, poll_s=0.05, fills_every_s=0.2, marks_every_s=5.0,
                         equity_every_s=0.7, absence_grace_s=0.25, lookup_pauses_s=(0.05, 0.1, 0.2), not_sent_pauses_s=(0.05, 0.1), reconcile_every_s=60.0, drain_s=2.0)


@contextlib.asynccontextmanager
async def desk_of(case: dict, **config):
    """The desk of a case, opened as a program would."""
    settings = Settings(home=Path(case["home"]), kill_switch_boot="keep")
    live = open_live(case["valkey_url"], case["key_prefix"])
    spec = AccountSpec(case["account"], "sandbox", case["venue_account"], case["token"], case["url"])
    try:
        async with open_desk(case["account"], settings, ledger_url=case["ledger_url"], live=live, spec=spec, config=replace(CONFIG, **config)) as desk:
            yield desk
    finally:
        await live.aclose()


def intents(case: dict) -> list[Intent]:
    return [Intent(case["account"], **{"instrument": "EUR_USD", "expires_s": 600, **i}) for i in case.get("intents", [])]


async def booted(desk: Desk) -> None:
    """Until the desk has reconciled."""
    while not desk.lease or "boot" in desk.deps.signals.holds:
        await asyncio.sleep(0.01)


async def submit(case: dict) -> list[str]:
    """Boot, submit, wait for the end, stop."""
    async with desk_of(case) as desk, running(desk):
        await booted(desk)
        orders = await desk.submit(intents(case))
        return [(await desk.wait(o.id, 10)).state for o in orders]


async def trade(case: dict) -> list[str]:
    """The same with boot and end left out of the points: another scenario has them."""
    Watch.paused = True
    async with desk_of(case) as desk, running(desk):
        await booted(desk)
        Watch.paused = False
        orders = await desk.submit(intents(case))
        states = [(await desk.wait(o.id, 10)).state for o in orders]
        if case.get("then") == "cancel":
            for o in orders:
                await desk.cancel(o.id)
            states = [(await desk.wait(o.id, 10, TERMINAL)).state for o in orders]
        if case.get("then") == "close":
            closing = await desk.close("EUR_USD", key="the-close")
            states.append((await desk.wait(closing.id, 10)).state)
        Watch.paused = True
        return states


async def reconcile(case: dict) -> list[str]:
    """A reconciliation on demand, while nothing else is going on."""
    Watch.paused = True
    async with desk_of(case, fills_every_s=5.0) as desk, running(desk):
        await booted(desk)
        for o in await desk.submit(intents(case)) if case.get("intents") else []:
            await desk.wait(o.id, 10)
        await asyncio.sleep(case.get("pause_s", 0.15))
        if case.get("meanwhile"):
            await raw_order(case, **case["meanwhile"])
        Watch.paused = False
        found = await desk.reconcile()
        Watch.paused = True
        desk.deps.signals.fills.set()
        return [str(m) for m in found.mismatches]


async def boot_only(case: dict) -> str:
    """Boot is a reconciliation, too, and the only one that nothing trades before."""
    async with desk_of(case) as desk, running(desk):
        await booted(desk)
        Watch.paused = True
        return "booted"


async def raw_order(case: dict, **order) -> None:
    """Somebody else's order, over plain HTTP."""
    import httpx

    async with httpx.AsyncClient(trust_env=False) as http:
        said = {"type": "MARKET", "instrument": "EUR_USD", "timeInForce": "FOK", **order}
        r = await http.post(f"{case['url']}/v3/accounts/{case['venue_account']}/orders", json={"order": said}, headers={"Authorization": f"Bearer {case['token']}"})
        assert r.status_code == 201, r.text


async def unsettled(desk: Desk) -> list[str]:
    """The orders that have neither ended nor rest, and the rows of the outbox that wait."""
    left = await desk.ledger.rows("""SELECT o.idempotency_key || ' ' || o.state || ' ' || o.reason || ' sent ' || coalesce(o.sent_at::text, 'never')
        || ' token ' || coalesce(o.fencing_token::text, '') || ' resends ' || o.resends AS text
        FROM orders o WHERE account = %s AND state IN ('created', 'submitting', 'unknown', 'cancel_pending')
        UNION ALL SELECT b.topic || ' waits, claimed by ' || coalesce(b.claimed_by, 'nobody') || ' attempts ' || b.attempts || ' available ' || b.available_at
        FROM outbox b WHERE account = %s AND done_at IS NULL""", (desk.account, desk.account))
    return [r["text"] for r in left]


async def settle(desk: Desk, timeout_s: float = 15) -> bool:
    """Until every order has ended or rests and nothing waits to be sent; False when it takes too long."""
    end = asyncio.get_running_loop().time() + timeout_s
    while asyncio.get_running_loop().time() < end:
        if not await unsettled(desk):
            return True
        await asyncio.sleep(0.02)
    return False


async def recover(case: dict) -> dict:
    """The next process: what was accepted must come to its end by itself; then whoever wanted the orders asks again, with the same keys."""
    async with desk_of(case) as desk, running(desk):
        await booted(desk)
        alone = await settle(desk)
        before = {o.idempotency_key: o.state for o in await desk.orders(limit=1000)}
        answers = await desk.submit_each(intents(case))
        for a in answers:
            if getattr(a, "state", "filled") not in SETTLED:
                await desk.wait(a.id, 10)
        if case.get("then") == "cancel":
            for a in answers:
                await desk.cancel(a.id)
        if case.get("then") == "close" and await desk.ledger.rows("SELECT 1 FROM positions WHERE account = %s AND units <> 0", (desk.account,)):
            closing = await desk.close("EUR_USD", key="the-close")
            await desk.wait(closing.id, 10, TERMINAL)
        done = await settle(desk)
        found = await desk.reconcile()
        rows = await desk.orders(limit=1000)
        return {"settled": alone and done, "before": before, "mismatches": [str(m) for m in found.mismatches], "units": {h.instrument: str(h.units) for h in await desk.positions()},
                "states": {o.idempotency_key: o.state for o in rows}, "answers": [a.state if hasattr(a, "state") else repr(a) for a in answers],
                "reasons": {o.idempotency_key: o.reason for o in rows}, "resends": {o.idempotency_key: o.resends for o in rows}}



async def only_submit(case: dict) -> list[str]:
    """A program that submits and does not send: the same intents several times at once."""
    async with desk_of(case) as desk:
        while not (await desk.ledger.rows("SELECT reconciled_at FROM accounts WHERE account = %s", (desk.account,)))[0]["reconciled_at"]:
            await asyncio.sleep(0.01)
        answers = await asyncio.gather(*(desk.submit(intents(case)) for _ in range(case["times"])))
        return [str(o.id) for answer in answers for o in answer]
