"""One case for each fault that the sandbox knows: a desk trades while it lasts, and in the end venue and ledger must agree.

`CASES` maps the name of a case to what is set and what is expected; `run_case` is used by the tests and by `benchmarks/bench_faults.py`.
"""
import asyncio
import contextlib
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "crash")]
import scenarios
from rig import Rig

from deskbook.core.clock import system_clock
from deskbook.core.errors import DeskbookError
from deskbook.trading.desk import running
from deskbook.trading.orders import OrderRefused
from deskbook.venues.oanda import Oanda
from deskbook.venues.oanda_streams import StreamPolicy
from deskbook.venues.retry import Timing

WRITE, READS = "orders.create", "account.*|orders.list|orders.pending|orders.get|positions.*|transactions.sinceid|transactions.idrange"
BUY, SELL = {"units": "1000", "idempotency_key": "k0"}, {"units": "-400", "idempotency_key": "k1"}
REST = {"units": "500", "idempotency_key": "k2", "type": "limit", "time_in_force": "GTC", "price": "1.05000"}
IOC = {"units": "1000", "idempotency_key": "k0", "time_in_force": "IOC"}
SLOW = {"units": "900", "idempotency_key": "k0", "type": "limit", "time_in_force": "GTC", "price": "1.08424"}
FILLED = {"k0": "filled", "k1": "filled", "k2": "cancelled"}


@dataclass(frozen=True)
class FaultCase:
    """What goes wrong, and what must come of three orders: a buy, a sell, and a limit order that rests and is cancelled."""
    kind: str
    params: dict = field(default_factory=dict)
    route: str = ""
    when: dict = field(default_factory=lambda: {"times": 1})
    intents: tuple = (BUY, SELL, REST)
    ends: dict = field(default_factory=lambda: FILLED)  # key -> state
    units: dict | None = None  # instrument -> units that must be held in the end; None: whatever is filled
    requests: int | None = None  # most order requests that may arrive; None: one for each order, and a second only after proven absence
    lasts_s: float = 0.4  # the venue is well again after this time
    also: tuple = ()  # more faults: (kind, route, when, params)
    run: str = "trade"  # or "outage", "boot", "stream", "candles", "stale"


def C(kind, route="", when=None, *, many=False, **more) -> FaultCase:
    extra = {k: more.pop(k) for k in ("intents", "ends", "units", "requests", "lasts_s", "also", "run") if k in more}
    return FaultCase(kind, more, route, {} if many else (when or {"times": 1}), **extra)


ALL = {"k0": "rejected", "k1": "rejected", "k2": "rejected"}
CASES: dict[str, FaultCase] = {
    "latency of every answer": C("latency", "*", many=True, p50_ms=15.0, p99_ms=80.0, max_ms=300.0),
    "latency before the venue takes an order": C("latency", WRITE, many=True, ms=400.0, at="arrival"),
    "an answer later than our patience": C("latency", WRITE, ms=1400.0),
    "spikes": C("spike", "*", many=True, ms=300.0, rate=0.1),
    "500 before": C("http_error", WRITE, status=500), "503 before": C("http_error", WRITE, status=503),
    "500 after the order was taken": C("http_error", WRITE, status=500, accepted=True),
    "504 after the order was taken": C("http_error", WRITE, status=504, accepted=True),
    "reads answered with 500 one time in three": C("http_error", READS, {"rate": 0.33}, status=500),
    "a page of HTML": C("html", WRITE), "a page of HTML after the order was taken": C("html", WRITE, accepted=True),
    "reads answered with HTML one time in three": C("html", READS, {"rate": 0.33}),
    "half an answer": C("truncated_json", WRITE), "half an answer and no order": C("truncated_json", WRITE, accepted=False),
    "reads cut in half one time in three": C("truncated_json", READS, {"rate": 0.33}),
    "an empty answer": C("empty_body", WRITE), "an empty answer and no order": C("empty_body", WRITE, accepted=False),
    "429": C("rate_limited", WRITE, {"times": 3}), "429 with Retry-After": C("rate_limited", WRITE, retry_after_s=0.3),
    "429 for reads": C("rate_limited", READS, {"rate": 0.2}), "429 for cancels": C("rate_limited", "orders.cancel", {"times": 2}),
    "reset before": C("drop_before_accept", WRITE), "reset before, for each order once": C("drop_before_accept", WRITE, {"times": 3}),
    "reset of a cancel": C("drop_before_accept", "orders.cancel"),
    "taken, then reset": C("accept_then_drop", WRITE), "taken, then reset, every one": C("accept_then_drop", WRITE, many=True),
    "cancelled, then reset": C("accept_then_drop", "orders.cancel"),
    "taken, then silence": C("accept_then_hang", WRITE), "cancelled, then silence": C("accept_then_hang", "orders.cancel"),
    "silence": C("hang", WRITE), "silence of a cancel": C("hang", "orders.cancel"), "silence of a look": C("hang", "transactions.sinceid"),
    "taken late, reset": C("accept_late", WRITE, delay_s=0.15), "taken late, 504": C("accept_late", WRITE, delay_s=0.15, answer="504"),
    "taken late, silence": C("accept_late", WRITE, delay_s=0.15, answer="hang"),
    "cancelled late": C("accept_late", "orders.cancel", delay_s=0.3),
    "rejected": C("reject", WRITE, many=True, ends=ALL, requests=3, units={}),
    "one rejected for its margin": C("reject", WRITE, reason="INSUFFICIENT_MARGIN", ends={**FILLED, "k0": "rejected", "k1": "filled"}, requests=3),
    "201 and cancelled": C("cancel", WRITE, many=True, ends=ALL, requests=3, units={}),
    "halted": C("halt", WRITE, many=True, ends={"k0": "rejected", "k1": "rejected", "k2": "cancelled"}, units={}),
    "a part under FOK": C("partial_fill", WRITE, many=True, intents=(BUY,), ends={"k0": "rejected"}, requests=1, units={}),
    "a part under IOC": C("partial_fill", WRITE, many=True, intents=(IOC,), ends={"k0": "cancelled"}, requests=1, units={"EUR_USD": "400"}),
    "filled in slices": C("slow_fill", WRITE, many=True, slices=3, every_s=0.2, intents=(SLOW,), ends={"k0": "filled"}, requests=1, units={"EUR_USD": "900"}, lasts_s=2.0),
    "not visible at once": C("late_visibility", WRITE, delay_s=0.6), "no order visible at once": C("late_visibility", WRITE, many=True, delay_s=0.3),
    "lost, and not visible at once": C("late_visibility", WRITE, delay_s=0.15, also=(("accept_then_drop", WRITE, {"times": 1}, {}),)),
    "lost, and looks that lag": C("rest_lag", many=True, lag_s=0.15, also=(("accept_then_drop", WRITE, {"times": 2}, {}),)),
    "lost, and the log is told twice": C("transactions_duplicated", many=True, also=(("accept_then_drop", WRITE, {"times": 2}, {}),)),
    "lost, and no look succeeds for a while": C("http_error", READS, {"times": 12}, status=502, also=(("accept_then_hang", WRITE, {"times": 1}, {}),)),
    "taken after it was proven absent": C("accept_late", WRITE, delay_s=1.2, intents=(BUY,), ends={"k0": "filled"}, units={"EUR_USD": "1000"}, lasts_s=2.0),
    "looks that lag": C("rest_lag", many=True, lag_s=0.2),
    "transactions told twice": C("transactions_duplicated", many=True), "transactions out of order": C("transactions_reordered", many=True),
    "streams cut": C("stream_cut", run="stream", when={"every": 2}), "streams refused": C("stream_refused", run="stream", when={"times": 2}),
    "streams frozen": C("stream_frozen", run="stream", when={"nth": [2]}), "a garbled line": C("garbled_line", run="stream", when={"nth": [2]}),
    "stale prices": C("stale_prices", run="stale", many=True),
    "candles out of order": C("candles_unordered", run="candles", many=True, rate=0.3), "candles twice": C("candles_duplicated", run="candles", many=True, rate=0.3),
    "candles missing": C("candles_missing", run="candles", many=True, rate=0.2), "candles revised": C("candles_revised", run="candles", many=True),
    "a late close": C("candles_late_close", run="candles", many=True, delay_s=120.0),
    "maintenance": C("maintenance", many=True, run="outage"), "maintenance with a page": C("maintenance", many=True, status=502, run="outage"),
    "the key is revoked": C("revoked", WRITE, many=True, ends=ALL, units={}),
    "the key is revoked for everything": C("revoked", "*", many=True, run="boot"),
    "a clock that is ahead": C("clock_offset", many=True, offset_ms=2500.0), "a clock that is behind and drifts": C("clock_offset", many=True, offset_ms=-2500.0, drift_ppm=200.0),
}


async def run_case(rig: Rig, name: str) -> list[str]:
    """What is wrong after the fault; [] when it was survived."""
    spec = CASES[name]
    case = rig.case("fault", intents=list(spec.intents))
    fault = Fault(rig, case, spec)
    run = {"trade": trade, "outage": outage, "boot": boot, "stream": stream, "candles": candles, "stale": stale}[spec.run]
    wrong = await run(rig, case, spec, fault)
    return wrong + rig.problems(case) + ([] if fault.struck else ["the fault did not strike"])


@dataclass
class Fault:
    """The fault of a case: set, taken away, and whether it did anything."""
    rig: Rig
    case: dict
    spec: FaultCase
    name: str = ""
    struck: int = 0
    others: list = field(default_factory=list)

    def set(self) -> None:
        where = {} if self.spec.run == "candles" else {"account": self.case["venue_account"]}
        for kind, route, when, params in self.spec.also:
            self.others.append(self.rig.control.add_fault(kind, route, when, where, **params))
        self.name = self.rig.control.add_fault(self.spec.kind, self.spec.route, self.spec.when, where, **self.spec.params)

    def end(self) -> None:
        struck = {f["name"]: f["struck"] for f in self.rig.control.faults()}
        self.struck = min(struck[n] for n in [self.name, *self.others])
        for n in [self.name, *self.others]:
            self.rig.control.clear_faults(n)


async def trade(rig: Rig, case: dict, spec: FaultCase, fault: Fault) -> list[str]:
    """Three orders under the fault; then the venue is well again, and everything must settle by itself."""
    async with scenarios.desk_of(case) as desk, running(desk):
        await scenarios.booted(desk)
        impatient(desk)
        fault.set()
        answers = await submit(desk, case)
        await asyncio.sleep(0.1)
        await cancel_resting(desk, answers)
        await asyncio.sleep(spec.lasts_s)
        fault.end()
        return await finish(rig, case, spec, desk)


async def outage(rig: Rig, case: dict, spec: FaultCase, fault: Fault) -> list[str]:
    """Orders that are asked for while nothing works; the venue comes back by itself."""
    async def later():
        await asyncio.sleep(spec.lasts_s)
        fault.end()

    async with scenarios.desk_of(case) as desk, running(desk):
        await scenarios.booted(desk)
        fault.set()
        ending = asyncio.create_task(later())
        answers = await submit(desk, case)
        await ending
        await cancel_resting(desk, answers)
        return await finish(rig, case, spec, desk)


async def boot(rig: Rig, case: dict, spec: FaultCase, fault: Fault) -> list[str]:
    """A desk that starts while the venue does not let it in trades nothing until it has reconciled."""
    async with scenarios.desk_of(case):
        pass
    fault.set()
    async with scenarios.desk_of(case) as desk:
        impatient(desk)
        return await booting(rig, case, spec, fault, desk)


async def booting(rig: Rig, case: dict, spec: FaultCase, fault: Fault, desk) -> list[str]:
    async with running(desk):
        await asyncio.sleep(0.8)
        wrong = [] if not desk.lease or "boot" in desk.deps.signals.holds else ["traded although it could not read the account"]
        fault.end()
        await asyncio.wait_for(scenarios.booted(desk), 30)
        await desk.unfreeze("anna", "the key is back")
        await cancel_resting(desk, await submit(desk, case))
        return wrong + await finish(rig, case, spec, desk)


def impatient(desk) -> None:
    """The same rules with shorter waits: streams are dead after two seconds of silence, an open breaker is tried after a fraction of one."""
    t, desk.venue.stream = desk.venue.transport, StreamPolicy(silence_s=2.0)
    t.policy = replace(t.policy, breaker_open_s=0.3)
    for b in t.breakers.values():
        b.policy = t.policy


async def cancel_resting(desk, answers) -> None:
    for a in answers:
        if getattr(a, "idempotency_key", "") == "k2":
            await desk.wait(a.id, 5)
            await desk.cancel(a.id)


async def submit(desk, case) -> list:
    for _ in range(100):  # a venue that does not tell its prices: the caller asks again, with the same keys
        with contextlib.suppress(DeskbookError):
            return await desk.submit_each(scenarios.intents(case))
        await asyncio.sleep(0.05)
    raise AssertionError("could not submit")


async def finish(rig: Rig, case: dict, spec: FaultCase, desk) -> list[str]:
    """Settle, ask again for everything, compare."""
    wrong = [] if await scenarios.settle(desk, 20) else ["did not settle"]
    again = await submit(desk, case)
    if not await scenarios.settle(desk, 20):
        wrong.append("did not settle after the same intents came again")
    found = await reconciled(desk)
    if found.mismatches:
        wrong.append(f"mismatches {found.mismatches}")
    orders = [o for o in await desk.orders(limit=1000) if o.kind != "external"]
    if (ends := {o.idempotency_key: o.state for o in orders}) != spec.ends:
        refused = {a.reasons for a in again if isinstance(a, OrderRefused)}
        wrong.append(f"LOST? ended as {ends} and not as {spec.ends}; reasons {[o.reason for o in orders]}; refused {refused}")
    if spec.units is not None and (held := {h.instrument: str(h.units) for h in await desk.positions()}) != spec.units:
        wrong.append(f"POSITION: {held} instead of {spec.units}")
    sent = [e for e in rig.control.journal(route=WRITE) if e["account"] == case["venue_account"]]
    if spec.requests is not None and len(sent) > spec.requests:
        wrong.append(f"{len(sent)} order requests where {spec.requests} are enough")
    if len(rig.venue(case).orders) > len(spec.intents):
        wrong.append(f"DOUBLED: {len(rig.venue(case).orders)} orders at the venue for {len(spec.intents)} intents")
    return wrong


async def reconciled(desk):
    """A venue that did not let us in is asked again when the breaker allows it."""
    for _ in range(100):
        with contextlib.suppress(DeskbookError):
            return await desk.reconcile()
        await asyncio.sleep(0.2)
    return await desk.reconcile()


async def stream(rig: Rig, case: dict, spec: FaultCase, fault) -> list[str]:
    """Fills are followed by the stream while it breaks: none may be missing, none may come twice to the ledger, and gaps are told."""
    from deskbook.venues.model import Gap, VenueFill

    told, gaps = [], []
    async with scenarios.desk_of(case, fills_every_s=5.0) as desk, running(desk):
        await scenarios.booted(desk)
        impatient(desk)
        cursor = (await desk.venue.fetch_balance()).cursor
        fault.set()

        async def follow():
            async for event in desk.venue.watch_fills(cursor):
                if isinstance(event, VenueFill):
                    told.append(event.fill_id)
                elif isinstance(event, Gap):
                    gaps.append(event)

        following = asyncio.create_task(follow())
        try:
            for n in range(4):
                order = (await desk.submit(scenarios.Intent(case["account"], "EUR_USD", 1000 + n, idempotency_key=f"k{n}", expires_s=600)))[0]
                await desk.wait(order.id, 10)
                await asyncio.sleep(0.1)
            end = asyncio.get_running_loop().time() + 40
            while len(set(told)) < 4 and asyncio.get_running_loop().time() < end:
                await asyncio.sleep(0.05)
        finally:
            following.cancel()
            await asyncio.wait([following])
        fault.end()
        desk.deps.signals.fills.set()
        wrong = [] if len(set(told)) == 4 else [f"LOST: {4 - len(set(told))} fills were never told by the stream"]
        if not gaps:
            wrong.append("no gap was told")
        await desk.reconcile()
        return wrong


async def candles(rig: Rig, case: dict, spec: FaultCase, fault) -> list[str]:
    """Ascending, once each, closed ones only, whatever the feed does; what is missing stays missing and is not made up."""
    offset = (await asyncio.to_thread(rig.control.health))["time_ms"] - system_clock()
    venue = Oanda(case["venue_account"], case["token"], case["url"], timing=Timing(clock=lambda: system_clock() + offset))
    try:
        minute = venue.timing.clock() // 60_000 * 60_000
        clean = await venue.fetch_ohlcv("EUR_USD", "M1", minute - 180 * 60_000, minute)
        fault.set()
        got = await venue.fetch_ohlcv("EUR_USD", "M1", minute - 180 * 60_000, minute)
        fault.end()
        times = got["time"].dt.epoch("ms").to_list()
        wrong = []
        if times != sorted(set(times)):
            wrong.append("candles are out of order or come twice")
        if not set(times) <= set(clean["time"].dt.epoch("ms").to_list()):
            wrong.append("candles were made up")
        if spec.kind in ("candles_unordered", "candles_duplicated") and not got.equals(clean):
            wrong.append("sorting and deduplication changed candles")
        if spec.kind == "candles_late_close" and (not times or times[-1] >= minute - 60_000):
            wrong.append("a candle that was not closed was given")
        if spec.kind == "candles_missing" and not 0 < len(times) < clean.height:
            wrong.append("nothing was missing")
        return wrong
    finally:
        await venue.aclose()


async def stale(rig: Rig, case: dict, spec: FaultCase, fault) -> list[str]:
    """Prices stand still while the connection lives: entries are refused, what reduces a position is not, and a fresh price ends it."""
    import psycopg

    async with scenarios.desk_of(case, marks_every_s=0.2) as desk, running(desk):
        await scenarios.booted(desk)
        with psycopg.connect(rig.ledger_url, autocommit=True) as db:
            db.execute("""INSERT INTO account_risk_policies (account, mode, name, max_total_exposure_frac, max_instrument_exposure_frac, max_currency_exposure_frac,
                max_open_positions, max_leverage, min_margin_headroom_frac, max_daily_loss_frac, max_drawdown_frac, mark_max_age_s)
                VALUES (%s, 'paper', 'one second', 1000, 1000, 1000, 100, 1000, 0, 1, 1, 2)""", (case["account"],))
        order = (await desk.submit(scenarios.Intent(case["account"], "EUR_USD", 1000, idempotency_key="k0", expires_s=600)))[0]
        await desk.wait(order.id, 10)
        fault.set()
        wrong = []
        await desk.venue.fetch_quotes(["EUR_USD"])
        await asyncio.sleep(3.2)
        answer = (await desk.submit_each([scenarios.Intent(case["account"], "EUR_USD", 1000, idempotency_key="k1", expires_s=600)]))[0]
        if not (isinstance(answer, OrderRefused) and "mark_stale" in answer.reasons):
            wrong.append(f"an entry on a stale price was answered with {answer!r}")
        closing = await desk.close("EUR_USD", key="k2")
        if (await desk.wait(closing.id, 10)).state != "filled":
            wrong.append("a close was held up by stale prices")
        fault.end()
        await asyncio.sleep(1.2)
        answer = (await desk.submit_each([scenarios.Intent(case["account"], "EUR_USD", 1000, idempotency_key="k3", expires_s=600)]))[0]
        if isinstance(answer, Exception):
            wrong.append(f"an entry on a fresh price was answered with {answer!r}")
        elif (await desk.wait(answer.id, 10)).state != "filled":
            wrong.append("the entry after the fault was not filled")
        return wrong
