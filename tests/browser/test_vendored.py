"""Files that others wrote are the files that are named beside them, with their licences."""
import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("vendor_tool", ROOT / "tools" / "vendor.py")
vendor = importlib.util.module_from_spec(spec)
spec.loader.exec_module(vendor)
KNOWN = {"MIT", "0BSD", "BSD-2-Clause", "Apache-2.0", "MPL-2.0", "ISC"}


@pytest.mark.parametrize("folder", vendor.FOLDERS, ids=lambda f: f.parent.name)
def test_vendored_files_are_what_the_manifest_says(folder):
    assert vendor.problems(folder) == []
    for lib in vendor.libraries(folder):
        assert lib["version"] and lib["package"] and lib["homepage"] and lib["licence"] in KNOWN, lib
        assert any("LICENSE" in f["name"] for f in lib["files"]), f"{lib['name']} came without its licence"


def test_a_changed_a_missing_and_a_stray_file_are_found(tmp_path):
    folder = shutil.copytree(vendor.FOLDERS[0], tmp_path / "vendor")
    (folder / "uPlot.min.css").write_text("body{}")
    (folder / "LICENSE.htmx").unlink()
    (folder / "stray.js").write_text("1")
    assert vendor.problems(folder) == ["vendor/LICENSE.htmx: missing", "vendor/stray.js: not in the manifest", "vendor/uPlot.min.css: another hash"]
