"""Orders, positions and traces in a browser's eyes, over the real servers and the sandbox."""
import asyncio
import html
import json
import re
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from api_rig import ApiBench, story
from execution_rig import audits, eventually
from page_rig import signed_in, text_of

from deskbook.app.dashboard import desk_facts, order_facts, orders_page, positions_page
from deskbook.app.dashboard.order_facts import OF_TRACE, OrderFilter, place_of, read_page
from deskbook.core.clock import to_datetime
from deskbook.stores.ledger import LedgerDown
from deskbook.stores.records import append_order_event
from deskbook.trading.book import insert_rows, new_id, rows_json
from deskbook.trading.controls import NotArmed, ReadOnlyOn, engage
from deskbook.trading.rates import NoRate
from deskbook.venues.errors import NetworkError
from deskbook.trading.manager import _COLUMNS as DECISION_COLUMNS

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&"
AT = to_datetime("2025-11-03T00:00:00Z")


def raw(page):
    """What a browser would run or load that we did not write."""
    return [bad for bad in ("<script>", "<img", "onerror=alert(2)>", " style=", " onclick=") if bad in page.text]


def form_in(page, action):
    """The hidden fields of the form that posts there."""
    made = re.search(rf'<form[^>]*method="post"[^>]*action="{re.escape(action)}".*?</form>', page.text, re.S)
    assert made, f"no form for {action}: {text_of(page.text)[:600]}"
    names = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', made[0]))
    confirm = re.search(r'data-confirm="([^"]*)"', made[0])
    return {k: html.unescape(v) for k, v in names.items()}, html.unescape(confirm[1]) if confirm else ""


async def buy(bench, desk, units, **more):
    order, = await desk.submit([bench.intent(units, **more)])
    return await desk.wait(order.id)


async def rest(bench, desk, units=1000, price="1.05"):
    return await buy(bench, desk, units, type="limit", price=price, time_in_force="GTC")


async def many(desk, n, **more):
    """Orders that ended long ago, each a second older than the one before."""
    rows = await desk.ledger.rows("""INSERT INTO orders (account, venue, kind, instrument, side, type, units, time_in_force, client_order_id, idempotency_key,
        request_fingerprint, state, created_at) SELECT %(account)s, 'oanda', 'entry', %(pair)s, 'buy', 'market', 1000, 'FOK', %(name)s || i, %(name)s || i, '', %(state)s,
        %(at)s::timestamptz - make_interval(secs => i/3) FROM generate_series(1, %(n)s) i RETURNING id""",
        {"account": desk.account, "pair": "EUR_USD", "name": "many", "state": "filled", "at": AT, "n": n} | more)
    return [r["id"] for r in rows]


async def decided(desk, **more):
    """A decision as the manager writes it."""
    made = new_id()
    now = desk.deps.clock()
    gate = {"instrument": "EUR_USD", "asof_ms": now - 400, "computed_at_ms": now - 250, "hazard": 0.31, "hazard_threshold": 0.44, "admit": True, "direction": "BUY",
            "regime": {"label": "trend_bull", "confidence": 0.81}, "reasons": []}
    row = {"id": made, "account": desk.account, "run_id": "manager", "instrument": "EUR_USD", "decided_at": to_datetime(now - 5), "verdict": "enter", "action": "BUY", "reasons": [],
           "inputs": {"gate": gate, "price": "1.08424", "plan": {"entry_ms": now, "hold_until_ms": now + 1_800_000, "signal": "gate:1", "gate_ms": now}}, "trace_id": made.hex} | more
    await desk.ledger.rows(insert_rows("decisions", DECISION_COLUMNS), (rows_json([row]),))
    return made


# ---- the list

def test_live_orders_come_first_then_the_newest(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            assert "No order lives" in text_of((await http.get("/ui/orders")).text)
            resting = await rest(api_bench, desk)
            first, second = await buy(api_bench, desk, 1000), await buy(api_bench, desk, -400)
            page = await http.get("/ui/orders")
            assert page.status_code == 200
            at = [page.text.index(f'href="/ui/orders/{o.id}"') for o in (resting, second, first)]
            assert at == sorted(at)
            assert all(f'href="/ui/trace/{o.id}?order={o.id}"' in page.text for o in (resting, first))
            live = text_of(page.text[page.text.index('id="orders-live"'):page.text.index('id="orders-ended"')])
            assert "limit 1.05" in live and "open" in live and "Live (1)" in live
            for query, seen, unseen in (("pair=usd_jpy", "No order fits", "1,000"), ("state=filled", "filled", "No order fits"), ("live=1", "Live (1)", "Ended"), ("state=open", "Live (1)", "−400")):
                text = text_of((await http.get(f"/ui/orders?{query}")).text.partition("<table")[2] or "No order fits")
                assert seen in text_of((await http.get(f"/ui/orders?{query}")).text) and unseen not in text, query
            for bad in ("state=gone", "before=yesterday", "pair=%3Cscript%3E", "pair=%00", f"before={10**40}.{resting.id}"):
                said = await http.get(f"/ui/orders?{bad}")
                assert said.status_code == 400 and not raw(said), bad
            said = await orders_page.look(http.app.state.deps)
            assert all(f'id="{name}"' in page.text for name in said) and f'"/ui/orders/{resting.id}"' in str(said["orders-live"])
    story(go())


def test_ten_thousand_orders_are_turned_page_by_page_and_each_is_shown_once(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            signed_in(http)
            ids = {str(i) for i in await many(desk, 10_000)}
            asked, reads = list[str](), list[int]()
            rows = desk.ledger.rows
            async def counted(sql, params=()):
                got = await rows(sql, params)
                asked.append(sql)
                reads.append(len(got))
                return got
            desk.ledger.rows = counted
            url, seen = "/ui/orders", list[str]()
            for _ in range(4):
                page = await http.get(url)
                seen += re.findall(r'<td><a href="/ui/orders/([0-9a-f-]{36})"', page.text)
                url = html.unescape(re.search(r'rel="next" href="([^"]+)"', page.text)[1])
            assert len(seen) == 200 == len(set(seen)) and set(seen) <= ids
            assert len(asked) <= 12 and max(reads) <= 51
            found, place, turned = set(), None, 0
            while place is None or place:
                page = await read_page(desk.ledger, desk.account, OrderFilter(before=place_of(place) if place else None), page=500)
                assert not found & {str(o.id) for o in page.ended}
                found |= {str(o.id) for o in page.ended}
                place, turned = page.more, turned + 1
            assert found == ids and turned == 20 + 1 * (not page.ended)
    story(go())


def test_a_filter_looks_through_a_bounded_part_and_says_so(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            signed_in(http)
            rare, = await many(desk, 1, pair="USD_JPY", name="rare", at=AT - timedelta(days=1))
            await many(desk, 5200)
            page = await http.get("/ui/orders?pair=USD_JPY")
            assert "None of these 5,000 orders fits. Older ones may." in text_of(page.text) and str(rare) not in page.text
            older = await http.get(html.unescape(re.search(r'rel="next" href="([^"]+)"', page.text)[1]))
            assert str(rare) in older.text and "This is the oldest" in older.text
    story(go())


# ---- one order

def test_an_order_opens_into_its_timeline(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            order = await buy(api_bench, desk, 1000)
            page = await http.get(f"/ui/orders/{order.id}")
            text = text_of(page.text)
            for words in ("Buy 1,000 EUR_USD at market", "created", "was created", "was submitting", "accepted by the desk, waits for the sender", "3 steps in", "what was said", "1.08424", "Fills of EUR_USD"):
                assert words in text, words
            assert re.search(r"\+\s*\d+(\.\d+)? (ms|s)", text) and 'class="life"' in page.text and page.text.count("<li class=") >= 3
            assert f'href="/ui/trace/{order.id}?order={order.id}"' in page.text and "every 1s" not in page.text and "<h2>Cancel" not in page.text
            part = await http.get(f"/ui/orders/{order.id}", headers={"HX-Request": "true"})
            assert part.text.startswith("<section") and "<html" not in part.text
            shouting = await http.get(f"/ui/orders/{str(order.id).upper()}")
            assert shouting.status_code == 200
    story(go())


def test_an_order_that_lives_is_asked_for_again_until_it_has_ended(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            order = await rest(api_bench, desk)
            part = await http.get(f"/ui/orders/{order.id}?page=1", headers={"HX-Request": "true"})
            assert 'hx-trigger="every 1s"' in part.text and "Cancel" not in part.text
            await desk.cancel(order.id)
            await desk.wait(order.id, until=("cancelled",))
            part = await http.get(f"/ui/orders/{order.id}?page=1", headers={"HX-Request": "true"})
            assert "every 1s" not in part.text and 'hx-target="#cancel"' in part.text
    story(go())


def test_unknown_orders_and_those_of_another_account_are_not_there(api_bench, api_sandbox, ledger, valkey_url, tmp_path):
    async def go():
        other = ApiBench(api_sandbox, ledger, valkey_url, tmp_path / "other")
        async with other.api() as (theirs, _), api_bench.api(run_desk=False) as (_, http):
            csrf = signed_in(http)
            order = await rest(other, theirs)
            for bad in (str(order.id), str(new_id()), "x", "..%2Fdesk", EVIL.replace("/", "")):
                for path in (f"/ui/orders/{bad}", f"/ui/trace/{bad}"):
                    said = await http.get(path)
                    assert said.status_code == 404 and not raw(said), path
                said = await http.post(f"/ui/orders/{bad}/cancel", data={"csrf": csrf, "reason": "mine", "key": "web:" + "a"*32})
                assert said.status_code == 404
            assert (await theirs.order(order.id)).state == "open"
            await theirs.cancel(order.id)
            await theirs.wait(order.id, until=("cancelled",))
    story(go())


# ---- whatever somebody wrote

def test_hostile_text_in_every_field_is_text(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            signed_in(http)
            made = await decided(desk, instrument=EVIL, action=EVIL, reasons=[EVIL, f"{EVIL}:{EVIL}"], run_id=EVIL,
                inputs={"gate": {"regime": {"label": EVIL, "confidence": "x"}, "reasons": [EVIL, 7], "direction": EVIL, "hazard": EVIL, "asof_ms": 1e300, EVIL: EVIL}, EVIL: [EVIL]})
            odd = await decided(desk, inputs={"gate": [EVIL]}, verdict="refuse", reasons=[])
            order, = await many(desk, 1, pair=EVIL, name=EVIL)
            await desk.ledger.rows("""UPDATE orders SET reason = %s, trace_id = %s, venue_order_id = %s, run_id = %s, decision_id = %s, filled_units = 1, average_price = 1.1 WHERE id = %s""",
                (EVIL, made.hex, EVIL, EVIL, made, order))
            lone, = await many(desk, 1, pair=EVIL, name=f"lone{EVIL}", state="open")
            await desk.ledger.rows("UPDATE orders SET trace_id = %s, reason = %s WHERE id = %s", (f"../{EVIL}?#", EVIL, lone))
            await desk.ledger.rows("""INSERT INTO fills (venue, account, fill_id, order_id, instrument, units, price, fee, fee_currency, filled_at)
                VALUES ('oanda', %s, %s, %s, %s, 1, 1.1, 0.1, %s, %s)""", (desk.account, EVIL, order, EVIL, EVIL, AT))
            await desk.ledger.rows("INSERT INTO positions (account, instrument, units, average_price, realised_pnl_account) VALUES (%s, %s, 1, 1.1, 0)", (desk.account, EVIL))
            async with desk.ledger.transaction() as tx:
                for n, said in enumerate(({EVIL: EVIL}, {"deep": [{"a": EVIL}]}), 1):
                    await append_order_event(tx, desk.account, order, n, None if n == 1 else "created", "filled" if n > 1 else "created", EVIL, said)
            lone_trace = re.search(rf'href="(/ui/trace/[^"]*order={lone})"', (await http.get("/ui/orders")).text)[1]
            for path in ("/ui/orders", f"/ui/orders/{order}", f"/ui/orders/{lone}", f"/ui/trace/{made.hex}", f"/ui/trace/{odd}", html.unescape(lone_trace), "/ui/positions"):
                page = await http.get(path)
                assert page.status_code == 200 and not raw(page), (path, raw(page))
            assert "alert(1)" in page.text  # it is shown, as text
            for look in (orders_page.look, positions_page.look_positions):
                assert not [n for n in (await look(http.app.state.deps)).values() if "<script>" in str(n) or "<img" in str(n)]
    story(go())


def test_without_the_ledger_the_pages_say_so(api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            csrf = signed_in(http)
            async def down(*_):
                raise LedgerDown("the database is gone")
            monkeypatch.setattr(desk.ledger, "borrow", down)
            for path, words in (("/ui/orders", "The ledger cannot be reached, so orders cannot be shown"), ("/ui/positions", "not known what is held")):
                page = await http.get(path)
                assert page.status_code == 200 and words in text_of(page.text)
            for path in (f"/ui/orders/{new_id()}", f"/ui/trace/{new_id()}", "/ui/positions/EUR_USD/close"):
                page = await http.get(path)
                assert page.status_code == 503 and "ledger" in text_of(page.text)
            said = await http.post("/ui/positions/EUR_USD/close", headers={"HX-Request": "true"}, data={"csrf": csrf, "units": "5", "reason": "out", "key": "web:" + "b"*32})
            assert said.status_code == 503 and "Send the same form again" in text_of(said.text)
    story(go())


# ---- closing

async def close_form(http, instrument="EUR_USD", **query):
    page = await http.get(f"/ui/positions/{instrument}/close", params=query)
    assert page.status_code == 200 and not raw(page)
    return form_in(page, f"/ui/positions/{instrument}/close")


async def post_close(http, fields, instrument="EUR_USD", hx=True, **more):
    return await http.post(f"/ui/positions/{instrument}/close", data={"reason": "risk is off", **fields, **more}, headers={"HX-Request": "true"} if hx else {})


def test_a_part_is_closed_with_a_reason_that_stands_in_the_audit(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            await buy(api_bench, desk, 10_000)
            fields, confirm = await close_form(http, units="2,500")
            assert confirm.startswith("Sells 2,500 EUR_USD at market, near 1.0841 USD") and "+7,500 of +10,000 are left" in confirm and "Kill switch: clear" in confirm
            for bad in ("", "   ", "x"*301):
                said = await post_close(http, fields, reason=bad)
                assert said.status_code == 400 and "reason" in text_of(said.text)
            assert len(await desk.orders()) == 1 and not await audits(desk, "position.close")
            said = await post_close(http, fields)
            assert said.status_code == 200 and "2,500 of 2,500 EUR_USD filled." in text_of(said.text)
            order, = await desk.orders(limit=1)
            assert (order.units, order.side, order.reduce_only, order.kind, order.idempotency_key) == (2500, "sell", True, "exit", fields["key"])
            row, = await audits(desk, "position.close")
            assert row["actor"] == "web:maria" and {k: row["metadata"][k] for k in ("reason", "units", "override_kill", "key")} == {
                "reason": "risk is off", "units": "2500", "override_kill": False, "key": fields["key"]}
            assert order.trace_id == row["metadata"]["trace_id"] and (await http.get(f"/ui/trace/{order.trace_id}")).status_code == 200
            fields, confirm = await close_form(http)
            assert "Nothing is left then" in confirm and fields["units"] == "7500"
            plain = await post_close(http, fields, hx=False)
            assert plain.status_code == 303 and plain.headers["location"].startswith("/ui/orders/")
            assert await desk.positions() == []
        assert api_bench.problems() == []
    story(go())


def test_pressed_twice_is_closed_once(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            await buy(api_bench, desk, -3000)
            fields, confirm = await close_form(http, units="1000")
            assert confirm.startswith("Buys 1,000")
            both = await asyncio.gather(*(post_close(http, fields) for _ in range(4)))
            assert [r.status_code for r in both] == [200]*4 and all("1,000 of 1,000" in text_of(r.text) for r in both)
            again = await post_close(http, fields)
            assert again.status_code == 200 and (await desk.positions())[0].units == -2000
            await desk.ledger.rows("DELETE FROM http_idempotency")  # as if the process had died before it kept the answer
            assert (await post_close(http, fields)).status_code == 200
            assert len(await desk.orders()) == 2 and len(await audits(desk, "position.close")) == 1
            other = await post_close(http, fields, units="2000")
            assert other.status_code == 422 and len(await desk.orders()) == 2
            for bad in ({"key": ""}, {"key": "cli:1"}, {"units": "-1"}, {"units": "1e3"}, {"units": "0"}):
                assert (await post_close(http, fields, **bad)).status_code == 400
        assert api_bench.problems() == []
    story(go())


def test_under_the_kill_switch_only_who_says_so_closes(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            await buy(api_bench, desk, 2000)
            fields, _ = await close_form(http)
            await engage(desk.kill, "test", "prices look wrong")
            said = await post_close(http, fields)
            assert said.status_code == 423 and "clear it on the page Desk" in text_of(said.text)
            page = await http.get("/ui/positions/EUR_USD/close")
            assert 'method="post" action="/ui/positions' not in page.text and "prices look wrong" in page.text and "although the kill switch is engaged" in page.text
            assert (await desk.positions())[0].units == 2000
            passed, confirm = await close_form(http, override="yes")
            assert "engaged, and this order passes it" in confirm
            assert (await post_close(http, passed)).status_code == 200
            assert await desk.positions() == [] and (await audits(desk, "position.close"))[-1]["metadata"]["override_kill"] is True
            gone = await post_close(http, fields)
            assert gone.status_code == 404 and "Look at Orders" in text_of(gone.text)
    story(go())


@pytest.mark.parametrize(("error", "status", "words"), [(ReadOnlyOn("The desk is read-only."), 403, "READ_ONLY=0"), (NotArmed("not armed."), 403, "kill-switch arm")])
def test_what_is_forbidden_is_said_with_what_to_do(api_bench, monkeypatch, error, status, words):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            await buy(api_bench, desk, 2000)
            resting = await rest(api_bench, desk)
            fields, _ = await close_form(http)
            page = await http.get(f"/ui/orders/{resting.id}")
            cancel, _ = form_in(page, f"/ui/orders/{resting.id}/cancel")
            async def refuse(write):
                raise error
            monkeypatch.setattr(desk.intake, "guard", refuse)
            monkeypatch.setattr(desk, "guard", refuse)
            for said in (await post_close(http, fields), await post_close(http, fields, override="yes", key="web:" + "c"*32),
                         await http.post(f"/ui/orders/{resting.id}/cancel", data={**cancel, "reason": "out"}, headers={"HX-Request": "true"})):
                assert said.status_code == status and words in text_of(said.text), said.text
            assert (await desk.positions())[0].units == 2000 and (await desk.order(resting.id)).state == "open"
    story(go())


def test_a_read_only_desk_offers_no_way_out(api_bench, monkeypatch):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            await buy(api_bench, desk, 2000)
            monkeypatch.setattr("deskbook.app.dashboard.order_acts.is_read_only", lambda desk: True)
            await engage(desk.kill, "test", "test")
            for query in ({}, {"override": "yes"}):
                page = await http.get("/ui/positions/EUR_USD/close", params=query)
                assert 'method="post" action="/ui/positions' not in page.text and "The desk is read-only" in page.text and 'name="override"' not in page.text
    story(go())


def test_when_the_venue_refuses_or_is_away_the_form_says_so(api_bench, monkeypatch):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            await buy(api_bench, desk, 2000)
            fields, _ = await close_form(http)
            api_bench.fault("reject", "orders.create", reason="MARKET_HALTED")
            said = await post_close(http, fields)
            assert said.status_code == 200 and "the venue said MARKET_HALTED" in text_of(said.text) and "Nothing was filled" in text_of(said.text)
            api_bench.sandbox.control.clear_faults()
            assert (await desk.positions())[0].units == 2000
            fields, _ = await close_form(http)
            async def away():
                raise NetworkError("connection refused")
            with monkeypatch.context() as m:
                m.setattr(desk, "load", away)
                said = await post_close(http, fields)
                assert said.status_code == 502 and "try again with the same form" in text_of(said.text) and len(await desk.orders()) == 2
            assert (await post_close(http, fields)).status_code == 200 and await desk.positions() == []
    story(go())


def test_who_may_only_look_changes_nothing(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            csrf = signed_in(http)
            await buy(api_bench, desk, 2000)
            resting = await rest(api_bench, desk)
            fields, _ = await close_form(http)
            for wrong in ("", "0"*64):
                assert (await post_close(http, fields, csrf=wrong)).status_code == 403
            signed_in(http, may_act=False)
            page = await http.get("/ui/positions/EUR_USD/close")
            assert "Sign in with the acting token" in page.text and 'method="post" action="/ui/positions' not in page.text
            assert (await post_close(http, fields)).status_code == 403
            assert (await http.post(f"/ui/orders/{resting.id}/cancel", data={"csrf": csrf, "reason": "out", "key": fields["key"]})).status_code == 403
            assert (await desk.positions())[0].units == 2000 and (await desk.order(resting.id)).state == "open"
    story(go())


# ---- cancelling

def test_a_live_order_is_cancelled_once_with_its_reason(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            order = await rest(api_bench, desk)
            await engage(desk.kill, "test", "a cancel passes")
            url = f"/ui/orders/{order.id}/cancel"
            fields, confirm = form_in(await http.get(f"/ui/orders/{order.id}"), url)
            assert "buy 1,000 EUR_USD limit at 1.05" in confirm
            async def press(**more):
                return await http.post(url, data={**fields, "reason": "wrong price", **more}, headers={"HX-Request": "true"})
            assert (await press(reason="")).status_code == 400 and (await desk.order(order.id)).state == "open"
            both = await asyncio.gather(*(press() for _ in range(3)))
            assert [r.status_code for r in both] == [200]*3 and all("Cancelled." in text_of(r.text) for r in both)
            assert (await desk.wait(order.id, until=("cancelled",))).state == "cancelled"
            row, = await audits(desk, "order.cancel")
            assert (row["actor"], row["metadata"]["why"], row["resource_id"]) == ("web:maria", "wrong price", str(order.id))
            late = await press(key="web:" + "d"*32)
            assert late.status_code == 200 and "Cancelled." in text_of(late.text) and len(await audits(desk, "order.cancel")) == 1
            assert "<form" not in (await http.get(f"/ui/orders/{order.id}")).text.partition("<main")[2]
    story(go())


# ---- positions

def test_positions_say_whose_they_are_and_how_they_came_to_be(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            assert "Nothing is held" in text_of((await http.get("/ui/positions")).text)
            entry = await decided(desk)
            own, = await desk.submit([replace(api_bench.intent(1000), decision_id=str(entry), trace_id=entry.hex)])
            await desk.ledger.rows("UPDATE orders SET run_id = 'manager' WHERE id = %s", (own.id,))
            await desk.wait(own.id)
            api_bench.external(500)
            async def held():
                return [p for p in await desk.positions() if p.units == 1500]
            await eventually(held)
            page = await http.get("/ui/positions")
            text = text_of(page.text)
            for words in ("+1,500", "+1,000 the manager&#39;s, in 1 entry", "+500 not the manager", "How EUR_USD came to be", "+1,000 → +1,500", "could be closed at 1.0841", "unrealised", "entry, the manager", "external, somebody at the venue"):
                assert words in text, words
            assert f'href="/ui/trace/{entry.hex}"' in page.text and 'href="/ui/positions/EUR_USD/close"' in page.text
            said = await positions_page.look_positions(http.app.state.deps)
            assert all(f'id="{name}"' in page.text for name in said)
            fields, _ = await close_form(http)
            await post_close(http, fields)
            text = text_of((await http.get("/ui/positions")).text)
            assert "Nothing is held" in text and "Flat now" in text and "EUR_USD" in text.partition("Flat now")[2]
            assert "pair realised fees financing realised in the pair" in text and "realised in USD" not in text
    story(go())


def test_a_position_in_yen_says_its_gain_in_the_money_of_the_account_as_the_desk_does(api_bench, monkeypatch):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            await buy(api_bench, desk, 10_000, instrument="USD_JPY") # 160 yen of spread
            async def card():
                return text_of((await http.get("/ui/positions")).text.partition('id="positions-moves"')[0])
            said = re.search(r"unrealised (\S+ USD) realised", await card())[1]
            assert f"at 151.418 {said} " in text_of((await http.get("/ui/desk")).text)
            assert re.fullmatch("\u22121\\.06\\s*USD", said)
            assert "realised in JPY" in await card()
            monkeypatch.setattr(desk_facts, "rate", no_rate)
            assert re.search("unrealised \u2212160.00\\s*JPY \\(no rate to USD just now\\) realised", await card())
            assert re.search("at 151.418 \u2212160.00\\s*JPY ", text_of((await http.get("/ui/desk")).text))
    def no_rate(*args):
        raise NoRate("no rate", "")
    story(go())


def test_a_venue_that_hangs_does_not_hold_up_the_positions(api_bench, monkeypatch):
    async def go():
        monkeypatch.setattr(order_facts, "_MARK_WAIT_S", 0.2)
        async with api_bench.api() as (desk, http):
            signed_in(http)
            await buy(api_bench, desk, 1000)
            async def hang(names):
                await asyncio.sleep(60)
            monkeypatch.setattr(desk.marks, "fresh", hang)
            for path in ("/ui/positions", "/ui/positions/EUR_USD/close"):
                page = await asyncio.wait_for(http.get(path), 5)
                assert page.status_code == 200 and "+1,000" in text_of(page.text)
    story(go())


# ---- from gate to fill

def test_an_order_without_a_decision_is_found_by_its_trace_behind_any_number_of_newer_ones(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            signed_in(http)
            old, = await many(desk, 1, name="old", at=AT - timedelta(days=400))
            await desk.ledger.rows("UPDATE orders SET trace_id = 'spring' WHERE id = %s", (old,))
            await many(desk, 21_000)
            await desk.ledger.rows("UPDATE orders SET trace_id = 't' || client_order_id WHERE trace_id = ''")
            page = await http.get("/ui/trace/spring")
            assert page.status_code == 200 and str(old)[:8] in page.text and "No decision belongs to this" in page.text
            await desk.ledger.rows("ANALYZE orders")
            plan = "\n".join(r["QUERY PLAN"] for r in await desk.ledger.rows(f"EXPLAIN {OF_TRACE}", (desk.account, "spring", 20)))
            assert "Index Scan using orders_trace on orders" in plan and "Sort" not in plan and "Seq Scan" not in plan, plan
    story(go())


def test_a_trace_shows_the_whole_way(api_bench):
    async def go():
        async with api_bench.api() as (desk, http):
            signed_in(http)
            await buy(api_bench, desk, 300)
            entry = await decided(desk)
            order, = await desk.submit([replace(api_bench.intent(1000), decision_id=str(entry), trace_id=entry.hex)])
            await desk.wait(order.id)
            await buy(api_bench, desk, 50)
            for key in (entry.hex, str(entry), str(order.id)):
                page = await http.get(f"/ui/trace/{key}")
                text = text_of(page.text)
                for words in ("EUR_USD: from gate to fill", "gate stored → decided", "decided → accepted", "accepted → sent", "sent → filled", "trend_bull", "81% sure", "enter", "Nothing spoke against it",
                              "+300 → +1,300", "buy 1,000 EUR_USD at market", "what it was decided on"):
                    assert words in text, (key, words)
                assert "245 ms" in text and 'class="lap"' in page.text
            refused = await decided(desk, verdict="refuse", action="", reasons=["gate_stale", "kill_switch"], inputs={"gate": None})
            text = text_of((await http.get(f"/ui/trace/{refused.hex}")).text)
            for words in ("the gate is too old", "the kill switch is engaged", "No gate was seen", "No order came of it"):
                assert words in text, words
    story(go())


def test_a_trace_of_the_api_is_found_without_a_decision(api_bench):
    async def go():
        async with api_bench.api() as (_, http):
            bearer = http.headers["authorization"]
            done = await http.post("/api/order", json={"instrument": "EUR_USD", "units": 1000}, headers={"authorization": bearer})
            order = done.json()["response"]
            signed_in(http)
            for path in (f"/ui/trace/{order['trace_id']}", f"/ui/trace/{order['trace_id']}?order={order['id']}", f"/ui/trace/{order['id']}"):
                text = text_of((await http.get(path)).text)
                assert "No decision belongs to this" in text and "accepted → sent" in text and "0 → +1,000" in text
            assert (await http.get(f"/ui/trace/{'0'*32}?order={order['id']}")).status_code == 404  # a hint that does not fit is no answer
            assert json.loads(done.text)["ok"] is True and Decimal(order["units"]) == 1000
    story(go())
