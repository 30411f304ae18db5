"""The SQL of version 0001 for TimescaleDB, for timescale_record.mjs; prints JSON."""

import hashlib
import json

from deskbook.stores.chain import altered_sql, linked_sql
from deskbook.stores.ledger_migrate import ROLE_SQL
from deskbook.stores.migrations.versions.v0001_order_path import statements, undo


def as_json(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def digest():
    """What the recording must have been made with."""
    return hashlib.sha256(as_json(statements(timescale=True)).encode()).hexdigest()


if __name__ == "__main__":
    print(
        as_json(
            {
                "role": ROLE_SQL,
                "up": statements(timescale=True),
                "down": undo(),
                "altered": altered_sql("order_events"),
                "linked": linked_sql("order_events"),
            }
        )
    )
