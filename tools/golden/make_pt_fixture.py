#!/usr/bin/env python3
"""Writes the two small torch.save files that the tests of `src/checkpoint` read.

    python tools/golden/make_pt_fixture.py tests/fixtures

Any PyTorch from 1.6 on will do. All values follow from indices, so that the tests state them as formulas:
element i of a float tensor is i / 4 - 1, of an integer tensor i - 2.
"""

import os
import sys
from collections import OrderedDict

import torch


def floats(*shape, dtype=torch.float32):
    n = int(torch.Size(shape).numel())
    return (torch.arange(n, dtype=torch.float64) / 4 - 1).reshape(shape).to(dtype)


def ints(*shape, dtype):
    n = int(torch.Size(shape).numel())
    return (torch.arange(n) - 2).reshape(shape).to(dtype)


def training_checkpoint():
    """A DataParallel model with its optimiser, as training scripts save it."""
    model = torch.nn.Sequential(OrderedDict(conv1=torch.nn.Conv2d(3, 4, 3, bias=False), bn1=torch.nn.BatchNorm2d(4)))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(floats(*p.shape))
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(p.sum() for p in model.parameters()).backward()
    opt.step()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(floats(*p.shape))
    return {
        "state_dict": OrderedDict(("module." + k, v) for k, v in model.state_dict().items()),
        "optimizer": opt.state_dict(),
        "epoch": 3,
        "best": 0.75,
        "arch": "tiny",
        "none": None,
    }


def kinds_and_views():
    """Every element type, and views that share one storage."""
    base = floats(4, 6)
    out = OrderedDict()
    for name in ("float32", "float64", "float16", "bfloat16"):
        out[name] = floats(2, 3, dtype=getattr(torch, name))
    for name in ("int64", "int32", "int16", "int8"):
        out[name] = ints(5, dtype=getattr(torch, name))
    out["uint8"] = torch.arange(5, dtype=torch.uint8)
    out["bool"] = torch.tensor([True, False, True])
    out["base"] = base
    out["transposed"] = base.t()
    out["slice"] = base[1:3]
    out["columns"] = base[:, 1::2]
    out["expanded"] = base[0, :2].reshape(2, 1).expand(2, 3)
    out["scalar"] = torch.tensor(2.5)
    out["empty"] = torch.zeros(0, 3)
    out["parameter"] = torch.nn.Parameter(floats(2))
    out["size"] = torch.Size([1, 2])
    out["device"] = torch.device("cpu")
    out["dtype"] = torch.float16
    return out


if __name__ == "__main__":
    folder = sys.argv[1]
    torch.save(training_checkpoint(), os.path.join(folder, "torch_training.pt"))
    torch.save(kinds_and_views(), os.path.join(folder, "torch_kinds.pt"), pickle_protocol=4)
