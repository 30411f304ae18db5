"""What no committed file may hold: addresses of package registries, folders of one machine, secrets' shapes."""
import re
import subprocess

import pytest

# Written in pieces, so that this file passes its own test.
MACHINE = re.compile(r"(?<![\w.~])/(?:" + "ro" + r"ot|ho" + r"me/[\w.-]+|Us" + r"ers/[\w.-]+|wo" + r"rk)/")
REGISTRY = re.compile("py" + r"pi\.org|python" + r"hosted|registry\.np" + r"mjs|conda\.an" + r"aconda|files\.python|index-" + "url *=")
KEYS = re.compile(r"-----BEGIN [A-Z ]*PRIVATE" + r" KEY-----|\bAK" + r"IA[0-9A-Z]{16}\b|\bgh" + r"p_[A-Za-z0-9]{30,}")


def hits(committed, root, pattern):
    found = []
    for path in committed:
        data = path.read_bytes()
        if b"\0" in data[:4096]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            # The text of an embedded picture is noise.
            if '"image/png"' not in line and (m := pattern.search(line)):
                found.append(f"{path.relative_to(root)}:{number}: {m[0]}")
    return found


@pytest.mark.parametrize("what, pattern", [("a folder of one machine", MACHINE), ("a package registry", REGISTRY), ("a secret", KEYS)])
def test_no_committed_file_names(committed, root, what, pattern):
    assert not (found := hits(committed, root, pattern)), f"{what} in {found}"


@pytest.mark.parametrize("pattern, line", [
    (MACHINE, "cd /wo" + "rk/desk"), (MACHINE, '"file": "/ho' + 'me/trader/x"'), (REGISTRY, "--index-" + "url = x"), (REGISTRY, "see py" + "pi.org"),
])
def test_the_patterns_find_what_they_are_for(pattern, line):
    assert pattern.search(line)


def test_no_candles_and_no_built_files_are_committed(committed, root):
    names = [p.relative_to(root).as_posix() for p in committed]
    assert not [n for n in names if re.search(r"\.(parquet|duckdb|pyc|whl|sqlite)$|(^|/)(\.venv|reports|__pycache__)/", n)]
    assert not [n for n, p in zip(names, committed, strict=True) if p.stat().st_size > 2_000_000]


def test_the_environment_and_reports_are_ignored(root):
    for name in (".venv/x", "reports/x", ".uv/x", ".setup.lock"):
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=root).returncode == 0, name
