"""A simulated trading week of all seven pairs with everything failing: what was traded, what was refused and why, and what was wrong.

    python benchmarks/bench_trading_week.py            # Monday to Monday, seven pairs
    python benchmarks/bench_trading_week.py --quick    # its Tuesday from five to noon, two pairs
    python benchmarks/bench_trading_week.py --seed 7   # other faults at other times; --market 3: other prices

The desk is the whole one: streamer, gate worker, manager, sender over PostgreSQL and Valkey with their data on disk, and the sandbox venue in a process
of its own on a virtual clock. In every simulated hour a worker is killed in the middle of its round, streams are cut, and the venue misbehaves; servers
are killed and revived, Valkey is flushed, the machine sleeps, an operator stops the desk or makes it read-only just when it is about to trade.
It is the code of `tests/live`, which the tests run with two pairs.

The promise: 0 violations. A violation is an order that reached the venue without an admitted, fresh gate that was in Valkey, or while the kill switch was
engaged, read-only was on or the session closed; a difference between ledger and venue; a gate that is not to the last bit that of a rebuild from the
venue's candles; a fill that the transaction stream did not tell once. The baseline is a desk whose controls were taken out, in the same run: the same
judges must find it out.
"""
import argparse
import contextlib
import json
import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / "live")]


@contextlib.contextmanager
def world():
    """Servers and a home of their own, removed afterwards."""
    from deskbook.stores.embedded import start_postgres, start_valkey
    from deskbook.stores.ledger_migrate import migrate
    folder = Path(tempfile.mkdtemp(prefix="dbk-", dir="/tmp"))
    folder.chmod(0o755)  # the database's user must get there
    try:
        with start_postgres(folder=folder) as postgres, start_valkey(folder=folder) as valkey:
            migrate(postgres.url)
            yield (postgres, valkey), folder / "home"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def baseline():
    """Violations that the judges find at the careless desk of the tests, by judge."""
    import pytest
    from test_trading_week import THURSDAY, careless, careless_morning
    from week_judges import trade
    with pytest.MonkeyPatch.context() as patch, world() as (servers, home):
        careless(patch)
        _, _, wrong = trade(servers, home, THURSDAY, 0.5, 1, often=({}, {}), script=careless_morning)
    return {judge: len(found) for judge, found in wrong.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--hours", type=float)
    parser.add_argument("--seed", type=int, default=1, help="of what goes wrong, and when")
    parser.add_argument("--market", type=int, default=12, help="seed of the prices")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # that servers are away is what is played here
    from deskbook.core.settings import MAJORS
    from trading_week import PAIRS
    from week_judges import trade
    start, hours, pairs = ("2025-11-11T05:00:00Z", 7, PAIRS) if args.quick else ("2025-11-10T00:00:00Z", 168, tuple(MAJORS))
    begun = time.perf_counter()
    with world() as (servers, home):
        _, seen, wrong = trade(servers, home, start, args.hours or hours, args.seed, pairs, args.market, say=not args.quick)
    took, found = time.perf_counter() - begun, baseline()
    print(json.dumps(seen, indent=1))
    violations, compared = sum(map(len, wrong.values())), sum(seen["gates compared"].values())
    for judge, told in wrong.items():
        for one in told[:20]:
            print(f"VIOLATION ({judge}): {one}")
    print(f"{args.hours or hours:g} simulated hours of {len(pairs)} pairs in {took:.0f} s: {seen['orders sent']} orders sent, {compared:,} gates compared,"
          f" a worker killed in {seen['hours with a kill']} hours")
    print(f"violations {violations} (bar 0); the same judges at a desk without controls: {found}")
    raise SystemExit(0 if not violations and all(found[judge] for judge in ("orders", "ledger", "gates")) else 1)


if __name__ == "__main__":
    main()
