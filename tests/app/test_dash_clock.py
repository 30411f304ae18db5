"""Ages on a page count by the desk's clock, however wrong that of the browser is and however much there is to tell."""
import asyncio
import re
from types import SimpleNamespace

from api_rig import story

from deskbook.app.api_events import EventStream
from deskbook.app.dashboard.session import COOKIE, session_cookie


class Talking:
    """A client for whom something always waits."""
    ended, waiting = False, ()

    async def next(self, wait_s):
        await asyncio.sleep(0.02)
        return b"data: x\n\n"


def test_signs_of_life_come_first_and_between_however_much_there_is_to_tell():
    async def go():
        async def turn():
            await asyncio.sleep(0)

        sent, hub, client = [], SimpleNamespace(leave=lambda client: None, turn=turn), Talking()

        async def send(message):
            sent.append(message.get("body", b""))

        async def receive():
            await asyncio.sleep(1.0)
            return {"type": "http.disconnect"}

        await EventStream(hub, client, 0.1, lambda: b"event: tick\ndata: 1\n\n")({"type": "http"}, receive, send)
        told = b"".join(sent)
        assert told.index(b"event: tick") < told.index(b"data: x") and told.count(b"event: tick") >= 4
    story(go())


def test_a_page_carries_the_clock_of_the_desk(api_bench):
    async def go():
        async with api_bench.api(run_desk=False, headers={}) as (_, http):
            deps = http.app.state.deps
            here = {"Cookie": f"{COOKIE}={session_cookie(deps.settings, 'maria', True)}"}
            for path in ("/ui/desk", "/ui/ops"):
                before, text, after = deps.clock(), (await http.get(path, headers=here)).text, deps.clock()
                assert before <= int(re.search(r'data-now-ms="(\d+)"', text)[1]) <= after
    story(go())
