#!/usr/bin/env python3
"""The yardstick of `dtk bench conv`: the same convolutions in PyTorch (cuDNN), channels last.

    python3 tools/torch_conv.py --shapes dtk.json --out torch.json [--seconds 0.05] [--budget 60]
    python3 tools/torch_conv.py --shapes dtk.json --dry-run     what would be timed
    python3 tools/torch_conv.py --selftest                      checks of itself; needs no PyTorch

Shapes and element types are those of the rows with a `convolution` in a file that `dtk bench conv --json` wrote, with or
without times. The result is a part in the same format (docs/formats.md), to be merged with `dtk bench --merge`.

Every convolution is timed as dtk times it: random inputs, several sets in turn where they would fit the second-level
cache, `cudnn.benchmark` on, calls captured into a CUDA graph where that works, events around it. Once with bias, as the
teacher computes it, and once without, because PyTorch adds the bias in a pass of its own.
"""

import argparse
import json
import math
import os
import sys
import time

WARM_UP = 3
SAMPLES = (3, 50)
# One sample covers about this many milliseconds of calls, so that the clock's resolution does not matter.
SAMPLE_MS = 2.0


def rounded(ms):
    """Four digits, as dtk keeps them."""
    return float(f"{ms:.3e}")


def wanted(path):
    """The distinct (convolution, dtype) of a file of measurements, in its order."""
    with open(path) as f:
        results = json.load(f)
    if (results.get("format"), results.get("version")) != ("dtk-bench", 1):
        raise SystemExit(f"{path}: not a dtk-bench file of version 1")
    found = []
    for row in results.get("rows", []):
        key = (row.get("convolution"), row["dtype"])
        if key[0] and key not in found:
            found.append(key)
    return found


def write(path, torch_part):
    """Writes the part under a temporary name, then renames it: a killed run leaves what it had."""
    part = {"format": "dtk-bench", "version": 1, "torch": torch_part}
    with open(path + ".tmp", "w") as f:
        json.dump(part, f)
    os.replace(path + ".tmp", path)


def repeat(seconds, sample):
    """Calls `sample`, which gives milliseconds, for about `seconds`."""
    start, ms = time.monotonic(), []
    while len(ms) < SAMPLES[0] or (len(ms) < SAMPLES[1] and time.monotonic() - start < seconds):
        ms.append(rounded(sample()))
    return ms


class Bench:
    """Times convolutions on one device."""

    def __init__(self, device):
        import torch

        self.torch, self.cuda = torch, device.startswith("cuda")
        if self.cuda and not torch.cuda.is_available():
            raise SystemExit("PyTorch sees no CUDA device; --device cpu times the processor")
        self.device = torch.device(device)
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        # As dtk's: f32 products are f32 products.
        torch.backends.cudnn.allow_tf32 = False
        self.l2 = 0
        if self.cuda:
            self.l2 = getattr(torch.cuda.get_device_properties(self.device), "L2_cache_size", 0) or 64 << 20

    def describe(self):
        torch = self.torch
        return {
            "torch": torch.__version__,
            "cuda": torch.version.cuda or "" if self.cuda else "",
            "cudnn": torch.backends.cudnn.version() or 0 if self.cuda else 0,
            "device": torch.cuda.get_device_name(self.device) if self.cuda else "cpu",
            "rows": [],
            "errors": [],
        }

    def time_ms(self, calls):
        """Milliseconds of all calls once."""
        if not self.cuda:
            start = time.perf_counter()
            calls()
            return 1e3 * (time.perf_counter() - start)
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        calls()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def samples(self, functions, seconds):
        """Times of one call, over the functions in turn."""
        for f in functions:
            for _ in range(WARM_UP):
                f()
        once = min(self.time_ms(functions[0]) for _ in range(2))
        inner = max(len(functions), min(256, math.ceil(SAMPLE_MS / max(once, 1e-3)))) if self.cuda else 1

        def calls():
            for i in range(inner):
                functions[i % len(functions)]()

        if self.cuda and inner > 1:
            try:
                graph = self.torch.cuda.CUDAGraph()
                with self.torch.cuda.graph(graph):
                    calls()
                calls = graph.replay
            except RuntimeError:
                self.torch.cuda.synchronize()
        self.time_ms(calls)
        return repeat(seconds, lambda: self.time_ms(calls) / inner)

    def convolution(self, g, dtype, seconds):
        torch, last = self.torch, self.torch.channels_last
        kind = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]
        x_shape = (g["n"], g["ci"], g["h"], g["w"])
        w_shape = (g["co"], g["ci"] // g["groups"], g["kh"], g["kw"])
        y_elems = g["n"] * g["co"] * g["ho"] * g["wo"]
        one = kind.itemsize * (math.prod(x_shape) + math.prod(w_shape) + y_elems)
        sets = max(1, min(8, math.ceil(3 * self.l2 / one))) if self.cuda else 1
        make = lambda shape: torch.randn(shape, device=self.device, dtype=kind)
        xs = [make(x_shape).contiguous(memory_format=last) for _ in range(sets)]
        scale = math.sqrt(math.prod(w_shape[1:]))
        ws = [(make(w_shape) / scale).contiguous(memory_format=last) for _ in range(sets)]
        bias = make((g["co"],))
        options = (g["stride"], g["pad"], g["dilation"], g["groups"])
        call = lambda x, w, b: lambda: torch.nn.functional.conv2d(x, w, b, *options)
        with torch.no_grad():
            return {
                "convolution": g,
                "dtype": dtype,
                "ms": self.samples([call(x, w, bias) for x, w in zip(xs, ws)], seconds),
                "no_bias_ms": self.samples([call(x, w, None) for x, w in zip(xs, ws)], seconds),
            }


def name(g):
    return f"[{g['n']}, {g['h']}, {g['w']}, {g['ci']}] -> {g['co']}, {g['kh']}x{g['kw']}"


def measure(args):
    start = time.monotonic()
    todo = wanted(args.shapes)
    bench = Bench(args.device)
    part = bench.describe()
    for i, (g, dtype) in enumerate(todo):
        if time.monotonic() - start > args.budget:
            part["errors"].append(f"{len(todo) - i} of {len(todo)} convolutions left out: over {args.budget:.0f} s")
            break
        try:
            row = bench.convolution(g, dtype, args.seconds)
        except RuntimeError as e:
            part["errors"].append(f"{name(g)} {dtype}: {str(e).splitlines()[0][:200]}")
            continue
        part["rows"].append(row)
        write(args.out, part)
        median = sorted(row["ms"])[len(row["ms"]) // 2]
        print(f"torch {name(g):44} {dtype:5} {median:9.4f} ms", flush=True)
    write(args.out, part)


def selftest():
    import tempfile

    g = dict(n=1, h=2, w=2, ci=3, co=4, kh=1, kw=1, ho=2, wo=2, stride=[1, 1], pad=[0, 0], dilation=[1, 1], groups=1)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.json")
        rows = [{"dtype": "bf16", "convolution": g}, {"dtype": "bf16"}, {"dtype": "bf16", "convolution": dict(g)}]
        with open(path, "w") as f:
            json.dump({"format": "dtk-bench", "version": 1, "rows": rows}, f)
        assert wanted(path) == [(g, "bf16")], wanted(path)
        write(path, {"rows": []})
        with open(path) as f:
            assert json.load(f)["torch"] == {"rows": []}
        assert os.listdir(folder) == ["a.json"]
        with open(path, "w") as f:
            json.dump({"format": "dtk-bench", "version": 2}, f)
        try:
            wanted(path)
            raise AssertionError("a file of another version was read")
        except SystemExit:
            pass
    assert repeat(0, lambda: 1.23456) == [1.235] * 3
    assert len(repeat(1e9, lambda: 1.0)) == 50
    assert name(g) == "[1, 2, 2, 3] -> 4, 1x1"
    print("selftest: ok")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", help="a file of `dtk bench conv --json`")
    parser.add_argument("--out", help="the part to write")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=0.05, help="how long to repeat every convolution")
    parser.add_argument("--budget", type=float, default=1e9, help="begin no convolution after this many seconds")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be timed")
    parser.add_argument("--selftest", action="store_true")
    args = parser.parse_args()
    if args.selftest:
        return selftest()
    if not args.shapes or not (args.out or args.dry_run):
        parser.error("--shapes and --out are needed")
    if args.dry_run:
        for g, dtype in wanted(args.shapes):
            print(f"{name(g)} {dtype}")
        return None
    return measure(args)


if __name__ == "__main__":
    sys.exit(main())
