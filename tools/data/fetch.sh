#!/usr/bin/env bash
# Gets real images out of packages of npm, Debian and PyPI, through these registries' own clients, and arranges them in plain
# folders that dtk reads. Versions and checksums are pinned; nothing of this belongs into the repository.
#
#   tools/data/fetch.sh [--out data] [--require] [SET ..]
#
#   fashion-mnist   60,000 + 10,000 grey pictures of clothes, 28x28, 10 classes      IDX files      Debian   MIT
#   emoji-google    drawings with alpha, 64x64, 9 categories as sub-folders          PNG            npm      Apache-2.0 (Noto)
#   emoji-twitter   the same concepts, drawn by others, under the same names         PNG            npm      CC-BY-4.0 (Twemoji)
#   emoji-fluent    the same concepts, rendered in three dimensions, 256x256         WebP           npm      MIT
#   stamps          photographs with alpha, about 150x150, classes as sub-folders    PNG            Debian   GPL-2
#   backgrounds     photographs and textures, shrunk to 640 pixels                   PNG            PyPI, Debian   see the packages
#
# A set that cannot be had is skipped and the reason is printed, at once and at the end; with --require that is a failure.
# What is there already is not fetched again. Packages stay in data/packages; remove data/SET to have a set arranged again.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

out=data require=0 sets=()
while [ $# -gt 0 ]; do
    case $1 in
        --out) out=${2:?--out needs a folder} && shift ;;
        --require) require=1 ;;
        -h | --help) sed -n '2,18s/^# \{0,1\}//p' "$0" && exit 0 ;;
        -*) echo "unknown option $1; see --help" >&2 && exit 2 ;;
        *) sets+=("$1") ;;
    esac
    shift
done
all=(fashion-mnist emoji-google emoji-twitter emoji-fluent stamps backgrounds)
[ ${#sets[@]} -gt 0 ] || sets=("${all[@]}")
for s in "${sets[@]}"; do
    [[ " ${all[*]} " == *" $s "* ]] || { echo "there is no set $s; there are: ${all[*]}" >&2; exit 2; }
done
mkdir -p "$out/packages" || exit 1
out=$(cd "$out" && pwd)
packages=$out/packages
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# apt's downloads run as a user of their own, who must reach the folder.
chmod 755 "$work"

reason=
fail() {
    reason=$1
    return 1
}

have() { command -v "$1" >/dev/null 2>&1 || fail "$1 is not installed"; }

# package FILE SHA256 COMMAND ..: the file in data/packages, fetched by the command, which leaves it in the current folder.
package() {
    local file=$1 sum=$2
    shift 2
    if [ ! -f "$packages/$file" ]; then
        have "$1" || return 1
        local log
        log=$(cd "$work" && "$@" 2>&1 >/dev/null) || { fail "\`$*\` failed: $(tail -n 1 <<<"$log")"; return 1; }
        [ -f "$work/$file" ] || { fail "\`$*\` left no $file"; return 1; }
        mv "$work/$file" "$packages/$file" || return 1
    fi
    echo "$sum  $packages/$file" | sha256sum --check --status || { fail "$file has another checksum; remove it and try again"; return 1; }
}

npm_pack() { # NAME VERSION SHA256
    local file=${1#@}
    file=${file//\//-}-$2.tgz
    package "$file" "$3" npm pack --silent "$1@$2" || return 1
    mkdir -p "$work/unpacked" && tar -xzf "$packages/$file" -C "$work/unpacked" || fail "$file cannot be unpacked"
}

deb() { # NAME VERSION SHA256
    local file=$1_$2_all.deb
    have dpkg-deb || return 1
    if ! package "$file" "$3" apt-get download "$1=$2"; then
        # Lists that were never fetched are no reason to give up, where that is allowed.
        [[ $reason == *apt-get* && $(id -u) == 0 ]] && apt-get update -qq >/dev/null 2>&1 || return 1
        package "$file" "$3" apt-get download "$1=$2" || return 1
    fi
    mkdir -p "$work/unpacked" && dpkg-deb -x "$packages/$file" "$work/unpacked" || fail "$file cannot be unpacked"
}

# pip download for one platform, so that the file and its checksum do not depend on the machine.
wheel() { # NAME VERSION FILE SHA256
    package "$3" "$4" python3 -m pip download --quiet --no-deps --only-binary :all: --python-version 311 --implementation cp \
        --abi cp311 --platform manylinux_2_28_x86_64 "$1==$2" || return 1
    mkdir -p "$work/unpacked" && python3 -m zipfile -e "$packages/$3" "$work/unpacked" || fail "$3 cannot be unpacked"
}

# Pillow in an environment of its own; the same version gives the same pixels.
pillow() {
    local venv=$packages/venv
    "$venv/bin/python" -c 'import PIL; assert PIL.__version__ == "13.0.0"' 2>/dev/null && return
    python3 -m venv "$venv" && "$venv/bin/python" -m pip install --quiet pillow==13.0.0 || fail "pillow 13.0.0 cannot be installed"
}

arrange() { # PYTHON SET
    local log
    log=$("$1" "$here/prepare.py" "$2" "$work/unpacked" "$work/ready" 2>&1) || { fail "prepare.py failed: $(tail -n 1 <<<"$log")"; return 1; }
    echo "$log"
}

get() {
    case $1 in
        fashion-mnist)
            deb dataset-fashion-mnist 0.0~git20200523.55506a9-1 39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0
            ;;
        emoji-google)
            npm_pack emoji-datasource-google 16.0.0 fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438
            ;;
        emoji-twitter)
            npm_pack emoji-datasource-twitter 16.0.0 f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877
            ;;
        emoji-fluent)
            # Its own package has no categories.
            npm_pack emoji-datasource-google 16.0.0 fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438 &&
                mv "$work/unpacked" "$work/names" &&
                npm_pack @lobehub/fluent-emoji-3d 1.1.0 c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58 &&
                mv "$work/names/package/emoji.json" "$work/unpacked/package/"
            ;;
        stamps)
            deb tuxpaint-stamps-default 2022.06.04-1 6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34
            ;;
        backgrounds)
            wheel scikit-image 0.26.0 scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl \
                74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af &&
                deb mate-backgrounds 1.26.0-1 7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04 && pillow
            ;;
    esac
}

python=python3
have python3 || { echo "$reason" >&2; exit 1; }
skipped=()
for s in "${sets[@]}"; do
    if [ -d "$out/$s" ]; then
        echo "$s: there already"
        continue
    fi
    rm -rf "$work/unpacked" "$work/names" "$work/ready"
    reason="unknown"
    [ "$s" = backgrounds ] && python=$packages/venv/bin/python || python=python3
    if get "$s" && arrange "$python" "$s" && mv "$work/ready" "$out/$s"; then
        echo "$s: $(find "$out/$s" -type f | wc -l) files, $(du -sh "$out/$s" | cut -f1), in $out/$s"
    else
        echo "$s: skipped: $reason"
        skipped+=("$s ($reason)")
    fi
done
if [ ${#skipped[@]} -gt 0 ]; then
    echo "skipped ${#skipped[@]} of ${#sets[@]} sets:"
    printf '  %s\n' "${skipped[@]}"
    [ "$require" = 0 ] || exit 1
fi
