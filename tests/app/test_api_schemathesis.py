"""Requests made from the OpenAPI document, good and bad: no 5xx, nothing that is not documented, and nothing changed by a request that was refused.

    python tests/app/test_api_schemathesis.py 600     # as long as you like; the test itself takes about a minute
"""
import asyncio
import os
import sys
from pathlib import Path

import pytest
from api_rig import TOKEN, story
from test_api_routes import gate, store_gate

from deskbook.app import api
from deskbook.stores.live_state import DESK_LOOP, put_json
from deskbook.stores.records import raise_alert

SECONDS = int(os.environ.get("DESKBOOK_SCHEMATHESIS_S", "40"))
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "423"]
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "413", "422"]
"""
_STATE = """SELECT (SELECT count(*) FROM orders) AS orders, (SELECT count(*) FROM fills) AS fills, (SELECT count(*) FROM ops_alerts WHERE status = 'open') AS open_alerts,
(SELECT count(*) FROM ops_audit_events WHERE action NOT LIKE %s AND action NOT LIKE %s) AS audits"""


class Watch:
    """Outermost middleware of the test: what did each request do, and did a refused one change something?"""

    def __init__(self, app, desk, seen):
        self.app, self.desk, self.seen = app, desk, seen

    async def state(self):
        live = self.desk.kill.store()
        rows = await self.desk.ledger.rows(_STATE, ("%refused%", "kill_switch.update"))
        return rows[0], self.desk.kill.text(), await live.get("ops:kill_switch"), await live.redis.zcard(live.key("md:candles:EUR_USD:M5"))

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status, before = [], await self.state() if scope["method"] == "POST" else None

        async def out(message):
            status.append(message.get("status"))
            await send(message)

        await self.app(scope, receive, out)
        self.seen.append((scope["method"], scope["path"], status[0]))
        if before is not None and status[0] in (400, 401, 403, 404, 405, 413) and (after := await self.state()) != before:
            self.seen.append(("CHANGED", scope["path"], f"{before} -> {after}"))


async def fill(desk):
    """Something to find."""
    now = desk.deps.clock()
    await store_gate(desk, gate("EUR_USD", now - 70_000), 3600)
    await put_json(desk.kill.store(), DESK_LOOP, {"ts_ms": now})
    async with desk.ledger.transaction() as tx:
        await raise_alert(tx, "gates_stale:EUR_USD", "gates", "high", "gate_age_s", "no gate for ten minutes", 600, 180)
    await desk.ledger.rows("INSERT INTO decisions (account, instrument, decided_at, verdict) VALUES (%s, 'EUR_USD', now(), 'hold')", (desk.account,))


async def schemathesis(url, folder, seconds):
    """Its exit code and what it said."""
    (folder / "s.toml").write_text(CONFIG)
    words = [Path(sys.executable).with_name("schemathesis"), "--config-file", folder / "s.toml", "run", f"{url}/openapi.json", "-H", f"Authorization: Bearer {TOKEN}",
             "--exclude-path", "/events", "--max-time", seconds, "--seed", "20251103", "--no-shrink", "--generation-database", "none", "--continue-on-failure",
             "--suppress-health-check", "all", "--request-timeout", "60", "--output-truncate", "true", "--warnings", "off"]
    child = await asyncio.create_subprocess_exec(*map(str, words), cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                                                 env={k: v for k, v in os.environ.items() if "PROXY" not in k.upper()} | {"NO_COLOR": "1", "COLUMNS": "160"})
    out, _ = await child.communicate()
    return child.returncode, out.decode()


@pytest.mark.slow
def test_nothing_that_the_document_does_not_say(api_bench, monkeypatch, tmp_path):
    seen, usual = [], api.guarded

    async def go():
        async with api_bench.desk() as desk:
            monkeypatch.setattr(api, "guarded", lambda app, deps: (usual(app, deps), app.add_middleware(Watch, desk=desk, seen=seen)))
            monkeypatch.setattr("deskbook.app.api_routes_ledger.WAIT_S", 2.0)
            await fill(desk)
            stop, told = asyncio.Event(), asyncio.get_running_loop().create_future()
            serving = asyncio.create_task(api.run(api_bench.deps(desk), stop, told.set_result))
            try:
                return await schemathesis(await told, tmp_path, SECONDS)
            finally:
                stop.set()
                await serving

    code, said = story(go(), SECONDS + 120)
    assert code == 0, said[-12_000:]
    assert [s for s in seen if s[0] == "CHANGED"] == []
    assert [s for s in seen if isinstance(s[2], int) and s[2] >= 500] == []
    assert len(seen) > 200
    paths = {p for m, p, status in seen if status == 200}
    assert {"/api/kill-switch", "/api/order", "/api/pricing", "/api/decisions"} <= paths, sorted(paths)
    print(len(seen), "requests")


if __name__ == "__main__":
    os.environ["DESKBOOK_SCHEMATHESIS_S"] = sys.argv[1] if len(sys.argv) > 1 else "600"
    raise SystemExit(pytest.main([__file__, "-s", "--timeout=0"]))
