"""Gate documents, frames and files: nothing lost, nothing invented, bad rows named."""
import json
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deskbook.core.errors import DataError, NotFound
from deskbook.gates.payload import (CODEC_META, GATE_SCHEMA, REGIME_FEATURES, STRUCTURE_METRICS, GatePayload, empty_gates, frame_payloads, gates_frame, legacy_payload,
    payload_from_json, payload_json, payload_schema, read_gates_jsonl, write_gates_jsonl)

FLAT = {"instrument": "AUD_USD", "ts_ms": 1762131780000, "ts": "2025-11-03T01:03:00+00:00", "hazard": 0.506849, "hazard_threshold": 0.506849, "lambda": 0.506849,
        "admit": True, "reasons": "", "regime": "neutral", "regime_confidence": 0.5, "coherence": 0.020449, "stability": 0.493151, "entropy": 0.979551, "repetitions": 1}
LIVE = {"instrument": "AUD_USD", "ts_ms": 1762131780000, "admit": True, "direction": "FLAT", "lambda": 0.506849, "hazard": 0.506849, "hazard_threshold": 0.506849,
        "repetitions": 1, "structure": {"coherence": 0.020449, "stability": 0.493151, "entropy": 0.979551, "signature": "c0.020_s0.493_e0.980"},
        "regime": {"label": "neutral", "confidence": 0.5}, "components": {}, "reasons": [], "source": "regime_manifold"}

unit = st.floats(0, 1)
number = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))
moments = st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1)).map(lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000, tzinfo=UTC))
codes = st.lists(st.sampled_from(["hazard_exceeds_adaptive_threshold", "hazard_fallback_requested", "regime_filtered", "regime_confidence_low"]), unique=True)


@st.composite
def gate_rows(draw):
    time = draw(moments)
    row = {"instrument": draw(st.sampled_from(["EUR_USD", "BTCUSDT-PERP"])), "time": time, "asof": time + timedelta(minutes=1), "price_close": draw(number),
           "hazard": draw(unit), "hazard_threshold": draw(unit), "lambda": draw(unit), "reasons": draw(codes), "regime": draw(st.sampled_from(["neutral", "insufficient"])),
           "regime_confidence": draw(unit), "repetitions": draw(st.integers(1, 10**6)), "signature": draw(st.just("c0.020_s0.493_e0.980")), "direction": draw(st.sampled_from(["BUY", "SELL", "FLAT"]))}
    row["admit"] = not row["reasons"]
    row |= {name: draw(number) for name in (*STRUCTURE_METRICS, *REGIME_FEATURES, *CODEC_META)}
    return row | {"bits": draw(st.one_of(st.none(), st.binary(max_size=70))), "gap_count": draw(st.one_of(st.none(), st.integers(0, 10**6))), "span_s": draw(st.integers(0, 10**9)),
                  "engine_mode": draw(st.sampled_from(["sound", "compat"])), "semantic_tags": draw(st.lists(st.sampled_from(["highly_stable", "improving_stability"]), unique=True)),
                  "quality": draw(st.lists(st.sampled_from(["temporal_half_life:uncorrelated", "reynolds_ratio:flat"]), unique=True)),
                  "pinned_lock_in_phase": draw(st.one_of(st.none(), st.integers(0, 999)))}


@settings(max_examples=60, deadline=None)
@given(st.lists(gate_rows(), max_size=5))
def test_frame_document_and_file_say_the_same(tmp_path_factory, rows):
    frame = pl.DataFrame(rows, schema=GATE_SCHEMA, orient="row")
    assert gates_frame(frame_payloads(frame)).equals(frame)
    path = write_gates_jsonl(frame, tmp_path_factory.mktemp("gates") / "gates.jsonl")
    back, bad = read_gates_jsonl(path)
    assert back.equals(frame) and not bad and back.schema == pl.Schema(GATE_SCHEMA)
    for payload in frame_payloads(frame, computed_at_ms=1762131840000):
        assert payload_from_json(payload_json(payload)) == payload
        assert payload_from_json(json.dumps(legacy_payload(payload))).hazard == payload.hazard


def test_both_old_shapes_are_one_gate():
    flat, live = GatePayload.model_validate(FLAT), GatePayload.model_validate(LIVE)
    assert gates_frame([flat]).equals(gates_frame([live]))
    row = gates_frame([flat]).row(0, named=True)
    assert row["signature"] == "c0.020_s0.493_e0.980" and row["asof"] - row["time"] == timedelta(minutes=1)
    assert (row["reasons"], row["engine_mode"], row["gap_count"]) == ([], "compat", None)


@pytest.mark.parametrize("change, read", [
    ({"admit": 1}, {"admit": True}), ({"admit": 0}, {"admit": False}), ({"instrument": "aud_usd"}, {"instrument": "AUD_USD"}),
    ({"reasons": "regime_filtered|regime_confidence_low"}, {"reasons": ["regime_filtered", "regime_confidence_low"]}),
    ({"reasons": ["regime_filtered"]}, {"reasons": ["regime_filtered"]}), ({"reasons": None}, {"reasons": []}),
    ({"ts_ms": None}, {"ts_ms": 1762131780000}), ({"ts_ms": "1762131780000"}, {"ts_ms": 1762131780000}), ({"ts_ms": 1762131780000.0}, {"ts_ms": 1762131780000}),
    ({"roc_forward_pct": {"5": 0.01}, "run_mode": "rolling", "repetition_count": 1}, {"repetitions": 1}),
    ({"action": "ARMED", "trap_door_high": 0.655}, {"action": "ARMED", "trap_door_high": 0.655}),
])
def test_variants_of_the_shapes(change, read):
    for base in (FLAT, LIVE | {"ts": FLAT["ts"]}):
        payload = GatePayload.model_validate(base | change)
        assert {name: getattr(payload, name) for name in read} == read


@pytest.mark.parametrize("change, why", [
    ({"hazard": 1.5}, "hazard"), ({"hazard": -0.1}, "hazard"), ({"hazard": None}, "hazard"), ({"lambda": "high"}, "lambda"), ({"admit": 2}, "admit"), ({"direction": "LONG"}, "direction"),
    ({"instrument": ""}, "instrument"), ({"regime": None}, "label"), ({"reasons": 3}, "reasons"), ({"ts_ms": None, "ts": None}, "no ts_ms"), ({"ts_ms": None, "ts": "soon"}, "soon"),
    ({"repetitions": -1}, "repetitions"), ({"repetitions": 2**70}, "repetitions"), ({"bits_b64": "%%"}, "bits_b64"), ({"engine_mode": "magic"}, "engine_mode"), ({"entropy": "much"}, "entropy"),
])
def test_rows_that_are_no_gates(change, why):
    with pytest.raises(DataError, match=f"(?i){why}"):
        payload_from_json(json.dumps(FLAT | change))


def test_files_keep_the_good_lines(tmp_path):
    good = json.dumps(FLAT).encode()
    lines = [good, b"", b'{"instrument": "AUD_USD"', json.dumps(LIVE).encode(), b"[1]", good.replace(b"0.506849", b"NaN"), b"\xff\xfe", b"null", good.replace(b"0.506849", b"1e999"), b"  ", good]
    path = tmp_path / "gates.jsonl"
    path.write_bytes(b"\n".join(lines))
    gates, bad = read_gates_jsonl(path)
    assert gates.height == 3
    assert [b.line for b in bad] == [3, 5, 6, 7, 8, 9]
    assert "NaN" in bad[2].why and all(b.why for b in bad)
    path.write_bytes(b"\r\n".join([good, good]))
    assert read_gates_jsonl(path).gates.height == 2
    path.write_bytes(b"")
    assert read_gates_jsonl(path).gates.equals(empty_gates())
    with pytest.raises(NotFound, match="no gates file"):
        read_gates_jsonl(tmp_path / "none.jsonl")


def test_a_half_written_file_loses_only_its_last_line(tmp_path):
    path = write_gates_jsonl(gates_frame([GatePayload.model_validate(FLAT)] * 5), tmp_path / "gates.jsonl")
    path.write_bytes(path.read_bytes()[:-40])
    gates, bad = read_gates_jsonl(path)
    assert (gates.height, [b.line for b in bad]) == (4, [5])


def test_writing_is_strict(tmp_path):
    frame = gates_frame([GatePayload.model_validate(FLAT)]).with_columns(autocorr=pl.lit(float("nan")), reynolds_ratio=pl.lit(float("inf")))
    path = write_gates_jsonl(frame, tmp_path / "gates.jsonl")
    row = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in the file"))
    assert row["autocorr"] is None and row["reynolds_ratio"] is None
    with pytest.raises(DataError, match="row 0"):
        frame_payloads(frame.with_columns(hazard=pl.lit(2.0)))
    with pytest.raises(ValidationError):
        GatePayload.model_validate(FLAT | {"price_close": float("nan")})


def test_fallback_is_repeated_in_the_components():
    frame = gates_frame([GatePayload.model_validate(FLAT | {"admit": 0, "reasons": "hazard_exceeds_adaptive_threshold|hazard_fallback_requested"})])
    assert frame_payloads(frame)[0].components.fallback_mode == "optical_required"
    assert "fallback_mode" not in legacy_payload(GatePayload.model_validate(FLAT))["components"]


def test_candle_length_sets_asof():
    row = gates_frame([GatePayload.model_validate(FLAT)], candle_ms=3_600_000).row(0, named=True)
    assert row["asof"] - row["time"] == timedelta(hours=1)
    said = gates_frame([GatePayload.model_validate(FLAT | {"asof_ms": 1762131780000 + 5000})], candle_ms=3_600_000).row(0, named=True)
    assert said["asof"] - said["time"] == timedelta(seconds=5)


def test_json_schema_names_every_field():
    schema = payload_schema()
    assert set(schema["properties"]) == {f.alias or name for name, f in GatePayload.model_fields.items()}
    assert {"schema_version", "asof_ms", "computed_at_ms", "engine_mode", "structure_quality", "gap_count", "pinned_lock_in_phase"} <= set(schema["properties"])
    json.dumps(schema, allow_nan=False)
