# Sourced by the checks beside it. Tells a message when deskbook itself could not: by SLACK_WEBHOOK with curl, by SYSLOG_ADDRESS or the local log with
# logger. No `set -e` here or in the checks: a command that fails is what they are looking for.
alarm() {
  text=$(printf '%s' "$1" | LC_ALL=C tr -c '[:print:]' ' ' | tr '"\\' '  ' | cut -c1-500)
  if [ -n "${SLACK_WEBHOOK:-}" ]; then
    # The address is a secret: not an argument, which everybody on the machine can read.
    printf 'url = "%s"\n' "$SLACK_WEBHOOK" | curl --config - --fail --silent --max-time 10 --retry 2 --header 'Content-Type: application/json' \
      --data "{\"text\": \"[high] $text\"}" >/dev/null 2>&1 || echo "the webhook was not reached" >&2
  fi
  case "${SYSLOG_ADDRESS:-}" in
    "") logger --priority daemon.crit --tag deskbook "$text" 2>/dev/null ;;
    /*) logger --socket "$SYSLOG_ADDRESS" --priority daemon.crit --tag deskbook "$text" ;;
    *) logger --server "${SYSLOG_ADDRESS%:*}" --port "${SYSLOG_ADDRESS##*:}" --udp --priority daemon.crit --tag deskbook "$text" ;;
  esac || echo "syslog was not reached" >&2
  echo "$text" >&2
}

# check "what it is" command...: runs it, and sounds the alarm unless it came to its end and told people by itself, which its last line says. A code alone
# does not say so: a program that is broken ends with 1, and one that is called wrongly with 2.
check() {
  name=$1; shift
  said=$("$@" 2>&1); code=$?
  printf '%s\n' "$said"
  case $said in
    checked | *"
checked") ;;
    *) alarm "$name could not be checked: exit code $code, $(printf '%s' "$said" | tail -n 5)" ;;
  esac
  return $code
}
