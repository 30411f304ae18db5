"""Where the shared candles and golden vectors are, and what happens to the tests that need them where they are not."""
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def data_folder() -> Path:
    return Path(os.environ.get("DESKBOOK_TEST_DATA", ROOT.parent / "shared" / "data"))


def pytest_collection_modifyitems(config, items):
    """Without the folder, as on a stranger's machine, deselect and say so. With CI set, or with a folder that is there, run: a broken folder fails."""
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


@pytest.fixture(autouse=True)
def private_home(tmp_path, monkeypatch):
    """No test reads or writes the data folder of the person who runs it."""
    monkeypatch.setenv("DESKBOOK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DESKBOOK_REPORTS", str(tmp_path / "reports"))


@pytest.fixture(scope="session")
def system_tool() -> Callable[[str, str], str]:
    """system_tool(program, package): its path. Root on Debian installs what is missing; anybody else is told what to install."""

    def find(program: str, package: str) -> str:
        if not shutil.which(program) and os.geteuid() == 0 and shutil.which("apt-get"):
            for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", package]):
                subprocess.run(["apt-get", *words], check=False, capture_output=True, timeout=240)
        return shutil.which(program) or pytest.fail(f"{program} is missing; install the system package {package!r}")

    return find
