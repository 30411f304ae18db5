"""Where the shared candles and golden vectors are, and what happens to the tests that need them where they are not."""
import os
import secrets
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from databases import fresh_database

ROOT = Path(__file__).resolve().parents[1]


def data_folder() -> Path:
    return Path(os.environ.get("DESKBOOK_TEST_DATA", ROOT.parent / "shared" / "data"))


def patience_s(item):
    """How long a test may take by its own mark."""
    mark = item.get_closest_marker("timeout")
    return mark.args[0] if mark else 0


def pytest_collection_modifyitems(config, items):
    """Those that take longest begin first, or one process waits for the other at the end.

    Without the folder, as on a stranger's machine, deselect and say so. With CI set, or with a folder that is there, run: a broken folder fails.
    """
    items.sort(key=lambda item: -max(patience_s(item), 300))
    if data_folder().is_dir() or os.environ.get("CI"):
        return
    away = [i for i in items if i.get_closest_marker("data")]
    if away:
        config.hook.pytest_deselected(items=away)
        items[:] = [i for i in items if i not in away]
        config.stash[_AWAY] = len(away)


_AWAY = pytest.StashKey[int]()


def pytest_terminal_summary(terminalreporter, config):
    if n := config.stash.get(_AWAY, 0):
        terminalreporter.write_line(f"{n} tests deselected: no shared candles at {data_folder()} (set DESKBOOK_TEST_DATA).")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with candles/, golden-engine/ and golden-study/. Fails, never skips, when it is missing or empty."""
    folder = data_folder()
    for part in ("candles", "golden-engine", "golden-study"):
        if not any((folder / part).glob("*")):
            pytest.fail(f"{folder / part} is missing or empty; the shared data is broken")
    return folder


OUTSIDE = ("TIMESCALE_URL", "VALKEY_URL", "REDIS_URL", "READ_ONLY", "KILL_SWITCH_BOOT", "KILL_SWITCH_KEY", "DESKBOOK_SANDBOX_URL", "OANDA_API_KEY",
           "OANDA_API_TOKEN", "OANDA_ACCOUNT_ID", "OANDA_ENVIRONMENT", "OANDA_BASE_URL", "OANDA_API_URL", "OANDA_STREAM_URL")


@pytest.fixture(autouse=True)
def private_home(tmp_path, monkeypatch):
    """No test touches the data folder, the servers or the broker of the person who runs it."""
    monkeypatch.setenv("DESKBOOK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DESKBOOK_REPORTS", str(tmp_path / "reports"))
    for name in OUTSIDE:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def system_tool() -> Callable[[str, str], str]:
    """system_tool(program, package): its path. Root on Debian installs what is missing; anybody else is told what to install."""

    def find(program: str, package: str) -> str:
        if not shutil.which(program):
            install(package)
        return shutil.which(program) or pytest.fail(f"{program} is missing; install the system package {package!r}")

    return find


def install(package: str) -> None:
    """As root on Debian: install a system package and start no service. Elsewhere nothing; what is missing is said by who needs it."""
    subprocess.run([sys.executable, ROOT / "tools" / "system_packages.py", package], check=False, capture_output=True, timeout=600)


@pytest.fixture(scope="session")
def servers_folder() -> Path:
    """One folder for the servers of this test run, the same for all of its processes, outside of every home."""
    return Path("/tmp") / f"deskbook-tests-{os.environ.get('PYTEST_XDIST_TESTRUNUID') or uuid.uuid4().hex}"[:40]


def _server(start: Callable, find: Callable, package: str, folder: Path):
    from deskbook.core.errors import NotFound

    try:
        find()
    except NotFound:
        install(package)
    try:
        return start(folder=folder, durable=False, temporary=True)
    except NotFound as e:
        pytest.fail(str(e))


@pytest.fixture(scope="session")
def postgres_url(servers_folder) -> Iterator[str]:
    """A PostgreSQL for this test run, without fsync. The user may do everything; use the fixture `database` for tables."""
    from deskbook.stores.embedded import find_postgres, start_postgres

    with _server(start_postgres, find_postgres, "postgresql", servers_folder) as server:
        yield server.url


@pytest.fixture(scope="session")
def valkey_url(servers_folder) -> Iterator[str]:
    """A Valkey or Redis for this test run. Use the fixture `key_prefix` for keys."""
    from deskbook.stores.embedded import find_valkey, start_valkey

    with _server(start_valkey, find_valkey, "redis-server", servers_folder) as server:
        yield server.url


@pytest.fixture
def database(postgres_url) -> Iterator[str]:
    """The address of a fresh, empty database, dropped after the test."""
    with fresh_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
def ledger_template(postgres_url) -> str:
    """Name of a database with the tables of the ledger, made once per test run, however many processes run it."""
    import psycopg

    from deskbook.stores.ledger_migrate import migrate, versions

    name = f"ledger_{versions()[-1]}"
    with psycopg.connect(postgres_url, autocommit=True) as c:
        c.execute("SELECT pg_advisory_lock(hashtext('ledger_template'))")
        if not c.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
            c.execute(f"DROP DATABASE IF EXISTS {name}_new WITH (FORCE)")
            c.execute(f"CREATE DATABASE {name}_new TEMPLATE template0")
            migrate(postgres_url.replace("/deskbook?", f"/{name}_new?"))
            c.execute(f"ALTER DATABASE {name}_new RENAME TO {name}")
    return name


@pytest.fixture
def ledger(postgres_url, ledger_template) -> Iterator[str]:
    """The address of a fresh database with the tables of the ledger, for `Ledger.open`; dropped after the test."""
    with fresh_database(postgres_url, ledger_template) as url:
        yield url


@pytest.fixture
def mortal_servers(servers_folder, postgres_url, valkey_url) -> Iterator:
    """A PostgreSQL with the tables of the ledger and a Valkey that one test may kill and revive; their data is on disk.

    The servers of the run are asked for so that the programs are there.
    """
    from deskbook.stores.embedded import servers
    from deskbook.stores.ledger_migrate import migrate

    folder = servers_folder / f"dies-{secrets.token_hex(4)}"
    with servers(folder=folder) as both:
        migrate(both.postgres_url)
        yield both
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def key_prefix() -> str:
    """Stands before every key of one test."""
    return f"t-{secrets.token_hex(6)}:"
