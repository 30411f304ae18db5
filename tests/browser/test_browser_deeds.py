"""What an operator does on the pages, and what becomes of it at the terminal, in the ledger and at the venue."""

import re
import secrets

import pytest
from desk_rig import until
from playwright.sync_api import expect


@pytest.fixture
def halted(desk):
    """The kill switch is engaged before and after."""
    desk.switch(True)
    yield desk
    desk.switch(True)


def confirmed(page, button):
    """Press a button, and say yes to its question."""
    page.get_by_role("button", name=button, exact=True).first.click()
    page.get_by_role("dialog").get_by_role("button", name=button).click()


def test_the_kill_switch_is_cleared_and_engaged_from_the_page(visitor, halted):
    p, hero = visitor.page(), "#hero"
    expect(p.locator(hero)).to_contain_text("KILL SWITCH ENGAGED")
    p.get_by_label("Reason for clearing it").fill("the cause is over")
    confirmed(p, "Clear the kill switch")
    expect(p.locator(hero)).to_contain_text("kill switch clear", timeout=8000)
    expect(p.locator("#notices")).to_contain_text("The kill switch is clear")
    assert not halted.killed(), "the terminal sees it"
    p.get_by_role("button", name="Stop all sending").click()
    expect(p.locator(hero)).to_contain_text("KILL SWITCH ENGAGED", timeout=8000)
    assert halted.killed()
    who = [r[0] for r in halted.rows("SELECT actor FROM ops_audit_events WHERE action = 'kill_switch.update' ORDER BY recorded_at DESC LIMIT 2")]
    assert len(who) == 2 and all(w.endswith("web:maria") for w in who), "the audit says who it was"


def test_clearing_asks_for_a_reason_and_a_yes(visitor, halted):
    p = visitor.page()
    p.get_by_role("button", name="Clear the kill switch").click()
    assert not p.get_by_role("dialog").count(), "without a reason nothing is asked"
    p.get_by_label("Reason for clearing it").fill("x")
    p.get_by_role("button", name="Clear the kill switch").click()
    p.keyboard.press("Enter")  # the safe answer has the focus
    expect(p.get_by_role("dialog")).to_have_count(0)
    assert halted.killed()


def test_the_kill_switch_engages_by_keyboard_alone(visitor, desk):
    desk.switch(False)
    try:
        p = visitor.page()
        expect(p.locator("#hero")).to_contain_text("kill switch clear")
        for _ in range(60):
            p.keyboard.press("Tab")
            if p.evaluate("document.activeElement.innerText") == "Stop all sending":
                break
        p.keyboard.press("Enter")
        expect(p.locator("#hero")).to_contain_text("KILL SWITCH ENGAGED", timeout=8000)
        assert desk.killed()
    finally:
        desk.switch(True)


def test_it_works_without_scripts(visitor, halted):
    p = visitor.page(java_script_enabled=False)
    p.get_by_label("Reason for clearing it").fill("no scripts here")
    p.get_by_role("button", name="Clear the kill switch").click()
    expect(p.locator("#kill-state")).to_contain_text("clear")
    assert not halted.killed() and p.url.endswith("/ui/desk")
    p.get_by_role("button", name="Stop all sending").click()
    expect(p.locator("#kill-state")).to_contain_text("ENGAGED")
    assert halted.killed()
    p.goto("/ui/tape")  # what would never come is not promised
    expect(p.locator(".top noscript")).to_be_visible()
    for promise in ("#stream-state", "#tape-state", "#tape-chart"):
        expect(p.locator(promise)).to_be_hidden()


def test_an_order_is_followed_from_the_gate_to_the_fill(visitor, halted):
    """A pair that is flat is entered as soon as the desk may; every step of it stands on one page."""
    until(lambda: halted.seen and halted.seen["pairs"], 10)
    flatten(halted, "USD_JPY")
    before = {r[0] for r in halted.rows("SELECT id FROM orders")}
    p = visitor.page("/ui/orders")
    halted.switch(False)
    halted.let_a_minute_pass()
    new = until(lambda: halted.rows("SELECT id, trace_id FROM orders WHERE kind = 'entry' AND state = 'filled' AND id <> ALL(%s)", [list(before)]), 30, why="an entry is filled")
    halted.switch(True)
    order, trace = map(str, new[0])
    link = p.locator(f"a[href^='/ui/trace/{trace}']").first
    expect(link).to_be_visible(timeout=8000)  # without a reload
    link.click()
    p.wait_for_url(f"**/ui/trace/{trace}*")
    for title in ("Gate", "Decision"):
        expect(p.get_by_role("heading", name=title, exact=True)).to_be_visible()
    way = p.locator("#way")
    expect(way.get_by_text("admits", exact=False).first).to_be_visible()
    expect(way).to_contain_text("enter")
    steps = way.locator(".timeline > li")
    expect(steps.first).to_contain_text("created")
    expect(steps.last).to_contain_text("filled")
    fill = halted.rows("SELECT fill_id FROM fills WHERE order_id = %s", [order])[0][0]
    expect(way.get_by_role("cell", name=fill, exact=True)).to_be_visible()


def flatten(desk, instrument):
    """Close it past the page."""
    if held(desk, instrument):
        r = desk.api("POST", "/api/trade/close", json={"instrument": instrument, "reduce_only": True}, headers={"Idempotency-Key": secrets.token_hex(8)})
        assert r.status_code < 300, r.text
        until(lambda: held(desk, instrument) == 0, 20, why=f"{instrument} is flat")


def held(desk, instrument):
    rows = desk.rows("SELECT units FROM positions WHERE instrument = %s", [instrument])
    return sum(r[0] for r in rows)


def test_a_position_is_closed_from_the_page(visitor, halted):
    if not held(halted, "GBP_USD"):
        halted.external(5000, "GBP_USD")
        until(lambda: held(halted, "GBP_USD"), 15, why="the desk has seen it")
    p = visitor.page("/ui/positions")
    card = p.locator(".card").filter(has=p.get_by_role("heading", name=re.compile("^GBP_USD"))).first
    card.get_by_role("link", name=re.compile("Close")).click()
    expect(p.locator("body")).to_contain_text(re.compile("kill switch is engaged", re.I))  # without the person's word nothing is sold
    p.get_by_role("checkbox", name=re.compile("although the kill switch")).check()
    p.get_by_role("button", name="Show what will happen").click()
    p.get_by_label("Why is it closed?").fill("it has to go")
    button = p.get_by_role("button", name=re.compile("at market"))
    name = button.inner_text()
    confirmed(p, name)
    expect(p.locator("#close-box")).to_contain_text("filled", timeout=10_000)
    until(lambda: held(halted, "GBP_USD") == 0, 10, why="nothing is held")
    said = [str(r[0]) for r in halted.rows("SELECT metadata FROM ops_audit_events WHERE actor LIKE '%%web:maria'")]
    assert any("it has to go" in s for s in said), said
    p.goto("/ui/positions")
    assert not p.locator("#positions-now").get_by_text("GBP_USD").count()


def start(page, **typed):
    page.goto("/ui/runbooks/seed_keys")
    form = page.locator("#run-form")
    for name, value in typed.items():
        box = form.locator(f"[name='p-{name}']")
        form.locator(f"[name='p-{name}'][value='{value}']").check() if box.first.get_attribute("type") == "radio" else box.fill(value)
    return form


def ends_as(page, word):
    until(lambda: page.wait_for_timeout(100) or "/ui/runbooks/runs/seed_keys/" in page.url, 60, why=lambda: page.locator("main").inner_text())
    expect(page.locator("#run-progress")).to_contain_text(word, timeout=60_000)
    return page.url.rpartition("/")[2]


@pytest.mark.timeout(240)
def test_a_runbook_runs_dry_then_live_with_a_typed_confirmation(visitor, halted):
    halted.a_run()  # the run of the fixture holds the lock until it has ended
    p = visitor.page("/ui/runbooks")
    p.watch.expect("status of (409|422)")
    p.get_by_role("link", name="Seed keys").first.click()
    start(p).get_by_role("button", name="Start the run").click()
    dry = ends_as(p, "PASS")
    expect(p.locator("#run-progress .timeline")).to_be_visible()
    form = start(p, mode="live", by="maria", why="a test")
    form.get_by_role("button", name="Start the run").click()
    expect(p.get_by_text(re.compile("confirm|phrase", re.I)).first).to_be_visible()
    assert "/runs/" not in p.url, "without the words nothing starts"
    form = start(p, mode="live", by="maria", why="a test")
    form.locator("[name=confirm]").fill("live seed_keys")
    form.get_by_role("button", name="Start the run").click()
    live = ends_as(p, "PASS")
    assert live != dry
    modes = {r[0]["mode"] for r in halted.rows("SELECT metadata FROM ops_audit_events WHERE action = 'runbook.start' AND actor LIKE '%%web:maria'")}
    assert modes == {"dry", "live"}
    p.get_by_role("link", name="Open the report").click()
    frame = p.frame_locator("iframe.report")
    expect(frame.locator("body")).to_contain_text("Seed keys")
    assert p.locator("iframe.report").get_attribute("sandbox") == ""
