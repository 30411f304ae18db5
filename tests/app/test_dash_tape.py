"""The tape: pages of history that meet, marks of the right accounts, and what is said when a store is away."""
import asyncio
import json
import re
import threading
from decimal import Decimal
from html.parser import HTMLParser

import polars as pl
import pytest
from api_rig import is_problem, story
from page_rig import cookie

from deskbook.app.dashboard import tape_facts
from deskbook.app.dashboard.tape_facts import BAR_COLUMNS, LAKE_AWAY, LEDGER_AWAY, LIVE_AWAY, bars_of, beats
from deskbook.app.dashboard.tape_page import look_at_beats
from deskbook.core.clock import MINUTE_MS, to_datetime, to_ms
from deskbook.gates.payload import GATE_SCHEMA
from deskbook.market.simulated import simulate_candles
from deskbook.stores.lake import Lake
from deskbook.stores.ledger import LedgerDown
from deskbook.stores.live_state import put_candles, put_gate, put_gate_history
from deskbook.trading.book import new_id

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def candles():
    """Ten weeks of minutes, over two borders of months and a change of the clock."""
    return simulate_candles(["EUR_USD"], "2025-09-10", "2025-11-19")


class Viewer:
    """Asks for the tape with a session."""

    def __init__(self, bench, http, may_act=True):
        self.http, self.headers = http, cookie(bench.settings(), may_act)[0]

    async def get(self, path, **params):
        return await self.http.get(path, params=params or None, headers=self.headers)

    async def data(self, **params):
        answer = await self.get("/ui/tape/data", **{"pair": "EUR_USD", **params})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def every_page(self, interval, limit):
        """All bars, page after page, and how many pages there were."""
        page = await self.data(interval=interval, limit=limit)
        bars, pages = page["bars"], 1
        while page["more"]:
            page = await self.data(interval=interval, limit=limit, before=bars[0][0])
            assert page["bars"] or not page["more"], "a page without bars that is not the last one"
            bars, pages = page["bars"] + bars, pages + 1
            assert pages < 200
        return bars, pages


def away(live):
    object.__setattr__(live, "redis", type(live.redis).from_url("redis://127.0.0.1:1/0", socket_connect_timeout=0.2))


def tags_of(html):
    """Every tag as a browser reads it, with the names of its attributes."""
    found = []
    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append((tag, {name for name, _ in attrs}))
    Reader().feed(html)
    return found


def expected(frame, interval):
    return [list(r) for r in bars_of("EUR_USD", interval, frame).rows()]


async def book(desk, account, environment, verdict, at_ms, fill=None, reasons=(), name=None):
    """An account, a decision of it, and perhaps a fill."""
    async with desk.ledger.transaction() as tx:
        await tx.execute("INSERT INTO accounts (account, venue, environment, mode, currency) VALUES (%s, 'oanda', %s, %s, 'USD') ON CONFLICT DO NOTHING",
                         (account, environment, "live" if environment == "live" else "paper"))
        decision, order = new_id(), new_id()
        await tx.execute("INSERT INTO decisions (id, account, instrument, decided_at, verdict, action, reasons, trace_id) VALUES (%s, %s, 'EUR_USD', %s, %s, 'BUY', %s, 'ab12')",
                         (decision, account, to_datetime(at_ms), verdict, list(reasons)))
        if fill is not None:
            await tx.execute("""INSERT INTO orders (id, account, venue, decision_id, kind, instrument, side, type, units, time_in_force, client_order_id, idempotency_key,
                                request_fingerprint, state, filled_units, trace_id)
                                VALUES (%s, %s, 'oanda', %s, 'entry', 'EUR_USD', 'buy', 'market', 1000, 'FOK', %s, %s, 'f', 'filled', 1000, 'ab12')""",
                             (order, account, decision, str(order), str(order)))
            await tx.execute("INSERT INTO fills (venue, account, fill_id, order_id, instrument, units, price, filled_at) VALUES ('oanda', %s, %s, %s, 'EUR_USD', 1000, %s, %s)",
                             (account, str(order), order, Decimal(fill), to_datetime(at_ms)))


def gate(ts_ms, admit=False, **more):
    return {"instrument": "EUR_USD", "ts_ms": ts_ms, "asof_ms": ts_ms + MINUTE_MS, "admit": admit, "direction": "LONG" if admit else "FLAT", "hazard": 0.2, "hazard_threshold": 0.3,
            "regime": {"label": "trend_bull"}, "reasons": [] if admit else ["repetitions_short"], **more}


# ---- history

@pytest.mark.parametrize("interval, limit", [("M1", 997), ("M5", 333), ("H1", 101), ("H4", 7), ("D", 5)])
def test_pages_meet_without_gap_or_double_and_the_beginning_is_said(api_bench, candles, interval, limit):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            frame = candles.tail(9000) if interval in ("M1", "M5") else candles
            Lake(api_bench.settings().lake_url).write_candles(frame.head(frame.height - 400), "sandbox")  # the lake is behind
            await put_candles(desk.kill.store(), "EUR_USD", "M1", frame.tail(1300))                       # and both overlap
            bars, pages = await Viewer(api_bench, http).every_page(interval, limit)
            assert bars == expected(frame, interval) and pages > 3
    story(go())


def test_what_stands_in_valkey_alone_is_paged_too(api_bench, candles, monkeypatch):
    async def go():
        monkeypatch.setattr(tape_facts, "ROWS_LIVE", 300)
        async with api_bench.api(run_desk=False) as (desk, http):
            frame = candles.tail(2500)
            await put_candles(desk.kill.store(), "EUR_USD", "M1", frame)
            Lake(api_bench.settings().lake_url).write_candles(frame.head(200), "sandbox")  # far behind: nothing may be jumped over
            for interval in ("M1", "M15"):
                bars, _ = await Viewer(api_bench, http).every_page(interval, 500)
                assert bars == expected(frame, interval), interval
    story(go())


def test_a_page_of_days_reads_a_bounded_number_of_files(api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            lake, frame = Lake(api_bench.settings().lake_url), simulate_candles(["EUR_USD"], "2024-01-02", "2025-11-01").filter(pl.col("time").dt.minute() == 0)
            lake.write_candles(frame, "sandbox")
            read, month_of = [], tape_facts.month_of
            monkeypatch.setattr(tape_facts, "month_of", lambda *a: (read.append(threading.current_thread()), month_of(*a))[1])
            page = await Viewer(api_bench, http).data(interval="D", limit=1000)
            assert len(read) <= tape_facts.MONTHS_A_PAGE and page["more"] and 100 < len(page["bars"]) < 200
            assert threading.main_thread() not in read  # the loop waits for no file
            read.clear()
            bars, pages = await Viewer(api_bench, http).every_page("D", 1000)
            assert bars == expected(frame, "D") and pages <= 5
    story(go())


def test_the_venue_of_the_desk_is_preferred_and_one_other_is_taken(api_bench, candles):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            lake, viewer = Lake(api_bench.settings().lake_url), Viewer(api_bench, http)
            lake.write_candles(candles.head(50), "oanda")
            assert len((await viewer.data())["bars"]) == 50
            lake.write_candles(candles.slice(100, 30), "sandbox")
            assert (await viewer.data())["bars"] == expected(candles.slice(100, 30), "M1")
    story(go())


def test_news_begin_at_the_bar_that_was_known_last(api_bench, candles, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            live, viewer = desk.kill.store(), Viewer(api_bench, http)
            await put_candles(live, "EUR_USD", "M1", candles.tail(600).head(590))
            known = await viewer.data(interval="M15")
            await put_candles(live, "EUR_USD", "M1", candles.tail(10))
            news = await viewer.data(interval="M15", after=known["bars"][-1][0])
            assert known["bars"][:-1] + news["bars"] == expected(candles.tail(600), "M15") and not news["more"]
            monkeypatch.setattr(tape_facts, "ROWS_LIVE", 100)
            news = await viewer.data(after=to_ms(candles["time"][-500]))
            assert news["more"] is True and len(news["bars"]) == 1  # too much: begin anew
            for edge in (0, 4_102_444_800_000):
                for interval in ("M1", "H4", "D"):
                    assert (await viewer.data(interval=interval, before=edge))["bars"] == [] or edge
                    assert len((await viewer.data(interval=interval, after=edge))["bars"]) <= 1
    story(go())


def test_a_bar_that_grows_says_so(api_bench, candles):
    async def go():
        now = to_ms(candles["time"][-1]) + MINUTE_MS + 5000
        async with api_bench.api(run_desk=False, clock=lambda: now) as (desk, http):
            await put_candles(desk.kill.store(), "EUR_USD", "M1", candles.tail(607))
            viewer = Viewer(api_bench, http)
            assert [(await viewer.data(interval=i))["forming"] for i in ("M1", "H4", "D")] == [False, True, True]
            assert (await viewer.data(interval="H4", before=now))["forming"] is False
    story(go())


# ---- marks

def test_accounts_are_told_apart_and_chosen_and_money_is_text(api_bench, candles):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            await put_candles(desk.kill.store(), "EUR_USD", "M1", candles.tail(120))
            at = to_ms(candles["time"][-30]) + 1500
            await book(desk, "main", "live", "enter", at, "1.084240")
            await book(desk, "oanda-practice", "practice", "enter", at, "1.08425")
            await book(desk, api_bench.account, "sandbox", "exit", at, "1.08426")
            viewer = Viewer(api_bench, http)
            for show, wanted in (("all", {"live", "practice", "sandbox"}), ("paper", {"practice", "sandbox"}), ("live", {"live"})):
                page = await viewer.data(show=show)
                assert {f["environment"] for f in page["fills"]} == {d["environment"] for d in page["decisions"]} == wanted
            page = await viewer.data(show="live", interval="H1")
            fill, = page["fills"]
            assert (fill["price"], fill["units"], fill["side"], fill["account"], fill["trace"]) == ("1.084240", "1000", "buy", "main", "ab12")
            assert fill["t"] <= fill["at"] == at and fill["t"] in [b[0] for b in page["bars"]]
            assert not (await viewer.data(before=at - at % MINUTE_MS, show="all"))["fills"]  # it belongs to the page to the right
            html = (await viewer.get("/ui/tape", pair="EUR_USD")).text
            for word in ("LIVE", "paper", "sandbox"): assert f"{word} <span" in html, word
    story(go())


def test_refusals_of_a_bar_are_one_mark_and_holding_is_none(api_bench, candles):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            await put_candles(desk.kill.store(), "EUR_USD", "M1", candles.tail(120))
            bar = to_ms(candles["time"][-60]) // 300_000*300_000
            for k in range(3): await book(desk, api_bench.account, "sandbox", "refuse", bar + 1000 + k*MINUTE_MS, reasons=["cooldown_active"])
            await book(desk, api_bench.account, "sandbox", "hold", bar + 2000)
            mark, = (await Viewer(api_bench, http).data(interval="M5"))["decisions"]
            assert (mark["verdict"], mark["n"], mark["reasons"], mark["t"]) == ("refuse", 3, ["cooldown_active"], bar)
    story(go())


def test_gates_of_a_longer_bar_are_summed_up(api_bench, candles):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            live, viewer = desk.kill.store(), Viewer(api_bench, http)
            await put_candles(live, "EUR_USD", "M1", candles.tail(60))
            times = candles["time"].dt.epoch("ms").to_list()
            bar = times[-30]//300_000*300_000
            gates = [gate(bar + k*MINUTE_MS, k == 2, hazard=0.1 + k/10) for k in range(5)]
            await put_gate_history(live, "EUR_USD", [(g["ts_ms"], json.dumps(g)) for g in gates], 5000)
            assert len((await viewer.data())["gates"]) == 5
            mark, = (await viewer.data(interval="M5"))["gates"]
            assert (mark["t"], mark["n"], mark["in"], mark["direction"], mark["hazard"], mark["reasons"]) == (bar, 5, 1, "LONG", 0.5, [])
            assert "admitted 1 of 5" in (await viewer.get("/ui/tape/table", pair="EUR_USD", interval="M5")).text
    story(go())


def test_gates_that_valkey_forgot_come_from_the_lake(api_bench, candles):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            live, lake, viewer = desk.kill.store(), Lake(api_bench.settings().lake_url), Viewer(api_bench, http)
            lake.write_candles(candles.tail(200), "sandbox")
            times = candles["time"].tail(200)
            blank = {n: pl.lit(None, kind).alias(n) for n, kind in GATE_SCHEMA.items()}
            made = pl.DataFrame({"instrument": "EUR_USD", "time": times, "asof": times.dt.offset_by("1m"), "admit": [i % 2 == 0 for i in range(200)], "regime": "chaotic", "hazard": 0.1})
            lake.write_gates(made.with_columns(blank[n] for n in GATE_SCHEMA if n not in made.columns), "sound", "sandbox")
            newest = [gate(t, True) for t in times.dt.epoch("ms").tail(20)]
            await put_gate_history(live, "EUR_USD", [(g["ts_ms"], json.dumps(g)) for g in newest], 100)
            gates = (await viewer.data())["gates"]
            assert [g["t"] for g in gates] == times.dt.epoch("ms").to_list()
            assert [g["regime"] for g in gates] == ["chaotic"]*180 + ["trend_bull"]*20 and [g["in"] for g in gates[:4]] == [1, 0, 1, 0]
            older = await viewer.data(before=gates[50]["t"])
            assert [g["t"] for g in older["gates"]] == [b[0] for b in older["bars"]] == [g["t"] for g in gates[:50]]
    story(go())


# ---- what is refused, and what is away

def test_only_who_is_signed_in_sees_it_and_looking_is_enough(api_bench, candles):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            await put_candles(desk.kill.store(), "EUR_USD", "M1", candles.tail(30))
            for path in ("/ui/tape", "/ui/tape/data?pair=EUR_USD", "/ui/tape/table?pair=EUR_USD"):
                answer = await http.get(path)
                assert answer.status_code in (303, 401) and "1.0" not in answer.text, path
            looker = Viewer(api_bench, http, may_act=False)
            assert len((await looker.data())["bars"]) == 30 and (await looker.get("/ui/tape")).status_code == 200
    story(go())


def test_what_does_not_fit_is_refused(api_bench, candles):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            await put_candles(desk.kill.store(), "EUR_USD", "M1", candles.tail(30))
            viewer = Viewer(api_bench, http)
            said = is_problem(await viewer.get("/ui/tape/data", pair="XXX_YYY"), "unknown_instrument")
            assert "XXX_YYY" in said["detail"] and "EUR_USD" in said["detail"]
            assert (await viewer.get("/ui/tape", pair="XXX_YYY")).status_code == 404
            is_problem(await viewer.get("/ui/tape/data", pair="EUR_USD", before=1, after=1), "invalid_request")
            for bad in ({"pair": EVIL}, {"pair": "../../etc"}, {"interval": "M2"}, {"show": "mine"}, {"limit": 1001}, {"limit": 0}, {"before": -1}, {"before": "x"}, {"after": 10**18}):
                for path in ("/ui/tape/data", "/ui/tape"):
                    if path == "/ui/tape" and ({"limit", "after"} & set(bad)): continue
                    answer = await viewer.get(path, **{"pair": "EUR_USD", **bad})
                    assert answer.status_code == 400 and EVIL not in answer.text, (path, bad, answer.status_code)
    story(go())


def test_bars_shorter_than_what_is_kept_are_not_made(api_bench):
    async def go():
        async with api_bench.api(run_desk=False, candle_granularity="M5") as (_, http):
            viewer = Viewer(api_bench, http)
            assert "M1 is shorter" in is_problem(await viewer.get("/ui/tape/data", pair="EUR_USD", interval="M1"), "invalid_request")["detail"]
            assert (await viewer.get("/ui/tape/data", pair="EUR_USD", interval="M15")).status_code == 200
    story(go())


def test_a_store_that_is_away_takes_only_its_own_part(api_bench, candles, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            live, lake, viewer = desk.kill.store(), Lake(api_bench.settings().lake_url), Viewer(api_bench, http)
            lake.write_candles(candles.tail(300).head(200), "sandbox")
            await put_candles(live, "EUR_USD", "M1", candles.tail(100))
            with monkeypatch.context() as m:
                async def down(): raise LedgerDown("gone")
                m.setattr(desk.ledger, "borrow", down)
                page = await viewer.data()
                assert (len(page["bars"]), page["troubles"], page["fills"]) == (300, [LEDGER_AWAY], [])
            with monkeypatch.context() as m:
                def broken(*_): raise OSError("no disk")
                m.setattr(tape_facts, "lake_rows", broken)
                page = await viewer.data()
                assert (len(page["bars"]), page["troubles"]) == (100, [LAKE_AWAY])
            away(live)
            page = await viewer.data()
            assert (len(page["bars"]), page["troubles"]) == (200, [LIVE_AWAY])
            news = await viewer.data(after=page["bars"][-1][0])
            assert (news["bars"], news["troubles"], news["more"]) == ([], [LIVE_AWAY], False)
            html = (await viewer.get("/ui/tape")).text
            assert LIVE_AWAY in html and await look_at_beats(http.app.state.deps) == {}
            monkeypatch.setattr(tape_facts, "lake_rows", broken)
            is_problem(await viewer.get("/ui/tape/data", pair="EUR_USD"), "valkey_unavailable")
            answer = await viewer.get("/ui/tape")
            assert answer.status_code == 200 and "Neither the live store nor the lake" in answer.text
    story(go())


def test_nothing_yet_is_said(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            viewer = Viewer(api_bench, http)
            page = await viewer.data(pair="USD_JPY")
            assert (page["bars"], page["more"], page["gates"]) == ([], False, [])
            html = (await viewer.get("/ui/tape", pair="USD_JPY")).text
            assert "There are no candles of USD_JPY yet." in html and "No bars yet." in html
    story(go())


# ---- the page

def test_the_page_has_no_script_or_style_of_its_own_and_shows_hostile_text_as_text(api_bench, candles):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            live, viewer = desk.kill.store(), Viewer(api_bench, http)
            await put_candles(live, "EUR_USD", "M1", candles.tail(60))
            at = to_ms(candles["time"][-20])
            hostile = gate(at, direction=EVIL, regime={"label": EVIL}, reasons=[EVIL])
            await put_gate_history(live, "EUR_USD", [(at, json.dumps(hostile))], 100)
            await book(desk, EVIL, "live", "refuse", at + 900, "1.08424", reasons=[EVIL, "cooldown_active"])
            for path in ("/ui/tape", "/ui/tape/table"):
                html = (await viewer.get(path, pair="EUR_USD")).text
                assert EVIL not in html and html.count("&lt;img") >= 4, path
                for tag, names in tags_of(html):
                    assert "style" not in names and not any(n.startswith("on") for n in names), (tag, names)
                    assert tag not in ("style", "img") and (tag != "script" or "src" in names), tag
            assert EVIL in json.dumps(await viewer.data())  # as data, which the script shows as text
    story(go())


def test_history_can_be_read_without_scripts(api_bench, candles):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            await put_candles(desk.kill.store(), "EUR_USD", "M1", candles.tail(120))
            viewer, seen, path = Viewer(api_bench, http), [], "/ui/tape?pair=EUR_USD"
            while path:
                html = (await viewer.get(path)).text
                table = html.split("<caption>The last")[1].split("</table>")[0]
                seen = re.findall(r'data-ms="(\d+)"', table)[::-1] + seen
                link = re.search(r'href="([^"]*before=[^"]*)"', html)
                path = link[1].replace("&amp;", "&") if link else ""
            assert [int(s) for s in seen] == candles["time"].tail(120).dt.epoch("ms").to_list()
            assert "This is the beginning of what is kept." in html
    story(go())


def test_the_beat_differs_when_something_happened(api_bench, candles):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            live, deps, seen = desk.kill.store(), http.app.state.deps, []
            async def look():
                seen.append((await beats(deps))["EUR_USD"])
                return (await look_at_beats(deps))["tape-beats"]
            await look()
            await put_candles(live, "EUR_USD", "M1", candles.tail(10))
            await look()
            at = to_ms(candles["time"][-1])
            await put_gate(live, "EUR_USD", at, json.dumps(gate(at)), 900, 100)
            await look()
            await book(desk, api_bench.account, "sandbox", "refuse", at)
            box = await look()
            assert len(set(seen)) == 4 and f'data-beat="{seen[-1]}"' in str(box)
            assert (await look_at_beats(deps))["tape-beats"] is not None and str(await look()) == str(box)  # nothing happened, nothing differs
    story(go())


def test_columns_of_a_bar_are_those_the_script_reads():
    script = (tape_facts.__file__.rsplit("/", 1)[0]) + "/static/tape.js"
    with open(script, encoding="utf-8") as f: text = f.read()
    assert "([timestamp, open, high, low, close, volume])" in text and BAR_COLUMNS == ("time", "open", "high", "low", "close", "volume")
    assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "eval(" not in text


def test_reads_of_a_page_go_side_by_side(api_bench, candles):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            await put_candles(desk.kill.store(), "EUR_USD", "M1", candles.tail(500))
            viewer = Viewer(api_bench, http)
            pages = await asyncio.gather(*(viewer.data(limit=400) for _ in range(8)))
            assert all(p["bars"] == pages[0]["bars"] for p in pages)
    story(go())
