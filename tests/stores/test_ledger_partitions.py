"""What grows for ever is cut by time, with and without TimescaleDB, and no row is ever refused for want of a place."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_rows import add_account, add_order, one_order, owner
from timescale_sql import digest

from deskbook.core.clock import DAY_MS, to_ms
from deskbook.core.errors import LockHeld
from deskbook.stores.chain import verify
from deskbook.stores.ledger import Ledger
from deskbook.stores.ledger_migrate import migrate, versions
from deskbook.stores.migrations.versions.v0001_order_path import BY_TIME
from deskbook.stores.partitions import GROWING, Cut, check_months, cuts, ensure_months, keep_months, month_start, troubles
from deskbook.stores.records import OrderEvent, append_order_events, audit

NOW = datetime.now(UTC)


def run(url, work, **how):
    """`work` with an open ledger."""

    async def scenario():
        async with await Ledger.open(url, **how) as desk:
            return await work(desk)

    return asyncio.run(scenario())


async def make_month(desk, around):
    """As `ensure_months`, at another time."""
    while True:
        try:
            return (await desk.rows("SELECT deskbook_partitions(0, %s) AS made", [around]))[0]["made"]
        except psycopg.errors.LockNotAvailable:
            await asyncio.sleep(0.01)


def partition_of(url, table):
    with owner(url) as c:
        return [r["p"] for r in c.execute(f"SELECT tableoid::regclass::text AS p FROM {table} ORDER BY seq").fetchall()]


def test_the_names_agree():
    assert GROWING == BY_TIME


# Native partitions


def test_a_new_ledger_has_its_months(ledger):
    async def look(desk):
        async with desk.transaction() as tx:
            return await cuts(tx)

    found = run(ledger, look)
    assert [c.table for c in found] == list(GROWING) and {c.kind for c in found} == {"months"}
    for c in found:
        assert c.column == GROWING[c.table] and c.months == tuple(month_start(NOW, k) for k in range(-1, 4)) and c.stray == 0
    assert troubles(found, to_ms(NOW)) == {}


def test_rows_of_every_age_are_kept_and_chained(ledger):
    order = one_order(ledger)
    ages = [
        datetime(1970, 1, 1, tzinfo=UTC),
        NOW - timedelta(days=400),
        month_start(NOW) - timedelta(microseconds=1),
        month_start(NOW),
        NOW,
        month_start(NOW, 1),
        datetime(2262, 1, 1, tzinfo=UTC),
    ]

    async def write(desk):
        async with desk.transaction() as tx:
            await append_order_events(tx, [OrderEvent("paper", order, n + 1, "open", "open", recorded_at=at) for n, at in enumerate(ages)])
        return await verify(desk), await check_months(desk), await desk.rows("SELECT message, metric FROM ops_alerts")

    report, wrong, alerts = run(ledger, write)
    assert report.ok and report.rows == 7
    assert [p == "order_events_default" for p in partition_of(ledger, "order_events")] == [True, True, False, False, False, False, True]
    assert len(set(partition_of(ledger, "order_events")[2:6])) == 3
    assert wrong == {"order_events": "3 rows of order_events are outside every month: check the clock of the machines that wrote them."}
    assert [a["message"] for a in alerts] == list(wrong.values())
    with owner(ledger) as c, pytest.raises(psycopg.errors.FeatureNotSupported, match="infinity"):
        c.execute(
            "INSERT INTO order_events (account, order_id, version, to_state, recorded_at) VALUES ('paper', %s, 1, 'open', 'infinity')",
            [order],
        )


def test_rows_of_the_default_partition_move_into_a_month_that_is_made(ledger):
    """Two writers append meanwhile; the chain, the count and the seals hold."""
    order = one_order(ledger)
    far = NOW + timedelta(days=200)

    async def work(desk):
        async with desk.transaction() as tx:
            await append_order_events(
                tx, [OrderEvent("paper", order, 1, "open", "open", recorded_at=far if n % 2 else NOW) for n in range(20)]
            )
            await audit(tx, "a", "b", "c", recorded_at=far)

        async def writer():
            for _ in range(20):
                async with desk.transaction() as tx:
                    await append_order_events(tx, [OrderEvent("paper", order, 1, "open", "open", recorded_at=far)])

        _, _, made = await asyncio.gather(writer(), writer(), make_month(desk, far))
        return made, await verify(desk), await check_months(desk)

    made, report, wrong = run(ledger, work)
    month = f"order_events_{far:%Y_%m}"
    assert month in made and report.ok and report.rows == 61 and wrong == {}
    assert partition_of(ledger, "order_events").count(month) == 50
    with owner(ledger) as c:
        for sql in (
            f"UPDATE {month} SET version = 2",
            f"DELETE FROM {month}",
            f"TRUNCATE {month}",
            "DELETE FROM order_events_default",
            "TRUNCATE order_events_default",
        ):
            if "default" in sql and "DELETE" in sql:
                continue  # nothing left in it to delete
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                c.execute(sql)
        assert (
            c.execute(
                "SELECT count(*) AS n FROM pg_trigger WHERE tgrelid = 'order_events_default'::regclass AND tgenabled = 'D'"
            ).fetchone()["n"]
            == 0
        )


def test_making_months_twice_or_at_once_makes_them_once(ledger):
    async def work(desk):
        assert await ensure_months(desk) == []
        made = await asyncio.gather(*(ensure_months(desk, ahead=5) for _ in range(4)))
        return sorted(len(m) for m in made), await ensure_months(desk, ahead=5)

    assert run(ledger, work) == ([0, 0, 0, 8], [])


def test_making_months_under_load_costs_no_writer_an_error(ledger):
    """Writers touch orders, events and audit in one order and the other, as fast as they can; six months are made, one by one."""
    orders = {a: one_order(ledger, a) for a in ("a", "b", "c")}

    async def work(desk):
        done = asyncio.Event()

        async def writer(account, orders_first):
            count = 0
            while not done.is_set():
                async with desk.transaction() as tx:
                    if orders_first:
                        await tx.execute("UPDATE orders SET resends = resends + 1 WHERE id = %s", [orders[account]])
                    await append_order_events(tx, [OrderEvent(account, orders[account], 1, "open", "open")])
                    await audit(tx, "a", "b", "c", chain=account)
                    if not orders_first:
                        await tx.execute("UPDATE orders SET resends = resends + 1 WHERE id = %s", [orders[account]])
                        await tx.execute("SELECT count(*) FROM order_events WHERE account = 'nobody'")
                count += 1
            return count

        tasks = [asyncio.create_task(writer(a, a != "b")) for a in orders]
        made = [await ensure_months(desk, ahead, wait_s=20) for ahead in range(4, 10)]
        done.set()
        return made, await asyncio.gather(*tasks), await verify(desk)

    made, counts, report = run(ledger, work)
    assert [len(m) for m in made] == [4] * 6 and min(counts) > 3 and report.ok and report.rows == 2 * sum(counts)


def test_a_long_transaction_in_the_way_is_said_and_nobody_waits_for_ever(ledger):
    with owner(ledger) as c, c.transaction():
        c.execute("SELECT count(*) FROM order_events")  # as an export does, for minutes
        begun = time.monotonic()
        with pytest.raises(LockHeld, match="long transaction"):
            run(ledger, lambda desk: ensure_months(desk, ahead=4, wait_s=1.0))
        assert 1 < time.monotonic() - begun < 4
    assert len(run(ledger, lambda desk: ensure_months(desk, ahead=4))) == 4


def test_the_worker_makes_months_tells_and_stops(ledger):
    async def work(desk):
        async with desk.transaction() as tx:
            await audit(tx, "a", "b", "c", recorded_at=datetime(2031, 7, 5, tzinfo=UTC))
        stop = asyncio.Event()
        task = asyncio.create_task(keep_months(desk, stop, every_s=0.05))
        for _ in range(100):
            await asyncio.sleep(0.05)
            alerts = await desk.rows("SELECT fingerprint, count, status FROM ops_alerts")
            if alerts and alerts[0]["count"] > 2:
                break
        assert [(a["fingerprint"], a["status"]) for a in alerts] == [("ledger_months:ops_audit_events", "open")]
        await make_month(desk, "2031-07-05")
        for _ in range(100):
            await asyncio.sleep(0.05)
            if (await desk.rows("SELECT status FROM ops_alerts"))[0]["status"] == "resolved":
                break
        stop.set()
        await asyncio.wait_for(task, 5)
        return await desk.rows("SELECT status FROM ops_alerts")

    assert run(ledger, work) == [{"status": "resolved"}]


def test_the_worker_outlives_a_database_that_is_away(ledger):
    async def work(desk):
        stop = asyncio.Event()
        await desk.aclose()
        gone = await Ledger.open(ledger, timeout_s=0.2)
        gone.url = "postgresql:///x?host=/tmp/no-such-folder-of-deskbook"
        await gone.pool.resize(1, 1)
        async with gone.transaction():
            task = asyncio.create_task(keep_months(gone, stop, every_s=0.05))
            await asyncio.sleep(1.0)
            assert not task.done()
        stop.set()
        await asyncio.wait_for(task, 5)
        await gone.aclose()

    run(ledger, work)


@given(day=st.integers(0, 40_000), later=st.integers(-30, 30))
def test_months_are_counted_like_a_calendar(day, later):
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)
    start = month_start(at, later)
    assert start.day == 1 and (start.year - at.year) * 12 + start.month - at.month == later


def test_a_missing_month_is_noticed_before_it_begins():
    made = tuple(month_start(datetime(2025, 11, 21, tzinfo=UTC), k) for k in range(2))
    cut, november = Cut("order_events", "months", "recorded_at", made), to_ms("2025-11-21")
    assert troubles([cut], november) == {} and "2026-01" in troubles([cut], november + 20 * DAY_MS)["order_events"]
    assert "not cut by time" in troubles([Cut("order_events", "whole")], november)["order_events"]
    assert "cut by seq" in troubles([Cut("order_events", "hypertable", "seq")], november)["order_events"]


# TimescaleDB: what a real one said, and our SQL against it


RECORDED = json.loads((Path(__file__).parent / "timescale_catalogue.json").read_text())


def test_the_recording_is_of_the_sql_that_is_deployed():
    assert RECORDED["sql_sha256"] == digest(), "version 0001 for TimescaleDB changed: record again (timescale_record.mjs)"


def test_what_a_real_timescaledb_did_with_it():
    assert {d["hypertable_name"]: d["column_name"] for d in RECORDED["dimensions"]} == GROWING
    assert {d["time_interval"] for d in RECORDED["dimensions"]} == {"30 days"} and RECORDED["made_ahead"] == []
    assert RECORDED["chunks"] == 3 and RECORDED["verified"] == {
        "altered": [],
        "linked": [{"chain": "paper", "rows": 9, "last": 9, "gap": None, "loose": None}],
    }
    assert (
        all(o.startswith("42501 permission denied") for o in RECORDED["as_application"].values()) and len(RECORDED["as_application"]) == 4
    )
    assert (
        all(o.startswith("42501") and "append-only" in o for o in RECORDED["as_superuser"].values()) and len(RECORDED["as_superuser"]) == 5
    )
    assert RECORDED["after_tampering"] == [{"chain": "paper", "altered": 5}] and RECORDED["after_down"] == ["alembic_version"]


# A catalogue like TimescaleDB's, and a create_hypertable that refuses what the real one refuses.
STAND_IN = """
CREATE SCHEMA timescaledb_information;
CREATE TABLE timescaledb_information.dimensions (hypertable_schema name, hypertable_name name, column_name name, dimension_type text, time_interval interval);
GRANT USAGE ON SCHEMA timescaledb_information TO PUBLIC;
GRANT SELECT ON timescaledb_information.dimensions TO PUBLIC;
CREATE FUNCTION create_hypertable(relation regclass, time_column_name name, chunk_time_interval interval, create_default_indexes boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF (SELECT relkind FROM pg_class WHERE oid = relation) <> 'r' THEN RAISE EXCEPTION 'table "%" is already partitioned', relation; END IF;
  IF EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = relation AND i.indisunique AND NOT EXISTS (SELECT 1 FROM pg_attribute a
      WHERE a.attrelid = relation AND a.attname = time_column_name AND a.attnum = ANY (i.indkey)))
    THEN RAISE EXCEPTION 'cannot create a unique index without the column "%" (used in partitioning)', time_column_name; END IF;
  INSERT INTO timescaledb_information.dimensions SELECT 'public', relname, time_column_name, 'Time', chunk_time_interval FROM pg_class WHERE oid = relation;
END $$;
SET allow_system_table_mods = on;
INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion) VALUES (99999, 'timescaledb', 10, 'public'::regnamespace, false, 'stand-in')
"""


def test_with_the_extension_the_migration_makes_hypertables(database):
    with owner(database) as c:
        c.execute(STAND_IN)
    did = migrate(database)
    assert did.after == versions()[-1] and did.partitions == ()
    with owner(database) as c:
        made = c.execute(
            "SELECT hypertable_schema, hypertable_name, column_name, dimension_type, time_interval::text FROM timescaledb_information.dimensions ORDER BY 2"
        ).fetchall()
        assert made == RECORDED["dimensions"], "the same catalogue as the real one"
        assert c.execute("SELECT count(*) AS n FROM pg_class WHERE relkind = 'p'").fetchone()["n"] == 0
        add_account(c)
        order = add_order(c)

    async def work(desk):
        async with desk.transaction() as tx:
            await append_order_events(tx, [OrderEvent("paper", order, n, "open", "open") for n in (1, 2, 3)])
            await audit(tx, "a", "b", "c")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await desk.rows("UPDATE order_events SET version = 9")
        assert await ensure_months(desk) == []
        async with desk.transaction() as tx:
            found = await cuts(tx)
        return await verify(desk), found, await check_months(desk)

    report, found, wrong = run(database, work)
    assert report.ok and report.rows == 4 and wrong == {}
    assert found == [Cut(t, "hypertable", column) for t, column in GROWING.items()]
    with owner(database) as c:
        for sql in ("UPDATE order_events SET version = 9", "TRUNCATE ops_audit_events"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                c.execute(sql)
    assert migrate(database, "base", drop_data=True).after == ""
