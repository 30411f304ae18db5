"""What the tests of the pages share: a session, and a page as somebody reads it."""
import re

from deskbook.app.dashboard.session import COOKIE, csrf_of, session_cookie, viewer_of


def session(settings, may_act=True, name="maria"):
    """The value of a session's cookie, and its word for forms."""
    value = session_cookie(settings, name, may_act)
    return value, csrf_of(settings, viewer_of(settings, value).sid)


def cookie(settings, may_act=True, name="maria"):
    """The same as a header."""
    value, csrf = session(settings, may_act, name)
    return {"Cookie": f"{COOKIE}={value}"}, csrf


def signed_in(http, may_act=True, name="maria"):
    """Give a client of the API a session instead of its token. Its word for forms."""
    value, csrf = session(http.app.state.deps.settings, may_act, name)
    http.headers.pop("authorization", None)
    http.cookies.set(COOKIE, value)
    return csrf


def text_of(page):
    """What stands there, without its elements."""
    return " ".join(re.sub(r"<[^>]*>", " ", str(page)).split())
