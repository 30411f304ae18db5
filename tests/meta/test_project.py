"""Files that must agree with each other: pyproject.toml, settings.ini, the locks, CHANGELOG, README, LICENSE, benchmarks."""
import ast
import configparser
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import deskbook


@pytest.fixture(scope="session")
def conf(root):
    return tomllib.loads((root / "pyproject.toml").read_text())


def locked(path) -> dict[str, list[Version]]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", path.read_text(), re.M)
    out: dict[str, list[Version]] = {}
    for name, version in found:
        out.setdefault(canonicalize_name(name), []).append(Version(version))
    return out


def test_settings_ini_mirrors_pyproject(root, conf):
    ini = configparser.ConfigParser()
    ini.read(root / "settings.ini")
    mirror = ini["DEFAULT"]
    assert mirror["lib_name"] == conf["project"]["name"]
    assert mirror["version"] == deskbook.__version__
    assert mirror["lib_path"] == conf["tool"]["nbdev"]["lib_path"]
    assert mirror["nbs_path"] == conf["tool"]["nbdev"]["nbs_path"]
    assert conf["project"]["dynamic"] == ["version"] and conf["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "deskbook.__version__"


def test_python_version_file_agrees(root, conf):
    assert conf["project"]["requires-python"] == f">={(root / '.python-version').read_text().strip()}"


def test_nbdev_siblings_are_pinned(conf):
    lab = {canonicalize_name((r := Requirement(d)).name): str(r.specifier) for d in conf["project"]["optional-dependencies"]["lab"]}
    for name in ("nbdev", "fastcore", "execnb", "ghapi", "fastgit"):
        assert lab[name].startswith("=="), f"{name} is not pinned"


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_lock_has_hashes_and_no_address(root, lock):
    text = (root / lock).read_text()
    assert "://" not in text
    assert not re.search(r"index|find-links|\.(org|com|net|io|dev)\b|^\s*-(?!-hash)", re.sub(r"^[A-Za-z0-9._-]+==\S+", "", text, flags=re.M), re.M)
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.M)[1:]
    bare = [e.split()[0] for e in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", e)]
    assert entries and not bare


@pytest.mark.parametrize("lock, extras", [("requirements.lock", []), ("requirements-dev.lock", ["lab", "dev"])])
def test_lock_satisfies_pyproject(root, conf, lock, extras):
    have = locked(root / lock)
    wanted = conf["project"]["dependencies"] + [d for e in extras for d in conf["project"]["optional-dependencies"][e]]
    for text in wanted:
        need = Requirement(text)
        if need.name == "deskbook":
            continue
        versions = have.get(canonicalize_name(need.name), [])
        assert versions, f"{need.name} is not in {lock}; run `make lock`"
        assert all(v in need.specifier for v in versions), f"{lock} has {need.name} {versions}, pyproject wants {need.specifier}"


def test_both_locks_agree(root):
    plain, dev = locked(root / "requirements.lock"), locked(root / "requirements-dev.lock")
    assert {n: v for n, v in plain.items() if dev.get(n) != v} == {}


def test_plain_lock_has_nothing_of_the_lab(root):
    assert not set(locked(root / "requirements.lock")) & {"nbdev", "fastcore", "execnb", "ipython", "ipykernel", "jupyterlab", "papermill", "nbconvert", "matplotlib", "ccxt"}


def test_changelog_mentions_the_version(root):
    assert re.search(rf"^## {re.escape(deskbook.__version__)}\b", (root / "CHANGELOG.md").read_text(), re.M)


def test_licence_is_apache_2(root, conf):
    text = (root / "LICENSE").read_text()
    assert conf["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_readme_is_what_the_notebook_makes(root):
    done = subprocess.run([sys.executable, root / "tools" / "readme.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_links_lead_somewhere(root):
    links = re.findall(r"\]\(([^)#\s]+)|src=\"([^\"]+)\"", (root / "README.md").read_text())
    missing = [p for pair in links for p in pair if p and not re.match(r"[a-z]+:", p) and not (root / p).exists()]
    assert not missing


def test_every_benchmark_has_quick_and_main(root):
    for path in sorted((root / "benchmarks").glob("bench_*.py")):
        tree = ast.parse(path.read_text())
        texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        assert "--quick" in texts, f"{path.name} has no --quick"
        assert "__main__" in texts, f"{path.name} runs on import"


def test_scripts_and_ci_are_executable(root):
    for name in (".ci/run", "tools/bootstrap.sh", "tools/run_checks.sh"):
        assert (root / name).stat().st_mode & 0o111, f"{name} cannot be run"
        assert subprocess.run(["bash", "-n", root / name]).returncode == 0
    assert "make test" in (root / ".ci" / "run").read_text()


def test_make_test_runs_every_check(root):
    text = (root / "Makefile").read_text()
    listed = re.search(r"^CHECKS := (.*)$", text, re.M)[1].split()
    targets = re.findall(r"^((?:check|test)-[a-z]+):", text, re.M)
    assert sorted(listed) == sorted(targets)
    assert all(re.search(rf"^{t}: .*(setup|servers)\b", text, re.M) for t in [*targets, "study", "test", "lab", "bench", "prepare", "lock"])


def test_test_files_have_names_of_their_own(root):
    """Without packages in tests/, pytest imports by file name: two files of one name would hide each other."""
    names: dict[str, list[str]] = {}
    for path in [*(root / "tests").rglob("test_*.py"), *(root / "benchmarks").glob("*.py")]:
        names.setdefault(path.name, []).append(path.relative_to(root).as_posix())
    assert not {n: p for n, p in names.items() if len(p) > 1}
