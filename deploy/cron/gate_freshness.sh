#!/bin/sh
# Every minute: old or missing gates are told to SLACK_WEBHOOK and SYSLOG_ADDRESS, once per trouble, and when it is over.
#   * * * * * set -a; . /etc/deskbook/deskbook.env; /opt/deskbook/deploy/cron/gate_freshness.sh
# Exit codes: 0 healthy, 1 no connection, 2 no gate at all, 3 stale; anything else: deskbook itself could not run, which is told, too.
. "$(dirname "$0")/alarm.sh"
check "gate freshness" timeout 45 "${DESKBOOK:-deskbook}" ops gate-freshness --threshold "${GATE_FRESHNESS_THRESHOLD:-180}" --when-open --alert
exit $?
