"""`deskbook ledger`: data on stdout, trouble on stderr, exit codes, JSON that any parser reads."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from deskbook.app.cli import main
from deskbook.stores.ledger import SCHEMA

ROWS = """
INSERT INTO accounts (account, venue, environment, mode, currency) VALUES ('paper', 'oanda', 'sandbox', 'paper', 'USD');
INSERT INTO orders (account, venue, kind, instrument, side, type, units, time_in_force, client_order_id, idempotency_key, request_fingerprint)
  VALUES ('paper', 'oanda', 'entry', 'EUR_USD', 'buy', 'market', 1000, 'FOK', 'db-1', 'k1', 'f0');
INSERT INTO order_events (account, order_id, version, to_state) SELECT 'paper', id, n, 'created' FROM orders, generate_series(1, 5) n;
INSERT INTO ops_audit_events (actor, action, resource_type) VALUES ('a', 'b', 'c');
INSERT INTO ops_alerts (fingerprint, category, severity, message) VALUES ('f', 'orders', 'high', 'one order is unknown')
"""


@pytest.fixture
def deskbook(capsys):
    """deskbook(words...): exit code, stdout, stderr; --json is parsed."""

    def run(*words):
        code = main(["ledger", *(str(w) for w in words)])
        out, err = capsys.readouterr()
        return code, json.loads(out, parse_constant=lambda c: pytest.fail(c)) if "--json" in words and out else out, err

    return run


@pytest.fixture
def filled(ledger):
    do(ledger, ROWS)
    return ledger


def do(url, sql):
    with psycopg.connect(url, autocommit=True) as c:
        c.execute(sql)


def tamper(url, sql):
    do(url, f"SET session_replication_role = replica; {sql}")


def test_migrate_up_down_and_what_it_refuses(database, deskbook):
    at = ("--url", database)
    code, out, _ = deskbook("migrate", *at, "--json")
    assert (code, out["before"], out["after"], out["steps"], out["dropped"]) == (0, "", SCHEMA, ["+0001", "+0002"], {}) and len(
        out["partitions"]
    ) == 20
    assert deskbook("migrate", *at) == (0, f"at {SCHEMA}, nothing to do\n", "")
    do(database, ROWS)
    code, out, err = deskbook("migrate", "--down", "--to", "base", *at)
    assert (code, out) == (4, "") and "would drop 11 rows" in err and "--drop-data" in err
    code, _, err = deskbook("migrate", "--to", "base", *at)
    assert code == 2 and "Add --down" in err
    code, _, err = deskbook("migrate", "--to", "0815", *at)
    assert code == 2 and "no version '0815'" in err
    code, out, _ = deskbook("migrate", "--down", "--to", "base", "--drop-data", *at)
    assert code == 0 and out.splitlines()[0] == "0002 -> base (-0002, -0001)" and "dropped order_events with 5 rows" in out
    assert deskbook("migrate", "--to", "+1", *at, "--json")[1]["after"] == "0001"
    tamper(database, "UPDATE alembic_version SET version_num = '0077'")
    code, _, err = deskbook("migrate", *at)
    assert code == 1 and "Install the deskbook that migrated it" in err


def test_migrate_while_somebody_else_does(database, deskbook):
    with psycopg.connect(database) as c:
        c.execute("SELECT pg_advisory_xact_lock(1684370283)")
        code, _, err = deskbook("migrate", "--wait-s", 0.2, "--url", database)
    assert code == 5 and "in use for 0.2 s" in err


def test_verify_and_its_exit_codes(filled, deskbook, tmp_path):
    at = ("--url", filled)
    code, out, err = deskbook("verify", *at)
    assert (code, err) == (0, "") and out.splitlines() == [
        "order_events/paper: 5 rows as written",
        "ops_audit_events/audit: 1 rows as written",
        "6 rows in 2 chains",
    ]
    kept = tmp_path / "heads.txt"
    kept.write_text(deskbook("verify", "--heads", *at)[1])
    assert len(kept.read_text().splitlines()) == 2
    assert deskbook("verify", "--expect-head", kept, *at)[0] == 0
    tamper(
        filled,
        "DELETE FROM order_events WHERE seq = 5; UPDATE chain_heads SET seq = 4, hash = (SELECT hash FROM order_events WHERE seq = 4) WHERE chain = 'paper'",
    )
    assert deskbook("verify", *at)[0] == 0
    for head in (kept, kept.read_text().splitlines()[0]):
        code, out, err = deskbook("verify", "--expect-head", head, *at, "--json")
        broken = [c for c in out["chains"] if c["broken"]]
        assert (
            code == 1 and not out["ok"] and [(c["chain"], c["broken"]["kind"], c["broken"]["seq"]) for c in broken] == [("paper", "cut", 5)]
        )
        assert "history was changed: order_events/paper: rows 5 to 5 are gone" in err
    tamper(filled, "UPDATE order_events SET reason = 'x' WHERE seq = 2")
    code, out, err = deskbook("verify", *at)
    assert code == 1 and "row 2 (" in err and "was altered" in err
    code, _, err = deskbook("verify", "--expect-head", "nonsense", *at)
    assert code == 2 and "not the head of a chain" in err


def test_export(filled, deskbook, tmp_path):
    code, out, _ = deskbook("export", "--out", tmp_path / "out", "--url", filled, "--json")
    assert code == 0 and out["tables"]["order_events"] == 5 and (tmp_path / "out" / "orders.parquet").is_file()
    code, out, _ = deskbook("export", "--out", tmp_path / "out", "--table", "orders", "--table", "fills", "--url", filled)
    assert code == 0 and out.startswith("1 rows of 2 tables as of 2")
    code, _, err = deskbook("export", "--out", tmp_path / "out", "--table", "order", "--url", filled)
    assert code == 2 and "Did you mean 'orders'?" in err
    (tmp_path / "mine").write_text("")
    code, _, err = deskbook("export", "--out", tmp_path / "mine" / "below", "--url", filled)
    assert code == 1 and "mine" in err and "Traceback" not in err


def test_status(filled, deskbook, database):
    code, out, _ = deskbook("status", "--url", filled, "--json")
    assert code == 0 and (out["schema"], out["schema_wanted"], out["troubles"]) == (SCHEMA, SCHEMA, [])
    assert (
        out["tables"]["order_events"] == 5
        and {c["kind"] for c in out["cuts"]} == {"months"}
        and out["alerts"][0]["message"] == "one order is unknown"
    )
    do(filled, "INSERT INTO ops_audit_events (actor, action, resource_type, recorded_at) VALUES ('a', 'b', 'c', '2031-01-01')")
    code, out, err = deskbook("status", "--url", filled)
    assert code == 0 and "ops_audit_events: months" in out and "1 rows outside" in out and "high alert, seen 1 times" in out
    assert "1 rows of ops_audit_events are outside every month" in err
    code, out, err = deskbook("status", "--url", database)
    assert code == 0 and f"schema none (wanted {SCHEMA})" in out and "Run `deskbook ledger migrate`" in err


@pytest.mark.parametrize("words", [("migrate",), ("verify",), ("status",), ("export", "--out", "x")])
def test_a_database_that_is_down_is_one_line(deskbook, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = deskbook(*words, "--url", "postgresql://desk:s3cret@127.0.0.1:9/x")
    assert (code, out) == (1, "") and err.count("\n") == 1 and "refused" in err and "s3cret" not in err
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("words", [("verify",), ("export", "--out", "x")])
def test_a_database_without_tables_says_what_to_do(deskbook, words, database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = deskbook(*words, "--url", database)
    assert code == 1 and "Run `deskbook ledger migrate`." in err


@pytest.mark.parametrize("command", ["migrate", "verify", "export", "status"])
def test_every_command_has_an_example_and_json(deskbook, command):
    code, out, _ = deskbook(command, "--help")
    assert code == 0 and "Example: deskbook ledger" in out and "--json" in out


def test_without_a_url_it_is_the_environment_or_a_private_server(ledger):
    """A fresh process with TIMESCALE_URL; then one without, which starts a server below DESKBOOK_HOME."""
    call = [sys.executable, "-c", "import sys; from deskbook.app.cli import main; sys.exit(main(['ledger', *sys.argv[1:]]))"]
    done = subprocess.run(
        [*call, "status", "--json"], env={**os.environ, "TIMESCALE_URL": ledger}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and json.loads(done.stdout)["schema"] == SCHEMA
    home = Path(f"/tmp/dbh-{secrets.token_hex(4)}")  # where the server may write even if root starts it
    env = {k: v for k, v in os.environ.items() if k != "TIMESCALE_URL"} | {"DESKBOOK_HOME": str(home)}
    try:
        done = subprocess.run([*call, "migrate", "--json"], env=env, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["after"] == SCHEMA and list((home / "servers").iterdir())
    finally:
        shutil.rmtree(home, ignore_errors=True)
