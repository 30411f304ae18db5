"""A PostgreSQL that neither answers nor closes: every page that reads it comes all the same, and says so."""
import asyncio
import time

from api_rig import story

from deskbook.app.dashboard.session import COOKIE, session_cookie

ORDER = "00000000-0000-0000-0000-000000000001"
PAGES = ("/ui/desk", "/ui/tape", "/ui/orders", f"/ui/orders/{ORDER}", "/ui/positions", "/ui/positions/EUR_USD/close", f"/ui/trace/{'0' * 32}", "/ui/ops")


def test_no_page_waits_for_a_ledger_that_hangs(api_bench, monkeypatch):
    async def go():
        async with api_bench.api(run_desk=False, headers={}) as (desk, http):
            here = {"Cookie": f"{COOKIE}={session_cookie(http.app.state.deps.settings, 'maria', True)}"}

            async def hangs():
                try:
                    await asyncio.sleep(30)
                finally:
                    await asyncio.sleep(6)  # a driver that is told to stop asks the server to stop, which hangs, too
            monkeypatch.setattr(desk.ledger, "borrow", hangs)

            async def come(path):
                began = time.monotonic()
                answer = await http.get(path, headers=here)
                return path, time.monotonic() - began, answer.status_code, answer.text

            for path, took_s, status, text in await asyncio.gather(*map(come, PAGES)):
                # without candles the tape asks nothing
                assert took_s < 9 and status in (200, 503), (path, took_s, status)
                assert path == "/ui/tape" or any(w in text for w in ("does not answer", "cannot be reached", "cannot be shown", "no answer within")), path
            monkeypatch.undo()
    story(go())
