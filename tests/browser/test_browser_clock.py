"""Ages count by the desk's clock from the first moment on, whatever the browser's clock says: here it is days ahead."""
import re

from playwright.sync_api import expect


def test_before_the_stream_says_anything_ages_are_those_of_the_desk(visitor):
    c = visitor.context()
    c.watch.expect(r"ERR_FAILED|htmx|sse|network")
    c.route("**/ui/events*", lambda r: r.abort())
    p = c.new_page()
    p.goto("/ui/desk")
    ages = p.locator("#pairs time.age")
    expect(ages.first).to_contain_text(re.compile(r"ago|in "))
    assert not [t for t in ages.all_inner_texts() if re.search(r"\d d ago", t)]
