"""What simulated trading with everything failing must show: no order that should not be, a ledger that equals the venue, gates that equal a rebuild."""
import json
import math
import secrets
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from deskbook.gates.engine import GateEngine
from deskbook.stores.embedded import start_postgres, start_valkey
from deskbook.stores.ledger_migrate import migrate
from deskbook.trading import decide, manager
from deskbook.trading.controls import SendGuard
from deskbook.trading.sessions import Session

sys.path.insert(0, str(Path(__file__).resolve().parent))
from trading_week import FAULTS, ORDER_FAULTS, PAIRS, TRAPS, closes, to_ms
from week_judges import trade

MONDAY, THURSDAY = "2025-11-10T00:00:00Z", "2025-11-13T06:40:00Z"


@pytest.fixture
def servers(postgres_url, valkey_url):
    """Servers of this test alone, with their data on disk; those of the run are asked for so that the programs are there."""
    folder = Path("/tmp") / f"dbk-{secrets.token_hex(4)}"
    with start_postgres(folder=folder) as postgres, start_valkey(folder=folder) as valkey:
        migrate(postgres.url)
        yield postgres, valkey
    shutil.rmtree(folder, ignore_errors=True)


def at(hour_minute):
    return to_ms(f"2025-11-13T{hour_minute}:00Z")


async def morning(week):
    """Half an hour in which EUR_USD would be bought in nearly every minute: the session opens at seven, the desk is stopped, is read-only, oversleeps."""
    for close in closes(at("06:40"), at("07:12"), PAIRS[0]):
        if close == at("07:00"):
            await week.stop_desk(1)
        if close == at("07:02"):
            await week.may_clear()
            await week.reboot(read_only=True)
        if close == at("07:04"):
            await week.reboot(read_only=False)
            week.traps.append("sleep")
        await week.step(close)
    await week.end()


def test_half_an_hour_without_a_fault(servers, tmp_path):
    """Each control alone keeps the desk from trades that it would have made, and in the minutes between it makes them."""
    _, seen, wrong = trade(servers, tmp_path / "home", THURSDAY, 0.5, 1, often=({}, {}), script=morning)
    print(json.dumps(seen, indent=1))
    assert not any(wrong.values()), wrong
    assert not too_little(seen, {"orders": {"entry filled": 1}, "candidates refused by": {"session": 3, "kill_switch": 2, "read_only": 1, "stale_gate": 1}})


def careless(monkeypatch):
    """A desk without any of its controls, whose worker tells one gate that was not admitted, and one with a hazard that is off by one bit."""
    async def nothing(*_):
        return ()

    real, entry, exits = GateEngine.push, decide.entry_order, decide.plan_exits

    def push(self, row):
        gate = real(self, row)
        if self.instrument == "EUR_USD" and gate and gate.asof_ms == at("06:50"):
            return gate.model_copy(update={"admit": False, "reasons": ["hazard"]})
        bit = self.instrument == "EUR_USD" and gate and gate.asof_ms == at("07:06")
        return gate.model_copy(update={"hazard": math.nextafter(gate.hazard, 2)}) if bit else gate

    monkeypatch.setattr(GateEngine, "push", push)
    monkeypatch.setattr(SendGuard, "__call__", nothing)
    monkeypatch.setattr(manager, "controls", nothing)
    monkeypatch.setattr(manager, "session_at", lambda *_: Session(True, False, "profile_open", 0, 2**50))
    monkeypatch.setattr(decide, "gate_reasons", lambda *_: ())
    monkeypatch.setattr(decide, "entry_order", lambda inputs, units: entry(replace(inputs, max_gate_age_s=1e6), units))  # else the order expires with its gate
    def later(stack, rules, now, *more):  # else it leaves before it enters
        return [] if at("07:07") <= now < at("07:08") else exits(stack, rules, now, *more)

    monkeypatch.setattr(decide, "plan_exits", later)


async def careless_morning(week):
    """The same; at the end an order that no ledger knows, and a fill that the stream told too early."""
    await morning(week)
    week.sender.cancel()
    httpx.post(f"{week.sandbox.url}/v3/accounts/{week.sandbox.account}/orders", headers={"Authorization": f"Bearer {week.sandbox.token}"}, trust_env=False,
               json={"order": {"type": "MARKET", "instrument": "EUR_USD", "units": "7", "timeInForce": "FOK"}}).raise_for_status()
    week.story.told[0].insert(0, week.story.told[-1][-1])


def test_the_judges_see_a_careless_desk(servers, tmp_path, monkeypatch):
    careless(monkeypatch)
    _, seen, wrong = trade(servers, tmp_path / "home", THURSDAY, 0.5, 1, often=({}, {}), script=careless_morning)
    told = " ".join(wrong["orders"])
    for crime in ("sent while: kill switch", "sent while: read-only", "outside the session", "not admitted: ['hazard']", " s old"):
        assert crime in told, (crime, wrong["orders"], seen)
    assert wrong["gates"] == ["EUR_USD: gates in Valkey differ in ['hazard']", "EUR_USD: gates as the manager saw them differ in ['admit', 'reasons']"]
    assert any("POSITION" in w for w in wrong["ledger"]), wrong["ledger"]
    assert any("a follower heard" in w for w in wrong["stream"]), wrong["stream"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_trading_week_with_faults(servers, tmp_path):
    """From Monday to Monday. What must never happen did not; and all that could have made it happen did."""
    began = time.monotonic()
    _, seen, wrong = trade(servers, tmp_path / "home", MONDAY, 168, seed=1, say=True)
    print(json.dumps({"took_s": round(time.monotonic() - began, 1), **seen}, indent=1))
    assert not any(wrong.values()), wrong
    assert not too_little(seen, LEAST)


LEAST = {"orders sent": 60, "hours with a kill": 168, "gates compared": {"in Valkey": 15_000, "as the manager saw them": 2_500},
         "orders": {"entry filled": 25, "exit filled": 25}, "orders not sent": {"kill_switch": 1, "read_only": 1},
         "candidates refused by": {"kill_switch": 5, "read_only": 2, "session": 5, "stale_gate": 1, "stale_price": 1},
         "windows": {"kill switch": 6, "read-only": 3, "kill switch unreadable": 3},
         "happened": {"streams cut": 40, "stream Reconnected": 30, "postgres killed": 5, "valkey killed": 5, "Valkey flushed": 2, "killed in a round": 80,
                      **dict.fromkeys(("streamer killed", "gates killed", "manager killed", "process killed"), 20),
                      **dict.fromkeys(TRAPS, 1),
                      **{f"fault {kind}": 1 for kind, *_ in (*FAULTS, *ORDER_FAULTS)}}}


def too_little(seen, least, at=""):
    """What happened less often than it must for the run to show anything."""
    return [f"{at}{name}: {seen.get(name, 0)} of {want}" for name, want in least.items() if not isinstance(want, dict) and seen.get(name, 0) < want] + [
        short for name, want in least.items() if isinstance(want, dict) for short in too_little(seen.get(name, {}), want, f"{name}: ")]
