"""The evidence pages over the real servers: good, old, archived, hostile and missing studies, runs by the thousand, and a report that must not run."""
import asyncio
import html
import json
import os
import re
import threading
import time

import pytest
from chromium import chromium
from api_rig import story
from page_rig import signed_in

from deskbook.app.dashboard import evidence_facts, evidence_page
from deskbook.app.dashboard.session import COOKIE, session_cookie
from deskbook.core.clock import iso, system_clock
from deskbook.core.files import sha256
from deskbook.ops.evidence import CheckRecord, ErrorRecord, Evidence, StepRecord, sealed, write_evidence
from deskbook.ops.report import write_report
from deskbook.studies.roster import record_roster
from deskbook.studies.weekly import publish_evidence

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>"
DAY_MS = 86_400_000


def cell(mean_bp=-1.7, half_bp=0.9, **more):
    return {"count": 446, "avg_return_bp": mean_bp, "ci95_bp": [mean_bp - half_bp, mean_bp + half_bp], "positive_frac": 0.31, "base_positive_frac": 0.32, "n_eff": 110.0,
            "p_one_sided_net": 0.4, "p_holm_family": 1.0, "mde_bp": 2.7, "gross_mid_bp": mean_bp + 1.3, "avg_cost_bp": 1.3, "se_bp": 0.4,
            "short": {"avg_return_bp": -0.9, "ci95_bp": [-1.8, 0.1], "p_one_sided_net": 0.9, "p_holm_family": 1.0, "se_bp": 0.4, "n_eff": 110.0},
            "hazard_deciles": [{"decile": d, "count": 44, "avg_return_pct": 0.01 * d, "lift_vs_overall": 0.0} for d in range(1, 11)],
            "by_admit": {"admitted": {"count": 434, "avg_return_bp": mean_bp, "ci95_bp": [-2.6, -0.8]}}, **more}


def study(end_ms=1_762_732_800_000, mean_bp=-1.7, venue="simulated", **more):
    return {"schema_version": 2, "method": "sound", "generated_at": iso(end_ms + DAY_MS), "window": {"start": iso(end_ms - 7 * DAY_MS), "end": iso(end_ms)}, "venue": venue,
            "source": "simulated market" if venue == "simulated" else "oanda file", "run_mode": "isolation", "gates": 3157, "dropped": {"closure": 154, "stale_exit": 38},
            "multiplicity": {"primary": {"method": "holm", "family_size": 70, "alpha": 0.05}, "exploratory": {"hour": {"method": "fdr_bh", "family_size": 1680}}},
            "instruments": {"EUR_USD": {"5": cell(mean_bp), "60": cell(mean_bp), "240": cell(mean_bp, 9)}, "XAU_USD": {"note": "no gates in the window."}}, **more}


def text_of(page):
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page.text if hasattr(page, "text") else page)).split())


def charts(page, kind):
    return [json.loads(html.unescape(m)) for m in re.findall(rf'data-chart="{kind}" data-json="([^"]*)"', page.text)]


def is_clean(page):
    """No text of anybody became an element, nothing in the page needs more than its policy gives."""
    assert "<script>" not in page.text and "<img" not in page.text and not re.search(r'\s(style|on\w+)="', page.text), page.text[:2000]


def pages(api_bench, go, **settings):
    """`go` with the reports folder and a browser that is signed in."""
    async def work():
        async with api_bench.api(run_desk=False, **settings) as (desk, http):
            signed_in(http, may_act=False)
            reports = http.app.state.deps.reports
            (reports / "evidence").mkdir(parents=True, exist_ok=True)
            await go(reports, http, desk)
    story(work())


def put(reports, document, name="outcome_weekly_costs.json"):
    path = reports / "evidence" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def run_of(number=0, runbook="weekly_signal_study", **more):
    given = {"title": "Weekly signal study", "status": "done", "verdict": "PASS", "reason": "all checks passed", "started": "2025-11-11T06:00:00Z"} | more
    return Evidence(run_id=f"20251111T{number:06d}Z-1f9c2a", runbook=runbook, **given)


def keep(reports, evidence):
    folder = reports / evidence.runbook / evidence.run_id
    write_evidence(folder, evidence if evidence.status == "running" else sealed(evidence, "2025-11-11T06:00:05Z", 5.0))
    return folder


def address(evidence, more=""):
    return f"/ui/runs/{evidence.runbook}/{evidence.run_id}{more}"


def test_a_study_is_shown_with_its_window_age_curves_and_roster(api_bench):
    async def go(reports, http, desk):
        now = desk.deps.clock()
        week = study(now // DAY_MS * DAY_MS)
        publish_evidence(week, reports / "evidence")
        record_roster(reports / "evidence" / "roster_simulated.jsonl", week)
        page = await http.get("/ui/evidence")
        assert page.status_code == 200
        is_clean(page)
        said = text_of(page)
        for words in ("SIMULATED MARKET", "No edge: none of 70 tests", "isolation", "3,157", "2.7 bp at 60 min", "1,680 by hour", "its exit falls into a closure of the market", "no gates in the window.",
                      "desk's rule: UNPROVEN", "Decided 20", "No bundle study was published yet", "No summary of regimes was published yet"):
            assert words in said, words
        assert "older than 8 days" not in said and "Not recorded" not in said
        curve, = charts(page, "forward")
        assert curve["x"] == [5, 60, 240] and curve["long"]["mean"] == [-1.7] * 3 and curve["long"]["low"] == [-2.6, -2.6, -10.7] and curve["short"]["high"] == [0.1] * 3
        assert len(charts(page, "deciles")[0]["mean"]) == 10
        policy = page.headers["content-security-policy"]
        assert "frame-src 'self'" in policy and "unsafe" not in policy
    pages(api_bench, go)


def test_what_is_old_is_marked_and_real_candles_are_named(api_bench):
    async def go(reports, http, desk):
        now = desk.deps.clock()
        path = put(reports, study(now - 30 * DAY_MS, venue="oanda"))
        os.utime(path, (now / 1000 - 9 * 86_400,) * 2)
        page = await http.get("/ui/evidence")
        assert "Real candles: oanda file" in text_of(page) and text_of(page).count("older than 8 days") == 3 and "SIMULATED" not in text_of(page)
        assert "Not recorded: what both rules say" in text_of(page)
    pages(api_bench, go)


def test_earlier_weeks_are_chosen_by_name_and_compared(api_bench):
    async def go(reports, http, desk):
        first, second = study(1_762_732_800_000, -5.0), study(1_762_732_800_000 + 7 * DAY_MS, 4.0)
        for week in (first, study(1_762_732_800_000, -99.0, "oanda", generated_at="2025-11-15T00:00:00Z"), second):
            publish_evidence(week, reports / "evidence")
        put(reports, second)
        page = await http.get("/ui/evidence")
        assert "+4.0 bp was −5.0 bp ● apart" in re.sub(r"\s+", " ", text_of(page)) and "−99.0" not in text_of(page)
        name, = [n for n in re.findall(r'<option value="(outcome[^"]+)"', page.text) if "2025-11-10" in n and "20251111" in n]
        earlier = await http.get("/ui/evidence", params={"week": name})
        assert "an earlier publication" in text_of(earlier) and charts(earlier, "forward")[0]["long"]["mean"][0] == -5.0
        for bad in ("../outcome_weekly_costs.json", "nope", "x" * 500, EVIL, "outcome_weekly_20990101T000000Z.json"):
            page = await http.get("/ui/evidence", params={"week": bad})
            assert page.status_code == 200 and "This week is not in the archive." in text_of(page)
            is_clean(page)
    pages(api_bench, go)


def test_many_who_look_at_once_wait_for_each_other_and_not_the_desk(api_bench, monkeypatch):
    at_work, seen = [], []
    read = evidence_page.evidence_facts

    def slow(*args):
        at_work.append(threading.current_thread())
        seen.append((len(at_work), threading.current_thread() is threading.main_thread()))
        time.sleep(0.02)
        try:
            return read(*args)
        finally:
            at_work.pop()

    monkeypatch.setattr(evidence_page, "evidence_facts", slow)

    async def go(reports, http, desk):
        put(reports, study())
        evidence_page.cards_text.cache_clear()
        answers = await asyncio.gather(*(http.get("/ui/evidence") for _ in range(20)))
        assert {a.status_code for a in answers} == {200} and len({len(a.text) for a in answers}) == 1
        assert seen == [(1, False)] * 20 and evidence_page.cards_text.cache_info().misses == 1
    pages(api_bench, go)


HOSTILE = {
    "nothing": "", "not JSON": "{", "NaN": '{"instruments": {"A": {"5": {"avg_return_bp": NaN}}}}', "a list": "[]", "no instruments": "{}", "instruments are a list": '{"instruments": []}',
    "deep": "[" * 100_000, "binary": "\x00\x01", "words for numbers": {"schema_version": "two", "gates": "many", "window": {"start": 1, "end": []}, "dropped": [1], "multiplicity": "holm",
        "instruments": {"EUR_USD": {"60": {"avg_return_bp": "1.0", "ci95_bp": "x", "count": None, "hazard_deciles": {}, "by_admit": 3, "short": []}, "5": 7, "061": {}, "-1": {}}, "USD_JPY": 4}},
    "huge numbers": {"schema_version": 2, "gates": 10**300, "instruments": {"EUR_USD": {"60": cell(1e300), "99999999999": cell(), "٣": cell()}}},
    "instruments without names": {"instruments": {"": {"60": cell()}}},
    "sideways": {"schema_version": 2, "instruments": {"EUR_USD": {"60": cell(ci95_bp=[5, -5], positive_frac=7)}}},
    "a thousand instruments": {"schema_version": 2, "instruments": {f"P{i}": {"60": {"avg_return_bp": 1.0}} for i in range(1000)}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_evidence_gives_a_page(api_bench, name):
    async def go(reports, http, desk):
        for file in ("outcome_weekly_costs.json", "bundle_outcomes.json", "roc_regime_summary.json", "archive/outcome_weekly_2025-11-03_to_2025-11-10_20251111T080000Z.json"):
            put(reports, HOSTILE[name], file)
        for week in ("", "outcome_weekly_2025-11-03_to_2025-11-10_20251111T080000Z.json"):
            page = await http.get("/ui/evidence", params={"week": week})
            assert page.status_code == 200, page.text
            assert 'class="error"' in page.text, "nobody is told"
            is_clean(page)
    pages(api_bench, go)


def test_text_in_any_place_stays_text(api_bench):
    def evil(value):
        if isinstance(value, dict):
            return {(k if k in KEPT or k.isdigit() else k + EVIL): evil(v) for k, v in value.items()}
        return [evil(v) for v in value] if isinstance(value, list) else EVIL if isinstance(value, str) else value

    KEPT = {*study(), *cell(), *cell()["short"], "start", "end", "primary", "exploratory", "admitted", "note", "decile", "bundles", "regimes", "avg_bp", "count", "avg_roc_pct"}

    async def go(reports, http, desk):
        put(reports, evil(study()) | {"schema_version": 2, "generated_at": EVIL, "window": {"start": "2025-11-03T00:00:00Z", "end": "2025-11-10T00:00:00Z"}})
        put(reports, {"bundles": {EVIL: {"count": 3, "avg_bp": 1.0}}, "instruments": {EVIL: {EVIL: {"count": EVIL}}}, "generated_at": EVIL}, "bundle_outcomes.json")
        put(reports, {"regimes": {EVIL: {"60": {"count": 3, "avg_roc_pct": 1.0}}}}, "roc_regime_summary.json")
        record_roster(reports / "evidence" / "roster.jsonl", study() | {"instruments": {EVIL: {"60": cell()}}})
        page = await http.get("/ui/evidence")
        assert page.status_code == 200 and page.text.count("&lt;script&gt;") > 8 and "EUR_USD" in page.text
        is_clean(page)
    pages(api_bench, go)


def test_files_that_are_none_and_files_that_are_too_large(api_bench):
    async def go(reports, http, desk):
        path = reports / "evidence" / "outcome_weekly_costs.json"
        with open(path, "wb") as f:
            f.truncate(50_000_000)
        page = await http.get("/ui/evidence")
        assert page.status_code == 200 and "has 50 MB" in text_of(page) and "It was not read." in text_of(page)
        path.unlink()
        os.mkfifo(path)
        assert "is no file" in text_of(await http.get("/ui/evidence"))
        path.unlink()
        path.mkdir()
        assert "is no file" in text_of(await http.get("/ui/evidence"))
        path.rmdir()
        assert "No weekly study was published yet" in text_of(await http.get("/ui/evidence"))
        (reports / "evidence" / "roster.jsonl").write_text("not a line\n\n{}\n")
        put(reports, study(venue="oanda"))
        page = await http.get("/ui/evidence")
        assert "is not a week's entry" in text_of(page) and charts(page, "forward"), "the roster is broken, the study is not"
        (reports / "evidence" / "roster.jsonl").unlink()
        os.mkfifo(reports / "evidence" / "roster.jsonl")
        assert "roster.jsonl is no file" in text_of(await http.get("/ui/evidence"))
    pages(api_bench, go)


@pytest.mark.data
@pytest.mark.parametrize("name", ["outcome_weekly_costs.json", "outcome_weekly_2025-11-03_to_2025-11-10.json"])
def test_archived_evidence_is_shown_and_warned_of(api_bench, shared_data, name):
    golden = shared_data / "golden-study"

    async def go(reports, http, desk):
        page = await http.get("/ui/evidence")
        said = text_of(page)
        assert page.status_code == 200 and "Archived format" in said and "hundred times too large" in said and "mean_revert" in said and "MB003" in said
        assert "cannot be used" not in said
        curves = charts(page, "forward")
        assert len(curves) >= 4 and curves[0]["x"] == [5, 15, 30, 60, 240] and curves[0]["long"]["low"] == [None] * 5 and "this format has no intervals" in said
        if name == "outcome_weekly_costs.json":
            assert curves[1]["long"]["mean"][3] == pytest.approx(-1.8247, abs=1e-3)
    pages(api_bench, go, signal_evidence=str(golden / name), bundle_evidence=str(golden / "bundle_outcomes.json"), roc_evidence=str(golden / "roc_horizon_rollup.json"))


def test_runs_by_the_thousand_are_opened_only_for_the_rows_that_are_shown(api_bench, monkeypatch):
    opened = []
    read = evidence_facts.read_run
    monkeypatch.setattr(evidence_facts, "read_run", lambda path: opened.append(path) or read(path))

    async def go(reports, http, desk):
        for n in range(1500):
            folder = keep(reports, run_of(n, verdict="FAIL" if n % 500 == 0 else "PASS")) if n % 500 == 0 or n > 1450 else reports / "weekly_signal_study" / run_of(n).run_id
            if not folder.exists():
                folder.mkdir(parents=True)
                (folder / "evidence.json").write_text("{}")
        keep(reports, run_of(7, "gate_history", title=EVIL))
        page = await http.get("/ui/runs")
        first = re.findall(r'href="/ui/runs/weekly_signal_study/([^"]+)"', page.text)
        assert len(first) == 40 == len(opened) and first[0] == run_of(1499).run_id and first == sorted(first, reverse=True)
        await http.get("/ui/runs")
        assert len(opened) == 40
        more = await http.get(html.unescape(re.search(r'href="(/ui/runs\?[^"]*after=[^"]+)"', page.text)[1]))
        second = re.findall(r'href="/ui/runs/weekly_signal_study/([^"]+)"', more.text)
        assert second[0] < first[-1] and len(opened) == 80
        failed, seen = "/ui/runs?verdict=FAIL&runbook=weekly_signal_study", []
        for _ in range(9):
            page = await http.get(failed)
            seen += re.findall(r'href="/ui/runs/weekly_signal_study/([^"]+)"', page.text)
            on = re.search(r'class="button" href="(/ui/runs\?[^"]*after=[^"]+)">Older', page.text)
            if not on:
                break
            failed = html.unescape(on[1])
        assert seen == [run_of(n).run_id for n in (1000, 500, 0)]
        only = await http.get("/ui/runs", params={"runbook": "gate_history"})
        assert "gate_history/20251111T000007Z-1f9c2a" in only.text and "weekly_signal_study/" not in only.text
        is_clean(only)
        for bad in ({"runbook": "../.."}, {"verdict": EVIL}, {"after": EVIL}, {"runbook": "/etc", "after": "\x00"}):
            page = await http.get("/ui/runs", params=bad)
            assert page.status_code == 200
            is_clean(page)
    pages(api_bench, go)


def test_a_run_shows_everything_it_left(api_bench):
    async def go(reports, http, desk):
        failed = run_of(1, status="failed", verdict=None, reason="ValueError in build gates", mode="live", parameters={"mode": "live", EVIL: [EVIL]}, numbers={"gates": 3106, EVIL: {EVIL: EVIL}},
                        steps=[StepRecord(name="read candles", key="a", status="done", started="x", duration_s=0.2, counts={EVIL: 3}), StepRecord(name="build gates", key="b", status="failed", started="x", error=EVIL)],
                        checks=[CheckRecord(name="has gates", passed=True), CheckRecord(name=EVIL, passed=False, detail=EVIL)], notes=[EVIL], window={"start": EVIL, "end": "2025-11-10T00:00:00Z"},
                        error=ErrorRecord(type="ValueError", message=EVIL, step="build gates"), artefacts=[{"name": EVIL, "sha256": EVIL, "bytes": EVIL}], inputs=[{"name": EVIL, "sha256": EVIL}], versions={EVIL: EVIL})
        folder = keep(reports, failed)
        trace = ["Traceback (most recent call last)", "\x1b[0;31mValueError\x1b[0m: " + EVIL]
        (folder / "report.ipynb").write_text(json.dumps({"cells": [{"cell_type": "code", "source": "", "outputs": [{"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": trace}]}]}))
        page = await http.get(address(failed))
        said = text_of(page)
        assert page.status_code == 200 and "ValueError in the step “build gates”" in said and "Traceback (most recent call last) ValueError:" in said and "\x1b" not in page.text
        assert "sealed, unchanged" in said and "There is no report." in said and said.index("✗ failed \"'>") < said.index("has gates")
        is_clean(page)
        (folder / "evidence.json").write_text((folder / "evidence.json").read_text().replace('"gates": 3106', '"gates": 3107'))
        assert "seal broken" in text_of(await http.get(address(failed))) and "changed after it was sealed" in text_of(await http.get(address(failed)))
        (folder / "evidence.json").write_text('{"run_id": 1' + EVIL)
        broken = await http.get(address(failed))
        assert broken.status_code == 200 and "UNREADABLE" in text_of(broken)
        is_clean(broken)
        at_work = run_of(2, status="running", verdict=None, pid=os.getpid(), started=iso(system_clock()))
        keep(reports, at_work)
        assert "RUNNING" in text_of(await http.get(address(at_work))) and "still open" in text_of(await http.get(address(at_work)))
        for bad in ("/ui/runs/weekly_signal_study/none", "/ui/runs/%2e%2e%2f%2e%2e%2fetc/passwd", "/ui/runs/%2e%2e/%2e%2e", "/ui/runs/evidence/archive", "/ui/runs/weekly_signal_study/%00"):
            assert (await http.get(bad)).status_code in (400, 404), bad
    pages(api_bench, go)


def test_a_file_is_given_out_only_as_the_run_wrote_it(api_bench):
    async def go(reports, http, desk):
        named = [{"name": n, "sha256": sha256("a,b\n"), "bytes": 4} for n in ("roster.csv", "plots/a b.csv", "../../secret.csv", "link.csv", "gone.csv", "/etc/hostname")]
        folder = keep(reports, made := run_of(1, artefacts=named))
        (folder / "plots").mkdir()
        for path in (folder / "roster.csv", folder / "plots" / "a b.csv", reports / "secret.csv", folder / "unnamed.csv"):
            path.write_text("a,b\n")
        (folder / "link.csv").symlink_to(reports / "secret.csv")
        for name in ("roster.csv", "plots/a%20b.csv"):
            got = await http.get(address(made, f"/files/{name}"))
            assert got.status_code == 200 and got.content == b"a,b\n" and got.headers["content-disposition"].startswith("attachment") and got.headers["x-content-type-options"] == "nosniff"
        for name in ("unnamed.csv", "evidence.json", "..%2f..%2fsecret.csv", "link.csv", "gone.csv", "%2fetc%2fhostname", "plots/../roster.csv%00"):
            assert (await http.get(address(made, f"/files/{name}"))).status_code in (400, 404), name
        (folder / "roster.csv").write_text("a,c\n")
        assert (await http.get(address(made, "/files/roster.csv"))).status_code == 503
        http.cookies.clear()
        for more in ("", "/report", "/files/plots/a%20b.csv"):
            assert (await http.get(address(made, more))).status_code == 303, "nobody is asked who he is"
        assert (await http.get("/ui/evidence")).status_code == 303
    pages(api_bench, go)


HARM = """<!doctype html><html><head><style>p{color:green}</style><script>document.addEventListener("DOMContentLoaded",()=>document.body.append("RAN-head"))</script></head>
<body><p style="color:red">report</p><script>document.body.append("RAN-script");parent.document.title="taken"</script><img src=x onerror="document.body.append('RAN-onerror')">
<a href="javascript:document.body.append('RAN-link')" id=link>link</a><svg onload="document.body.append('RAN-svg')"></svg><iframe src="javascript:parent.document.body.append('RAN-frame')"></iframe>
<form action="/ui/logout" method=post id=form><button id=send>send</button></form><link rel=stylesheet href="/ui/static/desk.css"><meta http-equiv=refresh content="0;url=/ui/desk"></body></html>"""


def test_the_report_has_a_policy_of_its_own(api_bench):
    async def go(reports, http, desk):
        folder = keep(reports, made := run_of(1))
        notebook = {"cells": [{"cell_type": "markdown", "source": "# A\n\n|a|b|\n|:-|-:|\n|1|2|"}, {"cell_type": "code", "source": "1", "outputs": [{"output_type": "display_data", "data": {"text/html": HARM}}]}]}
        (folder / "report.ipynb").write_text(json.dumps(notebook))
        write_report(folder)
        page = await http.get(address(made))
        frame = re.search(r"<iframe[^>]*>", page.text)[0]
        assert 'sandbox=""' in frame and f'src="{address(made, "/report")}"' in frame
        report = await http.get(address(made, "/report"))
        policy = dict(p.strip().partition(" ")[::2] for p in report.headers["content-security-policy"].split(";"))
        assert policy.keys() == {"default-src", "img-src", "style-src", "base-uri", "form-action", "sandbox", "frame-ancestors"}
        assert (policy["default-src"], policy["img-src"], policy["sandbox"], policy["frame-ancestors"], policy["form-action"]) == ("'none'", "data:", "", "'self'", "'none'")
        assert "unsafe-inline" not in report.text + report.headers["content-security-policy"] and report.headers["x-frame-options"] == "SAMEORIGIN"
        assert policy["style-src"].count("sha256-") == 3 and "'unsafe-hashes'" in policy["style-src"], "the sheet, and the two columns of the table"
        (folder / "report.html").write_text("<p style='x" + "'><p style='x".join(map(str, range(500))) + "'>")
        assert (await http.get(address(made, "/report"))).headers["content-security-policy"].count("sha256-") == 64
        (folder / "report.html").unlink()
        assert (await http.get(address(made, "/report"))).status_code == 404
        (folder / "report.html").symlink_to("/etc/hostname")
        assert (await http.get(address(made, "/report"))).status_code == 404
    pages(api_bench, go)


def test_nothing_in_a_report_runs_in_a_browser(api_bench):
    """The same file runs everything where nothing holds it: else this test would prove nothing."""
    from playwright.async_api import async_playwright

    async def go():
        async with api_bench.served(run_desk=False) as (_, http):
            reports = api_bench.home / "reports"
            folder = keep(reports, made := run_of(1))
            (folder / "report.html").write_text(HARM)
            base = str(http.base_url).rstrip("/")
            async with async_playwright() as play:
                browser = await play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
                free = await browser.new_page()
                await free.set_content(HARM.replace("<meta", "<i"))
                await free.click("#link")
                assert {"RAN-head", "RAN-script", "RAN-onerror", "RAN-link"} <= set(re.findall(r"RAN-\w+", await free.content()))
                context = await browser.new_context()
                await context.add_cookies([{"name": COOKIE, "value": session_cookie(api_bench.settings(), "maria", True), "url": base, "sameSite": "Strict"}])
                page, asked = await context.new_page(), []
                page.on("response", lambda r: asked.append(r.url))
                await page.goto(base + address(made))
                await page.locator("iframe").scroll_into_view_if_needed()
                inside = page.frame_locator("iframe")
                await inside.locator("#link").click()
                await inside.locator("#send").click()
                await page.wait_for_timeout(500)
                text = await inside.locator("body").inner_text()
                assert "report" in text and "RAN" not in text and await page.title() != "taken" and page.url == base + address(made)
                colours = [await inside.locator("p").evaluate("e => getComputedStyle(e).color")]
                assert colours == ["rgb(255, 0, 0)"], "styles of the report itself are let through"
                assert not [u for u in asked if not u.startswith(base)] and not [u for u in asked if "logout" in u or u.endswith("/x")], "a request left the report"
                alone = await context.new_page()
                await alone.goto(base + address(made, "/report"))
                await alone.wait_for_timeout(300)
                assert "RAN" not in await alone.inner_text("body") and alone.url.endswith("/report")
                await browser.close()
    story(go(), 120)
