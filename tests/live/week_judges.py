"""What simulated trading must show, read from outside: the venue's journal and transactions, plain SQL, a rebuild of all gates."""
import asyncio
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import psycopg
from deskbook.core.clock import iso
from deskbook.gates.engine import build_gates
from deskbook.gates.live import gate_history
from deskbook.gates.payload import GatePayload, gates_frame
from deskbook.gates.worker import live_gate_settings
from deskbook.venues.sandbox.process import sandbox_process
from psycopg.rows import dict_row

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "crash")]
from order_truth import at_venue, in_ledger, problems
from trading_week import ACCOUNT, MAX_GATE_AGE_S, PAIRS, Week, in_session, to_ms

CANDLE = ["time", "open", "high", "low", "close", "volume", "bid_close", "ask_close"]

# A candidate is a gate that nothing but the control in question speaks against.
CONTROLS = {"kill_switch": {"kill_switch"}, "read_only": {"read_only"}, "session": {"session_closed", "session_exit_window"}, "stale_gate": {"gate_stale"},
            "stale_price": {"mark_stale", "no_usd_rate"}}


def orders_with_decisions(url):
    """Every order of ours with the decision it came from."""
    with psycopg.connect(url, row_factory=dict_row) as db:
        return {r["client_order_id"]: r for r in db.execute("""SELECT o.client_order_id, o.instrument, o.side, o.kind, o.reduce_only, o.state, o.reason, o.run_id, d.verdict,
            d.reasons, d.decided_at, d.inputs->'gate' AS gate FROM orders o LEFT JOIN decisions d ON d.id = o.decision_id WHERE o.account = %s""", (ACCOUNT,)).fetchall()}


def wrong_orders(story, orders):
    """Every request for an order that should never have reached the venue, and why."""
    wrong = []
    for e in story.creates:
        at, o = e["at_ms"], orders.get(e["client_id"])
        name = f"{e['client_id']} at {at}"
        wrong += [f"{name} was sent while: {w.why}" for w in story.windows if w.from_ms < at < (w.until_ms or 2**62)]
        if o is None:
            wrong.append(f"{name} is not in the ledger")
        elif o["kind"] == "exit":
            wrong += [f"{name} is an exit that may open"] * (not o["reduce_only"])
        else:
            wrong += [f"{name} {what}" for what in wrong_entry(story, o, at)]
    return wrong


def wrong_entry(story, o, at):
    """What speaks against one entry that arrived at the venue at `at`."""
    gate = o["gate"]
    if not gate:
        return ["has no gate"]
    stored, side = story.gates.get((o["instrument"], gate["asof_ms"]), []), {"BUY": "buy", "SELL": "sell"}.get(gate["direction"])
    return [what for what, holds in {
        "was sent outside the session": not in_session(at),
        f"came from a gate that was not admitted: {gate['reasons']}": gate["admit"] is not True or gate["reasons"],
        f"came from a gate {(at - gate['asof_ms']) / 1000} s old": not 0 <= at - gate["asof_ms"] <= MAX_GATE_AGE_S * 1000,
        f"is not what its gate says: {gate['direction']} {gate['instrument']}": (gate["instrument"], side) != (o["instrument"], o["side"]),
        "has no decision to enter": o["verdict"] != "enter" or o["run_id"] != "manager",
        "has a gate that was never in Valkey": not any(all(g[k] == gate[k] for k in ("admit", "direction", "hazard", "ts_ms")) for g in stored),
    }.items() if holds]


def wrong_ledger(week, url):
    """Between venue and ledger."""
    return problems(at_venue(week.transactions()), in_ledger(url, ACCOUNT)) + week.mismatches


def wrong_stream(week):
    """The transaction stream, cut all the time, told every fill, and each follower heard each once and in order."""
    wrong = [f"the stream never told of fills {sorted(week.filled() - week.told())}"] if week.told() != week.filled() else []
    return wrong + [f"a follower heard {told}" for told in week.story.told if [*map(int, told)] != sorted({*map(int, told)})]


class Gates:
    """Live gates against gates made at once of the candles that the venue tells now, and the lake against those candles. Asked when all is at rest."""

    def __init__(self, week):
        self.week, self.candles, self.compared, self.upto_ms = week, {}, Counter(), Counter()

    async def truth(self, name, first_ms, last_ms):
        """What the venue says, asked for piece by piece; what was read before is kept."""
        parts = [self.candles[name]] if name in self.candles else []
        at = parts[0]["time"].dt.epoch("ms")[-1] + 60_000 if parts else first_ms
        while at <= last_ms:
            part = await self.week.desk.venue.fetch_ohlcv(name, "M1", since_ms=at, limit=4000)
            parts.append(part.filter(pl.col("time").dt.epoch("ms") <= last_ms))
            if part.height < 2:
                break
            at = part["time"].dt.epoch("ms")[-1] + 60_000
        self.candles[name] = pl.concat(parts).unique("time").sort("time")
        return self.candles[name]

    async def wrong(self):
        """For each pair: the lake, and every column of every gate, of those that Valkey holds and of those that the manager saw."""
        found = []
        for name in self.week.pairs:
            lake = self.week.lake.candles(name, None, None, "sandbox")
            first, last = (int(lake["time"].dt.epoch("ms")[i]) for i in (0, -1))
            truth = await self.truth(name, first, last)
            if not lake.select(CANDLE).equals(truth.select(CANDLE)):
                found.append(f"{name}: the lake has {lake.height} candles, the venue {truth.height}, or they differ")
            want = build_gates(truth, live_gate_settings(self.week.settings))
            found += self.differ(name, "in Valkey", await gate_history(self.week.live, name), want.tail(self.week.settings.gate_retention), whole=True)
            found += self.differ(name, "as the manager saw them", self.seen(name), want)
        return found

    def differ(self, name, where, gates, want, whole=False):
        """What is not the same in every column; `whole`: and no gate is missing. The same gate stored again, at another time, is one gate."""
        got = gates_frame(gates).unique(maintain_order=True)
        self.compared[where] += got.height
        want = want if whole else want.filter(pl.col("time").is_in(got["time"].implode()))
        if got["time"].to_list() != want["time"].to_list():
            alone = sorted({*got["time"]} ^ {*want["time"]})
            twice = {at: [c for c in got.columns if both[c].n_unique() > 1] for (at,), both in got.group_by("time") if both.height > 1}
            return [f"{name}: gates {where} are not those of a rebuild: {got.height} live, {want.height} rebuilt, not in both: {alone[:5]}, seen in several forms: {twice}"]
        return [] if got.equals(want) else [f"{name}: gates {where} differ in {[c for c in want.columns if not got[c].equals(want[c])]}"]

    def seen(self, name):
        """The gates that the manager saw since this was last asked, but for times at which the venue told untrue candles."""
        story, after = self.week.story, self.upto_ms[name]
        at = sorted(ms for pair, ms in story.gates if pair == name and ms > after and not any(a <= ms <= b for a, b in story.untrue))
        self.upto_ms[name] = max(at, default=after)
        return [GatePayload.model_validate(g) for ms in at for g in story.gates[name, ms]]


def candidates(url):
    """By control: decisions that nothing else spoke against, and orders that it stopped after they had been accepted."""
    with psycopg.connect(url) as db:
        against = "SELECT reasons, count(*) FROM decisions WHERE verdict IN ('refuse', 'hold') AND cardinality(reasons) > 0 GROUP BY 1"
        said = [(set(reasons), n) for reasons, n in db.execute(against).fetchall()]
        unsent = dict(db.execute("SELECT reason, count(*) FROM orders WHERE state = 'rejected' AND reason IN ('kill_switch', 'read_only') GROUP BY 1").fetchall())
    return {name: sum(n for reasons, n in said if reasons <= those) for name, those in CONTROLS.items()}, unsent


def verdicts(url):
    """Decisions by verdict, reasons by how often, orders by kind and state."""
    with psycopg.connect(url) as db:
        reasons = db.execute("SELECT r, count(*) FROM decisions, unnest(reasons) AS r GROUP BY 1 ORDER BY 2 DESC").fetchall()
        states = db.execute("SELECT kind || ' ' || state, count(*) FROM orders GROUP BY 1").fetchall()
        return dict(db.execute("SELECT verdict, count(*) FROM decisions GROUP BY 1").fetchall()), dict(reasons), dict(states)


def trade(servers, home, start, hours, seed, pairs=PAIRS, market=12, often=None, script=None, say=False):
    """Run it. Returns the week, its figures, and everything that was wrong, by judge."""
    home.mkdir(parents=True, exist_ok=True)
    postgres, valkey = servers
    wrong = {"orders": [], "ledger": [], "gates": [], "stream": [], "way": []}

    async def whole(sandbox):
        week = Week(sandbox, postgres, valkey, home, seed, pairs, often)
        gates = Gates(week)

        async def each_day():
            wrong["gates"] += await gates.wrong()
            if say:
                print(f"  {iso(week.clock())}: {len(week.story.creates)} orders sent, {sum(map(len, wrong.values()))} violations", flush=True)

        try:
            await week.begin()
            await (script(week) if script else week.run(to_ms(start), to_ms(start) + round(hours * 3_600_000), each_day))
            await each_day()
            wrong["orders"] = wrong_orders(week.story, orders_with_decisions(postgres.url))
            wrong["ledger"], wrong["stream"], wrong["way"] = wrong_ledger(week, postgres.url), wrong_stream(week), week.story.wrong
            return week, figures(week, gates, postgres.url), wrong
        finally:
            await week.aclose()

    with sandbox_process(clock="virtual", speed=1.0, start=start, instruments=list(pairs), seed=market) as sandbox:
        return asyncio.run(whole(sandbox))


def figures(week, gates, url):
    """What was done, for people and for the question whether anything was tried at all."""
    s, (refused, unsent), (decided, reasons, states) = week.story, candidates(url), verdicts(url)
    return {"orders sent": len(s.creates), "orders": states, "decided": decided, "fills": len(week.filled()), "gates compared": dict(gates.compared),
            "hours with a kill": len(s.kills), "windows": dict(Counter(w.why for w in s.windows)), "candidates refused by": refused, "orders not sent": unsent,
            "reasons": reasons, "happened": dict(sorted(s.happened.items())), "slowest to settle, s": round(s.slowest_s, 2),
            "wall, s": {k: round(v, 1) for k, v in s.spent_s.most_common()}}
