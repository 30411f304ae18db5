"""Every fault that the sandbox can make, while a desk trades: which were survived, and whether an order was lost or doubled.

    python benchmarks/bench_faults.py            # every case of tests/faults/fault_cases.py, two to three minutes
    python benchmarks/bench_faults.py --quick    # one case for each kind of fault
    python benchmarks/bench_faults.py --only hang

Each case is an account and a desk of its own over PostgreSQL, Valkey and a sandbox process: three orders (most often a buy, a sell, and a limit order
that is cancelled) while the fault lasts, then the venue is well again and everything must settle by itself. The counts are taken from outside, by
plain SQL and plain HTTP: `accepted` are the intents in the ledger, `lost` those of them that are without an end, or filled in the ledger and not at
the venue, or sent and nowhere to be found; `duplicated` the orders beyond the first with one client id, by the venue's journal or by its transactions.

The promise: every fault survived, 0 lost, 0 duplicated. The baseline is an account without any fault, in the same run.
"""
import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / name) for name in ("faults", "crash")]


def chosen(cases, quick, only):
    """Names of the cases to run."""
    names = [n for n, c in cases.items() if not only or only in (n, c.kind)]
    return list({cases[n].kind: n for n in reversed(names)}.values())[::-1] if quick else names


def counted(rig, case):
    """What became of the orders of a case: accepted, lost, duplicated."""
    from order_truth import FINAL, sent_orders
    venue, ledger = rig.venue(case), rig.ledger(case)
    there, ours = Counter(o["client_id"] for o in venue.orders.values() if o["client_id"]), sent_orders(ledger)
    resting = {o["client_id"] for o in venue.orders.values() if o["state"] == "open"}

    def lost(o):
        if o["state"] == "filled" or o["filled_units"]:
            return not there[o["client_order_id"]]
        return o["state"] not in FINAL and o["client_order_id"] not in resting
    unheard = [c for c in there if c not in {o["client_order_id"] for o in ledger.orders}]
    journal = rig.control.orders(account=case["venue_account"])["duplicates"]
    doubled = max(sum(n - 1 for n in there.values()), len(journal))
    return Counter(accepted=len(ours), lost=sum(map(lost, ours)) + len(unheard), duplicated=doubled, faults=1)


class Kept:
    """The rig, and the case that it made last: `run_case` keeps it to itself."""
    def __init__(self, rig):
        self.rig, self.last = rig, {}

    def __getattr__(self, name):
        return getattr(self.rig, name)

    def case(self, *args, **more):
        self.last = self.rig.case(*args, **more)
        return self.last


async def one(rig, name):
    """What is wrong after a case, and its counts."""
    from fault_cases import run_case
    kept, wrong = Kept(rig), []
    try:
        wrong = await asyncio.wait_for(run_case(kept, name), 90)
    except Exception as e:
        wrong = [f"{type(e).__name__}: {e}"]
    finally:
        rig.control.clear_faults()
    count = counted(rig, kept.last)
    count["survived"] = not wrong and not count["lost"] and not count["duplicated"]
    return count, wrong


async def untroubled(rig):
    """The baseline: three orders and no fault; seconds, counts and what is wrong."""
    import fault_cases
    start = time.perf_counter()
    spec = replace(fault_cases.CASES["looks that lag"], lasts_s=0.0)

    class Nothing:
        def set(self): ...
        def end(self): ...
    case = rig.case("baseline", intents=list(spec.intents))
    wrong = await fault_cases.trade(rig, case, spec, Nothing())
    return time.perf_counter() - start, counted(rig, case), wrong


def run(rig, names, cases):
    """Every case; one line for each kind of fault. Returns the sum and the cases that were not survived."""
    by_kind, failed, took = defaultdict(Counter), [], Counter()
    for name in names:
        start, kind = time.perf_counter(), cases[name].kind
        count, wrong = asyncio.run(one(rig, name))
        by_kind[kind] += count
        took[kind] += time.perf_counter() - start
        if not count["survived"]:
            failed.append(name)
            print(f"NOT SURVIVED: {name}: {'; '.join(wrong)[:1500]}", flush=True)
    print(f"{'fault':24}{'tried':>7}{'survived':>10}{'accepted':>10}{'lost':>6}{'duplicated':>12}{'seconds':>9}")
    for kind, c in by_kind.items():
        print(f"{kind:24}{c['faults']:7}{c['survived']:10}{c['accepted']:10}{c['lost']:6}{c['duplicated']:12}{took[kind]:9.1f}")
    return sum(by_kind.values(), Counter()), failed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="a case or a kind of fault")
    args = parser.parse_args()
    from deskbook.stores.embedded import start_postgres, start_valkey
    from deskbook.stores.ledger_migrate import migrate
    from fault_cases import CASES
    from rig import rig
    names = chosen(CASES, args.quick, args.only)
    with contextlib.ExitStack() as stack:
        pg, vk = stack.enter_context(start_postgres(temporary=True, durable=False)), stack.enter_context(start_valkey(temporary=True, durable=False))
        migrate(pg.url)
        r = stack.enter_context(rig(pg.url, vk.url, Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        kinds = set(r.control.ask("GET", "/kinds"))
        untried = set() if args.only else kinds - {CASES[n].kind for n in names}
        start = time.perf_counter()
        total, failed = run(r, names, CASES)
        took = time.perf_counter() - start
        base_s, base, wrong = asyncio.run(untroubled(r))
    print(f"faults survived {total['survived']} of {total['faults']}, of {len(kinds)} kinds that the sandbox knows {len(kinds) - len(untried)} tried, {took:.0f} s;"
          f" orders accepted {total['accepted']}, lost {total['lost']}, duplicated {total['duplicated']}")
    print(f"baseline without a fault: {base_s:.1f} s, accepted {base['accepted']}, lost {base['lost']}, duplicated {base['duplicated']}"
          f"{'; WRONG: ' + '; '.join(wrong) if wrong else ''}")
    if untried:
        print(f"kinds without a case: {sorted(untried)}")
    raise SystemExit(1 if failed or untried or wrong or total["lost"] or total["duplicated"] else 0)


if __name__ == "__main__":
    main()
