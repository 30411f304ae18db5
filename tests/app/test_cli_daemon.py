"""`deskbook daemon WORKER` as a service manager starts it."""
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import urllib.request

import pytest
from deskbook.app.cli import main
from deskbook.app.workers import WORKERS
from deskbook.venues.sandbox.process import sandbox_process

PROGRAM = [sys.executable, "-c", "import sys; from deskbook.app.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def sandbox():
    with sandbox_process() as s:
        yield s


@pytest.fixture
def env(sandbox, ledger, valkey_url, monkeypatch):
    named = {"DESKBOOK_ACCOUNT": "sandbox", "DESKBOOK_SANDBOX_URL": sandbox.url, "TIMESCALE_URL": ledger, "VALKEY_URL": valkey_url, "REGIME_PROM_PORT": "0",
             "DESKBOOK_KEY_PREFIX": f"t-{secrets.token_hex(4)}:", "HTTP_PORT": "0", "HOTBAND_PAIRS": "EUR_USD,USD_JPY", "CB_CHECK_INTERVAL": "0.2"}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    return {**os.environ}


@contextlib.contextmanager
def started(env, *words):
    p = subprocess.Popen([*PROGRAM, "daemon", *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield p
    finally:
        if p.poll() is None:
            p.kill()
        p.communicate()


def until(p, state, timeout_s=40):
    got, timer = [], threading.Timer(timeout_s, p.kill)
    timer.start()
    try:
        for text in p.stdout:
            got.append(json.loads(text)["state"])
            if got[-1] == state:
                return got
    finally:
        timer.cancel()
    pytest.fail(f"{got} and then nothing: {p.stderr.read()[-2000:]}")


@pytest.mark.parametrize("name", sorted(WORKERS))
def test_each_worker_runs_and_ends_when_told(name, env):
    with started(env, name, "--json", "--metrics-port", "0") as p:
        until(p, "sending" if name == "sender" else "running")
        p.send_signal(signal.SIGTERM)
        assert until(p, "stopped")[-1] == "stopped" and p.wait(20) == 0
        assert '"level":"ERROR"' not in p.stderr.read()


def test_a_second_copy_waits_and_takes_over_when_the_first_is_killed(env):
    with started(env, "health", "--json", "--metrics-port", "0") as one:
        until(one, "running")
        with started(env, "health", "--json", "--metrics-port", "0") as two:
            assert until(two, "waiting") == ["waiting"]
            one.kill()
            assert until(two, "running") == ["running"]
            two.send_signal(signal.SIGINT)
            assert until(two, "stopped") and two.wait(20) == 0


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_its_metrics_and_its_log(env, tmp_path):
    port = free_port()
    with started(env | {"LOG_FILE_PATH": str(tmp_path / "x.log")}, "health", "--json", "--metrics-port", str(port)) as p:
        until(p, "running")
        for _ in range(100):
            with contextlib.suppress(OSError), urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{port}/metrics") as r:
                text = r.read().decode()
                if "sep_kill_switch 1.0" in text:
                    break
            threading.Event().wait(0.1)
        assert 'sep_worker_up{worker="health"} 1.0' in text and "sep_kill_switch 1.0" in text and "sep_disk_free_ratio 0." in text
    lines = [json.loads(x) for x in (tmp_path / "x.log").read_text().splitlines()]
    assert {x["worker"] for x in lines} == {"health"} and any("worker health of sandbox: running" in x["message"] for x in lines)


def test_what_is_wrong_is_said_with_its_code(env, monkeypatch):
    for change, code, word in (({"DESKBOOK_ACCOUNT": "papr"}, 2, "papr"), ({"LOG_LEVEL": "LOUD"}, 2, "LOUD"), ({"DESKBOOK_ACCOUNT": "oanda-live"}, 4, "OANDA_API_KEY"),
                               ({"TIMESCALE_URL": "postgresql://127.0.0.1:1/x"}, 1, "127.0.0.1")):
        done = subprocess.run([*PROGRAM, "daemon", "health", "--json"], env=env | change, capture_output=True, text=True, timeout=60)
        assert done.returncode == code and word in done.stderr, done


def test_help_names_them_all(capsys):
    assert main(["daemon", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in WORKERS)
