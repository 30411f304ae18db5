"""What stands between the desk and a broker: every row of the table, every place that cannot be read, every permission that ends."""
import asyncio
import itertools
import json
import os
import signal
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import redis
from deskbook.core.clock import fixed_clock
from deskbook.core.errors import BadInput, NotFound, SourceError
from deskbook.core.settings import Settings
from deskbook.stores.embedded import start_valkey
from deskbook.stores.ledger import Ledger
from deskbook.stores.live import Live, LiveUnavailable, open_live
from deskbook.trading.controls import (
    ClearRefused,
    KillSwitch,
    KillSwitchEngaged,
    KillSwitchUnreadable,
    NotAllowed,
    NotArmed,
    SendGuard,
    arm,
    arming,
    boot_kill,
    clear,
    disarm,
    engage,
    kill_state,
    kill_switch,
    ledger_audit,
    missing_credentials,
    require_clear,
)
from deskbook.venues.model import Write

NOWHERE = "unix:///tmp/no-such-valkey.sock"
ORDER, CANCEL = Write("order", "EUR_USD"), Write("cancel", "EUR_USD")
CLOSE, BY_HAND = Write("close", "EUR_USD", reduce_only=True), Write("close", "EUR_USD", reduce_only=True, override_kill=True)
NOT_REDUCING = Write("order", "EUR_USD", override_kill=True)


@asynccontextmanager
async def opened(file: Path, url: str, prefix: str = "", **more):
    live = open_live(url, prefix)
    try:
        yield KillSwitch(file, live, **more)
    finally:
        await live.aclose()


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "desk" / "kill_switch.json"


# -- the truth table, in a real file and a real store --


def put_local(file: Path, reading: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if reading in ("off", "on"):
        file.write_text(json.dumps({"engaged": reading == "on"}))
    elif reading == "unreadable":
        file.write_text('{"engaged": fal')


def put_stored(client: redis.Redis, key: str, reading: str) -> None:
    if reading in ("off", "on"):
        client.set(key, "0" if reading == "off" else "1")


READINGS = ("off", "on", "missing", "unreadable")


@pytest.mark.parametrize("local, stored", [*itertools.product(READINGS, READINGS)])
def test_only_a_clear_no_in_both_places_lets_an_order_out(local, stored, file, valkey_url, key_prefix):
    put_local(file, local)
    put_stored(redis.from_url(valkey_url), f"{key_prefix}ops:kill_switch", stored)

    async def ask():
        async with opened(file, NOWHERE if stored == "unreadable" else valkey_url, key_prefix) as switch:
            state = await kill_state(switch)
            assert (state.local, state.stored) == (local, stored)
            await SendGuard(switch, "sandbox", "101-001-1")(ORDER)
            return state

    if (local, stored) == ("off", "off"):
        assert not asyncio.run(ask()).engaged
    else:
        with pytest.raises(KillSwitchEngaged) as e:
            asyncio.run(ask())
        unreadable = not {"on", "missing"} & {local, stored}
        assert e.value.reason == ("kill_switch_unreadable" if unreadable else "kill_switch")
        assert isinstance(e.value, KillSwitchUnreadable) == unreadable


@pytest.mark.parametrize(
    "stored, off",
    [("0", True), ("false", True), ("False", True), ("", False), ("no", False), ("off", False), ("00", False), ("1", False), ("clear", False), (b"\xff", False)],
)
def test_what_the_store_may_hold(stored, off, file, valkey_url, key_prefix):
    put_local(file, "off")
    redis.from_url(valkey_url).set(f"{key_prefix}ops:kill_switch", stored)

    async def ask():
        async with opened(file, valkey_url, key_prefix) as switch:
            return await kill_state(switch)

    assert asyncio.run(ask()).engaged is not off


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b"false", b'{"engaged": 0}', b'{"engaged": null}', b'{"engaged": "false"}', b"\xff\xfe", b'{"on": false}'])
def test_what_the_file_may_hold(text, file, valkey_url, key_prefix):
    file.parent.mkdir()
    file.write_bytes(text)
    redis.from_url(valkey_url).set(f"{key_prefix}ops:kill_switch", "0")

    async def ask():
        async with opened(file, valkey_url, key_prefix) as switch:
            before = await kill_state(switch)
            await clear(switch, "operator", "the file was damaged")
            return before, await kill_state(switch)

    before, after = asyncio.run(ask())
    assert before.engaged
    assert not after.engaged, "a damaged file can be cleared"


def test_a_key_that_holds_no_text_is_engaged(file, valkey_url, key_prefix):
    put_local(file, "off")
    redis.from_url(valkey_url).rpush(f"{key_prefix}ops:kill_switch", "0")

    async def ask():
        async with opened(file, valkey_url, key_prefix) as switch:
            return await kill_state(switch)

    assert asyncio.run(ask()).engaged


def test_a_file_that_is_no_file_and_no_store_at_all(tmp_path):
    assert asyncio.run(kill_state(KillSwitch(tmp_path, None))).reason == "kill_switch_unreadable"
    state = asyncio.run(kill_state(KillSwitch(tmp_path / "none", None)))
    assert (state.local, state.stored, state.reason) == ("missing", "unreadable", "kill_switch")


def test_it_is_read_again_before_every_send(file, valkey_url, key_prefix):
    """Somebody else, on another machine or this one, stops a desk that is in the middle of sending."""
    store = redis.from_url(valkey_url)

    async def send():
        async with opened(file, valkey_url, key_prefix) as switch:
            guard = SendGuard(switch, "sandbox", "101-001-1")
            await clear(switch, "operator", "start")
            for stop, go in (
                (lambda: store.set(f"{key_prefix}ops:kill_switch", "1"), lambda: store.set(f"{key_prefix}ops:kill_switch", "0")),
                (lambda: put_local(file, "on"), lambda: put_local(file, "off")),
            ):
                await guard(ORDER)
                stop()
                with pytest.raises(KillSwitchEngaged):
                    await guard(ORDER)
                go()
            await guard(ORDER)

    asyncio.run(send())


# -- a store that fails in mid-run --


def test_a_store_that_is_killed_and_restarted(file):
    folder = Path("/tmp") / f"db-k{os.urandom(4).hex()}"
    folder.mkdir(mode=0o755)

    async def send(server):
        async with opened(file, server.url) as switch:
            guard = SendGuard(switch, "sandbox", "101-001-1")
            await clear(switch, "operator", "start")
            await guard(ORDER)
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises(KillSwitchUnreadable):
                await guard(ORDER)
            await guard(CANCEL)
            await asyncio.to_thread(server.revive)
            await guard(ORDER)  # the same client, the key from the append-only file
            await asyncio.to_thread(lambda: redis.from_url(server.url).flushall())
            with pytest.raises(KillSwitchEngaged) as e:
                await guard(ORDER)
            assert e.value.reason == "kill_switch", "a store that has lost the key is no permission"

    try:
        with start_valkey(folder=folder) as server:
            asyncio.run(send(server))
    finally:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


def test_a_store_that_hangs_is_given_up_soon(file):
    async def send(server):
        async with opened(file, server.url) as switch:
            await clear(switch, "operator", "start")
            os.kill(server.pid, signal.SIGSTOP)
            try:
                began = time.monotonic()
                with pytest.raises(KillSwitchUnreadable):
                    await require_clear(switch)
                assert time.monotonic() - began < 3
                done = await engage(switch, "operator", "the store hangs")
                assert (done.local, done.stored) == (True, False)
            finally:
                os.kill(server.pid, signal.SIGCONT)

    with start_valkey(temporary=True, durable=False) as server:
        asyncio.run(send(server))


# -- engage --


def test_engage_writes_both_and_says_who(file, valkey_url, key_prefix, ledger):
    async def go():
        async with await Ledger.open(ledger) as book, opened(file, valkey_url, key_prefix) as switch:
            switch = replace(switch, audit=ledger_audit(book), clock=fixed_clock("2025-11-03T01:03:00Z"))
            done = await engage(switch, "operator", "prices look wrong")
            return done, await kill_state(switch), await book.rows("SELECT actor, action, resource_id, metadata FROM ops_audit_events")

    done, state, rows = asyncio.run(go())
    assert (done.local, done.stored, done.audited, done.errors) == (True, True, True, ())
    assert (state.by, state.why, state.ts) == ("operator", "prices look wrong", "2025-11-03T01:03:00Z")
    said = json.loads(redis.from_url(valkey_url).get(f"{key_prefix}ops:kill_switch:meta"))
    assert said == {"engaged": True, "by": "operator", "reason": "prices look wrong", "ts": "2025-11-03T01:03:00Z"}
    assert [(r["actor"], r["action"], r["metadata"]["engaged"]) for r in rows] == [("operator", "kill_switch.update", True)]


def test_engage_reaches_what_it_can(file, valkey_url, key_prefix, tmp_path):
    (tmp_path / "file").write_text("")
    no_disk = tmp_path / "file" / "kill_switch.json"

    async def go(file, url):
        async with opened(file, url, key_prefix) as switch:
            return await engage(switch, "operator", "test")

    local_only = asyncio.run(go(file, NOWHERE))
    assert (local_only.local, local_only.stored) == (True, False) and "no-such-valkey" in local_only.errors[0]
    stored_only = asyncio.run(go(no_disk, valkey_url))
    assert (stored_only.local, stored_only.stored) == (False, True) and "kill_switch.json" in stored_only.errors[0]
    with pytest.raises(SourceError, match="could not be engaged"):
        asyncio.run(go(no_disk, NOWHERE))


def test_engage_does_not_need_the_ledger(file, valkey_url, key_prefix, monkeypatch):
    from deskbook.trading import controls

    monkeypatch.setattr(controls, "AUDIT_WAIT_S", 0.1)

    async def down(*_):
        raise SourceError("the ledger is down")

    async def hangs(*_):
        await asyncio.sleep(60)

    async def go(audit):
        async with opened(file, valkey_url, key_prefix, audit=audit) as switch:
            return await engage(switch, "operator", "test")

    for audit, error in ((down, "the ledger is down"), (hangs, "TimeoutError")):
        done = asyncio.run(go(audit))
        assert (done.local, done.stored, done.audited) == (True, True, False)
        assert error in done.errors[0]


@pytest.mark.parametrize("by, why", [("", "why"), (" ", "why"), ("operator", "")])
def test_nobody_for_no_reason(by, why, file):
    for change in (engage, clear):
        with pytest.raises(BadInput, match="by somebody for a reason"):
            asyncio.run(change(KillSwitch(file, None), by, why))
    assert not file.exists()


def test_at_boot(file, valkey_url, key_prefix):
    async def go():
        async with opened(file, valkey_url, key_prefix) as switch:
            missing = await boot_kill(switch, "keep")
            await clear(switch, "operator", "start")
            kept = await boot_kill(switch, "keep")
            engaged = await boot_kill(switch, "engage")
            return missing, kept, engaged

    missing, kept, engaged = asyncio.run(go())
    assert (missing.engaged, kept.engaged, engaged.engaged) == (True, False, True)
    assert engaged.by == "boot"
    assert Settings().kill_switch_boot == "engage"


# -- clear --


def test_clear_needs_the_credentials_of_an_account_that_needs_any(file, valkey_url, key_prefix, ledger):
    nothing = Settings()
    assert missing_credentials(nothing, "paper") == missing_credentials(nothing, "sandbox") == ()
    assert missing_credentials(nothing, "oanda-live") == ("OANDA_API_KEY", "OANDA_ACCOUNT_ID")
    assert missing_credentials(Settings(oanda_api_key="k", oanda_account_id="a"), "oanda-practice") == ()
    assert missing_credentials(Settings(oanda_api_key=" ".strip(), oanda_account_id="a"), "oanda-practice") == ("OANDA_API_KEY",)
    with pytest.raises(BadInput, match="not an account"):
        missing_credentials(nothing, "oanda")

    async def go():
        async with await Ledger.open(ledger) as book, opened(file, valkey_url, key_prefix, audit=ledger_audit(book)) as switch:
            with pytest.raises(ClearRefused) as e:
                await clear(switch, "operator", "start", missing_credentials(nothing, "oanda-practice"))
            assert e.value.reason == "no_credentials"
            assert (await kill_state(switch)).engaged
            return await book.rows("SELECT metadata FROM ops_audit_events")

    (row,) = asyncio.run(go())
    assert row["metadata"]["errors"] == ["no_credentials"], "a refused change is audited too"


def test_clear_needs_a_readable_store(file, valkey_url, key_prefix):
    put_local(file, "on")
    before = file.read_text()

    async def go(url):
        async with opened(file, url, key_prefix) as switch:
            await clear(switch, "operator", "start")

    with pytest.raises(ClearRefused) as e:
        asyncio.run(go(NOWHERE))
    assert e.value.reason == "store_unreadable"
    redis.from_url(valkey_url).rpush(f"{key_prefix}ops:kill_switch:meta", "x")
    redis.from_url(valkey_url).rpush(f"{key_prefix}ops:kill_switch", "x")
    with pytest.raises(ClearRefused):
        asyncio.run(go(valkey_url))
    assert file.read_text() == before


def test_a_clear_whose_file_cannot_be_written_leaves_it_engaged(tmp_path, valkey_url, key_prefix):
    directory = tmp_path / "kill_switch.json"
    directory.mkdir()

    async def go():
        async with opened(directory, valkey_url, key_prefix) as switch:
            with pytest.raises(ClearRefused) as e:
                await clear(switch, "operator", "start")
            return e.value.reason, await kill_state(switch)

    reason, state = asyncio.run(go())
    assert reason == "local_unwritable"
    assert state.engaged and state.stored == "off", "the store goes first, so that the file keeps it engaged"


class Interrupted(Live):
    """A store in which something happens right after one of its answers."""

    then: dict

    async def get_many(self, *names):
        got = await super().get_many(*names)
        await self._do("get_many")
        return got

    async def set_if(self, *a, **k):
        got = await super().set_if(*a, **k)
        await self._do("set_if")
        return got

    async def _do(self, when):
        if act := self.then.pop(when, None):
            await act()


@pytest.mark.parametrize("when", ["get_many", "set_if"])
@pytest.mark.parametrize("reach", ["both", "local", "stored"])
def test_an_engage_in_the_middle_of_a_clear_wins(when, reach, file, valkey_url, key_prefix, tmp_path):
    (tmp_path / "file").write_text("")

    async def go():
        live = open_live(valkey_url, key_prefix)
        other = KillSwitch(file if reach != "stored" else tmp_path / "file" / "x", live if reach != "local" else open_live(NOWHERE))
        await clear(KillSwitch(file, live), "operator", "first")
        await engage(KillSwitch(file, live), "colleague", "before")
        slow = Interrupted(live.redis, live.url, live.prefix)
        object.__setattr__(slow, "then", {when: lambda: engage(other, "colleague", "stop!")})
        try:
            refused = ""
            try:
                await clear(KillSwitch(file, slow), "operator", "second")
            except ClearRefused as e:
                refused = e.reason
            return refused, await kill_state(KillSwitch(file, live))
        finally:
            await live.aclose()

    refused, state = asyncio.run(go())
    assert state.engaged
    assert refused == "engaged_meanwhile" or (when, reach) == ("set_if", "stored"), "told, unless the store was engaged after its change"


# -- arming --


def account(url: str, environment: str, name: str = "101-001-1") -> str:
    with psycopg.connect(url, autocommit=True) as c:
        c.execute(
            "INSERT INTO accounts (account, venue, environment, mode, currency) VALUES (%s, 'oanda', %s, %s, 'USD')",
            [name, environment, "live" if environment == "live" else "paper"],
        )
    return name


@pytest.fixture
def clear_switch(file, valkey_url, key_prefix):
    """The url and file of a switch that is clear."""
    put_local(file, "off")
    redis.from_url(valkey_url).set(f"{key_prefix}ops:kill_switch", "0")
    return file, valkey_url, key_prefix


def test_arming_ends_by_itself_and_by_hand(ledger, clear_switch):
    name = account(ledger, "live")

    async def go():
        async with await Ledger.open(ledger) as book, opened(*clear_switch) as switch:
            guard = SendGuard(switch, "live", name, read_only=False, ledger=book)
            with pytest.raises(NotArmed, match="not armed"):
                await guard(ORDER)
            now = await arm(book, name, 0.4, "operator", "the London session")
            assert now.armed and now.by == "operator"
            await guard(ORDER)
            await asyncio.sleep(0.5)
            assert not (await arming(book, name)).armed
            with pytest.raises(NotArmed, match="its arming ended"):
                await guard(ORDER)
            await guard(CANCEL)
            await arm(book, name, 3600, "operator", "again")
            await guard(ORDER)
            assert (await disarm(book, name, "colleague", "enough")).until_ms is None
            with pytest.raises(NotArmed) as e:
                await guard(ORDER)
            assert e.value.reason == "not_armed"
            return await book.rows("SELECT actor, action, resource_id FROM ops_audit_events ORDER BY seq")

    rows = asyncio.run(go())
    assert [(r["actor"], r["action"]) for r in rows] == [("operator", "live.arm"), ("operator", "live.arm"), ("colleague", "live.disarm")]
    assert {r["resource_id"] for r in rows} == {name}


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 43_201])
def test_no_time_to_arm_for(seconds, ledger):
    name = account(ledger, "live")

    async def go():
        async with await Ledger.open(ledger) as book:
            with pytest.raises(BadInput, match="no time to arm for"):
                await arm(book, name, seconds, "operator", "why")
            assert (await arming(book, name)).until_ms is None

    asyncio.run(go())


def test_only_a_live_account_that_exists_is_armed(ledger):
    practice = account(ledger, "practice")

    async def go():
        async with await Ledger.open(ledger) as book:
            with pytest.raises(BadInput, match="no live account"):
                await arm(book, practice, 60, "operator", "why")
            with pytest.raises(NotFound):
                await arm(book, "101-none", 60, "operator", "why")
            with pytest.raises(BadInput, match="for a reason"):
                await arm(book, practice, 60, "", "why")
            return await book.rows("SELECT armed_until FROM accounts"), await book.rows("SELECT 1 FROM ops_audit_events")

    accounts, audits = asyncio.run(go())
    assert accounts == [{"armed_until": None}] and audits == [], "nothing was written"


def test_an_arming_that_cannot_be_read_is_none(clear_switch, ledger, postgres_url):
    async def go():
        async with opened(*clear_switch) as switch:
            with pytest.raises(NotArmed, match="Without a ledger"):
                await SendGuard(switch, "live", "101-001-1", read_only=False)(ORDER)
            async with await Ledger.open(ledger, timeout_s=1) as book:
                with pytest.raises(NotArmed, match="no account"):
                    await SendGuard(switch, "live", "101-001-1", read_only=False, ledger=book)(ORDER)
                account(ledger, "live")
                await arm(book, "101-001-1", 60, "operator", "why")
                guard = SendGuard(switch, "live", "101-001-1", read_only=False, ledger=book)
                await guard(ORDER)
                with psycopg.connect(postgres_url, autocommit=True) as c:
                    c.execute(f"DROP DATABASE {psycopg.conninfo.conninfo_to_dict(ledger)['dbname']} WITH (FORCE)")
                with pytest.raises(NotArmed, match="cannot be read"):
                    await guard(ORDER)
            with pytest.raises(NotArmed, match="cannot be read"):
                await guard(ORDER)  # closed

    asyncio.run(go())


# -- the guard --


@pytest.mark.parametrize("armed", [True, False])
@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("read_only", [True, False])
def test_the_whole_table_of_the_guard(read_only, killed, armed, ledger, clear_switch):
    file, url, prefix = clear_switch
    if killed:
        put_local(file, "on")

    def expected(environment, write):
        if read_only and environment != "sandbox":
            return "read_only"
        if write is CANCEL:
            return "sent"
        if killed and write is not BY_HAND:
            return "kill_switch"
        return "not_armed" if environment in ("live", "unheard-of") and not armed else "sent"

    async def said(guard, write):
        try:
            await guard(write)
        except NotAllowed as e:
            return e.reason
        return "sent"

    async def go():
        async with await Ledger.open(ledger) as book, opened(file, url, prefix) as switch:
            if armed:
                await arm(book, account(ledger, "live"), 60, "operator", "why")
            for environment in ("sandbox", "practice", "live", "unheard-of"):
                guard = SendGuard(switch, environment, "101-001-1", read_only=read_only, ledger=book)
                for write in (ORDER, CLOSE, BY_HAND, NOT_REDUCING, CANCEL):
                    assert await said(guard, write) == expected(environment, write), (environment, write)

    asyncio.run(go())


def test_read_only_unless_told_otherwise(monkeypatch):
    assert SendGuard(KillSwitch(Path("x"), None), "live", "a").read_only is True
    for text, on in (("0", False), ("false", False), ("1", True), ("maybe", True), ("", True)):
        monkeypatch.setenv("READ_ONLY", text)
        assert Settings().read_only is on, text


def test_the_desks_own_switch_is_below_its_home(monkeypatch, tmp_path):
    monkeypatch.setenv("DESKBOOK_HOME", str(tmp_path))
    monkeypatch.setenv("KILL_SWITCH_KEY", "ops:other")
    switch = kill_switch(Settings(), None)
    assert (switch.file, switch.key, switch.meta) == (tmp_path / "kill_switch.json", "ops:other", "ops:other:meta")


# -- the live store --


def test_a_wrong_address_is_said_without_its_password(file):
    for url in ("valkey:6379", "http://:hunter2@valkey", "hunter2"):
        with pytest.raises(BadInput) as e:
            open_live(url)
        assert "hunter2" not in str(e.value)

    async def go():
        live = open_live("redis://:hunter2@127.0.0.1:1/0")
        with pytest.raises(LiveUnavailable) as e:
            await live.ping()
        await live.aclose()
        return str(e.value)

    assert "hunter2" not in (said := asyncio.run(go())) and "127.0.0.1:1" in said
