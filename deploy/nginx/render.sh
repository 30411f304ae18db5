#!/bin/sh
# Writes the server configuration: TLS when CERT_BASE holds fullchain.pem and privkey.pem, else HTTP only. Called by the container before nginx starts
# (/docker-entrypoint.d), or by hand:  SERVER_NAME=desk.example deploy/nginx/render.sh /etc/nginx/conf.d/deskbook.conf
set -eu
here=$(cd "$(dirname "$0")" && pwd)
from=${TEMPLATES:-$here}
to=${1:-/etc/nginx/conf.d/default.conf}
SERVER_NAME=${SERVER_NAME:-localhost}
CERT_BASE=${CERT_BASE:-/etc/letsencrypt/live/$SERVER_NAME}
for value in "$SERVER_NAME" "$CERT_BASE" "${BACKEND_UPSTREAM:-}" "${ACME_ROOT:-}"; do
  case $value in *[!A-Za-z0-9._:/-]*) echo "render: $value cannot stand in a configuration" >&2; exit 2 ;; esac
done
if [ -s "$CERT_BASE/fullchain.pem" ] && [ -s "$CERT_BASE/privkey.pem" ]; then variant=tls; else variant=http; fi
sed -e "s|@SERVER_NAME@|$SERVER_NAME|g" -e "s|@CERT_BASE@|$CERT_BASE|g" -e "s|@BACKEND_UPSTREAM@|${BACKEND_UPSTREAM:-127.0.0.1:8000}|g" \
  -e "s|@HTTP_LISTEN@|${HTTP_LISTEN:-80}|g" -e "s|@HTTPS_LISTEN@|${HTTPS_LISTEN:-443}|g" -e "s|@ACME_ROOT@|${ACME_ROOT:-/var/www/acme}|g" \
  -e "s|@COMMON@|$from/common.conf|g" "$from/$variant.conf.in" >"$to.new"
mv "$to.new" "$to"
echo "render: $variant for $SERVER_NAME in $to" >&2
