"""Sequences of whatever can happen to orders, run against an oracle: submits, partial fills, cancels, closes, crashes, lost and doubled messages.

    python benchmarks/bench_state_machine.py            # 50,000 sequences, an hour and more on two cores
    python benchmarks/bench_state_machine.py --quick    # 2,000
    python benchmarks/bench_state_machine.py --seed 7   # these sequences again; a violation names its seed and its steps

The machine is that of `tests/trading/order_machine.py`: the whole order path over PostgreSQL (without fsync) and the sandbox's engine, with time and
the wire made up. The oracle knows what was asked for, what the venue took and what went wrong on the way;
an order that the venue refused only because it had it already counts as doubled. Each process takes 500 sequences with a
seed of their own, in a fresh database, and then the next.

The promise is 0 violations: no order lost, none doubled, every fill counted once, positions those of the venue. The baseline is the same machine
with a fault planted in the order path, an order sent again without proof that it is absent: it must be found.
"""
import argparse
import contextlib
import multiprocessing
import os
import secrets
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from unittest.mock import patch

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "trading")]
from databases import fresh_database

CHUNK = 500
SHOWN = {"orders": "orders", "fills": "fills", "partial": "became partially_filled", "unknown": "became unknown", "resends": "resends", "crashes": "crashes",
         "heard twice": "message written twice", "orders of others": "adopted from others"}
LOST_ANSWERS = ("write lost", "write silent", "write error", "write cut")
LOST_REQUESTS = ("write dropped", "write refused", "write busy", "write late")


def hasty():
    """A planted fault: what was not found at once is sent again."""
    from deskbook.trading import resolve
    from deskbook.venues.model import Found
    real = resolve.plan_resolution

    def plan(order, found, *rest):
        right = real(order, found, *rest)
        return right if isinstance(found, Found) or order.resends else resolve.Resolution("resend", absent_since_ms=1)
    return patch.object(resolve, "plan_resolution", plan)


def chunk(url, sequences, seed, planted=False):
    """Run some sequences; what happened, and the violation that ended them, if any."""
    os.chdir(tempfile.gettempdir())  # hypothesis keeps its notes where it runs
    from order_machine import Shared, run_sequences
    with fresh_database(url, "ledger") as own:
        shared = Shared(own)
        try:
            with hasty() if planted else contextlib.nullcontext():
                run_sequences(shared, sequences, seed)
            return seed, shared.count, ""
        except Exception as e:
            return seed, shared.count, "\n".join([f"{type(e).__name__}: {e}", *getattr(e, "__notes__", [])])
        finally:
            shared.close()


def template(url):
    """The database from which the others are copied."""
    import psycopg

    from deskbook.stores.ledger_migrate import migrate
    with psycopg.connect(url, autocommit=True) as c:
        c.execute("CREATE DATABASE ledger TEMPLATE template0")
    migrate(url.replace("/deskbook?", "/ledger?"))


def run(pool, url, sequences, seed, say):
    """All chunks; the count of everything, and the violations."""
    count, violations = Counter(), []
    begun, sizes = time.perf_counter(), [CHUNK] * (sequences // CHUNK) + [sequences % CHUNK] * bool(sequences % CHUNK)
    for n, done in enumerate(as_completed([pool.submit(chunk, url, size, seed + k) for k, size in enumerate(sizes)]), 1):
        own_seed, seen, wrong = done.result()
        count.update(seen)
        if wrong:
            violations.append((own_seed, wrong))
            print(f"VIOLATION with --seed {own_seed}:\n{wrong[:6000]}", flush=True)
        if say and n % 10 == 0:
            print(f"  {count['sequences']:6} sequences, {count['sequences'] / (time.perf_counter() - begun):.0f}/s, {len(violations)} violations", flush=True)
    return count, violations


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--n", type=int)
    parser.add_argument("--seed", type=int, help="of the first chunk; without it others every time")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    from deskbook.stores.embedded import start_postgres
    n, seed = args.n or (2_000 if args.quick else 50_000), args.seed if args.seed is not None else secrets.randbelow(10**9)
    with start_postgres(temporary=True, durable=False) as pg:
        template(pg.url)
        with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            start = time.perf_counter()
            count, violations = run(pool, pg.url, n, seed, say=not args.quick)
            took = time.perf_counter() - start
            _, planted, found = pool.submit(chunk, pg.url, 4_000, seed, True).result()
    seen = {**{name: count[key] for name, key in SHOWN.items()}, "answers lost": sum(count[k] for k in LOST_ANSWERS),
            "requests lost or late": sum(count[k] for k in LOST_REQUESTS), "reads that failed or lied": sum(v for k, v in count.items() if k.startswith("read ")) - count["read answered"]}
    print(f"{count['sequences']:,} sequences, {sum(v for k, v in count.items() if k.startswith('rule ')):,} steps in {took:.0f} s: {count['sequences'] / took:.0f} sequences/s"
          f" in {args.processes} processes, seed {seed}")
    print(", ".join(f"{name} {value:,}" for name, value in seen.items()))
    print(f"violations {len(violations)} (bar 0); planted fault, sent again without proof: {f'found after {planted['sequences']} sequences' if found else 'NOT FOUND'}")
    raise SystemExit(0 if not violations and found and count["sequences"] >= n else 1)


if __name__ == "__main__":
    main()
