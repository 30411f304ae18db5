"""What must be true between the venue and the ledger once everything has settled; read without any code of the order path.

`at_venue` folds the account's raw transactions, `in_ledger` reads the tables with plain SQL, `problems` compares the two. The readers know
OANDA's transactions and the tables' names, and nothing else.
"""
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

FINAL = frozenset({"filled", "cancelled", "rejected", "expired"})
ORDERS = ("MARKET_ORDER", "LIMIT_ORDER", "STOP_ORDER", "MARKET_IF_TOUCHED_ORDER", "STOP_LOSS_ORDER", "TAKE_PROFIT_ORDER", "TRAILING_STOP_LOSS_ORDER")


@dataclass
class VenueSide:
    """What the venue did, from its transactions."""
    orders: dict[str, dict] = field(default_factory=dict)  # order id -> client_id, instrument, units, filled, state
    positions: dict[str, Decimal] = field(default_factory=dict)  # instrument -> signed units, never 0
    fills: list[tuple] = field(default_factory=list)  # transaction id, order id, instrument, units, price

    def of(self, client_id: str) -> list[dict]:
        return [o for o in self.orders.values() if o["client_id"] == client_id]


@dataclass
class LedgerSide:
    """What the ledger says."""
    orders: list[dict] = field(default_factory=list)
    fills: list[dict] = field(default_factory=list)
    positions: dict[str, Decimal] = field(default_factory=dict)
    outbox_left: int = 0
    blocked: set[str] = field(default_factory=set)  # instruments
    frozen: bool = False
    alerts: list[dict] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)


def at_venue(transactions: Iterable[Mapping[str, Any]]) -> VenueSide:
    """Fold raw transactions, oldest first."""
    side, net = VenueSide(), defaultdict(Decimal)
    for t in transactions:
        kind = t["type"]
        if kind in ORDERS:
            side.orders[t["id"]] = {"venue_order_id": t["id"], "client_id": (t.get("clientExtensions") or {}).get("id", ""), "kind": kind,
                                    "instrument": t.get("instrument", ""), "units": Decimal(t.get("units", "0")), "filled": Decimal(0), "state": "open",
                                    "reason": t.get("reason", "")}
        elif kind == "ORDER_FILL":
            units, order = Decimal(t["units"]), side.orders.get(t.get("orderID", ""))
            net[t["instrument"]] += units
            side.fills.append((int(t["id"]), t.get("orderID", ""), t["instrument"], units, Decimal(t.get("price") or t.get("fullVWAP") or "0")))
            if order is not None:
                order["filled"] += units
                if abs(order["filled"]) >= abs(order["units"]):
                    order["state"] = "filled"
        elif kind == "ORDER_CANCEL":
            if (order := side.orders.get(t.get("orderID", ""))) is not None and order["state"] == "open":
                order["state"] = "cancelled"
    side.positions = {k: v for k, v in net.items() if v}
    return side


def in_ledger(url: str, account: str) -> LedgerSide:
    """Read one account with plain SQL, as the owner of the database."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as db:
        return read_ledger(db, account)


# Alerts are named "cause:account" or "cause:id of an order".
ALERTS = """SELECT * FROM ops_alerts WHERE status <> 'resolved'
  AND substr(fingerprint, strpos(fingerprint, ':') + 1) IN (SELECT %s UNION ALL SELECT id::text FROM orders WHERE account = %s)"""


def read_ledger(db: Any, account: str) -> LedgerSide:
    """The same over a connection that is open."""
    from psycopg.rows import dict_row

    def rows(sql):
        return db.cursor(row_factory=dict_row).execute(sql, (account,)).fetchall()

    kept = rows("SELECT entries_frozen FROM accounts WHERE account = %s")
    return LedgerSide(
        orders=rows("SELECT * FROM orders WHERE account = %s ORDER BY created_at, id"),
        fills=rows("SELECT f.*, o.venue_order_id FROM fills f JOIN orders o ON o.id = f.order_id WHERE f.account = %s"),
        positions={r["instrument"]: r["units"] for r in rows("SELECT instrument, units FROM positions WHERE account = %s AND units <> 0")},
        outbox_left=rows("SELECT count(*) AS n FROM outbox WHERE account = %s AND done_at IS NULL")[0]["n"],
        blocked={r["instrument"] for r in rows("SELECT instrument FROM instrument_blocks WHERE account = %s")},
        frozen=bool(kept and kept[0]["entries_frozen"]),
        alerts=db.cursor(row_factory=dict_row).execute(ALERTS, (account, account)).fetchall(),
        events=rows("SELECT * FROM order_events WHERE account = %s ORDER BY seq"))


def sent_orders(ledger: LedgerSide) -> list[dict]:
    """Intents of ours, without what the reconciler adopted."""
    return [o for o in ledger.orders if o["kind"] != "external"]


def _orders(venue: VenueSide, ledger: LedgerSide) -> list[str]:
    wrong, known = [], Counter(o["client_order_id"] for o in ledger.orders if o["client_order_id"])
    for client_id, n in Counter(o["client_id"] for o in venue.orders.values() if o["client_id"]).items():
        if n > 1:
            wrong.append(f"DOUBLED: {n} orders at the venue for {client_id}")
        if not known[client_id]:
            wrong.append(f"the venue has {client_id}, the ledger has never heard of it")
    for o in sent_orders(ledger):
        there = venue.of(o["client_order_id"])
        name = f"order {o['client_order_id']} ({o['state']}, {o['reason'] or 'no reason'})"
        filled = sum((abs(t["filled"]) for t in there), Decimal(0))
        if o["filled_units"] != filled:
            wrong.append(f"{name} has {o['filled_units']} units filled in the ledger and {filled} at the venue")
        if o["state"] in FINAL and any(t["state"] == "open" for t in there):
            wrong.append(f"{name} is still open at the venue")
        if o["state"] == "filled" and not there:
            wrong.append(f"LOST: {name} is at no venue")
        if o["state"] == "rejected" and filled:
            wrong.append(f"{name} was filled at the venue")
    return wrong


def _first(ledger: LedgerSide) -> dict[str, tuple[int, Decimal]]:
    """What was held when the desk met the account: one row stands for all that was filled up to a transaction."""
    parts = [(f["fill_id"].split("-", 2), f["units"]) for f in ledger.fills if f["fill_id"].startswith("first-")]
    return {instrument: (int(cursor), units) for (_, cursor, instrument), units in parts}


def _fills(venue: VenueSide, ledger: LedgerSide) -> list[str]:
    first = _first(ledger)
    old, new = [], Counter()
    for fill in venue.fills:
        old.append(fill) if fill[2] in first and fill[0] <= first[fill[2]][0] else new.update([fill[1:]])
    have = Counter((f["venue_order_id"] or "", f["instrument"], f["units"], f["price"]) for f in ledger.fills if not f["fill_id"].startswith("first-"))
    wrong = [f"fill {key} is {n} times at the venue and {have[key]} times in the ledger" for key, n in new.items() if have[key] != n]
    wrong += [f"fill {key} is in the ledger only" for key in have if key not in new]
    wrong += [f"{units} {name} were there at first, says the ledger" for name, (_, units) in first.items() if sum(f[3] for f in old if f[2] == name) != units]
    sums: dict[str, Decimal] = defaultdict(Decimal)
    for f in ledger.fills:
        sums[f["instrument"]] += f["units"]
    if (folded := {k: v for k, v in sums.items() if v}) != ledger.positions:
        wrong.append(f"positions {ledger.positions} are not the sum of the fills {folded}")
    return wrong


def _explained(ledger: LedgerSide, venue: VenueSide) -> list[str]:
    """Final; or resting at the venue; or unknown with its instrument blocked and a person called."""
    wrong = []
    for o in sent_orders(ledger):
        resting = any(t["state"] == "open" for t in venue.of(o["client_order_id"]))
        called = o["instrument"] in ledger.blocked and bool(ledger.alerts)
        if not (o["state"] in FINAL or (o["state"] in ("open", "partially_filled", "cancel_pending") and resting) or (o["state"] == "unknown" and called)):
            wrong.append(f"order {o['client_order_id']} of {o['instrument']} is {o['state']} without an explanation")
    return wrong


def _events(ledger: LedgerSide) -> list[str]:
    """Each order's events lead from nothing to its state, version by version."""
    wrong, path = [], defaultdict(list)
    for e in ledger.events:
        path[e["order_id"]].append(e)
    for o in ledger.orders:
        steps = path[o["id"]]
        if not steps or steps[-1]["to_state"] != o["state"]:
            wrong.append(f"order {o['client_order_id']} is {o['state']}, its last event says {steps[-1]['to_state'] if steps else 'nothing'}")
        if any(a["to_state"] != b["from_state"] for a, b in itertools.pairwise(steps)):
            wrong.append(f"order {o['client_order_id']} has events that do not follow one another: {[e['to_state'] for e in steps]}")
    return wrong


def problems(venue: VenueSide, ledger: LedgerSide) -> list[str]:
    """Everything that is not as promised; [] when all is well."""
    wrong = _orders(venue, ledger) + _fills(venue, ledger) + _explained(ledger, venue) + _events(ledger)
    if venue.positions != ledger.positions:
        wrong.append(f"POSITION: {venue.positions} at the venue, {ledger.positions} in the ledger")
    return wrong
