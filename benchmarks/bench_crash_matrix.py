"""SIGKILL at every point of the order path, not a choice of them: is any order lost or doubled when the next process has carried on?

    python benchmarks/bench_crash_matrix.py            # every point of every scenario; a long run, see below
    python benchmarks/bench_crash_matrix.py --quick    # 20 points of each scenario
    python benchmarks/bench_crash_matrix.py --lines    # every source line as well; --most N and --only NAME make it shorter

A point is a moment of an await (before it, suspended in it, after it, an error of it), found by a recorded run and not by hand; see `tests/crash`. The
process that trades is killed there, another one is started on the same ledger and the same venue, and what both say is compared from outside, by plain
SQL and plain HTTP. The tests kill at a part of these points (`points.thinned`, and of those another sample every day).

The promise: no problem anywhere, 0 lost, 0 doubled. The baseline in the same run is a sender of fifteen lines that marks its order as sent only after
it has sent it: the same matrix must find its double orders.
"""
import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

CRASH = Path(__file__).resolve().parents[1] / "tests" / "crash"
sys.path[:0] = [str(CRASH)]


def only_lines(points, lines):
    return [p for p in points if (p.kind == "line") == lines] if lines else points


async def one(rig, name, most, lines, at_once):
    """The whole matrix of a scenario."""
    from cases import WATCHED, record_points, scenario
    from matrix import run_matrix, shuffled
    from zygote import Zygote
    async with Zygote(["scenarios"], WATCHED) as z:
        scene = scenario(rig, name)
        await z.warm(scene.recover, await scene.prepare("warm"))
        found = only_lines(await record_points(z, scene, every=True, lines=lines), lines)
        start = time.perf_counter()
        report = await run_matrix(z, scene, shuffled(found, seed=1)[:most], at_once=at_once)
    return len(found), report, time.perf_counter() - start


async def toy(folder):
    """The baseline: a sender that is wrong on purpose."""
    import toy_sender
    from matrix import Scenario, record, run_matrix
    from zygote import Zygote

    async def prepare(name):
        (folder / name).mkdir()
        return {"folder": str(folder / name), "order": "db-1", "marks": "after"}

    async def check(case, ended):
        sent = toy_sender.lines(Path(case["folder"]) / "venue")
        return [] if sent == ["db-1"] else [f"DOUBLED: {len(sent)} orders at the venue"]
    async with Zygote(["toy_sender"], ["toy_sender"]) as z:
        scene = Scenario("toy", "toy_sender:submit", "toy_sender:recover", prepare, check)
        return await run_matrix(z, scene, await record(z, scene))


def counts(report):
    """Points with a problem, with a lost order, with a doubled one."""
    def points(word=""):
        return len({p for p, what in report.problems if word in what})
    return Counter(killed=report.killed, tried=report.points, away=len(report.not_reached), problems=points(), lost=points("LOST"), doubled=points("DOUBLED"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--lines", action="store_true", help="kill at every source line instead of at every await")
    parser.add_argument("--only", help="one scenario")
    parser.add_argument("--most", type=int, help="at most so many points of each scenario")
    parser.add_argument("--at-once", type=int, default=4, help="cases that run side by side")
    args = parser.parse_args()
    from cases import SCENARIOS
    from deskbook.stores.embedded import start_postgres, start_valkey
    from deskbook.stores.ledger_migrate import migrate
    from rig import rig
    most, total, begun = args.most or (20 if args.quick else None), Counter(), time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pg, vk = stack.enter_context(start_postgres(temporary=True, durable=False)), stack.enter_context(start_valkey(temporary=True, durable=False))
        migrate(pg.url)
        print(f"{'scenario':18}{'points':>8}{'tried':>7}{'killed':>8}{'not reached':>13}{'problems':>10}{'lost':>6}{'doubled':>9}{'seconds':>9}", flush=True)
        r = stack.enter_context(rig(pg.url, vk.url, folder / "desks"))
        for name in [args.only] if args.only else SCENARIOS:
            found, report, took = asyncio.run(one(r, name, most, args.lines, args.at_once))
            c = counts(report)
            total += c + Counter(found=found)
            print(f"{name:18}{found:8}{c['tried']:7}{c['killed']:8}{c['away']:13}{c['problems']:10}{c['lost']:6}{c['doubled']:9}{took:9.0f}", flush=True)
            for point, what in report.problems[:20]:
                print(f"  killed at {point}: {what[:1500]}", flush=True)
        planted = counts(asyncio.run(toy(folder)))
    print(f"{total['found']:,} points found, {total['killed']:,} killed, {total['away']} not reached, problems {total['problems']}, lost {total['lost']},"
          f" doubled {total['doubled']}, {time.perf_counter() - begun:.0f} s; baseline, a sender that marks too late: {planted['doubled']} of {planted['killed']} kills double its order")
    raise SystemExit(0 if not total["problems"] and total["killed"] >= 0.7 * total["tried"] and planted["doubled"] else 1)


if __name__ == "__main__":
    main()
