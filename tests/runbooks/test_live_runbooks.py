"""The runbooks of the live desk, each clean and with the fault it is for, against a real ledger, a real Valkey, a real venue and a desk that runs."""
import asyncio
import contextlib
import threading
import time

import httpx
import pytest

from deskbook.app.workers import open_parts, supervise_all, supervised
from deskbook.core.clock import iso, system_clock, to_ms
from deskbook.core.settings import Settings
from deskbook.ops.live_care import look_live
from deskbook.ops.order_drills import CONFIG, working_moment
from deskbook.trading.desk import SANDBOX_ACCOUNT, SANDBOX_TOKEN
from deskbook.venues.sandbox.process import sandbox_process

TOKEN = "tok-1f0a7c39"


@pytest.fixture
def venue():
    """A sandbox that lives on a working day."""
    with sandbox_process(clock="virtual", start=working_moment(), balance="1000000") as s:
        yield s


@pytest.fixture
def account(venue, ledger, valkey_url, key_prefix, monkeypatch):
    """`account = "sandbox"` of stores and a venue of this test's own."""
    for name, value in {"TIMESCALE_URL": ledger, "VALKEY_URL": valkey_url, "DESKBOOK_KEY_PREFIX": key_prefix, "DESKBOOK_SANDBOX_URL": venue.url,
                        "HOTBAND_PAIRS": "EUR_USD,USD_JPY", "API_TOKEN": TOKEN, "HTTP_PORT": "0", "REGIME_PROM_PORT": "0", "CANDLE_STREAM_BACKFILL_MINUTES": "240"}.items():
        monkeypatch.setenv(name, value)
    return "sandbox"


@contextlib.contextmanager
def deployed(account, names=("manager", "api", "sender"), environment="sandbox", clock=system_clock):
    """A desk with some of its workers, with the settings of now; its API's address. The running desk takes its venue for `environment`."""
    said, ended = [], threading.Event()
    told = threading.Event()

    async def live():
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        said.append(lambda: loop.call_soon_threadsafe(stop.set))
        async with open_parts(Settings(), account, clock, config=CONFIG) as parts:
            parts.desk.venue.environment = environment
            object.__setattr__(parts.desk.guard, "environment", environment)
            all_of_it = asyncio.create_task(supervise_all([supervised(n, parts) for n in names], stop))
            while not stop.is_set() and "api" in names and "api" not in parts.said:
                await asyncio.sleep(0.05)
            said.append(parts.said.get("api", ""))
            if "sender" in names:
                await asyncio.wait_for(parts.desk.deps.signals.ready.wait(), 30)
            told.set()
            await all_of_it

    def thread():
        try:
            asyncio.run(live())
        finally:
            told.set()
            ended.set()

    worker = threading.Thread(target=thread, daemon=True)
    worker.start()
    assert told.wait(60) and len(said) == 2, "the desk did not start"
    try:
        yield said[1]
    finally:
        said[0]()
        worker.join(60)
        assert ended.is_set()


def checks(result):
    return {c.name: c.passed for c in result.evidence.checks}


def notes(result):
    return " ".join(result.evidence.notes)


def health(api):
    return httpx.get(f"{api}/health", trust_env=False).json()


def switch(api, engaged):
    r = httpx.post(f"{api}/api/kill-switch", json={"kill_switch": engaged, "by": "test", "reason": "the test"}, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False)
    assert r.status_code == 200, r.text


# ---- going live and back

def test_from_paper_to_live_and_back(account, run, monkeypatch):
    monkeypatch.setenv("OANDA_API_KEY", SANDBOX_TOKEN)
    monkeypatch.setenv("OANDA_ACCOUNT_ID", SANDBOX_ACCOUNT)
    with deployed(account, environment="practice") as api:  # read-only, as it is shipped
        refused = run("operations/go_live", "", account=account, api=api, why="trial", mode="live")
        assert refused.exit_code == 1 and checks(refused)["READ_ONLY=0 is seen"] is False
        assert checks(refused)["the kill switch is cleared"] is False and health(api)["kill_switch"] is True

        monkeypatch.setenv("READ_ONLY", "0")  # set, and not redeployed
        refused = run("operations/go_live", "", account=account, api=api, why="trial", mode="live")
        assert refused.exit_code == 1 and checks(refused)["READ_ONLY=0 is seen"] and checks(refused)["the desk was redeployed"] is False
        assert health(api)["kill_switch"] is True and "redeploy" in notes(refused)

    with deployed(account, environment="practice") as api:
        dry = run("operations/go_live", "", account=account, api=api)
        assert dry.exit_code == 0, dry.evidence.reason
        assert health(api)["kill_switch"] is True and "the kill switch is cleared" in notes(dry)
        live = run("operations/go_live", "", account=account, api=api, why="trial", mode="live")
        assert live.exit_code == 0, live.evidence.reason
        assert live.evidence.numbers["steps that hold"] == 7 and health(api)["trading_active"] is True

        early = run("operations/go_live", "", account=account, api=api, why="again", mode="live")
        assert early.exit_code == 1 and checks(early)["the desk is halted"] is False, "a desk that trades has skipped a step"

        back = run("operations/revert_to_paper", "", account=account, api=api, mode="live")
        assert back.exit_code == 1 and checks(back)["the kill switch is engaged"] and checks(back)["READ_ONLY=1 is seen"] is False
        assert health(api)["kill_switch"] is True and health(api)["trading_active"] is False
        monkeypatch.setenv("READ_ONLY", "1")
        assert checks(run("operations/revert_to_paper", "", account=account, api=api, mode="live"))["the desk was redeployed"] is False

    with deployed(account, environment="practice") as api:
        back = run("operations/revert_to_paper", "", account=account, api=api, mode="live")
        assert back.exit_code == 0, back.evidence.reason


def test_going_live_needs_a_reason_and_a_manager(account, run, monkeypatch):
    monkeypatch.setenv("READ_ONLY", "0")
    assert run("operations/go_live", "", account=account, mode="live").exit_code == 2
    with deployed(account, ("api", "sender")) as api:
        result = run("operations/go_live", "", account=account, api=api, why="trial", mode="live")
        assert result.exit_code == 1 and checks(result)["the desk was redeployed"] is False and "manager" in notes(result)
        assert health(api)["kill_switch"] is True


def test_reverting_works_without_the_api(account, run):
    with deployed(account) as api:
        switch(api, False)
    result = run("operations/revert_to_paper", "", account=account, api="http://127.0.0.1:9", wait_s=1, mode="live")
    assert result.exit_code == 1 and checks(result)["the kill switch is engaged"], "the desk cannot be seen, and is halted all the same"
    with deployed(account, ("api",)) as api:
        assert health(api)["kill_switch"] is True


# ---- candles and gates

def ten(seconds=5):
    """So long after ten o'clock of the venue's day."""
    return iso(to_ms(working_moment()) + seconds*1000)


@contextlib.contextmanager
def fed(account, names=("streamer", "gates")):
    """Candles and gates are made, as at ten o'clock."""
    with deployed(account, names, clock=lambda: to_ms(ten())):
        end = time.monotonic() + 60
        while look_live(account, ten()).stale and "gates" in names:
            assert time.monotonic() < end, look_live(account, ten()).feeds
            time.sleep(0.3)
        yield


def test_gates_are_fresh(account, run):
    with fed(account):
        result = run("incidents/gates_missing_or_stale", "", account=account, at=ten())
    assert result.exit_code == 0, result.evidence.reason
    assert result.evidence.numbers["stale or missing gates before"] == 0 and "every gate is fresh" in notes(result)
    late = run("incidents/gates_missing_or_stale", "", account=account, at=ten(300))
    assert late.exit_code == 1 and "daemon streamer" in notes(late)
    closed = run("incidents/gates_missing_or_stale", "", account=account, at="2026-11-21T12:00:00Z")
    assert closed.exit_code == 0 and "closed" in notes(closed)


def test_missing_gates_are_made_from_fetched_candles(account, run):
    dry = run("incidents/gates_missing_or_stale", "", account=account, at=ten())
    assert dry.exit_code == 1 and dry.evidence.numbers["stale or missing gates after"] == 2 and "daemon streamer" in notes(dry)
    with deployed(account, ("gates",), clock=lambda: to_ms(ten())):
        live = run("incidents/gates_missing_or_stale", "", account=account, at=ten(), mode="live")
    assert live.exit_code == 0, live.evidence.reason
    assert live.evidence.numbers["stale or missing gates before"] == 2


# ---- the kill switch

def test_a_kill_switch_that_clears(account, run):
    with deployed(account, ("api", "sender")) as api:
        dry = run("incidents/kill_switch_refuses_to_clear", "", account=account)
        assert dry.exit_code == 0 and "mode live" in notes(dry) and health(api)["kill_switch"] is True
        assert run("incidents/kill_switch_refuses_to_clear", "", account=account, mode="live").exit_code == 2
        live = run("incidents/kill_switch_refuses_to_clear", "", account=account, why="it is understood", hold_s=1, mode="live")
        assert live.exit_code == 0, live.evidence.reason
        assert health(api)["kill_switch"] is False


def test_a_kill_switch_without_credentials(account, run, monkeypatch):
    result = run("incidents/kill_switch_refuses_to_clear", "", account="oanda-practice", why="let me", mode="live")
    assert result.exit_code == 1 and checks(result)["credentials are there"] is False and "redeploy" in notes(result)
    monkeypatch.setenv("VALKEY_URL", "redis://127.0.0.1:9")
    result = run("incidents/kill_switch_refuses_to_clear", "", account=account, why="let me", mode="live")
    assert result.exit_code == 1 and checks(result)["the store can be read"] is False and "valkey_down" in notes(result)


def test_a_kill_switch_that_wants_fresh_gates(account, run, monkeypatch):
    monkeypatch.setenv("KILL_REQUIRE_FRESH_GATES", "1")
    result = run("incidents/kill_switch_refuses_to_clear", "", account=account, why="let me", at=ten(), mode="live")
    assert result.exit_code == 1 and "gates_missing_or_stale" in notes(result)
