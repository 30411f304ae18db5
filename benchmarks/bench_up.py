"""`deskbook up` from nothing: how long until the first gate, and until all seven pairs have one.

    python benchmarks/bench_up.py            # 5 cold starts, 5 second starts
    python benchmarks/bench_up.py --quick    # 1 and 1

Each start is a program of its own, from its first line: imports, PostgreSQL and Valkey of its own with the ledger's tables, the venue, all workers,
the candles of the last four hours, the first gates. Cold: the desk's home is empty. Second: the home of a desk that was stopped. The venue is a sandbox
whose clock stands on a working day, so that it also works on a weekend; it is started by the program too.

by hand      the baseline: the same servers, tables and venue one after another, and nothing else
"""
import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

PAIRS = "EUR_USD,GBP_USD,USD_JPY,USD_CHF,AUD_USD,USD_CAD,NZD_USD"
UP = """
import asyncio, json, os, sys, time
from deskbook.app.up import desk_up
from deskbook.core.loop import run
from deskbook.core.settings import Settings
from deskbook.trading.desk import AccountSpec
from deskbook.venues.sandbox.process import sandbox_process
began, seen = float(sys.argv[1]), set()
with sandbox_process(clock="virtual", start="2025-11-05T12:00:10Z", instruments=sys.argv[2].split(",")) as venue:
    shift = venue.control.health()["time_ms"] - time.time()*1e3
    spec = AccountSpec("paper", "sandbox", venue.account, venue.token, venue.url)
    def show(view):
        n = sum(p["gate_age_s"] is not None for p in view["pairs"])
        for name, enough in (("first", n >= 1), ("all", n == len(view["pairs"]))):
            if enough and name not in seen:
                seen.add(name)
                print(json.dumps({name: time.time() - began}), flush=True)
    settings = Settings(http_port=0, prometheus_port=0, log_to_file=False, hotband_pairs=sys.argv[2])
    run(desk_up(settings, "paper", show, 0.05, 30.0 if len(sys.argv) < 4 else float(sys.argv[3]), spec=spec, clock=lambda: int(time.time()*1e3 + shift)))
"""
BY_HAND = """
import json, sys, time
from deskbook.stores.embedded import start_postgres, start_valkey
from deskbook.stores.ledger_migrate import migrate
from deskbook.venues.sandbox.process import sandbox_process
began = float(sys.argv[1])
with start_postgres() as pg, start_valkey() as vk:
    migrate(pg.url)
    with sandbox_process(clock="virtual", start="2025-11-05T12:00:10Z") as venue:
        venue.control.health()
        print(json.dumps({"all": time.time() - began}), flush=True)
"""


def started(script, home):
    """Seconds to each thing that the program tells, and then it is stopped."""
    env = {"DESKBOOK_HOME": home, "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin", "HOME": home, "NO_PROXY": "127.0.0.1"}
    p = subprocess.Popen([sys.executable, "-c", script, str(time.time()), PAIRS], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told = {}
    for line in p.stdout:
        told |= json.loads(line)
        if "all" in told:
            p.terminate()
    error = p.stderr.read()
    if p.wait(60) not in (0, -15) or "all" not in told:
        raise SystemExit(f"it did not come up: {told} {error[-2000:]}")
    return told


@contextmanager
def empty_home():
    """A home of its own; what the private servers keep elsewhere because root has started them goes with it."""
    from deskbook.stores.embedded import server_user, servers_folder
    with tempfile.TemporaryDirectory(prefix="dbk") as home:
        yield home
        shutil.rmtree(servers_folder(Path(home), server_user()), ignore_errors=True)


def middle(xs):
    return sorted(xs)[len(xs) // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    n = 1 if parser.parse_args().quick else 5
    cold, second, hand = [], [], []
    for _ in range(n):
        with empty_home() as home:
            cold.append(started(UP, home))
            second.append(started(UP, home))
        with empty_home() as home:
            hand.append(started(BY_HAND, home))
    for name, runs in (("cold", cold), ("second", second)):
        print(f"{name:8} first gate after {middle([r['first'] for r in runs]):5.1f} s, all seven after {middle([r['all'] for r in runs]):5.1f} s, "
              f"slowest {max(r['all'] for r in runs):5.1f} s")
    base = middle([r["all"] for r in hand])
    print(f"by hand  servers, tables and venue alone {base:5.1f} s; ratio {middle([r['first'] for r in cold]) / base:.1f}")


if __name__ == "__main__":
    main()
