"""An export is one moment of the ledger, exact to the last digit, and there whole or not at all."""

import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal

import duckdb
import psycopg
import pytest
from ledger_rows import one_order, owner

from deskbook.core.errors import BadInput
from deskbook.core.files import read_json, sha256
from deskbook.stores import ledger_export
from deskbook.stores.ledger import SCHEMA, Ledger, LedgerDown
from deskbook.stores.ledger_export import MANIFEST, Column, arrow_type, export
from deskbook.stores.migrations.versions.v0001_order_path import tables
from deskbook.stores.records import OrderEvent, append_order_events


def ask(folder, sql):
    """SQL over the files, with {name} for the file of a table."""
    for t in tables:
        sql = sql.replace("{" + t + "}", f"'{folder}/{t}.parquet'")
    return duckdb.sql(sql).fetchall()


def test_every_table_is_there_with_its_rows(ledger, tmp_path):
    one_order(ledger)
    with owner(ledger) as c:
        c.execute("CREATE TABLE notes_of_somebody (text text)")  # which the desk may not read
    did = asyncio.run(export(ledger, tmp_path / "deep" / "out"))
    assert set(did.tables) == set(tables) and did.tables["orders"] == 1 and did.tables["fills"] == 0 and did.schema == SCHEMA
    assert {p.stem for p in did.out.glob("*.parquet")} == set(tables) and len(list(did.out.iterdir())) == len(tables) + 1
    manifest = read_json(did.out / MANIFEST)
    assert manifest["tables"]["orders"]["sha256"] == sha256(did.out / "orders.parquet")
    for t in tables:
        assert ask(did.out, f"SELECT count(*) FROM {{{t}}}") == [(did.tables[t],)], "an empty table is a file with columns"
    only = asyncio.run(export(ledger, tmp_path / "only", ["orders", "accounts"]))
    assert list(only.tables) == ["orders", "accounts"] and len(list(only.out.iterdir())) == 3


def test_no_value_changes_on_the_way(ledger, tmp_path):
    order = one_order(ledger)
    at = datetime(2025, 11, 3, 7, 30, 0, 123457, tzinfo=UTC)
    price, tiny = Decimal("1.08710"), Decimal("0.000000000000000000017")
    with owner(ledger) as c:
        c.execute(
            "UPDATE orders SET price = %s, average_price = %s, reserved_usd = %s, reason = %s, sent_at = %s",
            [price, tiny, Decimal(10) ** 25, 'näh, "so"\n,', at],
        )
        c.execute(
            "INSERT INTO decisions (account, instrument, decided_at, verdict, reasons, inputs) VALUES ('paper', 'EUR_USD', %s, 'refuse', %s, %s)",
            [at, ["max_leverage", "a,b", ""], '{"p": 1.0871, "s": "x"}'],
        )
        c.execute("INSERT INTO decisions (account, instrument, decided_at, verdict) VALUES ('paper', 'EUR_USD', now(), 'hold')")
        c.execute("INSERT INTO account_risk_state (account, day) VALUES ('paper', '2025-11-03')")
        c.execute("INSERT INTO observability_metrics (name, value) VALUES ('x', 'NaN'), ('x', 'Infinity'), ('x', 0.1)")
        c.execute("INSERT INTO ops_audit_events (actor, action, resource_type) VALUES ('a', 'b', 'c')")
        head = c.execute("SELECT hash FROM ops_audit_events").fetchone()["hash"]
    out = asyncio.run(export(ledger, tmp_path / "out")).out
    assert ask(out, "SELECT id, price, average_price, reserved_usd, reason, stop_loss_price, reduce_only, version FROM {orders}") == [
        (str(order), price, tiny, Decimal(10) ** 25, 'näh, "so"\n,', None, False, 1)
    ]
    assert ask(out, "SELECT epoch_us(sent_at) FROM {orders}") == [(int(at.timestamp()) * 1_000_000 + 123457,)]
    assert ask(out, "SELECT reasons, inputs->>'p' FROM {decisions} ORDER BY verdict") == [
        ([], None),
        (["max_leverage", "a,b", ""], "1.0871"),
    ]
    assert ask(out, "SELECT day FROM {account_risk_state}") == [(date(2025, 11, 3),)]
    assert [str(v) for (v,) in ask(out, "SELECT value FROM {observability_metrics} ORDER BY value")] == ["0.1", "inf", "nan"]
    assert ask(out, "SELECT hash, seq FROM {ops_audit_events}") == [(head, 1)]


def test_a_number_too_long_for_any_decimal_becomes_text(ledger, tmp_path):
    one_order(ledger)
    huge = Decimal("123456789012345678901234567890.123456789")
    with owner(ledger) as c:
        c.execute("UPDATE orders SET units = %s", [huge])
    out = asyncio.run(export(ledger, tmp_path / "out")).out
    assert ask(out, "SELECT units FROM {orders}") == [(str(huge),)]
    assert (
        str(arrow_type(Column("x", "numeric", 20, 18))) == "decimal128(38, 18)"
        and str(arrow_type(Column("x", "numeric", 29, 10))) == "string"
    )


def test_an_export_during_trading_is_one_moment(ledger, tmp_path, monkeypatch):
    """Order, fill, event and position change in one transaction; in every export the four agree."""
    monkeypatch.setattr(ledger_export, "PORTION", 7)
    one_order(ledger)

    async def trade(desk, n):
        async with desk.transaction() as tx:
            row = await (
                await tx.execute(
                    """INSERT INTO orders (account, venue, kind, instrument, side, type, units, time_in_force, client_order_id, idempotency_key,
                request_fingerprint) VALUES ('paper', 'oanda', 'entry', 'EUR_USD', 'buy', 'market', 1, 'FOK', %s, %s, 'f') RETURNING id""",
                    [f"c{n}", f"t{n}"],
                )
            ).fetchone()
            await tx.execute(
                "INSERT INTO fills (venue, account, fill_id, order_id, instrument, units, price, filled_at) VALUES ('oanda', 'paper', %s, %s, 'EUR_USD', 1, 1, now())",
                [str(n), row["id"]],
            )
            await append_order_events(tx, [OrderEvent("paper", row["id"], 1, None, "created")])
            await tx.execute("""INSERT INTO positions (account, instrument, units) VALUES ('paper', 'EUR_USD', 1)
                ON CONFLICT (account, instrument, position_side) DO UPDATE SET units = positions.units + 1""")

    async def scenario():
        async with await Ledger.open(ledger) as desk:
            done = asyncio.Event()

            async def trader():
                n = 0
                while not done.is_set():
                    await trade(desk, n := n + 1)

            task, seen = asyncio.create_task(trader()), []
            for _ in range(4):
                await asyncio.sleep(0.1)
                out = (await export(desk, tmp_path / "out")).out
                seen.append(
                    ask(
                        out,
                        """SELECT (SELECT count(*) - 1 FROM {orders}), (SELECT count(*) FROM {fills}), (SELECT count(*) FROM {order_events}),
                    (SELECT coalesce(sum(units), 0) FROM {positions}), (SELECT coalesce(max(seq), 0) FROM {chain_heads})""",
                    )[0]
                )
            done.set()
            await task
            return seen

    seen = asyncio.run(scenario())
    for orders, fills, events, units, head in seen:
        assert orders == fills == events == units == head
    assert seen[-1][0] > seen[0][0] > 0, "it really traded meanwhile"


def test_an_export_that_fails_leaves_the_one_before(ledger, tmp_path, monkeypatch):
    one_order(ledger)
    out = tmp_path / "out"
    asyncio.run(export(ledger, out))
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device", str(out))

    with monkeypatch.context() as m:
        m.setattr(ledger_export, "sha256", full)
        with pytest.raises(OSError, match="No space left"):
            asyncio.run(export(ledger, out))
    with pytest.raises(BadInput, match=r"no table 'order'.* Did you mean 'orders'"):
        asyncio.run(export(ledger, out, ["order"]))
    with pytest.raises(LedgerDown):
        asyncio.run(export("postgresql:///x?host=/tmp/no-such-folder-of-deskbook", out))
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert not [n for n in os.listdir(tmp_path) if n.startswith(".")], "nothing half-made is left"


KILLED = """
import asyncio, os, signal, sys
from deskbook.stores import ledger_export
real, calls = ledger_export._write_table, 0
async def killed(tx, table, path):
    global calls
    calls += 1
    if calls == int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)
    return await real(tx, table, path)
ledger_export._write_table = killed
asyncio.run(ledger_export.export(sys.argv[1], sys.argv[2]))
"""


@pytest.mark.parametrize("at", [1, 9])
def test_an_export_that_is_killed_leaves_the_one_before(ledger, tmp_path, at):
    out = tmp_path / "out"
    for folder, there in ((tmp_path / "never", False), (out, True)):
        if there:
            asyncio.run(export(ledger, out))
            stamp = read_json(out / MANIFEST)
        done = subprocess.run([sys.executable, "-c", KILLED, ledger, str(folder), str(at)], capture_output=True, text=True, timeout=60)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert folder.exists() == there
    assert read_json(out / MANIFEST) == stamp
    assert asyncio.run(export(ledger, out)).tables["orders"] == 0


@pytest.mark.parametrize("exchange", [True, False])
def test_a_new_export_takes_the_place_of_the_old(ledger, tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(ledger_export.ctypes, "CDLL", lambda *a, **k: object())
    out = tmp_path / "x" / "out"
    asyncio.run(export(ledger, out))
    one_order(ledger)
    assert asyncio.run(export(ledger, out)).tables["orders"] == 1
    assert ask(out, "SELECT count(*) FROM {orders}") == [(1,)] and os.listdir(out.parent) == ["out"]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        asyncio.run(_write_inside(ledger, tmp_path / "y", monkeypatch))


async def _write_inside(url, out, monkeypatch):
    """The snapshot cannot write, whatever a table's export would do."""

    async def writes(tx, table, path):
        await tx.execute("DELETE FROM outbox")

    monkeypatch.setattr(ledger_export, "_write_table", writes)
    await export(url, out)


def test_a_folder_of_somebody_else_is_not_touched(ledger, tmp_path):
    (tmp_path / "mine").mkdir()
    asyncio.run(export(ledger, tmp_path / "mine"))  # an empty folder is fine
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="not an export"):
        asyncio.run(export(ledger, tmp_path / "theirs"))
    assert (tmp_path / "theirs" / "thesis.txt").read_text() == "years of work"
