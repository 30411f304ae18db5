"""Compat windows and gates against vectors made by the engine that compat repeats."""
import base64
import csv
import json
import re

import numpy as np
import polars as pl
import pytest

from deskbook.gates.codec import codec_input
from deskbook.gates.compat import compat_windows, plain_windows, signatures
from deskbook.gates.engine import build_gates
from deskbook.gates.payload import frame_payloads, legacy_payload, read_gates_jsonl
from deskbook.gates.settings import REGIMES, GateSettings

pytestmark = pytest.mark.data
GATE_RULES = {
    "week46": {},
    "defaults": {"hazard_percentile": 0.8, "signature_minutes": 60, "admit_regimes": ("trend_bull", "trend_bear"), "min_confidence": 0.55, "lambda_scale": 0.1},
    "cap030": {"hazard_max": 0.30},
}


def read_candles(path, instrument="EUR_USD"):
    raw = pl.read_csv(path, schema_overrides={"t": pl.Int64, **{c: pl.Float64 for c in "ohlcv"}})
    names = {"t": "time", "o": "open", "h": "high", "l": "low", "c": "close", "v": "volume"}
    time = pl.col("time").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")
    return raw.rename(names).with_columns(time, instrument=pl.lit(instrument))


def files(shared_data, pattern, at_least):
    found = sorted((shared_data / "golden-engine").glob(pattern))
    assert len(found) >= at_least, f"only {len(found)} of {pattern}"
    return found


def assert_near(ours, theirs, rel, what):
    np.testing.assert_allclose(ours, theirs, rtol=rel, atol=0, err_msg=what)


@pytest.mark.parametrize("make", [compat_windows, plain_windows], ids=["kernel", "plain"])
def test_codec_windows(shared_data, make):
    for path in files(shared_data, "codec/*.csv", 7):
        case, window, stride, atr = re.fullmatch(r"(\w+)\.w(\d+)s(\d+)a(\d+)\.csv", path.name).groups()
        rows = list(csv.DictReader(path.open()))
        x = codec_input(read_candles(shared_data / "golden-engine" / "inputs" / f"{case}.csv"))
        w = make(x, GateSettings(mode="compat", window=int(window), stride=int(stride), atr_period=int(atr)))
        assert len(w) == len(rows), path.name
        assert x.time_ms[w.start].tolist() == [int(r["start_ms"]) for r in rows]
        assert x.time_ms[w.last].tolist() == [int(r["end_ms"]) for r in rows]
        assert [base64.b64encode(w.codes[a:a + w.window]).decode() for a in w.start] == [r["bits_b64"] for r in rows]
        assert {int(r["bit_length"]) for r in rows} == {8 * w.window}
        assert signatures(w).to_list() == [r["signature"] for r in rows]
        assert [REGIMES[k] for k in w.regime] == [r["regime"] for r in rows]
        for name, ours in w.values.items():
            assert_near(ours, [float(r[name]) for r in rows], 1e-6 if name == "spectral_lowf_share" else 1e-9, f"{path.name} {name}")
        for name, ours in (("delta_scale", w.values["atr_mean"]), ("atr_scale", w.values["atr_mean"]), ("hazard", w.values["rupture"])):
            assert_near(ours, [float(r[name]) for r in rows], 1e-9, f"{path.name} {name}")
        assert {float(r["volume_split"]) for r in rows} == {w.splits.volume}
        assert {float(r["spread_split"]) for r in rows} == {w.splits.spread}
        assert {float(r["pinned_alignment"]) for r in rows} == {1.0}


def test_low_frequency_share_in_all_six_decimals(shared_data):
    "The published share agrees in all six decimals, not only within the tolerance."
    for path in files(shared_data, "codec/*.w64s16a14.csv", 6):
        x = codec_input(read_candles(shared_data / "golden-engine" / "inputs" / f"{path.name.split('.')[0]}.csv"))
        theirs = [float(r["spectral_lowf_share"]) for r in csv.DictReader(path.open())]
        assert compat_windows(x).values["spectral_lowf_share"].tolist() == theirs


def same(ours, theirs, place=""):
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs), place
        for key in theirs:
            same(ours[key], theirs[key], f"{place}.{key}")
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-6 if place.endswith("lowf_share") else 1e-9, abs=0), place
    else:
        assert ours == theirs and type(ours) is type(theirs), place


def test_gate_payloads(shared_data):
    for path in files(shared_data, "gates/*.jsonl", 5):
        case, rule = path.name.split(".")[:2]
        theirs = [json.loads(line) for line in path.read_text().splitlines()]
        candles = read_candles(shared_data / "golden-engine" / "inputs" / f"{case}.csv", theirs[0]["instrument"])
        gates = build_gates(candles, GateSettings(mode="compat", **GATE_RULES[rule]))
        ours = [legacy_payload(p) for p in frame_payloads(gates)]
        assert len(ours) == len(theirs)
        for k, (a, b) in enumerate(zip(ours, theirs)):
            same(a, b, f"{path.name}[{k}]")


def test_archived_documents_survive_reading_and_writing(shared_data):
    for path in files(shared_data, "gates/*.jsonl", 5):
        gates, bad = read_gates_jsonl(path)
        assert not bad
        assert [legacy_payload(p) for p in frame_payloads(gates)] == [json.loads(line) for line in path.read_text().splitlines()]
