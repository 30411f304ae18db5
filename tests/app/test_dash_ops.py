"""The ops page over the real servers: each part, each failure, who may act, and a history that was changed."""
import asyncio
import re
import time
from html.parser import HTMLParser

import httpx
import numpy as np
import polars as pl
import psycopg
import pytest
from api_rig import story
from page_rig import signed_in, text_of

from deskbook.app.dashboard import ops_facts
from deskbook.app.dashboard.ops_facts import AUDIT_ROWS, PER_PAGE, AuditFilter, Verified, audit_page, coverage_of, gap_facts, lake_times, memory_of, read_verified
from deskbook.app.dashboard.ops_page import LIVE
from deskbook.core.clock import DAY_MS, HOUR_MS, MINUTE_MS, to_ms
from deskbook.market.calendar import calendar_for
from deskbook.stores.lake import Lake
from deskbook.stores.ledger import LedgerDown
from deskbook.stores.live_state import OPS_HEALTH, candles_key, put_candles, put_json
from deskbook.stores.records import AuditEvent, append_audits, audit, raise_alert, resolve_alert
from deskbook.trading.leases import new_owner, take_lease

EVIL = '<script>alert(1)</script><img src=x onerror=alert(2)>"\'>'
HTMX = {"HX-Request": "true"}
TABS = ("", "/audit", "/gaps", "/schedule", "/health")


class Tags(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def is_safe(html):
    """Nothing of `EVIL` is an element or an attribute of the page."""
    for tag, attrs in Tags(html).found:
        assert tag != "img" and not any(a.startswith("on") or a == "style" for a in attrs), (tag, attrs)
        assert tag != "script" or attrs["src"].startswith("/ui/static/"), attrs
        assert not attrs.get("href", "/").lower().startswith("javascript:"), attrs


async def shown(http, path):
    answer = await http.get(path)
    assert answer.status_code == 200, answer.text
    is_safe(answer.text)
    return answer.text


async def alert(desk, fingerprint, severity="high", **more):
    async with desk.ledger.transaction() as tx:
        row = await raise_alert(tx, f"{fingerprint}:{desk.account}", more.pop("category", "health"), severity, "age", more.pop("message", "Gates are old."), 900.0, 600.0, **more)
    return str(row["id"])


async def quiet(desk):
    """Alerts that other tests left in the same database are over."""
    await desk.ledger.rows("UPDATE ops_alerts SET status = 'resolved', resolved_at = now() WHERE status <> 'resolved' RETURNING id")


def away(desk, monkeypatch):
    async def down(*_):
        raise LedgerDown("ledger 'x' at localhost: connection refused.", "Check that the server runs.")
    monkeypatch.setattr(desk.ledger, "borrow", down)


def valkey_away(live):
    object.__setattr__(live, "redis", type(live.redis).from_url("redis://127.0.0.1:1/0", socket_connect_timeout=0.2, decode_responses=True))


def as_root(url, *statements):
    with psycopg.connect(url, autocommit=True) as c, c.transaction():
        c.execute("SET LOCAL session_replication_role = replica")
        for sql in statements:
            c.execute(sql)


# ---- alerts

def test_open_alerts_come_first_the_worst_of_them_first(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            await quiet(desk)
            signed_in(http)
            assert "Nothing needs a person." in text_of(await shown(http, "/ui/ops"))
            low, seen, high = await alert(desk, "health:disk", "low"), await alert(desk, "health:loop"), await alert(desk, "health:gates", "medium")
            await alert(desk, "health:gates", "medium")
            await desk.ledger.rows("UPDATE ops_alerts SET status = 'acknowledged', acknowledged_by = 'bo', acknowledged_at = now() WHERE id = %s RETURNING id", (seen,))
            html = await shown(http, "/ui/ops")
            found = re.findall(r'id="alert-([0-9a-f_x]+)"', html)
            assert [re.sub("_x2d_", "-", f) for f in found] == [high, low, seen], found
            text = text_of(html)
            for word in ("1 open, medium", "1 open, low", "1 acknowledged, not over yet", "Gates are old.", "2 times", "900", "600", "gates_missing_or_stale", "acknowledged by bo"):
                assert word in text, word
            assert 'href="/ui/runbooks/gates_missing_or_stale"' in html
            assert (await shown(http, "/ui/ops?shown=acknowledged")).count("card alert") == 1
            assert (await shown(http, "/ui/ops?shown=open")).count("card alert") == 2
            async with desk.ledger.transaction() as tx:
                await resolve_alert(tx, f"health:disk:{desk.account}")
            assert f"health:disk:{desk.account}" in await shown(http, "/ui/ops?shown=resolved")
            assert (await http.get("/ui/ops?shown=%3Cb%3E&page=-9")).status_code == 200
    story(go())


def test_acknowledging_is_audited_once_and_the_second_is_told(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            await quiet(desk)
            ident, csrf = await alert(desk, "health:gates"), signed_in(http)
            done = await http.post(f"/ui/ops/alerts/{ident}/acknowledge", data={"csrf": csrf}, headers=HTMX)
            assert done.status_code == 200 and "Acknowledged." in done.text and "1 acknowledged" in text_of(done.text) and "<button" not in done.text
            again = await http.post(f"/ui/ops/alerts/{ident}/acknowledge", data={"csrf": signed_in(http, name="bo")}, headers=HTMX)
            assert again.status_code == 200 and "It was not open any more: acknowledged by maria." in text_of(again.text)
            rows = await desk.ledger.rows("SELECT actor FROM ops_audit_events WHERE action = 'alert.acknowledge' AND resource_id = %s", (ident,))
            assert [r["actor"] for r in rows] == ["web:maria"]
            other = await alert(desk, "health:loop")
            plain = await http.post(f"/ui/ops/alerts/{other}/acknowledge", data={"csrf": signed_in(http)})
            assert (plain.status_code, plain.headers["location"]) == (303, "/ui/ops")
            assert (await http.post("/ui/ops/alerts/nope/acknowledge", data={"csrf": signed_in(http)}, headers=HTMX)).status_code == 404
    story(go())


def test_who_may_only_look_gets_a_disabled_button_and_403(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            await quiet(desk)
            ident, csrf = await alert(desk, "health:gates"), signed_in(http, may_act=False)
            html = await shown(http, "/ui/ops")
            assert re.search(r"<button[^>]*disabled[^>]*>Acknowledge", html) and "<form" not in html.split('id="ops-alerts"')[1].split("</ol>")[0]
            assert len(re.findall(r"<button[^>]*disabled[^>]*>Verify", await shown(http, "/ui/ops/audit"))) == 2
            for path in (f"alerts/{ident}/acknowledge", "audit/verify"):
                assert (await http.post(f"/ui/ops/{path}", data={"csrf": csrf}, headers=HTMX)).status_code == 403
                signed = signed_in(http)
                assert (await http.post(f"/ui/ops/{path}", data={"csrf": signed[::-1]}, headers=HTMX)).status_code == 403
                signed_in(http, may_act=False)
            row, = await desk.ledger.rows("SELECT status FROM ops_alerts WHERE id = %s", (ident,))
            assert row["status"] == "open"
    story(go())


def test_pages_of_alerts_turn_and_end(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            await quiet(desk)
            signed_in(http)
            for n in range(PER_PAGE + 3):
                await alert(desk, f"many:{n}", "low")
            first, second = await shown(http, "/ui/ops"), await shown(http, "/ui/ops?page=2")
            assert (first.count("card alert"), second.count("card alert")) == (PER_PAGE, 3)
            assert "Older" in first and "Newer" not in first and "Newer" in second and "Older" not in second
            assert "There is no such page." in await shown(http, "/ui/ops?page=99")
            await quiet(desk)
    story(go())


# ---- audit

def test_the_trail_turns_pages_over_both_chains_and_shows_every_row_once(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            signed_in(http)
            for n in range(70):
                async with desk.ledger.transaction() as tx:
                    await append_audits(tx, [AuditEvent("sender", f"test.{n}", "order", str(n), {"n": n}, "audit" if n % 3 else desk.account)])
            wanted, seen = AuditFilter((desk.account, "audit"), action="test."), []
            for _ in range(10):
                p = await audit_page(desk.ledger, wanted)
                seen += [(r.chain, r.seq) for r in p.rows if r.action.startswith("test.")]
                if not p.older:
                    break
                wanted = AuditFilter(wanted.chains, action="test.", before=p.older)
            assert len(set(seen)) == len(seen) >= 70
            html = await shown(http, "/ui/ops/audit?action=test.&actor=SEND")
            assert html.count("<code>test.") == AUDIT_ROWS and "test.69" in html
            older = re.search(r'href="(/ui/ops/audit\?[^"]*before=[^"]*)"', html)[1].replace("&amp;", "&")
            assert "test.1<" in await shown(http, older) and "test.69" not in await shown(http, older)
            assert (await http.get("/ui/ops/audit?before=1%3B2")).status_code == 400
            only = await shown(http, f"/ui/ops/audit?chain={desk.account}&action=test.")
            assert "test.69" in only and "test.68" not in only
    story(go())


@pytest.mark.timeout(240)
def test_a_long_trail_is_read_by_its_key_in_bounded_pieces(api_bench, ledger):
    """A hundred thousand rows: no page reads many of them, and a filter that fits none says how far it looked."""
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            signed_in(http)
            row = "sender', 'order.sent', 'order', '7f3a', '{}', now(), decode(repeat('00', 32), 'hex'), decode(repeat('00', 32), 'hex')"
            as_root(ledger, f"""INSERT INTO ops_audit_events (chain, seq, actor, action, resource_type, resource_id, metadata, recorded_at, prev_hash, hash)
                SELECT 'long', n, '{row} FROM generate_series(1, 100000) n""", """INSERT INTO chain_heads VALUES ('ops_audit_events', 'long', 100000, decode(repeat('00', 32), 'hex'))""",
                "ANALYZE ops_audit_events")
            try:
                began = time.perf_counter()
                page = await audit_page(desk.ledger, AuditFilter(("long",), before=(60_000,)))
                assert [r.seq for r in page.rows] == list(range(59_999, 59_949, -1)) and page.older == (59_950,)
                none = await audit_page(desk.ledger, AuditFilter(("long",), actor="nobody"))
                assert none.rows == () and none.looked == 20_000 and none.older == (80_001,)
                assert time.perf_counter() - began < 2
                plan = "\n".join(r["QUERY PLAN"] for r in await desk.ledger.rows("""EXPLAIN SELECT * FROM ops_audit_events
                    WHERE chain = 'long' AND seq < 60000 AND seq >= 40000 ORDER BY seq DESC LIMIT 51"""))
                assert "Index Scan Backward" in plan and "->  Sort" not in plan and "Seq Scan" not in plan, plan
            finally:
                as_root(ledger, "DELETE FROM ops_audit_events WHERE chain = 'long'", "DELETE FROM chain_heads WHERE chain = 'long'")
    story(go(), 120)


async def walked(http, csrf, rows):
    """Press the button and wait for the walk."""
    walk = memory_of(http.app.state.deps).walk
    answer = await http.post("/ui/ops/audit/verify", data={"csrf": csrf, "rows": rows}, headers=HTMX)
    assert answer.status_code == 200 and "Verifying" in answer.text, answer.text
    await asyncio.wait_for(walk.task, 30)
    return text_of(await shown(http, "/ui/ops/audit"))


def test_the_history_is_verified_on_request_and_what_was_changed_is_named(api_bench, ledger):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            csrf = signed_in(http)
            deps, name = http.app.state.deps, f"ops_audit_events/{desk.account}"
            walk = memory_of(deps).walk
            walk.piece_rows = 4
            async with desk.ledger.transaction() as tx:
                await append_audits(tx, [AuditEvent("sender", "order.sent", "order", str(n), {"n": n}, desk.account) for n in range(20)])
            assert "never verified" in text_of(await shown(http, "/ui/ops/audit")) and walk.task is None
            text = await walked(http, csrf, "new")
            assert "broken" not in text and "as written" in text, text
            kept = read_verified(walk.file)[name]
            assert kept.seq >= 20 and kept.whole_ms and not kept.broken
            who = await desk.ledger.rows("SELECT actor, metadata FROM ops_audit_events WHERE action = 'ledger.verify' ORDER BY recorded_at DESC LIMIT 1")
            assert who[0]["actor"] == "web:maria" and who[0]["metadata"] == {"rows": "new"}
            # a row before the mark: the walk of new rows goes on from the mark, the walk of all finds it
            async with desk.ledger.transaction() as tx:
                await audit(tx, "sender", "order.sent", "order", "later", chain=desk.account)
            as_root(ledger, f"UPDATE ops_audit_events SET actor = 'me' WHERE chain = '{desk.account}' AND seq = 7")
            assert "broken" not in await walked(http, csrf, "new")
            assert walk.verified[name].seq == kept.seq + 1
            text = await walked(http, csrf, "all")
            assert "broken" in text and "row 7 (" in text and "was altered" in text and "Stop sending" in text
            found, = await desk.ledger.rows("SELECT severity, message FROM ops_alerts WHERE fingerprint = %s AND status = 'open'", (f"chain_broken:{name}",))
            assert found["severity"] == "high" and "row 7" in found["message"]
            # it stays known after the rows that came since, and is over when a walk of all finds nothing
            assert "row 7 (" in await walked(http, csrf, "new")
            as_root(ledger, f"UPDATE ops_audit_events SET actor = 'sender' WHERE chain = '{desk.account}' AND seq = 7")
            assert "broken" not in await walked(http, csrf, "all")
            assert not await desk.ledger.rows("SELECT 1 AS x FROM ops_alerts WHERE fingerprint = %s AND status = 'open'", (f"chain_broken:{name}",))
    story(go())


def test_newest_rows_that_were_cut_off_are_noticed_by_the_mark_outside(api_bench, ledger):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            csrf, chain = signed_in(http), desk.account
            async with desk.ledger.transaction() as tx:
                await append_audits(tx, [AuditEvent("sender", "order.sent", "order", str(n), {}, chain) for n in range(6)])
            assert "broken" not in await walked(http, csrf, "new")
            last, = await desk.ledger.rows("SELECT max(seq) AS n FROM ops_audit_events WHERE chain = %s", (chain,))
            keep = last["n"] - 2
            as_root(ledger, f"DELETE FROM ops_audit_events WHERE chain = '{chain}' AND seq > {keep}",
                f"""UPDATE chain_heads SET seq = {keep}, hash = (SELECT hash FROM ops_audit_events WHERE chain = '{chain}' AND seq = {keep})
                    WHERE chain_table = 'ops_audit_events' AND chain = '{chain}'""")
            for rows in ("new", "all", "new"):
                text = await walked(http, csrf, rows)
                assert f"rows {keep + 1} to {last['n']} are gone" in text, (rows, text)
            told, = await desk.ledger.rows("SELECT count FROM ops_alerts WHERE fingerprint = %s AND status = 'open'", (f"chain_broken:ops_audit_events/{chain}",))
            assert told["count"] == 1
    story(go())


def test_a_second_walk_waits_its_turn_and_a_lost_database_ends_one_in_words(api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            csrf, walk = signed_in(http), memory_of(http.app.state.deps).walk
            held = asyncio.Event()

            async def long_one(*_):
                await held.wait()
                raise LedgerDown("ledger 'x': connection refused.")
            monkeypatch.setattr(ops_facts, "walk_one", long_one)
            for said in ("Verifying every row", "is going on already"):
                answer = await http.post("/ui/ops/audit/verify", data={"csrf": csrf, "rows": "all"}, headers=HTMX)
                assert said in answer.text and (await http.get("/ui/ops/audit")).status_code == 200
            assert "verifying" in text_of(await shown(http, "/ui/ops/audit"))
            held.set()
            await asyncio.wait_for(walk.task, 10)
            assert "The last verification stopped: ledger 'x': connection refused." in text_of(await shown(http, "/ui/ops/audit")).replace("&#39;", "'")
    story(go())


def test_a_mark_that_cannot_be_read_begins_anew(tmp_path):
    for text in ("", "[]", "{", '{"a": 7}', '{"a": {"seq": 1, "extra": 2}}', "null"):
        (tmp_path / "v.json").write_text(text)
        assert read_verified(tmp_path / "v.json") == {}
    assert Verified().head.seq == 0


# ---- gaps

def candles(name, times):
    price = np.full(len(times), 1.08)
    return pl.DataFrame({"instrument": [name] * len(times), "time": pl.Series(times, dtype=pl.Int64).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC"), "open": price, "high": price,
        "low": price, "close": price, "volume": np.full(len(times), 10), "complete": [True] * len(times)})


def test_gaps_of_both_stores_are_found_in_market_hours_only(api_bench):
    now = to_ms("2025-11-11T12:00:30Z")

    async def go():
        async with api_bench.api(run_desk=False, clock=lambda: now) as (desk, http):
            signed_in(http)
            deps, live = http.app.state.deps, desk.kill.store()
            end = now // MINUTE_MS * MINUTE_MS
            every = np.arange(end - 7 * DAY_MS - MINUTE_MS, end, MINUTE_MS)
            week = every[calendar_for("EUR_USD").is_open(every)]
            hole = (week >= to_ms("2025-11-10T09:00:00Z")) & (week < to_ms("2025-11-10T10:30:00Z"))
            lake = Lake(deps.settings.lake_url)
            await put_candles(live, "EUR_USD", "M1", candles("EUR_USD", week))
            await asyncio.to_thread(lake.write_candles, candles("EUR_USD", week[~hole]), "sandbox", "M1")
            await asyncio.to_thread(lake.write_candles, candles("EUR_USD", week[week % (5 * MINUTE_MS) == 0][1:41]), "sandbox", "M5")
            found = {(s.instrument, s.granularity): s for s in (await gap_facts(deps)).series}
            eur = found["EUR_USD", "M1"]
            assert (eur.live.missing, eur.live.gaps) == (0, ()) and eur.live.due == 7199
            assert (eur.lake.missing, eur.lake.holes) == (90, 1) and (eur.lake.gaps[0].start_ms, eur.lake.gaps[0].missing) == (to_ms("2025-11-10T09:00:00Z"), 90)
            jpy = found["USD_JPY", "M1"]
            assert jpy.live.there == jpy.lake.there == 0 and jpy.live.missing == jpy.live.due
            assert found["EUR_USD", "M5"].live is None and found["EUR_USD", "M5"].lake.there == 40
            # a candle of Valkey that is gone is found, though the others are counted and not read
            key = live.key(candles_key("EUR_USD", "M1"))
            await live.redis.zremrangebyscore(key, int(week[3000]), int(week[3004]))
            eur = next(s for s in (await gap_facts(deps)).series if s.instrument == "EUR_USD")
            assert [(g.start_ms, g.missing) for g in eur.live.gaps] == [(int(week[3000]), 5)]
            html = await shown(http, "/ui/ops/gaps")
            assert "90 missing" in html and "deskbook candles fetch EUR_USD --timeframe M1 --start 2025-11-10T09:00:00Z --end 2025-11-10T10:30:00Z" in html
            assert "/ui/runbooks/manual_candle_fetch" in html and 'class="part"' in html and 'class="none"' in html
    story(go(), 120)


def test_cells_of_a_strip_say_what_a_count_of_every_hour_says():
    calendar, end = calendar_for("EUR_USD"), to_ms("2025-11-11T12:00:00Z")
    every = np.arange(end - 7 * DAY_MS, end, MINUTE_MS)
    due, chance = every[calendar.is_open(every)], np.random.default_rng(3)
    for share in (0.0, 0.01, 0.5, 0.995, 1.0):
        held = due[chance.random(due.size) < share]
        found = coverage_of("live", held, calendar, MINUTE_MS, end - 7 * DAY_MS, end)
        assert (found.there, found.due) == (held.size, due.size)
        for cell in found.cells:
            for hour in range(cell.start_ms, cell.end_ms, HOUR_MS):
                want, have = (((t >= hour) & (t < hour + HOUR_MS)).sum() for t in (due, held))
                assert cell.kind == ("closed" if not want else "whole" if want == have else "none" if not have else "part"), (share, cell)


def test_one_store_of_candles_away_leaves_the_other(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            signed_in(http)
            valkey_away(desk.kill.store())
            text = text_of(await shown(http, "/ui/ops/gaps"))
            assert "Valkey could not be read" in text and "EUR_USD" in text and "Lake" in text
            assert (await http.get("/ui/ops")).status_code == (await http.get("/ui/ops/health")).status_code == 200
    story(go())


def test_gaps_are_looked_for_once_a_minute_however_many_look(api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            signed_in(http)
            looked = []

            def count(*args):
                looked.append(args)
                return lake_times(*args)
            monkeypatch.setattr("deskbook.app.dashboard.ops_facts.lake_times", count)
            await asyncio.gather(*(http.get("/ui/ops/gaps") for _ in range(5)))
            assert len(looked) == 2  # a pair each
    story(go())


# ---- schedule

def test_jobs_say_when_they_run_and_why_they_would_not(api_bench, monkeypatch, tmp_path):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            signed_in(http)
            text = text_of(await shown(http, "/ui/ops/schedule"))
            for word in ("weekly_signal_study", "at 06:00 on Tuesdays, UTC", "0 6 * * 2", "research", "live", "never", "all 2 jobs can start"):
                assert word in text, word
            (tmp_path / "scheduled").mkdir()
            (tmp_path / "scheduled" / "evil.toml").write_text(f"runbook = '''{EVIL}'''\ncron = '''{EVIL}'''\ntimezone = '''{EVIL}'''\nowner = '''{EVIL}'''\ndescription = '''{EVIL}'''\n".replace("'>'''", ">'''"))
            (tmp_path / "scheduled" / "torn.toml").write_text("runbook = ")
            (tmp_path / "scheduled" / "lord.toml").write_text('runbook = "weekly_signal_study"\ncron = "0 5 * * mon-fri"\ntimezone = "America/New_York"\nowner = "x"\n')
            monkeypatch.setattr("deskbook.app.dashboard.ops_facts.project_root", lambda: tmp_path)
            memory_of(http.app.state.deps).jobs.until = 0.0
            html = await shown(http, "/ui/ops/schedule")
            text = text_of(html)
            for word in ("3 jobs will not start", "torn.toml is not TOML", "alert(1)", "there is no runbook", "at 05:00 on Monday to Friday, New York time"):
                assert word in text, word
            assert re.search(r"05:00 E[SD]T", text)
    story(go())


# ---- health

def test_health_names_workers_stores_and_the_verdict(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            signed_in(http)
            live = desk.kill.store()
            await live.redis.delete(live.key(OPS_HEALTH))
            await take_lease(desk.ledger, f"worker:streamer:{desk.account}", new_owner(), 60)
            await take_lease(desk.ledger, f"worker:gates:{desk.account}", "elsewhere:4711:9f2c61", 0.01)
            await asyncio.sleep(0.05)
            text = text_of(await shown(http, "/ui/ops/health"))
            for word in ("Nobody watches the desk", "streamer", "running", "lease has run out", "elsewhere:4711:9f2c61", "never ran", "PostgreSQL", "Valkey", "Lake", "Disk", "free", "deskbook", "Python"):
                assert word in text, word
            found = [{"name": "gates", "level": "critical", "message": f"Old gates {EVIL}"}]
            await put_json(live, OPS_HEALTH, {"overall": "critical", "timestamp": "2025-11-11T12:00:00Z", "detail": {"findings": found}})
            html = await shown(http, "/ui/ops/health")
            assert "Something is down." in text_of(html) and "/ui/runbooks/gates_missing_or_stale" in html and "Old gates" in html
    story(go())


# ---- what fails alone, and what is hostile

def test_the_ledger_away_leaves_a_box_on_every_tab(api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            csrf = signed_in(http)
            away(desk, monkeypatch)
            for path, words in {"": ("Alerts cannot be shown: ledger", "The list cannot be shown: ledger", "connection refused", "Check that the server runs."), "/audit": ("The audit trail cannot be shown", "Chains cannot be shown"),
                    "/gaps": ("EUR_USD",), "/schedule": ("weekly_signal_study",), "/health": ("The list of workers cannot be shown", "PostgreSQL", "down", "Valkey", "answers")}.items():
                text = text_of(await shown(http, f"/ui/ops{path}"))
                assert all(w in text for w in words), (path, text)
            for path in ("alerts/7f3a0c1e-0000-4000-8000-000000000000/acknowledge", "audit/verify"):
                assert (await http.post(f"/ui/ops/{path}", data={"csrf": csrf, "rows": "new"}, headers=HTMX)).status_code == 503
            for source in LIVE:
                assert "connection refused" in "".join(map(str, (await source.look(http.app.state.deps)).values()))
            monkeypatch.undo()
    story(go())


def test_a_ledger_that_hangs_is_said_within_seconds(api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            signed_in(http)

            async def hangs(*_):
                await asyncio.sleep(60)
            monkeypatch.setattr(desk.ledger, "borrow", hangs)
            began = time.monotonic()
            text = text_of(await shown(http, "/ui/ops/health"))
            assert time.monotonic() - began < 6 and "no answer within 3 s" in text and "Valkey" in text
            monkeypatch.undo()
    story(go())


def test_valkey_away_leaves_alerts_and_audit(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            signed_in(http)
            await alert(desk, "health:live_store")
            valkey_away(desk.kill.store())
            html = await shown(http, "/ui/ops")
            assert "/ui/runbooks/valkey_down" in html
            text = text_of(await shown(http, "/ui/ops/health"))
            assert "The verdict cannot be shown" in text and "Valkey" in text and "down" in text and "PostgreSQL" in text
    story(go())


def test_hostile_words_are_shown_and_never_run(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            await quiet(desk)
            csrf = signed_in(http, name="<b onmouseover=alert(3)>")
            ident = await alert(desk, EVIL, "high", category=EVIL, message=EVIL)
            async with desk.ledger.transaction() as tx:
                await audit(tx, EVIL, EVIL, EVIL, EVIL, {EVIL: {EVIL: [EVIL]}})
                await raise_alert(tx, f"huge:{desk.account}", "x", "low", "m", "long " * 4000, float("inf"), float("nan"))
            await take_lease(desk.ledger, f"worker:{EVIL}:{desk.account}", EVIL, 60)
            assert (await http.post(f"/ui/ops/alerts/{ident}/acknowledge", data={"csrf": csrf}, headers=HTMX)).status_code == 200
            for path in TABS:
                html = await shown(http, f"/ui/ops{path}")
                assert "<b onmouseover" not in html
                if path in ("", "/audit", "/health"):
                    assert "alert(1)" in text_of(html).replace("&lt;", "<") or "alert(1)" in html
            await shown(http, f"/ui/ops/audit?{httpx.QueryParams({'actor': EVIL, 'action': EVIL, 'chain': EVIL})}")
            for source in LIVE:
                for node in (await source.look(http.app.state.deps)).values():
                    is_safe(str(node))
            await quiet(desk)
    story(go())


def test_no_page_is_seen_without_a_session(api_bench):
    async def go():
        async with api_bench.api(run_desk=False, headers=None) as (_, http):
            for path in TABS:
                answer = await http.get(f"/ui/ops{path}")
                assert answer.status_code == 303 and "/ui/login" in answer.headers["location"]
            assert (await http.post("/ui/ops/audit/verify", data={"rows": "all"})).status_code in (303, 401, 403)
    story(go())
