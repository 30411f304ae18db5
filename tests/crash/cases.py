"""The scenarios of the crash matrix: what is prepared, what runs, and what must be true in the end."""
from matrix import Scenario, record
from points import Point, thinned
from rig import Rig
from zygote import Ended, Zygote

WATCHED = ["deskbook.trading", "deskbook.venues.oanda", "deskbook.venues.transport", "deskbook.stores.ledger"]
BUY = {"units": "1000", "idempotency_key": "k1"}
LIMIT = {**BUY, "type": "limit", "time_in_force": "GTC", "price": "1.05000"}
SLICES = {"slices": 3, "every_s": 0.1}

# name: the job that is killed, its case, faults of the venue, and the end that every order must have
SCENARIOS: dict[str, dict] = {
    "submit": {"job": "submit", "intents": [BUY], "ends": {"k1": "filled"}},
    "several": {"job": "trade", "intents": [{"units": u, "idempotency_key": f"k{n}"} for n, u in enumerate(["1000", "-400", "2500"])],
                "ends": {"k0": "filled", "k1": "filled", "k2": "filled"}},
    "rejected": {"job": "trade", "intents": [BUY], "faults": [("reject", "orders.create", {})], "ends": {"k1": "rejected"}},
    "refused_with_201": {"job": "trade", "intents": [BUY], "faults": [("cancel", "orders.create", {})], "ends": {"k1": "rejected"}},
    "response_lost": {"job": "trade", "intents": [BUY], "faults": [("accept_then_drop", "orders.create", {"times": 1})], "ends": {"k1": "filled"}},
    "request_lost": {"job": "trade", "intents": [BUY], "faults": [("drop_before_accept", "orders.create", {"times": 1})], "ends": {"k1": "filled"},
                     "lost_twice": True},  # killed before it sent: then the venue loses the only resend
    "cancel": {"job": "trade", "intents": [LIMIT], "then": "cancel", "ends": {"k1": "cancelled"}},
    "close": {"job": "trade", "intents": [BUY], "then": "close", "ends": {"k1": "filled", "the-close": "filled"}},
    "half_close": {"job": "trade", "before": [3000], "intents": [{"units": "-1000", "reduce_only": True, "kind": "exit", "idempotency_key": "k1"}],
                   "ends": {"k1": "filled"}},
    "reconcile": {"job": "reconcile", "before": [700], "ends": {}},
    "orphan": {"job": "reconcile", "meanwhile": {"units": "700"}, "ends": {}, "frozen": True},
    "missed_fill": {"job": "reconcile", "intents": [LIMIT | {"price": "1.08424"}], "faults": [("slow_fill", "orders.create", {}, SLICES)],
                    "pause_s": 0.5, "ends": {"k1": "filled"}},
}


def scenario(rig: Rig, name: str) -> Scenario:
    said = SCENARIOS[name]

    async def prepare(_: str) -> dict:
        case = rig.case(name, **{k: said[k] for k in ("intents", "then", "meanwhile", "pause_s") if k in said})
        for units in said.get("before", ()):
            rig.external(case, units)
        for kind, route, when, *params in said.get("faults", ()):
            rig.fault(case, kind, route, when, **(params[0] if params else {}))
        return case

    async def check(case: dict, after: Ended) -> list[str]:
        if after.status:
            return [f"the next process ended with {after.status}: {after.result.get('error')} {after.log[-800:]}"]
        return ends_well(rig, case, after.value, said["ends"], said.get("lost_twice", False))

    return Scenario(name, f"scenarios:{said['job']}", "scenarios:recover", prepare, check, rig.free_lease)


def given_up(rig: Rig, case: dict, key: str, recovered: dict) -> bool:
    """Lost twice: not sent a third time, the instrument blocked, a person called."""
    side = rig.ledger(case)
    called = any(a["fingerprint"].startswith("absent_after_resend:") for a in side.alerts)
    return recovered["reasons"].get(key) == "absent_after_resend" and "EUR_USD" in side.blocked and called


def ends_well(rig: Rig, case: dict, recovered: dict, ends: dict[str, str], lost_twice: bool = False) -> list[str]:
    """Venue and ledger agree, everything has its end, and it is the right one."""
    wrong = rig.problems(case)
    if not recovered["settled"]:
        wrong.append(f"did not settle: {recovered['states']}")
    if recovered["mismatches"]:
        wrong.append(f"mismatches: {recovered['mismatches']}")
    ours = {k: v for k, v in recovered["states"].items() if not k.startswith("venue:")}
    if lost_twice:
        ends = {k: "rejected" if given_up(rig, case, k, recovered) else state for k, state in ends.items()}
    if ours != ends:
        wrong.append(f"LOST? orders ended as {ours}, not {ends}; reasons {recovered['reasons']}, before {recovered['before']}")
    return wrong


async def record_points(zygote: Zygote, one: Scenario, *, every: bool = False, lines: bool = False) -> list[Point]:
    seen = await record(zygote, one, lines=lines)
    return seen if every or lines else thinned(seen)
