"""What may be started, and what a run that continues another one keeps; no kernel."""
import os
from pathlib import Path

import pytest
from books import book

from deskbook.core.errors import BadInput, LockHeld
from deskbook.core.redaction import Redactor
from deskbook.ops.evidence import Evidence, write_evidence
from deskbook.ops.runner import Limits, Plan, Stop, Tail, Watch, plan_run

ID, LATER = "20251104T060000Z-1f9c2a", "20251104T070000Z-aaaaaa"


def earlier(reports: Path, runbook: str = "gate_history", **changes) -> None:
    facts = {"run_id": ID, "runbook": runbook, "started": "2025-11-04T06:00:00Z", "status": "failed", "parameters": {"window": 128, "gone_since": 1}}
    write_evidence(reports / runbook / ID, Evidence(**(facts | changes)))


def planned(tmp_path: Path, resume: str = ID, **given) -> Plan: return plan_run(str(book(tmp_path)), given, tmp_path / "reports", Redactor(), resume)


def test_a_plan_starts_nothing_and_holds_every_parameter(tmp_path):
    plan = planned(tmp_path, "", window="32", mode="live")
    assert (plan.name, plan.live, plan.earlier) == ("gate_history", True, None)
    assert plan.parameters["window"] == 32 and plan.parameters["instruments"] == ["EUR_USD", "USD_JPY"]
    assert not planned(tmp_path, "").live and not (tmp_path / "reports").exists()


def test_a_run_that_continues_keeps_its_parameters(tmp_path):
    earlier(tmp_path / "reports", parameters={"window": 128})
    plan = planned(tmp_path, ID[:12])
    assert (plan.parameters["window"], plan.earlier.run_id) == (128, ID) and planned(tmp_path, window="128") == plan
    with pytest.raises(BadInput, match="'window' was 128"): planned(tmp_path, window="64")


@pytest.mark.parametrize("state,error,words", [
    (dict(status="done", verdict="PASS"), BadInput, "nothing to resume"),
    (dict(runbook="weekly_signal_study"), BadInput, "one of weekly_signal_study, not of gate_history"),
    (dict(status="running", pid=os.getpid(), started="2999-01-01T00:00:00Z"), LockHeld, "still going"),
])
def test_what_cannot_be_continued(tmp_path, state, error, words):
    earlier(tmp_path / "reports", **state)
    with pytest.raises(error, match=words): planned(tmp_path)
    with pytest.raises(BadInput, match="no run"): planned(tmp_path, LATER)


def test_who_asked_to_stop_comes_before_a_limit(tmp_path):
    watch = Watch(Tail(tmp_path / "log.jsonl"), Limits(run_s=1, began=0.0), Stop(), print)
    assert (watch.ended(watch.look()).status, watch.ended(watch.look()).type) == ("timed_out", "Timeout")
    watch.stop.name = "SIGINT"
    assert (watch.look(), watch.ended(watch.look()).status, watch.ended("SIGINT").message) == ("SIGINT", "terminated", "stopped by SIGINT")
