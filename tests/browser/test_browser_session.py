"""Who may see pages, who may act, and who cannot: tokens, sessions, forged requests, looking only."""
import itertools
import re
import socketserver
import threading
from http.server import BaseHTTPRequestHandler

import httpx
import pytest
from conftest import session
from deskbook.app.dashboard.session import LIFE_S, csrf_of
from deskbook.core.settings import Settings
from desk_rig import DEAF, TOKEN, VIEW_TOKEN, until
from playwright.sync_api import expect

REFUSED = r"Failed to load resource: the server responded with a status of (401|403|404|405|429)"
addresses = (f"127.0.0.{n}" for n in itertools.count(11))  # the desk counts attempts by address


def sign_in(page, token, name="maria", button="Sign in"):
    page.get_by_label("Your name").fill(name)
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name=button, exact=True).click()


def test_the_token_is_exchanged_for_a_session_that_no_script_can_read(visitor, desk):
    p = visitor.page("/ui/ops", name="")
    assert "/ui/login" in p.url
    sign_in(p, TOKEN)
    p.wait_for_url("**/ui/ops")
    cookie, = p.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/ui") and TOKEN not in cookie["value"]
    assert p.evaluate("document.cookie") == ""
    assert p.get_by_text("maria").count(), "the page says who is signed in"


def test_a_wrong_token_says_so_and_opens_nothing(visitor):
    p = visitor.page("/ui/desk", name="")
    p.watch.expect(REFUSED)
    sign_in(p, "tok-guess")
    assert p.get_by_role("alert").inner_text() == "This is not the token."
    assert p.context.cookies() == [] and p.get_by_label("Token").input_value() == "", "nothing is kept, nothing is shown again"
    p.goto("/ui/desk")
    assert "/ui/login" in p.url


def test_too_many_wrong_tokens_are_not_looked_at(desk):
    with httpx.Client(base_url=desk.url, transport=httpx.HTTPTransport(local_address=next(addresses)), **DEAF) as c:
        said = [c.post("/ui/login", data={"token": f"guess {n}"}) for n in range(12)]
        assert said[0].status_code == 401 and said[-1].status_code == 429 and 0 < int(said[-1].headers["retry-after"]) <= 60
        assert c.post("/ui/login", data={"token": TOKEN}).status_code == 429, "the right one would not tell whoever guesses that it was right"
    with httpx.Client(base_url=desk.url, transport=httpx.HTTPTransport(local_address=next(addresses)), **DEAF) as c:
        assert c.post("/ui/login", data={"token": TOKEN}).status_code == 303, "others may sign in"


@pytest.mark.parametrize("cookie, why", [
    (lambda: session(age_s=LIFE_S + 60), "expired"),
    (lambda: session()[:-4] + "AAAA", "signed by nobody"),
    (lambda: "x", "no session at all"),
])
def test_a_session_that_does_not_hold_leads_to_the_login(visitor, cookie, why):
    p = visitor.page("/ui/orders", cookie=cookie())
    assert "/ui/login" in p.url and p.get_by_label("Token").is_visible(), why


def test_a_session_that_ends_while_a_page_is_open_asks_for_the_token_again(visitor, wire):
    """At the latest when the stream has to be opened again."""
    p = visitor.page("/ui/desk", url=wire.url)
    p.watch.expect(REFUSED, r"ERR_(CONNECTION_|EMPTY_RESPONSE|INCOMPLETE|NETWORK|FAILED|ABORTED)", r"(?i)sse|htmx|failed to fetch|network error")
    expect(p.locator("body")).to_have_attribute("data-stream", "live")
    p.context.clear_cookies()
    wire.cut()
    wire.mend()
    p.wait_for_url("**/ui/login*", timeout=20_000)


def test_signing_out_ends_the_session_for_whoever_kept_the_cookie(visitor, desk):
    p = visitor.page("/ui/desk")
    kept = p.context.cookies()[0]["value"]
    p.get_by_role("button", name="Sign out").click()
    p.wait_for_url("**/ui/login*")
    assert p.context.cookies() == []
    r = httpx.get(f"{desk.url}/ui/desk", cookies={"deskbook_session": kept}, **DEAF)
    assert r.status_code == 303 and "/ui/login" in r.headers["location"]


def test_who_only_looks_finds_every_deed_disabled(visitor, any_page):
    p = visitor.page(any_page, may_act=False)
    p.wait_for_load_state()
    acting = p.locator("form[method=post] button:enabled")
    assert {t.strip() for t in acting.all_inner_texts()} <= {"Sign out", "Sign in", "Sign in, look only"}
    assert "/ui/login" in any_page or p.get_by_text("view only").count(), "the page says so"


def test_the_viewing_token_never_acts_whatever_is_asked_for(desk):
    with httpx.Client(base_url=desk.url, transport=httpx.HTTPTransport(local_address=next(addresses)), **DEAF) as c:
        assert c.post("/ui/login", data={"token": VIEW_TOKEN, "as": "act"}).status_code == 303
        csrf = re.search(r'name="csrf" value="([0-9a-f]+)"', c.get("/ui/desk").text)[1]
        assert c.post("/ui/desk/stop", data={"csrf": csrf}).status_code == 403
        assert httpx.post(f"{desk.url}/api/kill-switch", headers={"Authorization": f"Bearer {VIEW_TOKEN}"}, json={"kill_switch": True, "reason": "x"},
                          **DEAF).status_code in (401, 403)


# -- every address that takes a POST -----------------------------------------------------------------------------------------------------------
def acting_routes():
    """All of them, from the application itself, so that a new one is tried too."""
    from deskbook.app.dashboard.pages import routers

    found = [r.path for router in routers() for r in router.routes if "POST" in getattr(r, "methods", ())]
    acting = sorted(p for p in found if p not in ("/ui/login", "/ui/logout"))
    assert acting
    return acting


def address(path):
    return re.sub(r"\{[^}]*\}", "x", path)


def evidence_of_deeds(desk):
    """What would have changed."""
    return desk.halted(), desk.rows("SELECT (SELECT count(*) FROM ops_audit_events WHERE actor LIKE '%%web:%%'), (SELECT count(*) FROM orders)")[0]


SETTINGS = Settings(api_token=TOKEN, api_view_token=VIEW_TOKEN)
FORGED = {
    "no token": {"data": {"why": "x"}},
    "the token of another session": {"data": {"why": "x", "csrf": csrf_of(SETTINGS, "b" * 24)}},
    "from another site": {"data": {"csrf": csrf_of(SETTINGS, "a" * 24)}, "headers": {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"}},
    "from an unnamed place": {"data": {"csrf": csrf_of(SETTINGS, "a" * 24)}, "headers": {"Origin": "null"}},
}


@pytest.mark.parametrize("way", FORGED)
def test_no_forged_post_does_anything(desk, way):
    mine, before = {"deskbook_session": session(sid="a" * 24)}, evidence_of_deeds(desk)
    for path in acting_routes():
        r = httpx.post(desk.url + address(path), cookies=mine, **FORGED[way], **DEAF)
        assert r.status_code == 403, (path, r.status_code, r.text[:300])
    assert evidence_of_deeds(desk) == before


def test_nothing_is_done_without_a_session_nor_by_who_only_looks(desk):
    before = evidence_of_deeds(desk)
    for path in acting_routes():
        assert httpx.post(desk.url + address(path), data={"why": "x"}, **DEAF).status_code in (303, 401, 403), path
        r = httpx.post(desk.url + address(path), cookies={"deskbook_session": session(may_act=False, sid="a" * 24)},
                       data={"csrf": csrf_of(SETTINGS, "a" * 24), "why": "x"}, **DEAF)
        assert r.status_code == 403, (path, r.status_code)
    assert evidence_of_deeds(desk) == before


def test_a_get_never_acts(desk):
    before = evidence_of_deeds(desk)
    for path in acting_routes():
        r = httpx.get(desk.url + address(path), cookies={"deskbook_session": session()}, **DEAF)
        assert r.status_code in (200, 404, 405), (path, r.status_code)
    assert evidence_of_deeds(desk) == before


class Elsewhere(BaseHTTPRequestHandler):
    """A page of another origin that sends a form to the desk as soon as it is opened."""

    def do_GET(self):
        to = f"http://127.0.0.1:{self.server.target}/ui/desk/clear"
        page = f"<form id=f method=post action='{to}'><input name=why_clear value=x></form><script>f.submit()</script>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(page if self.path == "/" else b"")

    def log_message(self, *_):
        """Quiet."""


def test_a_page_on_another_port_cannot_act_in_the_name_of_who_is_signed_in(visitor, desk):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Elsewhere) as server:
        server.target = desk.port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        c = visitor.context(homes=[f"http://127.0.0.1:{server.server_address[1]}"])
        c.watch.expect(REFUSED)
        p = c.new_page()
        answers = []
        c.on("response", lambda r: answers.append((r.request.method, r.url, r.status)))
        p.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        until(lambda: p.wait_for_timeout(50) or [a for a in answers if a[0] == "POST"], 10)
        server.shutdown()
    assert next(status for method, _, status in answers if method == "POST") in (303, 401, 403)
    assert desk.halted(), "it stays engaged"


def test_the_tokens_stand_in_nothing_that_a_browser_gets(visitor, desk, any_page):
    c = visitor.context()
    bodies = []
    c.on("response", lambda r: bodies.append(r) if "/ui/events" not in r.url else None)
    p = c.new_page()
    p.goto(any_page)
    p.wait_for_load_state()
    seen = [r.text() for r in bodies if r.status == 200] + [p.content(), p.evaluate("JSON.stringify([document.cookie, {...localStorage}, {...sessionStorage}])")]
    assert not [t[:80] for t in seen if TOKEN in t or VIEW_TOKEN in t]
