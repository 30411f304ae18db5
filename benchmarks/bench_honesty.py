"""How often does the study see an edge where there is none, and how often does it find one that is there?

Simulated weeks of seven pairs, gates from the sound engine every 16 minutes, the study's own primary tests
(`primary_tests`, Holm over all pairs, horizons and sides at 5 %). The simulated market is a martingale, so every rejection
in a week without a planted edge is a false one. The archived study's rule is judged on the same weeks.

    python benchmarks/bench_honesty.py            # 1,000 weeks, and 200 for each planted edge
    python benchmarks/bench_honesty.py --quick    # 50 and 20
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"):
    os.environ.setdefault(name, "1")  # two processes share the machine

PAIRS = ("AUD_USD", "EUR_USD", "GBP_USD", "NZD_USD", "USD_CAD", "USD_CHF", "USD_JPY")
START, END, LAST = "2024-03-03", "2024-03-10", "2024-03-11"  # a week, and candles one day past it
HORIZONS = (5, 15, 30, 60, 240)
EDGE_PAIR, EDGE_BP, EDGE_MIN = "EUR_USD", 2.0, 60


def gates_and_candles(seed: int, edge=None):
    from deskbook.core.clock import to_datetime
    from deskbook.gates.engine import build_gates
    from deskbook.market.simulated import simulate_candles
    import polars as pl

    candles = simulate_candles(PAIRS, START, LAST, seed=seed, edge=edge)
    return build_gates(candles).filter(pl.col("time") < to_datetime(END)), candles


def sound_p(gates, candles, cost: str):
    """Holm-adjusted p-values, shape (horizons, pairs, sides)."""
    import numpy as np
    from deskbook.studies.forward import forward_returns
    from deskbook.studies.inference import adjust
    from deskbook.studies.outcomes import StudyConfig, primary_tests

    fr = forward_returns(gates, candles, HORIZONS, cost, excursions=False, threads=0)
    p = np.array([tests.p for _, tests in primary_tests(fr, StudyConfig(horizons_min=HORIZONS, cost_model=cost, stride_min=16)).values()])
    return p, adjust(p.ravel()).reshape(p.shape)


def legacy_rejections(gates, candles) -> dict:
    """What the archived study would have said of the same week, gross: its two-sided p below 5 % after Holm within one
    pair, for any cell of the family; the same for positive means only; and a naive reading of raw p-values."""
    import numpy as np
    from deskbook.studies.costs import resolve_cost
    from deskbook.studies.inference import adjust
    from deskbook.studies.legacy import legacy_samples, normal_p, t_statistic
    import polars as pl

    either = positive = raw = False
    cells = wrong = 0
    for name in PAIRS:
        own, cost = gates.filter(pl.col("instrument") == name), resolve_cost("none", name, candles)
        bars = candles.filter(pl.col("instrument") == name)
        t = [t_statistic(legacy_samples(own, h, cost, bars).return_pct) for h in HORIZONS]
        p = [None if x is None else normal_p(x) for x in t]
        hit = list(adjust(np.array([np.nan if x is None else x for x in p])) < 0.05)
        either |= any(hit)
        positive |= any(h and x > 0 for h, x in zip(hit, t) if x is not None)
        raw |= any(q is not None and q < 0.05 for q in p)
        cells, wrong = cells + len(hit), wrong + int(np.sum(hit))
    return {"any": either, "positive": positive, "raw": raw, "cell_share": wrong / cells}


def keep_draws() -> None:
    """The study draws the same replicates for the same grid, block and seed; keep them from week to week."""
    from functools import lru_cache

    from deskbook.studies import cells

    if not hasattr(cells.replicate_weights, "cache_info"): cells.replicate_weights = lru_cache(maxsize=24)(cells.replicate_weights)


def one_week(job: tuple) -> dict:
    seed, kind = job
    keep_draws()
    from deskbook.market.simulated import PlantedEdge

    if kind == "noise":
        gates, candles = gates_and_candles(seed)
        out = {"seed": seed, "kind": kind, "legacy": legacy_rejections(gates, candles)}
        for cost in ("none", "quoted"):
            p, q = sound_p(gates, candles, cost)
            out[cost] = {"rejected": bool((q < 0.05).any()), "smallest_p": float(p.min()), "raw_share": float((p < 0.05).mean()), "by_horizon": [(p[k] < 0.05).mean() for k in range(len(HORIZONS))]}
        return out
    edge = PlantedEdge(EDGE_BP, EDGE_MIN, (EDGE_PAIR,) if kind == "one" else PAIRS)
    gates, candles = gates_and_candles(seed, edge)
    pairs = [PAIRS.index(EDGE_PAIR)] if kind == "one" else list(range(len(PAIRS)))
    out = {"seed": seed, "kind": kind}
    for cost in ("none", "quoted"):
        p, q = sound_p(gates, candles, cost)
        k = HORIZONS.index(EDGE_MIN)
        out[cost] = {"cell_60": float((q[k][pairs, 0] < 0.05).mean()), "any_long": bool((q[:, pairs, 0] < 0.05).any()), "raw_60": float((p[k][pairs, 0] < 0.05).mean())}
    return out


def check_same_as_study() -> None:
    """The benchmark's tests are those of the whole study: same p-values to the last digit."""
    from deskbook.studies.outcomes import StudyConfig, run_outcome_study
    import numpy as np

    gates, candles = gates_and_candles(0)
    cells = run_outcome_study(gates, candles, StudyConfig(start=START, end=END, horizons_min=HORIZONS, stride_min=16, splits=())).cells
    _, q = sound_p(gates, candles, "quoted")
    assert np.array_equal(cells["p_holm_family"].to_numpy(), q.transpose(1, 0, 2).ravel()), "the study and this benchmark disagree"


def wilson(k: int, n: int) -> str:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(k, n, method="wilson")
    return f"{k / n:6.1%}  ({k}/{n}, 95 % Wilson {low:.1%} to {high:.1%})"


def main(argv=None) -> int:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--weeks", type=int, default=1000)
    a.add_argument("--planted", type=int, default=None, help="weeks per planted edge (default: a fifth of --weeks)")
    a.add_argument("--quick", action="store_true")
    a.add_argument("--processes", type=int, default=2)
    a.add_argument("--seed", type=int, default=10_000)
    o = a.parse_args(argv)
    weeks = 50 if o.quick else o.weeks
    planted = o.planted if o.planted is not None else max(1, (20 if o.quick else weeks // 5))
    began = time.perf_counter()
    check_same_as_study()
    jobs = [(o.seed + i, "noise") for i in range(weeks)] + [(o.seed + i, kind) for kind in ("one", "all") for i in range(planted)]
    done = []
    with ProcessPoolExecutor(o.processes, mp_context=get_context("spawn")) as pool:
        for r in pool.map(one_week, jobs, chunksize=5):
            done.append(r)
            if len(done) % 50 == 0: print(f"{len(done)}/{len(jobs)} weeks, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    noise = [r for r in done if r["kind"] == "noise"]
    import numpy as np

    print(f"{weeks} simulated weeks without an edge, {len(PAIRS)} pairs, {len(HORIZONS)} horizons, 2 sides: {2 * len(PAIRS) * len(HORIZONS)} tests a week")
    ok = True
    for cost in ("none", "quoted"):
        k = sum(r[cost]["rejected"] for r in noise)
        raw = np.mean([r[cost]["by_horizon"] for r in noise], axis=0)
        print(f"  sound, cost {cost:7s} a false edge anywhere {wilson(k, weeks)}   raw p < 5 % by horizon " + " ".join(f"{x:.1%}" for x in raw))
        ok &= k / weeks <= 0.05
    for key, text in (("any", "legacy Holm, either sign"), ("positive", "legacy Holm, positive mean"), ("raw", "legacy raw p, either sign")):
        print(f"  {text:27s} a false edge anywhere {wilson(sum(r['legacy'][key] for r in noise), weeks)}")
    print(f"  legacy: share of cells called significant after its Holm {np.mean([r['legacy']['cell_share'] for r in noise]):.1%}")
    for kind, text in (("one", f"{EDGE_PAIR} only"), ("all", "all pairs")):
        rows = [r for r in done if r["kind"] == kind]
        for cost in ("none", "quoted"):
            cell, any_long, raw = (np.mean([r[cost][x] for r in rows]) for x in ("cell_60", "any_long", "raw_60"))
            print(f"  planted {EDGE_BP:g} bp at {EDGE_MIN} min, {text:13s} cost {cost:7s} found at 60 min {cell:6.1%} of pairs, some horizon of them {any_long:6.1%} of weeks, one test alone {raw:6.1%}  (n={len(rows)})")
    print(f"{time.perf_counter() - began:.0f} s on {o.processes} processes; family-wise rate at most 5 %: {'yes' if ok else 'NO'}")
    print(json.dumps({"weeks": weeks, "false_edge_none": sum(r["none"]["rejected"] for r in noise), "false_edge_quoted": sum(r["quoted"]["rejected"] for r in noise), "false_edge_legacy": sum(r["legacy"]["any"] for r in noise)}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
