"""The lake keeps its three promises: idempotent, whole or not at all, two writers lose nothing."""
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
import uuid
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.core.errors import BadInput, DataError, NotFound
from deskbook.market.candles import CANDLE_SCHEMA, PRICE_COLUMNS
from deskbook.market.simulated import simulate_candles
from deskbook.stores.lake import FILE, Lake, LakeWrite, only_of, parse_partition, refused_write, relative_to

T0 = 1_761_955_080_000  # 2025-10-31 23:58 UTC, so a few minutes on is another month


def candles(minutes, close=1.1, instrument="EUR_USD"):
    n = len(minutes)
    closes = [close] * n if isinstance(close, float) else close
    return pl.DataFrame({"instrument": [instrument] * n, "time": [T0 + 60_000 * m for m in minutes], **{c: closes for c in PRICE_COLUMNS}},
        schema={"instrument": pl.String, "time": pl.Int64, **dict.fromkeys(PRICE_COLUMNS, pl.Float64)})


@pytest.fixture(params=["path", "file", "memory"])
def lake(request, tmp_path):
    return Lake({"path": str(tmp_path / "lake"), "file": f"file://{tmp_path}/lake", "memory": f"memory://lake-{uuid.uuid4().hex}"}[request.param])


def test_any_url_holds_candles_gates_and_answers_sql(lake):
    week = simulate_candles(["EUR_USD", "BTCUSDT-PERP"], "2025-10-30", "2025-11-04")
    did = lake.write_candles(week, "Simulated", source="simulated market")
    assert (did.added, did.written, did.quarantined) == (week.height, 4, 0)
    assert lake.candles().equals(week.sort("instrument", "time"))
    inv = lake.inventory()
    assert inv.select("venue", "instrument", "timeframe", "source").rows() == [
        ("simulated", "BTCUSDT-PERP", "M1", "simulated market"), ("simulated", "EUR_USD", "M1", "simulated market")]
    assert inv["rows"].sum() == week.height and inv["first"][0] == week["time"].min()
    n = lake.sql("SELECT instrument, venue, month, count(*) AS n FROM candles GROUP BY ALL ORDER BY ALL")
    assert n["n"].sum() == week.height and n["month"].to_list() == ["2025-10", "2025-11"] * 2
    latest = lake.sql("SELECT max(time) AS t FROM candles")
    assert latest.schema["t"] == CANDLE_SCHEMA["time"] and latest["t"][0] == week["time"].max()
    gates = week.select("instrument", "time", hazard=pl.lit(0.4), bits=pl.lit(b"\x00\xff"), reasons=pl.lit(["a", "b"]))
    lake.write_gates(gates, "sound", "simulated")
    assert lake.gates("EURUSD").equals(gates.filter(pl.col("instrument") == "EUR_USD"))


def test_the_same_rows_again_write_no_byte(tmp_path):
    lake = Lake(tmp_path)
    week = simulate_candles(["EUR_USD"], "2025-11-03", "2025-11-05")
    lake.write_candles(week, "simulated")
    stamp = {p: p.stat().st_mtime_ns for p in tmp_path.rglob(FILE)}
    assert lake.write_candles(week.reverse(), "simulated") == LakeWrite(same=week.height, unchanged=1)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob(FILE)} == stamp


@given(st.lists(st.tuples(st.integers(0, 8), st.floats(1.0, 2.0)), min_size=1, max_size=12), st.lists(st.integers(0, 12), max_size=3))
@settings(max_examples=40, deadline=None)
def test_any_split_of_the_input_gives_what_a_dict_would(rows, cuts):
    lake = Lake(f"memory://split-{uuid.uuid4().hex}")
    bounds = sorted({0, len(rows), *(min(c, len(rows)) for c in cuts)})
    for a, b in pairwise(bounds):
        lake.write_candles(candles([m for m, _ in rows[a:b]], [c for _, c in rows[a:b]]), "x")
    got = lake.candles().select(pl.col("time").dt.epoch("ms"), "close").rows()
    assert got == sorted({T0 + 60_000 * m: c for m, c in rows}.items())


@given(st.permutations([0, 1, 2, 3]))
@settings(max_examples=15, deadline=None)
def test_disjoint_writes_commute_to_the_byte(order):
    parts = [candles([3 * k, 3 * k + 1], 1.1 + k / 10) for k in range(4)]
    trees = []
    for seq in (range(4), order):
        lake = Lake(f"memory://order-{uuid.uuid4().hex}")
        for k in seq:
            lake.write_candles(parts[k], "x")
        trees.append({f: lake.storage.read(f) for f in lake.storage.list("candles")})
    assert trees[0] == trees[1]


def test_counts_tell_new_from_changed_from_same(tmp_path):
    lake = Lake(tmp_path)
    lake.write_candles(candles([10, 11, 12], [1.1, 1.2, 1.3]), "x")
    did = lake.write_candles(candles([11, 12, 13], [1.2, 1.9, 1.4]), "x")
    assert (did.added, did.changed, did.same) == (1, 1, 1)


def test_refused_rows_are_kept_with_their_reason_once(tmp_path):
    lake = Lake(tmp_path)
    bad = candles([10, 11, 12, 12], [1.1, -1.0, float("nan"), 1.2])
    for _ in range(2):
        assert lake.write_candles(bad, "oanda", source="oanda file").quarantined == 2
    kept = lake.quarantine()
    assert sorted(kept["reason"]) == ["not_finite", "not_positive"] and kept["source"].unique().to_list() == ["oanda file"]
    nameless = candles([10]).with_columns(instrument=pl.lit(None, pl.String), time=pl.lit(None, pl.Int64))
    assert lake.write_candles(nameless, "oanda").quarantined == 1
    assert lake.quarantine().height == 3


def test_windows_venues_and_unknown_names(tmp_path):
    lake = Lake(tmp_path)
    with pytest.raises(NotFound, match="no candles"):
        lake.candles()
    lake.write_candles(candles(range(10)), "oanda")
    assert lake.candles("EUR_USD", T0 + 60_000, T0 + 180_000)["time"].dt.epoch("ms").to_list() == [T0 + 60_000, T0 + 120_000]
    with pytest.raises(BadInput, match="empty"):
        lake.candles("EUR_USD", T0, T0)
    with pytest.raises(NotFound, match=r"Did you mean 'EUR_USD'"):
        lake.candles("EUR_UST")
    with pytest.raises(NotFound, match="held from oanda"):
        lake.candles("EUR_USD", venue="fxcm")
    with pytest.raises(NotFound, match=r"EUR_USD \(oanda\) 2025-10-31T23:58:00Z to 2025-11-01T00:07:00Z"):
        lake.candles("EUR_USD", "2024-01-01", "2024-01-02")
    with pytest.raises(BadInput, match="not an instrument name"):
        lake.candles("../../etc")
    with pytest.raises(BadInput, match="timeframe"):
        lake.write_candles(candles([1]), "oanda", timeframe="1m")
    with pytest.raises(BadInput, match="venue name"):
        lake.write_candles(candles([1]), "../up")
    lake.write_candles(candles([0]), "fxcm")
    with pytest.raises(BadInput, match="fxcm and oanda"):
        lake.candles("EUR_USD")
    with pytest.raises(BadInput, match=r"query failed.*no_such"):
        lake.sql("SELECT * FROM no_such")


def test_gates_of_other_versions_merge_and_a_window_can_be_flushed(lake):
    first = candles([0, 1, 2, 3, 4]).select("instrument", pl.col("time").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC"), hazard=pl.lit(0.4), tags=pl.lit(["a"]))
    lake.write_gates(first, "sound", "oanda")
    lake.write_gates(first.tail(1).with_columns(hazard=pl.lit(0.5), quality=pl.struct(ok=pl.lit(True))), "sound", "oanda")
    lake.write_gates(first, "compat", "oanda")
    assert lake.gates()["hazard"].to_list() == [0.4] * 4 + [0.5]
    assert lake.delete_gates("EUR_USD", T0 + 60_000, T0 + 240_000) == 3
    assert lake.gates()["time"].dt.epoch("ms").to_list() == [T0, T0 + 240_000]
    assert lake.delete_gates(engine_mode="sound") == 2
    with pytest.raises(NotFound):
        lake.gates()
    assert lake.gates(engine_mode="compat").height == 5


def test_gates_of_two_timeframes_stay_apart(lake):
    def made(minutes, hazard):
        times = pl.from_epoch(pl.Series([T0, T0 + 3_600_000]), "ms").dt.replace_time_zone("UTC")
        return pl.DataFrame({"instrument": ["EUR_USD"] * 2, "time": times, "hazard": [hazard] * 2}).with_columns(asof=pl.col("time") + pl.duration(minutes=minutes))
    lake.write_gates(made(1, 0.1), "sound", "oanda")
    with pytest.raises(DataError, match="2 gates are not made from M1 candles"):
        lake.write_gates(made(60, 0.6), "sound", "oanda")
    lake.write_gates(made(60, 0.6), "sound", "oanda", timeframe="H1")
    assert lake.gates()["hazard"].to_list() == [0.1] * 2 and lake.gates(timeframe="H1")["hazard"].to_list() == [0.6] * 2
    assert lake.delete_gates(timeframe="H1") == 2 and lake.gates().height == 2
    with pytest.raises(BadInput, match="not a timeframe"):
        lake.gates(timeframe="M7")


def test_a_cut_partition_is_named(tmp_path):
    lake = Lake(tmp_path)
    lake.write_candles(candles([10, 11]), "oanda")
    file = next(tmp_path.rglob(FILE))
    file.write_bytes(file.read_bytes()[:-20])
    for read in (lake.candles, lake.inventory, lambda: lake.write_candles(candles([12]), "oanda")):
        with pytest.raises(DataError, match="month=2025-11"):
            read()


def test_a_full_disk_leaves_the_old_content(tmp_path):
    lake = Lake(tmp_path)
    lake.write_candles(candles([10, 11]), "oanda")
    before = next(tmp_path.rglob(FILE)).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DataError, match=r"disk is full.*untouched"):
            lake.write_candles(simulate_candles(["EUR_USD"], "2025-11-03", "2025-11-08"), "oanda")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert next(tmp_path.rglob(FILE)).read_bytes() == before
    assert [p.name for p in tmp_path.rglob("*.tmp")] == []


WRITER = """
import sys, polars as pl
from deskbook.stores.lake import Lake
from deskbook.market.candles import PRICE_COLUMNS
url, rounds, first, step, n = sys.argv[1], *map(int, sys.argv[2:])
lake = Lake(url)
print("ready", flush=True)
sys.stdin.readline()
for k in range(rounds):
    minutes = list(range(first + k * step * n, first + k * step * n + step * n, step))
    price = [1.0 + k / 1e6] * len(minutes)
    lake.write_candles(pl.DataFrame({"instrument": ["EUR_USD"] * len(minutes), "time": [1762128000000 + 60000 * m for m in minutes], **{c: price for c in PRICE_COLUMNS}}), "oanda")
"""


def writer(url, *args, before=""):
    env = {**os.environ, "POLARS_MAX_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", before + WRITER, str(url), *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)


def go(*writers):
    for p in writers:
        p.stdout.readline()
    for p in writers:
        p.stdin.write(b"go\n")
        p.stdin.flush()


def test_two_processes_lose_nothing(tmp_path):
    both = [writer(tmp_path, 25, first, 2, 40) for first in (0, 1)]
    go(*both)
    assert [p.wait(60) for p in both] == [0, 0]
    got = Lake(tmp_path).candles()
    assert got.height == 2 * 25 * 40 and got["time"].is_unique().all()


def test_a_killed_writer_leaves_whole_partitions(tmp_path):
    rng, seen = random.Random(7), 0
    for _ in range(6):
        p = writer(tmp_path, 10_000, seen, 1, 400)
        go(p)
        while not any(tmp_path.rglob(FILE)):
            time.sleep(0.005)
        time.sleep(rng.uniform(0.01, 0.25))
        p.send_signal(signal.SIGKILL)
        p.wait()
        lake = Lake(tmp_path)
        if lake.partitions("candles"):
            got = lake.candles()
            assert got["time"].dt.epoch("ms").to_list() == list(range(1762128000000, 1762128000000 + 60_000 * got.height, 60_000))
            assert got.height >= seen
            assert int(lake.inventory()["rows"].sum()) == got.height
            seen = got.height
    assert seen > 0
    Lake(tmp_path).write_candles(candles([100_000]), "oanda")
    assert all(parse_partition(Path(f).as_posix()) for f in Lake(tmp_path).storage.list("candles"))


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_between_the_bytes_and_the_name(tmp_path, moment):
    """The worst moments: the new bytes are written but not flushed, or flushed but not named."""
    lake = Lake(tmp_path)
    lake.write_candles(candles([0]), "oanda")
    old = {p: p.read_bytes() for p in tmp_path.rglob(FILE)}
    p = writer(tmp_path, 1, 0, 1, 50, before=f"import os, signal\nos.{moment} = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n")
    go(p)
    assert p.wait(60) == -signal.SIGKILL
    assert {p: p.read_bytes() for p in tmp_path.rglob(FILE)} == old and list(tmp_path.rglob("*.tmp"))
    lake.write_candles(candles([100]), "oanda")
    assert lake.candles().height == 2


def test_a_stale_temporary_is_swept_by_the_next_writer(tmp_path):
    lake = Lake(tmp_path)
    lake.write_candles(candles([10]), "oanda")
    stale = next(tmp_path.rglob(FILE)).with_name(f".{FILE}.123.abcd.tmp")
    stale.write_bytes(b"half")
    assert lake.candles().height == 1
    lake.write_candles(candles([11]), "oanda")
    assert not stale.exists()


@pytest.mark.data
def test_real_months_go_in_and_come_out(shared_data, tmp_path):
    lake = Lake(tmp_path)
    for file, n in (("oanda_EURUSD_M1_201405", 15366), ("perp_BTC-PERP_M1_202201", 45031)):
        venue, name = file.split("_")[:2]
        raw = pl.read_parquet(shared_data / "candles" / f"{file}.parquet").with_columns(instrument=pl.lit(name))
        assert lake.write_candles(raw, venue, source=f"{venue} file").added == n
    assert lake.inventory().select("instrument", "rows", "source").rows() == [("EUR_USD", 15366, "oanda file"), ("BTC-PERP", 45031, "perp file")]
    assert len(lake.partitions("candles")) == 1 + 3


part = st.text(alphabet="abz09_-", min_size=1, max_size=8)


@given(st.lists(part, min_size=1, max_size=3), st.lists(part, min_size=1, max_size=3), st.booleans(), st.booleans(), st.booleans())
def test_a_listed_file_is_named_by_its_path_inside_the_lake(root, rel, slash, end, bare):
    given_root = "/" * slash + "/".join(root)
    listed = f"{given_root}/{'/'.join(rel)}"
    assert relative_to(given_root + "/" * end, listed.lstrip("/") if bare else listed) == "/".join(rel)


@pytest.mark.parametrize("code,words", [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EFBIG, "the disk is full"), (errno.EACCES, "Permission denied")])
def test_a_write_that_failed_says_why_in_words(code, words):
    error = refused_write("month=2025-11", OSError(code, os.strerror(code)))
    assert error.what == f"month=2025-11 could not be written to the lake: {words}." and "untouched" in error.todo
    assert "no route to the store" in refused_write("x", OSError("no route to the store")).what


@given(st.integers(1, 9))
def test_gates_are_of_one_timeframe(made):
    gates = pl.DataFrame({"instrument": "EUR_USD", "time": T0, "asof": T0 + 60_000 * made})
    def go(): return only_of(gates, "M1").height
    if made == 1: assert go() == 1
    else:
        with pytest.raises(DataError, match="not made from M1 candles"): go()
