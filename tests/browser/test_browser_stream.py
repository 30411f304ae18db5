"""What comes while a page is open: a first gate, and a stream, a store or a desk that goes away and comes back."""
import os
import re
import signal
import time

from playwright.sync_api import expect
from test_browser_pages import breaches

GONE = (r"ERR_(CONNECTION_|EMPTY_RESPONSE|INCOMPLETE|NETWORK|FAILED|ABORTED|SOCKET)", r"(?i)\[?hx-sse|htmx|sse|network error|failed to fetch|TypeError: network")


def stays(page):
    """Mark it; a page that was loaded again has no mark."""
    page.evaluate("window.deskbookMark = 1")
    return lambda: page.evaluate("window.deskbookMark") == 1


def state(page):
    return page.locator("#stream-state")


def is_live(page, timeout_s=15):
    expect(page.locator("body")).to_have_attribute("data-stream", "live", timeout=timeout_s * 1000)


def goes_stale(page, since_s):
    """The promise: within five seconds, in words."""
    expect(state(page)).to_contain_text(re.compile("stale", re.I), timeout=8000)
    took = time.monotonic() - since_s
    assert took < 5.2, f"stale after {took:.1f} s"


def test_a_stream_that_is_cut_shows_as_stale_and_recovers(visitor, wire):
    p = visitor.page(url=wire.url, bypass_csp=True)
    p.watch.expect(*GONE)
    same = stays(p)
    is_live(p)
    wire.cut()
    goes_stale(p, time.monotonic())
    assert not (found := breaches(p)), "\n".join(found)  # what is stale can still be read
    wire.mend()
    is_live(p)
    assert same(), "by itself, not by loading the page again"


def test_a_stream_that_hangs_shows_as_stale_and_recovers(visitor, wire):
    p = visitor.page(url=wire.url)
    p.watch.expect(*GONE)
    same = stays(p)
    is_live(p)
    wire.hold()
    goes_stale(p, time.monotonic())
    wire.mend()
    is_live(p)
    assert same()


def test_the_desk_is_killed_and_comes_back_and_the_session_still_holds(visitor, desk):
    p = visitor.page()
    p.watch.expect(*GONE, r"status of 5\d\d")
    same = stays(p)
    is_live(p)
    desk.stop(signal.SIGKILL)
    goes_stale(p, time.monotonic())
    desk.start()
    is_live(p, 20)
    assert same()
    p.goto("/ui/orders")
    assert "/ui/orders" in p.url, "no new sign-in"


def test_valkey_is_killed_and_comes_back(visitor, desk, mortal):
    p = visitor.page()
    p.watch.expect(r"status of 5\d\d")
    same = stays(p)
    is_live(p)
    away = p.get_by_text(re.compile("Valkey (does not answer|DOWN)")).filter(visible=True)
    assert away.count() == 0, away.all_inner_texts()
    os.kill(mortal.valkey.pid, signal.SIGKILL)
    try:
        expect(away.first).to_be_visible(timeout=10_000)
        expect(p.locator("#hero")).to_contain_text("KILL SWITCH ENGAGED")
        assert p.goto("/ui/desk").status == 200, "a page can be opened while the store is away"
        expect(away.first).to_be_visible(timeout=10_000)
        same = stays(p)
    finally:
        mortal.valkey.revive()
    expect(away).to_have_count(0, timeout=20_000)
    assert same()


def test_the_first_gate_of_a_pair_appears_without_a_reload(visitor, desk):
    desk.forget_gates("GBP_USD")
    p = visitor.page()
    same = stays(p)
    card = p.get_by_role("region", name="GBP_USD", exact=True)
    expect(card).to_contain_text("There is no gate", timeout=10_000)
    desk.next_minute()
    expect(card).to_contain_text(re.compile("admitted"), timeout=15_000)
    expect(card).not_to_contain_text("There is no gate")
    expect(card.get_by_role("img", name=re.compile("hazard"))).to_be_visible()
    assert same()
