"""Many callers, two desks, a stolen lease: still one order for each intent."""
import asyncio
import signal
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "crash")]
import scenarios
from cases import WATCHED, ends_well, record_points, scenario
from matrix import freeze_at, run_matrix, sample
from rig import rig
from zygote import Zygote

from deskbook.trading.desk import running
from deskbook.trading.orders import Intent


@pytest.fixture
def one_rig(ledger, valkey_url, tmp_path):
    with rig(ledger, valkey_url, tmp_path) as r:
        yield r


def orders_of(r, case):
    return r.control.orders(account=case["venue_account"])["orders"]


def test_fifty_concurrent_submits_of_one_key_are_one_order(one_rig):
    case = one_rig.case("fifty")

    async def main():
        async with scenarios.desk_of(case) as desk, running(desk):
            await scenarios.booted(desk)
            intent = Intent(case["account"], "EUR_USD", 1000, idempotency_key="the-one", expires_s=600)
            answers = await asyncio.gather(*(desk.submit(intent) for _ in range(50)))
            assert len({a[0].id for a in answers}) == 1
            assert (await desk.wait(answers[0][0].id, 10)).state == "filled"

    asyncio.run(main())
    assert len(orders_of(one_rig, case)) == 1
    assert one_rig.problems(case) == []


def test_fifty_submits_from_five_processes_are_one_order(one_rig):
    case = one_rig.case("fifty", intents=[{"units": "1000", "idempotency_key": "the-one"}], times=10)

    async def main():
        async with Zygote(["scenarios"], []) as z:
            await z.warm("scenarios:recover", one_rig.case("warm"))
            submitting = [z.run("scenarios:only_submit", case) for _ in range(5)]
            ended, *others = await asyncio.gather(z.run("scenarios:recover", case), *submitting)
            ids = {i for e in others for i in e.value}
            assert len(ids) == 1
            return ended.value

    assert asyncio.run(main())["states"] == {"the-one": "filled"}
    assert len(orders_of(one_rig, case)) == 1
    assert one_rig.problems(case) == []


def test_two_running_desks_share_the_work_and_send_each_order_once(one_rig):
    intents = [{"units": str(100 + n), "idempotency_key": f"k{n}"} for n in range(30)]
    case = one_rig.case("two", intents=intents)

    async def main():
        async with Zygote(["scenarios"], []) as z:
            both = await asyncio.gather(*(z.run("scenarios:recover", case, timeout_s=60) for _ in range(2)))
            return [b.value for b in both]

    for value in asyncio.run(main()):
        assert value["states"] == {f"k{n}": "filled" for n in range(30)}
    assert len(orders_of(one_rig, case)) == 30
    assert one_rig.problems(case) == []


def test_a_sender_that_freezes_is_replaced_and_wakes_up_to_nothing(one_rig):
    """SIGSTOP to a real sender in the middle of thirty orders; its lease runs out by itself, another sends the rest; then SIGCONT."""
    intents = [{"units": str(100 + n), "idempotency_key": f"k{n}"} for n in range(30)]
    case = one_rig.case("frozen", intents=intents)
    one_rig.fault(case, "latency", "orders.create", {}, ms=40.0)

    async def main():
        async with Zygote(["scenarios"], []) as z:
            await z.warm("scenarios:recover", one_rig.case("warm"))
            job, ended = z.start("scenarios:submit", case)
            while len(orders_of(one_rig, case)) < 5:
                await asyncio.sleep(0.01)
            z.send_signal(job, signal.SIGSTOP)
            with one_rig.quick_reaper():
                first = await z.run("scenarios:recover", case, timeout_s=60)
            z.send_signal(job, signal.SIGCONT)
            await asyncio.wait([ended], timeout=5)
            z.send_signal(job, signal.SIGKILL)
            await ended
            one_rig.free_lease(case)
            return first, await z.run("scenarios:recover", case, timeout_s=60)

    for one in asyncio.run(main()):
        assert ends_well(one_rig, case, one.value, {f"k{n}": "filled" for n in range(30)}) == []
    assert len(orders_of(one_rig, case)) == 30


# Between the last look at the deadline and the bytes lies one turn of the event loop, which nothing can close: see `venues.transport`.
LAST_TURN = ("Lanes.handle_async_request", "exchange", "AsyncHTTPTransport")


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name, most", [("half_close", 60), ("several", 24)])
def test_a_stolen_lease_at_any_await(one_rig, name, most):
    """The sender stands still at an await, its lease is taken from it, the other ends everything; then the first goes on."""
    async def main():
        async with Zygote(["scenarios"], WATCHED) as z:
            one = scenario(one_rig, name)
            await z.warm(one.recover, await one.prepare("warm"))
            seen = [p for p in await record_points(z, one) if not (p.kind == "during" and p.task == "submit" and p.function in LAST_TURN)]
            sending = [p for p in seen if p.task == "submit"]
            others = sample([p for p in seen if p.task != "submit"], max(most - len(sending), 10), seed=most)
            with one_rig.quick_reaper():
                return await run_matrix(z, one, sample(sending, most - len(others), seed=1) + others, at_once=5, one=freeze_at)

    report = asyncio.run(main())
    print(report)
    assert not report.problems, report
    assert report.killed >= 0.7 * report.points, report
