"""Logs of a test's own."""
import contextlib
import io
import json
import logging

import pytest

from deskbook.core.logs import configure_logs
from deskbook.core.settings import Settings


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """logs(**settings): configure, and return a function that gives the lines so far."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def start(worker="streamer", stream=None, **more):
        out = stream or io.StringIO()
        root.handlers[:] = [h for h in root.handlers if not type(h).__module__.startswith("_pytest")]  # it raises over odd arguments
        configure_logs(Settings(home=tmp_path, **more), worker, out)
        return lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    yield start
    for h in [h for h in root.handlers if not type(h).__module__.startswith("_pytest")]:
        with contextlib.suppress(OSError):
            h.close()
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)
