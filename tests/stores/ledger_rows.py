"""Rows that the tests of the ledger start from."""

import psycopg
from psycopg.rows import dict_row

ORDER = """INSERT INTO orders (account, venue, kind, instrument, side, type, units, time_in_force, client_order_id, idempotency_key, request_fingerprint)
VALUES (%(account)s, 'oanda', 'entry', 'EUR_USD', 'buy', 'market', %(units)s, 'FOK', %(key)s, %(key)s, 'f0') RETURNING id"""


def owner(url):
    """A connection as whoever owns the tables, past every right of the application."""
    return psycopg.connect(url, autocommit=True, row_factory=dict_row)


def add_account(conn, account="paper"):
    conn.execute(
        "INSERT INTO accounts (account, venue, environment, mode, currency) VALUES (%s, 'oanda', 'sandbox', 'paper', 'USD')", [account]
    )


def add_order(conn, account="paper", key="k1", units=1000):
    return conn.execute(ORDER, {"account": account, "key": key, "units": units}).fetchone()["id"]


def one_order(url, account="paper"):
    """An account with one order; its id."""
    with owner(url) as c:
        add_account(c, account)
        return add_order(c, account)


def bypass(url, *statements):
    """What somebody with the rights of a superuser does on purpose."""
    with owner(url) as c, c.transaction():
        c.execute("SET LOCAL session_replication_role = replica")
        for sql in statements:
            c.execute(sql)
