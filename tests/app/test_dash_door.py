"""The door of the dashboard: every address, with every right, whatever pages there are."""
import asyncio
import contextlib
import re

import httpx
import pytest
from api_rig import TOKEN, story

from deskbook.app.dashboard.pages import routers
from deskbook.app.dashboard.runbook_facts import books
from deskbook.app.dashboard.session import COOKIE, csrf_of, session_cookie, viewer_of
from deskbook.app.dashboard.web import files

VIEW = "look-2b7e151628"
OPEN = {"/ui/login", "/ui/static/{name:path}", "/", "/ui", "/ui/"}
EXAMPLE = {"order_id": "00000000-0000-0000-0000-000000000001", "alert_id": "00000000-0000-0000-0000-000000000001", "trace_id": "0" * 32}


def addresses(method):
    """Every page address that takes this method, with its places filled in."""
    found = [r.path for router in routers() for r in router.routes if method in (r.methods or ())]
    return sorted({re.sub(r"\{(\w+)(:\w+)?\}", lambda m: EXAMPLE.get(m[1], "x"), p) for p in found if p not in OPEN})


def cookie(settings, may_act=True, name="maria"):
    value = session_cookie(settings, name, may_act)
    return {"Cookie": f"{COOKIE}={value}"}, csrf_of(settings, viewer_of(settings, value).sid)


@pytest.fixture
def door(api_bench):
    def open_door(**settings):
        return api_bench.api(run_desk=False, headers={}, api_view_token=VIEW, **settings)
    return open_door


def test_without_a_session_every_page_asks_who_it_is_and_every_deed_is_refused(door):
    async def go():
        async with door() as (_, http):
            pages, deeds = addresses("GET"), addresses("POST")
            assert "/ui/events" in pages and "/ui/logout" in deeds
            for path in pages:
                answer = await http.get(path)
                assert answer.status_code in (303, 401), (path, answer.status_code)
                assert answer.status_code == 401 or answer.headers["location"].startswith("/ui/login?next="), path
            for path in deeds:
                assert (await http.post(path, data={"csrf": "x"})).status_code in (303, 401), path
            bearer = {"Authorization": f"Bearer {TOKEN}"}  # the API's token in a header opens no page: no cookie, no session
            assert (await http.get("/ui/desk", headers=bearer)).status_code == 303
    story(go())


def test_every_deed_refuses_who_may_only_look_and_who_lacks_the_pages_word(door, api_bench):
    async def go():
        async with door() as (_, http):
            settings = http.app.state.deps.settings
            looking, _ = cookie(settings, may_act=False)
            acting, word = cookie(settings)
            _, other = cookie(settings, name="eve")
            for path in [p for p in addresses("POST") if p != "/ui/logout"]:
                refused = [await http.post(path, headers=looking, data={"csrf": csrf_of(settings, "")}),
                           await http.post(path, headers=acting, data={"x": "1"}), await http.post(path, headers=acting, data={"csrf": other}),
                           await http.post(path, headers={**acting, "Origin": "http://evil.example"}, data={"csrf": word}),
                           await http.post(path, headers={**acting, "Sec-Fetch-Site": "cross-site"}, data={"csrf": word})]
                assert [r.status_code for r in refused] == [403] * 5, (path, [r.status_code for r in refused])
                assert (await http.get(path, headers=acting)).status_code in (404, 405, 200), path  # a GET never acts
    story(go())


def test_a_session_is_for_pages_only(door):
    async def go():
        async with door() as (_, http):
            acting, _ = cookie(http.app.state.deps.settings)
            assert (await http.get("/api/status", headers=acting)).status_code == 401
            assert (await http.post("/api/kill-switch", headers=acting, json={"kill_switch": True})).status_code == 401
    story(go())


@pytest.mark.parametrize("path", ["/ui/login", "/ui/desk", "/ui/nothing", "/ui/static/desk.css", "/ui/static/../web.py"])
def test_every_answer_of_a_page_keeps_foreign_script_out(door, path):
    async def go():
        async with door() as (_, http):
            acting, _ = cookie(http.app.state.deps.settings)
            answer = await http.get(path, headers=acting)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-frame-options"] == "DENY"
            assert not re.search(r"<script(?![^>]*\ssrc=)|\sstyle=|\son\w+=|javascript:", answer.text) or path.endswith((".css", ".js"))
            assert TOKEN not in answer.text and VIEW not in answer.text
    story(go())


def test_signing_in(door):
    async def go():
        async with door() as (_, http):
            wrong = await http.post("/ui/login", data={"token": "wrong", "name": "eve", "next": "/ui/ops"})
            assert wrong.status_code == 401 and "set-cookie" not in wrong.headers and "This is not the token" in wrong.text
            right = await http.post("/ui/login", data={"token": TOKEN, "name": "<maria>", "next": "//evil.example"})
            assert right.status_code == 303 and right.headers["location"] == "/ui/desk"
            given = right.headers["set-cookie"]
            assert "HttpOnly" in given and "SameSite=Strict" in given and "Secure" not in given and TOKEN not in given
            tls = await http.post("/ui/login", data={"token": TOKEN}, headers={"X-Forwarded-Proto": "https"})
            assert "; Secure" in tls.headers["set-cookie"]
            foreign = await http.post("/ui/login", data={"token": TOKEN}, headers={"Origin": "http://evil.example"})
            assert foreign.status_code == 403
            for token, chosen, may_act in ((TOKEN, "act", True), (TOKEN, "view", False), (VIEW, "act", False)):
                answer = await http.post("/ui/login", data={"token": token, "as": chosen})
                value = answer.cookies.get(COOKIE) or answer.headers["set-cookie"].partition(";")[0].partition("=")[2]
                assert viewer_of(http.app.state.deps.settings, value).may_act is may_act
    story(go())


def test_many_wrong_tokens_have_to_wait_and_each_caller_is_counted_alone(door):
    async def go():
        async with door() as (_, http):
            tries = [(await http.post("/ui/login", data={"token": "wrong"}, headers={"X-Forwarded-For": "192.0.2.7"})).status_code for _ in range(12)]
            assert tries[:8] == [401] * 8 and set(tries[8:]) == {429}
            assert (await http.post("/ui/login", data={"token": TOKEN}, headers={"X-Forwarded-For": "192.0.2.8"})).status_code == 303
    story(go())


def test_signing_out_ends_the_session_also_for_a_copy_of_its_cookie(door):
    async def go():
        async with door() as (_, http):
            acting, word = cookie(http.app.state.deps.settings)
            assert (await http.post("/ui/logout", headers=acting, data={"csrf": "wrong"})).status_code == 403
            assert (await http.get("/ui/nothing", headers=acting)).status_code == 404
            out = await http.post("/ui/logout", headers=acting, data={"csrf": word})
            assert out.status_code == 303 and "Max-Age=0" in out.headers["set-cookie"]
            assert (await http.get("/ui/nothing", headers=acting)).status_code == 303
    story(go())


def test_without_a_token_this_machine_may_look_and_nobody_may_act(door):
    async def go():
        async with door(token=None) as (_, http):
            assert (await http.get("/ui/nothing")).status_code == 404  # let in, and there is no such page
            assert (await http.get("/ui/login")).status_code == 303
            for path in addresses("POST"):
                assert (await http.post(path, data={"csrf": ""})).status_code == 403, path
            far = httpx.ASGITransport(app=http.app, client=("192.0.2.1", 1))
            async with httpx.AsyncClient(transport=far, base_url="http://192.0.2.9:8000") as stranger:
                assert (await stranger.get("/ui/desk")).status_code == 403
    story(go())


def test_requests_are_counted_by_session_and_files_are_not_counted(door):
    async def go():
        async with door(rate_limit=5) as (_, http):
            (one, _), (two, _) = cookie(http.app.state.deps.settings), cookie(http.app.state.deps.settings, name="ben")
            assert [(await http.get("/ui/nothing", headers=one)).status_code for _ in range(7)] == [404] * 5 + [429] * 2
            assert (await http.get("/ui/nothing", headers=two)).status_code == 404
            assert all([(await http.get("/ui/static/desk.css")).status_code == 200 for _ in range(9)])
    story(go())


@pytest.mark.parametrize("body, kind", [("csrf=%ff", "application/x-www-form-urlencoded"), ("csrf=a&csrf=b", "application/x-www-form-urlencoded"),
                                        ("&".join(f"f{i}=1" for i in range(500)), "application/x-www-form-urlencoded"),
                                        ("a" * 100_000, "application/x-www-form-urlencoded"), ('{"csrf": 1}', "application/json"), ("novalue", "application/x-www-form-urlencoded")])
def test_a_form_that_is_none_is_refused_in_words(door, body, kind):
    async def go():
        async with door() as (_, http):
            acting, _ = cookie(http.app.state.deps.settings)
            answer = await http.post("/ui/logout", headers={**acting, "Content-Type": kind}, content=body)
            assert answer.status_code in (400, 403, 413) and "<main" in answer.text, answer.status_code
    story(go())


def test_files_are_kept_for_good_by_their_hash_and_only_those_of_the_folder_are_served(door):
    async def go():
        async with door() as (_, http):
            for name, (path, digest) in files().items():
                answer = await http.get(f"/ui/static/{name}?v={digest}")
                assert answer.content == path.read_bytes() and "immutable" in answer.headers["cache-control"], name
            assert "immutable" not in (await http.get("/ui/static/desk.css?v=old")).headers["cache-control"]
            for name in ("..%2fweb.py", "%2e%2e/web.py", "vendor/VENDORED.toml", "", "/etc/passwd", "desk.css%00"):
                assert (await http.get(f"/ui/static/{name}")).status_code == 404, name
    story(go())


def test_a_stream_ends_with_its_session_and_no_other(door, api_bench, monkeypatch):
    async def go():
        async with api_bench.served(run_desk=False, headers={}, api_view_token=VIEW) as (_, http):
            settings = api_bench.settings(api_view_token=VIEW)
            (mine, word), (other, _) = cookie(settings), cookie(settings, name="ben")

            async def lines(headers, seconds):
                said = []
                async with http.stream("GET", "/ui/events?topics=hero", headers=headers) as stream:
                    assert stream.status_code == 200
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            async for line in stream.aiter_lines():
                                said.append(line)
                            return said, "ended"
                return said, "open"

            ours, theirs = asyncio.create_task(lines(mine, 10)), asyncio.create_task(lines(other, 4))
            await asyncio.sleep(1.5)
            assert (await http.post("/ui/logout", headers=mine, data={"csrf": word})).status_code == 303
            said, how = await ours
            assert how == "ended" and "event: bye" in said and any(line.startswith("data: <hx-partial") for line in said)
            said, how = await theirs
            assert how == "open" and said.count("event: tick") >= 1
            monkeypatch.setattr("deskbook.app.dashboard.session.LIFE_S", 3)  # a session that is over by itself
            said, how = await lines(cookie(settings, name="zoe")[0], 10)
            assert how == "ended" and "event: bye" in said
    story(go())


def test_whoever_asks_the_sign_in_page_too_often_locks_out_nobody_else(door):
    async def go():
        async with door(rate_limit=5) as (_, http):
            flood = {"X-Forwarded-For": "192.0.2.7"}  # through the web edge on this machine, where everybody has the same address
            assert [(await http.get("/ui/login", headers=flood)).status_code for _ in range(6)] == [200] * 5 + [429]
            assert (await http.get("/ui/desk", headers=flood)).status_code == 303  # refused requests have a count of their own
            assert (await http.get("/ui/login", headers={"X-Forwarded-For": "192.0.2.8"})).status_code == 200
            bearer = {"Authorization": f"Bearer {TOKEN}", "X-Forwarded-For": "192.0.2.7"}
            assert (await http.get("/api/kill-switch/nothing", headers=bearer)).status_code == 404  # and programs with the token theirs
    story(go())


def test_pages_that_ask_too_often_do_not_keep_a_person_from_stopping_the_desk(door):
    async def go():
        async with door(rate_limit=3) as (_, http):
            acting, word = cookie(http.app.state.deps.settings)
            while (await http.get("/ui/nothing", headers=acting)).status_code != 429:
                pass
            assert (await http.post("/ui/desk/stop", headers=acting, data={"csrf": word})).status_code == 303
            assert (await http.post("/ui/desk/clear", headers=acting, data={"csrf": word, "why_clear": "it is over"})).status_code == 429
    story(go())


@pytest.mark.parametrize("other", ['a[b]=1', 'theme={"dark": true}', "x=\xe9\x01", "=;", "expires=1", 'q="unfinished'])
def test_a_cookie_of_another_program_on_this_host_signs_nobody_out(door, other):
    async def go():
        async with door() as (_, http):
            acting, _ = cookie(http.app.state.deps.settings)
            for both in (f"{other}; {acting['Cookie']}", f"{acting['Cookie']}; {other}"):
                assert (await http.get("/ui/nothing", headers={"Cookie": both.encode("latin-1")})).status_code == 404, both
    story(go())


def test_a_wrong_token_stands_in_the_log_without_the_token(door, caplog):
    async def go():
        async with door() as (_, http):
            await http.post("/ui/login", data={"token": "guess-2b7e15", "name": "eve"}, headers={"X-Forwarded-For": "192.0.2.7"})
    story(go())
    [told] = [r for r in caplog.records if "token" in r.getMessage()]
    assert told.levelname == "WARNING" and told.peer == "192.0.2.7" and "guess" not in str(told.__dict__)


@pytest.mark.parametrize("part", ["%00", "a%00b", "%ff", "%E2%80%AE", "..%2f..%2fetc%2fpasswd", "%27%22%3E%3Cscript%3E", "9" * 400])
def test_no_address_makes_the_desk_stumble(door, part):
    async def go():
        async with door() as (_, http):
            acting, _ = cookie(http.app.state.deps.settings)
            found = sorted({re.sub(r"\{\w+(:\w+)?\}", part, r.path) for router in routers() for r in router.routes if "{" in r.path and "GET" in r.methods})
            assert len(found) > 8
            for path in found:
                answer = await http.get(path, headers=acting)
                assert answer.status_code < 500, (path, answer.status_code)
                assert "<script>" not in answer.text, path
    story(go())


def test_a_session_that_signed_out_stays_so_when_the_desk_starts_again(door):
    async def go():
        async with door() as (_, http):
            (out, word), (stays, _) = cookie(http.app.state.deps.settings), cookie(http.app.state.deps.settings, name="ben")
            assert (await http.post("/ui/logout", headers=out, data={"csrf": word})).status_code == 303
        async with door() as (_, http):
            assert (await http.get("/ui/nothing", headers=out)).status_code == 303
            assert (await http.get("/ui/nothing", headers=stays)).status_code == 404
    story(go())


@pytest.mark.parametrize("text", ["[" * 20_000, r'["EUR_USD\u0000"]', r'["\ud800"]', '["a\\nb"]'])
def test_a_list_that_cannot_be_used_is_said_at_its_field(door, text):
    async def go():
        async with door() as (_, http):
            acting, word = cookie(http.app.state.deps.settings)
            form = {"csrf": word, "key": "0" * 32, "p-instruments": text}
            answer = await http.post("/ui/runbooks/manual_candle_fetch", headers=acting, data=form)
            assert answer.status_code == 422 and 'id="p-instruments-error"' in answer.text
            assert not (http.app.state.deps.settings.home / "launches").exists()
    story(go())


def test_a_link_fills_in_no_name_for_the_audit(door):
    async def go():
        async with door() as (_, http):
            acting, _ = cookie(http.app.state.deps.settings)
            named = [b.name for b in books() if any(p.name == "by" for p in b.parameters)]
            assert named
            for name in named:
                said = (await http.get(f"/ui/runbooks/{name}?by=ben&why=because-of-a-link", headers=acting)).text
                assert 'value="maria"' in said and 'value="ben"' not in said and "because-of-a-link" not in said, name
    story(go())


def test_who_may_only_look_leaves_places_for_those_who_act(door):
    async def go():
        async with door() as (_, http):
            settings, pages = http.app.state.deps.settings, http.app.state.pages
            (looking, _), (acting, _) = cookie(settings, may_act=False), cookie(settings)
            pages.close()  # a new stream ends at once
            assert (await http.get("/ui/events", headers=looking)).status_code == 200
            for _ in range(pages.most_clients - 1):
                pages.join()
            assert (await http.get("/ui/events", headers=looking)).status_code == 429
            assert (await http.get("/ui/events", headers=acting)).status_code == 200
    story(go())


def test_who_stopped_the_desk_and_why_stands_in_the_audit_in_any_script(door):
    async def go():
        async with door() as (_, http):
            settings, ledger = http.app.state.deps.settings, http.app.state.deps.ledger
            for name in ("Мария", "maria\u3164"):
                acting, word = cookie(settings, name=name)
                assert (await http.post("/ui/desk/stop", headers=acting, data={"csrf": word, "why_stop": "разрыв"})).status_code == 303
                assert (await http.post("/ui/desk/clear", headers=acting, data={"csrf": word, "why_clear": "прошло"})).status_code == 303
            told = await ledger.rows("SELECT actor, metadata ->> 'reason' AS why FROM ops_audit_events WHERE actor LIKE 'web:%%' ORDER BY seq")
            assert len({r["actor"] for r in told}) == 2, told
            assert not {r["actor"] for r in told} & {"web:", "web:maria"}
            assert len({r["why"] for r in told}) == 2 and "no reason" not in str(told)
    story(go())


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{"])
def test_one_broken_evidence_takes_no_list_away(door, text):
    async def go():
        async with door() as (_, http):
            acting, _ = cookie(http.app.state.deps.settings)
            folder = http.app.state.deps.reports / "gate_history/20251101T000000Z-aaaaaa"
            folder.mkdir(parents=True)
            (folder / "evidence.json").write_bytes(text)
            (folder / "log.jsonl").write_bytes(text + b"\n")
            for path in ("/ui/runs", "/ui/runbooks", "/ui/runbooks/gate_history", *(f"/ui/{p}gate_history/{folder.name}" for p in ("runs/", "runbooks/runs/"))):
                assert (await http.get(path, headers=acting)).status_code == 200, path
    story(go())


@pytest.mark.parametrize("origins", [["http://["], ["null"], ["http://127.0.0.1:8000@evil.example"], ["http://127.0.0.1:8000", "http://evil.example"], ["127.0.0.1:8000"],
                                     ["http://127.0.0.1:8000/x"]])
def test_an_origin_that_is_not_ours_or_cannot_be_read_is_refused(door, origins):
    async def go():
        async with door() as (_, http):
            acting, word = cookie(http.app.state.deps.settings)
            said = [*acting.items(), *(("Origin", o) for o in origins)]
            assert (await http.post("/ui/desk/stop", headers=said, data={"csrf": word})).status_code == 403
            assert (await http.post("/ui/login", headers=said[1:], data={"token": TOKEN})).status_code == 403
            ours = {**acting, "Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
            assert (await http.post("/ui/desk/stop", headers=ours, data={"csrf": word})).status_code == 303
    story(go())
