"""The comparison of venue and ledger can fail: each kind of damage is done once and must be told."""
import copy
import sys
from decimal import Decimal as D
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from order_truth import LedgerSide, at_venue, problems

PLACED = {"id": "2", "type": "MARKET_ORDER", "instrument": "EUR_USD", "units": "1000", "clientExtensions": {"id": "db-a"}, "reason": "CLIENT_ORDER"}
FILLED = {"id": "3", "type": "ORDER_FILL", "orderID": "2", "instrument": "EUR_USD", "units": "1000", "price": "1.08412"}
RESTS = {"id": "4", "type": "LIMIT_ORDER", "instrument": "EUR_USD", "units": "-500", "clientExtensions": {"id": "db-b"}}
GONE = {"id": "5", "type": "ORDER_CANCEL", "orderID": "4"}


def order(client_id, state, filled, **other):
    return {"id": client_id, "client_order_id": client_id, "state": state, "filled_units": D(filled), "kind": "entry", "instrument": "EUR_USD", "reason": "",
            "venue_order_id": "", **other}


def events(client_id, *states):
    return [{"order_id": client_id, "from_state": a, "to_state": b} for a, b in zip((None, *states), states, strict=False)]


def right() -> tuple[list[dict], LedgerSide]:
    return [PLACED, FILLED, RESTS, GONE], LedgerSide(
        orders=[order("db-a", "filled", 1000), order("db-b", "cancelled", 0)],
        fills=[{"fill_id": "3", "venue_order_id": "2", "instrument": "EUR_USD", "units": D(1000), "price": D("1.08412")}], positions={"EUR_USD": D(1000)},
        events=events("db-a", "created", "submitting", "filled") + events("db-b", "created", "submitting", "open", "cancelled"))


def test_a_ledger_that_tells_the_truth_has_no_problems():
    transactions, ledger = right()
    assert problems(at_venue(transactions), ledger) == []


def doubled(t, led): t += [{**PLACED, "id": "9"}, {**FILLED, "id": "10", "orderID": "9"}]
def lost(t, led): del t[:2]
def unheard(t, led): t.append({**RESTS, "id": "9", "clientExtensions": {"id": "db-z"}})
def fill_missed(t, led): led.fills.clear(), led.positions.clear(), led.orders[0].update(filled_units=D(0), state="cancelled")
def fill_twice(t, led): led.fills.append(led.fills[0])
def fill_invented(t, led): led.fills.append({**led.fills[0], "price": D(2)})
def position_stale(t, led): led.positions["EUR_USD"] = D(2000)
def called_rejected(t, led): led.orders[0]["state"] = "rejected"
def forgotten(t, led): led.orders[1]["state"] = "unknown"
def stuck(t, led): led.orders[1]["state"] = "submitting"
def still_open(t, led): t.remove(GONE)
def silent_change(t, led): led.events.pop()
def jump(t, led): del led.events[1]


DAMAGE = {doubled: "DOUBLED", lost: "LOST", unheard: "never heard", fill_missed: "times in the ledger", fill_twice: "2 times in the ledger",
          fill_invented: "in the ledger only", position_stale: "not the sum of the fills", called_rejected: "was filled at the venue",
          forgotten: "without an explanation", stuck: "without an explanation", still_open: "still open", silent_change: "its last event says",
          jump: "do not follow"}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_damage_is_told(damage):
    transactions, ledger = copy.deepcopy(right())
    damage(transactions, ledger)
    found = problems(at_venue(transactions), ledger)
    assert any(DAMAGE[damage] in f for f in found), found


def test_positions_that_differ_are_told_even_when_every_fill_agrees_in_the_ledger():
    transactions, ledger = right()
    transactions.append({"id": "9", "type": "ORDER_FILL", "orderID": "", "instrument": "USD_JPY", "units": "7", "price": "150"})
    assert any(f.startswith("POSITION") for f in problems(at_venue(transactions), ledger))


def test_what_was_held_at_first_stands_for_the_fills_before():
    transactions, ledger = right()
    ledger.fills[0] = {"fill_id": "first-3-EUR_USD", "venue_order_id": None, "instrument": "EUR_USD", "units": D(1000), "price": D("1.1")}
    assert problems(at_venue(transactions), ledger) == []
    ledger.fills[0]["units"] = D(900)
    assert any("at first" in p for p in problems(at_venue(transactions), ledger))


def test_an_unknown_order_is_explained_by_a_block_and_an_alert_together():
    transactions, ledger = right()
    ledger.orders.append(order("db-c", "unknown", 0))
    ledger.events += events("db-c", "created", "submitting", "unknown")
    assert problems(at_venue(transactions), ledger)
    ledger.blocked = {"EUR_USD"}
    assert problems(at_venue(transactions), ledger)
    ledger.alerts = [{"fingerprint": "x"}]
    assert problems(at_venue(transactions), ledger) == []
