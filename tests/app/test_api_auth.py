"""Every route, with no token, a wrong one, the right one, and with headers that claim to be somebody."""
import asyncio
import itertools
import json

import httpx
import pytest
from api_rig import RIGHT, TOKEN, is_problem, story

from deskbook.app.api_auth import OPEN

ID = "00000000-0000-0000-0000-000000000001"
GOOD = {  # route: a body or query that would do something
    "/api/kill-switch": {"kill_switch": True}, "/api/order": {"instrument": "EUR_USD", "units": 1000}, "/api/trade/close": {"instrument": "EUR_USD"},
    "/api/candles/fetch": {"instrument": "EUR_USD", "count": 3}, f"/api/alerts/{ID}/acknowledge": {"by": "anna"},
    "/api/pricing/history": {"instrument": "EUR_USD", "count": 1},
}
TRICKS = [
    {"X-Ops-Role": "admin"}, {"X-Actor": "operator"}, {"X-Forwarded-For": "127.0.0.1"}, {"X-Real-IP": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"},
    {"X-API-Key": TOKEN}, {"Cookie": f"token={TOKEN}"}, {"X-HTTP-Method-Override": "GET"}, {"X-Original-URL": "/health"}, {"Proxy-Authorization": f"Bearer {TOKEN}"},
    {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Bearer {TOKEN[:-1]}"},
    {"Authorization": f"Bearer {TOKEN.upper()}"}, {"Authorization": f"Bearer {TOKEN}, Bearer {TOKEN}"}, {"Authorization": b"Bearer \xff\xfe"}, {"Host": "localhost"},
]


def routes(app):
    """All that the documentation names, and the documentation itself."""
    doc = [(m.upper(), p.replace("{order_id}", ID).replace("{alert_id}", ID)) for p, ms in app.openapi()["paths"].items() for m in ms]
    return [*doc, ("GET", "/openapi.json")]


async def ask(http, method, path, **more):
    said = GOOD.get(path, {})
    if path == "/events":
        return await head_of(http, more.get("headers"))
    return await http.request(method, path, **({"json": said} if method == "POST" else {"params": said}), **more)


async def head_of(http, headers):
    """The status of a stream that would not end."""
    async def go():
        http.app.state.hub.close()
        return await http.get("/events", headers=headers)
    return await asyncio.wait_for(go(), 5)


async def state(desk, http):
    """Whatever a refused request could have changed."""
    rows = await desk.ledger.rows("SELECT (SELECT count(*) FROM orders) AS orders, (SELECT count(*) FROM ops_audit_events) AS audits, (SELECT count(*) FROM http_idempotency) AS keys")
    live = desk.kill.store()
    return rows, desk.kill.text(), sorted(await live.redis.keys(live.key("*"))), await live.get("ops:kill_switch")


def test_the_matrix_with_a_token(api_bench):
    async def go():
        async with api_bench.api(client=("10.0.0.7", 4711), headers=None) as (desk, http):
            every, before, refused = routes(http.app), await state(desk, http), 0
            assert len(every) >= 25
            for (method, path), headers in itertools.product(every, [{}, {"Authorization": "Bearer wrong"}, *TRICKS]):
                answer = await ask(http, method, path, headers=headers)
                if method == "GET" and path in OPEN:
                    assert answer.status_code == 200, (path, headers)
                else:
                    is_problem(answer, "unauthorized")
                    assert answer.headers["www-authenticate"].startswith("Bearer")
                    refused += 1
            assert refused == (len(every) - len(OPEN)) * (2 + len(TRICKS)) and await state(desk, http) == before
            for method, path in every:  # the right one, with and without a claim
                for claim in ({}, {"X-Ops-Role": "viewer", "X-Actor": "nobody"}):
                    answer = await ask(http, method, path, headers={**RIGHT, **claim})
                    assert answer.status_code not in (401, 403) and answer.status_code < 500, (method, path, answer.text)
    story(go(), 120)


@pytest.mark.parametrize("path", ["/api/status/", "//api/status", "/API/STATUS", "/api/../api/status", "/health/../api/status", "/health/", "/health%2f..%2fapi/status", "/api/status;x", "/health?x=/api/status/"])
def test_no_other_spelling_of_a_path_gets_in(api_bench, path):
    async def go():
        async with api_bench.api(run_desk=False, client=("10.0.0.7", 4711), headers=None) as (_, http):
            answer = await http.get(path)
            assert answer.status_code == (200 if path.startswith("/health?") else 401)
            assert (await http.get(f"/api/status?token={TOKEN}&access_token={TOKEN}")).status_code == 401
            for method in ("HEAD", "OPTIONS", "TRACE", "PUT", "PATCH", "DELETE", "BREW"):
                assert (await http.request(method, "/api/status")).status_code == 401
                assert (await http.request(method, "/api/status", headers=RIGHT)).status_code == 405
    story(go())


def test_the_matrix_without_a_token(api_bench):
    async def go():
        async with api_bench.api(run_desk=False, token=None, headers=None, lifespan=False) as (desk, http):
            before = await state(desk, http)
            for (method, path), headers in itertools.product(routes(http.app), [{}, RIGHT, {"X-Ops-Role": "admin"}]):
                answer = await ask(http, method, path, headers=headers)
                if method == "POST":
                    is_problem(answer, "no_api_token")
                else:
                    assert answer.status_code in (200, 404), (path, answer.text)
            assert [k for k in (await state(desk, http))[2] if "pricing:history" not in k] == before[2] and (await state(desk, http))[:2] == before[:2]
    story(go())


@pytest.mark.parametrize(("peer", "host"), [("10.0.0.7", "127.0.0.1"), ("127.0.0.1", "evil.example"), ("127.0.0.1", "127.0.0.1.evil.example"), ("10.0.0.7", "10.0.0.1")])
def test_without_a_token_nobody_else_is_answered(api_bench, peer, host):
    async def go():
        async with api_bench.api(run_desk=False, token=None, headers=None, client=(peer, 1), host=host) as (_, http):
            for method, path in routes(http.app):
                is_problem(await ask(http, method, path), "not_loopback")
    story(go())


def test_metrics_are_for_this_machine_or_with_the_token(api_bench):
    async def go():
        async with api_bench.api(run_desk=False, headers=None) as (_, http):
            assert (await http.get("/metrics")).status_code == 200
            assert (await http.get("/metrics", headers={"X-Forwarded-For": "127.0.0.1"})).status_code == 401
            assert (await http.get("/metrics", headers={"X-Forwarded-For": "127.0.0.1", **RIGHT})).status_code == 200
    story(go())


def test_the_older_name_of_the_token(monkeypatch):
    from deskbook.app.api_auth import token_of
    from deskbook.core.settings import Settings
    monkeypatch.setenv("SEP_API_BEARER_TOKEN", "older")
    assert token_of(Settings()) == "older"
    monkeypatch.setenv("API_TOKEN", "newer")
    assert token_of(Settings()) == "newer"


def test_rate_limit_tells_when_to_come_back_and_spares_health_and_the_kill_switch(api_bench):
    async def go():
        async with api_bench.api(run_desk=False, rate_limit=5, rate_window_s=30) as (_, http):
            answers = [await http.get("/api/decisions") for _ in range(8)]
            assert [a.status_code for a in answers] == [200] * 5 + [429] * 3
            is_problem(answers[-1], "rate_limited")
            assert 25 <= int(answers[-1].headers["retry-after"]) <= 30
            for path in OPEN:
                assert {(await http.get(path)).status_code for _ in range(20)} == {200}
            assert (await http.post("/api/kill-switch", json={"kill_switch": True})).status_code == 200
            wrong = [(await http.get("/api/decisions", headers={"Authorization": "Bearer guess"})).status_code for _ in range(8)]
            assert wrong == [401] * 5 + [429] * 3  # guesses have a count of their own
    story(go())


def test_cors_is_only_for_named_origins(api_bench):
    async def go():
        preflight = {"Origin": "https://desk.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"}
        async with api_bench.api(run_desk=False, headers=None, cors_origins=("https://desk.example",)) as (_, http):
            answer = await http.options("/api/order", headers=preflight)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://desk.example")
            assert (await http.options("/api/order", headers={**preflight, "Origin": "https://evil.example"})).status_code == 400
            answer = await http.get("/api/status", headers={"Origin": "https://desk.example"})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "https://desk.example")
            assert "access-control-allow-origin" not in (await http.get("/health", headers={"Origin": "https://evil.example"})).headers
        async with api_bench.api(run_desk=False, headers=None) as (_, http):
            assert (await http.options("/api/order", headers=preflight)).status_code == 401
            assert "access-control-allow-origin" not in (await http.get("/health", headers={"Origin": "https://desk.example"})).headers
    story(go())


def test_two_authorization_headers_over_a_socket(api_bench):
    async def go():
        async with api_bench.served(run_desk=False, headers=None) as (_, http):
            twice = httpx.Headers([("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer x")])
            assert (await http.get("/api/status", headers=twice)).status_code == 401
            assert (await http.get("/api/status", headers=RIGHT)).status_code == 200
            for claim in (t for t in TRICKS if t != {"Authorization": "Bearer "}):  # which the client does not send
                assert (await http.get("/api/status", headers=claim)).status_code == 401, claim
            said = await http.post("/api/kill-switch", json={"kill_switch": True})
            assert json.loads(said.text)["code"] == "unauthorized"
    story(go())
