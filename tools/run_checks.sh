#!/usr/bin/env bash
# Runs the named make targets one after another, goes on after a failure, and ends with a table and one plain line.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."
passed=0 failed=0 table=""
for name in "$@"; do
  printf '\n=== %s\n' "$name"
  start=$SECONDS
  if "${MAKE:-make}" --no-print-directory "$name"; then word=ok; passed=$((passed + 1)); else word=FAILED; failed=$((failed + 1)); fi
  line=$(printf '%-18s %-7s %4d s' "$name" "$word" $((SECONDS - start)))
  printf '=== %s\n' "$line"
  table+="$line"$'\n'
done
printf '\n%s%-18s %-7s %4d s\n\nchecks: %d passed, %d failed\n' "$table" total '' "$SECONDS" "$passed" "$failed"
[ "$failed" -eq 0 ]
