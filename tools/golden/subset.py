"""Cuts a set of golden reference values down to one that is small enough for the repository.

    python3 tools/golden/subset.py --from <folder of a whole set> --to tests/golden

Sections ops, losses, optimisers, convnext and end_to_end stay whole, as does the smallest file of adm_tiny. Of the teachers
of end_to_end the weights are kept, of diffusion the tables and the forward process; such files are marked with
`"subset": true` in the manifest. As far as there is room, files of diffusion, resnet and fpn_ppm are then kept whole.
"""

import argparse
import hashlib
import json
import struct
from pathlib import Path

LIMIT = 12 * 1024 * 1024
WHOLE = ("ops", "losses", "optimisers", "convnext", "end_to_end")
IF_ROOM = ("diffusion", "resnet", "fpn_ppm")


def read(path):
    """Tensors of a safetensors file: name -> (dtype, shape, bytes)."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    body = data[8 + size :]
    return {n: (i["dtype"], i["shape"], body[slice(*i["data_offsets"])]) for n, i in header.items()}


def encode(tensors):
    """A safetensors file, the larger elements first so that every tensor is aligned."""
    width = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1}
    header, body = {}, b""
    for name in sorted(tensors, key=lambda n: (-width[tensors[n][0]], n)):
        dtype, shape, data = tensors[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def trim_teacher(tensors, entry):
    """The weights."""
    return {n: t for n, t in tensors.items() if n.startswith("model.")}


def trim_diffusion(tensors, entry):
    """Everything but the images of the DDIM runs."""
    images = [f"{run}.{what}" for run in entry.get("ddim", {}) for what in ("samples", "pred_xstart")]
    return {n: t for n, t in tensors.items() if n not in images and n != "ddim.x_start"}


TRIM = {"teacher": trim_teacher, "diffusion": trim_diffusion}


def rewrite(entry, tensors, data):
    """The manifest entry of a trimmed file."""
    entry = dict(entry)
    entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), tensors=len(tensors), subset=True)
    for key in ("f64_tensors", "shapes"):
        if isinstance(entry.get(key), list):
            entry[key] = [n for n in entry[key] if n in tensors]
        elif isinstance(entry.get(key), dict):
            entry[key] = {n: s for n, s in entry[key].items() if n in tensors}
    return entry


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="folder of the whole set")
    parser.add_argument("--to", dest="target", type=Path, required=True, help="folder to write, created if absent")
    args = parser.parse_args()

    manifest = json.loads((args.source / "manifest.json").read_text())
    files = manifest["files"]
    for name, entry in files.items():
        digest = hashlib.sha256((args.source / name).read_bytes()).hexdigest()
        if digest != entry["sha256"]:
            raise SystemExit(f"{args.source / name}: its sha256 is not the manifest's")

    adm = [n for n, e in files.items() if e["section"] == "adm_tiny"]
    smallest = min(adm, key=lambda n: files[n]["bytes"], default=None)
    teachers = {e["teacher"] for e in files.values() if e["section"] == "end_to_end"} - {smallest}
    kept, contents = {}, {}

    def document():
        return json.dumps({**manifest, "files": kept}, separators=(",", ":")) + "\n"

    def total():
        return len(document()) + sum(map(len, contents.values()))

    for name, entry in files.items():
        section = "teacher" if name in teachers else entry["section"]
        if section in WHOLE or name == smallest:
            kept[name], contents[name] = entry, (args.source / name).read_bytes()
        elif section in TRIM:
            tensors = TRIM[section](read(args.source / name), entry)
            contents[name] = encode(tensors)
            # A teacher without recorded features is no case of its own.
            kept[name] = rewrite({**entry, "section": section}, tensors, contents[name])
    for section in IF_ROOM:
        for name, entry in files.items():
            if entry["section"] == section:
                before = dict(kept), dict(contents)
                kept[name], contents[name] = entry, (args.source / name).read_bytes()
                if total() > LIMIT:
                    kept, contents = before
    if total() > LIMIT:
        raise SystemExit(f"the subset has {total()} bytes, more than {LIMIT}; trim more")

    args.target.mkdir(parents=True, exist_ok=True)
    for name in files:
        (args.target / name).unlink(missing_ok=True)
    for name, data in contents.items():
        (args.target / name).write_bytes(data)
    (args.target / "manifest.json").write_text(document())
    for name, data in contents.items():
        print(f"{len(data):9} {name}{' (subset)' if kept[name].get('subset') else ''}")
    print(f"{total():9} of {LIMIT} bytes")


if __name__ == "__main__":
    main()
