"""The ledger: what its tables let in, who may change what, and what a caller sees when the database is not there."""

import asyncio
import math
import os
import secrets
import shutil
import signal
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_rows import add_account, add_order, bypass, one_order, owner

from deskbook.core.errors import BadInput, DataError, Refused
from deskbook.stores.ledger import SCHEMA, Ledger, LedgerDown, LedgerVersion
from deskbook.stores.ledger_migrate import versions
from deskbook.stores.migrations.versions.v0001_order_path import ENUMS
from deskbook.stores.records import (
    AuditEvent,
    OrderEvent,
    append_audits,
    append_order_event,
    append_order_events,
    audit,
    raise_alert,
    resolve_alert,
    acknowledge_alert,
)

# Every column that holds one of a few words.
WORDS = {
    ("accounts", "environment"): "environment",
    ("accounts", "mode"): "mode",
    ("decisions", "verdict"): "verdict",
    ("orders", "kind"): "kind",
    ("orders", "side"): "side",
    ("orders", "position_side"): "position_side",
    ("orders", "type"): "type",
    ("orders", "time_in_force"): "time_in_force",
    ("orders", "state"): "state",
    ("order_events", "from_state"): "state",
    ("order_events", "to_state"): "state",
    ("fills", "liquidity"): "liquidity",
    ("positions", "position_side"): "position_side",
    ("outbox", "topic"): "topic",
    ("account_risk_policies", "mode"): "mode",
    ("account_risk_state", "status"): "risk_status",
    ("ops_alerts", "severity"): "severity",
    ("ops_alerts", "status"): "alert_status",
}


def populate(url):
    """One row in every table that has an enum."""
    order = one_order(url)
    with owner(url) as c:
        c.execute("INSERT INTO decisions (account, instrument, decided_at, verdict) VALUES ('paper', 'EUR_USD', now(), 'enter')")
        c.execute("INSERT INTO order_events (account, order_id, version, to_state) VALUES ('paper', %s, 1, 'created')", [order])
        c.execute(
            "INSERT INTO fills (venue, account, fill_id, order_id, instrument, units, price, filled_at) VALUES ('oanda', 'paper', '7', %s, 'EUR_USD', 1000, 1.0871, now())",
            [order],
        )
        c.execute("INSERT INTO positions (account, instrument) VALUES ('paper', 'EUR_USD')")
        c.execute("INSERT INTO outbox (topic, account, order_id) VALUES ('submit', 'paper', %s)", [order])
        c.execute("INSERT INTO account_risk_policies (mode, name) VALUES ('paper', 'house')")
        c.execute("INSERT INTO account_risk_state (account) VALUES ('paper')")
        c.execute("INSERT INTO ops_alerts (fingerprint, category, severity, message) VALUES ('f', 'orders', 'low', 'm')")
    return order


def test_every_enum_lets_in_its_words_and_no_other(ledger):
    populate(ledger)
    with owner(ledger) as c:
        c.execute("SET session_replication_role = replica")
        checked = c.execute("""SELECT conrelid::regclass::text AS t, a.attname AS col FROM pg_constraint k JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
            WHERE contype = 'c' AND cardinality(conkey) = 1 AND pg_get_constraintdef(k.oid) LIKE '%ANY (ARRAY[%' AND NOT EXISTS (SELECT 1 FROM pg_inherits WHERE inhrelid = conrelid)""").fetchall()
        assert {(r["t"], r["col"]) for r in checked} == set(WORDS)
        for (table, column), enum in WORDS.items():
            with pytest.raises(psycopg.errors.CheckViolation):
                c.execute(f"UPDATE {table} SET {column} = 'nonsense'")
            if table == "accounts":
                continue
            for word in ENUMS[enum]:
                c.execute(f"UPDATE {table} SET {column} = %s", [word])
        with pytest.raises(psycopg.errors.CheckViolation):
            c.execute("UPDATE accounts SET mode = 'live'")  # on a sandbox


@pytest.mark.parametrize(
    "column, value",
    [
        ("units", "0"),
        ("units", "-1"),
        ("units", "NaN"),
        ("units", "Infinity"),
        ("price", "NaN"),
        ("price", "0"),
        ("price", "-Infinity"),
        ("filled_units", "-1"),
        ("average_price", "NaN"),
        ("reserved_usd", "Infinity"),
        ("version", "0"),
        ("resends", "-1"),
    ],
)
def test_a_number_that_is_none_is_refused(ledger, column, value):
    one_order(ledger)
    with owner(ledger) as c, pytest.raises(psycopg.errors.CheckViolation):
        c.execute(f"UPDATE orders SET {column} = '{value}'")


def test_what_is_unique_is_unique_within_its_account(ledger):
    order = one_order(ledger)
    with owner(ledger) as c:
        add_account(c, "oanda-practice")
        add_order(c, "oanda-practice")  # the same keys elsewhere are no conflict
        other = add_order(c, key="k2")
        c.execute("UPDATE orders SET venue_order_id = '6357' WHERE id = %s", [order])
        for column, value in [("idempotency_key", "k1"), ("client_order_id", "k1"), ("venue_order_id", "6357")]:
            with pytest.raises(psycopg.errors.UniqueViolation):
                c.execute(f"UPDATE orders SET {column} = %s WHERE id = %s", [value, other])
        fill = "INSERT INTO fills (venue, account, fill_id, order_id, instrument, units, price, filled_at) VALUES ('oanda', 'paper', '7', %s, 'EUR_USD', 1, 1, now())"
        c.execute(fill, [order])
        with pytest.raises(psycopg.errors.UniqueViolation):
            c.execute(fill, [other])
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            c.execute("INSERT INTO order_events (account, order_id, version, to_state) VALUES ('paper', gen_random_uuid(), 1, 'created')")


CHAINED = ["order_events", "ops_audit_events"]


@pytest.mark.parametrize("table", CHAINED)
def test_the_application_appends_and_changes_nothing(ledger, table):
    order = one_order(ledger)

    async def scenario():
        async with await Ledger.open(ledger) as desk:
            async with desk.transaction() as tx:
                await append_order_event(tx, "paper", order, 1, None, "created")
                await audit(tx, "sender", "order.refused", "order")
            names = [
                table,
                *(
                    r["relname"]
                    for r in await desk.rows(
                        "SELECT relname FROM pg_class JOIN pg_inherits ON inhrelid = pg_class.oid WHERE inhparent = %s::regclass", [table]
                    )
                ),
            ]
            assert len(names) > 5
            for name in names:
                for sql in ("UPDATE {} SET seq = 9", "DELETE FROM {}", "TRUNCATE {}"):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
                        await desk.rows(sql.format(name))
            for name in names[1:]:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    await desk.rows(f"INSERT INTO {name} SELECT * FROM {table}")
            for sql in (
                "UPDATE chain_heads SET seq = 0",
                "DELETE FROM chain_heads",
                "DELETE FROM orders",
                "DELETE FROM fills",
                "DROP TABLE orders",
                "CREATE TABLE mine (x int)",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    await desk.rows(sql)
            async with desk.transaction() as tx:
                await tx.execute(f"CREATE TEMP TABLE mine (LIKE {table})")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    async with tx.transaction():
                        await tx.execute(f"CREATE TRIGGER link BEFORE INSERT ON mine FOR EACH ROW EXECUTE FUNCTION {table}_link()")
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                await desk.rows("SELECT deskbook_partitions(100000)")

    asyncio.run(scenario())


@pytest.mark.parametrize("table", CHAINED)
def test_not_even_the_owner_changes_a_chained_row_by_accident(ledger, table):
    order = one_order(ledger)
    with owner(ledger) as c:
        c.execute("INSERT INTO order_events (account, order_id, version, to_state) VALUES ('paper', %s, 1, 'created')", [order])
        c.execute("INSERT INTO ops_audit_events (actor, action, resource_type) VALUES ('a', 'b', 'c')")
        part = c.execute(f"SELECT tableoid::regclass::text AS t FROM {table}").fetchone()["t"]
        for name in (table, part):
            for sql in (f"UPDATE {name} SET seq = 9", f"DELETE FROM {name}", f"TRUNCATE {name}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                    c.execute(sql)
        assert c.execute(f"SELECT count(*) AS n FROM {table}").fetchone()["n"] == 1


def test_what_a_writer_says_about_the_chain_is_replaced(ledger):
    order = one_order(ledger)
    with owner(ledger) as c:
        c.execute(
            "INSERT INTO order_events (account, seq, order_id, version, to_state, prev_hash, hash) VALUES ('paper', 99, %s, 1, 'created', '\\x01', '\\x02')",
            [order],
        )
        row = c.execute("SELECT seq, prev_hash, length(hash) AS n FROM order_events").fetchone()
    assert row == {"seq": 1, "prev_hash": bytes(32), "n": 32}


def test_numbers_are_decimals_and_times_are_aware(ledger):
    order = one_order(ledger)
    at = datetime(2025, 11, 3, 7, 30, 0, 123456, tzinfo=UTC)

    async def scenario():
        async with await Ledger.open(ledger) as desk:
            await desk.rows("UPDATE orders SET price = %s, sent_at = %s WHERE id = %s", [Decimal("1.08710"), at, order])
            row = (await desk.rows("SELECT price, units, sent_at FROM orders"))[0]
            assert (str(row["price"]), row["units"], type(row["units"])) == ("1.08710", 1000, Decimal)
            assert row["sent_at"] == at and row["sent_at"].utcoffset().total_seconds() == 0
            assert (await desk.rows("SELECT current_user AS u, current_setting('timezone') AS z"))[0] == {"u": "deskbook_app", "z": "UTC"}
            async with desk.transaction() as tx:
                await append_order_event(tx, "paper", order, 1, None, "created", payload={"price": Decimal("1.10"), "x": math.nan})
            assert (await desk.rows("SELECT payload FROM order_events"))[0]["payload"] == {"price": "1.10", "x": None}

    asyncio.run(scenario())


@given(text=st.text(st.characters(codec=None), max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_a_venue_says_can_be_recorded(any_text, text):
    desk_rows, order = any_text
    stored = desk_rows(order, text)
    assert "\x00" not in stored["reason"] and stored["payload"]["said"] == stored["reason"]
    if "\x00" not in text and not any(0xD800 <= ord(c) < 0xE000 for c in text):
        assert stored["reason"] == text


@pytest.fixture
def any_text(ledger):
    order, loop = one_order(ledger), asyncio.new_event_loop()
    desk = loop.run_until_complete(Ledger.open(ledger))

    async def write(order, text):
        async with desk.transaction() as tx:
            seq = await append_order_event(tx, "paper", order, 1, None, "created", text, {"said": text})
            return await (await tx.execute("SELECT reason, payload FROM order_events WHERE seq = %s", [seq])).fetchone()

    yield (lambda order, text: loop.run_until_complete(write(order, text))), order
    loop.run_until_complete(desk.aclose())
    loop.close()


# Transactions


def test_a_block_that_raises_leaves_nothing_and_the_pool_whole(ledger):
    async def scenario():
        async with await Ledger.open(ledger, max_size=1) as desk:
            for error in (RuntimeError("x"), asyncio.CancelledError()):
                with pytest.raises(type(error)):
                    async with desk.transaction() as tx:
                        await tx.execute("INSERT INTO leases VALUES ('sender:paper', 'me', 1, now())")
                        raise error
            assert await desk.rows("SELECT * FROM leases") == []
            async with desk.transaction() as tx:
                await tx.execute("INSERT INTO leases VALUES ('sender:paper', 'me', 1, now())")
                with pytest.raises(psycopg.errors.UniqueViolation):
                    async with tx.transaction():
                        await tx.execute("INSERT INTO leases VALUES ('sender:paper', 'me', 1, now())")
            assert len(await desk.rows("SELECT * FROM leases")) == 1

    asyncio.run(scenario())


def test_a_task_that_is_cancelled_inside_a_statement_frees_its_locks(ledger):
    async def scenario():
        async with await Ledger.open(ledger, max_size=2) as desk:

            async def slow():
                async with desk.transaction() as tx:
                    await tx.execute("SELECT pg_advisory_xact_lock(1)")
                    await tx.execute("SELECT pg_sleep(30)")

            task = asyncio.create_task(slow())
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            begun = time.monotonic()
            await desk.rows("SELECT pg_advisory_lock(1)")
            assert time.monotonic() - begun < 2

    asyncio.run(scenario())


def test_an_error_that_was_passed_over_does_not_pass_for_a_commit(ledger):
    async def scenario():
        async with await Ledger.open(ledger) as desk:
            with pytest.raises(DataError, match="rolled back in silence"):
                async with desk.transaction() as tx:
                    await tx.execute("INSERT INTO leases VALUES ('a', 'me', 1, now())")
                    try:
                        await tx.execute("SELECT 1/0")
                    except psycopg.errors.DivisionByZero:
                        pass
            assert await desk.rows("SELECT * FROM leases") == []

    asyncio.run(scenario())


def test_a_pool_that_is_used_up_says_so(ledger):
    async def scenario():
        async with await Ledger.open(ledger, max_size=1, timeout_s=0.5) as desk:
            async with desk.transaction():
                with pytest.raises(LedgerDown, match=r"all 1 connections were in use for 0\.5 s"):
                    await desk.rows("SELECT 1")
            assert await desk.rows("SELECT 1 AS x") == [{"x": 1}]

    asyncio.run(scenario())


# Not there, or not ours


@pytest.mark.parametrize(
    "url, error, text",
    [
        ("postgresql:///x?host=/tmp/no-such-folder-of-deskbook", LedgerDown, "No such file"),
        ("postgresql://u:s3cret@127.0.0.1:9/x", LedgerDown, "refused"),
        ("postgresql://no host:port/", BadInput, "cannot be read"),
    ],
)
def test_a_database_that_is_down_at_start_is_one_typed_error(url, error, text):
    begun = time.monotonic()
    with pytest.raises(error, match=text) as e:
        asyncio.run(Ledger.open(url))
    assert time.monotonic() - begun < 5 and "s3cret" not in str(e.value)


def test_a_database_that_is_not_there_is_named(postgres_url):
    with pytest.raises(LedgerDown, match='"no_such_database" does not exist'):
        asyncio.run(Ledger.open(postgres_url.replace("/deskbook?", "/no_such_database?")))


def test_a_schema_that_does_not_fit_is_refused(ledger, database):
    assert SCHEMA == versions()[-1]
    with pytest.raises(LedgerVersion, match="ledger migrate"):
        asyncio.run(Ledger.open(database))
    for found, todo in (("0000", "ledger migrate"), ("9999", "Install the deskbook")):
        bypass(ledger, f"UPDATE alembic_version SET version_num = '{found}'")
        with pytest.raises(LedgerVersion, match=f"{found}.*{todo}"):
            asyncio.run(Ledger.open(ledger))


def test_a_login_without_the_role_is_told_what_to_ask_for(ledger):
    login = f"u_{secrets.token_hex(4)}"
    with owner(ledger) as c:
        c.execute(f"CREATE ROLE {login} LOGIN")
        try:
            with pytest.raises(Refused, match="GRANT deskbook_app TO"):
                asyncio.run(Ledger.open(ledger.replace("//deskbook@", f"//{login}@")))
            c.execute(f"GRANT deskbook_app TO {login}")

            async def scenario():
                async with await Ledger.open(ledger.replace("//deskbook@", f"//{login}@")) as desk, desk.transaction() as tx:
                    return await audit(tx, "sender", "order.refused", "order")

            assert asyncio.run(scenario()) == 1
        finally:
            c.execute(f"DROP ROLE {login}")


# Going away in the middle


def test_a_database_that_is_killed_mid_run_comes_back_by_itself(mortal_servers):
    mortal = mortal_servers.postgres

    async def scenario():
        async with await Ledger.open(mortal.url, timeout_s=1.0, min_size=2) as desk:
            await desk.rows("INSERT INTO leases VALUES ('kept', 'me', 1, now())")
            with pytest.raises(LedgerDown) as cut:
                async with desk.transaction() as tx:
                    await tx.execute("INSERT INTO leases VALUES ('lost', 'me', 1, now())")
                    os.kill(mortal.pid, signal.SIGQUIT)
                    for _ in range(100):
                        await tx.execute("SELECT pg_sleep(0.05)")
            assert not cut.value.maybe_committed and "Nothing was written" in cut.value.todo
            begun = time.monotonic()
            with pytest.raises(LedgerDown):
                await desk.rows("SELECT 1")
            assert time.monotonic() - begun < 4
            for _ in range(4):  # long enough for a pause that doubles to be longer than anybody wants to wait
                with pytest.raises(LedgerDown):
                    await desk.rows("SELECT 1")
            await asyncio.to_thread(mortal.revive)
            begun = time.monotonic()
            desk.timeout_s = 10.0
            assert [r["name"] for r in await desk.rows("SELECT name FROM leases")] == ["kept"]
            assert time.monotonic() - begun < 3
            # A restart that nobody was looking at costs no error at all.
            await asyncio.gather(*(desk.rows("SELECT pg_sleep(0.1)") for _ in range(4)))
            os.kill(mortal.pid, signal.SIGQUIT)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(mortal.revive)
            assert [len(r) for r in await asyncio.gather(*(desk.rows("SELECT name FROM leases") for _ in range(8)))] == [1] * 8

    asyncio.run(scenario())


@pytest.mark.parametrize("arrives", [True, False], ids=["the answer is lost", "the commit is lost"])
def test_a_connection_that_breaks_during_commit_says_that_nobody_knows(ledger, tmp_path, arrives):
    """A relay in front of the real server closes the connection at COMMIT, after or before passing it on."""
    parts = psycopg.conninfo.conninfo_to_dict(ledger)
    armed = asyncio.Event()

    async def relay(reader, writer):
        up_reader, up_writer = await asyncio.open_unix_connection(f"{parts['host']}/.s.PGSQL.5432")

        async def back():
            while data := await up_reader.read(65536):
                writer.write(data)

        task = asyncio.create_task(back())
        while data := await reader.read(65536):
            if armed.is_set() and b"COMMIT" in data:
                task.cancel()
                if arrives:
                    up_writer.write(data)
                    await up_reader.read(1)
                break
            up_writer.write(data)
        task.cancel()
        up_writer.close()
        writer.close()

    async def scenario():
        folder = Path(f"/tmp/dbr-{secrets.token_hex(4)}")
        folder.mkdir()
        relay_server = await asyncio.start_unix_server(relay, folder / ".s.PGSQL.5432")
        try:
            async with await Ledger.open(f"postgresql://{parts['user']}@/{parts['dbname']}?host={folder}") as desk:
                with pytest.raises(LedgerDown, match="unknown") as cut:
                    async with desk.transaction() as tx:
                        await tx.execute("INSERT INTO leases VALUES ('sender:paper', 'me', 1, now())")
                        armed.set()
                assert cut.value.maybe_committed
                armed.clear()
                return len(await desk.rows("SELECT * FROM leases"))
        finally:
            relay_server.close()
            shutil.rmtree(folder)

    assert asyncio.run(scenario()) == int(arrives)


# Records


def test_a_batch_over_several_accounts_comes_back_in_its_order(ledger):
    orders = {a: one_order(ledger, a) for a in ("paper", "Zürich", "a-b")}
    told = ["paper", "Zürich", "a-b", "paper", "Zürich", "paper"]

    async def scenario():
        async with await Ledger.open(ledger) as desk, desk.transaction() as tx:
            seqs = await append_order_events(tx, [OrderEvent(a, orders[a], n + 1, None, "created", f"n{n}") for n, a in enumerate(told)])
            rows = await (await tx.execute("SELECT account, seq, reason FROM order_events")).fetchall()
            assert seqs == [1, 1, 1, 2, 2, 3]
            assert {(r["account"], r["seq"]): r["reason"] for r in rows} == {
                (a, s): f"n{n}" for n, (a, s) in enumerate(zip(told, seqs, strict=True))
            }
            assert await append_audits(tx, [AuditEvent("x", "y", "z", chain=c) for c in ("audit", "paper", "audit")]) == [1, 1, 2]
            assert await append_order_events(tx, []) == [] and await append_audits(tx, []) == []

    asyncio.run(scenario())


def test_batches_of_the_same_accounts_do_not_wait_for_each_other_for_ever(ledger):
    orders = {a: one_order(ledger, a) for a in ("a", "b")}

    async def batch(desk, order_of_accounts):
        for _ in range(30):
            async with desk.transaction() as tx:
                await append_order_events(tx, [OrderEvent(a, orders[a], 1, None, "created") for a in order_of_accounts])

    async def scenario():
        async with await Ledger.open(ledger) as desk:
            await asyncio.gather(batch(desk, "ab"), batch(desk, "ba"), batch(desk, "ab"), batch(desk, "ba"))
            return await desk.rows("SELECT chain, seq FROM chain_heads ORDER BY 1")

    assert asyncio.run(scenario()) == [{"chain": "a", "seq": 120}, {"chain": "b", "seq": 120}]


def test_the_same_trouble_is_one_alert_that_counts(ledger):
    async def again(desk, severity="low"):
        async with desk.transaction() as tx:
            return await raise_alert(
                tx, "unknown_order:paper", "orders", severity, "unknown_age_s", "one order is unknown", 31.0, 30.0, {"orders": ["k1"]}
            )

    async def scenario():
        async with await Ledger.open(ledger) as desk:
            got = await asyncio.gather(*(again(desk) for _ in range(20)))
            assert sorted(r["count"] for r in got) == list(range(1, 21)) and len({r["id"] for r in got}) == 1
            async with desk.transaction() as tx:
                assert await acknowledge_alert(tx, "unknown_order:paper", "operator") and not await acknowledge_alert(
                    tx, "unknown_order:paper", "operator"
                )
            assert (await again(desk))["status"] == "acknowledged"
            assert (await again(desk, "high")).items() >= {"status": "open", "severity": "high", "count": 22}.items(), (
                "worse: it opens again"
            )
            assert (await again(desk))["severity"] == "high"
            async with desk.transaction() as tx:
                assert await resolve_alert(tx, "unknown_order:paper") and not await resolve_alert(tx, "unknown_order:paper")
            fresh = await again(desk)
            assert fresh["count"] == 1 and fresh["id"] != got[0]["id"]
            with pytest.raises(BadInput, match="no severity 'fatal'"):
                await again(desk, "fatal")

    asyncio.run(scenario())


def test_events_are_appended_much_faster_than_orders_come(ledger):
    order = one_order(ledger)
    events = [OrderEvent("paper", order, 2, "created", "submitting", "claimed", {"units": "1000", "price": "1.0871"})] * 100

    async def scenario():
        async with await Ledger.open(ledger) as desk:
            begun = time.monotonic()
            for _ in range(20):
                async with desk.transaction() as tx:
                    await append_order_events(tx, events)
            return 2000 / (time.monotonic() - begun)

    assert asyncio.run(scenario()) > 1000
