#!/bin/sh
# Once a day: a certificate that ends within 14 days is told. Needs TLS_CERTIFICATE.
#   0 6 * * * set -a; . /etc/deskbook/deskbook.env; /opt/deskbook/deploy/cron/certificate_expiry.sh
# Exit codes: 0 valid for longer, 1 cannot be read, 3 ends soon or has ended; anything else: deskbook itself could not run, which is told, too.
. "$(dirname "$0")/alarm.sh"
check "the certificate" timeout 45 "${DESKBOOK:-deskbook}" ops certificate --days "${CERTIFICATE_DAYS:-14}" --alert
exit $?
