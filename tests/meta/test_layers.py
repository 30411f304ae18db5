"""The import-linter contracts are kept, and each really fails when it is broken."""
import os
import subprocess

import pytest


def lint(tree, bin_folder):
    # The copy's own package, not the installed one.
    env = {**os.environ, "PYTHONPATH": str(tree / "src")}
    return subprocess.run([bin_folder / "lint-imports", "--no-cache"], cwd=tree, env=env, capture_output=True, text=True)


def test_contracts_are_kept(tree, bin_folder):
    done = lint(tree, bin_folder)
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize("file, line, contract", [
    ("core/planted.py", "import deskbook.market.candles\n", "a package imports only"),
    ("gates/planted.py", "def late():\n    from deskbook.studies import weekly\n    return weekly\n", "a package imports only"),
    ("studies/planted.py", "from deskbook.dev import checks\n", "nothing imports dev"),
    ("dev/planted.py", "from deskbook.core.errors import BadInput\n", "dev imports nothing"),
    ("somewhere/__init__.py", "", "a package imports only"),
])
def test_a_planted_violation_fails(tree, bin_folder, file, line, contract):
    path = tree / "src" / "deskbook" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(line)
    done = lint(tree, bin_folder)
    assert done.returncode == 1, done.stdout
    broken = [row for row in done.stdout.splitlines() if row.endswith("BROKEN")]
    assert len(broken) == 1 and contract in broken[0]
