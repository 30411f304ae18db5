"""Backfill: the same gates as one long run, safe to interrupt, clear about what it could not do."""
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import polars as pl
import pytest

import deskbook.gates.backfill as backfill
from deskbook.core.clock import to_ms
from deskbook.core.errors import BadInput, NotFound
from deskbook.gates.backfill import executor_for, month_pieces, plan_backfill, run_backfill, warmup_days
from deskbook.gates.engine import build_gates
from deskbook.gates.settings import GateSettings
from deskbook.market.simulated import simulate_candles
from deskbook.stores.lake import Lake

SMALL = GateSettings(max_samples=60, warmup_samples=8, signature_minutes=240)
NAMES = ["AUD_USD", "BTCUSDT-PERP", "EUR_USD"]


@pytest.fixture(scope="module")
def candles():
    return simulate_candles(NAMES, "2025-10-29", "2025-11-06")


@pytest.fixture
def lake(tmp_path, candles):
    lake = Lake(tmp_path / "lake")
    lake.write_candles(candles, "simulated")
    return lake


def gates_of(lake, **where):
    try: return lake.gates(venue="simulated", **where)
    except NotFound: return None


def test_a_window_with_enough_past_is_a_part_of_the_whole_history(lake, candles):
    """Across a month and read in pieces: the same rows as one run over everything."""
    report = run_backfill(plan_backfill(lake, start="2025-11-04T12:00Z", end="2025-11-06", settings=SMALL))
    whole = build_gates(candles, SMALL).filter(pl.col("time") >= pl.lit("2025-11-04T12:00:00").str.to_datetime(time_zone="UTC", time_unit="ms"))
    stored = gates_of(lake).sort("instrument", "time").select(whole.columns)
    assert report.gates == stored.height == whole.height and report.refused == {}
    assert stored.drop("pinned_lock_in_phase").equals(whole.drop("pinned_lock_in_phase"))


def test_counts_add_up(lake):
    jobs = plan_backfill(lake, start="2025-11-03", end="2025-11-05", settings=SMALL)
    seen = []
    report = run_backfill(jobs, progress=lambda done, of, r: seen.append((done, of, r.instrument)))
    assert seen == [(1, 3, "AUD_USD"), (2, 3, "BTCUSDT-PERP"), (3, 3, "EUR_USD")]
    btc = report.results[1]
    assert (btc.candles, btc.gates, btc.added, btc.changed, btc.removed) == (2880, 180, 180, 0, 0)
    assert btc.warmup_candles == 5 * 1440 and 0 < btc.admitted <= btc.gates
    again = run_backfill(jobs).results[1]
    assert (again.gates, again.added, again.changed) == (180, 0, 0)
    assert report.to_dict()["gates"] == report.gates


def test_flush_removes_what_another_stride_left(lake):
    every = dataclasses.replace(SMALL, stride=4)
    run_backfill(plan_backfill(lake, ["EUR_USD"], "2025-11-03", "2025-11-05", every))
    plain = run_backfill(plan_backfill(lake, ["EUR_USD"], "2025-11-04", "2025-11-05", SMALL))
    assert plain.results[0].removed == 0
    flushed = run_backfill(plan_backfill(lake, ["EUR_USD"], "2025-11-04", "2025-11-05", SMALL, flush=True)).results[0]
    assert (flushed.gates, flushed.added, flushed.removed) == (90, 0, 270), "a gate of both grids is replaced, not removed"
    assert gates_of(lake, start="2025-11-04").height == 90 and gates_of(lake, end="2025-11-04").height > 300


def test_killed_before_the_flush_the_lake_has_too_many_gates_never_too_few(lake, monkeypatch):
    run_backfill(plan_backfill(lake, ["EUR_USD"], "2025-11-04", "2025-11-05", dataclasses.replace(SMALL, stride=60)))
    monkeypatch.setattr(Lake, "delete_gates", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_backfill(plan_backfill(lake, ["EUR_USD"], "2025-11-04", "2025-11-05", SMALL, flush=True))
    assert gates_of(lake, start="2025-11-04").height > 90


def test_compat_is_stored_beside_sound(lake):
    run_backfill(plan_backfill(lake, ["EUR_USD"], "2025-11-03", "2025-11-05", SMALL))
    run_backfill(plan_backfill(lake, ["EUR_USD"], "2025-11-03", "2025-11-05", GateSettings(mode="compat")))
    assert set(gates_of(lake, engine_mode="compat")["engine_mode"]) == {"compat"}
    assert set(gates_of(lake)["engine_mode"]) == {"sound"}


def test_an_executor_gives_the_same_lake(lake, tmp_path, candles):
    other = Lake(tmp_path / "other")
    other.write_candles(candles, "simulated")
    run_backfill(plan_backfill(lake, start="2025-11-03", settings=SMALL))
    with ThreadPoolExecutor(2) as pool: run_backfill(plan_backfill(other, start="2025-11-03", settings=SMALL), pool)
    assert gates_of(lake).equals(gates_of(other))


@pytest.mark.slow
def test_a_process_pool_gives_the_same_lake(lake):
    jobs = plan_backfill(lake, ["EUR_USD"], "2025-11-04", settings=SMALL)
    with executor_for(1) as pool: first = run_backfill(jobs, pool)
    again = run_backfill(jobs).results[0]
    assert first.gates == again.gates and (again.added, again.changed) == (0, 0)


def test_ctrl_c_keeps_finished_instruments_and_the_old_gates_of_the_others(lake, monkeypatch):
    every = dataclasses.replace(SMALL, stride=4)
    run_backfill(plan_backfill(lake, ["EUR_USD"], "2025-11-04", "2025-11-05", every))
    real = backfill._read

    def interrupted(lake, job, a, b):
        if job.instrument == "EUR_USD": raise KeyboardInterrupt
        return real(lake, job, a, b)
    monkeypatch.setattr(backfill, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt): run_backfill(plan_backfill(lake, start="2025-11-04", end="2025-11-05", settings=SMALL, flush=True))
    held = dict(gates_of(lake)["instrument"].value_counts().iter_rows())
    assert held == {"AUD_USD": 90, "BTCUSDT-PERP": 90, "EUR_USD": 360}


def test_a_cut_file_refuses_one_instrument_and_no_other(lake):
    part = next(p for p in lake.partitions("candles") if p["instrument"] == "EUR_USD" and p["month"] == "2025-11")
    path = lake.storage.full(part.path)
    data = open(path, "rb").read()
    jobs = plan_backfill(lake, start="2025-11-03", end="2025-11-05", settings=SMALL)
    open(path, "wb").write(data[:len(data) // 2])
    report = run_backfill(jobs)
    assert list(report.refused) == ["EUR_USD"] and "not a whole Parquet file" in report.refused["EUR_USD"]
    assert set(gates_of(lake)["instrument"]) == {"AUD_USD", "BTCUSDT-PERP"}


def test_refusals_say_how_many_candles_there_were(lake):
    few = run_backfill(plan_backfill(lake, ["BTCUSDT-PERP"], "2025-10-29T00:00Z", "2025-10-29T01:03Z", SMALL))
    assert few.refused == {"BTCUSDT-PERP": "only 63 candles; a gate needs 64"}
    none = run_backfill(plan_backfill(lake, ["EUR_USD"], "2025-11-01", "2025-11-02", SMALL))
    assert none.refused == {"EUR_USD": "no candles between 2025-11-01T00:00:00Z and 2025-11-02T00:00:00Z"}
    assert gates_of(lake) is None


@pytest.mark.parametrize("changes, error, words", [
    ({"instruments": ["EURUSDT"]}, NotFound, "it holds AUD_USD, BTCUSDT-PERP, EUR_USD"),
    ({"start": "2025-11-05", "end": "2025-11-05"}, BadInput, "is not before end"),
    ({"start": "2025-11-06", "end": "2025-11-05"}, BadInput, "start 2025-11-06T00:00:00Z"),
    ({"start": "yesterday"}, BadInput, "yesterday"),
    ({"venue": "oanda"}, NotFound, "venue 'oanda'"),
    ({"warmup": -1}, BadInput, "warmup=-1")])
def test_wrong_input_is_refused_before_anything_runs(lake, changes, error, words):
    with pytest.raises(error, match=words): plan_backfill(lake, **changes)
    assert gates_of(lake) is None


def test_an_empty_lake_says_how_to_fill_it(tmp_path):
    with pytest.raises(NotFound, match="deskbook candles"): plan_backfill(Lake(tmp_path / "empty"))
    with pytest.raises(BadInput, match="workers=-1"): executor_for(-1)


def test_pieces_cover_the_window_once():
    a, b = to_ms("2024-11-17T03:00Z"), to_ms("2026-02-01")
    pieces = list(month_pieces(a, b, 3))
    assert pieces[0][0] == a and pieces[-1][1] == b and all(x[1] == y[0] for x, y in pairwise(pieces)) and len(pieces) == 5


def test_warm_up_covers_the_memory():
    assert warmup_days(GateSettings()) * 1440 * 5 / 7 > 2048 * 16 + 240 and warmup_days(GateSettings(mode="compat")) == 1
