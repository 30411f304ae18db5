"""Whatever is done to the history behind the desk's back, `verify` names the first row that it was done to."""

import asyncio
import hashlib
import json
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_rows import add_order, bypass, one_order, owner

from deskbook.core.errors import BadInput
from deskbook.stores.chain import BEGIN, GENESIS, Head, head_text, parse_head, verify, verify_piece
from deskbook.stores.ledger import Ledger
from deskbook.stores.records import AuditEvent, OrderEvent, append_audits, append_order_event, append_order_events

START = datetime.now(UTC).replace(microsecond=123456) - timedelta(days=65)  # in no month, then in three


def write(url, rows=12, account="paper"):
    """Events of one order and audit rows, over three months and the default partition; returns the report of a clean verify."""
    order = one_order(url, account)

    async def scenario():
        async with await Ledger.open(url) as desk:
            async with desk.transaction() as tx:
                at = [START + timedelta(days=8 * n) for n in range(rows)]
                await append_order_events(
                    tx,
                    [OrderEvent(account, order, n + 1, "open", "partially_filled", "fill", {"units": str(n)}, at[n]) for n in range(rows)],
                )
                await append_audits(
                    tx, [AuditEvent("sender", "order.sent", "order", str(n), {"n": n}, account, at[n]) for n in range(rows)]
                )
            return await verify(desk)

    report = asyncio.run(scenario())
    assert report.ok and sum(c.rows for c in report.chains if c.chain == account) == 2 * rows
    return report


def check(url, expect=None):
    return asyncio.run(verify(url, expect))


def the_break(url, table="order_events", expect=None):
    """The one chain that is broken, and how."""
    (broken,) = check(url, expect).broken
    assert broken.table == table and broken.broken.message in str(broken)
    return broken.broken.kind, broken.broken.seq


def the_break_in_pieces(url, most, since=BEGIN, table="order_events", account="paper"):
    """The same, as a walk of so many rows a step finds it."""

    async def walk():
        async with await Ledger.open(url) as desk:
            piece = await verify_piece(desk, table, account, since, most)
            steps = 1
            while not piece.done:
                piece, steps = await verify_piece(desk, table, account, piece.head, most), steps + 1
            return piece, steps

    return asyncio.run(asyncio.wait_for(walk(), 30))


def fit(seq):
    """Give row `seq` the hash that its content would have, as somebody who knows the function can."""
    return f"""UPDATE order_events SET hash = order_event_hash(prev_hash, account, seq, order_id, version, from_state, to_state, reason, payload, recorded_at)
        WHERE seq = {seq}"""


DELETE_TAIL = "DELETE FROM order_events WHERE seq > 9"
HEAD_BACK = "UPDATE chain_heads SET seq = 9, hash = (SELECT hash FROM order_events WHERE seq = 9) WHERE chain_table = 'order_events'"


@pytest.mark.parametrize(
    "found, statements",
    [
        (("altered", 7), ['UPDATE order_events SET payload = \'{"units": "9"}\' WHERE seq = 7']),
        (("altered", 7), ["UPDATE order_events SET recorded_at = recorded_at + interval '1 microsecond' WHERE seq = 7"]),
        (("altered", 7), ["UPDATE order_events SET recorded_at = recorded_at + interval '2 months' WHERE seq = 7"]),
        (
            ("altered", 7),
            [
                "UPDATE order_events SET reason = NULLIF(reason, 'fill') || '' WHERE false",
                "UPDATE order_events SET reason = 'Fill' WHERE seq = 7",
            ],
        ),
        (("altered", 7), ["UPDATE order_events SET from_state = NULL WHERE seq = 7"]),
        (("altered", 7), ["UPDATE order_events SET to_state = 'filled' WHERE seq = 7"]),
        (("altered", 7), ["UPDATE order_events SET version = 70 WHERE seq = 7"]),
        (("altered", 7), ["UPDATE order_events SET order_id = (SELECT id FROM orders WHERE idempotency_key = 'other') WHERE seq = 7"]),
        (("altered", 7), ["UPDATE order_events SET hash = sha256('x') WHERE seq = 7"]),
        (("altered", 7), ["UPDATE order_events SET prev_hash = sha256('x') WHERE seq = 7"]),
        (("altered", 4), ["UPDATE order_events SET version = 70 WHERE seq IN (7, 4)"]),
        (("altered", 1), ["UPDATE order_events SET version = 70 WHERE seq = 1"]),
        (("altered", 12), ["UPDATE order_events SET version = 70 WHERE seq = 12"]),
        (("rewritten", 7), ["UPDATE order_events SET version = 70 WHERE seq = 7", fit(7)]),
        (("rewritten", 12), ["UPDATE order_events SET version = 70 WHERE seq = 12", fit(12)]),
        (("missing", 7), ["DELETE FROM order_events WHERE seq = 7"]),
        (("missing", 5), ["DELETE FROM order_events WHERE seq BETWEEN 5 AND 9"]),
        (("missing", 1), ["DELETE FROM order_events WHERE seq = 1"]),
        (("reordered", 4), ["UPDATE order_events SET seq = CASE seq WHEN 4 THEN 9 ELSE 4 END WHERE seq IN (4, 9)"]),
        (("reordered", 4), ["UPDATE order_events SET seq = CASE seq WHEN 4 THEN 5 ELSE 4 END WHERE seq IN (4, 5)"]),
        (("reordered", 4), ["DELETE FROM order_events WHERE seq = 4", "UPDATE order_events SET seq = seq - 1 WHERE seq > 4"]),
        (
            ("duplicate", 7),
            [
                "INSERT INTO order_events SELECT account, seq, order_id, version, from_state, to_state, reason, payload, recorded_at + interval '1s', prev_hash, hash"
                " FROM order_events WHERE seq = 7"
            ],
        ),
        (("cut", 10), [DELETE_TAIL]),
        (("cut", 1), ["DELETE FROM order_events"]),
        (
            ("surplus", 13),
            [
                "INSERT INTO order_events SELECT account, 13, order_id, version, from_state, to_state, reason, payload, recorded_at, hash, sha256('x')"
                " FROM order_events WHERE seq = 12",
                fit(13),
            ],
        ),
        (("surplus", 1), ["DELETE FROM chain_heads WHERE chain_table = 'order_events'"]),
        (("rewritten", 12), ["UPDATE chain_heads SET hash = sha256('x') WHERE chain_table = 'order_events'"]),
    ],
)
def test_every_kind_of_tampering_is_found_at_its_first_row(ledger, found, statements):
    write(ledger)
    with owner(ledger) as c:
        add_order(c, key="other")
    bypass(ledger, *statements)
    assert the_break(ledger) == found
    for most in (1, 5, 100):
        broken = the_break_in_pieces(ledger, most)[0].broken
        assert (broken.kind, broken.seq) == found, most


def test_a_walk_in_pieces_ends_at_the_head_and_goes_on_from_there(ledger):
    kept = write(ledger).heads["order_events/paper"]
    for most, steps in ((1, 12), (5, 3), (12, 1), (100, 1)):
        piece, took = the_break_in_pieces(ledger, most)
        assert (piece.head, piece.broken, piece.last, took) == (kept, None, 12, steps), most
    assert the_break_in_pieces(ledger, 5, kept)[0].head == kept  # nothing new
    assert the_break_in_pieces(ledger, 5, account="nobody")[0].head == BEGIN


@pytest.mark.parametrize("hidden, found", [([DELETE_TAIL, HEAD_BACK], ("cut", 10)), (["DELETE FROM order_events", "DELETE FROM chain_heads"], ("cut", 1))])
def test_a_walk_from_a_kept_head_notices_what_was_cut_before_it(ledger, hidden, found):
    kept = write(ledger).heads["order_events/paper"]
    bypass(ledger, *hidden)
    broken = the_break_in_pieces(ledger, 5, kept)[0].broken
    assert (broken.kind, broken.seq) == found


@pytest.mark.parametrize(
    "column, value",
    [("actor", "'me'"), ("action", "'x'"), ("resource_type", "'x'"), ("resource_id", "NULL"), ("metadata", "'{}'"), ("chain", "'other'")],
)
def test_every_column_of_the_audit_counts(ledger, column, value):
    write(ledger)
    bypass(ledger, f"UPDATE ops_audit_events SET {column} = {value} WHERE seq = 7")
    report = check(ledger)
    assert not report.ok and {(c.table, c.broken.seq) for c in report.broken} >= {("ops_audit_events", 7)}


@pytest.mark.parametrize(
    "hidden, found",
    [
        ([DELETE_TAIL, HEAD_BACK], ("cut", 10)),
        (["DELETE FROM order_events", "DELETE FROM chain_heads"], ("cut", 1)),
        (
            [
                "UPDATE order_events SET version = 70 WHERE seq = 12",
                fit(12),
                "UPDATE chain_heads SET hash = (SELECT hash FROM order_events WHERE seq = 12) WHERE chain_table = 'order_events'",
            ],
            ("rewritten", 12),
        ),
    ],
)
def test_what_the_database_alone_cannot_know_a_kept_head_does(ledger, hidden, found):
    kept = write(ledger).heads
    bypass(ledger, *hidden)
    assert "order_events/paper" not in {f"{c.table}/{c.chain}" for c in check(ledger).broken}
    broken = {f"{c.table}/{c.chain}": (c.broken.kind, c.broken.seq) for c in check(ledger, kept).broken}
    assert broken["order_events/paper"] == found


def test_a_head_that_was_kept_long_ago_still_holds(ledger):
    kept = write(ledger).heads
    with owner(ledger) as c:
        c.execute("INSERT INTO order_events (account, order_id, version, to_state) SELECT account, id, 99, 'filled' FROM orders")
    assert check(ledger, kept).ok and check(ledger).heads["order_events/paper"].seq == 13
    assert the_break(ledger, expect={"order_events/paper": Head(5, "0" * 64)}) == ("rewritten", 5)
    assert the_break(ledger, expect={"order_events/oanda-live": Head(5, "0" * 64)}) == ("cut", 1)


def test_one_broken_chain_leaves_the_others_trusted(ledger):
    write(ledger)
    write(ledger, account="oanda-practice")
    bypass(ledger, "DELETE FROM order_events WHERE account = 'oanda-practice' AND seq = 3")
    report = check(ledger)
    assert [(c.chain, c.broken.kind) for c in report.broken] == [("oanda-practice", "missing")] and len(report.chains) == 4


@given(
    tamper=st.tuples(st.integers(1, 12), st.sampled_from(["delete", "time", "payload", "swap", "rehash", "renumber"]), st.integers(1, 12))
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_tampering_passes_and_none_is_blamed_on_a_later_row(twelve_rows, tamper):
    row, how, other = tamper
    url = twelve_rows
    sql = {
        "delete": [f"DELETE FROM order_events WHERE seq = {row}"],
        "time": [f"UPDATE order_events SET recorded_at = recorded_at - interval '{other} seconds' WHERE seq = {row}"],
        "payload": [f"UPDATE order_events SET payload = payload || '{{\"x\": {other}}}' WHERE seq = {row}"],
        "swap": [f"UPDATE order_events SET seq = {row + other} - seq WHERE seq IN ({row}, {other})"],
        "rehash": [f"UPDATE order_events SET version = 70 WHERE seq = {row}", fit(row)],
        "renumber": [f"DELETE FROM order_events WHERE seq = {row}", f"UPDATE order_events SET seq = seq - 1 WHERE seq > {row}"],
    }[how]
    with owner(url) as c, c.transaction(force_rollback=True):
        c.execute("SET LOCAL session_replication_role = replica")
        for s in sql:
            c.execute(s)
        found = asyncio.run(_verify_inside(c))
    first = min(row, other) if how == "swap" else row
    if how == "swap" and row == other:
        assert found is None
    else:
        assert found is not None and found[1] == first


async def _verify_inside(conn):
    """Verify inside the open transaction of `conn`: what `verify` asks, asked of this connection."""
    from deskbook.stores.chain import _verify_table

    class Same:
        async def execute(self, sql, params=None):
            cur = conn.execute(sql, params)

            class Rows:
                async def fetchall(self):
                    return cur.fetchall()

                async def fetchone(self):
                    return cur.fetchone()

            return Rows()

    (report,) = await _verify_table(Same(), "order_events", {})
    return report.broken and (report.broken.kind, report.broken.seq)


@pytest.fixture
def twelve_rows(ledger):
    write(ledger)
    return ledger


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
    | st.decimals(allow_nan=False, allow_infinity=False, places=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text('abcé"\\', max_size=3), x, max_size=3),
    max_leaves=6,
)


@given(
    payload=st.dictionaries(st.text("abc", max_size=3), json_values, max_size=4),
    reason=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=10),
    at=st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_hash_can_be_computed_by_anybody(one_desk, payload, reason, at):
    """A twin in plain Python, which shares nothing with the database but the rule."""
    run, order = one_desk

    async def append(desk):
        async with desk.transaction() as tx:
            seq = await append_order_event(tx, "paper", order, 1, None, "created", reason, payload, at)
            return await (await tx.execute("SELECT *, payload::text AS said FROM order_events WHERE seq = %s", [seq])).fetchone()

    row = run(append)
    micros = (row["recorded_at"] - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    text = json.dumps(["order_events", "paper", row["seq"], str(order), 1, None, "created", reason, "PAYLOAD", micros], ensure_ascii=False)
    assert row["hash"] == hashlib.sha256(row["prev_hash"] + text.replace('"PAYLOAD"', row["said"], 1).encode()).digest()


@pytest.fixture
def one_desk(ledger):
    order, loop = one_order(ledger), asyncio.new_event_loop()
    desk = loop.run_until_complete(Ledger.open(ledger))
    yield (lambda f: loop.run_until_complete(f(desk))), order
    assert loop.run_until_complete(verify(desk)).ok
    loop.run_until_complete(desk.aclose())
    loop.close()


def test_many_writers_make_one_chain_without_holes(ledger):
    """Eight writers, some of whose transactions roll back, and somebody who verifies meanwhile."""
    order = one_order(ledger)

    async def writer(desk, n):
        for k in range(25):
            try:
                async with desk.transaction() as tx:
                    await append_order_events(tx, [OrderEvent("paper", order, k + 1, "open", "open", f"writer {n}")] * (k % 3 + 1))
                    if k % 5 == 4:
                        raise InterruptedError
            except InterruptedError:
                pass

    async def watcher(desk, done):
        seen = 0
        while not done.is_set():
            report = await verify(desk)
            assert report.ok, report.broken
            seen += 1
        return seen

    async def scenario():
        async with await Ledger.open(ledger, max_size=10) as desk:
            done = asyncio.Event()
            task = asyncio.create_task(watcher(desk, done))
            await asyncio.gather(*(writer(desk, n) for n in range(8)))
            done.set()
            assert await task > 2
            return await verify(desk)

    report = asyncio.run(scenario())
    assert report.ok and report.rows == 8 * sum(k % 3 + 1 for k in range(25) if k % 5 != 4)
    assert report.chains[0].head.seq == report.rows


def test_verifying_is_fast(ledger):
    order = one_order(ledger)
    with owner(ledger) as c:
        for _ in range(20):
            c.execute(
                "INSERT INTO order_events (account, order_id, version, to_state, payload) SELECT 'paper', %s, 1, 'open', '{\"price\": \"1.0871\"}' FROM generate_series(1, 1000)",
                [order],
            )
    begun = time.monotonic()
    report = check(ledger)
    assert report.ok and report.rows == 20_000
    assert time.monotonic() - begun < 4, "a million rows take seconds"


def test_heads_survive_being_written_down(ledger):
    report = write(ledger)
    assert dict(parse_head(head_text(n, h)) for n, h in report.heads.items()) == report.heads
    for text in (
        "",
        "order_events/paper:1",
        "fills/paper:1:" + "0" * 64,
        "order_events/paper:x:" + "0" * 64,
        "order_events/paper:1:" + "g" * 64,
    ):
        with pytest.raises(BadInput):
            parse_head(text)
    assert check(ledger, {"order_events/never": Head(0, GENESIS.hex())}).ok
    assert Decimal(report.rows) == 24
