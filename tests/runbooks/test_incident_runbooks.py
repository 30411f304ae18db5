"""The runbooks of incidents at the live desk, each clean and with the fault it is for: a Valkey that is killed, a venue without prices, gates that
ask for a person, a manager that says no."""
import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import httpx
import pytest
import test_live_runbooks as live_rig
import test_order_runbooks as order_rig
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "trading"))
from manager_rig import ALWAYS, a_gate

from deskbook.app.cli import app
from deskbook.core.clock import system_clock, to_ms
from deskbook.ops.live_care import look_live
from deskbook.stores.ledger import Ledger
from deskbook.stores.live import open_live
from deskbook.stores.live_state import DESK_LOOP, put_gate, put_json
from deskbook.trading.desk import SANDBOX_ACCOUNT, SANDBOX_TOKEN
from deskbook.trading.leases import take_lease

account, venue = live_rig.account, live_rig.venue
checks, deployed, fed, health, notes, switch, ten = (getattr(live_rig, n) for n in ("checks", "deployed", "fed", "health", "notes", "switch", "ten"))


@pytest.fixture
def run(run):
    """As in conftest; and every command that a run tells its reader to type is one that `deskbook` understands."""

    def go(*args, **parameters):
        result = run(*args, **parameters)
        said = notes(result) + " ".join(c.detail for c in result.evidence.checks)
        for words in map(shlex.split, re.findall(r"`deskbook ([^`]+)`", said)):
            asked = CliRunner().invoke(app, [*words, "--help"])
            assert asked.exit_code == 0, (words, asked.output)
            if words[0] == "run":
                assert (Path(live_rig.__file__).parents[2] / "runbooks" / f"{words[1]}.ipynb").is_file(), words
        return result

    return go


def failed(result):
    """Names of the checks that do not hold, in their order."""
    assert result.evidence.error is None, result.evidence.error
    return [c.name for c in result.evidence.checks if c.passed is False]


def at_ten():
    return to_ms(ten())


def ticking():
    """A clock that begins at ten."""
    began = time.monotonic()
    return lambda: at_ten() + round((time.monotonic() - began) * 1000)


def sent(venue):
    """Orders that reached the venue."""
    headers = {"Authorization": f"Bearer {SANDBOX_TOKEN}"}
    return httpx.get(f"{venue.url}/v3/accounts/{SANDBOX_ACCOUNT}/orders?state=ALL", headers=headers, trust_env=False).json()["orders"]


# ---- Valkey

@pytest.fixture
def mortal(account, mortal_servers, monkeypatch):
    """The same account in servers of this test's own."""
    monkeypatch.setenv("TIMESCALE_URL", mortal_servers.postgres_url)
    monkeypatch.setenv("VALKEY_URL", mortal_servers.valkey_url)
    return mortal_servers


def test_valkey_is_killed_and_comes_back(mortal, account, run, venue):
    with deployed(account, ("manager", "sender", "streamer", "gates"), clock=at_ten):
        end = time.monotonic() + 60
        while (now := look_live(account, ten())).stale or now.loop_age_s is None:
            assert time.monotonic() < end, now
            time.sleep(0.3)
        clean = run("incidents/valkey_down", "", account=account, at=ten())
        assert "the shared keys are there" in failed(clean), "nobody wrote the health key: no health worker runs"
        os.kill(mortal.valkey.pid, signal.SIGKILL)
        down = run("incidents/valkey_down", "", account=account, at=ten())
        assert down.exit_code == 1 and failed(down) == ["Valkey answers"] and "counts as engaged" in notes(down)
        still = run("incidents/valkey_down", "", account=account, at=ten(), wait_s=1, mode="live")
        assert failed(still) == ["Valkey answers"], "waiting helps nothing while it is away"
        mortal.valkey.revive()
        live = run("incidents/valkey_down", "", account=account, at=ten(), wait_s=60, mode="live")
        assert live.exit_code == 0, (live.evidence.reason, live.evidence.checks)
        assert checks(live)["workers write again"] and "kill_switch_refuses_to_clear" in notes(live)
    assert sent(venue) == []


def test_valkey_came_back_empty(account, run):
    with fed(account, ("streamer",)):
        dry = run("incidents/valkey_down", "", account=account, at=ten())
        assert dry.exit_code == 1 and checks(dry)["the shared keys are there"] is False and dry.evidence.numbers["missing keys before"] == 7
        assert "--live" in notes(dry)
        live = run("incidents/valkey_down", "", account=account, at=ten(), mode="live")
        assert live.exit_code == 0, live.evidence.reason
        assert "engaged by operator" in notes(live), "a lost kill switch comes back engaged"
        again = run("incidents/valkey_down", "", account=account, at=ten())
        assert again.exit_code == 0 and again.evidence.numbers["missing keys before"] == 0


# ---- prices

def test_prices_and_their_history(account, run):
    with deployed(account, ("api",)) as api:
        dry = run("incidents/pricing_empty", "", account=account, at=ten(), api=api)
        assert dry.exit_code == 1 and failed(dry) == ["every pair has a history"] and "--live" in notes(dry)
        live = run("incidents/pricing_empty", "", account=account, at=ten(), api=api, mode="live")
        assert live.exit_code == 0, live.evidence.reason
        assert live.evidence.numbers["pairs with a price"] == 2 and live.evidence.numbers["pairs with a history"] == 2
        strange = run("incidents/pricing_empty", "", account=account, at=ten(), api=api, instruments="EUR_USD,EUR_XXX")
        assert failed(strange)[0] == "every pair is offered" and "HOTBAND_PAIRS" in notes(strange)


@pytest.mark.parametrize(("kind", "options", "said"), [
    ("http_error", {"route": "pricing*", "status": 503}, "validate"),
    ("revoked", {}, "Check the token"),
])
def test_prices_that_the_venue_does_not_give(account, run, venue, kind, options, said):
    venue.control.add_fault(kind, **options)
    result = run("incidents/pricing_empty", "", account=account, at=ten(), api="http://127.0.0.1:9")
    assert result.exit_code == 1 and failed(result)[0] == "the venue gives prices" and said in notes(result), notes(result)


def test_prices_that_stand_still(account, run, venue):
    venue.control.add_fault("stale_prices", route="pricing*")
    first = run("incidents/pricing_empty", "", account=account, at=ten(), api="http://127.0.0.1:9")
    assert checks(first)["prices are new and tradeable"]
    venue.control.advance(600)
    later = run("incidents/pricing_empty", "", account=account, at=ten(600), api="http://127.0.0.1:9")
    assert failed(later)[0] == "prices are new and tradeable" and "status page" in notes(later)
    closed = run("incidents/pricing_empty", "", account=account, at="2026-11-21T12:00:00Z", api="http://127.0.0.1:9")
    assert checks(closed)["prices are new and tradeable"], "a closed market quotes old prices"


def test_prices_of_a_halted_pair(account, run, venue):
    venue.control.market("halt", "USD_JPY")
    result = run("incidents/pricing_empty", "", account=account, at=ten(), api="http://127.0.0.1:9")
    assert failed(result)[0] == "prices are new and tradeable" and "USD_JPY" in notes(result) and "EUR_USD" not in notes(result)


def test_prices_without_credentials(account, run, monkeypatch):
    result = run("incidents/pricing_empty", "", account="oanda-practice", at=ten(), api="http://127.0.0.1:9")
    assert result.exit_code == 1 and failed(result)[0] == "the venue gives prices" and "OANDA_API_KEY" in notes(result) + str(result.evidence.checks)
    assert "environment" in notes(result)


def test_prices_that_the_api_does_not_hand_on(account, run):
    with fed(account, ("streamer",)):
        result = run("incidents/pricing_empty", "", account=account, at=ten(), api="http://127.0.0.1:9")
    assert failed(result) == ["the API hands them on"] and "daemon api" in notes(result)


# ---- hazard

def put_gates(valkey_url, key_prefix, asked):
    """Ten gates of EUR_USD, the last `asked` of them far above the threshold; one of USD_JPY, calm."""
    async def go():
        live = open_live(valkey_url, key_prefix)
        for instrument, minutes, wild in [*(("EUR_USD", m, m < asked) for m in reversed(range(10))), ("USD_JPY", 0, False)]:
            ms = at_ten() - 5_000 - minutes*60_000
            gate = {"instrument": instrument, "ts_ms": ms - 60_000, "asof_ms": ms, "admit": not wild, "hazard": 0.9 if wild else 0.1, "hazard_threshold": 0.5,
                    "reasons": ["hazard_exceeds_adaptive_threshold", "hazard_fallback_requested"] if wild else []}
            await put_gate(live, instrument, gate["ts_ms"], json.dumps(gate), 900, 100)
        await live.aclose()
    asyncio.run(go())


def test_no_hazard_breach(account, run, valkey_url, key_prefix):
    put_gates(valkey_url, key_prefix, asked=2)
    result = run("incidents/hazard_breach", "", account=account, at=ten(), why="to see", mode="live")
    assert result.exit_code == 0, result.evidence.reason
    assert result.evidence.numbers["gates that asked for a person"] == 2 and "no pair goes on asking" in notes(result)


def test_a_hazard_breach_halts_the_desk(account, run, valkey_url, key_prefix):
    put_gates(valkey_url, key_prefix, asked=3)
    with deployed(account, ("api", "sender")) as api:
        switch(api, False)
        dry = run("incidents/hazard_breach", "", account=account, at=ten(), api=api)
        assert failed(dry) == ["no pair goes on asking", "the kill switch is engaged"] and "--live" in notes(dry) and health(api)["kill_switch"] is False
        assert run("incidents/hazard_breach", "", account=account, at=ten(), api=api, mode="live").exit_code == 2, "a desk is halted for a reason"
        live = run("incidents/hazard_breach", "", account=account, at=ten(), api=api, why="the market is wild", mode="live")
        assert failed(live) == ["no pair goes on asking"] and health(api)["kill_switch"] is True and "leave the kill switch engaged" in notes(live)
        refused = run("incidents/kill_switch_refuses_to_clear", "", account=account, at=ten(), why="never mind", mode="live")
        assert refused.exit_code == 1 and "hazard_breach" in notes(refused) and health(api)["kill_switch"] is True
        story = run("incidents/kill_switch_refuses_to_clear", "", account=account, at=ten())
        assert "the market is wild (hazard of EUR_USD)" in notes(story)


def test_a_hazard_breach_is_halted_without_the_api(account, run, valkey_url, key_prefix, monkeypatch):
    put_gates(valkey_url, key_prefix, asked=10)
    with deployed(account, ("api", "sender")) as api:
        switch(api, False)
    live = run("incidents/hazard_breach", "", account=account, at=ten(), api="http://127.0.0.1:9", why="the market is wild", mode="live")
    assert checks(live)["the kill switch is engaged"]
    monkeypatch.setenv("VALKEY_URL", "redis://127.0.0.1:9")
    blind = run("incidents/hazard_breach", "", account=account, at=ten(), api="http://127.0.0.1:9")
    assert failed(blind)[0] == "Valkey answers" and "valkey_down" in notes(blind)


# ---- orders

@contextlib.contextmanager
def deciding(account, valkey_url, key_prefix, monkeypatch, tmp_path, profile, **gate):
    """A desk at ten o'clock whose kill switch is clear and whose manager has one admitted gate of EUR_USD and a profile; its API's address."""
    (tmp_path / "profile.yaml").write_text(profile)
    monkeypatch.setenv("STRATEGY_PROFILE", str(tmp_path / "profile.yaml"))
    monkeypatch.setenv("HOTBAND_PAIRS", "EUR_USD")
    gate = a_gate(asof_ms=at_ten() - 5_000, **gate)

    async def store():
        live = open_live(valkey_url, key_prefix)
        await put_gate(live, "EUR_USD", gate["ts_ms"], json.dumps(gate), 900, 100)
        await live.aclose()
    asyncio.run(store())
    with deployed(account, clock=ticking()) as api:
        switch(api, False)
        time.sleep(5)  # two rounds
        yield api


def ignored(run, account, **more):
    return run("incidents/orders_ignored", "", account=account, at=ten(), **more)


def test_no_order_is_ignored(account, run, valkey_url, key_prefix, monkeypatch, tmp_path):
    with deciding(account, valkey_url, key_prefix, monkeypatch, tmp_path, ALWAYS):
        result = ignored(run, account)
    assert result.exit_code == 0, (result.evidence.reason, notes(result))
    assert result.evidence.numbers["pairs with a fresh gate that admits"] == 1 and result.evidence.numbers["orders filled"] == 1
    assert "what is held or on its way forbids more" in notes(result)


@pytest.mark.parametrize(("profile", "gate", "said"), [
    (ALWAYS + "guards: {min_coherence: 0.9}\n", {}, "the strategy profile says no"),
    (ALWAYS, {"admit": False, "reasons": ["regime_filtered"]}, "the gate says no"),
    ("global: {session: {start: 02:00, end: 03:00}}\n", {}, "the session is closed until"),
])
def test_what_a_pair_says(account, run, valkey_url, key_prefix, monkeypatch, tmp_path, profile, gate, said):
    with deciding(account, valkey_url, key_prefix, monkeypatch, tmp_path, profile, **gate):
        result = ignored(run, account)
    assert result.exit_code == 0, result.evidence.reason
    assert said in notes(result) and "Nothing stands in the way" in notes(result), notes(result)


def test_a_profile_that_nobody_can_read(account, run, monkeypatch, tmp_path):
    (tmp_path / "profile.yaml").write_text("guardz: {}\n")
    monkeypatch.setenv("STRATEGY_PROFILE", str(tmp_path / "profile.yaml"))
    result = ignored(run, account)
    assert checks(result)["profile"] is False and "guards" in str(result.evidence.checks), "the nearest name is suggested"


def test_orders_that_the_desk_holds_up(account, run):
    alone = ignored(run, account)
    assert failed(alone)[0] == "the kill switch is clear" and not any(checks(alone)[c] for c in ("a manager decides", "a sender sends"))
    with deployed(account, clock=ticking()) as api:
        halted = ignored(run, account)
        assert failed(halted) == ["the kill switch is clear"] and "kill_switch_refuses_to_clear" in notes(halted)
        switch(api, False)
        time.sleep(3)
        free = ignored(run, account)
        assert free.exit_code == 0, free.evidence.reason
        assert "its gate is missing or old" in notes(free) and "gates_missing_or_stale" in notes(free)
    with deployed(account, ("manager", "api"), clock=ticking()) as api:
        switch(api, False)
        time.sleep(3)
        unsent = ignored(run, account)
        assert failed(unsent) == ["a sender sends"] and "daemon sender" in notes(unsent)


def test_orders_of_a_read_only_desk(account, run, monkeypatch):
    monkeypatch.setenv("OANDA_API_KEY", SANDBOX_TOKEN)
    monkeypatch.setenv("OANDA_ACCOUNT_ID", SANDBOX_ACCOUNT)
    with deployed(account, environment="practice") as api:
        switch(api, False)
        time.sleep(3)
        result = run("incidents/orders_ignored", "", account=account)
    assert failed(result) == ["the desk may write"] and "go_live" in notes(result), "the running manager says so, whatever the settings of here"


# ---- drift

def test_drift_and_a_planner_that_reads_again(account, run, venue, valkey_url, key_prefix):
    order_rig.trade(account, valkey_url, key_prefix, order_rig.buy(account))
    order_rig.stranger_buys(venue, "-400")
    with deployed(account, ("manager",)):
        end = time.monotonic() + 30
        while look_live(account).loop_age_s is None:
            assert time.monotonic() < end
            time.sleep(0.3)
        dry = run("incidents/exposure_drift", "", account=account)
        assert failed(dry)[0] == "ledger and venue agree" and "EUR_USD: partly closed at the venue." in notes(dry)
        assert checks(dry)["the planner holds the same positions"] and "--set close=EUR_USD" in notes(dry)
        assert run("incidents/exposure_drift", "", account=account, close="EUR_USD", mode="live").exit_code == 2, "a position is closed for a reason"
        live = run("incidents/exposure_drift", "", account=account, close="EUR_USD", unfreeze="yes", why="sold by hand", mode="live")
        assert live.exit_code == 0, live.evidence.reason
        assert order_rig.net(venue) == 0 and checks(live)["the planner holds the same positions"]


def test_a_planner_that_hangs_is_told(account, run, ledger, valkey_url, key_prefix):
    order_rig.trade(account, valkey_url, key_prefix, order_rig.buy(account))

    async def hang():
        """A manager that holds its lease, and made its last round before the position was there."""
        live = open_live(valkey_url, key_prefix)
        await put_json(live, DESK_LOOP, {"ts_ms": system_clock() - 100_000, "account": account})
        await live.aclose()
        async with await Ledger.open(ledger, min_size=1, max_size=1) as db:
            assert await take_lease(db, f"worker:manager:{account}", "a-test", 600.0)
    asyncio.run(hang())
    result = run("incidents/exposure_drift", "", account=account, wait_s=1, mode="live")
    assert failed(result) == ["the planner holds the same positions"] and "daemon manager" in notes(result)
    assert "planner 0, ledger 1000" in notes(result)
