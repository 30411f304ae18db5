"""A page that has to ask first sends its head at once, and says in its body what went wrong afterwards."""
import asyncio
import re

import pytest
from api_rig import story
from page_rig import cookie

from deskbook.app.dashboard import desk_page, orders_page, positions_page, tape_page
from deskbook.app.dashboard.elements import STATIC
from deskbook.core.errors import BadInput


PAGES = [("/ui/desk", desk_page, "look_at"), ("/ui/tape?pair=EUR_USD", tape_page, "read_tape"), ("/ui/orders", orders_page, "read_page"), ("/ui/positions", positions_page, "look_positions")]


async def asked(app, path, headers, on_part):
    """Ask without a client that waits for the end: `on_part` is told each part as it is sent. Answers the status and all parts."""
    status, parts = 0, []
    path, _, query = path.partition("?")

    async def send(message):
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif body := message.get("body"):
            parts.append(body.decode())
            on_part(parts[-1])

    async def receive():
        await asyncio.sleep(3600)

    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET", "scheme": "http", "path": path, "raw_path": path.encode(),
        "query_string": query.encode(), "root_path": "", "headers": [(b"host", b"127.0.0.1"), *((k.lower().encode(), v.encode()) for k, v in headers.items())],
        "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 80)}
    await asyncio.wait_for(app(scope, receive, send), 20)
    return status, parts


@pytest.mark.parametrize("path, module, name", PAGES)
def test_links_and_styles_come_while_the_stores_are_still_asked(path, module, name, api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False, headers={}) as (_, http):
            there, real = asyncio.Event(), getattr(module, name)

            async def waits(*a, **k):
                await asyncio.wait_for(there.wait(), 10)  # until the head has been seen
                return await real(*a, **k)

            monkeypatch.setattr(module, name, waits)
            status, (head, body) = await asked(http.app, path, cookie(http.app.state.deps.settings)[0], lambda _: there.set())
            assert status == 200 and 'href="/ui/orders"' in head and "desk.css" in head and "<main" not in head
            assert body.count("<main") == 1 and body.endswith("</body></html>") and not any(w in body for w in ("does not answer", "cannot be"))
    story(go())


@pytest.mark.parametrize("error, said", [(BadInput("no such week"), "no such"), (ZeroDivisionError("inside"), "Something went wrong in the desk")])
def test_what_goes_wrong_after_the_head_stands_in_the_page(error, said, api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False, headers={}) as (_, http):
            async def fails(deps):
                raise error

            monkeypatch.setattr(desk_page, "look_at", fails)
            status, parts = await asked(http.app, "/ui/desk", cookie(http.app.state.deps.settings)[0], lambda _: None)
            assert status == 200 and said in parts[-1] and 'role="alert"' in parts[-1] and "inside" not in parts[-1] and "Code i" in parts[-1]
            assert parts[-1].count("<main") == 1 and parts[-1].endswith("</body></html>")
    story(go())


def test_who_leaves_while_the_desk_is_asked_does_not_take_the_answer_from_others(api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False, headers={}) as (_, http):
            deps = http.app.state.deps
            first = asyncio.create_task(desk_page.look_at(deps))
            second = asyncio.create_task(desk_page.look_at(deps))
            await asyncio.sleep(0)
            first.cancel()
            looked = await asyncio.wait_for(second, 10)
            assert first.cancelled() and looked.kill is not None
    story(go())


def test_a_pair_that_nobody_knows_is_refused_with_its_status(api_bench):
    async def go():
        async with api_bench.api(run_desk=False, headers={}) as (_, http):
            status, _ = await asked(http.app, "/ui/tape?pair=ZZZ_USD", cookie(http.app.state.deps.settings)[0], lambda _: None)
            assert status == 404
    story(go())


@pytest.mark.parametrize("cookie_said, stands", [("dark", '<html lang="en" data-theme="dark">'), ("light", '<html lang="en" data-theme="light">'), ('"><script>', '<html lang="en">'), ("", '<html lang="en">')])
def test_the_chosen_theme_stands_in_the_first_line(cookie_said, stands, api_bench):
    async def go():
        async with api_bench.api(run_desk=False, headers={}) as (_, http):
            own = cookie(http.app.state.deps.settings)[0]["Cookie"]
            for path in ("/ui/desk", "/ui/ops", "/ui/login", "/ui/nothing"):
                _, (head, *_) = await asked(http.app, path, {"Cookie": f"{own}; deskbook_theme={cookie_said}"}, lambda _: None)
                assert stands in head, path
    story(go())


def test_the_pages_use_two_weights():
    """Each further weight is one more font to ask the system for before the first paint."""
    found = {w for p in STATIC.glob("*.css") for w in re.findall(r"font-weight: *([^;} ]+)", p.read_text())}
    assert found == {"400", "700"}
