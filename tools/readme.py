"""README.md from nbs/index.ipynb: prose, code and outputs, links turned from the notebook's folder to the repository's.

    python tools/readme.py            write README.md
    python tools/readme.py --check    exit 1 when README.md is not what would be written
"""
import argparse
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\(|src=\"|href=\")(?![a-z+]+:|#|/)([^)\s\"#]+)")
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`; edit that notebook. -->\n\n"


def readme(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """The Markdown text and the pictures it needs, by path from the repository's root."""
    import nbformat
    from nbconvert import MarkdownExporter

    nb = nbformat.read(notebook, as_version=4)
    nb.cells = [c for c in nb.cells if not re.match(r"\s*#\|\s*(hide|default_exp)", c.source)]
    for cell in nb.cells:
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
        cell.get("metadata", {}).pop("tags", None)
    folder = notebook.resolve().parent.name
    text, found = MarkdownExporter().from_notebook_node(nb, {"output_files_dir": "docs/images", "unique_key": "readme"})
    pictures = found.get("outputs") or {}

    def turn(m: re.Match) -> str:
        target = m[2] if m[2] in pictures else posixpath.normpath(posixpath.join(folder, m[2]))
        return m[1] + target

    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in LINK.sub(turn, text).splitlines()))
    return NOTE + text.strip() + "\n", pictures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    args = parser.parse_args()
    text, pictures = readme(ROOT / "nbs" / "index.ipynb")
    wanted = {"README.md": text.encode(), **pictures}
    stale = [name for name, data in wanted.items() if not (ROOT / name).is_file() or (ROOT / name).read_bytes() != data]
    if args.check:
        print(f"not what the notebook makes: {', '.join(stale)}; run `make readme`" if stale else "README.md is what nbs/index.ipynb makes")
        return bool(stale)
    for name in stale:
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_bytes(wanted[name])
    print(f"wrote {', '.join(stale)}" if stale else "README.md is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
