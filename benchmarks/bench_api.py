"""The API at 200 requests a second over real HTTP: how long an answer takes, and how many go wrong.

    python benchmarks/bench_api.py            # 20 s at 200 requests/s for each of the two
    python benchmarks/bench_api.py --quick    # 4 s

PostgreSQL, Valkey and the sandbox venue are processes of their own; the API (with its desk and its event task) is one process, as `deskbook api` runs
it; this process only asks. Requests arrive at random moments, whatever became of those before, over 16 kept connections; an answer's time counts from
the moment the request was due, so a server that falls behind is not spared. The mix is what a dashboard asks: state, gates, prices, NAV, history,
decisions, orders, alerts.

Baseline: a bare Starlette route that returns a constant, in a process of its own, asked in the same way in the same run.
"""
import argparse
import asyncio
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PER_S, TARGET_P99_MS = 200.0, 25.0
PAIRS = ("EUR_USD", "GBP_USD", "USD_JPY", "USD_CHF", "AUD_USD", "USD_CAD", "NZD_USD")
MIX = {"/api/status": 4, "/api/metrics/gates": 4, "/api/pricing?instruments=" + ",".join(PAIRS): 4, "/api/metrics/nav": 3, "/health": 2, "/api/kill-switch": 2,
       "/api/decisions?limit=20": 2, "/api/orders?limit=20": 2, "/api/alerts?status=open": 2, "/api/positions": 2,
       "/api/pricing/history?instrument=EUR_USD&granularity=M1&count=120": 1, "/api/audit?limit=20": 1}
BARE = """
import asyncio, sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from deskbook.app.api import listening, server_of
from deskbook.core.loop import run
async def bare(request): return Response(b'{"ok":true}', media_type="application/json")
async def main():
    with listening("127.0.0.1", 0) as sock:
        print('{"url": "http://127.0.0.1:%d"}' % sock.getsockname()[1], flush=True)
        await server_of(Starlette(routes=[Route("/bare", bare)])).serve([sock])
run(main())
"""


async def fill(live, desk):
    """What a desk that has run for a while holds."""
    from deskbook.market.simulated import simulate_candles
    from deskbook.stores.live_state import DESK_LOOP, NAV_SNAPSHOT, RISK_SUMMARY, put_candles, put_gate, put_json
    from deskbook.stores.records import raise_alert
    now = desk.deps.clock()
    frame = simulate_candles(["EUR_USD"], now//60_000*60_000 - 600*60_000, now//60_000*60_000)
    await put_candles(live, "EUR_USD", "M1", frame)
    for name in PAIRS:
        structure = {k: 0.4321 for k in ("coherence", "stability", "entropy", "rupture", "spectral_lowf_share", "reynolds_ratio", "pinned_alignment")}
        said = {"instrument": name, "ts_ms": now - 90_000, "asof_ms": now - 30_000, "admit": False, "direction": "FLAT", "lambda": 0.02, "hazard": 0.2, "hazard_threshold": 0.3,
                "repetitions": 1, "structure": structure, "regime": {"label": "neutral", "confidence": 0.3}, "components": {"bits_b64": "A"*88},
                "reasons": ["repetitions_short", "regime_filtered"]}
        await put_gate(live, name, said["ts_ms"], json.dumps(said), 3600, 5000)
    await put_json(live, DESK_LOOP, {"ts_ms": now})
    await put_json(live, NAV_SNAPSHOT, {"nav": 100_000, "balance": 100_000, "ts_ms": now})
    await put_json(live, RISK_SUMMARY, {"nav_snapshot": 100_000, "total_units": 0, "exposure_usd": 0, "last_updated": now})
    async with desk.ledger.transaction() as tx:
        await raise_alert(tx, "bench", "gates", "low", "", "an alert to show")
    await desk.ledger.rows("""INSERT INTO decisions (account, instrument, decided_at, verdict, reasons, inputs)
        SELECT %s, 'EUR_USD', now() - n * interval '2 s', 'refuse', '{gate_stale,admit_false}', '{"gate": {"admit": false}}' FROM generate_series(1, 5000) n""", (desk.account,))


def percentile(times, q):
    return sorted(times)[min(len(times) - 1, int(q*len(times)))]*1000


async def ask(url, targets, seconds, headers, connections=16, seed=1):
    """Times in seconds from the moment each request was due, and the statuses that were not 200."""
    import aiohttp
    chance, times, bad, by, out = random.Random(seed), [], [], {}, set()
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:
        async def one(target, due):
            try:
                async with http.get(url + target) as r:
                    await r.read()
                    status = r.status
            except aiohttp.ClientError as e:
                status = type(e).__name__
            times.append(time.perf_counter() - due)
            by.setdefault(target.partition("?")[0], []).append(times[-1])
            if status != 200:
                bad.append((target, status))
        names, weights = list(targets), list(targets.values())
        for name in names:
            await one(name, time.perf_counter())  # connections, caches and code warm
        times.clear(), by.clear()
        start = at = time.perf_counter()
        while at < start + seconds:
            at += chance.expovariate(PER_S)
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            task = asyncio.create_task(one(chance.choices(names, weights)[0], at))
            out.add(task)
            task.add_done_callback(out.discard)
        await asyncio.gather(*out)
    return times, bad, by


def child(words, env):
    """A process whose first line says where it listens."""
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)
    return process, json.loads(process.stdout.readline())["url"]


async def prepare(servers, sandbox, home):
    from deskbook.core.settings import Settings
    from deskbook.stores.live import open_live
    from deskbook.trading.desk import open_desk
    live = open_live(servers.valkey_url)
    async with open_desk("sandbox", Settings(home=home, sandbox_url=sandbox.url), ledger_url=servers.postgres_url, live=live) as desk:
        await fill(live, desk)
    await live.aclose()


def line(name, times, bad):
    print(f"{name:22} {len(times):6} requests  p50 {percentile(times, .5):6.2f} ms  p99 {percentile(times, .99):6.2f} ms  most {max(times)*1000:6.1f} ms  errors {len(bad)}")


def main():
    from deskbook.core.loop import run
    from deskbook.stores.embedded import servers
    from deskbook.stores.ledger_migrate import migrate
    from deskbook.venues.sandbox.process import sandbox_process
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    seconds = 4.0 if parser.parse_args().quick else 20.0
    token, children = secrets.token_hex(16), []
    with tempfile.TemporaryDirectory() as folder, servers(temporary=True, durable=True) as s, sandbox_process(instruments=list(PAIRS)) as sandbox:
        migrate(s.postgres_url)
        home = Path(folder)/"home"
        run(prepare(s, sandbox, home))
        env = {**os.environ, "DESKBOOK_HOME": str(home), "DESKBOOK_SANDBOX_URL": sandbox.url, "TIMESCALE_URL": s.postgres_url, "VALKEY_URL": s.valkey_url, "API_TOKEN": token,
               "RATE_LIMIT_MAX": "0", "HOTBAND_PAIRS": ",".join(PAIRS)}
        try:
            api, url = child([str(Path(sys.executable).with_name("deskbook")), "api", "--account", "sandbox", "--port", "0", "--json"], env)
            bare, plain = child([sys.executable, "-c", BARE], env)
            children += [api, bare]
            headers = {"Authorization": f"Bearer {token}"}
            base, base_bad, _ = run(ask(plain, {"/bare": 1}, seconds, headers))
            times, bad, by = run(ask(url, MIX, seconds, headers))
        finally:
            for c in children:
                c.terminate()
                c.wait(20)
    print(f"{PER_S:g} requests/s for {seconds:g} s, {len(MIX)} addresses")
    line("bare Starlette route", base, base_bad)
    line("API, mixed GETs", times, bad)
    for name, some in sorted(by.items(), key=lambda x: -percentile(x[1], .5)):
        line(f"  {name}", some, [])
    p99 = percentile(times, .99)
    print(f"p99 {p99:.1f} ms, {p99/percentile(base, .99):.1f} times the bare route's (bar {TARGET_P99_MS:g} ms); errors {len(bad)} (bar 0) {bad[:3] or ''}")
    return 0 if p99 <= TARGET_P99_MS and not bad else 1


if __name__ == "__main__":
    raise SystemExit(main())
