"""Readers: every encoding, round trips, torn lines, files cut short."""
import gzip
import json
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.core.errors import BadInput, DataError
from deskbook.market.candles import PRICE_COLUMNS, QUOTE_COLUMNS, clean_candles
from deskbook.market.readers import detect_columns, epoch_ms, moment_ms, number, read_file, read_json_candles, read_members, read_table, time_column
from deskbook.market.samples import sample_candles
from deskbook.market.simulated import simulate_candles

DAY = simulate_candles(["EUR_USD"], "2025-11-03", "2025-11-04")
BTC = simulate_candles(["BTCUSDT-PERP"], "2025-11-03", "2025-11-03T06:00Z")
MID = [*PRICE_COLUMNS, "volume"]


def objects(df, side=None, text=True):
    """Prices of one side of each candle as OANDA writes them."""
    pre = "" if side in (None, "mid") else f"{side}_"
    return [{k: (f"{v:.10g}" if text else v) for k, v in zip("ohlc", row)} for row in df.select(f"{pre}{p}" for p in PRICE_COLUMNS).iter_rows()]


def same_mid(a, b):
    """Equal up to the last bit of a middle between bid and ask."""
    return ms(a) == ms(b) and all(np.allclose(a[c], b[c], rtol=1e-15, atol=0) for c in MID)


def ms(df):
    return df["time"].dt.epoch("ms").to_list()


def encode(df, how):
    t, v = ms(df), df["volume"].to_list()
    if how == "flat":
        return [{"t": a, **o, "v": x} for a, o, x in zip(t, objects(df, text=False), v)]
    if how == "streamer":
        return [{"t": a, "mid": o, "v": int(x), "complete": True} for a, o, x in zip(t, objects(df), v)]
    if how == "backfill":
        return [{"t": str(a), "mid": o, "vol": int(x)} for a, o, x in zip(t, objects(df), v)]
    sides = {"M": ["mid"], "BA": ["bid", "ask"], "MBA": ["mid", "bid", "ask"]}[how]
    iso = df["time"].dt.strftime("%Y-%m-%dT%H:%M:%S.000000000Z")
    parts = {s: objects(df, s) for s in sides}
    return [{"time": a, "complete": True, "volume": int(x), **{s: parts[s][k] for s in sides}} for k, (a, x) in enumerate(zip(iso, v))]


@pytest.mark.parametrize("how", ["flat", "streamer", "backfill"])
def test_stored_members_give_the_candles_they_were_made_of(how):
    members = [json.dumps(o) for o in encode(DAY, how)]
    got = read_members([m.encode() if k % 2 else m for k, m in enumerate(members)], "eur_usd")
    assert got.bad.is_empty() and got.quarantine.is_empty()
    assert got.candles.select("instrument", "time", *MID).equals(DAY.select("instrument", "time", *MID))


@pytest.mark.parametrize("how", ["M", "BA", "MBA"])
def test_oanda_json(how):
    got = read_json_candles({"instrument": "EUR_USD", "granularity": "M1", "candles": encode(DAY, how)})
    assert same_mid(got.candles, DAY)
    quotes = got.candles.select(QUOTE_COLUMNS)
    assert quotes.equals(DAY.select(QUOTE_COLUMNS)) if "B" in how else all(c.is_null().all() for c in quotes)


def test_oanda_with_one_side_uses_that_side():
    got = read_json_candles({"instrument": "EUR_USD", "candles": [{k: v for k, v in o.items() if k != "ask"} for o in encode(DAY.head(3), "BA")]})
    assert got.candles["close"].to_list() == DAY["bid_close"].head(3).to_list()


def test_bybit_json_newest_first(tmp_path):
    rows = [[str(t), *map(str, r), "1"] for t, r in zip(ms(BTC), BTC.select(MID).iter_rows())][::-1]
    doc = {"retCode": 0, "retMsg": "OK", "result": {"category": "linear", "symbol": "BTCUSDT", "list": rows}, "time": 1}
    (tmp_path / "kline.json").write_text(json.dumps(doc))
    got = read_file(tmp_path / "kline.json")
    assert got.candles.select("instrument", "time", *MID).equals(BTC.select("instrument", "time", *MID))
    with pytest.raises(DataError, match="Too many visits"):
        read_json_candles({"retCode": 10006, "retMsg": "Too many visits!", "result": {}})
    with pytest.raises(DataError, match="Insufficient authorization"):
        read_json_candles({"errorMessage": "Insufficient authorization to perform request."})


JUNK = ['{"t": 1762', "INFO started", "[1, 2]", "null", '"text"', "{}", '{"t": 1762128000000, "o": "x", "h": 1, "l": 1, "c": 1}', "\x00\x01", '{"t": NaN}']


@given(st.lists(st.tuples(st.booleans(), st.integers(0, len(JUNK) - 1)), max_size=25))
@settings(max_examples=60, deadline=None)
def test_junk_lines_never_cost_a_good_line(plan):
    good = [json.dumps(o) for o in encode(DAY.head(len(plan)), "flat")]
    lines = [good[k] if ok else JUNK[j] for k, (ok, j) in enumerate(plan)]
    got = read_members(lines, "EUR_USD")
    assert ms(got.candles) == [t for t, (ok, _) in zip(ms(DAY), plan) if ok]
    assert got.candles.height + got.quarantine.height == len(lines)
    assert all(not plan[n - 1][0] for n in got.bad["line"])


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "json", "jsonl", "csv.gz", "jsonl.gz"])
def test_files_round_trip(tmp_path, ending):
    f = tmp_path / f"x.{ending}"
    table = DAY.with_columns(pl.col("time").dt.epoch("ms"))
    kind = ending.split(".")[0]
    data = {"parquet": lambda: _bytes(DAY.write_parquet), "csv": lambda: table.write_csv().encode(), "tsv": lambda: table.write_csv(separator="\t").encode(),
        "json": lambda: json.dumps(encode(DAY, "flat")).encode(), "jsonl": lambda: "\n".join(map(json.dumps, encode(DAY, "flat"))).encode()}[kind]()
    f.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    got = read_file(f, "EURUSD")
    columns = DAY.columns if kind in ("parquet", "csv", "tsv") else ["instrument", "time", *MID]
    assert got.candles.select(columns).equals(DAY.select(columns)) and got.quarantine.is_empty()


def _bytes(write):
    import io
    b = io.BytesIO()
    write(b)
    return b.getvalue()


@pytest.mark.parametrize("unit", [1, 1_000, 1_000_000, 1_000_000_000])
@pytest.mark.parametrize("as_text", [False, True])
def test_epochs_of_any_unit(unit, as_text):
    t = pl.Series("time", [x // 1000 * unit for x in ms(DAY)])
    got = time_column(t.cast(pl.String) if as_text else t)
    assert got.to_list() == DAY["time"].to_list()


@pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S+00:00", "%Y.%m.%d %H:%M", "%d.%m.%Y %H:%M:%S.000", "%Y/%m/%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f"])
def test_written_times(form):
    assert time_column(DAY["time"].dt.strftime(form)).to_list() == DAY["time"].to_list()


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30), st.lists(st.integers(), max_size=2)))
@settings(max_examples=200, deadline=None)
def test_number_and_moment_never_raise(value):
    for f in (number, moment_ms):
        out = f(value)
        assert out is None or isinstance(out, (int, float))


def test_epoch_units_do_not_overlap():
    t = 1_762_131_780
    assert [epoch_ms(t * k) for k in (1, 1e3, 1e6, 1e9)] == [t * 1000] * 4 and epoch_ms(20251103) is None


def test_csv_faults(tmp_path):
    f = tmp_path / "x.csv"
    f.write_bytes(b"\xef\xbb\xbfTime;Open;High;Low;Close\r\n1762128000;1,1;1;1;1\r\n\r\n1762128060;1.1;1.1;1.1;1.1\r\n1762128120;1.1;1.1;1.1;1.1;9\r\n")
    got = read_file(f, "EURUSD")
    assert got.candles.height == 1 and got.clean.reasons == {"not_finite": 1} and got.bad.rows() == [(5, "6 fields instead of 5", "1762128120;1.1;1.1;1.1;1.1;9")]
    f.write_text("1762128000,1.1,1.1,1.1,1.1,5\n1762128060,1.1,1.1,1.1,1.1,6\n")
    assert read_file(f, "EURUSD").candles["volume"].to_list() == [5.0, 6.0]
    f.write_text("")
    with pytest.raises(DataError, match="is empty"):
        read_file(f, "EURUSD")
    f.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"no column for time, open.*--map"):
        read_file(f, "EURUSD")
    f.write_text("time,open,high,low,close\n1762128000,1.1,1.1,1.1,1.1\n")
    with pytest.raises(DataError, match="--instrument"):
        read_file(f)


def test_files_that_cannot_be_read(tmp_path):
    whole = _bytes(DAY.write_parquet)
    for name, data, words in (("a.parquet", whole[:-9], "whole Parquet"), ("b.parquet", b"", "whole Parquet"), ("c.parquet", whole[:4] + whole[len(whole) // 2:], "whole Parquet"),
            ("d.json", b'{"candles": [', "not JSON"), ("e.csv.gz", gzip.compress(b"x" * 999)[:20], "whole gzip")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=words):
            read_file(tmp_path / name, "EURUSD")
    with pytest.raises(DataError, match="cannot be read"):
        read_file(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="cannot be read"):
        (tmp_path / "dir.csv").mkdir()
        read_file(tmp_path / "dir.csv")
    with pytest.raises(BadInput, match="no kind of file"):
        read_file(tmp_path / "x.xls")


def test_two_sided_table_without_mid():
    got = read_table(DAY.drop(*PRICE_COLUMNS), "EURUSD")
    assert same_mid(got.candles, DAY)


def test_explicit_mapping_beats_detection():
    df = DAY.with_columns(last=pl.lit(math.nan), mine=pl.col("close")).drop("close")
    assert read_table(df).candles.height == 0
    assert read_table(df, mapping={"close": "mine"}).candles.height == DAY.height
    assert detect_columns(["askopen", "bo", "Ask Close"]) == {"ask_open": "askopen", "bid_open": "bo", "ask_close": "Ask Close"}


def test_incomplete_rows_are_counted():
    rows = encode(DAY.head(4), "streamer")
    rows[-1]["complete"] = False
    assert read_json_candles(rows, "EURUSD").clean.reasons == {"incomplete": 1}


def test_samples_say_what_they_are(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    df, source = sample_candles("EURUSD", 10)
    assert source == "EUR_USD, simulated market" and df.height == 10
    DAY.drop("instrument").write_parquet(tmp_path / "oanda_EURUSD_M1_202511.parquet")
    monkeypatch.setenv("DESKBOOK_SAMPLE_CANDLES", str(tmp_path))
    df, source = sample_candles("EUR_USD")
    assert source == "EUR_USD, oanda file, November 2025" and df.equals(clean_candles(DAY).candles)
    monkeypatch.setenv("DESKBOOK_SAMPLE_CANDLES", str(tmp_path / "absent"))
    with pytest.raises(DataError, match="not a folder"):
        sample_candles("EUR_USD")


@pytest.mark.data
def test_every_stored_file_reads_by_name(shared_data):
    for f in sorted((shared_data / "candles").glob("*.parquet")):
        got = read_file(f, f.name.split("_")[1])
        assert got.candles.height == pl.read_parquet(f, columns=["close"])["close"].drop_nulls().len(), f.name
