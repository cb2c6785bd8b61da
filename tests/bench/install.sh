#!/usr/bin/env bash
# Installs what tidewall-bench compares with, where it is missing: PostgreSQL and Redis as Debian packages.
# The benchmark starts servers of its own; the ones that the packages would start are kept from starting.
set -euo pipefail

missing=()
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || missing+=(postgresql)
command -v redis-server >/dev/null || missing+=(redis-server)
if [ "${#missing[@]}" -eq 0 ]; then
  echo "PostgreSQL and Redis are installed"
  exit 0
fi

if [ "$(id -u)" -ne 0 ]; then
  echo "missing: ${missing[*]}. Run this script as root, or install them yourself" >&2
  exit 1
fi

# dpkg asks this program whether a package may start its service: not while we install.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
