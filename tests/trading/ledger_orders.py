"""Orders of an account "a": in memory, and in a ledger of a test's own, without a venue."""
import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

from desk_world import ACCOUNT

from deskbook.stores.ledger import Ledger
from deskbook.trading.book import OrderRow

NOW = datetime(2025, 11, 4, 10, tzinfo=UTC)
ORDER = """INSERT INTO orders (account, venue, kind, instrument, side, type, units, time_in_force, client_order_id, idempotency_key, request_fingerprint, state, unknown_since)
VALUES ('a', 'oanda', 'entry', 'EUR_USD', 'buy', 'market', 1000, 'FOK', %(name)s, %(name)s, '', %(state)s::text, CASE WHEN %(state)s = 'unknown' THEN now() END) RETURNING id"""


def an_order(**more) -> OrderRow:
    made = OrderRow(uuid4(), "a", "oanda", "entry", "EUR_USD", "buy", "market", Decimal(1_000), "FOK", "db-1", "key-1", "print", expires_at=NOW + timedelta(seconds=30))
    return replace(made, **more)


async def put_order(db, name="one", state="created"):
    """The id of its row."""
    return (await db.rows(ORDER, {"name": name, "state": state}))[0]["id"]


def on_ledger(url, story, within_s=30):
    """A story told on a ledger with one account, and the orders that it puts in there."""
    async def whole():
        async with await Ledger.open(url) as db:
            await db.rows(ACCOUNT, ("a", "101-001-1-001"))
            await story(db)
    asyncio.run(asyncio.wait_for(whole(), within_s))
