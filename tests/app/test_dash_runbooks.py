"""Runbooks in the browser: found, filled in, started once, followed, stopped; with the real runner in a project of its own."""
import asyncio
import contextlib
import html
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import httpx
import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ops"))
from api_rig import TOKEN, story
from books import FIRST, OPEN, PARAMETERS, SEAL, book
from page_rig import cookie

from deskbook.app.api import create_app
from deskbook.app.dashboard import runbook_runs, runbooks_page
from deskbook.core.clock import iso
from deskbook.ops.evidence import Evidence, read_evidence, write_evidence
from deskbook.ops.runbook import RunLock
from deskbook.stores.ledger import LedgerDown

VIEW = "look-2b7e151628"
XSS = "<script>alert(1)</script>"
WORK = '''import os, time
with run.step("compare") as s:
    print("the token is", os.environ["API_TOKEN"])
    worked("env " + ",".join(sorted(k for k in os.environ if "TOKEN" in k)))
    if behave.startswith("raise"): raise ValueError(behave)
    if behave == "slow":
        for i in range(600):
            s.progress(i, 600, "EUR_USD")
            time.sleep(0.1)'''


class Office:
    """A project with runbooks, and its desk's pages."""

    def __init__(self, bench, root):
        self.bench, self.root, self.marks = bench, root, root / "marks"
        book(root, OPEN, FIRST, WORK, SEAL, parameters=PARAMETERS.replace("  # what goes wrong", "  # not empty; what goes wrong"))
        broken = root / "runbooks" / "incidents"
        broken.mkdir(parents=True)
        (broken / "broken.ipynb").write_text("{ no notebook")
        strange = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# Strange {XSS}\n\n> {XSS} [x](javascript:alert(1))\n\n**When**: `{XSS}`."),
                                                  nbformat.v4.new_code_cell(f'text: str = "{XSS}"  # {XSS}', metadata={"tags": ["parameters"]})])
        nbformat.write(strange, broken / "strange.ipynb")

    @property
    def reports(self): return self.bench.home / "reports"

    @property
    def worked(self): return self.marks.read_text().splitlines() if self.marks.exists() else []

    def runs(self): return [read_evidence(p) for p in sorted(self.reports.glob("gate_history/*/evidence.json"))]

    @contextlib.asynccontextmanager
    async def open(self, may_act=True):
        async with self.bench.api(run_desk=False, headers={}, api_view_token=VIEW) as (desk, http):
            yield desk, Browser(http, may_act)

    @contextlib.asynccontextmanager
    async def restarted(self, desk):
        """Another API on the same desk."""
        app = create_app(self.bench.deps(desk, api_view_token=VIEW))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app, client=("127.0.0.1", 4711)), base_url="http://127.0.0.1:8000") as http:
            http.app = app
            yield Browser(http, True)


class Browser:
    """What a browser does with pages: a session, forms, redirects."""

    def __init__(self, http, may_act):
        self.http = http
        settings = http.app.state.deps.settings
        if not any(getattr(r, "path", "").startswith("/ui/runbooks") for r in http.app.router.routes):
            http.app.include_router(runbooks_page.router)
        self.cookie, self.csrf = cookie(settings, may_act)

    async def get(self, path, part=False): return await self.http.get(path, headers=self.cookie | ({"HX-Request": "true"} if part else {}))

    async def post(self, path, **data): return await self.http.post(path, headers=self.cookie, data={"csrf": self.csrf} | data)

    async def form(self, name="gate_history"):
        """The fields as the page fills them in."""
        text = (await self.get(f"/ui/runbooks/{name}")).text
        found = {}
        for tag in re.findall(r"<input [^>]*>", text):
            at = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
            if at.get("name") and (at.get("type") != "radio" or "checked" in tag.replace('"checked"', "")): found[at["name"]] = html.unescape(at.get("value", ""))
        return found

    async def start(self, name="gate_history", **fields):
        return await self.post(f"/ui/runbooks/{name}", **{**await self.form(name), **fields})

    async def run_of(self, answer, wait_s=60):
        """The address of the run that a start became."""
        assert answer.status_code == 303, answer.text
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            page = await self.get(answer.headers["location"])
            if page.status_code == 303: return page.headers["location"]
            assert "every 1s" in page.text, page.text
            await asyncio.sleep(0.2)
        raise AssertionError("no run")

    async def until(self, path, seen, wait_s=60):
        """The fragment, as soon as it shows something; for a verdict, the last one."""
        until = time.monotonic() + wait_s
        while seen not in (text := (await self.get(f"{path}/progress", part=True)).text) or (seen.isupper() and "every 1s" in text):
            assert time.monotonic() < until, text
            await asyncio.sleep(0.2)
        return text


@pytest.fixture
def office(api_bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("API_TOKEN", TOKEN)
    monkeypatch.setenv("API_VIEW_TOKEN", VIEW)
    made = Office(api_bench, tmp_path)
    yield made
    for launch in runbook_runs.launches(api_bench.home):  # what a failed test left behind
        if launch.going: os.kill(launch.pid, signal.SIGKILL)


async def audits(desk, action):
    return await desk.ledger.rows("SELECT actor, resource_id, metadata FROM ops_audit_events WHERE action = %s ORDER BY seq", (action,))


# -- the list and the form ---------------------------------------------------------------------------------------------

def test_a_broken_or_hostile_notebook_stands_in_the_list_and_harms_nothing(office):
    async def go():
        async with office.open() as (_, web):
            page = (await web.get("/ui/runbooks")).text
            assert "The file is no notebook." in page and "Gate history" in page
            assert page.index("Incidents") < page.index("Backfills")
            for path in ("/ui/runbooks", "/ui/runbooks/strange", "/ui/runbooks/broken"):
                text = (await web.get(path)).text
                assert "alert(" not in re.sub(r"&lt;script&gt;alert\(.*?\)|\[x\]\(javascript:alert\(1\)\)", "", text) and "javascript:" not in re.sub(r"\[x\]\([^)]*\)", "", text)
            assert "Start the run" not in (await web.get("/ui/runbooks/broken")).text
            assert (await web.start("broken")).status_code == 400
            for path in ("/ui/runbooks/nothing", "/ui/runbooks/..%2F..%2Fetc", "/ui/runbooks/runs/gate_history/none", "/ui/runbooks/runs/../x", "/ui/runbooks/starts/" + "0" * 32):
                assert (await web.get(path)).status_code == 404, path
    story(go())


def test_what_is_wrong_is_said_at_the_field_and_what_was_typed_stays(office):
    async def go():
        async with office.open() as (_, web):
            answer = await web.start(**{"p-window": "7", "p-instruments": XSS, "p-behave": ""})
            assert answer.status_code == 422
            said = html.unescape(re.search(r'id="p-window-error"[^>]*>([^<]*)', answer.text)[1])
            assert said == "7 is below 16." and re.search(r'name="p-window"[^>]*value="7"', answer.text)
            assert "It is empty." in answer.text and XSS not in answer.text and html.escape(XSS) in answer.text
            assert (await web.start(**{"p-window": "many"})).text.count('value="many"') == 1
            assert (await web.start(**{"p-colour": "red"})).status_code == 422
            assert (await web.start(key="../../x")).status_code == 400
            assert runbook_runs.launches(office.bench.home) == [] and office.runs() == []
    story(go())


def test_who_may_only_look_sees_the_form_disabled_and_starts_nothing(office):
    async def go():
        async with office.open(may_act=False) as (_, web):
            page = (await web.get("/ui/runbooks/gate_history")).text
            assert re.search(r"<fieldset class=\"all\" disabled>", page) and "Sign in with the acting token" in page
            assert (await web.start()).status_code == 403
            assert (await web.post("/ui/runbooks/runs/gate_history/20251111T120000Z-abc123/stop")).status_code == 403
    story(go())


# -- runs --------------------------------------------------------------------------------------------------------------

@pytest.mark.timeout(180)
def test_a_dry_run_is_started_once_by_two_clicks_followed_and_found_again(office):
    async def go():
        async with office.open() as (desk, web):
            fields = {**await web.form(), "p-marks": str(office.marks), "p-window": "128"}
            one, two = await asyncio.gather(*(web.post("/ui/runbooks/gate_history", **fields) for _ in range(2)))
            assert one.headers["location"] == two.headers["location"]
            run = await web.run_of(one)
            page = await web.until(run, "PASS")
            assert "every 1s" not in page and "rebuild gates" in page and "726" in page and "each instrument has gates" in page
            assert f"/ui/runs/{run.removeprefix('/ui/runbooks/runs/')}" in page
            [e] = office.runs()
            assert (e.mode, e.parameters["window"], office.worked) == ("dry", 128, ["gates", "env API_TOKEN"])  # the other token stayed behind
            written = [f for f in office.reports.rglob("*") if f.is_file()]
            assert "report.html" in {f.name for f in written} and not [f for f in written if TOKEN.encode() in f.read_bytes()]
            assert any(b"the token is [redacted]" in f.read_bytes() for f in written)
            [row] = await audits(desk, "runbook.start")
            assert (row["actor"], row["resource_id"], row["metadata"]["mode"], row["metadata"]["parameters"]["window"]) == ("web:maria", "gate_history", "dry", 128)
            listed = (await web.get("/ui/runbooks")).text
            assert run in listed and "never run" in listed  # strange never ran
            late = await web.post("/ui/runbooks/gate_history", **fields)  # the same form, sent again
            assert late.headers["location"] == one.headers["location"] and len(office.runs()) == 1
    story(go(), 170)


@pytest.mark.timeout(180)
def test_a_live_run_needs_the_words_and_a_reason(office):
    async def go():
        async with office.open() as (desk, web):
            live = {"p-mode": "live", "p-marks": str(office.marks)}
            for wrong in ({}, {"confirm": "live gate history", "reason": "r"}, {"confirm": "live gate_history", "reason": " "}):
                answer = await web.start(**live, **wrong)
                assert answer.status_code == 422 and "Nothing was started" in answer.text
                assert re.search(r'value="live" checked', answer.text)
            assert office.runs() == [] and await audits(desk, "runbook.start") == []
            run = await web.run_of(await web.start(**live, confirm="live gate_history", reason="candles were corrected, password=hunter2xyz"))
            await web.until(run, "PASS")
            assert office.runs()[0].mode == "live"
            [row] = await audits(desk, "runbook.start")
            assert row["metadata"]["mode"] == "live" and row["metadata"]["reason"] == "candles were corrected, password=[redacted]"
    story(go(), 170)


@pytest.mark.timeout(180)
def test_without_a_ledger_a_live_run_is_refused_and_a_dry_one_says_that_nobody_wrote_it_down(office, monkeypatch):
    async def go():
        async with office.open() as (desk, web):
            def down(): raise LedgerDown("the database is away")
            monkeypatch.setattr(desk.ledger, "transaction", down)
            answer = await web.start(**{"p-mode": "live"}, confirm="live gate_history", reason="now")
            assert answer.status_code == 503 and runbook_runs.launches(office.bench.home) == []
            run = await web.run_of(await web.start(**{"p-marks": str(office.marks)}))
            assert "stands in no audit" in (await web.get(run)).text
            await web.until(run.partition("?")[0], "PASS")
    story(go(), 170)


@pytest.mark.timeout(180)
def test_a_failed_step_is_shown_with_its_traceback_and_nothing_in_it_runs(office):
    async def go():
        async with office.open() as (_, web):
            run = await web.run_of(await web.start(**{"p-behave": f"raise {XSS}", "p-marks": str(office.marks)}))
            page = await web.until(run, "FAILED")
            assert re.search(r'<li class="bad"><p><b>compare</b>.*?<details class="traceback">.*?Traceback', page, re.S)
            assert "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page and "every 1s" not in page
            whole = (await web.get(run)).text
            assert "alert(" not in re.sub(r"&lt;script&gt;alert\(.*?\)", "", whole)
    story(go(), 170)


@pytest.mark.timeout(180)
def test_a_lock_that_is_held_and_a_desk_that_is_busy_are_clear_answers(office, monkeypatch):
    async def go():
        async with office.open() as (_, web):
            with RunLock(office.bench.home, "gate_history", "default", "20251111T120000Z-abc123"):
                started = await web.start()
                until = time.monotonic() + 60
                while "every 1s" in (page := (await web.get(started.headers["location"])).text):
                    assert time.monotonic() < until
                    await asyncio.sleep(0.2)
            assert "It is running already" in page and "20251111T120000Z-abc123" in page and office.runs() == []
            monkeypatch.setattr(runbook_runs, "MOST", 0)
            busy = await web.start(**{"p-window": "64"})
            assert busy.status_code == 409 and "runs from this page are at work" in busy.text and 'value="64"' in busy.text
    story(go(), 170)


@pytest.mark.timeout(240)
def test_a_run_outlives_the_api_and_is_stopped_from_the_next_one(office):
    async def go():
        async with office.open() as (desk, web):
            run = await web.run_of(await web.start(**{"p-behave": "slow", "p-marks": str(office.marks)}))
            page = await web.until(run, "of 600")
            assert 'hx-trigger="every 1s"' in page and "Stop this run" in page
            [e] = office.runs()
            assert os.getsid(e.pid) == e.pid != os.getsid(0)
            async with office.restarted(desk) as again:
                assert "of 600" in await again.until(run, "of 600") and "Stop this run" in (await again.get(run)).text
                assert "running now" in (await again.get("/ui/runbooks")).text
                answer = await again.post(f"{run}/stop")
                assert answer.status_code == 303
                page = await again.until(run, "TERMINATED")
                assert "every 1s" not in page and "Stop this run" not in page
                assert (await again.get(f"{run}/progress", part=True)).text == page
            [row] = await audits(desk, "runbook.stop")
            assert (row["actor"], row["metadata"]["run"]) == ("web:maria", run.rsplit("/", 1)[1])
            until = time.monotonic() + 20
            while Path(f"/proc/{e.pid}").exists():
                assert time.monotonic() < until
                await asyncio.sleep(0.1)
    story(go(), 230)


@pytest.mark.timeout(180)
def test_a_run_whose_process_died_is_told(office):
    async def go():
        async with office.open() as (_, web):
            run = await web.run_of(await web.start(**{"p-behave": "slow", "p-marks": str(office.marks)}))
            await web.until(run, "of 600")
            os.kill(office.runs()[0].pid, signal.SIGKILL)
            page = await web.until(run, "LOST")
            assert "nobody wrote how it ended" in page and "--resume" in page and "every 1s" not in page and "lost" in page
    story(go(), 170)


def test_only_the_process_of_that_run_is_ever_stopped(office):
    """A number that another process has now, and a kernel in which somebody works by hand: neither gets a signal."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))

    async def go():
        async with office.open() as (_, web):
            for ident, started in (("20010101T000000Z-000001", "2001-01-01T00:00:00Z"), ("20251111T120000Z-000002", iso(round(time.time() * 1000)))):
                write_evidence(office.reports / "gate_history" / ident, Evidence(run_id=ident, runbook="gate_history", started=started, pid=os.getpid()))
                page = (await web.get(f"/ui/runbooks/runs/gate_history/{ident}")).text
                assert "Stop this run" not in page
                assert ("LOST" in page) == started.startswith("2001")
                await web.post(f"/ui/runbooks/runs/gate_history/{ident}/stop")
    try: story(go())
    finally: signal.signal(signal.SIGTERM, before)
    assert heard == []


def test_a_run_with_torn_files_still_has_a_page(office):
    async def go():
        async with office.open() as (_, web):
            folder = office.reports / "gate_history" / "20251111T120000Z-abc123"
            write_evidence(folder, Evidence(run_id="x", runbook=XSS, title=XSS, started="2025-11-11T12:00:00Z", parameters={XSS: XSS}, notes=[XSS], reason=XSS))
            (folder / "log.jsonl").write_text(json.dumps({"event": XSS}) + '\n{"event": "step_done"}\n{"event": "check", "name": ' + json.dumps(XSS) + '}\n{"event": "prog')
            (folder / "report.ipynb").write_text("[")
            text = (await web.get("/ui/runbooks/runs/gate_history/20251111T120000Z-abc123")).text
            assert XSS not in text and "alert(" not in re.sub(r"&lt;script&gt;alert\(.*?\)", "", text) and html.escape(XSS) in text
            (folder / "evidence.json").write_text("{")
            for path, part in (("", False), ("/progress", True)):
                torn = await web.get(f"/ui/runbooks/runs/gate_history/20251111T120000Z-abc123{path}", part)
                assert torn.status_code == 200 and "evidence.json is not JSON" in torn.text and "every 1s" not in torn.text  # it is not asked for again
                assert str(office.root) not in torn.text
            assert "UNREADABLE" in (await web.get("/ui/runbooks")).text
    story(go())
