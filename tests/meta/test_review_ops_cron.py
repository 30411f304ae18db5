"""The checks from cron tell people also when `deskbook` ends with a code that it has, for a reason that it has not."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ops"))
from listeners import Syslog, Webhook

CRON = Path(__file__).resolve().parents[2] / "deploy" / "cron"


def cron(script, **env):
    env = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **env}
    return subprocess.run(["/bin/sh", CRON / script], env=env, capture_output=True, text=True, errors="replace", timeout=90)


@pytest.fixture
def program(tmp_path):
    """program(text): a `deskbook`; without a text the one of this environment."""
    def make(text=""):
        file = tmp_path / "deskbook"
        file.write_text(text or f"#!{sys.executable}\nimport sys\nfrom deskbook.app.cli import main\nsys.exit(main())\n")
        file.chmod(0o755)
        return str(file)
    return make


@pytest.mark.parametrize("script", ["gate_freshness.sh", "certificate_expiry.sh"])
@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_program_that_breaks_off_with_one_of_its_codes(program, script, code):
    """A traceback ends with 1, a wrong option with 2."""
    broken = program(f"#!/bin/sh\necho 'Traceback: ModuleNotFoundError' >&2\nexit {code}\n")
    with Webhook() as hook, Syslog() as syslog:
        done = cron(script, DESKBOOK=broken, SLACK_WEBHOOK=hook.url, SYSLOG_ADDRESS=syslog.address)
        assert done.returncode == code
        assert len(hook.texts) == 1 and "ModuleNotFoundError" in hook.texts[0] and f"exit code {code}" in hook.texts[0]
        assert "ModuleNotFoundError" in syslog.next()


@pytest.mark.parametrize("wrong", [{"GATE_FRESHNESS_THRESHOLD": "3m"}, {"RATE_LIMIT_MAX": "many"}, {"HOTBAND_PAIRS": ","}], ids=lambda w: next(iter(w)))
def test_settings_that_are_wrong(program, tmp_path, wrong):
    with Webhook() as hook:
        done = cron("gate_freshness.sh", DESKBOOK=program(), SLACK_WEBHOOK=hook.url, DESKBOOK_HOME=str(tmp_path), VALKEY_URL="redis://127.0.0.1:1/0", **wrong)
        assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr, done
        assert len(hook.texts) == 1, (done, hook.bodies)
        name, value = next(iter(wrong.items()))
        assert (value in hook.texts[0] or name in hook.texts[0]) and "could not be checked" in hook.texts[0]


def test_a_syslog_address_that_is_none(program, tmp_path):
    """The command cannot tell anybody, and does not keep that for itself."""
    with Webhook() as hook:
        done = cron("gate_freshness.sh", DESKBOOK=program(), SLACK_WEBHOOK=hook.url, SYSLOG_ADDRESS="nowhere", DESKBOOK_HOME=str(tmp_path), VALKEY_URL="redis://127.0.0.1:1/0")
        assert done.returncode == 1 and len(hook.texts) == 1 and "SYSLOG_ADDRESS" in hook.texts[0], (done, hook.bodies)


def test_what_is_told_is_json_whatever_the_program_said(program):
    said = program("#!/bin/sh\nprintf 'a \\033[31mred\\033[0m \\001 \"q\" \\\\ \\303\\244 \\200'\nawk 'BEGIN { for (i = 0; i < 400; i++) printf \"\\303\\244\" }'\nexit 9\n")
    with Webhook() as hook:
        cron("gate_freshness.sh", DESKBOOK=said, SLACK_WEBHOOK=hook.url)
        assert len(hook.texts) == 1 and "red" in hook.texts[0] and hook.texts[0].isprintable()


def test_a_webhook_that_refuses_is_said(program):
    with Webhook(500) as hook:
        done = cron("gate_freshness.sh", DESKBOOK=program("#!/bin/sh\nexit 9\n"), SLACK_WEBHOOK=hook.url)
        assert hook.bodies and "the webhook was not reached" in done.stderr


def test_the_address_of_the_webhook_is_not_in_the_list_of_processes(program, tmp_path):
    spy = tmp_path / "bin" / "curl"
    spy.parent.mkdir()
    spy.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/words\ncat >{tmp_path}/stdin\n')
    spy.chmod(0o755)
    cron("gate_freshness.sh", DESKBOOK=program("#!/bin/sh\nexit 9\n"), SLACK_WEBHOOK="https://hooks.example/T0/hook-secret-9", PATH=f"{spy.parent}:{os.environ['PATH']}")
    words = (tmp_path / "words").read_text()
    assert "hook-secret-9" not in words and "hook-secret-9" in (tmp_path / "stdin").read_text()
    assert any("could not be checked" in json.loads(w)["text"] for w in words.splitlines() if w.startswith("{"))
