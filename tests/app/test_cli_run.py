"""The commands run, runs and schedule as a shell sees them: stdout, stderr, exit code."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
from books import PARAMETERS, book

from deskbook.app.cli import main
from deskbook.core.settings import Settings
from deskbook.ops.evidence import Evidence, sealed, write_evidence

JOB = '''runbook = "gate_history"
cron = "0 6 * * 2"
timezone = "America/New_York"
owner = "research"
description = "100 % of the gates"
timeout_s = 120
[parameters]
window = 128
'''


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one runbook and one job, entered; nobody sits at the terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", open("/dev/null"))
    book(tmp_path)
    (tmp_path / "scheduled").mkdir()
    (tmp_path / "scheduled" / "gates_weekly.toml").write_text(JOB)
    return tmp_path


def test_bad_parameters_print_the_table_and_start_nothing(project, capsys):
    assert main(["run", "gate_history", "--set", "windw=3", "--set", "window=9"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Did you mean 'window'?" in err and "9 is below 16" in err and "candles, 16..4096" in err
    for args in (["gate_histry"], ["gate_history", "--set", "window"], ["gate_history", "--live", "--set", "mode=dry"], ["gate_history", "--resume", "2025"], ["gate_history", "--timeout-s", "-1"]):
        assert main(["run", *args]) == 2, args
    assert not (project / "reports").exists()


def test_guards(project, capsys):
    from deskbook.ops.runbook import RunLock
    assert main(["run", "gate_history", "--live"]) == 4
    assert main(["run", "gate_history", "--live", "--confirm", "yes"]) == 4
    assert "'live gate_history'" in capsys.readouterr().err
    with RunLock(Settings().home, "gate_history", "default", "20251104T060000Z-1f9c2a"):
        assert main(["run", "gate_history"]) == 5
    assert "20251104T060000Z-1f9c2a" in capsys.readouterr().err
    assert not (project / "reports").exists()


def test_run_then_look_at_it(project, capsys):
    assert main(["run", "gate_history", "--set", "window=100", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["verdict"], result["exit_code"], result["numbers"]) == ("PASS", 0, {"gates": 698})
    assert "✓ rebuild gates" in err and Path(result["report"]).is_file()
    assert main(["runs", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["run_id"], row["state"], row["exit_code"]) == (result["run_id"], "PASS", 0)
    assert main(["runs", "show", result["run_id"][:12]]) == 0
    shown = capsys.readouterr().out
    assert "rebuild gates" in shown and "each instrument has gates" in shown and "698" in shown
    assert main(["runs", "show", result["run_id"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seal"]
    assert main(["runs", "open", result["run_id"]]) == 0
    assert capsys.readouterr().out.strip() == result["report"]


def test_no_check_is_inconclusive(project):
    book(project, "from deskbook.ops.runbook import Run\nrun = Run.open('quiet', {})\nrun.seal()", name="quiet", parameters="window: int = 64")
    (project / "scheduled" / "quiet.toml").write_text(JOB.replace("gate_history", "quiet"))
    assert main(["schedule", "run", "quiet"]) == 6


def test_runs_of_any_kind_are_listed(project, capsys):
    def put(run_id, **changes):
        e = Evidence(**({"run_id": run_id, "runbook": "gate_history", "started": f"2025-11-04T0{run_id[-1]}:00:00Z"} | changes))
        write_evidence(project / "reports" / "gate_history" / run_id, sealed(e, "2025-11-04T09:00:00Z", 3.0) if e.status != "running" else e)
    put("r1", status="done", verdict="PASS")
    put("r2", status="terminated")
    put("r3", status="running", pid=2**22 - 1)
    put("r6", status="running", pid=os.getpid())  # a process of this number is at work, and began long after this run
    put("r4", status="done", verdict="PASS")
    broken = project / "reports" / "gate_history" / "r4" / "evidence.json"
    broken.write_text(broken.read_text().replace('"PASS"', '"FAIL"'))
    half = project / "reports" / "gate_history" / "r5"
    half.mkdir()
    (half / "evidence.json").write_text('{"run_id": "r')
    (project / "reports" / "stray.txt").write_text("not a run")
    (project / "reports" / "gate_history" / "empty").mkdir()
    assert main(["runs", "list", "--json"]) == 0
    assert [(r["run_id"], r["state"]) for r in json.loads(capsys.readouterr().out)] == [("r6", "LOST"), ("r4", "SEAL BROKEN"), ("r3", "LOST"), ("r2", "TERMINATED"), ("r1", "PASS"), ("r5", "UNREADABLE")]
    assert main(["runs", "list"]) == 0 and main(["runs", "open"]) == 0
    page = (project / "reports" / "index.html").read_text()
    assert page.index("r4") < page.index("r1") and "SEAL BROKEN" in page and "stray" not in page
    assert main(["runs", "show", "r9"]) == 1 and main(["runs", "show", "r"]) == 2


def test_schedule_list_and_check(project, capsys):
    assert main(["schedule", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["owner"] == "research" and row["next"][11:16] == "06:00" and row["problem"] is None
    assert main(["schedule", "check"]) == 0
    for name, text in {"wrong_value": JOB.replace("128", "9000"), "wrong_type": JOB.replace("128", '"128 candles"'), "wrong_name": JOB.replace("window", "windw"), "wrong_book": JOB.replace("gate_history", "gate_histry"),
                       "wrong_time": JOB.replace("0 6 * * 2", "61 6 * * 2"), "wrong_zone": JOB.replace("New_York", "Newyork"), "live": JOB + 'mode = "live"\n', "no_toml": "runbook ="}.items():
        (project / "scheduled" / f"{name}.toml").write_text(text)
    assert main(["schedule", "check", "--json"]) == 2
    capsys.readouterr()
    main(["schedule", "check", "--json"])
    rows = {r["name"]: r["problems"] for r in json.loads(capsys.readouterr().out)}
    assert rows.pop("gates_weekly") == []
    assert {n: len(p) for n, p in rows.items()} == dict.fromkeys(rows, 1) and len(rows) == 8
    assert main(["schedule", "list"]) == 0
    assert main(["schedule", "check", "gates_wekly"]) == 2
    assert "Did you mean 'gates_weekly'" in capsys.readouterr().out


def test_schedule_export(project, capsys):
    assert main(["schedule", "export"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "CRON_TZ=America/New_York" and lines[-1].startswith("0 6 * * 2 cd ") and lines[-1].endswith(" schedule run gates_weekly")
    assert main(["schedule", "export", "--format", "systemd", "--output", str(project / "units")]) == 0
    units = sorted((project / "units").iterdir())
    assert [u.name for u in units] == ["deskbook-gates_weekly.service", "deskbook-gates_weekly.timer"]
    assert main(["schedule", "export", "--format", "yaml"]) == 2
    (project / "scheduled" / "late.toml").write_text(JOB.replace("128", "9000"))
    assert main(["schedule", "export"]) == 2, "a job that would not start is not handed over"


def test_systemd_accepts_the_units(project, system_tool):
    analyze = system_tool("systemd-analyze", "systemd")
    from deskbook.ops.schedule import as_systemd, calendar_lines, read_job
    for cron in ("0 6 * * 2", "*/15 8-17 * * mon-fri", "0 0 1,15 * 7", "30 2 29 2 *", "* * * * *"):
        (project / "scheduled" / "gates_weekly.toml").write_text(JOB.replace("0 6 * * 2", cron))
        job = read_job(project / "scheduled" / "gates_weekly.toml")
        for line in calendar_lines(job):
            assert subprocess.run([analyze, "calendar", line], capture_output=True).returncode == 0, line
        (project / "units").mkdir(exist_ok=True)
        for name, text in as_systemd(job, project, shutil.which("true")).items(): (project / "units" / name).write_text(text)
        done = subprocess.run([analyze, "verify", "--man=no", *map(str, sorted((project / "units").iterdir()))], capture_output=True, text=True)
        assert done.returncode == 0 and "gates_weekly" not in done.stderr, done.stderr


def test_parameters_are_shown(project, capsys):
    assert main(["run", "gate_history", "--parameters", "--json"]) == 0
    shown = {p["name"]: p for p in json.loads(capsys.readouterr().out)}
    assert list(shown) == ["instruments", "window", "behave", "marks", "mode"] and shown["mode"]["choices"] == ["dry", "live"] and shown["window"]["high"] == 4096
    assert main(["run", "gate_history", "--parameters"]) == 0
    assert "candles, 16..4096" in capsys.readouterr().out and PARAMETERS
