#!/usr/bin/env bash
# Prints the Chromium with which tests/report.rs looks at the report: one that is there, else Debian's package, which needs
# root or sudo. Fails, with the reason, where neither can be had.
set -euo pipefail

for name in ${DTK_CHROMIUM:+"$DTK_CHROMIUM"} chromium chromium-browser google-chrome; do
    if command -v "$name"; then
        exit 0
    fi
done
root=()
if [ "$(id -u)" != 0 ]; then
    if ! sudo -n true 2>/dev/null; then
        echo "no Chromium, and no rights to install it: apt-get install chromium" >&2
        exit 1
    fi
    root=(sudo -n)
fi
if ! command -v apt-get >/dev/null; then
    echo "no Chromium, and no apt-get: install it, or name it in DTK_CHROMIUM" >&2
    exit 1
fi
"${root[@]}" apt-get update -qq >&2
# A page without a font has no text to look at.
"${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >&2
command -v chromium
