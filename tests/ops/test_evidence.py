"""Evidence and the interface inside a notebook, without kernels."""
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.core.errors import BadInput, DataError, DeskbookError, Refused
from deskbook.core.files import read_json, strict_json
from deskbook.core.settings import Settings
from deskbook.ops.evidence import CheckRecord, Evidence, StepRecord, comparable, read_evidence, seal_problem, sealed, write_evidence
from deskbook.core.redaction import REDACTED, Redactor, secret_values
from deskbook.ops.runbook import Run

NOW = "2025-11-04T06:00:00Z"


def evidence(**changes) -> Evidence:
    return Evidence(**({"run_id": "20251104T060000Z-1f9c2a", "runbook": "gate_history", "started": NOW} | changes))


def opened(reports, **params) -> Run:
    return Run.open("gate_history", params, settings=Settings(reports=reports))


json_values = st.recursive(st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3), max_leaves=8)


@given(st.dictionaries(st.text(max_size=10), json_values, max_size=4), json_values)
@settings(max_examples=60, deadline=None)
def test_seal_survives_the_disk_and_sees_every_change(tmp_path_factory, numbers, other):
    folder = tmp_path_factory.mktemp("e")
    e = sealed(evidence(status="done", verdict="PASS", numbers=numbers), NOW, 1.0)
    write_evidence(folder, e)
    assert seal_problem(read_json(folder / "evidence.json")) == "" and seal_problem(read_evidence(folder)) == ""
    changed = numbers | {"extra": other}
    assert ("changed" in seal_problem(e.model_copy(update={"numbers": changed}))) == (strict_json(changed) != strict_json(numbers))


def test_comparable_takes_times_and_ids_and_nothing_else():
    step = StepRecord(name="rebuild", key="k", status="done", started=NOW, ended=NOW, duration_s=1.0, counts={"gates": 3}, reused_from="x")
    full = sealed(evidence(steps=[step], checks=[CheckRecord(name="c", passed=True)], resumed_from="x"), NOW, 1.0)
    gone = set(full.model_dump()) - set(comparable(full))
    assert gone == {"run_id", "resumed_from", "started", "sealed_at", "duration_s", "pid", "seal"}
    assert set(step.model_dump()) - set(comparable(full)["steps"][0]) == {"started", "ended", "duration_s", "reused_from"}


def test_unreadable_evidence_names_the_file(tmp_path):
    for text in ("", '{"run_id": ', '{"run_id": "x"}', "[1]", '{"numbers": NaN}'):
        (tmp_path / "evidence.json").write_text(text)
        with pytest.raises(DataError, match=r"evidence\.json"): read_evidence(tmp_path)


# -- a full disk -----------------------------------------------------------------------------------------------------

FULL = '''
import resource
import sys
from pathlib import Path
from deskbook.core.errors import DeskbookError
from deskbook.core.settings import Settings
from deskbook.ops.runbook import Run
run = Run.open("gate_history", {}, settings=Settings(reports=Path(sys.argv[1])))
with run.step("rebuild gates") as s: s.count(gates=3)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try: run.number("long", "x" * 5000)
except DeskbookError as e: print(e); sys.exit(e.exit_code)
'''


def test_full_disk_says_so_and_keeps_the_older_evidence(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and "could not write" in done.stdout and "is unchanged" in done.stdout, done.stderr
    (folder,) = tmp_path.glob("gate_history/*")
    e = read_evidence(folder)
    assert e.steps[0].counts == {"gates": 3} and e.numbers == {}
    assert [p.name for p in folder.iterdir() if p.suffix == ".tmp"] == []


# -- inside a notebook -----------------------------------------------------------------------------------------------

@pytest.fixture
def shell():
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance()
    yield shell
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("cell,error", [("1/0", "ZeroDivisionError"), ("raise KeyboardInterrupt", "KeyboardInterrupt"), ("def (", "SyntaxError"), ("import sys; sys.exit(0)", "SystemExit")])
def test_a_crashed_cell_leaves_failed_evidence_and_going_on_mends_it(tmp_path, shell, cell, error):
    shell.user_ns["run"] = run = opened(tmp_path)
    shell.run_cell("with run.step('rebuild gates') as s: s.count(gates=3)")
    shell.run_cell(cell)
    e = read_evidence(run.folder)
    assert (e.status, e.verdict, e.error.type, seal_problem(e)) == ("failed", "FAIL", error, "")
    shell.run_cell("run.check('gates', True); run.seal()")
    e = read_evidence(run.folder)
    assert (e.status, e.verdict, e.error, e.steps[0].counts) == ("done", "PASS", None, {"gates": 3})
    shell.run_cell("1/0")
    assert read_evidence(run.folder) == e, "what happens after the seal is no part of the run"


def test_cells_run_twice_replace_what_they_said(tmp_path):
    run = opened(tmp_path)
    for gates in (1, 2):
        with run.step("rebuild gates") as s: s.count(gates=gates)
        run.check("enough", gates > 1)
        run.save("gates.csv", pl.DataFrame({"gates": [gates]}))
    e = run.seal()
    assert [s.counts for s in e.steps] == [{"gates": 2}] and e.verdict == "PASS" and len(e.artefacts) == 1
    again = opened(tmp_path)
    third = opened(tmp_path)
    assert read_evidence(again.folder).status == "terminated" and read_evidence(third.folder).status == "running"


def test_wrong_use_is_refused(tmp_path):
    run = opened(tmp_path)
    with pytest.raises(BadInput, match="True, False or None"): run.check("c", "yes")
    with pytest.raises(BadInput, match="is no number"), run.step("a") as s: s.count(gates="many")
    with pytest.raises(BadInput, match="inside step"), run.step("a"), run.step("b"): pass
    for name in ("../x.txt", "/tmp/x", "evidence.json", "steps/01.json"):
        with pytest.raises(BadInput, match="cannot save"): run.save(name, "x")
    assert run.seal().verdict == "FAIL", "steps that failed are not forgotten"
    with pytest.raises(DataError, match="sealed"), run.step("late"): pass


def test_live_in_a_notebook_asks_and_refuses_without_a_person(tmp_path, monkeypatch):
    with pytest.raises(Refused): Run.open("gate_history", {"mode": "live"}, settings=Settings(reports=tmp_path), ask=lambda q: (_ for _ in ()).throw(EOFError()))
    monkeypatch.setenv("DESKBOOK_RUN_CONFIRMED", "live other")
    with pytest.raises(Refused): Run.open("gate_history", {"mode": "live"}, settings=Settings(reports=tmp_path), ask=lambda q: "")
    assert list(tmp_path.glob("gate_history/*")) == []


def test_changed_record_is_not_taken_over(tmp_path):
    run = opened(tmp_path)
    with run.step("rebuild") as s: s.call(lambda: pl.DataFrame({"gates": [1]}))
    run.fail(ValueError("later"))
    (record,) = (run.folder / "steps").glob("*.parquet")
    record.write_bytes(record.read_bytes() + b"x")
    again = Run.open("gate_history", {}, settings=Settings(reports=tmp_path), resume=run.folder.name)
    with pytest.raises(DataError, match="missing or changed"), again.step("rebuild") as s: s.call(lambda: None)


def test_another_key_works_again(tmp_path):
    calls = []
    def go(key, resume=""):
        run = Run.open("gate_history", {}, settings=Settings(reports=tmp_path), resume=resume)
        with run.step("rebuild", key=key) as s: s.call(lambda: calls.append(key) or [len(calls)])
        run.fail(ValueError("later"))
        return run
    first = go("week 44")
    second = go("week 44", first.folder.name)
    third = go("week 45", second.folder.name)
    assert calls == ["week 44", "week 45"]
    assert [r.evidence.steps[0].reused_from for r in (first, second, third)] == [None, first.folder.name, None]


def test_what_cannot_be_recorded_is_worked_again(tmp_path):
    calls = []
    def go(resume=""):
        run = Run.open("gate_history", {}, settings=Settings(reports=tmp_path), resume=resume)
        with run.step("open a connection") as s: s.call(lambda: calls.append(1) or object())
        run.fail(ValueError("later"))
        return run.folder.name
    go(go())
    assert len(calls) == 2


# -- redaction -------------------------------------------------------------------------------------------------------

@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=30), st.text(max_size=20), st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_a_known_secret_never_survives(secret, before, after):
    values = secret_values({"DESK_TOKEN": secret})
    if not values: return
    r = Redactor(values)
    import html
    import json
    for form in (secret, json.dumps(secret)[1:-1], html.escape(secret), repr(secret)[1:-1]):
        cleaned = r.text(before + form + after)
        assert secret not in cleaned.replace(REDACTED, "\0")
        assert r.text(cleaned) == cleaned


def test_open_runs_never_write_a_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("DESK_PASSWORD", "sandpiper-77")
    run = opened(tmp_path)
    run.title("desk of sandpiper-77")
    with pytest.raises(DeskbookError), run.step("login sandpiper-77") as s:
        s.call(lambda: "sandpiper-77")
        s.call(lambda: pl.DataFrame({"login": ["sandpiper-77"]}))
        s.progress(1, 2, "sandpiper-77")
        raise DeskbookError("wrong password sandpiper-77")
    with pytest.raises(Refused): run.save("login.parquet", pl.DataFrame({"login": ["sandpiper-77"]}))
    run.save("a.json", {"login": "sandpiper-77"})
    run.fail(ValueError("sandpiper-77"))
    files = [p for p in Path(tmp_path).rglob("*") if p.is_file()]
    assert len(files) >= 4 and [p.name for p in files if b"sandpiper" in p.read_bytes()] == []
