#!/bin/sh
# Installs what ptxsim's tests and its command use from NVIDIA into a virtual environment: the compiler NVRTC, whose PTX
# is interpreted, and nvdisasm for the static view. Nothing of it is needed to build. Does nothing where both are there.
#
#   tools/ptxsim/setup.sh [folder of the environment; default .venv at the repository's root]
set -eu

# NVRTC 13.0 emits PTX ISA 9.0, which drivers from 580 on load. There is no nvdisasm 13.0; this one reads its cubins.
nvrtc=13.0.88
nvdisasm=13.5.37

root=$(cd "$(dirname "$0")/../.." && pwd)
venv=${1:-$root/.venv}

present() {
    for packages in "$venv"/lib/python3*/site-packages; do
        if [ -d "$packages/nvidia_cuda_nvrtc-$nvrtc.dist-info" ] && [ -f "$packages/nvidia/cu13/lib/libnvrtc.so.13" ] &&
            [ -d "$packages/nvidia_cuda_nvdisasm-$nvdisasm.dist-info" ] && [ -x "$packages/nvidia/cu13/bin/nvdisasm" ]
        then
            return 0
        fi
    done
    return 1
}

if ! present; then
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
        "nvidia-cuda-nvrtc==$nvrtc" "nvidia-cuda-nvdisasm==$nvdisasm"
    present || {
        echo "setup.sh: installed, but the files are not where they are looked for, below $venv" >&2
        exit 1
    }
fi
echo "NVRTC $nvrtc and nvdisasm $nvdisasm are in $venv"
