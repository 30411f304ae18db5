"""Every reason that can stand in a decision has a sentence for people."""
import ast
import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings

sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_decide import situations

from deskbook.trading import controls, decide, guards, intake, manager, orders, risk, sessions, sizing, stack
from deskbook.trading.decide import decide as decided
from deskbook.trading.guards import gate_reasons
from deskbook.trading.orders import REASONS, explain
from deskbook.trading.profile import Guards, InstrumentProfile

# What writes reasons, and the words in it that are none.
WRITERS = {
    guards.age_reasons: {"asof_ms", "ts_ms"}, guards.hazard_reasons: set(), guards.regime_reasons: set(),
    guards.other_reasons: {"semantic_tags", "bundle_blocks", "st_peak"}, guards.gate_reasons: set(),
    sessions.session_at: {"profile_open"}, stack.plan_entry: set(), stack.price_reasons: set(), stack.plan_exits: set(),
    decide.signal_of: {"ts_ms", "hold_minutes"}, decide.exit_orders: set(), decide.sized: set(), decide.decide: set(),
    manager.controls: set(), manager.refused_plan: set(), manager.read_gates: set(), manager.read_prices: {"account_currency"},
    manager.exit_blocks: {"reconciled_at"}, manager.entry_blocks: set(), intake.why_not: {"reconciled_at"}, intake.overtaken: set(), sizing.size: set(), sizing.caps: set(),
    risk.over_limits: set(), risk.over_losses: set(), risk._not_known: set(), risk._unusable: set(), risk.evaluate: set(),
    orders.check_units: set(), orders.check_kind: {"order_types", "time_in_force"}, orders.check_intent: {"stop_price"}}


def words_of(function):
    """Texts of a function that look like a reason: small words joined by underscores, whole or up to a colon."""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)) if not inspect.getsource(function).startswith(" ")
                     else "class _:\n" + inspect.getsource(function))
    texts = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return {m[1] for t in texts if (m := re.fullmatch(r"([a-z]+(?:_[a-z]+)+):?", t))}


@pytest.mark.parametrize("writer", WRITERS, ids=lambda f: f.__qualname__)
def test_every_reason_in_the_code_has_a_sentence(writer):
    assert words_of(writer) - WRITERS[writer] - REASONS.keys() == set()


def test_every_cap_on_a_size_has_a_sentence():
    made = [n for f in (sizing.caps, sizing.fixed_caps) for n in ast.walk(ast.parse(inspect.getsource(f))) if isinstance(n, ast.Dict)]
    names = {k.value for d in made for k in d.keys if k}
    assert len(names) == 12 and names - REASONS.keys() == set()


def test_every_guard_has_its_sentences():
    low, high = InstrumentProfile(guards=Guards(**{f.name: 0.5 for f in fields(Guards)})), {"admit": True, "repetitions": 1, "ts_ms": 0}
    metrics = {guards.metric_of(f.name) for f in fields(Guards)}
    for value in (None, 0.4, 0.6):
        said = gate_reasons(high | {"structure": dict.fromkeys(metrics, value)}, low, 0)
        assert len(said) >= 4 and set(said) <= REASONS.keys()


def test_every_refusal_of_a_control_has_a_sentence():
    family = [controls.NotAllowed]
    while family and (one := family.pop()):
        assert one.reason in REASONS
        family += one.__subclasses__()


@settings(deadline=None)
@given(situations())
def test_no_decision_has_a_reason_without_words(i):
    assert "no explanation" not in explain(decided(i).reasons)


def test_a_reason_with_a_name_behind_it_is_explained_too():
    assert explain(["bundle_block:CB002"]) == "the gate itself blocks this bundle [bundle_block:CB002]"
    assert all(text and text[0].islower() and not text.endswith(".") and key == key.strip() for key, text in REASONS.items() if not text.startswith("Valkey"))
