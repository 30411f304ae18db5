"""The sandbox server without faults: what it serves, what it refuses, its control port and its command line."""
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from deskbook.app.cli import main
from deskbook.core.errors import BadInput, NotFound, SourceError
from deskbook.venues.sandbox.client import SandboxControl
from deskbook.venues.sandbox.process import sandbox_process
from deskbook.venues.sandbox.server import ServerConfig, start_sandbox

TUESDAY = "2025-11-04T14:30:00Z"
QUIET = {"clock": "virtual", "start": TUESDAY, "speed": 0}


@contextlib.asynccontextmanager
async def venue(**config):
    async with start_sandbox(ServerConfig(**{**QUIET, "heartbeat_s": 0.2, **config})) as s:
        async with httpx.AsyncClient(base_url=f"{s.url}/v3", headers={"Authorization": f"Bearer {s.token}"}, timeout=5, verify=False) as http:
            yield s, http


def order(client_id="db-1", units="1000"):
    return {"order": {"type": "MARKET", "instrument": "EUR_USD", "units": units, "timeInForce": "FOK", "clientExtensions": {"id": client_id}}}


@pytest.fixture(scope="module")
def running():
    with sandbox_process(**QUIET, heartbeat_s=0.2) as s:
        yield s


def test_only_loopback_listens(running):
    port = int(running.url.rpartition(":")[2])
    with open("/proc/net/tcp") as f:
        at = [line.split()[1] for line in f if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"]
    assert at == [f"0100007F:{port:04X}"]


@pytest.mark.parametrize("method, path, status, says", [
    ("GET", "/v2/accounts", 404, "Not Found"), ("GET", "/accounts/A/nothing", 404, "Not Found"), ("DELETE", "/accounts/A/orders", 405, "Method Not Allowed"),
    ("GET", "/accounts/101-001-9-001/summary", 403, "forbidden"), ("GET", "/accounts/101-001-9-001/pricing/stream?instruments=EUR_USD", 403, "forbidden"),
    ("GET", "/instruments/EUR_XXX/candles", 400, "instrument"), ("GET", "/accounts/{me}/orders/@nobody", 404, "does not exist"),
    ("GET", "/accounts/{me}/pricing/stream", 400, "instruments"), ("GET", "/accounts/{me}/pricing/stream?instruments=EUR_XXX", 400, "instrument"),
    ("GET", "/accounts/{me}/pricing?instruments=EUR_XXX", 400, "instrument"), ("GET", "/accounts/{me}/orders?count=501", 400, "count"),
    ("GET", "/accounts/{me}/transactions?from=noon", 400, "from"), ("GET", "/accounts/{me}/pricing/stream?instruments=EUR_USD&snapshot=maybe", 400, "snapshot"),
])
def test_errors_have_a_body_and_a_request_id(running, method, path, status, says):
    r = httpx.request(method, running.url + ("" if path[:4] == "/v2/" else "/v3") + path.format(me=running.account), headers={"Authorization": f"Bearer {running.token}"}, verify=False)
    assert r.status_code == status and says in r.json()["errorMessage"] and r.headers["RequestID"].isdigit() and r.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("sent", [b"{", b"[]", b'{"order": 7}', b'{"order": {"type": "MARKET", "units": NaN}}', b"\xff\xfe", b'{"order": {"units": "' + b"9" * 5000 + b'"}}',
                                  b"[" * 100_000])
def test_nonsense_is_400_and_nothing_happens(running, sent):
    before = running.control.orders()["orders"]
    r = httpx.post(f"{running.url}/v3/accounts/{running.account}/orders", content=sent, headers={"Authorization": f"Bearer {running.token}"}, verify=False)
    assert r.status_code == 400 and r.json()["errorMessage"]
    assert running.control.orders()["orders"] == before and running.control.health()["ok"]


def test_a_huge_body_is_refused_and_the_sandbox_lives(running):
    with contextlib.suppress(httpx.TransportError):
        r = httpx.post(f"{running.url}/v3/accounts/{running.account}/orders", content=b" " * 3_000_000, headers={"Authorization": f"Bearer {running.token}"}, verify=False)
        assert r.status_code == 413
    assert running.control.health()["ok"]


def test_both_paths_of_candles_and_their_times():
    async def run():
        async with venue() as (s, http):
            q = {"granularity": "M1", "count": 3, "from": "2025-11-04T14:00:00Z"}
            a, b = [await http.get(p, params=q) for p in ("/instruments/EUR_USD/candles", f"/accounts/{s.account}/instruments/EUR_USD/candles")]
            assert a.json() == b.json() and a.json()["candles"][0]["time"] == "2025-11-04T14:00:00.000000000Z"
            unix = await http.get("/instruments/EUR_USD/candles", params={**q, "from": "1762264800"}, headers={"Accept-Datetime-Format": "UNIX"})
            assert unix.json()["candles"][0]["time"] == "1762264800.000000000"
            assert [{**c, "time": ""} for c in unix.json()["candles"]] == [{**c, "time": ""} for c in a.json()["candles"]]
    asyncio.run(run())


def test_the_journal_has_every_request_in_order():
    async def run():
        async with venue() as (s, http):
            await asyncio.gather(*(http.post(f"/accounts/{s.account}/orders", json=order(f"db-{i}")) for i in range(20)))
            await http.get("/nothing")
            e = list(s.journal.entries)
            assert [x.seq for x in e] == list(range(1, 22)) and [x.status for x in e] == [201] * 20 + [404]
            assert sorted(x.client_id for x in e[:20]) == sorted(f"db-{i}" for i in range(20)) and all(x.accepted and x.outcome == "sent" for x in e[:20])
            assert len({x.request_id for x in e}) == 21
            taken = s.orders()
            assert [o.client_id for o in taken] == [x.client_id for x in e[:20]] and {o.state for o in taken} == {"FILLED"}
    asyncio.run(run())


def test_a_client_that_gave_up_is_told_apart():
    async def run():
        async with venue() as (s, http):
            s.add_fault({"kind": "latency", "params": {"ms": 300.0}})
            with pytest.raises(httpx.ReadTimeout):
                await http.post(f"/accounts/{s.account}/orders", json=order(), timeout=0.1)
            await asyncio.sleep(0.4)
            assert [(e.outcome, e.accepted) for e in s.journal.entries] == [("left", True)]
    asyncio.run(run())


def test_the_journal_can_be_a_file(tmp_path):
    async def run():
        async with venue(journal_file=str(tmp_path / "logs/journal.jsonl"), journal_keep=2) as (s, http):
            for _ in range(5):
                await http.get("/accounts")
            assert [e.seq for e in s.journal.entries] == [4, 5]
    asyncio.run(run())
    lines = [json.loads(x) for x in (tmp_path / "logs/journal.jsonl").read_text().splitlines()]
    assert [x["seq"] for x in lines] == [1, 2, 3, 4, 5] and {x["route"] for x in lines} == {"accounts.list"}


def test_a_limit_order_fills_when_time_brings_its_price(running):
    http = httpx.Client(base_url=f"{running.url}/v3/accounts/{running.account}", headers={"Authorization": f"Bearer {running.token}"}, verify=False)
    bid = float(http.get("/pricing", params={"instruments": "GBP_USD"}).json()["prices"][0]["bids"][0]["price"])
    wish = {"order": {"type": "LIMIT", "instrument": "GBP_USD", "units": "100", "price": f"{bid - 0.0005:.5f}", "timeInForce": "GTC", "clientExtensions": {"id": "db-patient"}}}
    assert "orderFillTransaction" not in http.post("/orders", json=wish).json()
    running.control.market("price", "GBP_USD", bid=f"{bid - 0.0020:.5f}", ask=f"{bid - 0.0010:.5f}")
    assert http.get("/orders/@db-patient").json()["order"]["state"] == "FILLED"
    running.control.market("release")


def test_a_stream_over_a_standing_clock_beats_and_wakes_for_prices():
    async def run():
        async with venue() as (s, http), http.stream("GET", f"/accounts/{s.account}/pricing/stream?instruments=EUR_USD&snapshot=False") as stream:
            lines = stream.aiter_lines()
            assert json.loads(await anext(lines))["type"] == "HEARTBEAT"  # no snapshot
            async with httpx.AsyncClient(base_url=s.control_url, verify=False) as control:
                await control.post("/market", json={"action": "halt", "instrument": "EUR_USD"})
            async for line in lines:
                if (told := json.loads(line))["type"] == "PRICE":
                    break
            assert (told["tradeable"], told["status"]) == (False, "non-tradeable")
    asyncio.run(run())


def test_at_most_four_prices_a_second_of_an_instrument():
    async def run():
        async with venue(speed=20.0) as (s, http), http.stream("GET", f"/accounts/{s.account}/pricing/stream?instruments=EUR_USD") as stream:
            told = []
            async for line in stream.aiter_lines():
                told.append((s.clock(), json.loads(line)["type"]))
                if len(told) == 60:
                    break
            prices = [ms for ms, kind in told if kind == "PRICE"]
            assert len(prices) > 10 and len(prices) <= (prices[-1] - prices[0]) / 250 + 2
    asyncio.run(run())


def test_stopping_does_not_wait_for_streams():
    async def run():
        async with venue() as (s, http):
            stack = contextlib.AsyncExitStack()
            for _ in range(5):
                await stack.enter_async_context(http.stream("GET", f"/accounts/{s.account}/transactions/stream"))
            began = time.monotonic()
            s.server.stopping.set()
        assert time.monotonic() - began < 2
        with contextlib.suppress(httpx.TransportError):
            await stack.aclose()
    asyncio.run(run())


# -- the control port -----------------------------------------------------------------------------------------------------


def test_control_is_not_for_web_pages(running):
    evil = httpx.post(f"{running.control_url}/reset", headers={"Origin": "http://example.org"}, verify=False)
    other = httpx.get(f"{running.control_url}/health", headers={"Host": "example.org"}, verify=False)
    assert evil.status_code == other.status_code == 403
    assert httpx.get(f"{running.url}/health", verify=False).status_code == 404  # and the venue's port has no controls


def test_control_says_what_is_wrong(running):
    c = running.control
    with pytest.raises(BadInput, match="Did you mean 'accept_then_drop'"):
        c.add_fault("accept_then_dorp")
    with pytest.raises(BadInput, match="no 'nht'"):
        c.add_fault("html", when={"nht": 3})
    with pytest.raises(BadInput, match=r"only goes forward|step back"):
        c.advance(-5)
    with pytest.raises(NotFound, match="EUR_XXX"):
        c.market("halt", "EUR_XXX")
    with pytest.raises(BadInput, match=r"not prices|not below"):
        c.market("price", "EUR_USD", bid="1.2", ask="1.1")
    with pytest.raises(BadInput, match="already"):
        c.make_account(running.account)
    with pytest.raises(NotFound):
        c.clear_faults("nobody")
    with pytest.raises(NotFound):
        c.ask("GET", "/nothing")
    with pytest.raises(BadInput):
        c.ask("POST", "/clock", {"adwance_s": 1})
    assert c.faults() == []
    with pytest.raises(BadInput):  # all of them or none
        c.add_faults([{"kind": "html"}, {"kind": "htm"}])
    assert c.faults() == []


def test_control_moves_time_and_resets(running):
    c = running.control
    before = c.health()["time_ms"]
    assert c.advance(90)["time_ms"] == before + 90_000
    c.add_fault("html", name="page")
    c.market("freeze", "EUR_USD")
    assert [f["name"] for f in c.faults()] == ["page"]
    c.reset()
    assert c.faults() == [] and c.journal() == []
    c.make_account("101-001-77-001", balance="5000")
    assert c.accounts()["101-001-77-001"]["account"]["balance"] == "5000.0000"


def test_a_wall_clock_is_not_moved():
    with sandbox_process() as s:
        with pytest.raises(BadInput, match="wall clock"):
            s.control.advance(1)
        assert abs(s.control.health()["time_ms"] / 1000 - time.time()) < 2


def test_nobody_there():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with SandboxControl(f"http://127.0.0.1:{held.getsockname()[1]}") as c, pytest.raises(SourceError, match="does not answer"):
            c.health()


# -- the command line --------------------------------------------------------------------------------------------------------


def start(*args):
    """The command in a process of its own, and what it printed when it was ready."""
    words = ["sandbox", "start", "--json", "--port", "0", "--control-port", "0", *args]
    p = subprocess.Popen([sys.executable, "-c", "import sys; from deskbook.app.cli import main; sys.exit(main(sys.argv[1:]))", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return p, json.loads(p.stdout.readline() or "{}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_start_until_told(number, tmp_path):
    (tmp_path / "faults.json").write_text(json.dumps([{"kind": "html", "name": "page", "route": "pricing"}]))
    p, ready = start("--clock", "virtual", "--start", TUESDAY, "--speed", "0", "--account", "101-001-7-001", "--account", "101-001-8-001", "--token", "mine",
        "--state", str(tmp_path), "--faults", str(tmp_path / "faults.json"))
    http = httpx.Client(base_url=f"{ready['url']}/v3", headers={"Authorization": "Bearer mine"}, verify=False)
    assert [a["id"] for a in http.get("/accounts").json()["accounts"]] == ["101-001-7-001", "101-001-8-001"] == ready["accounts"]
    with SandboxControl(ready["control_url"]) as c:
        assert [f["name"] for f in c.faults()] == ["page"]
    p.send_signal(number)
    assert (p.wait(10), p.stderr.read(), p.stdout.read()) == (0, "", "")
    p.stdout.close(), p.stderr.close()
    assert (tmp_path / "transactions.jsonl").exists()


def test_commands_on_a_running_one(running, capsys):
    at = ["--control", running.control_url]
    running.control.reset()
    assert main(["sandbox", "set", "accept_then_drop", "--when", '{"nth": [1]}', *at]) == 0
    assert main(["sandbox", "set", "latency", "ms=5", "at=arrival", "--route", "pricing", *at, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["name"]
    assert main(["sandbox", "status", *at]) == 0
    assert "accept_then_drop on orders.create" in capsys.readouterr().out
    assert main(["sandbox", "clear", *at]) == 0 and running.control.faults() == []
    httpx.post(f"{running.url}/v3/accounts/{running.account}/orders", json=order("db-cli"), headers={"Authorization": f"Bearer {running.token}"}, verify=False)
    capsys.readouterr()
    assert main(["sandbox", "orders", *at]) == 0 and "db-cli" in capsys.readouterr().out
    assert main(["sandbox", "orders", "--json", *at]) == 0 and json.loads(capsys.readouterr().out)["duplicates"] == {}


def test_faults_are_listed(capsys):
    assert main(["sandbox", "faults"]) == 0
    text = capsys.readouterr().out
    assert main(["sandbox", "faults", "--json"]) == 0
    for name, kind in json.loads(capsys.readouterr().out).items():
        assert f"  {name}: {kind['does']}" in text


@pytest.mark.parametrize("args, code, says", [
    (["--venue", "bybit"], 2, "no sandbox of 'bybit'"), (["--clock", "wall", "--speed", "5"], 2, "virtual"), (["--faults", "nowhere.json"], 2, "cannot be read"),
    (["--port", "1", "--control-port", "0"], 2, "cannot be used"), (["--source", "lake"], 2, "replay needs"),
])
def test_start_refuses(args, code, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "--port" in args and os.geteuid() == 0:  # root may use port 1: take one
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            held.listen()
            assert main(["sandbox", "start", "--port", str(held.getsockname()[1]), *args[2:]]) == code
    else:
        assert main(["sandbox", "start", *args]) == code
    assert says in capsys.readouterr().err
