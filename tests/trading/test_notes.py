"""Notes beside the ledger: kept whole, carried in once, whoever dies on the way."""
import asyncio
import json
import multiprocessing
import os

import pytest
from deskbook.core.errors import LockHeld
from deskbook.stores.ledger import Ledger, LedgerDown
from deskbook.trading import notes as n

NOW = 1_762_171_200_000
ROWS = "SELECT actor, action, chain, metadata, resource_id FROM ops_audit_events ORDER BY chain, seq"


def keep(home, number=0, account="paper"):
    return n.keep_note(home, "operator", "order.refused", account, {"number": number}, lambda: NOW)


def in_ledger(url, work):
    async def go():
        async with await Ledger.open(url) as book:
            return await work(book)
    return asyncio.run(go())


def test_notes_are_carried_in_once_with_their_time_and_chain(ledger, tmp_path):
    ids = [keep(tmp_path, i, account) for i, account in enumerate(("paper", "paper", "oanda-live"))]

    async def work(book):
        assert await n.bring_notes(book, tmp_path) == 3
        assert await n.bring_notes(book, tmp_path) == 0
        rows = await book.rows(ROWS)
        assert [(r["chain"], r["metadata"]["number"]) for r in rows] == [("oanda-live", 2), ("paper", 0), ("paper", 1)]
        assert {r["resource_id"] for r in rows} == set(ids)
        assert [r["ms"] for r in await book.rows("SELECT DISTINCT extract(epoch FROM recorded_at) * 1000 AS ms FROM ops_audit_events")] == [NOW]
    in_ledger(ledger, work)
    assert not n.notes_file(tmp_path).exists()


def test_a_carrier_that_died_before_it_removed_the_file(ledger, tmp_path):
    keep(tmp_path, 1)
    text = n.notes_file(tmp_path).read_text()

    async def work(book):
        await n.bring_notes(book, tmp_path)
        n.notes_file(tmp_path).write_text(text)  # it was not removed
        keep(tmp_path, 2)
        assert await n.bring_notes(book, tmp_path) == 1
        assert [r["metadata"]["number"] for r in await book.rows(ROWS)] == [1, 2]
    in_ledger(ledger, work)


def test_a_line_that_was_cut_off_is_carried_in_as_it_is(ledger, tmp_path):
    keep(tmp_path, 1)
    with open(n.notes_file(tmp_path), "a") as f:
        f.write('{"id": "x", "actor": "op')

    async def work(book):
        assert await n.bring_notes(book, tmp_path) == 2
        torn = [r for r in await book.rows(ROWS) if r["action"] == "note.torn"]
        assert [t["metadata"]["line"] for t in torn] == ['{"id": "x", "actor": "op']
    in_ledger(ledger, work)


def test_a_ledger_that_is_down_takes_nothing_away(tmp_path, postgres_url):
    keep(tmp_path, 1)

    async def work():
        book = await Ledger.open(postgres_url, role=None, check_schema=False, timeout_s=1)
        await book.aclose()
        with pytest.raises(Exception) as e:
            await n.bring_notes(book, tmp_path)
        assert isinstance(e.value, LedgerDown) or "closed" in str(e.value)
    asyncio.run(work())
    assert json.loads(n.notes_file(tmp_path).read_text())["metadata"] == {"number": 1}


def write_many(home, start):
    for i in range(start, start + 25):
        keep(home, i)


def test_many_writers_and_carriers_lose_and_double_nothing(ledger, tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(tmp_path, 100 * k)) for k in range(3)]
    for w in writers:
        w.start()

    async def work(book):
        while any(w.is_alive() for w in writers):
            await n.bring_notes(book, tmp_path)
        await n.bring_notes(book, tmp_path)
        assert sorted(r["metadata"]["number"] for r in await book.rows(ROWS)) == sorted(100 * k + i for k in range(3) for i in range(25))
    in_ledger(ledger, work)
    assert [w.exitcode for w in writers] == [0, 0, 0]


def test_who_waits_too_long_hears_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(n, "LOCK_WAIT_S", 0.1)
    with n._alone(n.notes_file(tmp_path)), pytest.raises(LockHeld):
        keep(tmp_path)


def test_a_home_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        keep(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]
