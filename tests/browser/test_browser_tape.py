"""The tape in a browser: bars come, history is loaded by mouse and keys, and what happened at a bar is said in words."""
import re
from itertools import pairwise

import pytest
from playwright.sync_api import expect
from test_browser_pages import settled

BARS = "window.deskbookTape ? deskbookTape.chart.getDataList().map(b => b.timestamp) : []"


def bars(page):
    return page.evaluate(BARS)


def tape(visitor, pair, interval="M1", show="all", **how):
    """The page, when its chart has bars."""
    p = settled(visitor.page(f"/ui/tape?pair={pair}&interval={interval}&show={show}", **how))
    expect(p.locator("#tape-state")).to_contain_text("bars from")
    assert bars(p)
    return p


def traded(desk):
    """A pair with fills, and the account that traded it."""
    return desk.rows("SELECT instrument, account FROM fills ORDER BY filled_at LIMIT 1")[0]


def drag(page, by):
    """Pull the chart to the right, as one does to see what was before."""
    box = page.locator("#tape-chart").bounding_box()
    x, y = box["x"] + 40, box["y"] + 120
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + min(by, box["width"] - 120), y, steps=5)
    page.mouse.up()


def test_older_bars_come_as_one_scrolls_and_none_twice(visitor, desk):
    p = tape(visitor, traded(desk)[0])
    first = bars(p)
    for _ in range(60):
        drag(p, 1000)
        p.wait_for_timeout(60)
        if len(bars(p)) > len(first) or "beginning" in p.locator("#tape-state").inner_text():
            break
    expect(p.locator("#tape-state")).to_contain_text(re.compile("bars from"))
    seen = bars(p)
    assert all(a < b for a, b in pairwise(seen)) and seen[-len(first):][0] <= first[0]
    assert len(seen) > len(first) or "beginning of what is kept" in p.locator("#tape-state").inner_text()


def test_keys_go_from_bar_to_bar_and_to_the_fills_and_say_what_was(visitor, desk):
    pair, account = traded(desk)
    p = tape(visitor, pair)
    chart, said = p.locator("#tape-chart"), p.locator("#tape-said")
    chart.focus()
    p.keyboard.press("End")
    expect(said).to_contain_text("open ")
    newest = said.inner_text()[:16]
    p.keyboard.press("ArrowLeft")
    expect(said).not_to_contain_text(newest)
    p.keyboard.press("End")
    for _ in range(12):
        if f"sandbox account {account} bought" in said.inner_text() or f"sandbox account {account} sold" in said.inner_text():
            break
        p.keyboard.press("Shift+ArrowLeft")
    expect(said).to_contain_text(re.compile(f"sandbox account {account} (bought|sold) [0-9,.]+ at [0-9.]+"))
    expect(p.locator("#tape-readout .of-sandbox").first).to_be_visible()


@pytest.mark.parametrize("show, fills", [("paper", True), ("live", False)])
def test_fills_of_other_accounts_are_left_out(visitor, desk, show, fills):
    p = tape(visitor, traded(desk)[0], show=show)
    found = p.evaluate("deskbookTape.chart.getDataList().reduce((n, b) => n + b.fills.length, 0)")
    assert (found > 0) is fills


@pytest.mark.parametrize("interval", ["M5", "M15", "H1", "H4", "D"])
def test_every_length_of_bar_is_drawn(visitor, desk, interval):
    p = tape(visitor, traded(desk)[0], interval)
    assert p.evaluate("deskbookTape.chart.getDataList().at(-1).gate?.n ?? 0") >= 1


@pytest.mark.parametrize("how", [{"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}, {"viewport": {"width": 2560, "height": 1300}}], ids=["phone", "wall"])
def test_it_fits_the_screen_and_follows_light_and_dark(visitor, desk, shots, how):
    p = tape(visitor, traded(desk)[0], **how)
    assert not p.evaluate("document.documentElement.scrollWidth > innerWidth")
    before = p.evaluate("deskbookTape.chart.getStyles().candle.bar.downColor")
    p.locator("#theme").click()
    assert p.evaluate("deskbookTape.chart.getStyles().candle.bar.downColor") != before
    p.screenshot(path=shots / f"tape-{how['viewport']['width']}.png", full_page=True)
    chosen = p.locator("html").get_attribute("data-theme")
    p.reload()
    assert chosen and p.locator("html").get_attribute("data-theme") == chosen


def test_a_finger_moves_the_page_up_and_down_and_the_chart_sideways(visitor, desk):
    p = tape(visitor, traded(desk)[0], viewport={"width": 390, "height": 700}, has_touch=True)
    touch = p.context.new_cdp_session(p)
    p.evaluate("document.getElementById('tape-chart').scrollIntoView()")

    def swipe(dx, dy):
        box = p.locator("#tape-chart").bounding_box()
        x, y = box["x"] + 60, box["y"] + 60
        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        for k in range(1, 10):
            touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x + dx * k / 9, "y": y + dy * k / 9}]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        p.wait_for_timeout(500)
        return p.evaluate("[scrollY, deskbookTape.chart.getVisibleRange().realFrom]")

    page, bar = p.evaluate("[scrollY, deskbookTape.chart.getVisibleRange().realFrom]")
    sideways = swipe(180, 2)
    assert sideways[0] == page and sideways[1] < bar
    assert swipe(2, 200)[0] < page
