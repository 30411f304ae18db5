"""The desk page over the real servers: what it says, what it says when a store is away, and the kill switch on it."""
import asyncio
import json
import re

import psycopg
import pytest
from api_rig import PAIRS, story
from page_rig import signed_in, text_of

from deskbook.app.dashboard.desk_facts import desk_facts, look_at
from deskbook.app.dashboard.desk_page import LIVE, look_desk, look_hero
from deskbook.app.dashboard.desk_widget import watch_desk
from deskbook.core.loop import run_sync
from deskbook.stores.ledger import LedgerDown
from deskbook.stores.live import open_live
from deskbook.stores.live_state import DESK_LOOP, NAV_SNAPSHOT, candles_key, put_gate, put_json
from deskbook.stores.records import raise_alert
from deskbook.trading.controls import clear, engage, kill_state
from deskbook.trading.desk import AccountSpec

EVIL = "<img src=x onerror=alert(1)>"


def gate(instrument, asof_ms, **more):
    return {"instrument": instrument, "ts_ms": asof_ms - 60_000, "asof_ms": asof_ms, "admit": True, "direction": "BUY", "lambda": 0.2, "hazard": 0.2, "hazard_threshold": 0.3,
            "repetitions": 2, "regime": {"label": "trend_bull", "confidence": 0.8}, "reasons": [], "schema_version": 1, **more}


async def store(desk, said):
    await put_gate(desk.kill.store(), said["instrument"], said["ts_ms"], json.dumps(said), 900, 100)


async def gone(live, monkeypatch):
    """Valkey is not where it was."""
    object.__setattr__(live, "redis", type(live.redis).from_url("redis://127.0.0.1:1/0", socket_connect_timeout=0.2, decode_responses=True))


def test_the_page_says_what_the_desk_knows(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            live, now = desk.kill.store(), desk.deps.clock()
            await put_json(live, DESK_LOOP, {"ts_ms": now})
            await put_json(live, NAV_SNAPSHOT, {"nav": 100_250.5, "balance": 100_000.0, "ts_ms": now})
            await store(desk, gate("EUR_USD", now - 5_000))
            await store(desk, gate("USD_JPY", now - 300_000, admit=False, reasons=["regime_filtered"]))
            order, = await desk.submit([api_bench.intent(1000)])
            await desk.wait(order.id)
            async with desk.ledger.transaction() as tx:
                await raise_alert(tx, f"test:{desk.account}", "test", "high", "x", "something", 1.0, 0.0)
            page = await http.get("/ui/desk")
            assert page.status_code == 200
            text, html = text_of(page.text), page.text
            for word in ("Kill switch clear", "Stop all sending", "EUR_USD", "1.08417", "trend_bull", "long 1,000", "regime_filtered", "the gate is too old", "gate_stale"):
                assert word in text, word
            assert text.index("kill switch clear") < text.index("Stop all sending") and "reading the desk" not in text  # the strip is there with the first paint
            for link in set(re.findall(r'href="(/ui/[^"]*)"', html)):
                assert (await http.get(link.replace("&amp;", "&"))).status_code in (200, 303), link
            assert all(f'id="pair-{n}"' in html for n in PAIRS) and "style=" not in html.replace("stylesheet", "") and " onclick" not in html
            hero = text_of((await look_hero(http.app.state.deps))["hero"])
            for word in ("SANDBOX", desk.account, "kill switch clear", "100,250.50", "1 high", "USD_JPY"):
                assert word in hero, word
    story(go())


def test_everything_that_speaks_against_an_entry_stands_once(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            now = desk.deps.clock()
            await store(desk, gate("EUR_USD", now - 5_000))
            await store(desk, gate("USD_JPY", now - 600_000, admit=False, direction="FLAT", reasons=["hazard_exceeds_adaptive_threshold", "regime_filtered"]))
            sql = "INSERT INTO decisions (account, instrument, decided_at, verdict, reasons) VALUES (%s, %s, to_timestamp(%s/1000.0), %s, %s)"
            await desk.ledger.rows(sql + " RETURNING id", (desk.account, "EUR_USD", now, "refuse", ["kill_switch", "cooldown_active", "max_leverage"]))
            await engage(desk.kill, "web:maria", "test")
            facts = desk_facts(http.app.state.deps, await look_at(http.app.state.deps))
            eur, jpy = ([r for r in p.reasons if not r.startswith("session_")] for p in facts.pairs)
            assert eur == ["kill_switch", "manager_silent", "cooldown_active", "max_leverage"]
            assert jpy == ["kill_switch", "manager_silent", "hazard_exceeds_adaptive_threshold", "regime_filtered", "gate_stale", "flat_direction"]
            await put_json(desk.kill.store(), DESK_LOOP, {"ts_ms": now})
            facts = desk_facts(http.app.state.deps, await look_at(http.app.state.deps))
            assert "manager_silent" not in facts.pairs[0].reasons and not facts.hero.trading
            await clear(desk.kill, "test", "over")  # what the decision then said of the switch is over, too
            facts = desk_facts(http.app.state.deps, await look_at(http.app.state.deps))
            assert [r for r in facts.pairs[0].reasons if not r.startswith("session_")] == ["cooldown_active", "max_leverage"] and facts.hero.trading
    story(go())


def test_a_position_outside_the_roster_is_named(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            assert "Held outside" not in text_of((await http.get("/ui/desk")).text)
            await desk.load()
            order, = await desk.submit([api_bench.intent(-700, instrument="GBP_USD")])
            await desk.wait(order.id)
            assert "GBP_USD short 700" in text_of((await look_desk(http.app.state.deps))["strangers"]) and 'id="pair-GBP_USD"' not in (await http.get("/ui/desk")).text
    story(go())


def test_valkey_away_is_named_counts_as_engaged_and_the_rest_goes_on(api_bench, monkeypatch):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            now = desk.deps.clock()
            await store(desk, gate("EUR_USD", now - 5_000))
            await put_json(desk.kill.store(), DESK_LOOP, {"ts_ms": now})
            before = text_of((await http.get("/ui/desk")).text)
            assert "trend_bull" in before and "does not answer" not in before
            await gone(desk.kill.store(), monkeypatch)
            parts, text = await look_desk(http.app.state.deps), text_of((await http.get("/ui/desk")).text)
            for word in ("Valkey does not answer", "Kill switch ENGAGED", "cannot be read, which counts as engaged", "kill_switch_unreadable", "valkey_unavailable", "1.08417", "trend_bull"):
                assert word in text, word
            assert "old" in text_of(parts["pair-EUR_USD-gate"]) and "missing_payload" not in text_of(parts["pair-EUR_USD-gate"])
            hero = text_of((await look_hero(http.app.state.deps))["hero"])
            assert "Valkey DOWN" in hero and "KILL SWITCH ENGAGED" in hero and "NOT TRADING" in hero
    story(go())


def test_without_valkey_from_the_start_nothing_is_said_of_gates_that_nobody_saw(api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            await gone(desk.kill.store(), monkeypatch)
            facts = desk_facts(http.app.state.deps, await look_at(http.app.state.deps))
            assert "valkey_unavailable" in facts.pairs[0].reasons and "missing_payload" not in facts.pairs[0].reasons and facts.hero.down[0].seen_ms is None
            signed_in(http)
            assert "It has not answered since this process started" in text_of((await http.get("/ui/desk")).text)
    story(go())


@pytest.mark.parametrize("error", [LedgerDown("ledger 'x' at localhost: connection refused."), psycopg.errors.UndefinedTable('relation "accounts" does not exist'),
                                   KeyError("nav")], ids=["down", "wrong", "fault"])
def test_the_ledger_away_is_named_and_the_rest_goes_on(api_bench, monkeypatch, error):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            signed_in(http)
            await store(desk, gate("EUR_USD", desk.deps.clock() - 5_000))
            assert (await http.get("/ui/desk")).status_code == 200

            async def down(*_):
                raise error
            monkeypatch.setattr(desk.ledger, "borrow", down)
            text = text_of((await http.get("/ui/desk")).text)
            for word in ("PostgreSQL does not answer", "ledger_down", "trend_bull", "1.08417", "Kill switch clear"):
                assert word in text, word
            monkeypatch.undo()
    story(go())


def test_a_ledger_that_hangs_holds_nothing_up(api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            async def hangs(*_):
                await asyncio.sleep(30)
            monkeypatch.setattr(desk.ledger, "borrow", hangs)
            looked = await asyncio.wait_for(look_at(http.app.state.deps), 4)
            assert "no answer" in looked.ledger.error and not looked.live.error
            monkeypatch.undo()
    story(go())


def test_the_venue_away_leaves_old_prices_that_are_marked(api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            deps = http.app.state.deps
            first = desk_facts(deps, await look_at(deps)).pairs[0]
            assert not first.price_old and first.mid is not None
            monkeypatch.setattr("deskbook.app.api_routes_market._OLD_S", -1.0)
            then = desk_facts(deps, await look_at(deps)).pairs[0]
            assert then.price_old and then.mid == first.mid and "venue_unreachable" in then.reasons
    story(go())


def test_the_switch_is_engaged_with_one_click_and_cleared_with_a_reason(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            csrf = signed_in(http)
            done = await http.post("/ui/desk/stop", data={"csrf": csrf, "why_stop": ""}, headers={"HX-Request": "true"})
            assert done.status_code == 200 and "All sending is stopped" in done.text and 'id="kill-state"' in done.text
            now = await kill_state(desk.kill)
            assert now.engaged and now.by == "web:maria" and now.local == now.stored == "on"
            empty = await http.post("/ui/desk/clear", data={"csrf": csrf, "why_clear": "  "}, headers={"HX-Request": "true"})
            assert empty.status_code == 400 and "stays engaged" in empty.text and (await kill_state(desk.kill)).engaged
            done = await http.post("/ui/desk/clear", data={"csrf": csrf, "why_clear": "Müller sah nach: alles gut"})
            assert done.status_code == 303 and done.headers["location"] == "/ui/desk" and not (await kill_state(desk.kill)).engaged
            told = await desk.ledger.rows("SELECT metadata FROM ops_audit_events WHERE action = 'kill_switch.update' AND actor = 'web:maria' ORDER BY seq DESC LIMIT 2")
            assert [r["metadata"]["reason"] for r in reversed(told)] == ["no reason given, at the desk page", "Muller sah nach: alles gut"]
    story(go())


@pytest.mark.parametrize("why", ["ä€\u202e" * 400, EVIL, "\x00\n"])
def test_no_reason_keeps_the_switch_from_being_engaged(api_bench, why):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            csrf = signed_in(http, name="Ünsal 王 <b>")
            done = await http.post("/ui/desk/stop", data={"csrf": csrf, "why_stop": why}, headers={"HX-Request": "true"})
            assert done.status_code == 200 and (await kill_state(desk.kill)).engaged and EVIL not in done.text and "<b>" not in text_of(done.text)
            assert EVIL not in (await http.get("/ui/desk")).text
    story(go())


def test_engaging_without_valkey_says_how_far_it_reached(api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            csrf = signed_in(http)
            await gone(desk.kill.store(), monkeypatch)
            done = await http.post("/ui/desk/stop", data={"csrf": csrf}, headers={"HX-Request": "true"})
            assert done.status_code == 200 and "Valkey was not reached" in done.text and (await kill_state(desk.kill)).local == "on"
            refused = await http.post("/ui/desk/clear", data={"csrf": csrf, "why_clear": "over"}, headers={"HX-Request": "true"})
            assert refused.status_code == 503 and "stays engaged" in refused.text and "Bring Valkey back first" in refused.text
    story(go())


def test_clearing_with_old_gates_is_refused_in_words_where_the_settings_say_so(api_bench):
    async def go():
        async with api_bench.api(run_desk=False, kill_require_fresh_gates=True) as (desk, http):
            csrf = signed_in(http)
            await engage(desk.kill, "test", "test")
            refused = await http.post("/ui/desk/clear", data={"csrf": csrf, "why_clear": "over"}, headers={"HX-Request": "true"})
            assert refused.status_code == 409 and "Wait for fresh gates" in refused.text and (await kill_state(desk.kill)).engaged
    story(go())


def test_who_may_only_look_or_has_no_word_changes_nothing(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            csrf = signed_in(http)
            assert (await http.post("/ui/desk/stop", data={"csrf": "f" * 64})).status_code == 403
            assert (await http.post("/ui/desk/stop", data={"csrf": csrf}, headers={"Origin": "https://elsewhere.example"})).status_code == 403
            csrf = signed_in(http, may_act=False)
            page = (await http.get("/ui/desk")).text
            assert "disabled" in page and 'action="/ui/desk/stop"' not in page
            assert (await http.post("/ui/desk/stop", data={"csrf": csrf})).status_code == 403
            assert not (await kill_state(desk.kill)).engaged
    story(go())


@pytest.mark.parametrize("when", [EVIL, 10**300, -5, [1]], ids=str)
def test_hostile_gates_and_reasons_are_shown_and_never_run(api_bench, when):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            signed_in(http)
            now = desk.deps.clock()
            await store(desk, gate("EUR_USD", now, direction=EVIL, admit=EVIL, reasons=[EVIL, 7, None], regime={"label": EVIL, "confidence": EVIL}, hazard=EVIL, hazard_threshold=1e400))
            await store(desk, gate("USD_JPY", now, regime=[EVIL], reasons={"a": EVIL}, hazard=float(10**300), direction=["x"]) | {"asof_ms": when})
            await put_json(desk.kill.store(), DESK_LOOP, {"ts_ms": -10**300 if when == 10**300 else now, "error": EVIL})
            await put_json(desk.kill.store(), NAV_SNAPSHOT, [EVIL])
            live = desk.kill.store()
            await live.redis.zadd(live.key(candles_key("EUR_USD")), {EVIL: now, f'{{"t": 1, "c": "{EVIL}"}}': now - 60_000})
            await live.redis.zadd(live.key(candles_key("USD_JPY")), {'{"t": 1, "c": 1e400, "o": null}': now, '{"t": 5, "c": true}': now - 60_000})
            await engage(desk.kill, "x" + EVIL, EVIL)
            page = await http.get("/ui/desk")
            hero = str((await look_hero(http.app.state.deps))["hero"])
            assert page.status_code == 200 and "<img" not in page.text and "<img" not in hero and "&lt;img" in page.text
    story(go())


def test_who_looks_in_the_same_moment_shares_a_look_and_who_comes_later_does_not(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            deps = http.app.state.deps
            first = asyncio.create_task(look_at(deps))
            second = asyncio.create_task(look_at(deps))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            later = asyncio.create_task(look_at(deps))  # the first look is under way
            assert not first.done()
            a, b, c = await asyncio.gather(first, second, later)
            assert a is b and c is not a
    story(go())


def test_what_did_not_change_is_not_sent_again(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            await store(desk, gate("EUR_USD", desk.deps.clock() - 1_000))
            deps = http.app.state.deps
            first = {k: str(v) for k, v in (await look_desk(deps)).items()}
            await asyncio.sleep(1.1)
            again = {k: str(v) for k, v in (await look_desk(deps)).items()}
            changed = {k for k in first if first[k] != again[k]}
            assert changed == set(), {k: (first[k], again[k]) for k in changed}
            assert {s.topic for s in LIVE} == {"hero", "desk"}
    story(go())


def test_a_notebook_watches_a_running_desk_and_sees_it_stopped(api_bench):
    """Another process' desk, seen through its stores."""
    live = open_live(api_bench.valkey_url, api_bench.prefix)
    spec = AccountSpec(api_bench.account, "sandbox", api_bench.venue_account, api_bench.sandbox.token, api_bench.sandbox.url)
    view = watch_desk(api_bench.account, 0.1, api_bench.settings(), ledger_url=api_bench.ledger_url, live=live, spec=spec)

    async def go():
        async with api_bench.desk() as desk:
            await store(desk, gate("EUR_USD", desk.deps.clock() - 5_000))
            await engage(desk.kill, "web:maria", "spread looks wrong")
            for word, part in (("trend_bull", "pair EUR_USD"), ("spread looks wrong", "kill"), ("KILL SWITCH ENGAGED", "hero"), ("1.08417", "pair EUR_USD")):
                for _ in range(100):
                    if part in view.parts and word in view.parts[part].value:
                        break
                    await asyncio.sleep(0.1)
                assert word in view.parts[part].value, word
    try:
        story(go())
    finally:
        view.stop()
        view.stop()
        run_sync(live.aclose())
    shown = view.parts["hero"].value
    assert view.following is None and EVIL not in shown
