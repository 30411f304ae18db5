"""Databases of a test's own in a PostgreSQL that many tests share."""
import contextlib
import secrets
from collections.abc import Iterator


@contextlib.contextmanager
def fresh_database(postgres_url: str, template: str = "template0") -> Iterator[str]:
    """The address of a copy of `template`, dropped afterwards."""
    import psycopg

    name = f"t_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_url, autocommit=True) as c:
        c.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield postgres_url.replace("/deskbook?", f"/{name}?")
        finally:
            c.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
