"""Every page, as it looks: nothing that a person cannot read or reach, on a phone, on a wide screen, in the light and in the dark."""
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]


def settled(page):
    """Everything has come that a page asks for at its start."""
    page.wait_for_load_state()
    if page.locator("#stream").count():
        expect(page.locator("body")).to_have_attribute("data-stream", "live", timeout=15_000)
        page.wait_for_timeout(300)
        # the first sign of life says how far the desk's clock is from the browser's: here by days
        expect(page.locator("#hero time.age").filter(has_text=re.compile("[0-9] d ago"))).to_have_count(0)
    return page


def breaches(page):
    """What axe finds, a line each."""
    page.evaluate(AXE)
    found = page.evaluate("tags => axe.run(document, {runOnly: tags, resultTypes: ['violations']})", TAGS)["violations"]
    return [f"{v['id']}: {n['html'][:200]} ({n['failureSummary'].splitlines()[-1].strip()[:200]})" for v in found for n in v["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_barrier(visitor, any_page, scheme, shots, request):
    p = settled(visitor.page(any_page, color_scheme=scheme, viewport={"width": 1280, "height": 900}, bypass_csp=True))  # axe makes functions of text
    name = request.node.callspec.params["any_page"]
    p.screenshot(path=shots / f"{name}-{scheme}.png", full_page=True)
    assert not (found := breaches(p)), "\n".join(found)


WIDER = """width => [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > width + 1 && !e.closest('.wide, .sr, .skip'))
    .slice(0, 5).map(e => e.outerHTML.slice(0, 120))"""


def test_the_page_is_not_wider_than_a_phone_nor_a_wall(visitor, any_page, shots, request):
    p = settled(visitor.page(any_page, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True))
    p.screenshot(path=shots / f"{request.node.callspec.params['any_page']}-phone.png", full_page=True)
    for width in (390, 2560):
        p.set_viewport_size({"width": width, "height": 844})
        assert p.evaluate("document.documentElement.scrollWidth") <= width, (width, p.evaluate(WIDER, width))


def tabbed(page, most=150):
    """What Tab reaches, in order: a description of each, and whether it can be seen to have the focus."""
    seen = []
    for _ in range(most):
        page.keyboard.press("Tab")
        at = page.evaluate("""() => { const e = document.activeElement; if (!e || e === document.body) return null
            const s = getComputedStyle(e), r = e.getBoundingClientRect()
            const ring = (s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0) || s.boxShadow !== 'none'
            e.reachedByTab = true  // no attribute: the stream would put those back
            return {what: `${e.tagName} ${(e.getAttribute('aria-label') || e.innerText || e.name || e.id || '').trim().slice(0, 40)}`, ring: ring || e.tagName === 'IFRAME', there: r.width > 0 && r.height > 0} }""")
        if at is None:
            return seen
        seen.append(at)
    return seen


def test_the_keyboard_reaches_everything_that_can_be_done(visitor, any_page):
    p = settled(visitor.page(any_page))
    assert p.locator("h1").count() == 1 and p.title().endswith("· deskbook") and p.locator("html").get_attribute("lang") == "en"
    p.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    seen = tabbed(p, 400)
    assert seen and (seen[0]["what"] == "A Skip to the page" or "/ui/login" in any_page)
    assert not [s["what"] for s in seen if not s["ring"]], "the focus is visible"
    missed = p.evaluate("""() => [...document.querySelectorAll('button, a[href], input:not([type=hidden]), select, textarea, summary')]
        .filter(e => !e.matches(':disabled') && !e.reachedByTab && e.getClientRects().length && !(e.type === 'radio')).map(e => e.outerHTML.slice(0, 150))""")
    assert not missed, "\n".join(missed)
