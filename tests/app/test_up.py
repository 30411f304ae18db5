"""`deskbook up`: everything in one process, as a person starts it, and as a test that brings a venue of its own."""
import asyncio
import contextlib
import json
import os
import pty
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from deskbook.app.up import desk_up
from deskbook.app.workers import WORKERS
from deskbook.core.settings import Settings
from deskbook.stores.live import open_live
from deskbook.trading.controls import KillSwitch, kill_state
from deskbook.trading.desk import AccountSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ops"))
from live_world import QUICK, a_sandbox

PROGRAM = [sys.executable, "-c", "import sys; from deskbook.app.cli import main; sys.exit(main())", "up"]


@pytest.fixture
def env(ledger, valkey_url, monkeypatch, tmp_path):
    named = {"TIMESCALE_URL": ledger, "VALKEY_URL": valkey_url, "REGIME_PROM_PORT": "0", "DESKBOOK_KEY_PREFIX": f"t-{secrets.token_hex(4)}:", "HTTP_PORT": "0",
             "HOTBAND_PAIRS": "EUR_USD,USD_JPY", "CB_CHECK_INTERVAL": "0.5", "NO_PROXY": "127.0.0.1"}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DESKBOOK_ACCOUNT", raising=False)
    return {**os.environ}


def test_all_of_it_comes_up_halted_and_drains(env):
    """With nothing set but the servers: the built-in paper venue."""
    p = subprocess.Popen([*PROGRAM, "--json", "--every", "0.2"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    timer = threading.Timer(90, p.kill)
    timer.start()
    try:
        for line in p.stdout:
            v = json.loads(line)
            if all(w["state"] == "running" for w in v["workers"].values()) and v["loop_age_s"] is not None and v["api"] and v["nav"] and v["health"]:
                break
        assert (v["account"], v["environment"], v["kill_switch"], v["trading_active"], v["read_only"], v["errors"]) == ("paper", "sandbox", True, False, False, [])
        assert set(v["workers"]) == set(WORKERS) and v["nav"] == 100_000 and "stored on" in v["kill_why"]
        assert all("kill_switch" in x["why"] for x in v["pairs"]), "the manager says why it does nothing"
        done = subprocess.run([sys.executable, "-c", f"import urllib.request as u; print(u.build_opener(u.ProxyHandler({{}})).open('{v['api']}/health').read().decode())"],
                              env=env, capture_output=True, text=True)
        assert json.loads(done.stdout)["kill_switch"] is True, done.stderr
        p.send_signal(signal.SIGINT)
        last = [json.loads(line) for line in p.stdout][-1]
        assert p.wait(30) == 0 and {w["state"] for w in last["workers"].values()} == {"stopped"} and last["kill_switch"]
    finally:
        timer.cancel()
        p.kill()
        err = p.communicate()[1]
    assert '"level":"ERROR"' not in err, err


def test_the_view_in_a_terminal(env):
    """On a pseudo-terminal: the view is drawn, Ctrl-C ends it, and it says where the logs are."""
    mine, theirs = pty.openpty()
    os.set_blocking(mine, False)
    import fcntl
    import struct
    import termios

    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    p = subprocess.Popen([*PROGRAM], env=env | {"TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"}, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    text, end = "", time.monotonic() + 60

    def read():
        nonlocal text
        if select.select([mine], [], [], 0.2)[0]:
            try:
                text += os.read(mine, 65536).decode(errors="replace")
            except OSError:
                return False
        return True

    try:
        while time.monotonic() < end and "USD_JPY" not in text:
            assert p.poll() is None, text
            read()
        p.send_signal(signal.SIGINT)
        while p.poll() is None and time.monotonic() < end:
            read()
        while read() and select.select([mine], [], [], 0.1)[0]:
            pass
    finally:
        p.kill()
        p.wait()
        os.close(mine)
    assert p.returncode == 0, text[-2000:]
    assert "KILL SWITCH ENGAGED" in text and "deskbook kill-switch clear --account paper" in text and "Ctrl-C drains" in text and "Stopped." in text
    assert "Traceback" not in text


@contextlib.contextmanager
def clock_of(sandbox):
    """What the venue's clock showed a moment ago."""
    from deskbook.core.clock import to_ms
    from deskbook.venues.sandbox.client import SandboxControl

    now, done = [to_ms(sandbox.control.health()["time"])], threading.Event()

    def follow():
        with SandboxControl(sandbox.control_url) as control:
            while not done.wait(0.02):
                now[0] = to_ms(control.health()["time"])

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield lambda: now[0]
    finally:
        done.set()
        thread.join()


def test_from_a_venue_to_a_gate_and_a_decision(ledger, valkey_url, tmp_path):
    """A venue whose market is open and whose minutes last three seconds."""
    views = []

    async def story(sandbox, clock):
        live = open_live(valkey_url, f"t-{secrets.token_hex(4)}:")
        settings = Settings(home=tmp_path / "home", hotband_pairs="EUR_USD,USD_JPY", http_port=0, prometheus_port=0, health_interval_s=0.5, candle_interval_s=0.2,
                            candle_backfill_minutes=240, log_to_file=False)
        spec = AccountSpec("paper", "sandbox", sandbox.account, sandbox.token, sandbox.url)
        try:
            await desk_up(settings, "paper", views.append, 0.3, 15.0, ledger_url=ledger, live=live, spec=spec, config=QUICK, clock=clock)
            return await kill_state(KillSwitch(tmp_path / "home" / "kill_switch.json", live))
        finally:
            await live.aclose()

    with a_sandbox() as sandbox:
        sandbox.control.set_speed(20.0)
        with clock_of(sandbox) as clock:
            assert asyncio.run(story(sandbox, clock)).engaged
    for pair in range(2):
        seen = [v["pairs"][pair] for v in views if v["pairs"][pair]["gate_age_s"] is not None]
        assert len(seen) > 10 and min(p["gate_age_s"] for p in seen) < 60, views[-1]
        assert seen[-1]["verdict"] == "refuse" and "kill_switch" in seen[-1]["why"]
    assert views[-1]["orders"] == [] and views[-1]["nav"] == 100_000
