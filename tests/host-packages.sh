#!/bin/sh
# host-packages.sh LIST STAMP: install the Debian packages of LIST that are missing, once. Without root or
# apt-get it says what is missing and goes on: tests that need it skip with the reason.
set -eu
list=$1 stamp=$2
mkdir -p "$(dirname "$stamp")"

missing=""
if command -v dpkg-query >/dev/null 2>&1; then
    for name in $(sed 's/#.*//' "$list"); do
        status=$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null || true)
        [ "$status" = installed ] || missing="$missing $name"
    done
    # Debian ships the venv module's pip in a package of its own.
    "${PYTHON:-python3}" -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
else
    echo "not a Debian-like host: what of $(sed 's/#.*//' "$list" | tr '\n' ' ')is missing is not known"
fi

if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "missing host packages:$missing (as root: apt-get install$missing)"
        exit 0
    fi
    echo "installing host packages:$missing"
    export DEBIAN_FRONTEND=noninteractive
    options="-qq -o Acquire::http::Timeout=15 -o Acquire::Retries=1 -o Dpkg::Use-Pty=0"
    # shellcheck disable=SC2086
    if ! { apt-get $options update && apt-get $options install --yes --no-install-recommends $missing; } >/dev/null; then
        echo "they could not be installed; tests that need them will say so"
        exit 0
    fi
fi
touch "$stamp"
