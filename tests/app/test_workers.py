"""The supervisor over a real ledger: leases, crashes, signals, a ledger that goes away; in one process and in two."""
import asyncio
import os
import re
import signal
import subprocess
import sys
import time

import psycopg
import pytest
from deskbook.app.workers import Supervised, Supervision, crashes_in_a_row, pause_s, what_ended
from deskbook.core import metrics
from deskbook.core.errors import DeskbookError
from deskbook.stores.ledger import Ledger
from deskbook.trading.leases import new_owner

QUICK = Supervision(lease_ttl_s=0.6, poll_s=0.05, first_pause_s=0.02, longest_pause_s=0.1, resolve_s=0.3, drain_s=0.5)


class Toy:
    """Work that keeps a diary. `crash`: so many starts fail."""

    def __init__(self, crash=0, deaf=False):
        self.crash, self.deaf, self.diary = crash, deaf, []

    async def __call__(self, stop):
        self.diary.append("start")
        try:
            if self.crash:
                self.crash -= 1
                raise ValueError("upside down")
            await (asyncio.sleep(60) if self.deaf else stop.wait())
            self.diary.append("done")
        except asyncio.CancelledError:
            self.diary.append("cancelled")
            raise


def supervisor(ledger, work, name="toy", how=QUICK, **more):
    states = []
    s = Supervised(name, work, ledger, "paper", new_owner(), how=how, say=lambda n, state, detail: states.append(state), **more)
    s.states = states
    return s


async def eventually(what, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not (said := await what() if asyncio.iscoroutinefunction(what) else what()):
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.02)
    return said


def story(coroutine, ledger_url):
    async def whole():
        async with await Ledger.open(ledger_url) as ledger:
            await coroutine(ledger)

    asyncio.run(asyncio.wait_for(whole(), 60))


async def alerts(ledger):
    return {r["fingerprint"]: r for r in await ledger.rows("SELECT * FROM ops_alerts WHERE status <> 'resolved'")}


def test_a_second_copy_waits_and_takes_over_at_once(ledger):
    async def test(db):
        one, two = Toy(), Toy()
        a, b = supervisor(db, one), supervisor(db, two)
        stop_a, stop_b = asyncio.Event(), asyncio.Event()
        ta = asyncio.create_task(a.run(stop_a))
        await eventually(lambda: one.diary)
        tb = asyncio.create_task(b.run(stop_b))
        await asyncio.sleep(1.0)  # longer than the lease holds without renewal
        assert (a.state, b.state, two.diary) == ("running", "waiting", [])
        stop_a.set()
        await ta
        await eventually(lambda: two.diary, 1.0)
        assert one.diary == ["start", "done"] and a.states[-1] == "stopped" and b.states == ["waiting", "running"]
        stop_b.set()
        await tb

    story(test, ledger)


def test_other_names_and_accounts_do_not_wait_for_each_other(ledger):
    async def test(db):
        toys = [Toy() for _ in range(3)]
        those = [supervisor(db, toys[0]), supervisor(db, toys[1], name="other"), supervisor(db, toys[2])]
        those[2].account = "sandbox"
        stop = asyncio.Event()
        tasks = [asyncio.create_task(s.run(stop)) for s in those]
        await eventually(lambda: all(t.diary for t in toys))
        stop.set()
        await asyncio.gather(*tasks)

    story(test, ledger)


def test_a_lease_that_is_lost_ends_the_work(ledger):
    async def test(db):
        toy = Toy()
        s, stop = supervisor(db, toy), asyncio.Event()
        task = asyncio.create_task(s.run(stop))
        await eventually(lambda: toy.diary)
        await db.rows("UPDATE leases SET owner = 'thief', fencing_token = fencing_token + 1, expires_at = now() + interval '1 second' WHERE name = 'worker:toy:paper'")
        await eventually(lambda: s.state == "waiting")
        assert toy.diary == ["start", "cancelled"] and s.crashes == 0
        await eventually(lambda: len(toy.diary) == 3, 5.0)
        stop.set()
        await task

    story(test, ledger)


def test_a_crash_is_told_followed_by_a_pause_and_resolved(ledger):
    async def test(db):
        toy, before = Toy(crash=3), metrics.WORKER_RESTARTS.labels("toy")._value.get()
        s, stop = supervisor(db, toy), asyncio.Event()
        task = asyncio.create_task(s.run(stop))
        await eventually(lambda: len(toy.diary) == 4)
        alert = (await alerts(db))["worker_crashed:toy:paper"]
        assert alert["count"] == 3 and alert["severity"] == "high" and "ValueError: upside down" in alert["message"]
        assert s.states == ["running", "crashed"] * 3 + ["running"] and metrics.WORKER_RESTARTS.labels("toy")._value.get() - before == 3
        assert metrics.WORKER_UP.labels("toy")._value.get() == 1
        async def none(): return not await alerts(db)
        await eventually(none)
        stop.set()
        await task
        assert metrics.WORKER_UP.labels("toy")._value.get() == 0

    story(test, ledger)


def test_work_that_ends_by_itself_is_a_crash(ledger):
    async def test(db):
        async def short(stop): pass
        s, stop = supervisor(db, short), asyncio.Event()
        task = asyncio.create_task(s.run(stop))
        await eventually(lambda: s.crashes >= 2)
        assert s.error == "it ended by itself"
        stop.set()
        await task

    story(test, ledger)


def test_work_that_does_not_hear_is_cut_off(ledger):
    async def test(db):
        toy = Toy(deaf=True)
        s, stop = supervisor(db, toy), asyncio.Event()
        task = asyncio.create_task(s.run(stop))
        await eventually(lambda: toy.diary)
        began = time.monotonic()
        stop.set()
        await task
        assert toy.diary == ["start", "cancelled"] and 0.4 < time.monotonic() - began < 2 and s.states == ["running", "draining", "stopped"]
        assert not await db.rows("SELECT 1 AS held FROM leases WHERE name = 'worker:toy:paper' AND expires_at > clock_timestamp()"), "and the lease was given back"

    story(test, ledger)


def test_the_supervisor_that_is_cancelled_leaves_nothing_behind(ledger):
    async def test(db):
        toy, before = Toy(), asyncio.all_tasks()
        s = supervisor(db, toy)
        task = asyncio.create_task(s.run(asyncio.Event()))
        await eventually(lambda: toy.diary)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert toy.diary == ["start", "cancelled"] and s.state == "stopped"
        assert asyncio.all_tasks() == before

    story(test, ledger)


def test_a_ledger_that_goes_away_stops_no_worker(ledger):
    async def test(db):
        toy = Toy()
        s, stop = supervisor(db, toy), asyncio.Event()
        task = asyncio.create_task(s.run(stop))
        await eventually(lambda: toy.diary)
        name = re.search(r"/(t_\w+)\?", ledger)[1]
        admin = ledger.replace(f"/{name}?", "/deskbook?")
        with psycopg.connect(admin, autocommit=True) as c:
            c.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            c.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        await asyncio.sleep(1.5)
        assert (s.state, toy.diary) == ("running", ["start"])
        with psycopg.connect(admin, autocommit=True) as c:
            c.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await asyncio.sleep(1.0)
        assert (s.state, toy.diary) == ("running", ["start"]), "nobody took it meanwhile, so it goes on"
        stop.set()
        await task

    story(test, ledger)


CHILD = """
import asyncio, sys
from deskbook.app.workers import Supervised, Supervision
from deskbook.core.loop import run
from deskbook.stores.ledger import Ledger
from deskbook.trading.desk import stop_on_signals
from deskbook.trading.leases import new_owner
async def work(stop):
    await stop.wait()
    await asyncio.sleep(0.3)
    print("finished what was under way", flush=True)
async def main():
    stop = asyncio.Event()
    stop_on_signals(stop)
    async with await Ledger.open(sys.argv[1]) as db:
        how = Supervision(lease_ttl_s=1.0, poll_s=0.05)
        await Supervised("toy", work, db, "paper", new_owner(), how=how, say=lambda n, state, d: print(state, flush=True)).run(stop)
run(main())
"""


@pytest.fixture
def child(ledger):
    made = []

    def start():
        p = subprocess.Popen([sys.executable, "-c", CHILD, ledger], stdout=subprocess.PIPE, text=True, env=os.environ)
        made.append(p)
        return p

    yield start
    for p in made:
        p.kill()
        p.wait()
        p.stdout.close()


def test_in_two_processes_killed_and_drained(child):
    one = child()
    assert one.stdout.readline() == "running\n"
    two = child()
    assert two.stdout.readline() == "waiting\n"
    one.kill()
    began = time.monotonic()
    assert two.stdout.readline() == "running\n" and time.monotonic() - began < 3, "when the lease has run out"
    two.send_signal(signal.SIGTERM)
    assert two.stdout.read() == "draining\nfinished what was under way\nstopped\n" and two.wait(5) == 0


def test_a_good_run_forgets_earlier_crashes_and_a_bad_one_does_not():
    how = Supervision(well_s=300.0)
    assert [crashes_in_a_row(n, ran_s, how) for n, ran_s in ((0, 0.0), (3, 299.9), (3, 300.0), (3, 9e9))] == [1, 4, 1, 1]
    pauses = [pause_s(n, how) for n in range(1, 40)]
    assert pauses == sorted(pauses) and pauses[0] == how.first_pause_s and pauses[-1] == how.longest_pause_s
    assert (what_ended(None), what_ended(DeskbookError("the lake is away.", "Wait.")), what_ended(KeyError("x"))) == ("it ended by itself", "the lake is away.", "KeyError: 'x'")


def test_a_crash_after_the_wish_to_stop_is_none():
    async def test():
        stop = asyncio.Event()
        async def work(ev):
            await ev.wait()
            raise ValueError("while tidying up")
        s = supervisor(None, work, leased=False)
        task = asyncio.create_task(s.run(stop))
        await eventually(lambda: s.state == "running")
        stop.set()
        await task
        assert s.crashes == 0 and "crashed" not in s.states and s.states[-1] == "stopped"

    asyncio.run(test())
