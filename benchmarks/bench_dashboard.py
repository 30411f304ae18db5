"""The dashboard in a browser: from a stored gate to the pixel, first paint, weight, and what fifty viewers cost the manager.

    python benchmarks/bench_dashboard.py              # 120 closed minutes of seven pairs, 30 first paints, 60 minutes with and without viewers
    python benchmarks/bench_dashboard.py --quick      # 20, 5, 15

A whole desk (`deskbook up` in a process of its own, a PostgreSQL and a Valkey of its own, a sandbox whose minutes end when this program says so) and
the system's Chromium, headless. Nothing leaves the machine.

event to pixel   a gate is announced in Valkey, until the frame in which its card shows it was painted; seven pairs at once
polling          the baseline: the same gates, as a page would see them that asks every two seconds, the way of the older dashboards
first paint      of every page, signed in, with an empty cache, and the largest paint, when what was read stands there; baseline: the sign-in page, which reads nothing
page weight      all that a page loads, with an empty cache
viewers          gate announced to decision in the ledger, without and with fifty open pages (streams); the ratio is the figure
"""
import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psycopg
from playwright.sync_api import sync_playwright

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / name) for name in ("browser", ".")]
import desk_rig
from databases import fresh_database
from deskbook.stores.embedded import servers
from deskbook.stores.ledger_migrate import migrate

PAIRS = ("EUR_USD", "USD_JPY", "GBP_USD", "AUD_USD", "USD_CAD", "USD_CHF", "NZD_USD")
PAGES = ("desk", "tape", "orders", "positions", "evidence", "runbooks", "ops")
OLD_PAGE_S, VIEWERS = 2.0, 50
# Notes when each card shows another gate: after the frame, by the clock of this machine.
WATCH = """() => {
  const seen = window.__seen = {}, after = f => requestAnimationFrame(() => { const c = new MessageChannel(); c.port1.onmessage = f; c.port2.postMessage(0) })
  const look = () => { for (const name of PAIRS) { const t = document.querySelector(`#pair-${name}-gate .since time`), key = t && name + ' ' + t.dataset.ms
    if (key && !(key in seen)) { seen[key] = 0; after(() => { seen[key] = performance.timeOrigin + performance.now() }) } } }
  look(); new MutationObserver(look).observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true}) }""".replace("PAIRS", json.dumps(PAIRS))


def p(values, q):
    return statistics.quantiles(values, n=1000, method="inclusive")[round(q * 10) - 1]


@contextlib.contextmanager
def a_desk():
    """A desk of seven pairs that has gates, and may send."""
    desk_rig.PAIRS = PAIRS
    with tempfile.TemporaryDirectory() as tmp:
        home = Path(tmp)
        with servers(temporary=True) as both, fresh_database(both.postgres_url) as url, desk_rig.open_market(home / "market") as market:
            migrate(url)
            desk = desk_rig.Desk(home, url, both, market).start()
            try:
                desk_rig.until(lambda: len(desk.seen["pairs"]) == 7 and all(x["gate_age_s"] is not None for x in desk.seen["pairs"]), 60, why="gates")
                desk.switch(False)
                yield desk
            finally:
                desk.stop()


class Ears:
    """When each gate was announced: (pair, the moment it stands for) -> epoch ms of this machine."""

    def __init__(self, desk):
        self.desk, self.at, self.ended = desk, {}, False
        self.sub = desk.valkey.pubsub(ignore_subscribe_messages=True)
        self.sub.subscribe(desk.prefix + "gates")
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.ended:
            if told := self.sub.get_message(timeout=0.2):
                now, name = time.time() * 1e3, told["data"].decode()
                gate = json.loads(self.desk.valkey.get(f"{self.desk.prefix}gate:last:{name}"))
                self.at.setdefault((name, int(gate.get("asof_ms") or gate["ts_ms"] + 60_000)), now)

    def close(self):
        self.ended = True
        self.thread.join()
        self.sub.close()


def signed_in(browser, desk, path="/ui/desk"):
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(f"{desk.url}/ui/login?next={path}")
    page.fill("[name=name]", "bench")
    page.fill("[name=token]", desk_rig.TOKEN)
    page.click("button.accent")
    page.wait_for_selector("#stream-state.live")
    return context, page


def minutes(desk, n, every_s):
    for _ in range(n):
        desk.next_minute()
        time.sleep(every_s)


def to_pixel(browser, desk, n):
    """Milliseconds from announced to painted, and what a page that asks every two seconds would have needed."""
    context, page = signed_in(browser, desk)
    page.evaluate(WATCH)
    ears = Ears(desk)
    for _ in range(n):
        desk.next_minute()
        page.wait_for_timeout(900)
    ears.close()
    seen = {k: v for k, v in page.evaluate("window.__seen").items() if v}
    context.close()
    late = {k: seen[f"{k[0]} {k[1]}"] - at for k, at in ears.at.items() if f"{k[0]} {k[1]}" in seen}
    polled = [OLD_PAGE_S * 1e3 - at % (OLD_PAGE_S * 1e3) for at in ears.at.values()]
    return list(late.values()), len(ears.at) - len(late), polled


PAINTED = """() => new Promise(done => new PerformanceObserver(list => done([performance.getEntriesByName('first-contentful-paint')[0].startTime,
  list.getEntries().at(-1).startTime])).observe({type: 'largest-contentful-paint', buffered: true}))"""


def first_paints(browser, desk, n):
    """Page -> milliseconds to the first and to the largest contentful paint of each visit; page -> bytes."""
    paints, weights = {"login": []}, {}
    context, _ = signed_in(browser, desk)
    kept = context.cookies()
    context.close()
    for name in ("login", *PAGES):
        for _ in range(n):
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            context.add_cookies([] if name == "login" else kept)
            page, sizes = context.new_page(), []
            page.on("requestfinished", lambda r, sizes=sizes: sizes.append(r.sizes()) if "/ui/events" not in r.url else None)
            page.goto(f"{desk.url}/ui/{name}", wait_until="load")
            page.wait_for_timeout(400)  # the frame is painted, and late requests have come
            paints.setdefault(name, []).append(page.evaluate(PAINTED))
            weights[name] = sum(s["responseBodySize"] + s["responseHeadersSize"] for s in sizes)
            context.close()
    return paints, weights


VIEWER = """
import asyncio, sys
from urllib.parse import urlsplit
async def one(url, cookie):
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(f"GET /ui/events?topics=hero,desk HTTP/1.1\\r\\nHost: {url.netloc}\\r\\nCookie: {cookie}\\r\\n\\r\\n".encode())
    assert b" 200 " in await reader.readline()
    print("open", flush=True)
    while await reader.read(1 << 16): pass
async def go(url, n, cookie): await asyncio.gather(*(one(urlsplit(url), cookie) for _ in range(n)))
asyncio.run(go(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
"""


@contextlib.contextmanager
def viewers(desk, n, cookie):
    """So many open pages, in a process of their own."""
    if not n:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", VIEWER, desk.url, str(n), cookie], stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(n):
            assert process.stdout.readline() == "open\n"
        yield
    finally:
        process.terminate()
        process.wait()


def decided(desk, n):
    """Milliseconds from a gate's announcement to the decision about it, as the ledger commits it."""
    ears, found, stop = Ears(desk), {}, threading.Event()
    sql = "SELECT id, instrument, inputs->'gate'->>'ts_ms' FROM decisions WHERE id <> ALL(%s) ORDER BY decided_at DESC LIMIT 50"

    def watch():
        known = set()
        with psycopg.connect(desk.postgres_url, autocommit=True) as c:
            while not stop.is_set():
                for ident, name, ts_ms in c.execute(sql, (list(known)[-200:],)).fetchall():
                    known.add(ident)
                    if ts_ms:
                        found.setdefault((name, int(ts_ms) + 60_000), time.time() * 1e3)
                time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    minutes(desk, n, 0.9)
    stop.set()
    thread.join()
    ears.close()
    return [found[k] - at for k, at in ears.at.items() if k in found and found[k] >= at]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a look, not a figure")
    quick = parser.parse_args().quick
    with a_desk() as desk, sync_playwright() as pw:
        browser = pw.chromium.launch(executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"])
        late, lost, polled = to_pixel(browser, desk, 20 if quick else 120)
        print(f"event to pixel, 7 pairs at once, {len(late)} gates: p50 {p(late, 50):.0f} ms, p99 {p(late, 99):.0f} ms, worst {max(late):.0f} ms, {lost} not shown (bar: p99 250 ms)")
        print(f"  a page that asks every {OLD_PAGE_S:g} s: p50 {p(polled, 50):.0f} ms, p99 {p(polled, 99):.0f} ms: {p(polled, 99)/p(late, 99):.1f} times slower")
        paints, weights = first_paints(browser, desk, 5 if quick else 30)
        bare = statistics.median(first for first, _ in paints.pop("login"))
        for name, values in paints.items():
            first, largest = (list(x) for x in zip(*values, strict=True))
            print(f"first paint of {name}: median {statistics.median(first):.0f} ms, worst {max(first):.0f} ms (bar 300 ms), {statistics.median(first)/bare:.1f} times the sign-in page; "
                  f"largest paint: median {statistics.median(largest):.0f} ms, worst {max(largest):.0f} ms; weight {weights[name]/1e3:.0f} kB (bar 600 kB)")
        context, _ = signed_in(browser, desk)
        cookie = "; ".join(f"{c['name']}={c['value']}" for c in context.cookies())
        context.close()
        browser.close()
        desk.switch(True)  # decisions without orders, which are the same for both
        n = 15 if quick else 60
        alone = decided(desk, n)
        with viewers(desk, VIEWERS, cookie):
            time.sleep(2)
            watched = decided(desk, n)
        again = decided(desk, n)
        for name, values in (("no viewer", alone), (f"{VIEWERS} viewers", watched), ("no viewer again", again)):
            print(f"gate to decision, {name}: p50 {p(values, 50):.0f} ms, p99 {p(values, 99):.0f} ms ({len(values)} decisions)")
        both = alone + again
        print(f"  {VIEWERS} viewers against none: p50 {p(watched, 50)/p(both, 50):.2f} times, p99 {p(watched, 99)/p(both, 99):.2f} times")


if __name__ == "__main__":
    main()
