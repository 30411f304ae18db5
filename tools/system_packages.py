"""Installs Debian packages that tests and notebooks need, as root, starting no service. Elsewhere it says what is missing.

    python tools/system_packages.py              the servers of the ledger and of the live state, where they are missing
    python tools/system_packages.py nginx        this package
"""
import os
import shutil
import subprocess
import sys


def install(package: str) -> None:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # in runlevel 1 a package starts no service
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", package]):
        subprocess.run(["apt-get", *words], check=False, stdout=sys.stderr, timeout=240, env=env)


def servers() -> int:
    from deskbook.core.errors import NotFound
    from deskbook.stores.embedded import find_postgres, find_valkey

    missing = 0
    for find, package in ((find_postgres, "postgresql"), (find_valkey, "redis-server")):
        try:
            find()
            continue
        except NotFound:
            install(package)
        try:
            find()
        except NotFound as e:
            missing += 1
            print(f"{e} (the system package {package!r} would do)", file=sys.stderr)
    return missing


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for name in sys.argv[1:]:
            install(name)
    else:
        sys.exit(1 if servers() else 0)
