#!/usr/bin/env bash
# Prints the Python with which tools/check_export.py runs: the `python3` on the path if it has timm, torch and torchvision, else
# one in .venv-export, on Debian's torch and torchvision (150 MB, without CUDA), which need root or sudo. Fails, with the
# reason, where neither can be had.
set -euo pipefail
cd "$(dirname "$0")/.."

has_all() { "$1" -c "import timm, torch, torchvision" >/dev/null 2>&1; }
own=.venv-export/bin/python
for python in python3 "$own"; do
    if has_all "$python"; then
        command -v "$python"
        exit 0
    fi
done
if ! tools/apt.sh python3-torch python3-torchvision python3-venv; then
    echo "no torch: pip install -r tools/check_export_requirements.txt" >&2
    exit 1
fi
# Debian's Python, for which these packages are; timm brings no torch of its own.
/usr/bin/python3 -m venv --clear --system-site-packages .venv-export >&2
"$own" -m pip install -q huggingface_hub==1.24.0 pyyaml safetensors==0.8.0 >&2
"$own" -m pip install -q --no-deps timm==1.0.31 >&2
has_all "$own" || { echo "timm, torch and torchvision are installed in .venv-export, and cannot be imported" >&2; exit 1; }
command -v "$own"
