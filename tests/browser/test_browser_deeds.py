"""What an operator does on the pages, and what becomes of it at the terminal, in the ledger and at the venue."""

import pytest
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
