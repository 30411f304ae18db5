"""The strategy profile: what is refused, which layer wins, and that no spelling of a file can loosen a rule by accident."""
from dataclasses import fields
from decimal import Decimal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deskbook.core.errors import BadInput, NotFound
from deskbook.trading.profile import BundleRule, Guards, Profile, SessionRule, load_profile, merge, profile_for, read_profile

NAMES = [f.name for f in fields(Guards)]
VALUES = st.floats(-5, 5, allow_nan=False).map(lambda x: round(x, 3))
GUARDS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5).filter(
    lambda g: all(g.get(f"min_{m}", -9) <= g.get(f"max_{m}", 9) for m in ("temporal_half_life", "spatial_corr_length")))
TREES = st.recursive(st.integers() | st.none(), lambda t: st.dictionaries(st.sampled_from("abc"), t, max_size=3), max_leaves=8).filter(lambda t: isinstance(t, dict))


@given(TREES, TREES, TREES)
def test_layers_are_merged_from_the_left_and_the_later_one_wins(a, b, c):
    assert merge(merge(a, b), c) == merge(a, b, c)
    assert merge(a, a) == a == merge({}, a) == merge(a, {})
    for k, v in b.items():
        assert merge(a, b)[k] == (merge(a[k], v) if isinstance(v, dict) and isinstance(a.get(k), dict) else v)


@given(TREES, TREES)
def test_merging_changes_none_of_its_layers(a, b):
    before = repr((a, b))
    made = merge(a, b)
    for v in made.values():
        if isinstance(v, dict):
            v["new"] = 1
    assert repr((a, b)) == before


@given(GUARDS, GUARDS, GUARDS)
def test_guards_reach_listed_and_unlisted_instruments_alike(top, everywhere, own):
    try:
        profile = read_profile({"guards": top, "global": {"guards": everywhere}, "instruments": {"EUR_USD": {"guards": own}}})
    except BadInput as e:  # layers may contradict one another
        assert "is above" in str(e)
        return
    for name in NAMES:
        assert getattr(profile_for(profile, "GBP_USD").guards, name) == everywhere.get(name, top.get(name))
        assert getattr(profile_for(profile, "EUR_USD").guards, name) == own.get(name, everywhere.get(name, top.get(name)))


@given(st.text(max_size=40))
def test_any_text_is_a_profile_or_a_typed_error(text):
    try:
        assert isinstance(load_profile("\n" + text), Profile)
    except BadInput:
        pass


WRONG = {
    "top level": ("guard: {}", "Did you mean 'guards'?"),
    "guard": ("guards: {min_coherance: 1}", "guards.min_coherance. Did you mean 'min_coherence'?"),
    "global": ("global: {hazard_maxx: 1}", "global.hazard_maxx. Did you mean 'hazard_max'?"),
    "instrument": ("instruments: {EUR_USD: {sesion: '07:00,17:00'}}", "Did you mean 'session'?"),
    "bundle": ("bundles: {MB003: {min_scor: 1}}", "Did you mean 'min_score'?"),
    "session": ("instruments: {EUR_USD: {session: {start: 07:00, stop: 17:00}}}", "session.stop"),
    "exit": ("global: {exit: {max_hold: 5}}", "Did you mean 'max_hold_minutes'?"),
    "not a number": ("guards: {max_entropy: high}", "guards.max_entropy is 'high'"),
    "nan": ("guards: {max_entropy: .nan}", "a finite number"),
    "infinite": ("guards: {max_entropy: .inf}", "a finite number"),
    "truth value": ("guards: {max_entropy: true}", "a finite number"),
    "flag": ("global: {allow_flip: 'false'}", "true or false"),
    "repetitions": ("global: {min_repetitions: 0}", "whole number from 1"),
    "stop above one": ("global: {stop_loss_pct: 5}", "to 1"),
    "twice": ("global: {hazard_max: 1}\nglobal: {hazard_max: 2}", "twice"),
    "same instrument twice": ("instruments: {EUR_USD: {}, EUR/USD: {}}", "named twice"),
    "two names for guards": ("global: {guards: {}, guard_thresholds: {}}", "which are the same"),
    "minimum above maximum": ("guards: {min_spatial_corr_length: 2, max_spatial_corr_length: 1}", "is above"),
    "half a session": ("global: {session: {start: 07:00}}", "needs start and end"),
    "no mapping": ("- guards", "is no mapping"),
    "no YAML": ("guards: {", "not YAML"),
    "python object": ("guards: !!python/object/apply:os.getcwd []", "not YAML"),
}


@pytest.mark.parametrize("text, said", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_refused_and_named(text, said):
    with pytest.raises(BadInput) as e:
        load_profile(text + "\n")
    assert said in str(e.value)


def test_everything_that_is_wrong_is_told_at_once():
    with pytest.raises(BadInput) as e:
        load_profile("guards: {min_coherance: 1, max_entropy: .nan}\nglobal: {allow_flip: 2}")
    assert all(word in str(e.value) for word in ("min_coherance", "max_entropy", "global.allow_flip"))


@pytest.mark.parametrize("said", ["{start: 07:00, end: 17:00}", "{open: '07:00', close: '17:00'}", "'07:00,17:00'", "07:00-17:00"])
def test_every_form_of_a_session_is_the_same(said):
    assert load_profile(f"global: {{session: {said}}}").global_.session == SessionRule(420, 1020)


def test_times_are_no_numbers_in_base_sixty():
    assert load_profile("global: {session: {start: 17:00, end: 9:30}}").global_.session == SessionRule(1020, 570)
    assert yaml.safe_load("17:00") == 1020, "the trap this guards against"


def test_null_takes_a_value_back():
    profile = load_profile("guards: {max_entropy: 0.9}\nglobal: {session: '07:00,17:00'}\ninstruments: {EUR_USD: {guards: {max_entropy: null}, session: null}, GBP_USD: }")
    assert (profile_for(profile, "EUR_USD").guards.max_entropy, profile_for(profile, "EUR_USD").session) == (None, None)
    assert profile_for(profile, "GBP_USD").guards.max_entropy == 0.9 and profile_for(profile, "GBP_USD").session == SessionRule(420, 1020)


def test_bundles_are_merged_and_a_list_leaves_only_its_own():
    profile = load_profile("""
bundles: {MB003: {hold_minutes: 360}, NB001: {exposure_multiplier: 0.75}, CB002: {enabled: false}}
global: {bundles: {MB003: {min_score: 0.4}}}
instruments:
  EUR_USD: {bundles: [MB003]}
  GBP_USD: {bundles: {NB001: {enabled: false}}}
""")
    assert profile.bundles["MB003"] == BundleRule(min_score=0.4, hold_minutes=360)
    assert {k: b.enabled for k, b in profile_for(profile, "EUR_USD").bundles.items()} == {"MB003": True, "NB001": False, "CB002": False}
    assert profile_for(profile, "EUR_USD").bundles["MB003"].hold_minutes == 360
    assert not profile_for(profile, "GBP_USD").bundles["NB001"].enabled and profile_for(profile, "GBP_USD").bundles["NB001"].exposure_multiplier == Decimal("0.75")


def test_a_file_and_its_text_say_the_same(tmp_path):
    text = "guards:\n  min_pinned_alignment: 0.93\n  min_temporal_half_life: 1.5 s\n  max_coherence_tau_slope: negative\n"
    (tmp_path / "p.yaml").write_text(text)
    assert load_profile(tmp_path / "p.yaml") == load_profile(str(tmp_path / "p.yaml")) == load_profile(text)
    assert load_profile(text).global_.guards.min_temporal_half_life == 1.5
    with pytest.raises(NotFound):
        load_profile(tmp_path / "q.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput):
        load_profile(tmp_path / "b.yaml")
    assert load_profile("") == load_profile(None)
