"""The commands of nbx: what they print, what they write, and what they refuse."""
import json
import os
import subprocess
import sys

import pytest
from written_notebooks import cell, hours_cells, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deskbook.dev import notebooks as nbk
from deskbook.dev.nbx import app, main, run_notebook

HOURS = "nbs/market/00_hours.ipynb"


def ids(root):
    return [c["id"] for c in json.loads((root / HOURS).read_text())["cells"]]


def source(root, cell_id):
    return next("".join(c["source"]) for c in json.loads((root / HOURS).read_text())["cells"] if c["id"] == cell_id)


# -- read

def test_ls_lists_notebooks_and_runbooks(repo, nbx):
    rows = {r["notebook"]: r for r in json.loads(nbx("ls", "--json").stdout)}
    assert list(rows) == ["nbs/index.ipynb", HOURS, "runbooks/drills/feed_stops.ipynb"]
    assert rows[HOURS] == {"number": "00", "notebook": HOURS, "title": "Session hours", "promise": "When London is open.", "module": "market.hours",
        "cells": 4, "code_cells": 2, "median_code_lines": 2.0}
    text = nbx("ls", "nbs/market").stdout
    assert "market.hours" in text and "feed_stops" not in text


def test_show_one_cell_and_all(repo, nbx):
    text = nbx("show", "hours").stdout
    assert all(i in text for i in ids(repo)) and "exported to market.hours" in text
    (one,) = json.loads(nbx("show", "market/hours", "aa000003", "--json").stdout)
    assert one["module"] == "market.hours" and one["source"].endswith("< 16")


def test_show_outputs(repo, nbx):
    out = {"output_type": "stream", "name": "stdout", "text": "open from 07:00"}
    write(repo / HOURS, *hours_cells(), cell("code", "show()", "aa000005", outputs=[out]))
    assert "open from" not in nbx("show", "hours").stdout
    assert "│ open from 07:00" in nbx("show", "hours", "--outputs").stdout


def test_where_gives_notebook_cell_and_line(repo, nbx):
    (row,) = json.loads(nbx("where", "is_open", "--json").stdout)
    assert row == {"symbol": "is_open", "notebook": HOURS, "cell": "aa000003", "module": "desk.market.hours", "file": "src/desk/market/hours.py", "line": 5}
    assert nbx("where", "desk.market.hours.is_open").stdout.startswith("src/desk/market/hours.py:5")


def test_where_finds_methods_and_constants(repo, nbx):
    write(repo / HOURS, *hours_cells(), cell("code", "#| export\nclass Desk:\n    def close(self): ...\n    order, cancel = place, withdraw\nPIP: float = 0.0001\nLOT = 100_000", "aa000005"))
    for name in ("Desk", "Desk.close", "Desk.order", "Desk.cancel", "PIP", "LOT"):
        assert json.loads(nbx("where", name, "--json").stdout)[0]["cell"] == "aa000005"


# -- change

def test_add_after_keeps_every_other_cell(repo, nbx):
    before = json.loads((repo / HOURS).read_text())["cells"]
    done = nbx("add", "hours", "--after", "aa000003", "--md", text="## At the edges\n`16:00` is closed.\n")
    new = done.stdout.strip()
    after = json.loads((repo / HOURS).read_text())["cells"]
    assert [c["id"] for c in after] == ["aa000001", "aa000002", "aa000003", new, "aa000004"]
    assert after[3]["cell_type"] == "markdown" and "".join(after[3]["source"]) == "## At the edges\n`16:00` is closed."
    text = lambda cells: ["".join(c["source"]) for c in cells if c["id"] != new]  # noqa: E731
    assert text(before) == text(after)


def test_add_a_tagged_cell(repo, nbx):
    new = nbx("add", "feed_stops", "--tag", "parameters", text="feed = 'oanda'").stdout.strip()
    cells = json.loads((repo / "runbooks/drills/feed_stops.ipynb").read_text())["cells"]
    assert cells[-1]["id"] == new and cells[-1]["metadata"] == {"tags": ["parameters"]}


def test_edit_by_replacement_and_by_stdin(repo, nbx):
    done = nbx("edit", "hours", "aa000003", "--replace", "hour < 16", "hour < 17")
    assert done.exit_code == 0 and "+    return 7 <= hour < 17" in done.stdout
    assert source(repo, "aa000003").endswith("hour < 17")
    assert nbx("edit", "hours", "aa000004", text="assert not is_open(3)\n").exit_code == 0
    assert source(repo, "aa000004") == "assert not is_open(3)"
    assert ids(repo) == ["aa000001", "aa000002", "aa000003", "aa000004"]


def test_edit_drops_outputs_of_the_old_text(repo, nbx):
    out = {"output_type": "stream", "name": "stdout", "text": "old"}
    write(repo / HOURS, *hours_cells(), cell("code", "show()", "aa000005", outputs=[out]))
    nbx("edit", "hours", "aa000005", text="show(1)")
    assert json.loads((repo / HOURS).read_text())["cells"][-1]["outputs"] == []


def test_an_edit_without_change_writes_nothing(repo, nbx):
    path = repo / HOURS
    os.utime(path, ns=(1, 1))
    assert nbx("edit", "hours", "aa000004", text="assert is_open(9)").stdout.strip() == "no change"
    assert path.stat().st_mtime_ns == 1


def test_rm(repo, nbx):
    assert "-assert is_open(9)" in nbx("rm", "hours", "aa000004").stdout
    assert ids(repo) == ["aa000001", "aa000002", "aa000003"]


# -- refuse

@pytest.mark.parametrize("args, text, says", [
    (("show", "hours", "aa000033"), None, "Did you mean 'aa000003'?"),
    (("show", "hours", "aa"), None, "means aa000001, aa000002"),
    (("show", "huors"), None, "Did you mean 'hours'?"),
    (("edit", "hours", "aa000003", "--replace", "hour", "h"), None, "occurs 2 times"),
    (("edit", "hours", "aa000003", "--replace", "minute", "h"), None, "occurs 0 times"),
    (("edit", "hours", "aa000003"), "  \n", "nbx rm"),
    (("edit", "hours", "zz"), "x = 1", "No cell 'zz'"),
    (("add", "hours", "--after", "zz"), "x = 1", "No cell 'zz'"),
    (("add", "hours"), "", "is empty"),
    (("rm", "hours", "aa00000"), None, "Give more of it"),
    (("where", "is_opne"), None, "Did you mean 'is_open'?"),
    (("ls", "nbs/markt"), None, "No notebook 'nbs/markt'"),
])
def test_clear_refusals_that_write_nothing(repo, monkeypatch, capsys, args, text, says):
    import io
    before = (repo / HOURS).read_bytes()
    monkeypatch.setattr(sys, "argv", ["nbx", *args])
    monkeypatch.setattr(sys, "stdin", io.StringIO(text or ""))
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and says in error and "Traceback" not in error
    assert (repo / HOURS).read_bytes() == before


def test_a_name_that_two_notebooks_share(repo, nbx):
    write(repo / "nbs/trading/10_hours.ipynb", *hours_cells())
    with pytest.raises(nbk.NbxError, match=r"Say more of the path"):
        nbk.resolve(nbk.find_project(), "hours")
    assert nbk.resolve(nbk.find_project(), "trading/hours").name == "10_hours.ipynb"


def test_outside_a_repository(tmp_path):
    done = subprocess.run([sys.executable, "-m", "deskbook.dev.nbx"], cwd=tmp_path)
    assert done.returncode == 0
    with pytest.raises(nbk.NbxError, match=r"tool\.nbdev"):
        nbk.find_project(tmp_path)


# -- crash and fault

def test_a_full_disk_leaves_the_old_notebook(repo, nbx, monkeypatch):
    before = (repo / HOURS).read_bytes()
    def full(fd): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    assert isinstance(nbx("edit", "hours", "aa000004", text="x = 1").exception, OSError)
    assert (repo / HOURS).read_bytes() == before
    assert sorted(p.name for p in (repo / HOURS).parent.iterdir()) == ["00_hours.ipynb"]


def test_an_invalid_notebook_is_not_written(repo):
    path, before = repo / HOURS, (repo / HOURS).read_bytes()
    nb = nbk.open_nb(path)
    nb.cells[1].id = nb.cells[2].id
    with pytest.raises(nbk.NbxError, match="duplicate cell id"):
        nbk.save_nb(nb, path)
    assert path.read_bytes() == before


def test_opening_and_saving_changes_no_byte(repo):
    for path in nbk.notebooks(nbk.find_project()):
        nb = nbk.open_nb(path)
        nbk.save_nb(nb, path)
        once = path.read_bytes()
        nbk.save_nb(nbk.open_nb(path), path)
        assert path.read_bytes() == once


@pytest.mark.parametrize("path", nbk.notebooks(nbk.find_project(__file__)), ids=lambda p: p.stem)
def test_our_own_notebooks_survive_a_round_trip(path, tmp_path):
    copy = nbk.save_nb(nbk.open_nb(path), tmp_path / path.name)
    assert copy.read_bytes() == path.read_bytes()


STEP = st.tuples(st.sampled_from(["add", "edit", "rm"]), st.integers(0, 30), st.text(min_size=1).filter(str.strip))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=12))
def test_any_edits_touch_one_cell_each(tmp_path, steps):
    path = write(tmp_path / "hours.ipynb", *hours_cells())
    expected = [(c["id"], c["source"]) for c in hours_cells()]
    for what, where, text in steps:
        nb = nbk.open_nb(path)
        at = where % len(expected) if expected else None
        if what == "add":
            new = nbk.add_cell(nb, text, after=expected[at][0] if expected else None)
            expected.insert(at + 1 if expected else 0, (new, text.rstrip("\n")))
        elif expected and what == "edit":
            nbk.edit_cell(nb, expected[at][0], text)
            expected[at] = (expected[at][0], text.rstrip("\n"))
        elif expected:
            nbk.remove_cell(nb, expected.pop(at)[0])
        nbk.save_nb(nb, path)
    assert [(c.id, c.source) for c in nbk.open_nb(path).cells] == expected


# -- run

@pytest.mark.slow
def test_run_shows_the_cell_that_failed(repo, nbx):
    write(repo / HOURS, *hours_cells(), cell("code", "#| eval: false\nraise SystemExit", "aa000005"), cell("code", "pip = 0.0\n1 / pip", "aa000006"),
        cell("code", "print('after')", "aa000007"))
    before = (repo / HOURS).read_bytes()
    done = nbx("run", "hours", "--json")
    result = json.loads(done.stdout)
    assert done.exit_code == 1 and not result["passed"]
    assert [(e["cell"], e["error"]) for e in result["errors"]] == [("aa000006", "ZeroDivisionError: float division by zero")]
    assert (repo / HOURS).read_bytes() == before, "without --save nothing is written"


@pytest.mark.slow
def test_run_saves_outputs_and_keeps_ids(repo, nbx):
    write(repo / HOURS, *hours_cells(), cell("code", "import os\nprint(os.path.basename(os.getcwd()))", "aa000005"))
    assert nbx("run", "hours", "--save").exit_code == 0
    cells = json.loads((repo / HOURS).read_text())["cells"]
    assert [c["id"] for c in cells] == ["aa000001", "aa000002", "aa000003", "aa000004", "aa000005"]
    assert "".join(cells[-1]["outputs"][0]["text"]) == "market\n"


@pytest.mark.slow
def test_run_stops_a_cell_that_takes_too_long(repo):
    write(repo / HOURS, *hours_cells(), cell("code", "import time\ntime.sleep(60)", "aa000005"))
    errors = run_notebook(repo / HOURS, timeout_s=1)
    assert errors and "timed out" in errors[0]["error"].lower()


# -- help

@pytest.mark.parametrize("command", ["ls", "show", "add", "edit", "rm", "run", "check", "where"])
def test_every_command_has_an_example(nbx, command):
    assert f"nbx {command}" in nbx(command, "--help").stdout.split("Usage", 1)[1].split("Example:", 1)[1]
    assert command in nbx("--help").stdout


def test_importing_nbx_imports_no_notebook_library():
    code = "import sys, deskbook.dev.nbx; print([m for m in ('fastcore', 'nbformat', 'nbclient', 'IPython', 'nbdev') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert app.info.help
