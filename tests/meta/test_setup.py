"""tools/bootstrap.sh: which Python it takes, when it does nothing, and what it says when nothing works.

uv is a stand-in that notes its calls, so that nothing is fetched; CI sets up for real before these run."""
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = ("bash", "awk", "cat", "dirname", "env", "flock", "grep", "head", "mkdir", "rm", "sha256sum", "sh", "touch", "ln", "chmod")
PYTHON = Path(sys._base_executable).resolve()

UV = f"""#!/bin/sh
echo "$*" >>"$LOG"
last=; for last; do :; done
case "$1$UV_FAILS" in
  venv) mkdir -p "$last/bin"; ln -sf {PYTHON} "$last/bin/python" ;;
  venvpip) mkdir -p "$last/bin"; printf '#!/bin/sh\\n[ "$2" = pip ] || [ "$2" = ensurepip ] && exit 1\\nexec {PYTHON} "$@"\\n' >"$last/bin/python"; chmod +x "$last/bin/python" ;;
  python*) exit 1 ;;
  pippip) exit 2 ;;
esac
exit 0
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path, root):
    """A repository and a machine with no Python, no uv, no pyenv and an empty home."""
    repo = tmp_path / "deskbook"
    (repo / "tools").mkdir(parents=True)
    for name in ("tools/bootstrap.sh", "requirements-dev.lock", "pyproject.toml"):
        shutil.copy(root / name, repo / name)
    for tool in TOOLS:
        if found := shutil.which(tool):
            (tmp_path / "bin").mkdir(exist_ok=True)
            (tmp_path / "bin" / tool).symlink_to(found)
    (tmp_path / "home").mkdir()
    return tmp_path


def setup(machine, **env):
    env = {"PATH": str(machine / "bin"), "HOME": str(machine / "home"), "LOG": str(machine / "uv.log"), **env}
    return subprocess.run([machine / "deskbook" / "tools" / "bootstrap.sh"], env=env, capture_output=True, text=True, timeout=60)


def calls(machine) -> str:
    log = machine / "uv.log"
    return log.read_text() if log.exists() else ""


def test_pyenv_with_an_old_shim_first(machine):
    script(machine / "bin" / "uv", UV)
    script(machine / "bin" / "python3", "#!/bin/sh\nexit 1\n")
    script(machine / "bin" / "python", "#!/bin/sh\necho \"pyenv: version '3.12' is not installed\" >&2\nexit 127\n")
    folder = machine / "pyenv" / "versions" / "3.12.1" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").symlink_to(PYTHON)
    done = setup(machine, PYENV_ROOT=str(machine / "pyenv"))
    assert done.returncode == 0, done.stderr
    assert "venv -q --no-project --python" in calls(machine) and "--require-hashes" in calls(machine) and "--no-deps --no-build-isolation -e ." in calls(machine)


@pytest.mark.parametrize("name", ["python3.12", "python3", "python"])
def test_a_python_on_the_path(machine, name):
    script(machine / "bin" / "uv", UV)
    (machine / "bin" / name).symlink_to(PYTHON)
    assert setup(machine).returncode == 0


def test_a_second_run_does_nothing_and_is_fast(machine):
    script(machine / "bin" / "uv", UV)
    (machine / "bin" / "python3").symlink_to(PYTHON)
    assert setup(machine).returncode == 0
    first = calls(machine)
    start = time.perf_counter()
    done = setup(machine)
    assert time.perf_counter() - start < 1
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and calls(machine) == first


@pytest.mark.parametrize("change", ["requirements-dev.lock", "pyproject.toml", "python", "moved"])
def test_a_change_sets_up_again(machine, change):
    script(machine / "bin" / "uv", UV)
    (machine / "bin" / "python3").symlink_to(PYTHON)
    assert setup(machine).returncode == 0
    first = calls(machine)
    if change == "python":
        (machine / "deskbook" / ".venv" / "bin" / "python").unlink()
    elif change == "moved":
        (machine / "deskbook").rename(machine / "elsewhere")
        (machine / "elsewhere").rename(machine / "deskbook")
        (machine / "deskbook" / ".venv" / ".deskbook-setup").write_text("of another folder")
    else:
        with open(machine / "deskbook" / change, "a") as f:
            f.write("\n")
    assert setup(machine).returncode == 0
    assert calls(machine) != first


def test_nothing_works_and_it_says_what_to_do(machine):
    done = setup(machine)
    assert done.returncode == 1
    assert "no Python >= 3.12 found" in done.stderr and "pyenv install 3.12" in done.stderr and "needs root" in done.stderr
    assert not (machine / "deskbook" / ".venv").exists()


def test_a_wrong_choice_of_python(machine):
    done = setup(machine, PYTHON="/bin/false")
    assert done.returncode == 1 and "PYTHON=/bin/false is not a working Python >= 3.12" in done.stderr


def test_a_failed_install_leaves_no_stamp(machine):
    script(machine / "bin" / "uv", UV)
    (machine / "bin" / "python3").symlink_to(PYTHON)
    # An environment without pip, and an uv that cannot install.
    done = setup(machine, UV_FAILS="pip")
    assert done.returncode == 1 and "could not be installed" in done.stderr, done.stderr
    assert not (machine / "deskbook" / ".venv" / ".deskbook-setup").exists()


def test_old_environment_is_replaced(machine):
    script(machine / "bin" / "uv", UV)
    (machine / "bin" / "python3").symlink_to(PYTHON)
    old = script(machine / "deskbook" / ".venv" / "bin" / "python", "#!/bin/sh\nexit 1\n")
    (old.parent / "left").write_text("")
    assert setup(machine).returncode == 0
    assert not (old.parent / "left").exists() and os.access(old, os.X_OK)
