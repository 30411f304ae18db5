"""The runbooks of everyday operation, each clean and with the fault it is for, against a real ledger, a real Valkey, a real venue and a desk that runs."""
import asyncio
import contextlib
import json
import time
from datetime import timedelta

import polars as pl
import psycopg
import pytest
import test_live_runbooks as live_rig
import test_order_runbooks as order_rig

from deskbook.core.clock import iso, to_datetime, to_ms
from deskbook.core.files import read_json, sha256, write_json
from deskbook.market.simulated import simulate_candles
from deskbook.ops.live_care import look_live
from deskbook.ops.order_care import reconcile_account
from deskbook.stores.lake import Lake
from deskbook.stores.live import open_live
from deskbook.stores.live_state import put_candles, read_candles
from deskbook.studies.roster import record_roster
from deskbook.studies.weekly import CANONICAL

account, venue = live_rig.account, live_rig.venue
checks, deployed, health, notes, switch, ten = live_rig.checks, live_rig.deployed, live_rig.health, live_rig.notes, live_rig.switch, live_rig.ten
buy, net, stranger_buys, trade = order_rig.buy, order_rig.net, order_rig.stranger_buys, order_rig.trade

ALL = ("streamer", "gates", "manager", "api", "sender")


@contextlib.contextmanager
def whole_desk(account, names=ALL, wait_s=60):
    """The desk at ten o'clock, its gates fresh and its manager at work; the API's address."""
    with deployed(account, names, clock=lambda: to_ms(ten())) as api:
        end = time.monotonic() + wait_s
        while (now := look_live(account, ten())).stale or now.loop_age_s is None or not all(now.runs(w) for w in names):
            assert time.monotonic() < end, now
            time.sleep(0.3)
        yield api


# ---- during market hours

def test_a_desk_in_market_hours(account, run):
    with whole_desk(account) as api:
        halted = run("operations/during_market_hours", "", account=account, at=ten())
        assert halted.exit_code == 1 and checks(halted)["nothing stops the desk"] is False and "go_live" in notes(halted)
        switch(api, False)
        result = run("operations/during_market_hours", "", account=account, at=ten())
        assert result.exit_code == 0, result.evidence.reason
        assert result.evidence.numbers["gates"] > 0 and "as it should be" in notes(result)


def test_a_desk_that_is_meant_to_be_halted(account, run):
    with whole_desk(account):
        assert run("operations/during_market_hours", "", account=account, expect="halted", at=ten()).exit_code == 0
        late = run("operations/during_market_hours", "", account=account, expect="halted", at=ten(300))
    assert late.exit_code == 1 and checks(late)["gates are fresh"] is False and "manager" in notes(late)


def test_a_stale_gate_and_a_breached_limit(account, run, venue):
    stranger_buys(venue, "200000")
    reconcile_account(account)
    with deployed(account, ("manager", "api", "sender"), clock=lambda: to_ms(ten())):
        result = run("operations/during_market_hours", "", account=account, expect="halted", at=ten())
    found = checks(result)
    assert result.exit_code == 1 and found["gates are fresh"] is False and found["every limit holds"] is False
    assert found["every worker runs"] is False and "daemon streamer" in notes(result), "the cause before its effect"
    assert any("EUR_USD" in c.detail for c in result.evidence.checks if c.name == "every limit holds")


def test_a_venue_that_is_away_in_market_hours(account, run, monkeypatch):
    monkeypatch.setenv("DESKBOOK_SANDBOX_URL", "http://127.0.0.1:9")
    result = run("operations/during_market_hours", "", account=account, expect="halted", at=ten())
    assert result.exit_code == 1 and checks(result)["the venue answers"] is False and checks(result)["every limit holds"] is None
    assert "daemon streamer" in notes(result), "it ends with what to do, all the same"


# ---- closing by hand

def audited(ledger, action):
    """Who did it, to what, and why."""
    with psycopg.connect(ledger) as c:
        return [(a, r, m["why"]) for a, r, m in c.execute("SELECT actor, resource_id, metadata FROM ops_audit_events WHERE action = %s ORDER BY recorded_at", (action,))]


def test_a_position_is_closed_by_hand(account, run, venue, ledger, valkey_url, key_prefix):
    trade(account, valkey_url, key_prefix, buy(account))
    dry = run("operations/manual_close", "", account=account, instrument="EUR_USD", at=ten(0))
    assert dry.exit_code == 0, dry.evidence.reason
    assert net(venue) == 1000 and "deskbook run manual_close" in notes(dry)
    refused = run("operations/manual_close", "", account=account, instrument="EUR_USD", by="anna", mode="live")
    assert refused.exit_code == 2 and net(venue) == 1000, "nobody closes for no reason"

    part = run("operations/manual_close", "", account=account, instrument="EUR_USD", units="400", by="anna", why="too large", at=ten(0), mode="live")
    assert part.exit_code == 0, part.evidence.reason
    assert net(venue) == 600 and part.evidence.numbers["units left"] == 600
    rest = run("operations/manual_close", "", account=account, instrument="EUR_USD", by="anna", why="all of it", at=ten(0), mode="live")
    assert rest.exit_code == 0, rest.evidence.reason
    assert net(venue) == 0 and audited(ledger, "position.close") == [("anna", "EUR_USD", "too large"), ("anna", "EUR_USD", "all of it")]


def test_what_cannot_be_closed_by_hand(account, run, venue, ledger, valkey_url, key_prefix, monkeypatch):
    nothing = run("operations/manual_close", "", account=account, instrument="EUR_USD", by="anna", why="test", mode="live")
    assert nothing.exit_code == 1 and checks(nothing)["EUR_USD can be closed"] is False
    trade(account, valkey_url, key_prefix, buy(account))
    more = run("operations/manual_close", "", account=account, instrument="EUR_USD", units="1001", by="anna", why="test", mode="live")
    assert more.exit_code == 1 and net(venue) == 1000 and audited(ledger, "position.close") == []
    venue.control.add_fault("halt", route="orders.create")
    halted = run("operations/manual_close", "", account=account, instrument="EUR_USD", by="anna", why="test", mode="live")
    assert halted.exit_code == 1 and checks(halted)["the order was filled"] is False and net(venue) == 1000
    assert "another key" in notes(halted)
    monkeypatch.setenv("DESKBOOK_SANDBOX_URL", "http://127.0.0.1:9")
    away = run("operations/manual_close", "", account=account, instrument="EUR_USD", by="anna", why="test", mode="live")
    assert away.exit_code == 1 and checks(away)["the venue answers"] is False and "does the broker say" in notes(away)
    assert [why for _, _, why in audited(ledger, "position.close")] == ["test"], "only the halted one was tried"


# ---- first boot

def test_a_first_boot(account, run):
    with whole_desk(account) as api:
        dry = run("operations/first_boot", "", account=account, api=api, wait_s=5, at=ten())
        assert dry.exit_code == 1 and checks(dry)["the shared keys are right"] is False and "deskbook run seed_keys --set account=sandbox --live" in notes(dry)
        live = run("operations/first_boot", "", account=account, api=api, wait_s=30, at=ten(), mode="live")
        assert live.exit_code == 0, live.evidence.reason
        assert "Wrote ops:health" in notes(live) and "go_live" in notes(live)
        switch(api, False)
        trades = run("operations/first_boot", "", account=account, api=api, wait_s=1, at=ten(), mode="live")
        assert trades.exit_code == 1 and checks(trades)["the desk is halted"] is False and checks(trades)["/health says halted"] is False


def test_a_first_boot_of_nothing(account, run, monkeypatch):
    alone = run("operations/first_boot", "", account=account, api="http://127.0.0.1:9", wait_s=1, at=ten(), mode="live")
    found = checks(alone)
    assert alone.exit_code == 1 and found["the venue answers"] and found["the shared keys are right"] and found["the desk is halted"]
    assert found["every worker runs"] is False and "daemon streamer" in notes(alone)

    monkeypatch.setenv("DESKBOOK_SANDBOX_URL", "http://127.0.0.1:9")
    away = run("operations/first_boot", "", account=account, api="http://127.0.0.1:9", wait_s=1, at=ten())
    assert away.exit_code == 1 and checks(away)["the venue answers"] is False and "does the broker say" in notes(away)

    bare = run("operations/first_boot", "", account="oanda-practice", api="http://127.0.0.1:9", wait_s=1, at=ten())
    assert bare.exit_code == 1 and checks(bare)["credentials are there"] is False and "OANDA_API_KEY" in notes(bare)
    assert "the venue answers" not in checks(bare), "nobody asks a venue without a key"

    monkeypatch.setenv("VALKEY_URL", "redis://127.0.0.1:9")
    down = run("operations/first_boot", "", account=account, api="http://127.0.0.1:9", wait_s=1, at=ten(), mode="live")
    assert down.exit_code == 1 and checks(down)["Valkey answers"] is False and "VALKEY_URL" in notes(down)


# ---- the roster

def studied(end, cells):
    """Evidence of the week before `end`."""
    return {"generated_at": iso(end), "window": {"start": iso(end - timedelta(days=7)), "end": iso(end)}, "instruments": cells}


def cell(mean, share):
    def side(m):
        return {"avg_return_bp": m, "se_bp": 0.6, "n_eff": 110.0}
    return {"count": 440, "avg_return_pct": mean / 100, "positive_pct": share, "auroc_admit": 0.56, "p_value_holm": 0.01, "auroc_direction": 0.58,
            "auroc_ci95": {"direction": [0.55, 0.61]}, "short": side(-mean - 2)} | side(mean)


@pytest.fixture
def shelf(tmp_path):
    """Two weeks of a pair that gains and one that loses; the folder of the evidence."""
    folder, cells = tmp_path / "reports" / "evidence", {"EUR_USD": {"60": cell(1.5, 0.57)}, "USD_JPY": {"60": cell(-4.0, 0.40)}}
    for end in ("2025-11-03", "2025-11-10"):
        record_roster(folder / "roster.jsonl", studied(to_datetime(end), cells))
    write_json(folder / CANONICAL, studied(to_datetime("2025-11-10"), cells))
    return folder


NOW = "2025-11-11T09:00:00Z"


def test_both_roster_rules_and_a_decision(account, run, shelf, ledger):
    dry = run("operations/roster_decision", "", account=account, at=NOW)
    assert dry.exit_code == 0, dry.evidence.reason
    table = pl.read_csv(dry.folder / "roster.csv")
    assert table.select("instrument", "desk's rule", "sound rule").rows() == [("EUR_USD", "KEEP", "UNPROVEN"), ("USD_JPY", "REMOVE", "UNPROVEN")]
    assert "2 of 4 weeks" in table["reasons of the sound rule"][0] and "2 consecutive weeks" in table["its reasons"][1]
    assert "--set account=sandbox --set instrument=EUR_USD --set decision=tighten" in notes(dry) and not (shelf / "roster_decisions.jsonl").exists()

    live = run("operations/roster_decision", "", account=account, instrument="USD_JPY", decision="remove", by="anna", why="it loses", at=NOW, mode="live")
    assert live.exit_code == 0, live.evidence.reason
    assert "against the sound rule" in notes(live) and "HOTBAND_PAIRS=EUR_USD" in notes(live)
    line = json.loads((shelf / "roster_decisions.jsonl").read_text())
    assert (line["by"], line["why"], line["decision"], line["week"], line["against"]) == ("anna", "it loses", "remove", "2025-W45", ["sound"])
    assert line["evidence_sha256"] == sha256(shelf / CANONICAL) and audited(ledger, "roster.decide") == [("anna", "USD_JPY", "it loses")]
    again = run("operations/roster_decision", "", account=account, instrument="EUR_USD", decision="tighten", by="anna", why="unproven", at=NOW, mode="live")
    assert again.exit_code == 0 and len((shelf / "roster_decisions.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("fault", ["nobody", "stale", "missing", "broken", "simulated", "unstudied"])
def test_a_roster_is_not_decided_on_bad_evidence(fault, account, run, shelf, ledger):
    given = dict(account=account, instrument="USD_JPY", decision="remove", by="anna", why="it loses", at=NOW, mode="live")
    if fault == "nobody":
        given["by"] = ""
    if fault == "stale":
        given["at"] = "2025-11-25T09:00:00Z"
    if fault == "missing":
        (shelf / CANONICAL).unlink()
    if fault == "broken":
        (shelf / CANONICAL).write_text('{"window": ')
    if fault == "simulated":
        write_json(shelf / CANONICAL, read_json(shelf / CANONICAL) | {"venue": "simulated"})
    if fault == "unstudied":
        given["instrument"] = "AUD_USD"
    result = run("operations/roster_decision", "", **given)
    assert result.exit_code == (2 if fault == "nobody" else 1), result.evidence.reason
    assert not (shelf / "roster_decisions.jsonl").exists() and audited(ledger, "roster.decide") == []
    if fault not in ("nobody", "unstudied"):
        assert checks(result)["the evidence can be used"] is False and "weekly_signal_study --live" in notes(result)


# ---- retention

@contextlib.contextmanager
def on_live(valkey_url, key_prefix):
    """Do something with the live store: `do(coroutine function of it)`."""
    def do(work):
        async def go():
            live = open_live(valkey_url, key_prefix)
            try:
                return await work(live)
            finally:
                await live.aclose()
        return asyncio.run(go())
    yield do


WEEK = simulate_candles(["EUR_USD"], "2025-11-03", "2025-11-08", seed=7)  # Monday to Friday


@pytest.fixture
def candles(valkey_url, key_prefix, tmp_path, account):
    """A week of EUR_USD in Valkey and in the lake; how many candles Valkey holds, and the lake's address."""
    lake = Lake(tmp_path / "lake")
    lake.write_candles(WEEK, "sandbox")
    with on_live(valkey_url, key_prefix) as do:
        do(lambda live: put_candles(live, "EUR_USD", "M1", WEEK))
        yield lambda: do(lambda live: read_candles(live, "EUR_USD")).height, lake.url


FRIDAY = "2025-11-07T00:00:00Z"
STAY = WEEK.filter(pl.col("time") >= to_datetime("2025-11-05")).height


def test_old_candles_are_forgotten(account, run, candles, ledger):
    count, lake = candles
    dry = run("operations/retention", lake, keep_days=2, at=FRIDAY, account=account)
    assert dry.exit_code == 0, dry.evidence.reason
    assert dry.evidence.numbers["older candles"] == WEEK.height - STAY and count() == WEEK.height and "--live" in notes(dry)
    assert run("operations/retention", lake, keep_days=2, at=FRIDAY, account=account, by="anna", mode="live").exit_code == 2
    live = run("operations/retention", lake, keep_days=2, at=FRIDAY, account=account, by="anna", why="memory", mode="live")
    assert live.exit_code == 0, live.evidence.reason
    assert live.evidence.numbers["removed"] == WEEK.height - STAY and count() == STAY
    assert audited(ledger, "candles.prune") == [("anna", "valkey", "memory")] and "VALKEY_CANDLE_RETENTION=2" in notes(live)


def test_what_must_not_be_forgotten(account, run, candles, ledger, tmp_path):
    count, lake = candles
    elsewhere = Lake(tmp_path / "other")
    elsewhere.write_candles(WEEK.filter(pl.col("time") >= to_datetime("2025-11-04")), "sandbox")  # Monday was never saved
    lost = run("operations/retention", elsewhere.url, keep_days=2, at=FRIDAY, account=account, by="anna", why="memory", mode="live")
    assert lost.exit_code == 1 and checks(lost)["the lake has what would go"] is False and "--set minutes=5760 --live" in notes(lost), "back to Monday"
    bare = run("operations/retention", lake, keep_days=2, at="2025-11-20", account=account, by="anna", why="memory", mode="live")
    assert bare.exit_code == 1 and checks(bare)["enough stays for the gates"] is False
    all_of_it = run("operations/retention", lake, at=FRIDAY, account=account, by="anna", why="memory", mode="live")
    assert all_of_it.exit_code == 1 and checks(all_of_it)["a number of days is given"] is False
    assert count() == WEEK.height and audited(ledger, "candles.prune") == []


# ---- shared keys

def test_keys_are_seeded_where_there_are_none(account, run, ledger, valkey_url, key_prefix):
    with on_live(valkey_url, key_prefix) as do:
        do(lambda live: live.redis.set(live.key("ops:position_count"), "3"))
        dry = run("operations/seed_keys", "", account=account)
        assert dry.exit_code == 1 and "ops:kill_switch" in notes(dry) and do(lambda live: live.get("desk:loop")) is None
        assert run("operations/seed_keys", "", account=account, mode="live").exit_code == 2, "somebody seeds"
        live = run("operations/seed_keys", "", account=account, by="anna", mode="live")
        assert live.exit_code == 0, live.evidence.reason
        assert do(lambda live: live.get("ops:position_count")) == "3" and do(lambda live: live.get("ops:kill_switch")) == "1"

        with deployed(account, ("api",)) as api:
            switch(api, False)
            again = run("operations/seed_keys", "", account=account, by="anna", mode="live")
            assert again.exit_code == 0 and again.evidence.numbers["written"] == 0 and health(api)["kill_switch"] is False
            assert run("operations/seed_keys", "", account=account, force="yes", by="anna", mode="live").exit_code == 2, "force has a reason"
            forced = run("operations/seed_keys", "", account=account, force="yes", by="anna", why="start over", mode="live")
            assert forced.exit_code == 0, forced.evidence.reason
            assert do(lambda live: live.get("ops:position_count")) == "0" and health(api)["kill_switch"] is True
    assert audited(ledger, "keys.seed") == [("anna", "valkey", "start over")]


def test_a_key_that_somebody_broke_is_not_repaired_without_force(account, run, valkey_url, key_prefix):
    with on_live(valkey_url, key_prefix) as do:
        do(lambda live: live.redis.set(live.key("risk:nav_snapshot"), "many"))
        result = run("operations/seed_keys", "", account=account, by="anna", mode="live")
        assert result.exit_code == 1 and "force=yes" in notes(result) and do(lambda live: live.get("risk:nav_snapshot")) == "many"


# ---- candles

def test_a_gap_is_filled(account, run, tmp_path, valkey_url, key_prefix):
    lake = Lake(tmp_path / "lake")

    def fetch(**more):
        return run("operations/manual_candle_fetch", lake.url, account=account, at=ten(0), **more)

    empty = fetch()
    assert empty.exit_code == 0 and empty.evidence.numbers["missing before"] == 480 and "--live" in notes(empty)
    full = fetch(mode="live")
    assert full.exit_code == 0, full.evidence.reason
    assert full.evidence.numbers["missing after"] == 0 and lake.candles(["EUR_USD", "USD_JPY"]).height == 480

    hole = [to_ms(ten(0)) - m * 60_000 for m in (90, 60)]
    with on_live(valkey_url, key_prefix) as do:
        do(lambda live: live.redis.zremrangebyscore(live.key("md:candles:EUR_USD:M1"), hole[0], f"({hole[1]}"))
        filled = fetch(instruments="EUR_USD", mode="live")
        assert filled.exit_code == 0, filled.evidence.reason
        assert filled.evidence.numbers["missing before"] == 30 and filled.evidence.numbers["missing after"] == 0
        assert do(lambda live: read_candles(live, "EUR_USD")).height == 240


def test_candles_from_a_venue_that_is_away(account, run, monkeypatch):
    monkeypatch.setenv("DESKBOOK_SANDBOX_URL", "http://127.0.0.1:9")
    for mode in ("dry", "live"):
        away = run("operations/manual_candle_fetch", "", account=account, at=ten(0), mode=mode)
        assert away.exit_code == 1 and checks(away)["the venue answers"] is False
        assert away.evidence.numbers["missing after"] == 480
    monkeypatch.setenv("VALKEY_URL", "redis://127.0.0.1:9")
    down = run("operations/manual_candle_fetch", "", account=account, at=ten(0), mode="live")
    assert down.exit_code == 1 and checks(down)["Valkey answers"] is False
