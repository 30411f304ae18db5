"""What a review of the live desk found in the rules that decide."""
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_decide import E1, NOW, RULES, a_gate, holding, inputs, ticket

from deskbook.core.errors import BadInput
from deskbook.core.settings import Settings
from deskbook.trading.decide import ExitFacts, decide
from deskbook.trading.guards import gate_reasons
from deskbook.trading.profile import BundleRule, ExitRule, load_profile
from deskbook.trading.stack import hold_s

HOUR = 3_600_000


# ---- clocks

@pytest.mark.parametrize("facts", [ExitFacts(attempts=3, last_ms=NOW + HOUR), ExitFacts(refused=3, last_ms=NOW + HOUR)])
def test_a_clock_that_was_set_back_holds_up_no_exit(facts):
    assert decide(holding(ticket(until=NOW), exits={E1: facts})).verdict == "exit"


# ---- a gate that is not there says nothing

@pytest.mark.parametrize("gate", [{}, a_gate(asof_ms=NOW - 181_000), a_gate(asof_ms=NOW + 60_000), a_gate(asof_ms=None, ts_ms=None), a_gate(instrument="USD_JPY")])
def test_only_a_gate_of_now_that_does_not_admit_closes(gate):
    rules = replace(RULES, exit=ExitRule(exit_on_block=True))
    assert decide(holding(gate=gate, rules=rules)).verdict == "hold"
    assert decide(holding(gate=a_gate(admit=False), rules=rules)).reasons == ("gate_blocked",)


@pytest.mark.parametrize("version, reasons", [(1, ()), (None, ()), (2, ("gate_schema_unknown",)), ("1", ("gate_schema_unknown",)), (True, ("gate_schema_unknown",))])
def test_a_gate_of_another_version_admits_nothing(version, reasons):
    assert gate_reasons(a_gate(schema_version=version), RULES, NOW) == reasons


# ---- words and numbers of a foreign producer

def test_a_hold_without_measure_is_a_year_at_most():
    rules = replace(RULES, bundles={"MB003": BundleRule()})
    gate = a_gate(bundle_hits=[{"id": "MB003", "action": "promote", "score": 0.9, "hold_minutes": 1e308}])
    plan = decide(inputs(gate, rules=rules))
    assert plan.verdict == "enter" and plan.hold_until_ms == NOW + 366*24*HOUR
    assert hold_s(RULES, 60.0, 1800) == 3600


# ---- profiles

@pytest.mark.parametrize("text", ["", "\n", "# guards: {min_coherence: 0.5}\n", "---\n", "null\n", "~"])
def test_a_profile_that_is_named_and_holds_nothing_is_an_error(text, tmp_path):
    (file := tmp_path / "profile.yaml").write_text(text)
    with pytest.raises(BadInput, match="holds nothing"):
        load_profile(file)
    assert load_profile(None).global_.guards == load_profile("{}").global_.guards


# ---- a market that is closed

def test_an_exit_is_tried_once_an_hour_while_the_venue_does_not_trade():
    def after(minutes, tradeable):
        facts = ExitFacts(attempts=5, last_ms=NOW - minutes*60_000)
        i = holding(ticket(until=NOW), exits={E1: facts if minutes else ExitFacts()})
        quotes = {n: replace(q, tradeable=tradeable, time_ms=NOW - 40*HOUR) for n, q in i.portfolio.quotes.items()}
        return decide(replace(i, portfolio=replace(i.portfolio, quotes=quotes)))
    assert after(59, False).reasons == ("hold_expiry", "instrument_not_tradeable")
    assert [after(*how).verdict for how in ((0, False), (60, False), (59, True))] == ["exit"]*3


# ---- settings

FLOATS = [name for name, f in Settings.model_fields.items() if f.annotation is float]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_limit_is_set_to_what_is_no_number(name, value):
    """With GATE_MAX_AGE_SECONDS=nan no gate was ever too old."""
    assert len(FLOATS) > 10
    with pytest.raises(ValidationError):
        Settings(**{name: value})


def test_an_age_limit_that_is_no_number_lets_nothing_pass():
    assert gate_reasons(a_gate(), RULES, NOW, float("nan")) == ("gate_stale",)
