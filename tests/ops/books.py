"""Small runbooks as notebooks, for the tests that need a real kernel."""
from dataclasses import dataclass
from pathlib import Path

import nbformat

from deskbook.core.settings import Settings

PARAMETERS = '''from typing import Literal
instruments: list[str] = ["EUR_USD", "USD_JPY"]  # not empty
window: int = 64  # candles, 16..4096
behave: str = "well"  # what goes wrong
marks: str = ""  # file that remembers which work was done
mode: Literal["dry", "live"] = "dry"  # live changes nothing here either'''

OPEN = '''from pathlib import Path
import polars as pl
from deskbook.ops.runbook import Run
def worked(what):
    if marks: Path(marks).open("a").write(what + "\\n")
run = Run.open("gate_history", dict(instruments=instruments, window=window, behave=behave, marks=marks, mode=mode))'''

FIRST = '''def gates():
    worked("gates")
    return pl.DataFrame({"instrument": instruments, "gates": [300 + window, 298]})
with run.step("rebuild gates") as s:
    frame = s.call(gates)
    s.count(gates=int(frame["gates"].sum()))
run.number("gates", frame["gates"].sum())
run.save("gates.csv", frame)'''

SECOND = '''import os, sys, time
with run.step("compare", timeout_s=1.5 if behave == "slow step" else None) as s:
    worked("compare")
    if behave == "raise" and not Path(marks + ".fixed").exists(): raise ValueError("USD_JPY has 12 candles, needs 64")
    if behave == "exit": sys.exit(0)
    if behave == "die": os._exit(0)
    if behave.startswith("slow"):
        worked(f"pid {os.getpid()}")
        time.sleep(60)'''

LEAK = '''import base64, html, sys
from IPython.display import HTML, display
token = os.environ.get("DESK_TOKEN", "nothing")
sys.stdout.write("token " + token[:9]); sys.stdout.flush(); time.sleep(0.05); sys.stdout.write(token[9:] + "\\n")
print("Authorization: Bearer 0123456789abcdef0123")
display(HTML(f"<p title='{token}'>{token}</p><img src='https://example.org/x.png'><script src='https://example.org/x.js'></script>"))
print(base64.b64encode(token.encode()).decode(), file=sys.stderr)
run.note(f"logged in with {token}")
run.number("login", token)
run.save("login.txt", f"token={token}")
(run.folder / "own.txt").write_text(f"written around the run: {token}")
pl.DataFrame({"token": [token]})'''

SEAL = '''run.check("each instrument has gates", behave != "fail", f"{len(frame)} instruments")
run.seal()'''


def book(folder: Path, *cells: str, name: str = "gate_history", parameters: str = PARAMETERS) -> Path:
    """Write a runbook: title, parameters, then the cells (default: open, two steps, seal)."""
    nb = nbformat.v4.new_notebook()
    nb.cells = [nbformat.v4.new_markdown_cell("# Gate history\n\nA test."), nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    nb.cells += [nbformat.v4.new_code_cell(c) for c in (cells or (OPEN, FIRST, SECOND, SEAL))]
    path = folder / "runbooks" / "backfills" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


@dataclass
class Desk:
    """A project with one runbook, a home and a reports folder of its own."""
    root: Path

    @property
    def settings(self) -> Settings: return Settings(home=self.root / "home", reports=self.root / "reports")

    @property
    def reports(self) -> Path: return self.root / "reports"

    @property
    def marks(self) -> Path: return self.root / "marks"

    @property
    def worked(self) -> list[str]: return self.marks.read_text().split("\n")[:-1] if self.marks.exists() else []

    def run(self, path: Path | None = None, given: dict | None = None, **options):
        from deskbook.ops.runner import run_runbook
        given = (given or {}) if options.get("resume") or path else {"marks": str(self.marks)} | (given or {})
        return run_runbook(path or book(self.root), given, settings=self.settings, **options)
