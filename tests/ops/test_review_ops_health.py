"""What Prometheus is told when something is missing, cannot be read, or is only a sandbox."""
import asyncio
import math

import pytest
from deskbook.core import metrics
from deskbook.ops.health import Facts, health_of, read_facts, show_facts
from deskbook.ops.live_tools import Freshness, gate_age
from deskbook.stores.live_state import DESK_LOOP, put_json
from deskbook.trading.controls import KillState, clear
from live_world import a_sandbox, parts_of

NOW = 1_762_182_300_000
CLEAR = KillState("off", "off", "", "", "", "")


def sample(name, **labels):
    """As Prometheus would read it; None: there is no such series."""
    return metrics.REGISTRY.get_sample_value(name, labels)


def facts(gates, **more):
    return Facts(NOW, True, gates, CLEAR, **more)


def test_a_gate_that_is_gone_is_older_than_any():
    """A gate is forgotten after REGIME_GATE_TTL; the alert about it must not end then."""
    there = gate_age("EUR_USD", {"ts_ms": NOW - 90_000}, NOW, 180)
    show_facts(facts(Freshness(180, (there, gate_age("USD_JPY", None, NOW, 180)))))
    assert sample("sep_gate_age_seconds", instrument="EUR_USD") == 30 and sample("sep_gate_age_seconds", instrument="USD_JPY") == math.inf
    show_facts(facts(Freshness(180, (), "connection refused"), live_error="connection refused"))
    assert sample("sep_gate_age_seconds", instrument="EUR_USD") is None, "what is not known keeps no old figure"


def test_a_manager_that_is_silent_is_older_than_any():
    """Its mark lives for ten seconds, less than the rule about it waits for."""
    show_facts(facts(Freshness(180, ()), loop_age_s=1.0))
    assert sample("sep_loop_age_seconds") == 1
    show_facts(facts(Freshness(180, ()), loop_age_s=None))
    assert sample("sep_loop_age_seconds") == math.inf
    show_facts(facts(Freshness(180, (), "away"), live_error="away"))
    assert math.isnan(sample("sep_loop_age_seconds"))


def test_alerts_that_cannot_be_counted_are_not_none():
    show_facts(facts(Freshness(180, ()), alerts={"high": 2}))
    assert sample("sep_alerts_open", severity="high") == 2
    show_facts(facts(Freshness(180, ()), ledger_error="connection refused"))
    assert math.isnan(sample("sep_alerts_open", severity="high"))


@pytest.fixture(scope="module")
def sandbox():
    with a_sandbox() as s:
        yield s


def test_a_sandbox_that_trades_is_shown_as_trading(sandbox, ledger, valkey_url, tmp_path):
    """READ_ONLY is about practice and live accounts; metrics, health and API say the same about a sandbox."""
    async def go():
        async with parts_of(sandbox, ledger, valkey_url, tmp_path / "home", read_only=True) as parts:
            await clear(parts.desk.kill, "test", "it shall trade")
            await put_json(parts.live, DESK_LOOP, {"ts_ms": parts.clock() - 1000})
            seen = await read_facts(parts.settings, parts.live, parts.desk, parts.clock())
            show_facts(seen)
            assert (sample("sep_read_only"), sample("sep_trading_active")) == (0, 1)
            assert health_of(seen).detail["read_only"] is False
            await put_json(parts.live, DESK_LOOP, {"ts_ms": parts.clock() - 11_000})
            show_facts(await read_facts(parts.settings, parts.live, parts.desk, parts.clock()))
            assert sample("sep_trading_active") == 0, "as /api/status: five rounds, or ten seconds"
    asyncio.run(go())
