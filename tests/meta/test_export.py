"""tools/check_export.py finds a module that differs from its notebook, one without a notebook, and one not written yet.

The real tree is held by `make check-export`; here it is broken on purpose, in small."""
import json
import subprocess
import sys

import pytest

CELLS = [("markdown", "# Session hours\n\n> When London is open."), ("code", "#| default_exp hours"), ("code", "#| export\ndef is_open(hour): return 7 <= hour < 16")]


@pytest.fixture
def small(tmp_path, bin_folder):
    tree = tmp_path / "small"
    (tree / "nbs").mkdir(parents=True)
    (tree / "src" / "hours_desk").mkdir(parents=True)
    (tree / "pyproject.toml").write_text(
        '[project]\nname = "hours-desk"\nversion = "0.1.0"\n[tool.nbdev]\nlib_path = "src/hours_desk"\nnbs_path = "nbs"\n')
    (tree / "src" / "hours_desk" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    cells = [{"cell_type": k, "id": f"cell{i:04}", "metadata": {}, "source": s, **({"outputs": [], "execution_count": None} if k == "code" else {})}
        for i, (k, s) in enumerate(CELLS)]
    notebook = {"cells": cells, "metadata": {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}
    (tree / "nbs" / "00_hours.ipynb").write_text(json.dumps(notebook))
    subprocess.run([bin_folder / "nbdev-export"], cwd=tree, check=True, capture_output=True)
    return tree


def compare(root, tree):
    done = subprocess.run([sys.executable, root / "tools" / "check_export.py", tree], capture_output=True, text=True)
    return done.returncode, done.stdout


def test_an_exported_tree_is_unchanged(root, small):
    before = {p: p.read_bytes() for p in small.rglob("*") if p.is_file()}
    assert compare(root, small) == (0, "an export changes nothing\n")
    assert {p: p.read_bytes() for p in small.rglob("*") if p.is_file()} == before


def test_an_edited_module_is_found(root, small):
    module = small / "src" / "hours_desk" / "hours.py"
    module.write_text(module.read_text().replace("< 16", "< 17"))
    code, text = compare(root, small)
    assert code == 1 and "hours.py: differs from its notebook" in text


def test_a_module_without_notebook_is_found(root, small):
    module = small / "src" / "hours_desk" / "hours.py"
    module.with_name("london.py").write_text(module.read_text())
    code, text = compare(root, small)
    assert code == 1 and "london.py: marked as exported, and no notebook makes it" in text


def test_a_module_not_exported_yet_is_found(root, small):
    (small / "src" / "hours_desk" / "hours.py").unlink()
    code, text = compare(root, small)
    assert code == 1 and "hours.py: an export writes it, and it is not there" in text
