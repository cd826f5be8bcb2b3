#!/usr/bin/env bash
# Prints the Chromium with which tests/report.rs looks at the report: one that is there, else Debian's package, which needs
# root or sudo. Fails, with the reason, where neither can be had.
set -euo pipefail
cd "$(dirname "$0")/.."

for name in ${DTK_CHROMIUM:+"$DTK_CHROMIUM"} chromium chromium-browser google-chrome; do
    if command -v "$name"; then
        exit 0
    fi
done
# A page without a font has no text to look at.
if ! tools/apt.sh chromium fonts-dejavu-core; then
    echo "no Chromium: install it, or name it in DTK_CHROMIUM" >&2
    exit 1
fi
command -v chromium
