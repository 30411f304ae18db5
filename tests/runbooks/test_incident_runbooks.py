"""The runbooks of incidents at the live desk, each clean and with the fault it is for: a Valkey that is killed, a venue without prices, gates that
ask for a person, a manager that says no."""
import os
import signal
import time

import httpx
import pytest
import test_live_runbooks as live_rig

from deskbook.core.clock import to_ms
from deskbook.ops.live_care import look_live
from deskbook.trading.desk import SANDBOX_ACCOUNT, SANDBOX_TOKEN

account, venue = live_rig.account, live_rig.venue
checks, deployed, fed, health, notes, switch, ten = (getattr(live_rig, n) for n in ("checks", "deployed", "fed", "health", "notes", "switch", "ten"))


def failed(result):
    """Names of the checks that do not hold, in their order."""
    assert result.evidence.error is None, result.evidence.error
    return [c.name for c in result.evidence.checks if c.passed is False]


def at_ten():
    return to_ms(ten())


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
