"""Loads what `dtk export` writes into timm and torchvision, strictly, and compares the features of all four stages with dtk's.

    tools/check_export.py [--dtk target/release/dtk] [--keep DIR]    with the Python that tools/export_python.sh prints
    tools/check_export.py --keys                                     writes the key lists in tests/fixtures/keys again

For a ResNet-50 and a ConvNeXt-T, dtk trains two steps with a small random teacher, so that weights, layer scales and running
statistics differ from those that every library starts with. Then

    timm          the folder through "local-dir:", the same as a .pth, single files of both formats
    torchvision   .pth and .safetensors, with the classifier replaced by the identity
    convnext      .pth of the official repository's form, which timm renames by itself when it loads
    detectron2    ResNet only, and mmseg: these libraries are not needed; torch reads the file with weights_only, its keys are
                  renamed here, independently of dtk, and loaded strictly into torchvision or timm

An error is the largest difference of a stage's features, divided by the largest feature of that stage.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE, SIDE, IMAGES = 1e-4, 96, 4
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

RECIPE = """
name = "check_export"
seed = 5
[data]
path = "images"
height = {side}
width = {side}
flip = false
[teacher]
weights = "random"
[teacher.model]
model_channels = 32
learn_sigma = true
num_res_blocks = 1
channel_mult = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
attention_ds = [8]
num_head_channels = 32
use_scale_shift_norm = true
resblock_updown = true
[diffusion]
t = 100
[student]
backbone = {{ {backbone} }}
regressor = {{ kind = "fpn_ppm", channels = 16 }}
[optimizer]
name = "adamw"
[lr]
peak = 1e-3
schedule = {{ name = "cosine", warmup = 1, warmup_prefix = true }}
[train]
batch = 2
length = 2
[run]
tensorboard = false
"""
# Every branch of every block counts: no gain and no layer scale starts at zero.
BACKBONES = {
    "resnet50": 'name = "resnet50", zero_init_last = false',
    "convnext_tiny": 'name = "convnext_tiny", layer_scale = 0.5',
}


def write_images(folder):
    """Smooth random colours with noise: as large as the network's input, so that nothing is resized or cropped."""
    rng = np.random.default_rng(7)
    folder.mkdir()
    for i in range(IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        noisy = np.asarray(coarse, dtype=np.int16) + rng.integers(-30, 31, (SIDE, SIDE, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")


def read_images(folder):
    pixels = np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob("*.png"))])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def stages(model, x, names):
    """The outputs of four modules."""
    found, hooks = {}, []
    for name in names:
        hooks.append(model.get_submodule(name).register_forward_hook(lambda m, i, o, n=name: found.update({n: o})))
    with torch.no_grad():
        model.eval()(x)
    for h in hooks:
        h.remove()
    return [found[n] for n in names]


def timm_stages(name):
    return [f"layer{i}" for i in (1, 2, 3, 4)] if "resnet" in name else [f"stages.{i}" for i in range(4)]


def torchvision_stages(name):
    return [f"layer{i}" for i in (1, 2, 3, 4)] if "resnet" in name else [f"features.{i}" for i in (1, 3, 5, 7)]


def torchvision_model(name):
    model = getattr(torchvision.models, name)(weights=None)
    if "resnet" in name:
        model.fc = torch.nn.Identity()
    else:
        model.classifier[2] = torch.nn.Identity()
    return model


def pth(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def from_detectron2(key):
    """torchvision's name of a key of Detectron2's ResNet."""
    key = re.sub(r"^stem\.", "", key)
    key = re.sub(r"^res(\d)", lambda m: f"layer{int(m[1]) - 1}", key)
    key = re.sub(r"shortcut\.norm", "downsample.1", key)
    key = re.sub(r"shortcut", "downsample.0", key)
    return re.sub(r"conv(\d)\.norm", r"bn\1", key)


def from_mmseg(key):
    """torchvision's name of a ResNet's key, timm's name of a ConvNeXt's key."""
    assert key.startswith("backbone."), key
    key = key[len("backbone.") :]
    key = key.replace("downsample_layers.0.", "stem.")
    key = re.sub(r"downsample_layers\.(\d)", r"stages.\1.downsample", key)
    key = re.sub(r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2.", key)
    key = key.replace("depthwise_conv", "conv_dw").replace("pointwise_conv", "mlp.fc")
    return re.sub(r"^norm3", "head.norm", key)


def strict(model, tensors):
    model.load_state_dict(tensors, strict=True)
    return model


def loaders(name, out):
    """(what, a model with the weights, the modules of its stages)"""
    resnet = "resnet" in name
    t, tv = timm_stages(name), torchvision_stages(name)
    empty = lambda: timm.create_model(name, num_classes=0)
    yield "timm, folder", timm.create_model(f"local-dir:{out / 'timm'}", pretrained=True, num_classes=0), t
    yield "timm, folder, pth", timm.create_model(f"local-dir:{out / 'timm_pth'}", pretrained=True, num_classes=0), t
    yield "timm, load_state_dict", strict(empty(), load_file(out / "timm/model.safetensors")), t
    single = out / "single/x.safetensors"
    yield "timm, checkpoint_path", timm.create_model(name, num_classes=0, checkpoint_path=str(single)), t
    plain = load_file(out / f"dtk/{name}.safetensors")
    if not resnet:
        plain |= {f"head.norm.{k}": v for k, v in empty().head.norm.state_dict().items()}
    yield "dtk, with timm's norm" if not resnet else "dtk", strict(empty(), plain), t
    yield "torchvision, pth", strict(torchvision_model(name), pth(out / f"torchvision/{name}.pth")), tv
    safe = load_file(out / f"torchvision_safetensors/{name}.safetensors")
    yield "torchvision, safetensors", strict(torchvision_model(name), safe), tv
    mmseg = {from_mmseg(k): v for k, v in pth(out / f"mmseg/{name}.pth")["state_dict"].items()}
    yield "mmseg, renamed here", strict(torchvision_model(name) if resnet else empty(), mmseg), t
    if resnet:
        file = pth(out / f"detectron2/{name}.pth")
        assert file["matching_heuristics"] is True and file["__author__"] == "dtk", file.keys()
        renamed = {from_detectron2(k): v for k, v in file["model"].items()}
        yield "detectron2, renamed here", strict(torchvision_model(name), renamed), tv
    else:
        official = out / f"convnext/{name}.pth"
        file = dict(file=str(official), num_classes=0)
        yield "convnext, by timm", timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=file), t


def check(dtk, name, work):
    def run(*args):
        done = subprocess.run([str(dtk), *map(str, args)], cwd=work, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"dtk {' '.join(map(str, args))}: {done.stdout}{done.stderr}")

    recipe = f"{name}.toml"
    (work / recipe).write_text(RECIPE.format(side=SIDE, backbone=BACKBONES[name]))
    run("train", "--recipe", recipe, "--out", name, "--device", "cpu", "--overwrite")
    weights = f"{name}/backbone.safetensors"
    features = f"{name}.features.safetensors"
    run("features", "--recipe", recipe, "--student", "--set", f"student.weights={weights}", "--out", features, "--device", "cpu")
    tensors = load_file(work / features)
    want = [tensors[k] for k in sorted(tensors)]

    exports = [("timm", "timm", []), ("timm", "timm_pth", ["--format", "pth"]), ("timm", "single/x.safetensors", [])]
    exports += [("torchvision", "torchvision", []), ("torchvision", "torchvision_safetensors", ["--format", "safetensors"])]
    exports += [("mmseg", "mmseg", []), ("dtk", "dtk", [])]
    exports += [("detectron2", "detectron2", [])] if "resnet" in name else [("convnext", "convnext", [])]
    for layout, out, more in exports:
        source = name if layout == "timm" else weights
        run("export", "--backbone", source, "--layout", layout, "--out", f"{name}/{out}", "--verify", "--overwrite", *more)

    x, worst = read_images(work / "images"), 0.0
    for what, model, names in loaders(name, work / name):
        got = stages(model, x, names)
        errors = []
        for a, b in zip(got, want):
            a = a if a.shape == b.shape else a.permute(0, 3, 1, 2)
            assert a.shape == b.shape, (what, a.shape, b.shape)
            assert torch.isfinite(a).all() and torch.isfinite(b).all() and float(b.abs().max()) > 0, what
            errors.append(float((a - b).abs().max() / b.abs().max()))
        worst = max(worst, *errors)
        print(f"{name:14} {what:26} errors {' '.join(f'{e:.1e}' for e in errors)}")
    return worst


def to_detectron2(key):
    """Detectron2's name of a key of torchvision's ResNet, by the rules of its own converter."""
    key = key if "layer" in key else f"stem.{key}"
    for i in (1, 2, 3, 4):
        key = key.replace(f"layer{i}", f"res{i + 1}").replace(f"bn{i}", f"conv{i}.norm")
    return key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def to_official(key, depthwise, linear, norm):
    """The official ConvNeXt's, or mmpretrain's, name of a key of timm's."""
    key = re.sub(r"^stem", "downsample_layers.0", key)
    key = re.sub(r"^stages\.(\d)\.downsample", r"downsample_layers.\1", key)
    key = key.replace(".blocks.", ".").replace("conv_dw", depthwise).replace("mlp.fc", linear)
    return key.replace("head.norm", norm)


def write_keys():
    """Names, shapes and types of the libraries' own models without their classifiers, in the order of the model. timm and
    torchvision are asked; the names of the others are those of their sources."""
    short = {torch.float32: "f32", torch.int64: "i64"}

    def write(file, tensors):
        lines = [f"{k} {list(v.shape)} {short[v.dtype]}\n" for k, v in tensors.items()]
        (ROOT / "tests/fixtures/keys" / f"{file}.txt").write_text("".join(lines))

    resnet = torchvision_model("resnet50").state_dict()
    assert list(resnet) == list(timm.create_model("resnet50", num_classes=0).state_dict())
    write("torchvision_resnet50", resnet)
    write("detectron2_resnet50", {to_detectron2(k): v for k, v in resnet.items()})
    write("torchvision_convnext_tiny", torchvision_model("convnext_tiny").state_dict())
    convnext = timm.create_model("convnext_tiny", num_classes=0).state_dict()
    write("timm_convnext_tiny", convnext)
    write("convnext_convnext_tiny", {to_official(k, "dwconv", "pwconv", "norm"): v for k, v in convnext.items()})
    mmseg = {f"backbone.{to_official(k, 'depthwise_conv', 'pointwise_conv', 'norm3')}": v for k, v in convnext.items()}
    write("mmseg_convnext_tiny", mmseg)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dtk", default=ROOT / "target/release/dtk", type=Path, help="the program")
    p.add_argument("--keep", type=Path, help="work in this folder and leave it")
    p.add_argument("--keys", action="store_true", help="write the key lists in tests/fixtures/keys again, and do nothing else")
    args = p.parse_args()
    if args.keys:
        return write_keys()
    print(f"timm {timm.__version__}, torchvision {torchvision.__version__}, torch {torch.__version__}")
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as temporary:
        work = args.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "images").exists():
            write_images(work / "images")
        worst = max(check(args.dtk.resolve(), name, work) for name in BACKBONES)
    print(f"largest error {worst:.1e}, allowed {TOLERANCE:.0e}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
