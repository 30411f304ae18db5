"""A whole desk as a process, its venue, and what stands between it and a browser."""
import contextlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psycopg
import redis
from deskbook.stores.lake import Lake
from deskbook.venues.sandbox.process import start_sandbox_process
from persistent_market import persistent_candles

HERE = Path(__file__).resolve().parent
TOKEN, VIEW_TOKEN = "tok-7e1b0c94d2a6-acts", "tok-3f58aa01c7e9-looks"
PAIRS = ("EUR_USD", "USD_JPY", "GBP_USD")
DEAF = {"trust_env": False, "timeout": 20.0}
MINUTE_MS = 60_000


def working_day():
    """Shortly after ten in the morning of a Tuesday that is over: the market is open whenever the tests run."""
    now = datetime.now(UTC)
    day = now - timedelta(days=(now.weekday() - 1) % 7 or 7)
    return day.replace(hour=10, minute=5, second=20, microsecond=0)


@contextlib.contextmanager
def open_market(folder):
    """A venue on a working day in the middle of its morning, with a day of history."""
    now = working_day()
    first = now.replace(second=0) - timedelta(days=1)
    Lake(str(folder)).write_candles(persistent_candles(PAIRS, int(first.timestamp() * 1000), 1440 + 600, seed=5), "madeup")
    before, os.environ["DESKBOOK_LAKE"] = os.environ.get("DESKBOOK_LAKE"), str(folder)
    try:
        sandbox = start_sandbox_process(clock="virtual", start=first.isoformat(), end=(now + timedelta(hours=9)).isoformat(), instruments=list(PAIRS),
                                        source="lake", venue="madeup")
    finally:
        os.environ.pop("DESKBOOK_LAKE") if before is None else os.environ.update(DESKBOOK_LAKE=before)
    try:
        sandbox.control.set_clock(now.isoformat())
        yield sandbox
    finally:
        sandbox.stop()


def until(what, timeout_s=20.0, every_s=0.1, why=""):
    """Wait until `what()` is true, and return it. Fails with its last value."""
    end, said = time.monotonic() + timeout_s, None
    while time.monotonic() < end:
        if said := what():
            return said
        time.sleep(every_s)
    raise AssertionError(f"not in {timeout_s} s: {why() if callable(why) else why or repr(said)}")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


class Desk:
    """`deskbook up` at a sandbox, and what a test asks it without a browser."""

    def __init__(self, home, postgres_url, servers, sandbox, **env):
        self.home, self.reports, self.servers, self.sandbox, self.postgres_url = home, home / "reports", servers, sandbox, postgres_url
        self.port, self.prefix, self.process, self.running, self.seen = free_port(), f"b-{secrets.token_hex(4)}:", None, None, {}
        self.url, self.account = f"http://127.0.0.1:{self.port}", "sandbox"
        (home / "profile.yaml").write_text("global: {min_repetitions: 1, session: {start: '00:00', end: '00:00'}, exit: {max_hold_minutes: 600}}\n")
        named = {"TIMESCALE_URL": postgres_url, "VALKEY_URL": servers.valkey_url, "DESKBOOK_HOME": str(home), "DESKBOOK_REPORTS": str(self.reports),
                 "DESKBOOK_KEY_PREFIX": self.prefix, "DESKBOOK_SANDBOX_URL": sandbox.url, "DESKBOOK_ACCOUNT": "sandbox", "HTTP_PORT": str(self.port),
                 "API_TOKEN": TOKEN, "API_VIEW_TOKEN": VIEW_TOKEN, "HOTBAND_PAIRS": ",".join(PAIRS), "REGIME_PROM_PORT": "0", "CB_CHECK_INTERVAL": "1",
                 "STRATEGY_PROFILE": str(home / "profile.yaml"), "CANDLE_STREAM_BACKFILL_MINUTES": "300", "CANDLE_STREAM_INTERVAL": "0.3",
                 "REGIME_LOOP_SECONDS": "0.3", "PORTFOLIO_LOOP_SECONDS": "0.5", "RATE_LIMIT_MAX": "0", "NO_PROXY": "127.0.0.1", "LOG_TO_FILE": "false",
                 "DESKBOOK_LAKE": str(home / "lake")}
        # of whoever runs the tests nothing that names servers, venues or permissions
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("OANDA_", "DESKBOOK_")) and k not in ("READ_ONLY", "REDIS_URL", "KILL_SWITCH_BOOT", "KILL_SWITCH_KEY")}
        self.env = {**mine, **named, **env}

    # -- the process
    def start(self):
        self.log = open(self.home / "up.log", "a")
        args = [sys.executable, str(HERE / "desk_process.py"), self.sandbox.control_url, "up", "--json", "--every", "0.3"]
        self.process = subprocess.Popen(args, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, cwd=HERE.parents[1])
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        try:
            until(self.ready, 60, why=lambda: f"the desk came up; its log ends with: {self.log_tail()}")
        except BaseException:
            self.stop()
            raise
        return self

    def _read(self, process):
        for line in process.stdout:
            if line.startswith("{"):
                self.seen = json.loads(line)

    def ready(self):
        assert self.process.poll() is None, f"the desk ended: {self.log_tail()}"
        v = self.seen
        return v and all(w["state"] == "running" for w in v["workers"].values()) and v["api"] and v["loop_age_s"] is not None and v["nav"]

    def log_tail(self, most=3000):
        return (self.home / "up.log").read_text()[-most:]

    def stop(self, how=signal.SIGTERM, wait_s=40):
        """Returns its exit code."""
        if self.running:
            self.running.kill()
            self.running.communicate()
            self.running = None
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(wait_s)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.log.close()
            self.seen = {}

    # -- time at the venue
    def now_ms(self):
        return self.sandbox.control.health()["time_ms"]

    def next_minute(self):
        """The running minute ends now: a candle closes, and a gate follows."""
        self.sandbox.control.set_clock((self.now_ms() // MINUTE_MS + 1) * MINUTE_MS + 100)

    def let_a_minute_pass(self):
        """And what comes of it: a pause between two entries is over, too."""
        self.next_minute()
        time.sleep(1)
        self.next_minute()

    # -- beside the browser
    def deskbook(self, *words, ok=(0,)):
        """A command at a terminal of the same home."""
        done = subprocess.run([sys.executable, "-c", "import sys; from deskbook.app.cli import main; sys.exit(main())", *words], env=self.env,
                              capture_output=True, text=True, timeout=60)
        assert done.returncode in ok, done.stdout + done.stderr
        return done.stdout

    def run_once(self):
        """A runbook runs dry, and leaves a report."""
        words = [sys.executable, "-c", "import sys; from deskbook.app.cli import main; sys.exit(main())", "run", "seed_keys", "--set", "account=sandbox"]
        self.running = subprocess.Popen(words, env=self.env, cwd=HERE.parents[1], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def a_run(self):
        """RUNBOOK/RUN of that one."""
        if self.running:
            said, _ = self.running.communicate(timeout=60)
            assert self.running.returncode in (0, 1, 6), said
            self.running = None
        evidence = min(self.reports.glob("*/*/evidence.json"))
        return "/".join(evidence.parts[-3:-1])

    def killed(self):
        """What the terminal says about the kill switch."""
        return json.loads(self.deskbook("kill-switch", "status", "--json"))["engaged"]

    def halted(self):
        """The same without a process of its own."""
        return httpx.get(self.url + "/health", **DEAF).json()["kill_switch"]

    def api(self, method, path, **more):
        return httpx.request(method, self.url + path, headers={"Authorization": f"Bearer {TOKEN}", **more.pop("headers", {})}, **DEAF, **more)

    def switch(self, engaged):
        """Without the page, and quickly."""
        r = self.api("POST", "/api/kill-switch", json={"kill_switch": engaged, "reason": "a test"})
        assert r.status_code < 300, r.text

    def rows(self, sql, args=()):
        with psycopg.connect(self.postgres_url, autocommit=True) as c:
            done = c.execute(sql, args)
            return done.fetchall() if done.description else []

    @property
    def valkey(self):
        return redis.Redis.from_url(self.servers.valkey_url)

    def forget_gates(self, pair):
        """As if this pair had had no gate yet."""
        from deskbook.stores.live_state import gate_key

        with contextlib.closing(self.valkey) as r:
            r.delete(self.prefix + gate_key(pair))

    def external(self, units, instrument="EUR_USD"):
        """Somebody trades on the same account without the desk."""
        s = self.sandbox
        r = httpx.post(f"{s.url}/v3/accounts/{s.account}/orders", headers={"Authorization": f"Bearer {s.token}"}, **DEAF,
                       json={"order": {"type": "MARKET", "instrument": instrument, "units": str(units), "timeInForce": "FOK"}})
        assert r.status_code == 201, r.text


class Proxy:
    """A wire between browser and desk that can be cut."""

    def __init__(self, to_port):
        self.to_port, self.open, self.socks, self.whole, self.flowing = to_port, True, set(), threading.Event(), threading.Event()
        self.whole.set()
        self.flowing.set()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while self.open:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            if not self.whole.is_set():
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.to_port), 5)
            except OSError:
                near.close()
                continue
            self.socks |= {near, far}
            threading.Thread(target=self.carry, args=(near, far), daemon=True).start()

    def carry(self, near, far):
        with contextlib.suppress(OSError, ValueError):
            while True:
                for s in select.select([near, far], [], [])[0]:
                    if not (data := s.recv(65536)):
                        return self.drop(near, far)
                    self.flowing.wait()
                    (far if s is near else near).sendall(data)
        self.drop(near, far)

    def drop(self, *socks):
        for s in socks:
            self.socks.discard(s)
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()

    def cut(self):
        """Every connection ends, and no new one is made."""
        self.whole.clear()
        for s in list(self.socks):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def hold(self):
        """Nothing ends, and nothing comes through."""
        self.flowing.clear()

    def mend(self):
        self.whole.set()
        self.flowing.set()

    def close(self):
        self.open = False
        self.flowing.set()
        self.cut()
        self.server.close()
