"""Runbooks in real kernels: every way a run can end, and what it leaves behind."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from books import FIRST, LEAK, OPEN, SEAL, SECOND, Desk, book

from deskbook.core.errors import BadInput, LockHeld, Refused
from deskbook.core.files import strict_json
from deskbook.ops.evidence import comparable, exit_code, read_evidence, seal_problem
from deskbook.ops.report import list_runs

CANARY = "canary-5f1d9b7720ae"
DESKBOOK = [sys.executable, "-c", "import sys; from deskbook.app.cli import main; sys.exit(main())"]


class Loads(HTMLParser):
    """Collects whatever a browser would fetch."""
    def __init__(self):
        super().__init__()
        self.found, self.scripts = [], 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag in ("script", "iframe", "object", "embed")
        for name, value in attrs:
            fetches = name in ("src", "srcset", "data", "poster", "background", "action", "formaction", "xlink:href") or (name == "href" and tag in ("link", "base", "use", "image"))
            if fetches and not (value or "").startswith("data:"): self.found.append((tag, name, value))
            assert not name.startswith("on"), (tag, name)


def assert_loads_nothing(page: Path):
    text = page.read_text()
    loads = Loads()
    loads.feed(text)
    assert loads.found == [] and loads.scripts == 0
    for style in re.findall(r"<style>(.*?)</style>", text, re.S): assert "@import" not in style and "url(" not in style


# -- a good run, in the runner and by hand ---------------------------------------------------------------------------

@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """One run that prints a secret in every way it can, and the same notebook run cell by cell without the runner."""
    patch = pytest.MonkeyPatch()
    patch.setenv("DESK_TOKEN", CANARY)
    patch.chdir(root := tmp_path_factory.mktemp("leaky"))
    desk = Desk(root)
    path = book(root, OPEN, FIRST, SECOND, LEAK, SEAL)
    events = []
    result = desk.run(path, {"marks": ""}, on_event=events.append)
    yield desk, path, result, events
    patch.undo()


def test_pass(leaky):
    desk, _, result, events = leaky
    e = read_evidence(result.folder)
    assert (result.exit_code, e.status, e.verdict, seal_problem(e), result.problems) == (0, "done", "PASS", "", ())
    assert [(s.name, s.status) for s in e.steps] == [("rebuild gates", "done"), ("compare", "done")]
    assert e.steps[0].counts == {"gates": 662} and e.numbers["gates"] == 662
    assert {"report.ipynb", "report.html", "evidence.json", "log.jsonl"} <= {p.name for p in result.folder.iterdir()}
    assert [x["event"] for x in events] == ["created", "opened", "step_started", "step_done", "step_started", "step_done", "check", "sealed", "ended"]
    assert e.duration_s > 0.3 and (desk.reports / "index.html").is_file()


def test_secret_is_nowhere(leaky):
    desk, _, result, _ = leaky
    import base64
    forms = [CANARY.encode(), CANARY[9:].encode(), base64.b64encode(CANARY.encode()).rstrip(b"="), b"0123456789abcdef0123"]
    files = [p for p in desk.reports.rglob("*") if p.is_file()]
    assert len(files) >= 8
    assert [(p.name, f) for p in files for f in forms if f in p.read_bytes()] == []
    assert "[redacted]" in (result.folder / "report.ipynb").read_text() and "[redacted]" in (result.folder / "report.html").read_text()
    assert (result.folder / "own.txt").read_text() == "written around the run: [redacted]"
    assert read_evidence(result.folder).numbers["login"] == "[redacted]"


def test_html_asks_nobody(leaky):
    desk, _, result, _ = leaky
    assert_loads_nothing(result.folder / "report.html")
    assert_loads_nothing(desk.reports / "index.html")


def test_same_evidence_in_jupyterlab(leaky, monkeypatch):
    """Executed without the runner, from its own folder, as JupyterLab does: own run folder, same evidence."""
    import nbformat
    from nbclient import NotebookClient
    desk, path, result, _ = leaky
    monkeypatch.delenv("DESKBOOK_REPORTS")
    nb = nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    runs = list_runs(desk.reports, "gate_history")
    assert len(runs) == 2
    by_hand = next(r for r in runs if r.run_id != result.folder.name)
    assert (by_hand.evidence.status, seal_problem(by_hand.evidence)) == ("done", "")
    assert strict_json(comparable(by_hand.evidence)) == strict_json(comparable(result.evidence))
    assert by_hand.evidence.seal != result.evidence.seal


# -- the ways to fail ------------------------------------------------------------------------------------------------

def test_failed_check_live(desk):
    result = desk.run(given={"behave": "fail", "mode": "live"}, confirm="live gate_history")
    e = read_evidence(result.folder)
    assert (result.exit_code, e.status, e.verdict, e.mode) == (1, "done", "FAIL", "live")
    assert "each instrument has gates" in e.reason


def test_exception_then_resume(desk):
    first = desk.run(given={"behave": "raise", "window": "128"})
    e = read_evidence(first.folder)
    assert (first.exit_code, e.status, e.verdict, e.error.type, e.error.step) == (1, "failed", "FAIL", "ValueError", "compare")
    assert "12 candles" in e.error.message and seal_problem(e) == ""
    outputs = json.dumps(json.loads((first.folder / "report.ipynb").read_text())["cells"])
    assert "ValueError" in outputs and "12 candles" in (first.folder / "report.html").read_text()

    with pytest.raises(BadInput, match="keeps its parameters; 'window' was 128"): desk.run(resume=first.folder.name, given={"window": "64"})
    Path(f"{desk.marks}.fixed").touch()
    second = desk.run(resume=first.folder.name)
    e2 = read_evidence(second.folder)
    assert (second.exit_code, e2.verdict, e2.resumed_from) == (0, "PASS", e.run_id)
    assert desk.worked == ["gates", "compare", "compare"], "the first step must not be worked again"
    assert [s.reused_from for s in e2.steps] == [e.run_id, None]
    assert e2.parameters == e.parameters and e2.numbers == {"gates": 726}
    assert read_evidence(first.folder) == e, "the failed run stays as it was"
    with pytest.raises(BadInput, match="nothing to resume"): desk.run(resume=second.folder.name)


@pytest.mark.parametrize("behave,code,status", [("exit", 1, "failed"), ("die", 3, "died"), ("slow step", 3, "timed_out")])
def test_other_ends(desk, behave, code, status):
    result = desk.run(given={"behave": behave})
    e = read_evidence(result.folder)
    assert (result.exit_code, e.status, seal_problem(e)) == (code, status, "")
    assert [s.status for s in e.steps] == ["done", "failed"]
    assert e.verdict == ("FAIL" if status == "failed" else None)
    assert "compare" in (result.folder / "report.html").read_text()
    assert (result.folder / "report.ipynb").is_file()


def test_no_seal_is_no_success_and_guards_have_their_code(desk):
    """A notebook that ends quietly has not passed; one that meets a guard before it begins says so."""
    refused = 'from deskbook.core.errors import Refused\nraise Refused("the kill switch is engaged.", "Clear it.")'
    result = desk.run(book(desk.root, refused, name="clear"), {})
    assert (result.exit_code, result.evidence.status, result.evidence.steps) == (4, "failed", [])
    result = desk.run(book(desk.root, "1 + 1", name="quiet"), {}, timeout_s=60)
    assert (result.exit_code, result.evidence.error.type) == (1, "Unsealed")


# -- processes -------------------------------------------------------------------------------------------------------

def _started(desk, *more):
    env = os.environ | {"DESKBOOK_HOME": str(desk.settings.home), "DESKBOOK_REPORTS": str(desk.reports)}
    path = book(desk.root)
    process = subprocess.Popen([*DESKBOOK, "run", str(path), "--set", "behave=slow", "--set", f"marks={desk.marks}", *more], env=env, cwd=desk.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not any(w.startswith("pid ") for w in desk.worked):
        assert time.monotonic() < until and process.poll() is None, process.communicate()
        time.sleep(0.1)
    return process, int(desk.worked[-1].split()[1])


def _gone(pid, within=5.0):
    until = time.monotonic() + within
    while time.monotonic() < until:
        try: state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError): return True
        if state == "Z": return True
        time.sleep(0.05)
    return False


def test_sigterm_in_a_step_and_lock(desk):
    process, kernel = _started(desk)
    with pytest.raises(LockHeld, match="gate_history is running on 'default'"): desk.run()
    running = read_evidence(next(desk.reports.glob("gate_history/*")))
    assert running.status == "running" and running.steps[0].status == "done"
    with pytest.raises(LockHeld, match="still going"): desk.run(resume=running.run_id)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    e = read_evidence(desk.reports / "gate_history" / running.run_id)
    assert (process.returncode, e.status, e.verdict, e.reason) == (143, "terminated", None, "SIGTERM: stopped by SIGTERM")
    assert [s.status for s in e.steps] == ["done", "terminated"] and seal_problem(e) == "" and exit_code(e) == 143
    assert _gone(kernel) and out.startswith("TERMINATED") and "--resume" in err
    assert (desk.reports / "gate_history" / running.run_id / "report.html").is_file()


def test_killed_runner_takes_its_kernel_along_and_frees_the_lock(desk):
    process, kernel = _started(desk)
    process.kill()
    process.communicate()
    assert _gone(kernel), "an orphan would go on working without a lock"
    (lost,) = list_runs(desk.reports)
    assert lost.state[0] == "LOST" and lost.evidence.steps[0].status == "done"
    from deskbook.ops.runbook import RunLock
    with RunLock(desk.settings.home, "gate_history", "default", "next"): pass


@pytest.mark.parametrize("limit,code,words", [(1_000, 1, "evidence.json: File too large. What stood there before is unchanged"), (20_000, 1, "the evidence stands, but the report could not be finished")])
def test_full_disk(desk, limit, code, words):
    """No file may grow beyond the limit: too small for any evidence, then big enough for all but the page."""
    env = os.environ | {"DESKBOOK_HOME": str(desk.settings.home), "DESKBOOK_REPORTS": str(desk.reports)}
    script = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); " + DESKBOOK[-1]
    done = subprocess.run([sys.executable, "-c", script, "run", str(book(desk.root)), "--set", "marks=" + "m" * 150], env=env, cwd=desk.root, capture_output=True, text=True)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    left = [p for p in desk.reports.rglob("*") if p.is_file()]
    assert [p for p in left if p.suffix == ".tmp"] == []
    if limit == 20_000: assert read_evidence(next(desk.reports.glob("gate_history/*"))).verdict == "PASS"


def test_a_person_in_jupyterlab_holds_the_lock_too(desk, monkeypatch):
    from deskbook.ops.runbook import Run, RunLock
    run = Run.open("gate_history", {}, settings=desk.settings)
    with pytest.raises(LockHeld, match=run.folder.name): desk.run()
    run.fail(ValueError("later"))
    with RunLock(desk.settings.home, "gate_history", "default", "next"), pytest.raises(LockHeld, match="next"): run.note("going on")
    run.note("going on")
    with pytest.raises(LockHeld, match=run.folder.name): desk.run()
    run.seal()
    with RunLock(desk.settings.home, "gate_history", "default", "next"): pass


def test_inside_a_running_loop(desk):
    """As from a notebook: the runner brings its own loop."""
    import asyncio
    async def main(): return desk.run(book(desk.root, "1 + 1", name="quiet"), {})
    assert asyncio.run(main()).evidence.error.type == "Unsealed"


def test_terminal_shows_steps(desk):
    import io

    from rich.console import Console

    from deskbook.ops.runner import Terminal
    for watched in (True, False):
        out = io.StringIO()
        with Terminal(Console(file=out, force_terminal=watched, width=100)) as terminal:
            terminal({"event": "step_started", "step": "rebuild gates [M1]"})
            terminal({"event": "progress", "step": "rebuild gates [M1]", "done": 3, "total": 7, "what": "EUR_USD"})
            terminal({"event": "step_done", "step": "rebuild gates [M1]", "duration_s": 3.2, "counts": {"gates": 12480}})
            terminal({"event": "unknown"})
        assert "✓ rebuild gates [M1]  3.2 s · gates 12,480" in out.getvalue()


# -- refusals: nothing was started -----------------------------------------------------------------------------------

def test_bad_parameters_start_nothing(desk):
    for given, words in [({"windw": 1}, "Did you mean 'window'"), ({"window": "many"}, "no whole number"), ({"window": 8}, "below 16"), ({"mode": "liv"}, "Did you mean 'live'"), ({"window": True}, "is a bool"), ({"instruments": ""}, "empty")]:
        with pytest.raises(BadInput, match=words) as e: desk.run(given=given)
        assert e.value.exit_code == 2 and "candles, 16..4096" in str(e.value)
    with pytest.raises(BadInput, match="more than 0"): desk.run(timeout_s=0)
    with pytest.raises(BadInput, match="there is no run"): desk.run(resume="20990101")
    assert not desk.reports.exists() and not desk.settings.home.exists()


def test_secret_as_parameter_is_refused_without_repeating_it(desk, monkeypatch):
    monkeypatch.setenv("DESK_TOKEN", CANARY)
    with pytest.raises(BadInput, match="looks like a secret") as e: desk.run(given={"behave": CANARY})
    assert CANARY not in str(e.value) and not desk.reports.exists()


def test_live_needs_words(desk):
    for options in ({}, {"confirm": "yes"}, {"ask": lambda question: "live gate"}):
        with pytest.raises(Refused) as e: desk.run(given={"mode": "live"}, **options)
        assert e.value.exit_code == 4
    assert not desk.reports.exists()


def test_a_file_that_is_no_runbook(desk):
    path = desk.root / "runbooks" / "half.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(book(desk.root).read_text()[:200])
    with pytest.raises(BadInput, match="is no notebook"): desk.run(path)
    with pytest.raises(BadInput, match="Did you mean 'gate_history'"): desk.run(Path("gate_histry"))
