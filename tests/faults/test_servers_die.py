"""PostgreSQL or Valkey is killed while the desk trades, and comes back: nothing is lost, nothing is doubled, and what was refused says so."""
import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "crash")]
import scenarios
from rig import rig

from deskbook.core.errors import DeskbookError, SourceError
from deskbook.trading.book import OrderRow
from deskbook.trading.desk import running
from deskbook.trading.orders import TERMINAL, Intent, OrderRefused

ORDERS = 24


@pytest.fixture
def mortal(tmp_path, mortal_servers):
    """A sandbox above servers of this test alone."""
    with rig(mortal_servers.postgres_url, mortal_servers.valkey_url, tmp_path) as r:
        r.postgres, r.valkey = mortal_servers.postgres, mortal_servers.valkey
        yield r


async def submit_until_answered(desk, intent) -> OrderRow | OrderRefused:
    """What a strategy does: nobody has decided, so the same intent is asked for again, under the same key.

    On a slow machine the lease of the sender ends while the ledger is away; the next one reconciles first, and until then nobody decides either.
    """
    for _ in range(600):
        try:
            answer = (await desk.submit_each([intent]))[0]
            if not (isinstance(answer, OrderRefused) and answer.reasons == ("not_reconciled",)):
                return answer
        except (SourceError, DeskbookError):
            pass
        await asyncio.sleep(0.05)
    raise AssertionError("no answer for half a minute")


async def trade_while(r, case, strike, pause_s=0.03) -> tuple[list, list[str]]:
    """Orders one after another, and in the middle `strike` happens; the answers, and what is wrong in the end."""
    async with scenarios.desk_of(case) as desk, running(desk):
        await scenarios.booted(desk)
        striking, answers = None, []
        for n in range(ORDERS):
            if n == ORDERS // 3:
                assert await scenarios.settle(desk, 30), "what came before is traded"
                striking = asyncio.create_task(strike())
            units = [1000, -700, 300][n % 3]
            answers.append(await submit_until_answered(desk, Intent(case["account"], "EUR_USD", units, idempotency_key=f"k{n}", expires_s=600)))
            await asyncio.sleep(pause_s)
        await striking
        assert await scenarios.settle(desk, 30), (await scenarios.unsettled(desk), desk.lease, desk.deps.signals.holds)
        for _ in range(50):
            try:
                found = await desk.reconcile()
                break
            except DeskbookError:
                await asyncio.sleep(0.1)
        orders = {o.idempotency_key: o for o in await desk.orders(limit=1000)}
        wrong = [str(m) for m in found.mismatches] + r.problems(case)
        wrong += [f"LOST: {a.idempotency_key} was accepted and is not there" for a in answers if isinstance(a, OrderRow) and a.idempotency_key not in orders]
        wrong += [f"{o.idempotency_key} is {o.state}" for o in orders.values() if o.state not in TERMINAL]
        return [orders.get(f"k{n}", answers[n]) for n in range(ORDERS)], wrong


def told(orders) -> list[tuple]:
    """State and reason of what was accepted, the reasons of what was refused."""
    return [(o.state, o.reason) if isinstance(o, OrderRow) else o.reasons for o in orders]


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.0, 0.013, 0.05])
def test_postgres_is_killed_and_comes_back(mortal, after_s):
    async def strike():
        await asyncio.sleep(after_s)
        os.kill(mortal.postgres.pid, signal.SIGKILL)
        await asyncio.sleep(0.6)
        await asyncio.to_thread(mortal.postgres.revive)

    orders, wrong = asyncio.run(trade_while(mortal, mortal.case("pg"), strike))
    assert not wrong, wrong
    assert told(orders) == [("filled", "")] * ORDERS


@pytest.mark.slow
def test_postgres_is_killed_between_sending_and_writing_it_down(mortal):
    """The venue's answer is held back until the ledger is dead: what it says can only be learnt of by looking."""
    case = mortal.case("pg")

    async def strike():
        mortal.fault(case, "latency", "orders.create", {"times": 2}, ms=500.0)
        await asyncio.sleep(0.2)
        os.kill(mortal.postgres.pid, signal.SIGKILL)
        await asyncio.sleep(0.8)
        await asyncio.to_thread(mortal.postgres.revive)

    orders, wrong = asyncio.run(trade_while(mortal, case, strike))
    assert not wrong, wrong
    assert told(orders) == [("filled", "")] * ORDERS


@pytest.mark.slow
def test_valkey_is_killed_and_comes_back(mortal):
    async def strike():
        os.kill(mortal.valkey.pid, signal.SIGKILL)
        await asyncio.sleep(0.4)
        await asyncio.to_thread(mortal.valkey.revive)

    orders, wrong = asyncio.run(trade_while(mortal, mortal.case("valkey"), strike))
    assert not wrong, wrong
    told_of = told(orders)
    # Whether the kill switch is on cannot be read: nothing is sent, and every such order says so. Before and after, all is traded.
    assert set(told_of) <= {("filled", ""), ("rejected", "kill_switch_unreadable"), ("kill_switch_unreadable",)}, told_of
    assert told_of[:ORDERS // 3] == [("filled", "")] * (ORDERS // 3)
    assert told_of[-1] == ("filled", "")
    assert {t for t in told_of if t != ("filled", "")}, "nobody noticed that Valkey was dead"


def test_a_database_that_is_down_at_the_start_is_a_typed_error(mortal):
    os.kill(mortal.postgres.pid, signal.SIGKILL)

    async def main():
        async with scenarios.desk_of(mortal.case("pg")):
            pass

    with pytest.raises(SourceError, match="ledger"):
        asyncio.run(main())
    mortal.postgres.revive()
    asyncio.run(main())
