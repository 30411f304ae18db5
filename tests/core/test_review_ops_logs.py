"""Records that are odd to the bone, and a log that cannot be written: nothing is lost silently, and no secret goes another way."""
import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from deskbook.core.logs import logger


class Torn(Mapping):
    """A mapping that fails when it is read."""

    def __getitem__(self, key): raise RuntimeError("torn")
    def __iter__(self): raise RuntimeError("torn")
    def __len__(self): return 1


class Liar(str):
    def replace(self, *_): raise RuntimeError("no")


VALUES = {"huge": 10**5000, "huge inside": {"a": -10**5000}, "huge in a list": [10**5000], "torn": Torn(), "torn inside": {"a": Torn()}, "liar": Liar("text"), "odd key": {(1, 2): 1}}


@pytest.mark.parametrize("name", VALUES)
def test_no_value_loses_the_message(logs, name):
    lines = logs()
    logger("ours").info("the order was sent", value=VALUES[name], order=7)
    logging.getLogger("lib").info("the order was sent", extra={"value": VALUES[name], "order": 7})
    assert [(x["message"], x["order"], "value" in x) for x in lines()] == [("the order was sent", 7, True)] * 2


def test_a_name_that_is_no_text(logs):
    lines = logs()
    logging.getLogger("lib").info("the order was sent", extra={5: "x"})
    assert (lines()[0]["message"], lines()[0]["5"]) == ("the order was sent", "x")


SCRIPT = """
import logging, sys
from deskbook.core.logs import configure_logs, logger
from deskbook.core.settings import Settings
configure_logs(Settings(), "streamer")
for n in range(3):
    logging.getLogger("lib").error("the venue said %s to %s", "401", "hook-secret-12345")
    logger("ours").info("done", n=n)
"""


@pytest.mark.parametrize("file", ["/dev/full", ""])
def test_a_log_that_cannot_be_written_is_said_once_and_without_secrets(tmp_path, file):
    """Standard output is full in the second case; what the standard library says then would show the arguments as they came."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    env = {"PATH": "/usr/bin", "DESKBOOK_HOME": str(tmp_path), "SLACK_WEBHOOK": "hook-secret-12345", "LOG_TO_FILE": "1", **({"LOG_FILE_PATH": file} if file else {})}
    with open("/dev/full" if not file else tmp_path / "out", "w") as out:
        done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60)
    assert "hook-secret" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("cannot be written") == 1 and "No space left" in done.stderr
    kept = (tmp_path / "out") if file else (tmp_path / "logs" / "streamer.log")
    assert [json.loads(line)["message"] for line in kept.read_text().splitlines()].count("done") == 3
