"""A small repository that keeps every rule; each test breaks it in one way."""
import pytest
from written_notebooks import cell, drill_cells, hours_cells, write
from typer.testing import CliRunner

from deskbook.dev.nbx import app


@pytest.fixture
def repo(tmp_path, monkeypatch):
    root = tmp_path / "desk"
    write(root / "nbs" / "market" / "00_hours.ipynb", *hours_cells())
    write(root / "nbs" / "index.ipynb", cell("markdown", "# Desk\n\n> A desk.", "cc000001"))
    write(root / "runbooks" / "drills" / "feed_stops.ipynb", *drill_cells())
    (root / "pyproject.toml").write_text('[tool.nbdev]\nlib_path = "src/desk"\nnbs_path = "nbs"\n')
    module = root / "src" / "desk" / "market" / "hours.py"
    module.parent.mkdir(parents=True)
    module.write_text('# %% auto #0\n__all__ = ["is_open"]\n\n# %% #aa000003\ndef is_open(hour: int) -> bool:\n    "London, in UTC."\n    return 7 <= hour < 16\n')
    for name in ("", "market/"):
        (root / "src" / "desk" / f"{name}__init__.py").write_text("")
    (root / "src" / "desk" / "_modidx.py").write_text("d = {}\n")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def nbx():
    def call(*args, text=None):
        return CliRunner().invoke(app, [str(a) for a in args], input=text)
    return call
