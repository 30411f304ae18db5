"""Prometheus' own judge of the rules: what is gone stays an alert, and the opening of a market is none."""
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "rules.yaml"
SEVERITY = {r["alert"]: r["labels"]["severity"] for r in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}


@pytest.fixture
def alerts(system_tool, tmp_path):
    """alerts(name, at, **series): how many are firing; the first minute is a Thursday at midnight."""
    promtool = system_tool("promtool", "prometheus")
    shutil.copy(RULES, tmp_path / "rules.yaml")

    def ask(name, at, labels, series, values):
        none = {"eval_time": at, "alertname": name, "exp_alerts": []}
        one = {"eval_time": at, "alertname": name, "exp_alerts": [{"exp_labels": {"severity": SEVERITY[name], **labels}, "exp_annotations": None}]}

        def holds(case):
            test = {"rule_files": ["rules.yaml"], "evaluation_interval": "15s", "tests": [{"interval": "1m", "input_series": [{"series": series, "values": values}], "alert_rule_test": [case]}]}
            (tmp_path / "t.yaml").write_text(yaml.safe_dump(test))
            done = subprocess.run([promtool, "test", "rules", "t.yaml"], cwd=tmp_path, capture_output=True, text=True)
            said = done.stdout + done.stderr
            assert "parse" not in said and "error" not in said.lower(), said
            return done.returncode == 0

        silent = holds(none)
        assert silent or not holds({**one, "eval_time": "0s"}), "a wrong test would pass"
        return not silent

    return ask


GATE = 'sep_gate_age_seconds{instrument="EUR_USD"}'


def test_a_gate_that_is_gone_goes_on_alerting(alerts):
    assert alerts("GateOld", "14m", {"instrument": "EUR_USD"}, GATE, "10+60x30")
    assert alerts("GateOld", "25m", {"instrument": "EUR_USD"}, GATE, "10+60x14 +Inf+0x20"), "the key has run out, and the gate is as old as ever"


def test_a_manager_that_is_silent_alerts(alerts):
    assert not alerts("ManagerHangs", "10m", {}, "sep_loop_age_seconds", "1x20")
    assert alerts("ManagerHangs", "10m", {}, "sep_loop_age_seconds", "1x3 +Inf+0x20"), "its mark lives for ten seconds"


@pytest.mark.parametrize(("at", "fires"), [("3d21h59m", False), ("3d22h2m", False), ("3d22h4m", False), ("3d22h10m", True), ("2d12h", False), ("1d20h", True), ("1d21h1m", False)])
def test_the_market_opens_and_closes(alerts, at, fires):
    """On Sunday at 22:00 the newest gate is of Friday, and the first one of the week is still to come."""
    assert alerts("GateOld", at, {"instrument": "EUR_USD"}, GATE, "90000x6000") is fires
