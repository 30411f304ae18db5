"""Each rule of `nbx check` fails on its broken example, and only that rule."""
import json

import pytest
from written_notebooks import cell, drill_cells, hours_cells, write

from deskbook.dev.checks import RULES, check
from deskbook.dev.notebooks import find_project

HOURS, DRILL, MODULE = "nbs/market/00_hours.ipynb", "runbooks/drills/feed_stops.ipynb", "src/desk/market/hours.py"
SOMEBODY = "/ho" + "me/trader/desk/report.html"


def printed(text, name="stdout"):
    return cell("code", "show()", "aa000009", outputs=[{"output_type": "stream", "name": name, "text": text}])


def shown(**data):
    return cell("code", "show()", "aa000009", outputs=[{"output_type": "display_data", "metadata": {}, "data": data}])


def failed(ename="ValueError", evalue="no candles"):
    return cell("code", "show()", "aa000009", outputs=[{"output_type": "error", "ename": ename, "evalue": evalue, "traceback": []}])


def hours(change):
    """The good notebook, its list of cells changed."""
    def breaks(root):
        cells = hours_cells()
        change(cells)
        write(root / HOURS, *cells)
    return breaks


def long_cell(first):
    return cell("code", first + "\n".join(f"level_{i} = {i}" for i in range(26)), "aa000009")


def parameters(*tagged):
    def breaks(root):
        cells = drill_cells()[:1] + [cell("code", f"minutes = {i}", f"bb00001{i}", tags=["parameters"] if t else []) for i, t in enumerate(tagged)]
        write(root / DRILL, *cells)
    return breaks


def renamed(root):
    write(root / HOURS, *[c | {"source": c["source"].replace("market.hours", "market.london")} for c in hours_cells()])
    (root / MODULE).with_name("london.py").write_text("")


def twin(number, module):
    def breaks(root):
        cells = [c | {"source": c["source"].replace("market.hours", module)} for c in hours_cells()]
        write(root / "nbs" / "market" / f"{number}_twin.ipynb", *cells)
    return breaks


def put(name, text):
    return lambda root: (root / name).write_text(text)


BROKEN = [
    ("readable", HOURS, put(HOURS, '{"cells": [')),
    ("readable", HOURS, put(HOURS, '["not a notebook"]')),
    ("duplicate-id", HOURS, hours(lambda c: c.append(cell("code", "2", "aa000004")))),
    ("title", HOURS, hours(lambda c: c.__setitem__(0, cell("markdown", "Session hours", "aa000001")))),
    ("title", HOURS, hours(lambda c: c.insert(0, cell("code", "1", "aa000000")))),
    ("title", DRILL, lambda root: write(root / DRILL, *drill_cells()[1:])),
    ("promise", HOURS, hours(lambda c: c.__setitem__(0, cell("markdown", "# Session hours\n\nWhen London is open.", "aa000001")))),
    ("number", "nbs/market/hours.ipynb", lambda root: (root / HOURS).rename(root / "nbs" / "market" / "hours.ipynb")),
    ("number", "nbs/market/00_twin.ipynb", lambda root: write(root / "nbs/market/00_twin.ipynb", cell("markdown", "# Twin\n\n> Twin.", "dd000001"))),
    ("parameters", DRILL, parameters(False)),
    ("parameters", DRILL, parameters(True, True)),
    ("parameters", DRILL, lambda root: write(root / DRILL, *[c | {"metadata": {}} for c in drill_cells()])),
    ("long-cell", HOURS, hours(lambda c: c.append(long_cell("")))),
    ("long-cell", HOURS, hours(lambda c: c.append(long_cell("# long:\n")))),
    ("syntax", HOURS, hours(lambda c: c.__setitem__(2, cell("code", "#| export\ndef is_open(:", "aa000003")))),
    ("syntax", MODULE, put(MODULE, "def is_open(:")),
    ("output", HOURS, hours(lambda c: c.append(failed()))),
    ("output", HOURS, hours(lambda c: c.append(printed("FutureWarning: soon", "stderr")))),
    ("output", HOURS, hours(lambda c: c.append(printed("Traceback (most recent call last)\n ValueError")))),
    ("output", HOURS, hours(lambda c: c.append(printed(f"saved {SOMEBODY}")))),
    ("output", HOURS, hours(lambda c: c.append(shown(**{"text/plain": [f"PosixPath('{SOMEBODY}')"]})))),
    ("output", HOURS, lambda root: hours(lambda c: c.append(printed(f"saved {root}/reports/a.html")))(root)),
    ("one-notebook", "nbs/market/10_twin.ipynb", twin("10", "market.hours")),
    ("exported", HOURS, lambda root: (root / MODULE).unlink()),
    ("exported", HOURS, hours(lambda c: c.append(cell("code", "#| export market.pips\npip = 0.0001", "aa000009")))),
    ("orphan", MODULE, renamed),
    ("orphan", "src/desk/market/gone.py", put("src/desk/market/gone.py", "x = 1\n")),
]


def test_the_good_repository_has_no_findings(repo):
    assert check(find_project()) == []


@pytest.mark.parametrize("rule, path, breaks", BROKEN, ids=[f"{r}-{i}" for i, (r, *_) in enumerate(BROKEN)])
def test_a_broken_rule_is_found(repo, nbx, rule, path, breaks):
    breaks(repo)
    found = check(find_project())
    # A notebook that cannot be read leaves its module without one, which is a true finding too.
    main = [f for f in found if f.rule != "orphan"] if rule == "readable" else found
    assert [(f.rule, f.path) for f in main] == [(rule, path)]
    done = nbx("check")
    assert done.exit_code == 1 and f"[{rule}]" in done.stdout and path in done.stdout


def test_every_rule_has_a_broken_example():
    assert {rule for rule, *_ in BROKEN} == set(RULES)


@pytest.mark.parametrize("allowed", [
    hours(lambda c: c.append(long_cell("# long: a table of levels\n"))),
    hours(lambda c: c.append(cell("code", "%time is_open(9)", "aa000009"))),
    hours(lambda c: c.append(printed("2 of 3 errors are gone, see /tmp and https://example.test/home/page"))),
    hours(lambda c: c.append(shown(**{"image/png": "aGk=", "text/plain": "<Figure size 560x208>"}))),
    hours(lambda c: c.append(cell("code", "#| exporti\n_cache: dict = {}", "aa000009"))),
])
def test_what_is_allowed(repo, allowed):
    allowed(repo)
    assert check(find_project()) == []


def test_a_cell_without_exports_may_lack_default_exp_but_not_with(repo):
    write(repo / HOURS, *[c for c in hours_cells() if "default_exp" not in c["source"]])
    assert [f.rule for f in check(find_project())] == ["exported", "orphan"]


def test_only_what_was_asked_for(repo, nbx):
    (repo / "src/desk/market/gone.py").write_text("")
    hours(lambda c: c.append(failed()))(repo)
    assert [f["rule"] for f in json.loads(nbx("check", "nbs/market", "--json").stdout)] == ["output"]
    assert nbx("check", "runbooks").exit_code == 0


def test_json_of_check_names_cell_and_rule(repo, nbx):
    hours(lambda c: c.append(failed()))(repo)
    (found,) = json.loads(nbx("check", "--json").stdout)
    assert found["rule"] == "output" and found["cell"] == "aa000009" and "ValueError: no candles" in found["message"]


def test_rules_are_listed(nbx):
    assert set(json.loads(nbx("check", "--rules", "--json").stdout)) == set(RULES)
