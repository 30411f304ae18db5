"""Servers that neither answer nor close: what must be quick is quick."""
import asyncio
import time

from api_rig import story


def test_readyz_does_not_wait_for_a_server_that_hangs(api_bench, monkeypatch):
    """A driver that is told to stop asks the server to stop, which hangs, too."""
    async def go():
        async with api_bench.api(run_desk=False) as (desk, http):
            async def hangs():
                try:
                    await asyncio.sleep(30)
                finally:
                    await asyncio.sleep(6)
            monkeypatch.setattr(desk.ledger, "borrow", hangs)
            began = time.monotonic()
            answer = await http.get("/readyz")
            assert time.monotonic() - began < 2.5 and (answer.status_code, answer.json()["checks"]) == (503, {"ledger": False, "live": True})
            began = time.monotonic()
            done = await http.post("/api/kill-switch", json={"kill_switch": True}, headers={"Idempotency-Key": "stop-2"})
            assert done.status_code == 200 and time.monotonic() - began < 5, time.monotonic() - began
            monkeypatch.undo()
    story(go())
