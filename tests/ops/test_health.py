"""The health worker over a real ledger, a real Valkey and a sandbox; certificates made by openssl."""
import asyncio
import json
import subprocess

import pytest
from deskbook.core import metrics
from deskbook.core.clock import iso
from deskbook.core.errors import BadInput
from deskbook.core.settings import Settings
from deskbook.ops.health import Limits, Watch, certificate_end, hazard_fallback, not_after, run
from deskbook.ops.notify import Notifier
from deskbook.stores.live import LiveUnavailable
from deskbook.stores.live_state import DESK_LOOP, NAV_SNAPSHOT, OPS_HEALTH, get_json, put_gate, put_json
from deskbook.stores.records import raise_alert, resolve_alert
from deskbook.trading.controls import clear, engage, kill_state
from listeners import Webhook
from live_world import a_sandbox, parts_of


@pytest.fixture(scope="module")
def sandbox():
    with a_sandbox() as s:
        yield s


@pytest.fixture
def world(sandbox, ledger, valkey_url, tmp_path):
    """world(test): run it with parts and a webhook."""

    def go(test, **more):
        async def whole(hook):
            async with parts_of(sandbox, ledger, valkey_url, tmp_path / "home", slack_webhook=hook.url, **more) as parts:
                notifier = Notifier(parts.settings, parts.clock)
                watch = Watch(parts.settings, parts.live, parts.desk, parts.clock, notifier, Limits(600, 2.0, workers=()))
                try:
                    await test(parts, watch, hook)
                finally:
                    await asyncio.to_thread(notifier.close)

        with Webhook() as hook:
            asyncio.run(whole(hook))

    return go


async def in_order(parts, age_s=30.0, pairs=("EUR_USD", "USD_JPY")):
    """As if all workers ran."""
    now = parts.clock()
    for pair in pairs:
        asof = now - round(age_s * 1000)
        await put_gate(parts.live, pair, asof - 60_000, json.dumps({"instrument": pair, "ts_ms": asof - 60_000, "asof_ms": asof}), 900, 100)
    await put_json(parts.live, DESK_LOOP, {"ts_ms": now - 1000})
    await put_json(parts.live, NAV_SNAPSHOT, {"nav": 100_000.0, "balance": 100_000.0, "ts_ms": now - 1000})


async def open_alerts(parts):
    return {r["fingerprint"]: r for r in await parts.ledger.rows("SELECT * FROM ops_alerts WHERE status <> 'resolved'")}


async def told(hook, n):
    for _ in range(200):
        if len(hook.texts) >= n:
            return hook.texts
        await asyncio.sleep(0.02)
    raise AssertionError(f"{hook.texts} are not {n}")


def test_a_desk_in_order_is_ok_and_says_so(world):
    async def test(parts, watch, hook):
        await in_order(parts)
        health = await watch.look()
        assert health.overall == "ok", health.findings
        said = await get_json(parts.live, OPS_HEALTH)
        assert said["overall"] == "ok" and said["timestamp"] == iso(parts.clock()) and said["detail"]["nav"] == 100_000.0 and said["detail"]["drift_usd"] == 0.0
        assert 0 < await parts.live.redis.ttl(parts.live.key(OPS_HEALTH)) <= 45
        assert metrics.GATE_AGE.labels("EUR_USD")._value.get() == 30 and metrics.KILL_SWITCH._value.get() == 1 and metrics.NAV._value.get() == 100_000
        assert not hook.texts

    world(test)


def test_trouble_is_told_when_seen_twice_and_when_it_is_over(world):
    async def test(parts, watch, hook):
        await in_order(parts, age_s=601)
        health = await watch.look()
        assert health.overall == "critical" and [f.name for f in health.findings] == ["gates"]
        assert not await open_alerts(parts), "one slow answer wakes nobody"
        for _ in range(3):
            await watch.look()
        alert = (await open_alerts(parts))["health:gates:paper"]
        assert alert["severity"] == "high" and alert["value"] == 601 and alert["threshold"] == 600
        assert (await told(hook, 1))[0].startswith("[high] Old or missing gates: EUR_USD 601 s, USD_JPY 601 s.")
        await in_order(parts)
        await watch.look()
        assert not await open_alerts(parts)
        assert (await told(hook, 2))[1].startswith("[resolved]") and len(hook.texts) == 2

    world(test)


def test_what_others_raise_is_told_once_and_not_when_somebody_looks_after_it(world):
    async def test(parts, watch, hook):
        await in_order(parts)
        await watch.look()
        async with parts.ledger.transaction() as tx:
            await raise_alert(tx, "unknown_order:paper", "orders", "high", "", "An order's outcome is not known.")
        for _ in range(3):
            await watch.look()
        assert (await told(hook, 1)) == ["[high] An order's outcome is not known."]
        async with parts.ledger.transaction() as tx:
            await raise_alert(tx, "short:paper", "orders", "low", "", "It came and went between two looks.")
            await resolve_alert(tx, "short:paper")
            await resolve_alert(tx, "unknown_order:paper")
        await watch.look()
        assert sorted(t.partition("]")[0] for t in await told(hook, 4)) == ["[high", "[low", "[resolved", "[resolved"]
        assert metrics.ALERTS_OPEN.labels("high")._value.get() == 0

    world(test)


def test_the_weekend_is_no_trouble(world):
    async def test(parts, watch, hook):
        await in_order(parts)
        parts.clock.ms += 4 * 86_400_000  # Saturday
        await put_json(parts.live, DESK_LOOP, {"ts_ms": parts.clock() - 1000})
        await put_json(parts.live, NAV_SNAPSHOT, {"nav": 1.0, "ts_ms": parts.clock() - 1000})
        assert (await watch.look()).overall == "ok"

    world(test)


def test_a_manager_that_hangs_and_a_drift(world, sandbox):
    async def test(parts, watch, hook):
        await in_order(parts)
        await put_json(parts.live, DESK_LOOP, {"ts_ms": parts.clock() - 31_000})
        import httpx
        with httpx.Client(base_url=f"{sandbox.url}/v3/accounts/{sandbox.account}", headers={"Authorization": f"Bearer {sandbox.token}"}, trust_env=False) as c:
            assert c.post("/orders", json={"order": {"type": "MARKET", "instrument": "USD_JPY", "units": "700", "timeInForce": "FOK"}}).status_code == 201
        health = await watch.look()
        assert [f.name for f in health.findings] == ["loop", "drift"], health.findings
        assert health.detail["drift_usd"] == pytest.approx(700)
        with httpx.Client(base_url=f"{sandbox.url}/v3/accounts/{sandbox.account}", headers={"Authorization": f"Bearer {sandbox.token}"}, trust_env=False) as c:
            c.put("/positions/USD_JPY/close", json={"longUnits": "ALL"})

    world(test)


def test_a_breaker_a_freeze_and_a_worker_that_nobody_is(world):
    async def test(parts, watch, hook):
        await in_order(parts)
        await parts.ledger.rows("INSERT INTO account_risk_state (account, status, reason) VALUES ('paper', 'tripped', 'max_daily_loss_frac')")
        await parts.ledger.rows("UPDATE accounts SET entries_frozen = true, freeze_reason = 'mismatch' WHERE account = 'paper'")
        await parts.ledger.rows("INSERT INTO leases (name, owner, fencing_token, expires_at) VALUES ('worker:gates:paper', 'x', 1, now() + interval '1 minute')")
        watch.limits = Limits(workers=("gates", "manager"))
        health = await watch.look()
        assert [f.name for f in health.findings] == ["breaker", "frozen", "workers"] and "Nobody is manager" in health.findings[2].message

    world(test)


def test_stores_that_are_away(world, monkeypatch):
    async def test(parts, watch, hook):
        await in_order(parts)
        await watch.look()

        async def gone(*a, **k):
            raise LiveUnavailable("Valkey at desk:6379: connection refused")

        for name in ("get", "get_many"):
            monkeypatch.setattr(type(parts.live), name, gone)
        for _ in range(2):
            health = await watch.look()
        assert {f.name for f in health.findings} == {"live_store"} and "connection refused" in (await told(hook, 1))[0]
        monkeypatch.undo()
        await watch.look()
        await told(hook, 2)
        parts.ledger.pool.timeout = 0.2
        await parts.ledger.pool.close()
        for _ in range(2):
            health = await watch.look()
        assert "ledger" in {f.name for f in health.findings} and "ledger does not answer" in (await told(hook, 3))[2]

    world(test)


def test_a_kill_switch_that_is_cleared_is_told_each_time(world):
    async def test(parts, watch, hook):
        await in_order(parts)
        await engage(parts.desk.kill, "test", "begin")
        cleared = metrics.KILL_SWITCH_CLEARED._value.get()
        for n in (1, 2):
            await watch.look()
            await clear(parts.desk.kill, "anna", f"London opens {n}")
            await watch.look()
            assert f"London opens {n}" in (await told(hook, n))[-1]
            await engage(parts.desk.kill, "test", "again")
        assert metrics.KILL_SWITCH_CLEARED._value.get() - cleared == 2

    world(test)


@pytest.mark.parametrize("kills", [True, False])
def test_a_hazard_that_falls_back(world, kills):
    async def test(parts, watch, hook):
        await clear(parts.desk.kill, "anna", "test")
        await hazard_fallback(parts)("EUR_USD", type("G", (), {"hazard": 0.9})())
        assert (await kill_state(parts.desk.kill)).engaged is kills
        alert = (await open_alerts(parts))["hazard_fallback:EUR_USD"]
        assert alert["severity"] == "high" and ("kill switch is engaged" in alert["message"]) is kills

    world(test, hazard_fallback_kill=kills)


def test_the_worker_ends_when_told(world):
    async def test(parts, watch, hook):
        stop = asyncio.Event()
        task = asyncio.create_task(run(parts, stop))
        for _ in range(500):
            if await get_json(parts.live, OPS_HEALTH):
                break
            await asyncio.sleep(0.02)
        assert (await get_json(parts.live, OPS_HEALTH))["overall"] == "critical", "nothing was ever written"
        stop.set()
        await asyncio.wait_for(task, 5)

    world(test, health_interval_s=60)


def make_certificate(folder, days, key="rsa:2048"):
    """Self-signed, by openssl."""
    words = ["openssl", "req", "-x509", "-newkey", key, "-nodes", "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"), "-days", str(days), "-subj", "/CN=desk"]
    subprocess.run(words, check=True, capture_output=True)
    said = subprocess.run(["openssl", "x509", "-enddate", "-noout", "-dateopt", "iso_8601", "-in", str(folder / "cert.pem")], check=True, capture_output=True, text=True).stdout
    return folder / "cert.pem", said.strip().removeprefix("notAfter=").replace(" ", "T")


@pytest.mark.parametrize("days", [1, 13, 400, 20_000])
def test_the_end_of_a_certificate_is_what_openssl_says(tmp_path, days):
    path, said = make_certificate(tmp_path, days)
    assert iso(certificate_end(path)) == said


def test_the_first_certificate_to_end_counts_and_torn_files_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    long, short = make_certificate(tmp_path, 300), make_certificate(tmp_path / "a", 5)
    chain = tmp_path / "chain.pem"
    chain.write_text(long[0].read_text() + short[0].read_text())
    assert iso(certificate_end(chain)) == short[1]
    text = long[0].read_text()
    for bad in ("", "no certificate", text[:200], text[:500], text.replace("MII", "AAA")):
        chain.write_text(bad)
        with pytest.raises(BadInput, match="holds no certificate"):
            certificate_end(chain)
    with pytest.raises(BadInput):
        certificate_end(tmp_path / "nowhere.pem")
    with pytest.raises((ValueError, IndexError)):
        not_after(b"\x30\x03\x02\x01\x00")


def test_a_certificate_that_ends_soon_is_a_finding(world, tmp_path):
    from datetime import UTC, datetime

    from deskbook.core.clock import to_ms

    path, _ = make_certificate(tmp_path, 13)

    async def test(parts, watch, hook):
        parts.clock.ms = to_ms(datetime.now(UTC))
        await in_order(parts)
        assert [f.level for f in (await watch.look()).findings if f.name == "certificate"] == ["warning"]
        parts.clock.ms += 14 * 86_400_000
        assert [f.level for f in (await watch.look()).findings if f.name == "certificate"] == ["critical"]
        path.write_text("torn")
        assert next(f.message for f in (await watch.look()).findings if f.name == "certificate").startswith(str(path))

    world(test, tls_certificate=path)
    assert Settings(tls_certificate=None).tls_certificate is None


def test_requests_to_the_venue_are_counted(world, sandbox):
    """What the rule about broker errors is made of."""
    async def test(parts, watch, hook):
        def count(status):
            return sum(s.value for m in metrics.VENUE_REQUESTS.collect() for s in m.samples if s.name.endswith("_total") and s.labels["status"] == status)

        before = {s: count(s) for s in ("200", "503", "none")}
        await parts.venue.fetch_positions()
        assert count("200") > before["200"] and count("503") == before["503"]
        for kind, params, status in (("http_error", {"status": 503}, "503"), ("drop_before_accept", {}, "none")):
            sandbox.control.add_fault(kind, "", {"nth": [1]}, **params)
            await parts.venue.fetch_positions()  # tried again
            assert count(status) > before[status], kind
        sandbox.control.clear_faults()
        assert sum(s.value for m in metrics.VENUE_SECONDS.collect() for s in m.samples if s.name.endswith("_count")) > 0

    world(test)
