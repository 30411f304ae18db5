"""The laws of the engine: stream is rebuild, the future is out of reach, nothing broken gets in."""
import base64
import json
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deskbook.core.errors import BadInput, DataError
from deskbook.gates import sound_kernel, tags
from deskbook.gates.engine import EXTRAS, GateEngine, build_gates, engine_from, engine_from_bytes, engine_state, state_bytes
from deskbook.gates.payload import GATE_SCHEMA, frame_payloads, payload_json
from deskbook.gates.settings import GateSettings
from deskbook.gates.tags import tag_gates
from deskbook.market.candles import clean_candles
from deskbook.market.samples import sample_candles
from deskbook.market.simulated import simulate_candles

SMALL = GateSettings(stride=5, warmup_samples=8, max_samples=60, signature_minutes=200)
PRICES = ["open", "high", "low", "close"]


@pytest.fixture(scope="module")
def eur():
    """Two days of EUR_USD across a weekend, with holes, without some volumes and quotes."""
    c = simulate_candles(["EUR_USD"], "2025-11-07T06:00Z", "2025-11-10T18:00Z", seed=3)
    rng = np.random.default_rng(1)
    c = c.filter(pl.Series(rng.random(c.height) > 0.05))
    gone = pl.Series(rng.random(c.height) < 0.1)
    return c.with_columns(pl.when(gone).then(None).otherwise(pl.col(x)).alias(x) for x in ("volume", "bid_close", "ask_close"))[:1800]


@pytest.fixture(scope="module")
def whole(eur):
    return build_gates(eur, SMALL)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_split_with_a_restart_in_between_gives_the_same_gates(eur, whole, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, eur.height), max_size=5)))
    engine, frames = GateEngine("EUR_USD", SMALL), []
    for a, b in zip([0, *cuts], [*cuts, eur.height]):
        frames.append(engine.push_many(eur[a:b]))
        if data.draw(st.booleans()): engine = engine_from(json.loads(json.dumps(engine_state(engine), allow_nan=False)))
    assert pl.concat(frames).equals(whole)


def test_one_candle_at_a_time_gives_the_same_documents(eur, whole):
    engine, payloads = GateEngine("EUR_USD", SMALL), []
    for i, row in enumerate(eur.iter_rows(named=True)):
        if i in (500, 1100): engine = engine_from_bytes(state_bytes(engine))
        if p := engine.push(row): payloads.append(p)
    assert [p.model_dump() for p in payloads] == [p.model_dump() for p in frame_payloads(whole)]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(0, 1800), seed=st.integers(0, 99))
def test_nothing_reads_past_asof(eur, whole, n, seed):
    """Any prefix gives the same gates, and so does a prefix followed by another future."""
    k = np.random.default_rng(seed).uniform(0.5, 2)
    other = pl.concat([eur[:n], eur[n:].with_columns(*(pl.col(c) * k for c in PRICES), pl.col("volume") * 7)])
    cut = eur["time"][n - 1] if n else eur["time"][0].replace(year=2000)
    known = whole.filter(pl.col("time") <= cut)
    assert build_gates(eur[:n], SMALL).equals(known)
    assert build_gates(other, SMALL).filter(pl.col("time") <= cut).equals(known)


def test_the_frame_is_the_shared_schema_and_strict_json(whole):
    assert dict(whole.schema) == GATE_SCHEMA and whole.height > 200
    for p in frame_payloads(whole.head(40)):
        json.loads(payload_json(p), parse_constant=lambda c: pytest.fail(c))
    floats = whole.select(c for c, t in GATE_SCHEMA.items() if t == pl.Float64())
    assert all(floats[c].is_nan().sum() == 0 and floats[c].is_infinite().sum() == 0 for c in floats.columns)


def test_what_a_gate_says_about_itself(whole):
    assert (whole["asof"] - whole["time"]).dt.total_seconds().unique().to_list() == [60]
    assert (whole["span_s"] >= 64 * 60).all() and (whole["gap_count"] > 0).any()
    assert (whole["hazard"] == whole["rupture"]).all() and (whole["stability"] == 1 - whole["hazard"]).all()
    assert whole["regime_confidence"].is_between(0, 1).all() and (whole["repetitions"] >= 1).all()
    assert (whole["admit"] == (whole["reasons"].list.len() == 0)).all()
    assert {len(b) for b in whole["bits"]} == {64}
    closed = whole.filter(pl.col("span_s") > 40 * 3600)
    assert closed.height and (closed["gap_count"] < 60).all(), "a weekend is not a gap"


def test_bits_are_read_as_direction_most_significant_first(eur, whole):
    gate = whole[-1]
    end = eur.with_row_index().filter(pl.col("time") == gate["time"][0])["index"][0]
    up = np.diff(eur["close"].to_numpy()[end - 64:end + 1]) >= 0
    assert (np.frombuffer(gate["bits"][0], np.uint8) >> 7 == up).all()
    assert gate["hazard"][0] == pytest.approx(np.mean(up[1:] != up[:-1]))


def test_thresholds_come_from_earlier_gates_only(whole):
    hazard = whole["hazard"].to_numpy()
    for i in range(SMALL.warmup_samples, whole.height, 17):
        past = np.sort(hazard[max(0, i - SMALL.max_samples):i])
        assert whole["hazard_threshold"][i] == past[int(0.95 * (len(past) - 1))]
    flag = "hazard_threshold:hazard_warmup"
    assert flag in whole["quality"][0] and flag not in whole["quality"][-1]
    assert frame_payloads(whole[:1])[0].structure_quality["hazard_threshold"] == "hazard_warmup"


@pytest.mark.parametrize("mode", ["sound", "compat"])
def test_a_spread_column_comes_before_the_quotes(eur, mode):
    """As the codec reads it: the column, else the quotes, else the range; a stream reads the same."""
    wide = eur.with_columns(spread=pl.when(pl.int_range(pl.len()) % 6 == 0).then(None).when(pl.int_range(pl.len()) % 6 == 1).then(0.0).otherwise(0.009))
    s = GateSettings(mode=mode, stride=5)
    gates = build_gates(wide, s)
    assert set(gates["spread_split"]) == {0.009} and gates.height > 90
    assert (build_gates(eur, s)["spread_split"] < 0.009).all()
    if mode == "compat": return
    engine = GateEngine("EUR_USD", s)
    made = [p for row in wide[:600].iter_rows(named=True) if (p := engine.push(row))]
    assert [p.model_dump() for p in made] == [p.model_dump() for p in frame_payloads(build_gates(wide[:600], s))]


@pytest.mark.parametrize("mode", ["sound", "compat"])
@pytest.mark.parametrize("column", ["volume", "ask_close", "spread"])
def test_an_infinite_volume_or_quote_is_an_unknown_one(eur, column, mode):
    hit = pl.int_range(pl.len()) % 50 == 7
    s, tape = GateSettings(mode=mode, stride=5), eur.with_columns(spread=pl.lit(None, pl.Float64))
    spoilt, unknown = (build_gates(tape.with_columns(pl.when(hit).then(x).otherwise(pl.col(column)).alias(column)), s) for x in (math.inf, None))
    assert spoilt.equals(unknown)


def test_a_long_compat_window_needs_no_context(eur):
    gates = build_gates(eur, GateSettings(mode="compat", window=300, stride=50))
    assert gates.height == (eur.height - 300) // 50 + 1 and {len(b) for b in gates["bits"]} == {300}
    with pytest.raises(BadInput, match="context=240"): GateSettings(window=300)


def test_two_instruments_do_not_touch_each_other(eur, whole):
    both = pl.concat([eur, simulate_candles(["BTCUSDT-PERP"], "2025-11-08", "2025-11-09")])
    assert build_gates(both, SMALL).filter(pl.col("instrument") == "EUR_USD").equals(whole)


def test_a_window_rebuilt_from_a_later_start_has_the_same_gates(eur, whole):
    """With enough candles before it: gates stand on the clock and every memory is bounded."""
    late = build_gates(eur[400:], SMALL)
    a, b = late.filter(pl.col("time") > eur["time"][1400]), whole.filter(pl.col("time") > eur["time"][1400])
    assert a.drop("pinned_lock_in_phase").equals(b.drop("pinned_lock_in_phase"))


def test_extras_are_numbers_beside_the_same_gates(eur, whole):
    more = build_gates(eur, SMALL, extras=True)
    assert more.select(whole.columns).equals(whole)
    assert [c for c in more.columns if c not in whole.columns] == [*EXTRAS, "coherence_delta", "lambda_slope"]
    assert more["coherence_delta"][1:].to_list() == whole["coherence"].diff()[1:].to_list()
    rate = more.filter(pl.col("hazard") < 1)
    assert np.allclose(rate["hazard_rate"], -np.log(1 - rate["hazard"]))


def tape(close, start="2025-11-03T00:00Z"):
    base = simulate_candles(["BTCUSDT-PERP"], start, "2025-11-03T12:00Z")[:len(close)]
    close = np.asarray(close, float)
    opened = np.r_[close[0], close[:-1]]
    return base.with_columns(open=opened, high=np.maximum(opened, close), low=np.minimum(opened, close), close=close, volume=pl.lit(3.0))


def test_a_constant_tape_is_flat_and_says_so():
    g = build_gates(tape(np.full(400, 100.0)))
    last = g.row(-1, named=True)
    assert (last["hazard"], last["coherence"], last["regime"], last["domain_wall_slope"]) == (0, 1, "neutral", 0)
    assert [last[c] for c in ("reynolds_ratio", "temporal_half_life", "spectral_lowf_share", "spatial_corr_length")] == [None] * 4
    assert {"reynolds_ratio:flat", "temporal_half_life:flat", "spectral_lowf_share:flat", "spatial_corr_length:no_walls"} <= set(last["quality"])
    assert all(frame_payloads(g)), "a flat tape is still a valid document"


def test_an_alternating_tape_turns_always():
    last = build_gates(tape(np.where(np.arange(400) % 2, 100.0, 100.1))).row(-1, named=True)
    assert (last["hazard"], last["spatial_corr_length"], last["temporal_half_life"]) == (1, 0, 0)
    assert last["reynolds_ratio"] < 0.01 and last["coherence_tau_slope"] == pytest.approx(1 / 3)


def test_a_trend_is_named_and_pointed_at():
    up = 100 * np.exp(np.cumsum(np.repeat(np.tile([4e-4, 1e-4], 40), 5)))
    g = build_gates(tape(up))
    assert set(g["regime"]) == {"trend_bull"} and set(g["direction"]) == {"BUY"}
    down = build_gates(tape(1e4 / up))
    assert set(down["regime"]) == {"trend_bear"} and set(down["direction"]) == {"SELL"}


@pytest.mark.parametrize("n", [0, 1, 8, 63])
def test_fewer_candles_than_a_window_give_no_gate(eur, n):
    assert build_gates(eur[:n]).height == 0 and dict(build_gates(eur[:n]).schema) == GATE_SCHEMA


def test_64_candles_give_one_gate_when_they_end_on_the_grid():
    c = simulate_candles(["BTCUSDT-PERP"], "2025-11-03T00:00Z", "2025-11-03T02:00Z")
    assert build_gates(c[:63]).height == 0 and build_gates(c[:64]).height == 1
    assert build_gates(c[:64])["asof"][0].isoformat() == "2025-11-03T01:04:00+00:00"


BROKEN = {
    "unsorted": (lambda c: c[::-1], "comes after"),
    "duplicated": (lambda c: pl.concat([c[:70], c[69:]]), "comes twice"),
    "NaN": (lambda c: c.with_columns(close=pl.when(pl.int_range(pl.len()) == 80).then(math.nan).otherwise("close")), "close nan"),
    "null": (lambda c: c.with_columns(open=pl.when(pl.int_range(pl.len()) == 80).then(None).otherwise("open")), "open nan"),
    "negative": (lambda c: c.with_columns(*(pl.when(pl.int_range(pl.len()) == 80).then(-1.0).otherwise(x).alias(x) for x in PRICES)), "close -1.0"),
    "infinite": (lambda c: c.with_columns(high=pl.when(pl.int_range(pl.len()) == 80).then(math.inf).otherwise("high")), "high inf"),
    "high below close": (lambda c: c.with_columns(high=pl.when(pl.int_range(pl.len()) == 80).then(pl.col("low") * 0.9).otherwise("high")), "has open"),
}


@pytest.mark.parametrize("mode", ["sound", "compat"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_candles_are_refused_by_name_and_change_nothing(eur, name, mode):
    spoil, words = BROKEN[name]
    with pytest.raises(DataError, match=words) as e: build_gates(spoil(eur[:200]), GateSettings(mode=mode))
    assert "EUR_USD" in str(e.value) and "2025-11-" in str(e.value) and "clean_candles" in str(e.value)
    if mode == "sound":
        engine = GateEngine("EUR_USD", SMALL)
        engine.push_many(eur[:50])
        before = state_bytes(engine)
        with pytest.raises(DataError): engine.push_many(spoil(eur[50:200]))
        assert state_bytes(engine) == before


@pytest.mark.parametrize("name", ["unsorted", "duplicated", "NaN", "negative"])
def test_cleaned_candles_are_taken(eur, name):
    clean = clean_candles(BROKEN[name][0](eur[:200])).candles
    assert build_gates(clean, SMALL).height > 20


def test_a_late_candle_names_both_times_and_changes_nothing(eur):
    engine = GateEngine("EUR_USD", SMALL)
    rows = eur[:300].rows(named=True)
    for row in rows: engine.push(row)
    before = state_bytes(engine)
    for row, words in ((rows[-1], "is late"), (rows[10], "is late"), (rows[-1] | {"time": rows[-1]["time"].replace(year=2026), "close": math.nan}, "close nan")):
        with pytest.raises(DataError, match=words): engine.push(row)
        assert state_bytes(engine) == before
    with pytest.raises(DataError, match=r"2025-11-07T06:\d\d:00Z is late; the engine already took 2025-11-07T1"): engine.push(rows[10])


def test_incomplete_candles_are_ignored(eur):
    engine = GateEngine("EUR_USD", SMALL)
    assert engine.push(eur.row(0, named=True) | {"complete": False}) is None and engine.candles == 0
    half = eur.with_columns(complete=pl.int_range(pl.len()) < 900)
    assert build_gates(half, SMALL).equals(build_gates(eur[:900], SMALL))


def test_the_step_is_compiled_once_for_all_callers(eur):
    """A second signature would be a second compilation, and perhaps other instructions."""
    engine = GateEngine("EUR_USD", SMALL)
    engine.push(eur.row(0, named=True))
    engine.push_many(eur[1:600])
    tag_gates(build_gates(eur, SMALL))
    assert len(sound_kernel._advance.signatures) == len(tags._tag.signatures) == 1


def test_other_candle_lengths_scale_times_and_nothing_else(eur):
    """The same prices as five-minute candles: the same measures, five times the seconds."""
    minute = tape(1e2 * np.exp(np.random.default_rng(0).normal(0, 1e-4, 700).cumsum()))
    start = minute["time"][0]
    five = minute.with_columns(time=start + (pl.col("time") - start) * 5)
    a, b = build_gates(minute), build_gates(five, GateSettings(timeframe="M5"))
    same = [c for c in a.columns if c not in ("time", "asof", "span_s", "temporal_half_life", "repetitions")]
    assert a.height == b.height and a.select(same).equals(b.select(same))
    assert (b["asof"] - b["time"]).dt.total_seconds().unique().to_list() == [300] and (b["span_s"] == 5 * a["span_s"]).all()
    assert np.allclose(b["temporal_half_life"].fill_null(0), 5 * a["temporal_half_life"].fill_null(0))
    assert (b["gap_count"] == 0).all()


def test_only_sound_streams():
    with pytest.raises(BadInput, match="compat"): GateEngine("EUR_USD", GateSettings(mode="compat"))


def test_state_is_strict_json_and_damage_is_noticed(eur):
    engine = GateEngine("EUR_USD", SMALL)
    engine.push_many(eur)
    state = json.loads(state_bytes(engine), parse_constant=lambda c: pytest.fail(c))
    assert len(state_bytes(engine)) < 60_000
    for change in ({"version": 9}, {"hist": state["hist"][:40]}, {"marks": [1, 2]}, {"hazards": {"kind": "prior"}}, {"tags": {}}, {"settings": {"window": 4}}):
        with pytest.raises((DataError, BadInput)): engine_from(state | change)
    with pytest.raises(DataError): engine_from_bytes(state_bytes(engine)[:-30])


@pytest.mark.data
@pytest.mark.parametrize("case, changes", [("week46", {}), ("cap030", {"hazard_max": 0.30})])
def test_compat_frames_are_the_golden_payloads(shared_data, case, changes):
    folder = shared_data / "golden-engine"
    raw = pl.read_csv(folder / "inputs" / "eur1000.csv")
    candles = raw.select(instrument=pl.lit("EUR_USD"), time=pl.from_epoch("t", "ms").dt.replace_time_zone("UTC"), open="o", high="h", low="l", close="c", volume=pl.col("v").cast(float))
    gates = build_gates(candles, GateSettings(mode="compat", **changes))
    golden = [json.loads(line) for line in (folder / "gates" / f"eur1000.{case}.jsonl").read_text().splitlines()]
    assert gates.height == len(golden)
    for row, want in zip(gates.iter_rows(named=True), golden):
        assert (row["time"].timestamp() * 1000, row["admit"], row["reasons"], row["repetitions"], row["direction"], row["regime"], row["signature"]) == (
            want["ts_ms"], want["admit"], want["reasons"], want["repetitions"], want["direction"], want["regime"]["label"], want["structure"]["signature"])
        assert base64.b64encode(row["bits"]).decode() == want["components"]["bits_b64"]
        numbers = {k: v for k, v in (want["structure"] | want["regime"] | want["components"]["codec_meta"]).items() if k in GATE_SCHEMA and isinstance(v, float)}
        assert {k: row[k] for k in numbers} == {k: pytest.approx(v, rel=1e-9, abs=1e-6 if k == "spectral_lowf_share" else 1e-12) for k, v in numbers.items()}


@pytest.mark.data
def test_real_candles_pass_through_and_lean_on_nothing_later(shared_data, monkeypatch):
    monkeypatch.setenv("DESKBOOK_SAMPLE_CANDLES", str(shared_data / "candles"))
    candles, source = sample_candles("EUR_USD", n=4000)
    whole = build_gates(candles)
    assert "simulated" not in source.lower() and whole.height > 200
    assert whole[:100].equals(build_gates(candles[:3000])[:100])
