"""An address with a choice that cannot be is answered in words, and leads to the page without it."""
import re

from api_rig import is_problem, story
from page_rig import signed_in, text_of


def way_out(page):
    """Where the page leads instead."""
    made = re.search(r'<a href="([^"]*)">The page without it</a>', page.text)
    return made[1].replace("&amp;", "&") if made else None


WRONG = [
    ("/ui/tape?pair=%00", "Pair: '\\x00' was given; it must be a name like EUR_USD.", "/ui/tape"),
    ("/ui/tape?pair=EUR_USD&interval=7", "Interval: '7' was given; it must be 'M1', 'M5', 'M15', 'H1', 'H4' or 'D'.", "/ui/tape?pair=EUR_USD"),
    ("/ui/tape?pair=EUR_USD&before=soon", "Bars before: 'soon' was given; it must be a moment in whole milliseconds since 1970", "/ui/tape?pair=EUR_USD"),
    ("/ui/tape?show=none&interval=M5", "Accounts to show: 'none' was given; it must be 'all', 'paper' or 'live'.", "/ui/tape?interval=M5"),
    ("/ui/orders?state=lost&pair=EUR_USD", "'lost' is not a state of an order. One of created", "/ui/orders"),
    ("/ui/ops/audit?before=x", "'x' is no place in the audit", "/ui/ops/audit"),
]


def test_what_does_not_fit_is_named_with_what_was_given_and_what_it_may_be(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            signed_in(http)
            for path, words, instead in WRONG:
                page = await http.get(path)
                said = text_of(page.text).replace("&#39;", "'")
                assert page.status_code == 400 and words in said, (path, said[-400:])
                assert way_out(page) == instead and (await http.get(instead)).status_code == 200, path
                assert "query." not in said and "mismatch" not in said
            both = text_of((await http.get("/ui/tape?interval=7&show=none")).text)
            assert "Interval:" in both and "Accounts to show:" in both
    story(go())


def test_what_was_given_is_escaped_and_cut(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            signed_in(http)
            page = await http.get("/ui/tape", params={"pair": "<script>alert(1)</script>" + "X"*200, "show": "all"})
            assert "<script>alert" not in page.text and "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text and "X"*16 not in page.text
            assert way_out(page) == "/ui/tape?show=all"
    story(go())


def test_other_refusals_keep_their_words_and_lead_to_no_page_that_fails_again(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            said = is_problem(await http.get("/api/pricing/history", params={"instrument": "EUR_USD", "granularity": "7"}), "invalid_request")["detail"]
            assert said == "query.granularity: literal error." # the API tells no values
            signed_in(http)
            assert way_out(await http.get("/ui/trace/nothing?order=x")) is None
            assert way_out(await http.get("/ui/positions/%00/close")) is None
    story(go())


def test_the_list_of_runs_shows_what_it_is_filtered_by_when_nothing_fits(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            signed_in(http)
            page = await http.get("/ui/runs", params={"verdict": "<b>", "runbook": "seed_keys"})
            assert "No run fits." in page.text and '<option value="seed_keys" selected>' in page.text
            assert '<option value="&lt;b&gt;" selected>' in page.text and "<b>" not in page.text.partition("<form")[2].partition("</form>")[0]
    story(go())


def test_nothing_published_is_no_link(api_bench):
    async def go():
        async with api_bench.api(run_desk=False) as (_, http):
            signed_in(http)
            page = await http.get("/ui/evidence")
            assert "Nothing was published yet." in page.text and "Show it" not in page.text
    story(go())
