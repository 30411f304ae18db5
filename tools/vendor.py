"""The libraries that the pages load, as single files beside the code: no build step, no other host.

    python tools/vendor.py --check           each file is what its manifest says; exit 1 where it is not
    python tools/vendor.py                   fetch the versions of the manifests with npm, write files and hashes

Two manifests: what is served (src/deskbook/app/dashboard/static/vendor) and what only tests load (tests/browser/vendor).
"""
import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "src/deskbook/app/dashboard/static/vendor", ROOT / "tests/browser/vendor")
MANIFEST = "VENDORED.toml"


def libraries(folder: Path) -> list[dict]:
    """Its manifest: name, version, licence, source and files (name, path inside the package, sha256)."""
    return tomllib.loads((folder / MANIFEST).read_text(encoding="utf-8"))["library"]


def problems(folder: Path) -> list[str]:
    """Where files and manifest disagree; a file that no library owns is one, too."""
    known = {f["name"]: f["sha256"] for lib in libraries(folder) for f in lib["files"]}
    there = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file() and p.name != MANIFEST}
    return [f"{folder.name}/{name}: {'missing' if name not in there else 'not in the manifest' if name not in known else 'another hash'}"
            for name in sorted(known.keys() | there.keys()) if known.get(name) != there.get(name)]


def fetched(lib: dict, into: Path) -> Path:
    """The package as npm gives it, unpacked."""
    named = f"{lib['package']}@{lib['version']}"
    done = subprocess.run(["npm", "pack", named, "--silent"], cwd=into, capture_output=True, text=True, check=True)
    with tarfile.open(into / done.stdout.strip().splitlines()[-1]) as tar:
        tar.extractall(into / lib["package"], filter="data")
    return into / lib["package"] / "package"


def written(libs: list[dict]) -> str:
    """A manifest as text."""
    lines = ["# Made by tools/vendor.py: what stands in this folder, from where, under which licence."]
    for lib in libs:
        lines += ["", "[[library]]", *(f'{k} = "{lib[k]}"' for k in ("name", "version", "licence", "package", "homepage")), "files = ["]
        lines += [f'  {{ name = "{f["name"]}", path = "{f["path"]}", sha256 = "{f["sha256"]}" }},' for f in lib["files"]] + ["]"]
    return "\n".join(lines) + "\n"


def refresh(folder: Path) -> None:
    """Fetch what the manifest names."""
    libs = libraries(folder)
    with tempfile.TemporaryDirectory() as tmp:
        for lib in libs:
            package = fetched(lib, Path(tmp))
            for f in lib["files"]:
                data = (package / f["path"]).read_bytes()
                (folder / f["name"]).write_bytes(data)
                f["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / MANIFEST).write_text(written(libs), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    args = parser.parse_args()
    folders = [f for f in FOLDERS if (f / MANIFEST).is_file()]
    for folder in folders if not args.check else []:
        refresh(folder)
    found = [p for folder in folders for p in problems(folder)]
    print("\n".join(found) if found else "every vendored file is what its manifest says")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
