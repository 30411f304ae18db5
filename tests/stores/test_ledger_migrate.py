"""Migrations: up and down with data in the tables, two deployers at once, and one that is killed half-way."""

import asyncio
import secrets
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from ledger_rows import add_account, add_order, bypass, one_order, owner

from deskbook.core.errors import BadInput, DataError, LockHeld, Refused
from deskbook.stores import ledger_migrate
from deskbook.stores.chain import verify
from deskbook.stores.ledger import Ledger, LedgerDown, LedgerVersion
from deskbook.stores.ledger_migrate import current, migrate, versions
from deskbook.stores.migrations.versions.v0001_order_path import tables

HEAD = versions()[-1]
UP, DOWN = tuple(f"+{v}" for v in versions()), tuple(f"-{v}" for v in reversed(versions()))


def relations(url):
    with owner(url) as c:
        return {
            r["relname"]
            for r in c.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
            ).fetchall()
        }


def leftovers(url):
    """Everything of ours that is in the database besides tables."""
    with owner(url) as c:
        return [
            r["n"]
            for r in c.execute("""SELECT proname AS n FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            UNION ALL SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typtype = 'd'""").fetchall()
        ]


def indexes(url):
    with owner(url) as c:
        return {r["indexname"] for r in c.execute("SELECT indexname FROM pg_indexes WHERE schemaname = 'public'").fetchall()}


def test_up_down_up_on_an_empty_database(database):
    assert current(database) == ""
    did = migrate(database)
    assert (did.before, did.after, did.steps) == ("", HEAD, UP) and set(tables) <= relations(database)
    assert any(p.startswith("order_events_2") for p in did.partitions)
    again = migrate(database)
    assert (again.steps, again.partitions, current(database)) == ((), (), HEAD)
    assert migrate(database, "base").steps == DOWN
    assert relations(database) == {"alembic_version"} and leftovers(database) == [] and current(database) == ""
    assert [migrate(database, "+1").after for _ in UP] == versions() and set(tables) <= relations(database)


def test_up_down_up_on_a_populated_database(ledger):
    order = one_order(ledger)
    with owner(ledger) as c:
        c.execute("INSERT INTO order_events (account, order_id, version, to_state) VALUES ('paper', %s, 1, 'created')", [order])
    assert migrate(ledger).steps == ()
    with pytest.raises(
        Refused, match=r"would drop 4 rows of order_events, orders, accounts, chain_heads\. Run `deskbook ledger export`.*--drop-data"
    ):
        migrate(ledger, "base")
    assert current(ledger) == HEAD and asyncio.run(verify(ledger)).rows == 1
    did = migrate(ledger, "base", drop_data=True)
    assert did.dropped == {"order_events": 1, "orders": 1, "accounts": 1, "chain_heads": 1} and relations(ledger) == {"alembic_version"}
    migrate(ledger)
    one_order(ledger)
    assert asyncio.run(verify(ledger)).ok


def test_something_that_hangs_on_a_table_stops_the_way_down(ledger):
    with owner(ledger) as c:
        c.execute("CREATE VIEW my_orders AS SELECT * FROM orders")
    with pytest.raises(Refused, match="my_orders depends on table orders"):
        migrate(ledger, "base", drop_data=True)
    assert current(ledger) == HEAD and set(tables) <= relations(ledger)


def test_a_version_is_said_and_checked(ledger):
    for to in ("0077", "-9", "+1", "newest"):
        with pytest.raises(BadInput, match="Known: base, 0001, 0002; or head"):
            migrate(ledger, to)
    with pytest.raises(BadInput, match="Add --down"):
        migrate(ledger, "base", down=False)
    migrate(ledger, "base")
    with pytest.raises(BadInput, match="Leave out --down"):
        migrate(ledger, "head", down=True)
    assert current(ledger) == ""


def test_a_database_of_newer_code_is_left_alone(ledger):
    bypass(ledger, "UPDATE alembic_version SET version_num = '0077'")
    for to in ("head", "base", "0001"):
        with pytest.raises(LedgerVersion, match=r"'0077', which this deskbook does not know \(it knows up to 0002\)"):
            migrate(ledger, to, drop_data=True)
    assert current(ledger) == "0077" and set(tables) <= relations(ledger)


def test_a_database_that_is_not_there_or_not_fit(postgres_url):
    with pytest.raises(LedgerDown, match="No such file"):
        migrate("postgresql:///x?host=/tmp/no-such-folder-of-deskbook")
    with pytest.raises(LedgerDown):
        current("postgresql:///x?host=/tmp/no-such-folder-of-deskbook")
    name = f"t_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_url, autocommit=True) as c:
        c.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        try:
            with pytest.raises(BadInput, match="encoded as LATIN1"):
                migrate(postgres_url.replace("/deskbook?", f"/{name}?"))
        finally:
            c.execute(f"DROP DATABASE {name} WITH (FORCE)")


# Later versions


NEXT = """
from alembic import op
revision = "0003"
down_revision = "0002"
tables = ("notes",)
def run(sql): op.get_bind().exec_driver_sql(sql)
def upgrade():
    run("CREATE TABLE notes (text text)")
    run("ALTER TABLE orders ADD COLUMN tag text NOT NULL DEFAULT ''")
    {then}
def downgrade():
    run("DROP TABLE notes")
    run("ALTER TABLE orders DROP COLUMN tag")
"""


def newer(tmp_path, then="pass"):
    shutil.copytree(
        Path(ledger_migrate.__file__).parent / "migrations" / "versions",
        tmp_path / "book" / "versions",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (tmp_path / "book" / "versions" / "v0003.py").write_text(NEXT.format(then=then))
    return tmp_path / "book"


def test_a_later_version_goes_up_and_down_alone(ledger, tmp_path):
    one_order(ledger)
    book = newer(tmp_path)
    assert versions(book) == ["0001", "0002", "0003"]
    assert migrate(ledger, folder=book).steps == ("+0003",)
    with pytest.raises(LedgerVersion, match="0003"):
        asyncio.run(Ledger.open(ledger))
    with pytest.raises(LedgerVersion, match="does not know"):
        migrate(ledger)
    did = migrate(ledger, "-1", folder=book)
    assert did.steps == ("-0003",) and did.dropped == {}, "the rows of version 0001 are not in its way"
    assert migrate(ledger, "0003", folder=book).after == "0003"
    assert migrate(ledger, "base", folder=book, drop_data=True).steps == ("-0003", *DOWN)


def test_an_index_goes_and_comes_with_every_row_in_place(ledger):
    order = one_order(ledger)
    did = migrate(ledger, "0001")
    assert did.steps == ("-0002",) and did.dropped == {} and "orders_trace" not in indexes(ledger)
    assert migrate(ledger).steps == ("+0002",) and "orders_trace" in indexes(ledger)
    with owner(ledger) as c:
        assert [r["id"] for r in c.execute("SELECT id FROM orders").fetchall()] == [order]


def test_a_version_that_fails_half_way_leaves_the_one_before(ledger, tmp_path):
    one_order(ledger)
    with pytest.raises(DataError, match="failed and was undone: division by zero"):
        migrate(ledger, folder=newer(tmp_path, 'run("SELECT 1/0")'))
    assert current(ledger) == HEAD and "notes" not in relations(ledger)
    with owner(ledger) as c:
        assert "tag" not in c.execute("SELECT * FROM orders").fetchone()


# Killed


KILL = """
import os, signal, sys
from deskbook.stores.ledger_migrate import migrate
url, at, to = sys.argv[1], int(sys.argv[2]), sys.argv[3]
seen = 0
def count(sql):
    global seen
    seen += 1
    if seen == at: os.kill(os.getpid(), signal.SIGKILL)
migrate(url, to, drop_data=True, progress=count)
print(seen)
"""


def run_killed(url, at, to="head"):
    return subprocess.run([sys.executable, "-c", KILL, url, str(at), to], capture_output=True, text=True, timeout=60)


def settled(url, wanted):
    """The server notices that the client is gone a moment later."""
    end = time.monotonic() + 10
    while (found := current(url)) != wanted and time.monotonic() < end:
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("at_frac", [0.1, 0.5, 0.8, 1.0])
def test_a_migration_that_is_killed_leaves_the_old_version(database, at_frac):
    if not hasattr(test_a_migration_that_is_killed_leaves_the_old_version, "steps"):
        test_a_migration_that_is_killed_leaves_the_old_version.steps = int(run_killed(database, 0).stdout)
        migrate(database, "base")
        with owner(database) as c:
            c.execute("DROP TABLE alembic_version")
    steps = test_a_migration_that_is_killed_leaves_the_old_version.steps
    assert steps > 20
    done = run_killed(database, max(1, round(steps * at_frac)))
    assert done.returncode == -9, done.stderr
    assert settled(database, "") == "" and relations(database) == set() and leftovers(database) == []
    assert migrate(database).after == HEAD


def test_going_down_that_is_killed_loses_no_row(ledger):
    one_order(ledger)
    assert run_killed(ledger, 20, "base").returncode == -9
    assert settled(ledger, HEAD) == HEAD and set(tables) <= relations(ledger)
    with owner(ledger) as c:
        assert c.execute("SELECT count(*) AS n FROM orders").fetchone()["n"] == 1


def test_a_migration_whose_server_connection_is_killed(database):
    """The other end: an administrator ends the session in the middle."""

    def end(sql):
        if "CREATE TABLE positions" in sql:
            with owner(database) as c:
                c.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'deskbook migrate'"
                )

    with pytest.raises(LedgerDown, match="Nothing was written"):
        migrate(database, progress=end)
    assert relations(database) == set() and migrate(database).after == HEAD


# Two at once


def test_two_deployers_at_once_do_it_once(database):
    with ThreadPoolExecutor(4) as pool:
        did = list(pool.map(lambda _: migrate(database), range(4)))
    assert sorted(d.steps for d in did) == [(), (), (), UP] and current(database) == HEAD


def test_a_deployer_who_waits_too_long_says_who_holds_him_up(database):
    inside, go_on = threading.Event(), threading.Event()

    def hold(sql):
        if "CREATE TABLE positions" in sql:
            inside.set()
            go_on.wait(20)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(migrate, database, progress=hold)
        assert inside.wait(20)
        begun = time.monotonic()
        with pytest.raises(LockHeld, match=r"in use for 0\.3 s"):
            migrate(database, wait_s=0.3)
        assert time.monotonic() - begun < 3
        go_on.set()
        assert first.result(20).steps == UP


def test_a_worker_in_the_tables_holds_up_the_way_down_and_is_not_cut_off(ledger):
    with owner(ledger) as c:
        add_account(c)
        with c.transaction():
            add_order(c)
            with pytest.raises(LockHeld):
                migrate(ledger, "base", drop_data=True, wait_s=0.3)
        assert c.execute("SELECT count(*) AS n FROM orders").fetchone()["n"] == 1


# Who may


def test_a_login_that_is_no_superuser_may_own_everything(postgres_url):
    """It made the database, it may make roles, and it is nothing more."""
    name = f"t_{secrets.token_hex(6)}"
    url = postgres_url.replace("//deskbook@", f"//{name}@").replace("/deskbook?", f"/{name}?")
    with psycopg.connect(postgres_url, autocommit=True) as c:
        c.execute(f"CREATE ROLE {name} LOGIN CREATEROLE")
        c.execute(f"CREATE DATABASE {name} OWNER {name} TEMPLATE template0")
        try:
            with pytest.raises(Refused, match="permission denied"):
                migrate(postgres_url.replace("//deskbook@", f"//{name}@"))
            migrate(url)
            one_order(url)

            async def scenario():
                async with await Ledger.open(url) as desk:
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        await desk.rows("DELETE FROM order_events")
                    return await desk.rows("SELECT current_user AS u, session_user AS s")

            assert asyncio.run(scenario()) == [{"u": "deskbook_app", "s": name}]
            with owner(url) as o:
                o.execute("INSERT INTO ops_audit_events (actor, action, resource_type) VALUES ('a', 'b', 'c')")
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                    o.execute("DELETE FROM ops_audit_events")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    o.execute("SET session_replication_role = replica")
        finally:
            c.execute(f"DROP DATABASE {name} WITH (FORCE)")
            c.execute(f"DROP ROLE {name}")


@pytest.fixture(scope="module")
def fresh_server():
    """A server that has never seen the role of the application."""
    from deskbook.stores.embedded import start_postgres

    folder = Path(f"/tmp/dbf-{secrets.token_hex(4)}")
    with start_postgres(folder=folder, durable=False, temporary=True) as server:
        yield server.url
    shutil.rmtree(folder, ignore_errors=True)


def test_the_role_is_made_once_by_deployers_in_several_databases(fresh_server):
    urls = [fresh_server.replace("/deskbook?", f"/d{n}?") for n in range(4)]
    with owner(fresh_server) as c:
        for n in range(4):
            c.execute(f"CREATE DATABASE d{n}")
        c.execute("CREATE ROLE weak LOGIN")
        with pytest.raises(Refused, match="CREATE ROLE deskbook_app NOLOGIN"):
            migrate(fresh_server.replace("//deskbook@", "//weak@"))
    with ThreadPoolExecutor(4) as pool, psycopg.connect(fresh_server) as somebody:
        somebody.execute("CREATE ROLE deskbook_app NOLOGIN")  # not committed yet, so nobody sees it and everybody meets it
        did = [pool.submit(migrate, url) for url in urls]
        time.sleep(1.5)
        assert not any(d.done() for d in did)
        somebody.commit()
        assert [d.result(30).after for d in did] == [HEAD] * 4
    with owner(fresh_server) as c:
        assert c.execute("SELECT rolcanlogin, rolsuper FROM pg_roles WHERE rolname = 'deskbook_app'").fetchall() == [
            {"rolcanlogin": False, "rolsuper": False}
        ]
