"""The root command: Ctrl-C ends every command the same way and is never lost, help is help, a usage mistake is one line."""
import signal
import subprocess
import sys
import time

import pytest
import typer

import deskbook.app.cli as cli
from deskbook.app.cli import PARTS, main

SENTENCE = "deskbook: interrupted; what was stored stays. Run the same command again to go on.\n"


class CleansUp:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)  # Ctrl-C while Python cleans up: it can only report the interrupt


def interrupted():
    raise KeyboardInterrupt


def interrupted_while_cleaning_up():
    CleansUp()
    time.sleep(5)
    print("went on")


@pytest.mark.parametrize("work", [interrupted, interrupted_while_cleaning_up])
def test_ctrl_c_ends_any_command_with_130_and_one_sentence(work, monkeypatch, capsys):
    app = typer.Typer()
    app.command()(work)
    monkeypatch.setattr(cli, "app", app)
    began = time.monotonic()
    assert main([]) == 130 and time.monotonic() - began < 4
    assert capsys.readouterr() == ("", SENTENCE)


def test_without_words_there_is_help_and_no_empty_complaint(capsys):
    main([])
    out, err = capsys.readouterr()
    assert "weekly" in out and err == ""


@pytest.mark.parametrize("part", sorted(PARTS))
def test_every_part_has_help_and_no_shell_installer(part, capsys):
    assert main([part, "--help"]) == 0
    assert "--install-completion" not in capsys.readouterr().out


def test_a_folder_that_cannot_be_used_is_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DESKBOOK_HOME", str(tmp_path / "file" / "home"))
    assert main(["candles", "simulate", "EUR_USD", "--start", "2025-11-03", "--end", "2025-11-04"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"deskbook: {tmp_path / 'file'}") and err.endswith(": Not a directory.\n") and err.count("\n") == 1


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_goes_away_is_no_error(lines):
    code = f"import sys, typer, deskbook.app.cli as c\na = typer.Typer()\n@a.command()\ndef f(): sys.stdin.read(); [print('x' * 80) for _ in range({lines})]\nc.app = a\nsys.exit(c.main([]))"
    p = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p.stdout.close()
    p.stdin.close()
    assert p.wait(30) == 0 and p.stderr.read() == ""
