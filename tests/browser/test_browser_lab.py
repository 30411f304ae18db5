"""The desk as a widget where it is used: in JupyterLab, in a browser, in both themes."""
import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import urllib.request

import nbformat
import pytest
from desk_rig import free_port, until
from playwright.sync_api import expect

pytestmark = pytest.mark.timeout(240)  # a JupyterLab and a kernel begin first

CELLS = [
    "from dataclasses import replace\nfrom deskbook.app.dashboard.desk_facts import sample_desk\nfrom deskbook.app.dashboard.desk_widget import DeskWidget\n"
    "import asyncio\nfrom deskbook.core.loop import background_loop\nlooks, desk = {'one': 0, 'two': 0}, sample_desk()\n"
    "def reader(name):\n    async def read():\n        looks[name] += 1\n        return replace(desk, hero=replace(desk.hero, account=f'{name}-{looks[name]}'))\n    return read\n"
    "def followers(): return sum('follow' in t.get_coro().__qualname__ for t in asyncio.all_tasks(background_loop()))",
    "one = DeskWidget(reader('one'), 0.2).start()\none",
    "two = DeskWidget(reader('two'), 0.2).start()\ntwo",
    "one.stop()\nprint('followers left:', followers())",
    "two.close()\nprint('followers left:', followers())",
]


def notebook(path):
    cells = [nbformat.v4.new_code_cell(c) for c in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on this machine alone, with a token and a folder of its own. Its address with the token."""
    home, token, port = tmp_path_factory.mktemp("lab"), secrets.token_hex(12), free_port()
    (home / "work").mkdir()
    notebook(home / "work" / "desk.ipynb")
    own = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    args = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--allow-root", f"--ServerApp.root_dir={home / 'work'}",
            f"--IdentityProvider.token={token}", "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(home / "lab.log", "w") as log:
        process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *args], env={**os.environ, **own, "JUPYTERLAB_SETTINGS_DIR": str(home / "user")}, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def ready():
        assert process.poll() is None, (home / "lab.log").read_text()[-2000:]
        with contextlib.suppress(OSError):
            return json.load(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/api/status?token={token}", timeout=5))
    try:
        until(ready, 60, why=lambda: (home / "lab.log").read_text()[-2000:])
        yield f"{url}/lab/tree/desk.ipynb?reset&token={token}"
    finally:
        process.terminate()
        process.wait(30)


def account(view):
    return re.search(r"(one|two)-(\d+)", view.inner_text())


def test_two_widgets_live_beside_each_other_until_they_are_stopped_or_closed(lab, browser):
    context = browser.new_context(viewport={"width": 1440, "height": 5000})
    page = context.new_page()
    page.goto(lab)
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    expect(cells).to_have_count(5, timeout=60_000)

    expect(page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]')).to_be_visible(timeout=60_000)

    def run(n):
        cells.nth(n).locator(".cm-content").click()
        page.keyboard.press("Control+Enter")

    def figure(n):
        return int(account(cells.nth(n).locator(".hero"))[2])

    for n in range(3):
        run(n)
    for n in (1, 2):
        expect(cells.nth(n).locator(".pair")).to_have_count(7, timeout=60_000)
        before = figure(n)
        until(lambda n=n, before=before: figure(n) > before + 2, why="it looks again")
    ink = "el => getComputedStyle(el).backgroundColor"
    prose = page.locator(".jp-Notebook").evaluate(ink)
    card = cells.nth(1).locator(".pair").first
    assert card.evaluate(ink) == "rgb(255, 255, 255)" and card.evaluate("el => el.getBoundingClientRect().width") > 300
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")  # what the dark theme does
    assert card.evaluate(ink) != "rgb(255, 255, 255)" and page.locator(".jp-Notebook").evaluate(ink) == prose

    run(3)
    expect(cells.nth(3)).to_contain_text("followers left: 1")
    expect(cells.nth(1)).to_contain_text("What is shown does not change any more")
    stands, runs = figure(1), figure(2)
    until(lambda: figure(2) > runs + 2, why="the other one goes on")
    assert figure(1) == stands
    run(4)
    expect(cells.nth(4)).to_contain_text("followers left: 0")
    expect(cells.nth(2).locator(".deskbook-view")).to_have_count(0)
    context.close()
