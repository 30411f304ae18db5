"""Whatever is logged, a line of JSON comes out, on the stream and in the file, and no secret with it."""
import io
import json
import logging
import os
import re
import warnings

import pytest
import structlog

from deskbook.core.errors import BadInput
from deskbook.core.logs import configure_logs, log_file, logger
from deskbook.core.settings import Settings


class Nasty:
    def __repr__(self):
        raise RuntimeError("no")

    __str__ = __repr__


ODD = [("%d", ("x",)), ("%s %s", ("one",)), ("%(a)s", ({"b": 1},)), ("plain", ("not asked for",)), (Nasty(), ()), (None, ()), ("%s", (Nasty(),)), (b"bytes", ()), ("%", (1,))]


@pytest.mark.parametrize("msg, args", ODD, ids=[str(i) for i in range(len(ODD))])
def test_an_odd_argument_loses_no_record(logs, msg, args):
    lines = logs()
    logging.getLogger("lib").error(msg, *args)
    logger("ours").error(msg, *args)
    assert [x["logger"] for x in lines()] == ["lib", "ours"]
    assert all(isinstance(x["message"], str) for x in lines())


LOOP: list = []
LOOP.append(LOOP)
VALUES = [float("nan"), float("inf"), {1, "a"}, {(1, 2): Nasty()}, b"\xff", Nasty(), LOOP, object(), "\ud800 \x00 ä \n", 10**400, type("F", (float,), {})(1.5)]


@pytest.mark.parametrize("value", VALUES, ids=[str(i) for i in range(len(VALUES))])
def test_a_value_without_json_is_shown(logs, value):
    lines = logs()
    logger("ours").info("event", value=value)
    logging.getLogger("lib").info("event", extra={"value": value})
    got = lines()
    assert len(got) == 2 and got[0]["value"] == got[1]["value"]


def test_fields_and_time(logs):
    lines = logs("gates")
    logger("deskbook.x").bind(instrument="EUR_USD").warning("candle %s", "late", n=1)
    (line,) = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line == {"level": "WARNING", "logger": "deskbook.x", "message": "candle late", "worker": "gates", "instrument": "EUR_USD", "n": 1}


def test_no_internals_of_the_record_leak(logs):
    lines = logs()
    logging.getLogger("lib").info("x")
    assert set(lines()[0]) == {"timestamp", "level", "logger", "message", "worker"}


def test_names_of_ours_are_kept_for_us(logs):
    lines = logs()
    logger("ours").info("x", level=3, message="m", worker="w", timestamp=0, logger="l", name="n", args="a", msg="q")
    line = lines()[0]
    assert (line["level"], line["level_"], line["message"], line["message_"], line["name"], line["args"]) == ("INFO", 3, "x", "m", "n", "a")


def test_exceptions(logs):
    lines = logs()
    try:
        raise ValueError("password=hunter2hunter")
    except ValueError:
        logger("ours").exception("failed")
    line = lines()[0]
    assert "Traceback" in line["exc_info"] and "hunter2hunter" not in json.dumps(line)


def test_secrets_of_environment_and_settings_do_not_appear(logs, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_API_TOKEN", "tok-1234567")
    lines = logs(slack_webhook="https://hooks.example/T0/abcdefgh", timescale_url="postgresql://desk:pa55word@db/x")
    logger("ours").info("tok-1234567 to https://hooks.example/T0/abcdefgh", authorization="Bearer abcdefghijk", db="postgresql://desk:pa55word@db/x", nested={"k": ["tok-1234567"]},
        api_key="short", token=None, key_count=3)
    text = json.dumps(lines()) + log_file(Settings(home=tmp_path), "streamer").read_text()
    assert not [s for s in ("tok-1234567", "abcdefgh", "pa55word", "short") if s in text]
    assert lines()[0]["token"] is None and lines()[0]["key_count"] == 3


def test_context_and_warnings(logs):
    lines = logs()
    with structlog.contextvars.bound_contextvars(trace_id="t1"):
        logger("ours").info("x")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert lines()[0]["trace_id"] == "t1" and lines()[1]["logger"] == "py.warnings"


def test_levels(logs):
    lines = logs(log_level="warning")
    logger("ours").info("no")
    logger("ours").warning("yes")
    assert [x["message"] for x in lines()] == ["yes"]
    with pytest.raises(BadInput, match="LOG_LEVEL"):
        configure_logs(Settings(log_level="loud"), "x")


def test_the_file_is_rotated(logs, tmp_path):
    logs(log_max_bytes=2000, log_backups=2)
    for i in range(100):
        logger("ours").info("filler filler filler", i=i)
    files = sorted((tmp_path / "logs").iterdir())
    assert [f.name for f in files] == ["streamer.log", "streamer.log.1", "streamer.log.2"]
    assert all(f.stat().st_size <= 2000 for f in files)
    kept = [json.loads(x)["i"] for f in reversed(files) for x in f.read_text().splitlines()]
    assert kept == list(range(kept[0], 100))


def test_a_file_that_cannot_be_opened_is_said(logs, tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    lines = logs()
    logger("ours").info("on")
    assert [x["message"] for x in lines()] == ["no log file", "on"] and "cannot be written" in lines()[0]["reason"]


def test_configured_twice_writes_once(logs):
    lines = logs()
    again = logs("other")
    logger("ours").info("x")
    assert lines() == [] and [x["worker"] for x in again()] == ["other"]


def test_a_full_disk_stops_nobody(logs):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    lines = logs(log_file="/dev/full")
    logger("ours").info("on")
    assert [x["message"] for x in lines()][-1] == "on"


def test_text_for_people(logs):
    out = io.StringIO()
    logs(stream=out, log_format="text", log_to_file=False)
    logger("ours").info("candle ä", n=1)
    assert re.fullmatch(r"\S+Z INFO    streamer ours: candle \\xe4  n=1\n", out.getvalue())


def test_without_configuration_nothing_goes_to_standard_output(capsys):
    logger("ours").info("quiet")
    assert capsys.readouterr().out == ""
