"""Arranges the content of one package in the folder that dtk reads: prepare.py SET UNPACKED READY

    fashion-mnist                the IDX files as they are
    emoji-google, -twitter, -fluent   <category>/<code points>.png|webp: the same stem is the same concept in every style
    stamps                       <class>/<where it was>_<name>.png: cut-outs; parts of drawings are left out
    backgrounds                  <name>.png, at most 640 pixels a side (needs Pillow)

Called by fetch.sh. Standard library only, but for the last one.
"""

import json
import re
import shutil
import struct
import sys
from collections import Counter
from pathlib import Path

# Parts of the stamps' tree that hold drawings, or things with nothing in common but a feast.
NO_PHOTOGRAPHS = {"cartoon", "symbols", "roadsigns", "flags", "clothes", "seasonal"}
# A class of fewer cut-outs cannot be split into one part to learn from and another to be tested on.
FEWEST = 10
# Photographs and textures of scikit-image; its other files are microscopy of the same kind, pages of text, masks, charts.
PHOTOGRAPHS = ["astronaut.png", "brick.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png", "grass.png"]
PHOTOGRAPHS += ["gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"]
SIDE = 640


def fashion_mnist(source, ready):
    ready.mkdir()
    files = sorted((source / "usr/share/datasets/fashion-mnist").glob("*-ubyte.gz"))
    assert len(files) == 4, f"{len(files)} IDX files, 4 are expected"
    for f in files:
        shutil.copy(f, ready)


def emoji(source, ready, style):
    """One picture per concept: variants of skin colour are other files, which emoji.json lists below their concept."""
    package, count, absent = source / "package", Counter(), 0
    for e in json.loads((package / "emoji.json").read_text()):
        if e["category"] == "Component":
            continue
        code = e["image"].removesuffix(".png")
        if style == "fluent":
            # Files of this package are named with or without the variation selector, and without leading zeros.
            plain = "-".join(p for p in code.split("-") if p != "fe0f")
            names = [code, plain, code.lstrip("0"), plain.lstrip("0")]
            found = next((p for n in names if (p := package / f"assets/{n}.webp").is_file()), None)
        else:
            found = package / f"img/{style}/64/{e['image']}"
        if found is None or not found.is_file():
            absent += 1
            continue
        category = re.sub(r"[^a-z]+", "_", e["category"].lower())
        (ready / category).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found, ready / category / f"{code}{found.suffix}")
        count[category] += 1
    assert sum(count.values()) > 1500, f"only {sum(count.values())} pictures"
    tell(count)
    if absent:
        print(f"  {absent} concepts are not drawn in this style")


def has_alpha(path):
    """Whether a PNG has an alpha channel, or a transparent palette entry."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n", f"{path} is no PNG"
    at = 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IHDR" and data[at + 17] in (4, 6):
            return True
        if kind in (b"tRNS", b"IDAT"):
            return kind == b"tRNS"
        at += 12 + size
    return False


def stamps(source, ready):
    root, by_class, opaque = source / "usr/share/tuxpaint/stamps", {}, 0
    for path in sorted(root.rglob("*.png")):
        parts = path.relative_to(root).parts
        # A mirrored or flipped version of the same stamp is no other picture.
        if NO_PHOTOGRAPHS & set(parts[:-1]) or re.search(r"_(mirror|flip|mirror_flip)$", path.stem):
            continue
        if has_alpha(path):
            by_class.setdefault(parts[0], []).append(("_".join(parts[1:]), path))
        else:
            opaque += 1
    assert sum(map(len, by_class.values())) > 200, "the package is arranged otherwise than expected"
    few = {name: len(files) for name, files in by_class.items() if len(files) < FEWEST}
    for name, files in by_class.items():
        if name in few:
            continue
        (ready / name).mkdir(parents=True)
        for flat, path in files:
            shutil.copyfile(path, ready / name / flat)
    tell({name: len(files) for name, files in by_class.items() if name not in few})
    print(f"  left out: {opaque} without alpha; classes of fewer than {FEWEST}: {few}")


def backgrounds(source, ready):
    from PIL import Image

    files = [source / "skimage/data" / name for name in PHOTOGRAPHS]
    files += sorted((source / "usr/share/backgrounds/mate/nature").glob("*.jpg"))
    ready.mkdir()
    for path in files:
        image = Image.open(path).convert("RGB")
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        image.save(ready / f"{path.stem.lower()}.png")
    assert len(files) > 20, f"only {len(files)} photographs"


def tell(count):
    print("  " + ", ".join(f"{name} {n}" for name, n in sorted(count.items())))


def main(name, source, ready):
    source, ready = Path(source), Path(ready)
    if name.startswith("emoji-"):
        return emoji(source, ready, name.removeprefix("emoji-"))
    {"fashion-mnist": fashion_mnist, "stamps": stamps, "backgrounds": backgrounds}[name](source, ready)


if __name__ == "__main__":
    main(*sys.argv[1:])
