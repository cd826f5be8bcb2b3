#!/usr/bin/env bash
# Installs packages of Debian, as root or by sudo, and says nothing on standard output. Fails, with the reason, where that cannot
# be done.
#
#   tools/apt.sh PACKAGE ..
set -euo pipefail

root=()
if [ "$(id -u)" != 0 ]; then
    if ! sudo -n true 2>/dev/null; then
        echo "no rights to install packages: apt-get install $*" >&2
        exit 1
    fi
    root=(sudo -n)
fi
if ! command -v apt-get >/dev/null; then
    echo "there is no apt-get to install $*" >&2
    exit 1
fi
"${root[@]}" apt-get update -qq >&2
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >&2
