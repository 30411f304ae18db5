"""Text that would like to be script, in every field that reaches a page: it is shown, and nothing of it runs."""
import contextlib
import json
from urllib.parse import quote

import pytest
from conftest import PAGES, Visitor, checked, session
from desk_rig import until

MARK = "zzmark"
XSS = f"""{MARK}'"></td></pre></textarea></iframe></script><img src=x onerror=window.__xss=1><script>window.__xss=1</script><svg/onload=window.__xss=1>{{{{7*7}}}}"""
KEPT = {"orders": "account kind side position_side type time_in_force state run_id", "decisions": "account verdict", "fills": "account liquidity",
        "order_events": "account from_state to_state", "ops_alerts": "severity status", "ops_audit_events": "chain"}
REFUSED = r"Failed to load resource: the server responded with a status of (400|404|409|422)"


def twin(desk, table, where, **more):
    """A row like one that is there, with hostile text wherever text may stand; its new values. Named columns keep theirs."""
    columns = desk.rows("SELECT column_name, data_type FROM information_schema.columns WHERE table_name = %s", [table])
    bad = {"text": XSS, "jsonb": {XSS: XSS, "list": [XSS]}, "ARRAY": [XSS]}
    new = {name: bad[kind] for name, kind in columns if kind in bad and name not in KEPT[table].split()} | more
    desk.rows(f"INSERT INTO {table} SELECT (jsonb_populate_record(NULL::{table}, to_jsonb(x) || %s::jsonb)).* FROM {table} x WHERE {where} LIMIT 1", [json.dumps(new)])


# What makes a document what it is; with these spoilt it would be refused as a whole.
SHAPE = ("ts", "time", "asof", "schema", "version", "instrument", "format", "status", "verdict", "mode", "run_id", "runbook")


def poisoned(value):
    """The same JSON; every text in it is hostile, except moments and numbers."""
    if isinstance(value, dict):
        return {k: [XSS] if k == "reasons" else v if k in SHAPE else poisoned(v) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(v) for v in value]
    return XSS if isinstance(value, str) and value.strip() and not value[0].isdigit() else value


ORDER, DECISION, TRACE = "00000000-0000-4000-8000-00000000bad1", "00000000-0000-4000-8000-00000000bad2", "bad0bad0bad0bad0bad0bad0bad0bad0"


def poison_ledger(desk):
    twin(desk, "decisions", "verdict = 'enter'", id=DECISION, trace_id=TRACE)
    twin(desk, "orders", "state = 'filled'", id=ORDER, decision_id=DECISION, trace_id=TRACE, parent_order_id=None)
    twin(desk, "order_events", "to_state = 'filled'", order_id=ORDER, seq=10**9)
    twin(desk, "fills", "true", order_id=ORDER)
    for n, severity in enumerate(("high", "medium", "low")):
        desk.rows("""INSERT INTO ops_alerts (id, fingerprint, category, severity, metric, message, metadata, status, count, triggered_at, last_seen_at, acknowledged_by)
                     VALUES (gen_random_uuid(), %s, %s, %s, %s, %s, %s, %s, 1, now(), now(), %s)""",
                  [f"{n}{XSS}", XSS, severity, XSS, XSS, json.dumps({XSS: XSS}), ("open", "open", "acknowledged")[n], XSS])
    twin(desk, "ops_audit_events", "chain = 'audit'", seq=10**9)


def poison_valkey(desk):
    with contextlib.closing(desk.valkey) as r:
        for key in r.scan_iter(f"{desk.prefix}*", count=1000):
            if r.type(key) != b"string" or b"kill_switch" in key:
                continue
            with contextlib.suppress(ValueError):
                value = json.loads(r.get(key))
                if isinstance(value, dict):
                    r.set(key, json.dumps(poisoned(value)), keepttl=True)


def poison_report(desk):
    """Somebody's notebook printed script, and the evidence of its run is full of it."""
    folder = desk.reports / desk.a_run()
    evidence = json.loads((folder / "evidence.json").read_text())
    evidence |= {"error": {"type": "x", "message": "x", "step": "x", "exit_code": 1}, "notes": ["x"], "reason": "x", "parameters": evidence["parameters"] | {"by": "x", XSS: "x"}, "numbers": {XSS: "x"}}
    (folder / "evidence.json").write_text(json.dumps(poisoned(evidence)))
    for page in folder.glob("*.html"):
        page.write_text(page.read_text().replace("</body>", f"<p>{MARK}</p><script>window.__xss=1;top.__xss=1</script><img src=x onerror='top.__xss=1'></body>"))
    (folder / "run.log").write_text(XSS)


@pytest.fixture(scope="module")
def poisoned_desk(a_desk):
    with a_desk() as d:
        d.switch(False)
        until(lambda: any(o["state"] == "filled" for o in d.seen.get("orders", [])), 40, why="an order is filled")
        assert d.api("POST", "/api/kill-switch", json={"kill_switch": True, "reason": XSS, "by": XSS[:100]}).status_code < 300
        d.run_once()
        poison_report(d)
        poison_ledger(d)
        poison_valkey(d)
        yield d


@pytest.fixture
def victim(browser, poisoned_desk):
    v = Visitor(browser, poisoned_desk)
    yield v
    checked(v)


def unharmed(page):
    """Nothing ran, in no frame."""
    page.wait_for_load_state()
    page.wait_for_timeout(700)  # the stream has brought its parts
    for frame in page.frames:
        assert frame.evaluate("window.__xss") is None, frame.url
    assert not page.locator("img[src=x]").count() and not page.locator("main script").count()
    return page


ADDRESSES = {**PAGES, "trace": lambda d: f"/ui/trace/{TRACE}", "order": lambda d: f"/ui/orders/{ORDER}"}
SHOWS = {"desk", "orders", "trace", "order", "progress", "run", "ops"}  # there it must be seen, or this test would show nothing


@pytest.mark.parametrize("name", ADDRESSES)
def test_hostile_text_is_shown_and_never_run(victim, poisoned_desk, name):
    poison_valkey(poisoned_desk)
    p = victim.page(ADDRESSES[name](poisoned_desk), cookie=session(XSS[:40]))
    if name == "run":
        p.watch.expect("policy: |Content Security Policy|Blocked script execution|sandboxed")  # of the frame with the report
    unharmed(p)
    assert name not in SHOWS or MARK in p.locator("body").inner_text()


BAD = quote(XSS, safe="")
@pytest.mark.parametrize("path", [f"/ui/tape?pair={BAD}", f"/ui/orders?pair={BAD}&state={BAD}", f"/ui/positions?pair={BAD}", f"/ui/trace/{BAD}", f"/ui/trace/x?order={BAD}", f"/ui/orders/{BAD}",
                                  f"/ui/runbooks/{BAD}", f"/ui/runs/{BAD}/{BAD}", f"/ui/runbooks/runs/{BAD}/{BAD}", f"/ui/runbooks/starts/{BAD}", f"/ui/evidence?runbook={BAD}&window={BAD}",
                                  f"/ui/ops?actor={BAD}&kind={BAD}", f"/ui/{BAD}", f"/ui/login?next={BAD}", "/ui/login?next=javascript:window.__xss=1", "/ui/login?next=//127.0.0.2:9/"])
def test_hostile_addresses_are_answered_and_never_run(victim, path):
    p = victim.page(path)
    p.watch.expect(REFUSED)
    unharmed(p)
    for link in p.locator("a[href]").all():
        assert not link.get_attribute("href").lower().startswith(("javascript:", "data:", "//")), path


def test_hostile_parameters_of_a_runbook_come_back_as_text(victim):
    p = victim.page("/ui/runbooks/seed_keys")
    p.watch.expect(REFUSED)
    for name in ("by", "why", "account"):
        p.locator(f"[name$='{name}']").first.fill(XSS)
    p.locator("form[action='/ui/runbooks/seed_keys'] button[type=submit]").first.click()
    unharmed(p)
    p.wait_for_url("**/ui/runbooks/runs/**", timeout=30_000)
    unharmed(p)


def test_the_page_itself_would_notice(victim):
    """The watch finds what it is for: without this, a test that finds nothing shows nothing."""
    p = victim.page("/ui/desk")
    p.evaluate("document.body.insertAdjacentHTML('beforeend', '<i id=bad></i>'); document.getElementById('bad').setAttribute('onclick', 'window.__xss=1')")
    p.locator("#bad").dispatch_event("click")
    assert any("policy: script-src" in c for c in p.watch.complaints)
    assert p.evaluate("window.__xss") is None
    p.watch.expect("policy: script-src", "Content Security Policy|Refused to execute")


