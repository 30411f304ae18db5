"""What the tests about the repository itself share."""
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def bin_folder() -> Path:
    return Path(sys.executable).parent


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the source tree that a test may break; nothing of the real one is touched."""
    copy = tmp_path / "deskbook"
    copy.mkdir()
    for name in ("pyproject.toml", "settings.ini", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("nbs", "src"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", ".ipynb_checkpoints"))
    return copy


@pytest.fixture(scope="session")
def committed() -> list[Path]:
    """Every file that git keeps, except those removed and not yet committed."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"git cannot list the files of {ROOT}: {done.stderr.strip()}")
    return [p for name in done.stdout.split("\0") if name and (p := ROOT / name).is_file()]
