"""Everything that can happen to orders, in any order: a hypothesis state machine over one account.

The oracle is in `OrderMachine`: what was asked for (`asked`), what the venue took (`taken`, counted as its transactions are written), and what
happened that may explain an order that came to nothing. It shares no code with the order path. At the end of each sequence the venue is well
again, the desk settles, and `order_truth.problems` compares every order, fill and position.
"""
import asyncio
import functools
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from unittest.mock import patch

import hypothesis
import hypothesis.strategies as st
import psycopg
from hypothesis import HealthCheck, Phase, settings
from hypothesis import stateful
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "crash")]
from desk_world import INSTRUMENTS, PRICES, World, new_market, new_world
from order_truth import FINAL, at_venue, problems, read_ledger, sent_orders
from sandbox_wire import NOT_TAKEN, TAKEN

import deskbook.trading.reconcile
from deskbook.core.loop import new_loop
from deskbook.stores.ledger import Ledger
from deskbook.trading.book import OrderRow
from deskbook.trading.orders import IdempotencyConflict, Intent, OrderRefused

SIZES = st.sampled_from([1000, -1000, 2000, -3000, 500, -500, 50_000_000])
SHAPES = st.sampled_from(["fok", "fok", "ioc", "rests", "crosses", "exit", "stop", "brief"])
FAR = {"EUR_USD": ("1.05000", "1.12000"), "USD_JPY": ("140.000", "160.000")}  # below and above every price of a run
HALVES = {"EUR_USD": "1.08000", "USD_JPY": "150.000"}
LIES = st.lists(st.sampled_from(["", *TAKEN, *NOT_TAKEN, "late"]), min_size=1, max_size=3)  # "": the venue answers
READ_LIES = st.sampled_from(["dropped", "silent", "error", "cut", "twice", "backwards"])
DEATHS = st.sampled_from(["venue before", "venue after", "ledger before", "ledger after"])


class Shared:
    """What all sequences of one process use: loop, ledger, market, and the count of what was done."""

    def __init__(self, url: str):
        self.runner, self.market = asyncio.Runner(loop_factory=new_loop), new_market()
        self.loop, self.db = self.runner.get_loop(), psycopg.connect(url, autocommit=True)
        self.loop.set_exception_handler(lambda loop, context: None)  # tasks of processes that died
        self.ledger = self.run(Ledger.open(url, min_size=2, max_size=6))
        self.count: Counter = Counter()
        self.waits = patch.object(deskbook.trading.reconcile, "wait_for_event", no_wait)
        self.waits.start()

    def run(self, step):
        return self.loop.run_until_complete(step)

    def close(self):
        self.waits.stop()
        self.run(self.ledger.aclose())
        self.db.close()
        self.runner.close()


async def no_wait(event: asyncio.Event, timeout_s: float) -> bool:
    """Nobody else does anything meanwhile: a reconciliation need not wait for it."""
    await asyncio.sleep(0)
    return event.is_set()


RULES: list[str] = []


def rule(**strategies):
    """As hypothesis's, and counted."""
    def counted(step):
        RULES.append(f"rule {step.__name__}")

        @functools.wraps(step)
        def one(self, *args, **values):
            self.shared.count[f"rule {step.__name__}"] += 1
            return step(self, *args, **values)
        return stateful.rule(**strategies)(one)
    return counted


class OrderMachine(RuleBasedStateMachine):
    """One sequence."""
    shared: Shared

    def __init__(self):
        super().__init__()
        self.asked: dict[str, Intent] = {}  # key -> what was asked for first
        self.orders: dict[str, str] = {}  # key -> order id, as far as the desk has said
        self.taken: Counter = Counter()  # client id -> orders the venue has taken
        self.again: Counter = Counter()  # client id -> sent although the venue had it: this venue refuses the second, another would not
        self.happened: set[str] = set()
        self.world: World | None = None

    def run(self, step):
        return self.shared.run(step)

    @initialize(first=st.lists(st.tuples(st.sampled_from(INSTRUMENTS), SIZES, SHAPES), min_size=1, max_size=3), lies=LIES, thin=st.sampled_from([False, False, True]))
    def begin(self, first, lies, thin):
        self.world = self.run(new_world(self.shared.ledger, self.shared.market))
        self.world.engine.release()
        for name, (bid, ask) in PRICES.items():
            self.world.engine.set_price(name, bid, ask)
        self.world.engine.configure(levels=((Decimal(600 if thin else 1_000_000), Decimal(0)),), slices=())
        self.world.engine.subscribe(self.see)
        self.run(self.world.boot())
        self.shared.count["sequences"] += 1
        self.world.wire.writes.extend(lies)
        for instrument, units, shape in first:
            self.submit(instrument, units, shape)

    def see(self, account, transactions):
        for t in transactions:
            client_id = (t.get("clientExtensions") or {}).get("id", "")
            if client_id and t["type"] in ("MARKET_ORDER", "LIMIT_ORDER"):
                self.taken[client_id] += 1
            if client_id and t["type"] in ("MARKET_ORDER_REJECT", "LIMIT_ORDER_REJECT"):
                self.again[client_id] += self.taken[client_id] > 0

    def do(self, step):
        """One step of a living process; a dead one is started again before the next."""
        self.shared.count["steps"] += 1
        self.run(self.world.boot())
        if self.world.process is None:
            step.close()
            return None
        return self.run(step)

    # ---- what the desk is asked

    def ask(self, key, intent):
        answer = self.do(self.world.submit(intent))
        if isinstance(answer, OrderRow):
            assert answer.idempotency_key == key
            assert self.orders.setdefault(key, str(answer.id)) == str(answer.id), "a key has two orders"
        elif answer is not None and key in self.orders:
            assert isinstance(answer, IdempotencyConflict), f"an accepted intent was answered with {answer!r}"
        return answer

    @rule(instrument=st.sampled_from(INSTRUMENTS), units=SIZES, shape=SHAPES)
    def submit_one(self, instrument, units, shape):
        self.submit(instrument, units, shape)

    def submit(self, instrument, units, shape):
        buy, bid_ask = units > 0, PRICES[instrument]
        how = {"fok": {}, "ioc": {"time_in_force": "IOC"}, "exit": {"reduce_only": True, "kind": "exit"}, "brief": {"expires_s": 10},
               "rests": {"type": "limit", "time_in_force": "GTC", "price": HALVES[instrument] if buy else FAR[instrument][1]},
               "crosses": {"type": "limit", "time_in_force": "GTC", "price": bid_ask[1] if buy else bid_ask[0]},
               "stop": {"stop_loss_price": FAR[instrument][0 if buy else 1]}}[shape]
        key = f"k{len(self.asked)}"
        self.asked[key] = Intent(self.world.account, instrument, Decimal(units), idempotency_key=key, **{"expires_s": 3600, **how})
        self.ask(key, self.asked[key])

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def submit_again(self, data):
        key = data.draw(st.sampled_from(sorted(self.asked)))
        self.ask(key, self.asked[key])

    @precondition(lambda self: self.orders)
    @rule(data=st.data())
    def submit_another_body(self, data):
        key = data.draw(st.sampled_from(sorted(self.orders)))
        first = self.asked[key]
        answer = self.do(self.world.submit(Intent(first.account, first.instrument, -first.units, idempotency_key=key)))
        assert answer is None or isinstance(answer, IdempotencyConflict), answer

    @precondition(lambda self: self.orders)
    @rule(data=st.data())
    def cancel(self, data):
        key = data.draw(st.sampled_from(sorted(self.orders)))
        self.happened.add(f"cancel {key}")
        self.do(self.world.cancel(self.orders[key]))

    @rule(instrument=st.sampled_from(INSTRUMENTS))
    def close(self, instrument):
        """What the desk believes it holds is closed, however often this is asked."""
        units = (self.shared.run(self.shared.ledger.rows("SELECT units FROM positions WHERE account = %s AND instrument = %s", (self.world.account, instrument)))
                 or [{"units": Decimal(0)}])[0]["units"]
        if units:
            key = f"k{len(self.asked)}"
            self.asked[key] = Intent(self.world.account, instrument, -units, kind="exit", reduce_only=True, idempotency_key=key, expires_s=3600)
            answer = self.ask(key, self.asked[key])
            assert answer is None or isinstance(answer, OrderRow | OrderRefused), answer

    # ---- what the desk's workers do

    @rule(twice=st.booleans())
    def pump(self, twice):
        self.do(self.world.pump(twice))

    @rule()
    def claim(self):
        self.do(self.world.claim())

    @rule()
    def send(self):
        self.do(self.world.send())

    @rule(twice=st.booleans())
    def write(self, twice):
        self.do(self.world.write(twice))

    @rule()
    def read_log(self):
        self.do(self.world.read_log())

    @rule(lies=st.one_of(st.lists(READ_LIES, max_size=3), st.sampled_from([["silent"] * 30, ["error"] * 30])))
    def resolve(self, lies):
        """A look that sees, one that is told lies, one that reads nothing however often it asks."""
        self.world.wire.reads.extend(lies)
        self.do(self.world.resolve())
        if len(lies) == 30:
            self.world.wire.reads.clear()

    @rule()
    def reconcile(self):
        self.do(self.world.reconcile())

    # ---- what goes wrong

    @rule()
    def crash(self):
        self.world.crash()

    @rule(where=DEATHS, skip=st.integers(0, 2))
    def crash_soon(self, where, skip):
        """The process dies at its next write to the venue, or around one of its next commits."""
        self.die(where, skip)

    @rule(where=DEATHS, skip=st.integers(0, 2))
    def crash_while_pumping(self, where, skip):
        self.die(where, skip)
        self.do(self.world.pump())

    def die(self, where, skip):
        self.run(self.world.boot())
        place, when = where.split()
        if place == "venue":
            self.world.wire.die = when
        else:
            self.world.ledger.die, self.world.ledger.skip = when, skip

    @rule(lies=LIES)
    def next_writes_go_wrong(self, lies):
        self.world.wire.writes.extend(lies)

    @rule(lies=st.lists(READ_LIES, min_size=1, max_size=3))
    def next_reads_go_wrong(self, lies):
        self.world.wire.reads.extend(lies)

    @rule(seconds=st.sampled_from([1, 5, 31]))
    def time_passes(self, seconds):
        self.shared.run(self.world.age(seconds))

    # ---- what others do

    @rule(instrument=st.sampled_from(INSTRUMENTS), units=st.sampled_from([700, -700]))
    def external_order(self, instrument, units):
        self.happened.add("external")
        self.world.engine.submit_order(self.world.venue_account, {"type": "MARKET", "instrument": instrument, "units": str(units), "timeInForce": "FOK"})

    @rule()
    def external_cancel(self):
        self.happened.add("external")
        for o in self.world.engine.pending_orders(self.world.venue_account)["orders"]:
            self.world.engine.cancel_order(self.world.venue_account, o["id"])

    @rule(thin=st.booleans())
    def liquidity(self, thin):
        """A thin book fills 600 units at a time: IOC in part, FOK not at all, a resting order in pieces."""
        self.world.engine.configure(levels=((Decimal(600 if thin else 1_000_000), Decimal(0)),))

    @rule(instrument=st.sampled_from(INSTRUMENTS), down=st.booleans())
    def price(self, instrument, down):
        """Below the resting buys and back."""
        bid, ask = ({"EUR_USD": ("1.07980", "1.07994"), "USD_JPY": ("149.970", "149.986")} if down else PRICES)[instrument]
        self.world.engine.set_price(instrument, bid, ask)
        self.world.pass_time(0.3)

    @precondition(lambda self: self.happened or self.world.aged_s)
    @rule()
    def a_person_lets_it_go_on(self):
        self.do(self.world.unfreeze())

    # ---- what must be true

    @invariant()
    def no_order_twice(self):
        twice = [k for k, n in self.taken.items() if n > 1]
        self.shared.count["doubled"] += len(twice)
        assert not twice, f"DOUBLED at the venue: {twice}"
        again = [k for k, n in self.again.items() if n]
        assert not again or self.world.wire.told["write late"], f"DOUBLED, had the venue not refused it: {again}"

    def teardown(self):
        if self.world is None:
            return
        self.run(self.world.settle())
        ledger = read_ledger(self.shared.db, self.world.account)
        self.shared.db.execute("UPDATE ops_alerts SET status = 'resolved' WHERE status <> 'resolved'")
        self.tally(ledger)
        wrong = problems(at_venue(self.world.engine.log(self.world.venue_account)), ledger) + self.lost(ledger)
        self.shared.count["lost"] += any("LOST" in w for w in wrong)
        assert not wrong, "\n".join([*wrong, *self.story(ledger)])

    def tally(self, ledger):
        """What really happened in this sequence."""
        count, ours = self.shared.count, sent_orders(ledger)
        for what, n in self.world.wire.told.items():
            count[what] += n
        for where, n in self.world.died.items():
            count[f"died {where}"] += n
        for e in ledger.events:
            count[f"became {e['to_state']}"] += 1
        count.update({"orders": len(ours), "fills": len(ledger.fills), "resends": sum(o["resends"] for o in ours), "crashes": self.world.died.total(),
                      "adopted from others": len(ledger.orders) - len(ours)})

    def story(self, ledger):
        """What a person needs to see why a sequence failed."""
        rows = self.run(self.shared.ledger.rows("SELECT action, metadata FROM ops_audit_events WHERE chain = %s ORDER BY seq", (self.world.account,)))
        names = {o["id"]: o["client_order_id"] for o in ledger.orders}
        return [*(f"  {t['id']} {t['type']} {t.get('orderID', '')} {(t.get('clientExtensions') or {}).get('id', '')} {t.get('units', '')} {t.get('reason', '')}"
                  for t in self.world.engine.log(self.world.venue_account)),
                *(f"  {names[e['order_id']]} {e['from_state']} -> {e['to_state']} {e['reason']} {e['payload']}" for e in ledger.events),
                *(f"  {r['action']} {r['metadata']}" for r in rows)]

    def lost(self, ledger):
        """Intents that the desk accepted and that came to nothing without a reason that really was there."""
        rows, wrong = {o["idempotency_key"]: o for o in ledger.orders}, []
        for key, order_id in self.orders.items():
            o = rows.get(key)
            if o is None or str(o["id"]) != order_id:
                wrong.append(f"LOST: the accepted intent {key} is not in the ledger")
            elif o["state"] in FINAL and not o["filled_units"] and not self.taken[o["client_order_id"]] and not self.explained(key, o):
                wrong.append(f"LOST: {key} is {o['state']} ({o['reason']}), and nothing of the kind happened")
        return wrong

    def explained(self, key, o):
        """Whether what the ledger gives as its reason really happened."""
        reason, aged_s = o["reason"], self.world.aged_s
        return {"intent_expired": aged_s >= self.asked[key].expires_s, "cancelled_before_sending": f"cancel {key}" in self.happened,
                "entries_frozen": "external" in self.happened, "instrument_blocked": aged_s >= 120,
                "absent_after_resend": o["resends"] == 1}.get(reason, reason.isupper())


def run_sequences(shared: Shared, sequences: int, seed: int | None = None, steps: int = 12) -> None:
    """At least so many sequences; raises what is wrong in the first that is. Without `seed` others every time."""
    machine = type("OrderMachine", (OrderMachine,), {"shared": shared})
    how = settings(max_examples=sequences, stateful_step_count=steps, deadline=None, database=None, print_blob=True, report_multiple_bugs=False,
                   suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate))
    stateful.run_state_machine_as_test(machine if seed is None else hypothesis.seed(seed)(machine), settings=how)
