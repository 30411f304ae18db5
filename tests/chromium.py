"""The browser of the system, for every test that needs one."""
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TOOL = Path(__file__).resolve().parents[1] / "tools" / "system_packages.py"


def chromium():
    """Its path. Root on Debian installs it; anybody else is told what to install. Never skips."""
    def find():
        return next((p for p in map(shutil.which, NAMES) if p), None)

    if not find():
        subprocess.run([sys.executable, TOOL, "chromium"], check=False, capture_output=True, timeout=600)
    return find() or pytest.fail("no Chromium was found: install the system package 'chromium'", pytrace=False)
