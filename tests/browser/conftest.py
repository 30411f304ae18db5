"""A running desk, and a Chromium whose every request and complaint is kept."""
import contextlib
import os
import re
import shutil
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from chromium import chromium
from databases import fresh_database
from desk_rig import HERE, TOKEN, VIEW_TOKEN, Desk, Proxy, open_market, until

ROOT = HERE.parents[1]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(90))


# -- the desk ----------------------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def mortal(servers_folder):
    """A PostgreSQL and a Valkey of these tests alone, which may be killed and revived."""
    from deskbook.core.errors import NotFound
    from deskbook.stores.embedded import servers

    subprocess.run([sys.executable, ROOT / "tools" / "system_packages.py"], check=False, capture_output=True, timeout=600)
    folder = servers_folder.with_name(f"{servers_folder.name}-browser-{os.environ.get('PYTEST_XDIST_WORKER', '')}")  # killed by one process of the tests, not by the other
    try:
        with servers(folder=folder) as both:
            yield both
    except NotFound as e:
        pytest.fail(str(e))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def a_desk(mortal, tmp_path_factory):
    """a_desk(): a context with a desk of one's own above the common servers."""
    from deskbook.stores.ledger_migrate import migrate

    @contextlib.contextmanager
    def make(**env):
        home = tmp_path_factory.mktemp("desk")
        with fresh_database(mortal.postgres_url) as url, open_market(home / "market") as market:
            migrate(url)
            desk = Desk(home, url, mortal, market, **env).start()
            try:
                yield desk
            finally:
                ended = desk.stop()
            assert ended == 0, desk.log_tail()

    return make


@pytest.fixture(scope="session")
def desk(a_desk):
    """A desk that has gates, has traded, and stands still again."""
    with a_desk() as d:
        until(lambda: all(p["gate_age_s"] is not None for p in d.seen.get("pairs", [{"gate_age_s": None}])), 60, why="gates")
        d.switch(False)
        until(lambda: any(o["state"] == "filled" for o in d.seen.get("orders", [])), 30, why="a first order is filled")
        d.switch(True)
        d.run_once()
        yield d


# Every page. A new one is one line here, and every test below is made of it, too.
PAGES = {
    "login": lambda d: "/ui/login",
    "desk": lambda d: "/ui/desk",
    "tape": lambda d: "/ui/tape",
    "orders": lambda d: "/ui/orders",
    "trace": lambda d: f"/ui/trace/{d.rows("SELECT trace_id FROM orders WHERE state = 'filled' ORDER BY created_at LIMIT 1")[0][0]}",
    "order": lambda d: f"/ui/orders/{d.rows("SELECT id FROM orders WHERE state = 'filled' ORDER BY created_at LIMIT 1")[0][0]}",
    "positions": lambda d: "/ui/positions",
    "close": lambda d: "/ui/positions/USD_JPY/close",
    "evidence": lambda d: "/ui/evidence",
    "runs": lambda d: "/ui/runs",
    "run": lambda d: f"/ui/runs/{d.a_run()}",
    "progress": lambda d: f"/ui/runbooks/runs/{d.a_run()}",
    "runbooks": lambda d: "/ui/runbooks",
    "runbook": lambda d: "/ui/runbooks/seed_keys",
    "ops": lambda d: "/ui/ops",
    "nothing": lambda d: "/ui/nothing",  # an error is a page, too
}
ABSENT = r"status of 404 .*/ui/nothing"


@pytest.fixture(params=PAGES)
def any_page(request, desk):
    """The address of each page in turn."""
    return PAGES[request.param](desk)


# -- the browser -------------------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser():
    """For one module: while Playwright runs, nothing else of this process can use asyncio."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=15_000)
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
        yield b
        b.close()


class Watch:
    """What a browser asked for and complained about."""

    def __init__(self, *homes):
        self.homes, self.asked, self.complaints, self.expected = {urlsplit(h).netloc for h in homes}, [], [], [ABSENT]

    def follow(self, context):
        context.on("request", lambda r: self.asked.append(r.url))
        context.on("console", lambda m: self.complaints.append(f"{m.type}: {m.text} ({m.location.get('url', '')})") if m.type in ("error", "warning") else None)
        context.on("weberror", lambda e: self.complaints.append(f"exception: {e.error}"))
        context.on("dialog", self.dialog)
        context.add_init_script("addEventListener('securitypolicyviolation', e => console.error(`policy: ${e.violatedDirective} ${e.blockedURI} ${e.sourceFile || ''}`), true)")

    def dialog(self, d):
        self.complaints.append(f"dialog: {d.message}")
        d.dismiss()

    def expect(self, *patterns):
        """Complaints that belong to what the test does."""
        self.expected += patterns

    def outside(self):
        return [u for u in self.asked if urlsplit(u).scheme not in ("data", "blob", "about") and urlsplit(u).netloc not in self.homes]

    def unexpected(self):
        return [c for c in self.complaints if not any(re.search(p, c) for p in self.expected)]


class Visitor:
    """Opens pages as somebody, and looks at what the browser said at the end."""

    def __init__(self, browser, desk):
        self.browser, self.desk, self.contexts, self.watches = browser, desk, [], []

    def context(self, name="maria", may_act=True, cookie=None, url=None, homes=(), **how):
        """A browser that knows nobody else. `name` "": not signed in."""
        at = url or self.desk.url
        c = self.browser.new_context(base_url=at, **how)
        c.set_default_timeout(15_000)
        w = c.watch = Watch(at, *homes)
        w.follow(c)
        self.contexts.append(c)
        self.watches.append(w)
        if name:
            value = cookie or session(name, may_act)
            c.add_cookies([{"name": "deskbook_session", "value": value, "domain": "127.0.0.1", "path": "/ui", "httpOnly": True, "sameSite": "Strict"}])
        return c

    def page(self, path="/ui/desk", **how):
        """A page, when it has come."""
        p = self.context(**how).new_page()
        p.watch = p.context.watch
        p.goto(path)
        return p

    def close(self):
        for c in self.contexts:
            with contextlib.suppress(Exception):
                c.close()


def session(name="maria", may_act=True, sid="", age_s=0):
    """The value of a cookie as the desk's login gives it."""
    import itsdangerous
    from deskbook.app.dashboard.session import session_cookie
    from deskbook.core.settings import Settings

    settings = Settings(api_token=TOKEN, api_view_token=VIEW_TOKEN)
    before = itsdangerous.TimestampSigner.get_timestamp
    itsdangerous.TimestampSigner.get_timestamp = lambda self: before(self) - age_s
    try:
        return session_cookie(settings, name, may_act, sid)
    finally:
        itsdangerous.TimestampSigner.get_timestamp = before


def checked(v):
    wrong = [f"asked another host: {u}" for w in v.watches for u in w.outside()] + [c for w in v.watches for c in w.unexpected()]
    v.close()
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def visitor(browser, desk):
    """Pages of the desk; afterwards: no request to another host, no error, no warning, no dialog, no breach of the policy."""
    v = Visitor(browser, desk)
    yield v
    checked(v)


@pytest.fixture
def wire(desk):
    """A proxy before the desk."""
    p = Proxy(desk.port)
    yield p
    p.close()


@pytest.fixture
def shots():
    """Where pictures go."""
    folder = HERE / "shots"
    folder.mkdir(exist_ok=True)
    return folder
