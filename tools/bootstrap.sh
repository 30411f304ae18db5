#!/usr/bin/env bash
# Makes .venv from requirements-dev.lock and installs deskbook in it, editable. Needs bash and one of: Python >= 3.12 (on the
# PATH or from pyenv), uv, or any older Python with pip (which then fetches uv, which fetches Python). Never needs root.
# A second run compares one checksum and leaves. Settings: PYTHON=/path/to/python, VENV=folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
VENV=${VENV:-.venv}
case $VENV in /*) ;; *) VENV=$ROOT/$VENV ;; esac
LOCK=requirements-dev.lock
STAMP=$VENV/.deskbook-setup
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV PIP_USER PIP_REQUIRE_VIRTUALENV

say() { printf 'set-up: %s\n' "$*" >&2; }
die() { printf 'set-up failed: %s\n' "$1" >&2; shift; printf '  %s\n' "$@" >&2; exit 1; }

checksum() { if command -v sha256sum >/dev/null; then sha256sum; elif command -v shasum >/dev/null; then shasum -a 256; else cksum; fi; }
wanted() { { printf '%s\n' "$ROOT" "$VENV"; cat "$LOCK" pyproject.toml tools/bootstrap.sh; } | checksum; }
ready() { [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(wanted)" ] && "$VENV/bin/python" -I -S -c '' 2>/dev/null; }

# Two makes at once: the second waits, then finds everything done. The lock goes when this script ends, however it ends.
ready && exit 0
if command -v flock >/dev/null; then
  exec 9>"$ROOT/.setup.lock"
  flock -n 9 || { say "another set-up is running here; waiting for it"; flock 9; }
  ready && exit 0
fi

# The real interpreter behind a name (a pyenv shim, a link, an activated environment), or nothing when it is too old or broken.
real_python() {
  "$1" -I -c 'import sys
v = sys.version_info[:2]
if not v >= (3, 12): sys.exit(1)
print(getattr(sys, "_base_executable", None) or sys.executable)' 2>/dev/null
}
any_python() { local c; for c in python3 python python3.11 python3.10 python3.9; do "$c" -I -m pip --version >/dev/null 2>&1 && { echo "$c"; return 0; }; done; return 1; }

find_uv() {
  local c
  for c in "${UV:-}" "$(command -v uv || true)" "$ROOT/.uv/bin/uv" "$VENV/bin/uv" "${HOME:-/nowhere}/.local/bin/uv" "${HOME:-/nowhere}/.cargo/bin/uv"; do
    [ -n "$c" ] && [ -x "$c" ] && "$c" --version >/dev/null 2>&1 && { echo "$c"; return 0; }
  done
  return 1
}
# uv itself comes from the lock too, with its hashes, into a folder of its own.
fetch_uv() {
  local py=$1 req=$ROOT/.uv/requirements.txt
  mkdir -p "$ROOT/.uv"
  awk '/^[^ ]/ { on = /^uv==/ } on' "$LOCK" >"$req"
  say "fetching uv with pip"
  { "$py" -m venv "$ROOT/.uv" && "$ROOT/.uv/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r "$req"; } >"$ROOT/.uv/log" 2>&1 ||
    { "$py" -m venv --without-pip "$ROOT/.uv" && "$py" -m pip --python "$ROOT/.uv/bin/python" install -q --require-hashes -r "$req"; } >>"$ROOT/.uv/log" 2>&1 || return 1
  [ -x "$ROOT/.uv/bin/uv" ]
}

find_python() {
  local c p root
  for c in python3.12 python3 python python3.13; do
    p=$(real_python "$c") && { echo "$p"; return; }
  done
  for root in "${PYENV_ROOT:-}" "${HOME:-/nowhere}/.pyenv" "$(pyenv root 2>/dev/null || true)"; do
    [ -n "$root" ] || continue
    for c in "$root"/versions/3.12*/bin/python "$root"/versions/3.13*/bin/python; do
      [ -x "$c" ] && p=$(real_python "$c") && { echo "$p"; return; }
    done
  done
  local uv any
  if ! uv=$(find_uv); then
    if any=$(any_python) && fetch_uv "$any"; then uv=$(find_uv) || uv=; fi
  fi
  if [ -n "${uv:-}" ]; then
    p=$("$uv" python find --no-project '>=3.12' 2>/dev/null) && p=$(real_python "$p") && { echo "$p"; return; }
    say "no Python >= 3.12 here; fetching one with uv"
    "$uv" python install 3.12 >&2 || UV_SYSTEM_CERTS=1 "$uv" python install 3.12 >&2 || true
    p=$("$uv" python find --no-project '>=3.12' 2>/dev/null) && p=$(real_python "$p") && { echo "$p"; return; }
  fi
  if command -v pyenv >/dev/null; then
    say "building Python 3.12 with pyenv; this takes some minutes"
    pyenv install -s 3.12 >&2 || true
    for c in "$(pyenv root)"/versions/3.12*/bin/python; do p=$(real_python "$c") && { echo "$p"; return; }; done
  fi
  return 1
}

if [ -n "${PYTHON:-}" ]; then
  python=$(real_python "$PYTHON") || die "PYTHON=$PYTHON is not a working Python >= 3.12." "Give the path of one, or leave PYTHON out and let this script look."
else
  python=$(find_python) || die "no Python >= 3.12 found, and none could be fetched." \
  "Do one of these, then run make again:" \
  "  pyenv install 3.12              (no root needed)" \
  "  uv python install 3.12          (no root needed)" \
  "  install the system packages python3.12 and python3.12-venv (needs root: ask who runs the machine)" \
  "  make PYTHON=/path/to/python3.12 ..." \
  "Found: $(for c in python3 python; do command -v $c >/dev/null && printf '%s = %s; ' "$c" "$($c --version 2>&1 | head -1)"; done)"
fi
say "$("$python" -V) at $python"

if ! "$VENV/bin/python" -I -c 'import sys; sys.exit(sys.version_info[:2] < (3, 12))' 2>/dev/null; then
  rm -rf "$VENV"
  uv=$(find_uv) || { fetch_uv "$python" && uv=$ROOT/.uv/bin/uv; } || uv=
  { [ -n "$uv" ] && "$uv" venv -q --no-project --python "$python" "$VENV"; } || "$python" -m venv "$VENV" ||
    die "$python cannot make a virtual environment." \
      "On Debian and Ubuntu the system package python3-venv would help (needs root); uv or pyenv need none."
fi

install_with_uv() {
  local uv install; uv=$(find_uv) || { fetch_uv "$VENV/bin/python" 2>/dev/null && uv=$ROOT/.uv/bin/uv; } || return 1
  install=("$uv" pip install -q --python "$VENV/bin/python")
  # From the cache alone where it has everything: then no network is needed.
  { "${install[@]}" --offline --require-hashes --compile-bytecode -r "$LOCK" 2>/dev/null ||
    "${install[@]}" --require-hashes --compile-bytecode -r "$LOCK"; } &&
    "${install[@]}" --no-deps --no-build-isolation -e .
}
# pip reads its own configuration (a company mirror, say), which uv does not.
install_with_pip() {
  "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$VENV/bin/python" -m ensurepip >/dev/null 2>&1 || return 1
  "$VENV/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r "$LOCK" &&
    "$VENV/bin/python" -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
}
rm -f "$STAMP"
say "installing $(grep -c '^[a-zA-Z0-9]' "$LOCK") locked packages into ${VENV#"$ROOT"/}"
install_with_uv || { say "trying uv with the system's certificates"; UV_SYSTEM_CERTS=1 install_with_uv; } || { say "uv could not; trying pip"; install_with_pip; } || die "the packages could not be installed." \
  "The first set-up needs a package index. Behind a mirror set PIP_INDEX_URL (and UV_DEFAULT_INDEX) and run make again." \
  "Nothing outside this folder was changed."
say "compiling the numerical kernels"
"$VENV/bin/python" tools/warm_up.py >/dev/null 2>&1 || say "the kernels will compile when they are first used"
wanted >"$STAMP"
say "ready in ${SECONDS} s"
