"""One request against a server that breaks, byte by byte: what arrives is typed, and nothing that was sent is created twice."""
import asyncio
import json
import random
import time

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_wire import (
    RawServer, Reply, bad_chunks, bad_gzip, close_now, drip, half_body, half_body_reset, half_head, hang, hang_in_body, huge, not_http, reset_now, unused_port)

from deskbook.core.errors import BadInput, Refused
from deskbook.venues import errors as e
from deskbook.venues.limiter import Limit, LimitKey, Limiter
from deskbook.venues.model import Write
from deskbook.venues.retry import RetryPolicy, Timing
from deskbook.venues.transport import Ask, Timeouts, Transport, attempt, for_create, http_client, network_error, read_json_object, shown

KEY = LimitKey("oanda", "ip", "rest")
TOKEN = "secret-token-4711"
READ = Ask("GET", "/v3/accounts/1/summary")
CREATE = Ask("POST", "/v3/accounts/1/orders", "create", "orders", body={"order": {"units": "1000"}}, client_id="db-7f3a", write=Write("order", "EUR_USD"))
CANCEL = Ask("PUT", "/v3/accounts/1/orders/7/cancel", "cancel", "orders", write=Write("cancel"), urgent=True)
QUICK = Timeouts(connect_s=0.5, slot_s=0.3, write_s=0.5, read_s=0.3, total_s=0.6)


async def allow(write):
    pass


def transport(url, guard=allow, limit=None, policy=None, connections=8, timeouts=QUICK, sleep=None):
    async def nap(s):
        await asyncio.sleep(0)
    timing = Timing(sleep=sleep or nap, rng=random.Random(1))
    http = http_client(url, {"Authorization": f"Bearer {TOKEN}"}, timeouts, connections, loopback=True)
    return Transport("oanda", http, Limiter({KEY: limit} if limit else {}, Timing()), KEY, lambda ask, answer: None, guard,
        policy or RetryPolicy(), timing, timeouts, (TOKEN,), connections)


async def one(server, ask, **kw):
    t = transport(server.url, **kw)
    try:
        return await t.request(ask)
    finally:
        await t.aclose()


FAULTS = [reset_now, close_now, half_head, half_body, half_body_reset, hang, hang_in_body, drip, not_http, bad_chunks, bad_gzip, huge,
          Reply(201, b""), Reply(201, b"<html>maintenance</html>"), Reply(201, b'{"orderCreateTransac'), Reply(201, b"[]"), Reply(201, b"null"),
          Reply(201, b'{"a": NaN}'), Reply(201, b"\xff\xfe"), Reply(200, b"OK"), Reply(204, b""), Reply(302, b"", (("Location", "/elsewhere"),)),
          Reply(400, b"nginx"), Reply(404, b"<html>"), Reply(404, b"{}"), Reply(408, b""), Reply(413, b""), Reply(500, b'{"errorMessage": "x"}'),
          Reply(502, b"<html>"), Reply(503, b"scheduled maintenance"), Reply(503, b"", (("Retry-After", "60"),)), Reply(504, b"")]


def name(fault):
    return getattr(fault, "__name__", None) or f"{fault.status}-{fault.body[:12]!r}"


@pytest.mark.parametrize("fault", FAULTS, ids=name)
def test_a_create_that_left_is_unknown_and_left_once(fault):
    async def run():
        async with RawServer(Reply(201, {"lastTransactionID": "1"}), [fault]) as server:
            with pytest.raises(e.OutcomeUnknown) as unknown:
                await one(server, CREATE)
            return server.requests, unknown.value
    requests, unknown = asyncio.run(run())
    assert len(requests) == 1 and json.loads(requests[0].body) == CREATE.body
    assert (unknown.client_id, unknown.sent, unknown.venue) == ("db-7f3a", True, "oanda")
    if isinstance(fault, Reply):
        assert (unknown.http_status, unknown.request_id) == (fault.status, "4211")


def test_a_reset_before_the_body_is_read_counts_as_sent():
    """Half a request may be half of what a proxy has already passed on."""
    async def run():
        async with RawServer(before_body=True) as server:
            with pytest.raises(e.OutcomeUnknown):
                await one(server, CREATE)
            return len(server.requests)
    assert asyncio.run(run()) == 1


@pytest.mark.parametrize("fault", FAULTS, ids=name)
def test_a_read_goes_on_until_it_is_answered(fault):
    async def run():
        async with RawServer(Reply(200, {"account": {}}), [fault, fault]) as server:
            answer = await one(server, READ)
            return answer.body, len(server.requests)
    if isinstance(fault, Reply) and fault.status == 503:  # maintenance is not waited out in a call
        with pytest.raises(e.Maintenance):
            asyncio.run(run())
    else:
        assert asyncio.run(run()) == ({"account": {}}, 3)


@pytest.mark.parametrize("fault", [reset_now, hang, Reply(500), Reply(200, b"<html>")], ids=name)
def test_a_cancel_is_not_repeated_before_somebody_looked(fault):
    async def run():
        async with RawServer(Reply(), [fault]) as server:
            with pytest.raises((e.NetworkError, e.RequestTimeout, e.ProtocolError)) as error:
                await one(server, CANCEL)
            return len(server.requests), error.value.sent
    assert asyncio.run(run()) == (1, True)


@pytest.mark.parametrize("status, kind", [(401, e.AuthError), (403, e.PermissionDenied), (418, e.IpBanned), (429, e.RateLimited)])
@pytest.mark.parametrize("body", [b"", b"<html>", b'{"errorMessage": "no"}'])
def test_a_refusal_by_status_is_final_for_a_create(status, kind, body):
    async def run():
        async with RawServer(Reply(201), [Reply(status, body, (("Retry-After", "7"),))]) as server:
            now = Timing().clock()
            with pytest.raises(kind) as error:
                await one(server, CREATE)
            return len(server.requests), error.value, now
    n, error, now = asyncio.run(run())
    assert n == 1 and type(error) is kind and error.http_status == status
    if kind is e.RateLimited:
        assert 6_900 < error.retry_at_ms - now < 9_000


def test_refused_connections_send_nothing_and_are_tried_again():
    async def run():
        t = transport(f"http://127.0.0.1:{unused_port()}", policy=RetryPolicy(breaker_failures=99))
        asked = []

        async def guard(write):
            asked.append(write)
            if len(asked) == 4:
                raise Refused("The kill switch is engaged.")
        t.guard = guard
        with pytest.raises(Refused):
            await t.request(CREATE)
        await t.aclose()
        return len(asked)
    assert asyncio.run(run()) == 4


def test_a_venue_that_comes_back_gets_the_order_once():
    async def run():
        port = unused_port()
        t = transport(f"http://127.0.0.1:{port}")
        server = RawServer(Reply(201, {"lastTransactionID": "6373"}))

        async def nap(s):
            if not server.requests and not hasattr(server, "_server"):
                server._server = await asyncio.start_server(server._client, "127.0.0.1", port)
        t.timing = Timing(sleep=nap)
        answer = await t.request(CREATE)
        await t.aclose()
        server._server.close()
        return answer.body, len(server.requests)
    assert asyncio.run(run()) == ({"lastTransactionID": "6373"}, 1)


def test_nothing_listens_is_said_so():
    async def run():
        t = transport(f"http://127.0.0.1:{unused_port()}")
        try:
            await t.request(CREATE)
        finally:
            await t.aclose()
    with pytest.raises(e.NetworkError) as error:
        asyncio.run(run())
    assert error.value.sent is False and "no connection" in error.value.what


def test_a_body_that_is_too_long_is_not_read_to_its_end():
    async def run(size):
        async with RawServer(Reply(201, b'{"lastTransactionID": "6373"}' + b" "*size)) as server:
            return (await one(server, CREATE, timeouts=Timeouts())).body
    assert asyncio.run(run(2**20)) == {"lastTransactionID": "6373"}
    with pytest.raises(e.OutcomeUnknown):
        asyncio.run(run(2**25 + 2**20))


def test_waiting_for_a_connection_sends_nothing():
    """One connection, taken by a read that hangs: the order waits, gives up, and was never sent."""
    async def run():
        async with RawServer(Reply(201), [hang]) as server:
            t = transport(server.url, connections=1, timeouts=Timeouts(slot_s=0.1, read_s=5, total_s=5), policy=RetryPolicy(create_budget_s=0.2))
            busy = asyncio.create_task(attempt(t, READ))
            await asyncio.sleep(0.1)
            with pytest.raises(e.VenueError) as error:
                await t.request(CREATE)
            busy.cancel()
            await asyncio.gather(busy, return_exceptions=True)
            await t.aclose()
            return error.value, [r.method for r in server.requests]
    error, methods = asyncio.run(run())
    assert error.sent is False and not isinstance(error, e.OutcomeUnknown) and methods == ["GET"]


def test_a_cancelled_call_gives_its_connection_back():
    async def run():
        async with RawServer(Reply(200, {}), [hang]) as server:
            t = transport(server.url, connections=1)
            call = asyncio.create_task(t.request(READ))
            await asyncio.sleep(0.1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            answer = await t.request(READ)
            await t.aclose()
            return answer.status
    assert asyncio.run(run()) == 200


def test_the_guard_is_asked_for_each_write_last_of_all():
    async def run():
        async with RawServer(Reply(201, {})) as server:
            seen = []

            async def guard(write):
                seen.append((write, len(server.requests)))
            t = transport(server.url, guard=guard)
            await t.request(READ)
            await t.request(CREATE)
            await t.request(CANCEL)
            await t.aclose()
            return seen
    assert asyncio.run(run()) == [(CREATE.write, 1), (CANCEL.write, 2)]


@pytest.mark.parametrize("guard, ask, kind", [(None, CREATE, Refused), (None, CANCEL, Refused), (allow, Ask("POST", "/x", "create"), BadInput)])
def test_without_a_guard_or_a_reason_nothing_is_written(guard, ask, kind):
    async def run():
        async with RawServer() as server:
            with pytest.raises(kind):
                await one(server, ask, guard=guard)
            return len(server.requests)
    assert asyncio.run(run()) == 0


def test_five_failures_hold_everything_back_but_a_cancel():
    async def run():
        async with RawServer(Reply(500)) as server:
            t = transport(server.url)
            for _ in range(5):
                with pytest.raises(e.OutcomeUnknown):
                    await t.request(CREATE)
            with pytest.raises(e.CircuitOpen) as held:
                await t.request(CREATE)
            assert held.value.sent is False and len(server.requests) == 5
            with pytest.raises(e.NetworkError):
                await t.request(CANCEL)
            server.default = Reply(200, {})
            assert (await t.request(READ)).status == 200  # another group is not held back
            await t.request(CANCEL)
            await t.request(CREATE)  # and a success closes it
            await t.aclose()
    asyncio.run(run())


def test_a_refused_rate_slows_the_reads_down_and_not_the_cancels():
    async def run():
        async with RawServer(Reply(200, {}), [Reply(429, b"{}", (("Retry-After", "1"),))]) as server:
            t = transport(server.url, limit=Limit(1000), sleep=asyncio.sleep)
            read = asyncio.create_task(t.request(READ))
            await asyncio.sleep(0.2)
            start = time.monotonic()
            await t.request(CANCEL)
            cancel_s = time.monotonic() - start
            start = time.monotonic()
            await read
            await t.aclose()
            return cancel_s, time.monotonic() - start
    cancel_s, read_s = asyncio.run(run())
    assert cancel_s < 0.3 and 0.5 < read_s < 3


def test_no_error_shows_the_token():
    async def run(reply):
        async with RawServer(reply) as server:
            with pytest.raises(e.VenueError) as error:
                await one(server, CREATE)
            return error.value
    for reply in (Reply(401, f'{{"errorMessage": "bad token {TOKEN}"}}'), Reply(500, f"Authorization: Bearer {TOKEN}"), Reply(201, f"<html>{TOKEN}")):
        error = asyncio.run(run(reply))
        assert TOKEN not in str(error) and TOKEN not in error.raw and "***" in error.raw


def test_connections_are_kept_used_again_and_bounded():
    async def run():
        async with RawServer(Reply(200, {})) as server:
            t = transport(server.url, connections=4)
            for _ in range(5):
                await t.request(READ)
            one = server.connections
            await asyncio.gather(*(t.request(READ) for _ in range(60)))
            many = server.connections
            for _ in range(3):
                server.plan.append(half_body)
                await t.request(READ)
            await t.aclose()
            return one, many, server.connections, len(t.http._transport.free)
    one, many, after, left = asyncio.run(run())
    assert one == 1 and many <= 4 and after <= 7 and left == 0


def test_a_connection_the_venue_closed_meanwhile_costs_nothing():
    """Kept connections die quietly; a new order must not be the one that finds out."""
    async def run():
        async with RawServer(Reply(201, {})) as server:
            t = transport(server.url)

            async def answer_then_close(w, reply):
                w.write(Reply(200, {}).wire())
                await w.drain()
                w.close()
            server.plan = [answer_then_close]
            await t.request(READ)
            await asyncio.sleep(0.1)
            await t.request(CREATE)
            await t.aclose()
            return server.connections
    assert asyncio.run(run()) == 2


def slow_reply(wait_s):
    async def send(w, reply):
        await asyncio.sleep(wait_s)
        w.write(Reply(200, {}).wire())
        await w.drain()
    return send


def test_a_request_that_is_given_up_at_any_moment_costs_the_next_one_nothing():
    """A connection that is lent again must work; httpcore may take one whose request was cancelled for busy for ever."""
    rng = random.Random(1)

    async def run():
        async with RawServer(Reply(200, {})) as server:
            t = transport(server.url)
            given_up = 0
            for _ in range(3000):
                server.plan = [slow_reply(rng.choice([0.0, 0.0005, 0.001]))]
                try:
                    async with asyncio.timeout(rng.random()*0.003):
                        await t.request(READ)
                except TimeoutError:
                    given_up += 1
                server.plan = []
                async with asyncio.timeout(2):
                    await t.request(READ)
            await t.aclose()
            return given_up
    assert asyncio.run(run()) > 300


OANDA, HERE, PROXY = "api-fxpractice.oanda.com:443", "127.0.0.1:1", "127.0.0.1:{port}"  # only a proxy is told of the first; nobody answers at the second
PROXIES = [("", HERE, False, "", False), (f"http://{PROXY}", OANDA, False, "", True), (PROXY, OANDA, False, "", True), (PROXY, HERE, False, "", True),
           (f"http://{PROXY}", HERE, False, "127.0.0.1", False), (f"http://{PROXY}", HERE, True, "", False)]


@pytest.mark.parametrize("proxy, host, loopback, no_proxy, used", PROXIES)
def test_a_proxy_of_the_environment_is_used_but_never_for_loopback(monkeypatch, proxy, host, loopback, no_proxy, used):
    """The proxy is a server that writes down what it is asked to connect to, and hangs up."""
    seen = []

    async def hang_up(r, w):
        seen.append((await r.readline()).decode())
        w.close()

    async def run():
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", proxy.format(port=server.sockets[0].getsockname()[1]))
        monkeypatch.setenv("NO_PROXY", no_proxy)
        async with http_client(f"https://{host}", {}, QUICK, loopback=loopback) as http:
            with pytest.raises(httpx.HTTPError):
                await http.get("/v3/accounts")
        server.close()
    asyncio.run(run())
    assert [line.split(" HTTP")[0] for line in seen] == [f"CONNECT {host}"]*used


def test_a_proxy_that_speaks_no_http_is_said_at_once_and_without_its_password(monkeypatch):
    for name, value in (("https_proxy", "socks5://me:secret@127.0.0.1:9"), ("no_proxy", "")):
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match="HTTPS_PROXY") as told:
        http_client(f"https://{OANDA}", {}, QUICK)
    assert "secret" not in str(told.value)


def test_cookies_are_not_kept_and_redirects_not_followed():
    async def run():
        async with RawServer(Reply(200, {}, (("Set-Cookie", "a=1"),)), [Reply(307, b"", (("Location", "/x"),))]) as server:
            t = transport(server.url)
            await t.request(READ)
            await t.request(READ)
            await t.aclose()
            return server.requests, server.connections
    requests, connections = asyncio.run(run())
    assert {r.path for r in requests} == {READ.path} and len(requests) == 3 and connections == 1


def all_httpx_errors():
    found, left = [], [httpx.HTTPError, httpx.StreamError, httpx.InvalidURL]
    while left:
        c = left.pop()
        left += c.__subclasses__()
        found.append(c)
    return sorted(set(found), key=lambda c: c.__name__)


BEFORE_THE_FIRST_BYTE = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol", "InvalidURL"}


@pytest.mark.parametrize("kind", all_httpx_errors(), ids=lambda c: c.__name__)
def test_sent_is_told_by_the_kind_of_error(kind):
    error = kind.__new__(kind)
    Exception.__init__(error, "x")
    assert network_error(error, "oanda").sent is (kind.__name__ not in BEFORE_THE_FIRST_BYTE)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_body_is_an_object_or_a_value_error(data):
    try:
        assert isinstance(read_json_object(data), dict)
    except ValueError:
        pass
    assert len(shown(data, ("x",))) <= 300 and shown(data).isprintable()


json_values = st.recursive(st.none() | st.booleans() | st.integers(-2**60, 2**60) | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=12)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=5), json_values, max_size=5))
def test_what_was_read_can_be_stored(value):
    got = read_json_object(json.dumps(value).encode())
    text = json.dumps(got, default=str)
    assert "\\u0000" not in text
    text.encode().decode()
    json.dumps(got, ensure_ascii=False, default=str).encode("utf-8")


@pytest.mark.parametrize("text", [r'{"a": "\ud800"}', r'{"a\u0000": ["\u0000", {"b": "\udfff\ud83d"}]}', r'{"a": "\uD83D\uDE00"}'])
def test_half_surrogates_and_nul_are_repaired(text):
    out = json.dumps(read_json_object(text.encode()), ensure_ascii=False)
    assert "\\u0000" not in out and out.encode("utf-8")


@pytest.mark.parametrize("error", [e.Rejected("no"), e.InsufficientFunds("m"), e.AuthError("401"), e.RateLimited("429"), e.IpBanned("418"), e.NetworkError("x", sent=False)])
def test_what_is_certain_stays_as_it_is_for_a_create(error):
    assert for_create(error, "db-1") is error
