"""The plain install is what the daemon needs: every module imports with requirements.lock and nothing else."""
import json
import os
import shutil
import subprocess
import sys

import pytest

LAB = ["nbdev", "fastcore", "execnb", "IPython", "ipykernel", "jupyterlab", "papermill", "nbconvert", "nbformat", "nbclient", "matplotlib", "ccxt", "jupytext", "pytest"]
IMPORT_ALL = f"""
import importlib, importlib.util, json, os, pkgutil, threading
import deskbook
present = [m for m in {LAB!r} if importlib.util.find_spec(m)]
failed, count, before = {{}}, 0, set(os.listdir("."))
for info in pkgutil.walk_packages(deskbook.__path__, "deskbook."):
    count += 1
    try: importlib.import_module(info.name)
    except BaseException as e: failed[info.name] = repr(e)
print(json.dumps(dict(present=present, failed=failed, count=count, written=sorted(set(os.listdir(".")) - before),
    threads=[t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()])))
"""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory, root, bin_folder):
    """A new environment with the locked plain install. Fails, never skips, where the packages cannot be had."""
    venv = tmp_path_factory.mktemp("bare") / "venv"
    uv = next((str(p) for p in (bin_folder / "uv", root / ".uv" / "bin" / "uv") if p.exists()), None) or shutil.which("uv")
    assert uv, "uv is part of the dev lock and is not here; run `make setup`"
    python = venv / "bin" / "python"
    subprocess.run([uv, "venv", "-q", "--no-project", "--python", sys.executable, venv], check=True)
    install = [uv, "pip", "install", "-q", "--python", python, "--require-hashes", "-r", root / "requirements.lock"]
    # Offline first: set-up has just put the same wheels into uv's cache.
    if subprocess.run([*install, "--offline"], capture_output=True).returncode:
        done = subprocess.run(install, capture_output=True, text=True)
        assert done.returncode == 0, f"the plain lock does not install: {done.stderr}"
    site = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True).stdout.strip()
    with open(os.path.join(site, "deskbook.pth"), "w") as f:
        f.write(str(root / "src"))
    yield python
    shutil.rmtree(venv, ignore_errors=True)


@pytest.mark.slow
def test_every_module_imports_without_notebook_tools(bare_python, tmp_path, root):
    home = tmp_path / "home"
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "DESKBOOK_HOME": str(home / "desk")}
    done = subprocess.run([bare_python, "-I", "-c", IMPORT_ALL], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["present"] == [], "the plain environment is not plain"
    assert result["failed"] == {}
    modules = [p for p in (root / "src" / "deskbook").rglob("*.py") if p != root / "src" / "deskbook" / "__init__.py"]
    assert result["count"] == len(modules)
    # No I/O at import.
    assert result["written"] == [] and result["threads"] == [] and not home.exists()
    assert done.stdout.count("\n") == 1, "a module prints when it is imported"


@pytest.mark.slow
def test_the_command_answers_in_the_plain_environment(bare_python, tmp_path):
    call = "import sys; from deskbook.app.cli import main; sys.exit(main(['--help']))"
    done = subprocess.run([bare_python, "-I", "-c", call], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "candles" in done.stdout and "study" in done.stdout
