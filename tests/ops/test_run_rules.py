"""The laws of a run's rules, without files or kernels."""
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskbook.core.errors import BadInput, DataError
from deskbook.ops.evidence import CheckRecord, ErrorRecord, Evidence, StepRecord, sealed
from deskbook.ops.runbook import Earlier, Results, changed, counted, final_verdict, own_name, put, step_key, step_number

NOW = "2025-11-04T06:00:00Z"
names = st.sampled_from(["fetch", "rebuild gates", "compare"])
statuses = st.sampled_from(["running", "done", "failed", "terminated"])
checks = st.lists(st.builds(CheckRecord, name=names, passed=st.sampled_from([True, False, None])), max_size=4)


def evidence(**changes) -> Evidence: return Evidence(**({"run_id": "20251104T060000Z-1f9c2a", "runbook": "gate_history", "started": NOW} | changes))


def a_step(name="fetch", status="running", key="k") -> StepRecord: return StepRecord(name=name, key=key, status=status, started=NOW)


@given(st.lists(names))
def test_a_name_stands_once_where_it_first_stood_with_what_was_said_last(said):
    records: list[dict] = []
    for n, name in enumerate(said): records = put(records, {"name": name, "n": n})
    assert [r["name"] for r in records] == list(dict.fromkeys(said))
    assert all(r["n"] == max(n for n, name in enumerate(said) if name == r["name"]) for r in records)


@given(st.sampled_from(["running", "failed", "terminated", "died", "timed_out"]), st.text(max_size=9))
def test_a_change_takes_back_every_end_but_a_seal(status, title):
    before = sealed(evidence(status=status, verdict="FAIL", reason="r", error=ErrorRecord(type="E", message="m")), NOW, 1.0)
    after = changed(before, title=title)
    assert {k for k, v in after.model_dump().items() if v != evidence().model_dump()[k]} <= {"title", "pid"} and after.title == title
    with pytest.raises(DataError, match="sealed"): changed(before.model_copy(update={"status": "done"}), title=title)


@given(st.lists(st.builds(a_step, names, statuses), max_size=4), checks, st.lists(st.text(min_size=1), max_size=2))
def test_a_run_passes_only_with_every_step_done_and_a_check_and_no_doubt(steps, checks, questions):
    verdict, reason = final_verdict(evidence(steps=steps, checks=checks), questions)
    undone = any(s.status != "done" for s in steps)
    assert (verdict == "FAIL") == (undone or any(c.passed is False for c in checks))
    assert (verdict == "PASS") == (not undone and bool(checks) and all(c.passed for c in checks) and not questions)
    assert reason


def test_the_same_work_is_the_same_runbook_step_and_key():
    one = evidence(parameters={"week": 44})
    assert len({step_key(e, n) for e in (one, evidence(parameters={"week": 45}), evidence(parameters={"week": 44}, runbook="other"), evidence(parameters={"week": 44}, inputs=[{"name": "a", "sha256": "b"}])) for n in ("fetch", "compare")}) == 8
    assert step_key(one, "fetch", "all") == step_key(evidence(parameters={"week": 45}), "fetch", "all") != step_key(one, "fetch", "none")
    assert step_key(one, "fetch") == "ec9857d6fc1ac5bf", "interrupted runs of older versions can be continued"


@given(st.lists(st.tuples(names, statuses), max_size=3, unique_by=lambda t: t[0]), names)
def test_only_what_was_done_with_this_key_is_taken_over_from_its_own_number(steps, name):
    before = Earlier(Path("run"), evidence(steps=[a_step(n, s) for n, s in steps]))
    done = dict(steps).get(name) == "done"
    assert before.results(name, "k") == (Path(f"run/steps/{step_number(before.evidence.steps, name):02d}.json") if done else None)
    assert before.results(name, "other") is None


@pytest.mark.parametrize("bad", [True, "many", None, [1]])
def test_counts_are_numbers(bad):
    with pytest.raises(BadInput, match="'gates' of step 'fetch' is no number"): counted(a_step(), {"gates": bad})


@pytest.mark.parametrize("name", ["", ".", "../x.csv", "plots/../../x.csv", "/tmp/x.csv", "steps", "steps/01.json", "evidence.json", "plots/evidence.json", "log.jsonl", "report.html", "report.ipynb"])
def test_a_run_saves_only_below_its_folder_and_never_over_its_own_files(name):
    with pytest.raises(BadInput, match="cannot save"): own_name(name)


def test_after_a_call_that_works_again_every_later_call_of_the_step_works_again(tmp_path):
    calls = lambda r, gates: [r.call(lambda: gates).__class__, r.call(object).__class__, r.call(lambda: gates)]  # noqa: E731
    calls(Results(tmp_path / "01.json", "fetch", "k"), 312)
    again = Results(tmp_path / "again" / "01.json", "fetch", "k", earlier=tmp_path / "01.json")
    assert calls(again, 298) == [int, object, 298] and again.worked
    assert [c.get("value") for c in again.calls] == [{"json": 312}, None, {"json": 298}]
