"""What a sandbox with a state folder acknowledged is there after anything that can happen to its process."""
import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time

import httpx
import pytest

from deskbook.core.errors import BadInput, DataError, LockHeld
from deskbook.core.settings import Settings
from deskbook.stores.keeper import alive
from deskbook.venues.sandbox.durable import TransactionLog
from deskbook.venues.sandbox.engine import SandboxEngine
from deskbook.venues.sandbox.paper import paper_venue_url, start_paper_venue
from deskbook.venues.sandbox.process import sandbox_process, start_sandbox_process
from deskbook.venues.sandbox.server import ServerConfig, commit, make_server, start_sandbox
from deskbook.venues.sandbox.wire import dumps

QUIET = {"clock": "virtual", "start": "2025-11-04T14:30:00Z", "speed": 0}


def client(s):
    return httpx.Client(base_url=f"{s.url}/v3/accounts/{s.account}", headers={"Authorization": f"Bearer {s.token}"}, timeout=5, verify=False)


def order(client_id, units="1000"):
    return {"order": {"type": "MARKET", "instrument": "EUR_USD", "units": units, "timeInForce": "FOK", "clientExtensions": {"id": client_id}}}


def test_a_restart_changes_nothing(tmp_path):
    def look(http):
        # the price of now is the same: the clock starts where it stood
        return [http.get(p).json() for p in ("/summary", "/openPositions", "/pendingOrders", "/orders?state=ALL", "/transactions/sinceid?id=0")]

    with sandbox_process(**QUIET, state=str(tmp_path)) as s, client(s) as http:
        for i in range(5):
            assert http.post("/orders", json=order(f"db-{i}", str(1000 - 400 * i))).status_code == 201
        limit = {"order": {"type": "LIMIT", "instrument": "USD_JPY", "units": "100", "price": "90", "timeInForce": "GTC", "clientExtensions": {"id": "db-wait"}}}
        assert http.post("/orders", json=limit).status_code == 201
        before = look(http)
    with sandbox_process(**QUIET, state=str(tmp_path)) as s, client(s) as http:
        assert look(http) == before and s.torn == ""
        assert http.put("/orders/@db-wait/cancel").status_code == 200
        assert int(http.post("/orders", json=order("db-5")).json()["lastTransactionID"]) > int(before[0]["lastTransactionID"])


def test_killed_while_orders_arrive(tmp_path):
    """Six clients, one SIGKILL at a random moment, three times over: every acknowledged order is there, once, with its fill."""
    rng, acknowledged = random.Random(7), []

    def hammer(s, who):
        with client(s) as http:
            for k in range(10_000):
                try:
                    r = http.post("/orders", json=order(f"{who}-{k}", "10"))
                except httpx.TransportError:
                    return
                acknowledged.append((f"{who}-{k}", r.json()["orderFillTransaction"]["id"]))

    for life in range(3):
        s = start_sandbox_process(**QUIET, state=str(tmp_path))
        threads = [threading.Thread(target=hammer, args=(s, f"{life}.{i}")) for i in range(6)]
        for t in threads:
            t.start()
        time.sleep(rng.uniform(0.3, 0.6))
        s.kill()
        for t in threads:
            t.join(10)
        s.stop()
    assert len(acknowledged) > 100
    with sandbox_process(**QUIET, state=str(tmp_path)) as s, client(s) as http:
        told = s.control.orders()
        fills = {t["id"]: t["orderID"] for t in http.get("/transactions/sinceid", params={"id": "0", "type": "ORDER_FILL"}).json()["transactions"]}
    held = {o["client_id"]: o for o in told["orders"]}
    assert told["duplicates"] == {} and {o["state"] for o in told["orders"]} == {"FILLED"}
    assert [(c, f) for c, f in acknowledged if fills.get(f) != held.get(c, {}).get("id")] == []


def test_half_a_line_is_cut_off_and_said(tmp_path):
    async def trade():
        async with start_sandbox(ServerConfig(**QUIET, state=str(tmp_path))) as s:
            for i in range(3):
                s.engine.submit_order(s.account, order(f"db-{i}")["order"])
                await commit(s.server)
    asyncio.run(trade())
    log = tmp_path / "transactions.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    with sandbox_process(**QUIET, state=str(tmp_path)) as s:
        assert "half-written line" in s.torn and s.control.health()["torn"] == s.torn
        assert [o["client_id"] for o in s.control.orders()["orders"]] == ["db-0", "db-1"]  # the third with neither order nor fill
    TransactionLog(tmp_path, {}).close()  # the next start finds nothing torn


def test_wherever_the_log_is_cut_the_account_adds_up(tmp_path):
    async def fill():
        async with start_sandbox(ServerConfig(**QUIET, state=str(tmp_path / "full"))) as s:
            async with httpx.AsyncClient(headers={"Authorization": f"Bearer {s.token}"}, verify=False) as http:
                for i in range(6):
                    await http.post(f"{s.url}/v3/accounts/{s.account}/orders", json=order(f"db-{i}", str(500 - 300 * i)))
    asyncio.run(fill())
    whole = (tmp_path / "full/transactions.jsonl").read_bytes()
    rng = random.Random(1)
    for n, cut in enumerate(sorted(rng.sample(range(len(whole)), 25))):
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "transactions.jsonl").write_bytes(whole[:cut])
        state = TransactionLog(folder, {})
        SandboxEngine.restore(state.logs)  # raises when an order lost its fill or the balance does not add up
        assert all(len({t["type"] for t in log if t["batchID"] == last["batchID"]}) > 1 for log in state.logs.values() for last in log[-1:])
        state.close()


def test_damage_in_the_middle_is_not_passed_over(tmp_path):
    log = [dumps([["A", [{"id": str(i), "type": "CREATE", "homeCurrency": "USD", "time": "2025-11-04T14:30:00.000000000Z"}]]]) + b"\n" for i in (1, 2, 3)]
    (tmp_path / "transactions.jsonl").write_bytes(log[0] + log[1][:20] + b"\n" + log[2])
    with pytest.raises(DataError, match="good lines follow"):
        make_server(ServerConfig(**QUIET, state=str(tmp_path)))
    (tmp_path / "transactions.jsonl").write_bytes(log[0] + log[2])  # a whole line is missing
    with pytest.raises(DataError, match="lacks something"):
        make_server(ServerConfig(**QUIET, state=str(tmp_path)))
    make_server(ServerConfig(**QUIET, state=str(tmp_path / "other"))).log.close()  # both gave the folder back, so does this


def test_one_folder_one_sandbox_one_market(tmp_path):
    with sandbox_process(**QUIET, state=str(tmp_path)):
        with pytest.raises(LockHeld):
            TransactionLog(tmp_path, {})
    with pytest.raises(BadInput, match="seed=0, not 1"):
        make_server(ServerConfig(**QUIET, state=str(tmp_path), seed=1))


def test_every_answer_waits_for_the_disk(tmp_path, monkeypatch):
    synced, real = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (real(fd), synced.append(os.fstat(fd).st_size)))

    async def run():
        async with start_sandbox(ServerConfig(**QUIET, state=str(tmp_path))) as s:
            async with httpx.AsyncClient(base_url=f"{s.url}/v3/accounts/{s.account}", headers={"Authorization": f"Bearer {s.token}"}, verify=False) as http:
                for i in range(3):
                    r = await http.post("/orders", json=order(f"db-{i}"))
                    on_disk = (tmp_path / "transactions.jsonl").read_bytes()[:synced[-1]]
                    assert f'"id":"{r.json()["lastTransactionID"]}"'.encode() in on_disk
                began = len(synced)
                await asyncio.gather(*(http.post("/orders", json=order(f"many-{i}")) for i in range(40)))
                assert 1 <= len(synced) - began <= 40  # requests that come together share a write
    asyncio.run(run())


def test_a_disk_that_refuses_ends_all_answers(tmp_path):
    """Nothing is acknowledged that is not on disk, and the sandbox says why it is silent."""
    async def run():
        async with start_sandbox(ServerConfig(**QUIET, state=str(tmp_path))) as s:
            async with httpx.AsyncClient(base_url=f"{s.url}/v3/accounts/{s.account}", headers={"Authorization": f"Bearer {s.token}"}, verify=False) as http:
                assert (await http.post("/orders", json=order("db-0"))).status_code == 201
                full = os.open("/dev/full", os.O_WRONLY)
                os.dup2(full, s.server.log._fd)
                os.close(full)
                with pytest.raises(httpx.TransportError):
                    await http.post("/orders", json=order("db-1"))
                with pytest.raises(httpx.TransportError):
                    await http.get("/summary")
                assert "No space left" in (await http.get(f"{s.control_url}/health")).json()["failed"]
        async with start_sandbox(ServerConfig(**QUIET, state=str(tmp_path))) as s:
            assert [o.client_id for o in s.orders()] == ["db-0"]
    asyncio.run(run())


def test_the_venue_does_not_go_back_in_time(tmp_path):
    first = make_server(ServerConfig(**{**QUIET, "start": "2025-11-04T15:30:00Z"}, state=str(tmp_path)))
    first.log.append([(a, first.engine.log(a)) for a in first.engine.accounts()])
    first.log.close()
    again = make_server(ServerConfig(**QUIET, state=str(tmp_path)))
    assert again.clock() == first.clock() > make_server(ServerConfig(**QUIET)).clock()
    again.log.close()
    log = tmp_path / "transactions.jsonl"
    log.write_text(log.read_text().replace("2025-11-04", "2099-11-03"))
    with pytest.raises(BadInput, match="lies ahead"):  # a wall clock cannot be moved to it
        make_server(ServerConfig(state=str(tmp_path)))


def test_a_sandbox_ends_with_its_owner():
    code = "import sys,time; from deskbook.venues.sandbox.process import start_sandbox_process as s; print(s(clock='virtual', speed=0).pid, flush=True); time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(owner.stdout.readline())
    assert alive(pid)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    end = time.monotonic() + 5
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not alive(pid)


# -- the paper venue -----------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DESKBOOK_HOME", str(tmp_path))
    return Settings()


def test_paper_is_started_once_shared_and_stopped_by_the_last(home):
    code = "from deskbook.venues.sandbox.paper import start_paper_venue as s; p = s(); print(p.url, p.server.owner, flush=True); input()"
    with start_paper_venue(home) as first:
        other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline().split() == [first.url, "False"]
        pid = first.server.pid
        with client(first) as http:
            http.post("/orders", json=order("db-paper"))
    assert alive(pid)  # the other still uses it
    other.kill()
    other.wait()
    other.stdin.close(), other.stdout.close()
    end = time.monotonic() + 10
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not alive(pid)
    with start_paper_venue(home) as again, client(again) as http:
        assert (again.url, again.token) == (first.url, first.token)
        assert [o["clientExtensions"]["id"] for o in http.get("/orders?state=ALL").json()["orders"]] == ["db-paper"]


def test_a_killed_paper_venue_comes_back(home):
    url = paper_venue_url(home.home)
    assert paper_venue_url(home.home) == url
    from deskbook.venues.sandbox import paper
    kept = paper._KEPT[home.home.resolve()]
    with client(kept) as http:
        http.post("/orders", json=order("db-before"))
        os.kill(kept.server.pid, 9)
        assert paper_venue_url(home.home) == url
        assert [o["clientExtensions"]["id"] for o in http.get("/orders?state=ALL").json()["orders"]] == ["db-before"]
    paper._KEPT.pop(home.home.resolve()).stop()


def test_the_token_of_paper_is_not_for_everybody(home):
    with start_paper_venue(home) as p:
        endpoint = p.server.folder / "endpoint.json"
        assert endpoint.stat().st_mode & 0o077 == 0 and json.loads(endpoint.read_text())["token"] == p.token and len(p.token) > 20
        assert httpx.get(f"{p.url}/v3/accounts", headers={"Authorization": "Bearer sandbox-token"}, verify=False).status_code == 401


@pytest.mark.parametrize("config, says", [
    ({"clock": "moon"}, "clock"), ({"speed": 2.0}, "wall clock"), ({"clock": "virtual", "speed": -1.0}, "speed"), ({"source": "file"}, "source"),
    ({"source": "lake"}, "replay"), ({"instruments": ("EUR_XXX",)}, "no EUR_XXX"), ({"balance": "-5"}, "balance"),
])
def test_config_errors_are_said(config, says):
    with pytest.raises(BadInput, match=says):
        make_server(ServerConfig(**config))


def test_a_child_that_cannot_start_says_why():
    with pytest.raises(BadInput, match=r"no setting 'prot'\. Did you mean 'port'"):
        start_sandbox_process(prot=1)
    with pytest.raises(BadInput, match="no EUR_XXX"):
        start_sandbox_process(instruments=["EUR_XXX"])
