"""Policies, losses and the breaker in a real ledger: remembered, told once, one at a time."""
import asyncio
from dataclasses import replace
from decimal import Decimal

import pytest
from deskbook.core.errors import NotFound
from deskbook.stores.ledger import Ledger
from deskbook.trading import risk_ledger as r
from deskbook.trading.risk import CooldownActive, RiskPolicy

D = Decimal
NOW = 1_762_171_200_000


def run(url, test):
    async def go():
        async with await Ledger.open(url, max_size=8) as book:
            for account, mode in (("paper", "paper"), ("oanda-live", "live")):
                await book.rows("INSERT INTO accounts (account, venue, environment, mode, currency) VALUES (%s, 'oanda', %s, %s, 'USD')",
                                (account, "live" if mode == "live" else "sandbox", mode))
            return await test(book)
    return asyncio.run(go())


async def look(book, equity, minutes=0, account="paper", policy=None):
    async with book.transaction() as tx:
        return await r.look(tx, policy or RiskPolicy(), account, D(equity), NOW + minutes * 60_000)


def test_the_newest_policy_in_force_holds_and_the_old_ones_stay(ledger):
    async def test(book):
        async with book.transaction() as tx:
            for minutes, frac in ((0, "0.1"), (1, "0.2"), (60, "0.9")):
                await r.write_policy(tx, RiskPolicy(account="paper", max_drawdown_frac=D(frac), allowed_instruments=frozenset({"EUR_USD"})), "lead", NOW + minutes * 60_000)
            now = await r.read_policy(tx, "paper", "paper", NOW + 120_000)
            other = await r.read_policy(tx, "sandbox", "paper", NOW + 120_000)
        assert (now.max_drawdown_frac, now.allowed_instruments, now.account) == (D("0.2"), frozenset({"EUR_USD"}), "paper")
        assert other == RiskPolicy()
        assert [x["n"] for x in await book.rows("SELECT count(*) AS n FROM account_risk_policies")] == [3]
        told = await book.rows("SELECT actor, action, metadata, chain FROM ops_audit_events ORDER BY seq LIMIT 1")
        assert (told[0]["actor"], told[0]["action"], told[0]["chain"], told[0]["metadata"]["max_drawdown_frac"]) == ("lead", "account_risk.policy", "paper", "0.1")
    run(ledger, test)


def test_every_field_of_a_policy_comes_back(ledger):
    policy = RiskPolicy("live", "all of it", "oanda-live", D("0.31"), D("0.11"), D("1.6"), 7, D("2.5"), D("0.3"), D("0.015"), D("0.04"), 900, 45, frozenset({"EUR_USD", "USD_JPY"}))
    async def test(book):
        async with book.transaction() as tx:
            await r.write_policy(tx, policy, "lead", NOW)
            assert await r.read_policy(tx, "oanda-live", "live", NOW) == policy
            assert await r.read_policy(tx, "paper", "paper", NOW) == RiskPolicy()
    run(ledger, test)


def test_a_trip_is_remembered_and_told_once(ledger):
    async def test(book):
        for minutes, equity in enumerate((100_000, 101_000, 98_900, 90_000, 120_000)):
            state = await look(book, equity, minutes)
        assert (state.status, state.reason, state.tripped_at_ms, state.peak_equity) == ("tripped", "max_daily_loss,max_drawdown", NOW + 180_000, D(120_000))
        async with book.transaction() as tx:
            assert await r.read_state(tx, "paper") == state
        alerts = await book.rows("SELECT fingerprint, severity, metric, status, count, threshold FROM ops_alerts")
        assert alerts == [{"fingerprint": "account_risk:paper", "severity": "high", "metric": "max_daily_loss", "status": "open", "count": 1, "threshold": 0.02}]
        told = await book.rows("SELECT action, metadata FROM ops_audit_events WHERE chain = 'paper'")
        assert [x["action"] for x in told] == ["account_risk.circuit_breaker"]
        assert told[0]["metadata"]["equity"] == "90000"
    run(ledger, test)


def test_the_memory_survives_a_new_connection(ledger):
    run(ledger, lambda book: look(book, 100_000))

    async def later():
        async with await Ledger.open(ledger) as book:
            return await look(book, 97_000, 5)
    assert asyncio.run(later()).reason == "max_daily_loss"


def test_twenty_looks_at_once_trip_once_and_lose_no_peak(ledger):
    async def test(book):
        await look(book, 100_000)
        await asyncio.gather(*(look(book, equity, 1) for equity in [94_000, 99_000, 105_000, 95_000] * 5))
        async with book.transaction() as tx:
            state = await r.read_state(tx, "paper")
        assert (state.status, state.peak_equity) == ("tripped", D(105_000))
        assert await book.rows("SELECT count FROM ops_alerts") == [{"count": 1}]
        assert len(await book.rows("SELECT 1 AS x FROM ops_audit_events")) == 1
    run(ledger, test)


def test_a_look_waits_for_the_one_before_it(ledger):
    async def test(book):
        await look(book, 100_000)
        async with book.transaction() as tx:
            await r.look(tx, RiskPolicy(), "paper", D(105_000), NOW)
            second = asyncio.create_task(look(book, 94_000))
            done, _ = await asyncio.wait([second], timeout=0.3)
            assert not done
        state = await second
        assert (state.status, state.peak_equity, state.reason) == ("tripped", D(105_000), "max_daily_loss,max_drawdown")
    run(ledger, test)


def test_two_first_looks_at_once_make_one_memory(ledger):
    async def test(book):
        await asyncio.gather(*(look(book, 100_000) for _ in range(8)))
        assert len(await book.rows("SELECT 1 AS x FROM account_risk_state")) == 1
    run(ledger, test)


def test_accounts_are_apart(ledger):
    async def test(book):
        await look(book, 100_000)
        await look(book, 100_000, account="oanda-live", policy=RiskPolicy("live"))
        await look(book, 90_000, 1)
        async with book.transaction() as tx:
            assert (await r.read_state(tx, "oanda-live")).status == "ok"
    run(ledger, test)


def test_a_look_that_is_rolled_back_never_was(ledger):
    async def test(book):
        await look(book, 100_000)
        with pytest.raises(RuntimeError):
            async with book.transaction() as tx:
                assert (await r.look(tx, RiskPolicy(), "paper", D(90_000), NOW)).status == "tripped"
                raise RuntimeError
        async with book.transaction() as tx:
            assert (await r.read_state(tx, "paper")).status == "ok"
        assert await book.rows("SELECT 1 AS x FROM ops_alerts") == []
    run(ledger, test)


def test_rearming_waits_is_audited_and_closes_the_alert(ledger):
    async def test(book):
        async def rearm(minutes, accept=None):
            async with book.transaction() as tx:
                return await r.rearm_account(tx, "paper", "lead", NOW + minutes * 60_000, accept)
        with pytest.raises(NotFound):
            await rearm(0)
        await look(book, 100_000)
        assert (await rearm(0)).rearmed_by is None, "it has not tripped"
        await look(book, 97_000, 1)
        with pytest.raises(CooldownActive):
            await rearm(30)
        assert (await rearm(31)).status == "ok"
        assert (await look(book, 97_000, 32)).status == "tripped", "the loss is still there"
        assert (await rearm(90, D(97_000))).day_start_equity == 97_000
        assert (await look(book, 97_000, 91)).status == "ok"
        told = [x["action"] for x in await book.rows("SELECT action FROM ops_audit_events ORDER BY seq")]
        assert told == ["account_risk.circuit_breaker", "account_risk.rearm"] * 2
        assert {x["status"] for x in await book.rows("SELECT status FROM ops_alerts")} == {"resolved"}
    run(ledger, test)


def test_a_withdrawal_is_no_loss(ledger):
    async def test(book):
        await look(book, 100_000)
        async with book.transaction() as tx:
            await r.count_transfer(tx, "paper", D(-40_000))
            state = await r.look(tx, RiskPolicy(), "paper", D(60_000), NOW + 1)
        assert state == replace(state, status="ok", day_start_equity=D(60_000), peak_equity=D(60_000))
    run(ledger, test)
