"""An environment that cannot be read is said in one line, with the code of bad input, and without a secret."""
import pytest

from deskbook.app.cli import main


@pytest.mark.parametrize(("name", "value"), [("RATE_LIMIT_MAX", "many"), ("LOG_FORMAT", "xml"), ("HTTP_PORT", "x"), ("OANDA_ENVIRONMENT", "demo")])
@pytest.mark.parametrize("command", [["daemon", "gates"], ["api"], ["ops", "seed"], ["up"]], ids=lambda c: c[0])
def test_a_variable_that_is_wrong(monkeypatch, capsys, tmp_path, command, name, value):
    monkeypatch.setenv("DESKBOOK_HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"deskbook: {name}={value}: ") and said.count("\n") == 1 and "Traceback" not in said
