"""Tools and processes that follow the settings they were given."""
import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from deskbook.app.cli import main
from deskbook.stores.live import open_live


@pytest.fixture
def store(valkey_url, key_prefix, tmp_path, monkeypatch):
    for name, value in {"VALKEY_URL": valkey_url, "DESKBOOK_KEY_PREFIX": key_prefix, "DESKBOOK_HOME": str(tmp_path), "HOTBAND_PAIRS": "EUR_USD"}.items():
        monkeypatch.setenv(name, value)
    return open_live(valkey_url, key_prefix)


def test_aux_keys_look_at_the_kill_switch_of_the_settings(store, capsys, monkeypatch):
    monkeypatch.setenv("KILL_SWITCH_KEY", "desk2:halt")
    assert main(["ops", "seed"]) == 0
    capsys.readouterr()
    assert main(["ops", "aux-keys", "--json"]) == 0, capsys.readouterr().out
    said = json.loads(capsys.readouterr().out)
    assert {"desk2:halt", "desk2:halt:meta"} <= {k["key"] for k in said["keys"]} and not any("ops:kill_switch" in k["key"] for k in said["keys"])

    async def garble():
        await store.redis.set(store.key("desk2:halt"), "maybe")
        await store.aclose()
    asyncio.run(garble())
    assert main(["ops", "aux-keys", "--json"]) == 2
    wrong = [k for k in json.loads(capsys.readouterr().out)["keys"] if not k["ok"]]
    assert [k["key"] for k in wrong] == ["desk2:halt"]


def test_a_desk_without_pairs_is_refused(store, capsys, monkeypatch):
    monkeypatch.setenv("HOTBAND_PAIRS", ",")
    for command in (["up", "--duration", "1"], ["daemon", "gates"]):
        assert main(command) == 2
        assert "no pairs" in capsys.readouterr().err


def test_the_api_by_itself_logs_as_the_daemons_do(tmp_path):
    """A refusal at the door, and the words of a secret in it, on standard error and in the file."""
    env = {**os.environ, "DESKBOOK_HOME": str(tmp_path), "API_TOKEN": "tok-0123456789", "LOG_TO_FILE": "1"}
    child = subprocess.Popen([sys.executable, "-c", "import sys; from deskbook.app.cli import main; sys.exit(main(['api', '--port', '0', '--json']))"],
                             env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = json.loads(child.stdout.readline())["url"]
        assert httpx.get(f"{url}/api/status", headers={"Authorization": "Bearer wrong"}, trust_env=False).status_code == 401
        time.sleep(0.2)
    finally:
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 0
    lines = [json.loads(line) for line in err.splitlines()]
    assert any(x["worker"] == "api" and x["reason"] == "unauthorized" for x in lines if "reason" in x)
    assert (tmp_path / "logs" / "api.log").read_text() == err


def test_the_worker_serves_the_studies_from_where_they_are_written(monkeypatch, tmp_path):
    """Wherever in the project it was started."""
    from types import SimpleNamespace

    from deskbook.app import api
    from deskbook.app.workers import WORKERS
    from deskbook.core.settings import Settings
    from deskbook.ops.evidence import reports_folder

    seen = []

    async def run(deps, stop, ready):
        seen.append(deps.reports)

    monkeypatch.setattr(api, "run", run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DESKBOOK_REPORTS", raising=False)
    settings = Settings(home=tmp_path)
    parts = SimpleNamespace(settings=settings, live=None, ledger=None, desk=None, clock=None, said={})
    asyncio.run(WORKERS["api"].start(parts, asyncio.Event()))
    assert seen == [reports_folder(settings)] and seen[0].is_absolute()
