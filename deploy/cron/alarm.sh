# Sourced by the checks beside it. Tells a message when deskbook itself could not: by SLACK_WEBHOOK with curl, by SYSLOG_ADDRESS or the local log with
# logger. No `set -e` here or in the checks: a command that fails is what they are looking for.
alarm() {
  text=$(printf '%s' "$1" | tr '\n\r\t"\\' '     ' | cut -c1-500)
  if [ -n "${SLACK_WEBHOOK:-}" ]; then
    curl --silent --show-error --max-time 10 --retry 2 --header 'Content-Type: application/json' --data "{\"text\": \"[high] $text\"}" "$SLACK_WEBHOOK" >/dev/null 2>&1 \
      || echo "the webhook was not reached" >&2
  fi
  case "${SYSLOG_ADDRESS:-}" in
    "") logger --priority daemon.crit --tag deskbook "$text" 2>/dev/null ;;
    /*) logger --socket "$SYSLOG_ADDRESS" --priority daemon.crit --tag deskbook "$text" ;;
    *) logger --server "${SYSLOG_ADDRESS%:*}" --port "${SYSLOG_ADDRESS##*:}" --udp --priority daemon.crit --tag deskbook "$text" ;;
  esac || echo "syslog was not reached" >&2
  echo "$text" >&2
}

# check "what it is" command...: runs it, and sounds the alarm when it did not answer with one of the codes it has.
check() {
  name=$1; shift
  said=$("$@" 2>&1); code=$?
  printf '%s\n' "$said"
  case $code in
    0 | 1 | 2 | 3) ;; # the command told people by itself
    *) alarm "$name could not be checked: exit code $code, $said" ;;
  esac
  return $code
}
