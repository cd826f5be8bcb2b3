#!/usr/bin/env python3
"""The yardstick of `dtk bench step`: the distillation step of the recipe `imagenet` in PyTorch.

    python3 tools/torch_step.py --out torch.json [--batch 64] [--budget 120] [--mode max-autotune] [--variants eager,compiled]
    python3 tools/torch_step.py --selftest     every path at toy size on the CPU; without PyTorch only what needs none

The work is that of dtk's rows of the same name: bytes on the card -> inputs of student and teacher, ADM 256x256 up to its tap of
stride 4, ResNet-50 with FPN and PPM, whitened MSE and attention transfer, gradients, LAMB. bf16, channels last, random weights.

    eager, as released     group norm in f32, time embedding in every block, attention written out
    eager, tuned           norms in bf16, the constant time embedding folded into them, fused attention
    compiled (MODE), tuned the same through torch.compile

Variants are timed in turn, A B B A. Every group of them runs in a process of its own, which is ended at its time limit, so
that a compilation that takes too long costs only itself. The result is a part in dtk's format (docs/formats.md).
"""

import argparse
import copy
import json
import math
import os
import signal
import subprocess
import sys
import time

# Phases that are timed, and how often.
SAMPLES = {"teacher": 10, "whole step": 20}


def rounded(ms):
    """Four digits, as dtk keeps them."""
    return float(f"{ms:.3e}")


def write(path, torch_part):
    """Writes the part under a temporary name, then renames it: a killed run leaves what it had."""
    with open(path + ".tmp", "w") as f:
        json.dump({"format": "dtk-bench", "version": 1, "torch": torch_part}, f)
    os.replace(path + ".tmp", path)


def merged(parts):
    """The parts of the processes as one; the times of a case follow one another."""
    out = None
    for part in parts:
        if out is None:
            out = copy.deepcopy(part)
            continue
        out["errors"] += part["errors"]
        for step in part["steps"]:
            same = [s for s in out["steps"] if (s["case"], s["variant"]) == (step["case"], step["variant"])]
            same[0]["ms"].extend(step["ms"]) if same else out["steps"].append(dict(step))
    return out


def child(args, group, mode, seconds, path):
    """Measures a group of variants in a process of its own; says why it did not end well, or nothing."""
    command = [sys.executable, "-u", os.path.abspath(__file__), "--child", group, "--out", path, "--batch", str(args.batch)]
    command += ["--mode", mode, "--device", args.device, "--budget", f"{seconds:.0f}"] + (["--toy"] if args.toy else [])
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(timeout=seconds)
        return f"ended with {code}" if code else None
    except subprocess.TimeoutExpired:
        # The compiler's own processes too: they are of this child's session.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {seconds:.0f} s"


def measure(args):
    start, parts, errors = time.monotonic(), [], []
    left = lambda: args.budget - (time.monotonic() - start)
    # Where the chosen mode takes too long, a quicker one may still do.
    plan = [("eager", "none", 0.4 if "compiled" in args.variants else 1.0)] if "eager" in args.variants else []
    if "compiled" in args.variants:
        fallback = [("compiled", "default", 1.0)] if args.mode != "default" else []
        plan += [("compiled", args.mode, 0.75 if fallback else 1.0)] + fallback
    done = False
    for i, (group, mode, share) in enumerate(plan):
        if done:
            continue
        if left() < (0 if args.toy else 15):
            errors.append(f"{group} ({mode}): no time left")
            continue
        path = f"{args.out}.{i}"
        why = child(args, group, mode, max(10.0, share * left()), path)
        if why:
            errors.append(f"{group} ({mode}): {why}")
        if os.path.exists(path):
            with open(path) as f:
                parts.append(json.load(f)["torch"])
            os.remove(path)
        # A whole step must be among it.
        compiled = [s for part in parts for s in part["steps"] if s["variant"].startswith("compiled")]
        done = any(s["case"].endswith("whole step") for s in compiled)
        if parts:
            whole = merged(parts)
            write(args.out, {**whole, "errors": whole["errors"] + errors})
    if not parts:
        raise SystemExit("; ".join(errors))
    for step in merged(parts)["steps"]:
        median = sorted(step["ms"])[len(step["ms"]) // 2]
        print(f"torch {step['case']:36} {step['variant']:32} {median:9.3f} ms, {len(step['ms'])} times")
    for error in errors:
        print(error)
    return None


class Bench:
    """The step on one device."""

    def __init__(self, args):
        import torch
        import torch_models as models

        self.torch, self.models, self.args, self.cfg = torch, models, args, models.TOY if args.toy else models.ADM
        self.cuda = args.device.startswith("cuda")
        if self.cuda and not torch.cuda.is_available():
            raise SystemExit("PyTorch sees no CUDA device")
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        self.device, self.type = torch.device(args.device), args.device.split(":")[0]
        with self.device:
            teacher = models.Teacher(self.cfg).eval().requires_grad_(False)
            self.student = models.Student(self.cfg, teacher.channels).train().to(memory_format=torch.channels_last)
            self.pixels = (115 + 68 * torch.randn(args.batch, 3, self.cfg["image"], self.cfg["image"])).clamp(0, 255)
            self.mean, self.std = (torch.tensor(v)[None, :, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        self.pixels = self.pixels.to(torch.uint8).contiguous(memory_format=torch.channels_last)
        self.teachers = {}
        if args.child == "eager":
            self.teachers["eager, as released"] = teacher.released(torch.bfloat16)
        self.teachers["eager, tuned"] = teacher.tuned(torch.bfloat16)
        self.optimizer = models.Lamb(list(self.student.parameters()))
        # Beginning and end of the linear schedule.
        betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
        signal = float(torch.cumprod(1 - betas, 0)[models.TIME_STEP])
        self.signal, self.noise = math.sqrt(signal), math.sqrt(1 - signal)
        name = torch.cuda.get_device_name(self.device) if self.cuda else "cpu"
        cudnn = torch.backends.cudnn.version() or 0 if self.cuda else 0
        cuda = torch.version.cuda or "" if self.cuda else ""
        self.part = dict(torch=torch.__version__, cuda=cuda, cudnn=cudnn, device=name, rows=[], steps=[], errors=[])

    def encode(self, pixels):
        x = pixels.float() / 255
        clean = 2 * x - 1
        return (x - self.mean) / self.std, self.signal * clean + self.noise * self.torch.randn_like(clean)

    def losses(self, images, targets):
        with self.torch.autocast(self.type, dtype=self.torch.bfloat16):
            maps = self.student(images)
        return self.models.feature_loss(maps, targets)

    def variant(self, teacher, compiled):
        """Two functions: the teacher with its input, and the whole step."""
        torch, mark = self.torch, lambda: None
        see, learn = (lambda pixels: (lambda x: (x[0], teacher(x[1])))(self.encode(pixels))), self.losses
        if compiled:
            backend = {"backend": "aot_eager"} if self.args.toy else {"mode": self.args.mode}
            see, learn = (torch.compile(f, dynamic=False, **backend) for f in (see, learn))
            mark = torch.compiler.cudagraph_mark_step_begin if self.cuda else mark

        def look():
            mark()
            with torch.no_grad():
                return see(self.pixels)

        def step():
            images, targets = look()
            loss = learn(images, targets)
            loss.backward()
            self.optimizer.step()
            self.student.zero_grad(set_to_none=True)
            return loss.detach()

        return look, step

    def time_ms(self, call):
        if not self.cuda:
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def run(self):
        """Times all variants in turn and writes the part after every phase."""
        args, calls = self.args, {}
        for name, teacher in self.teachers.items():
            calls[name] = self.variant(teacher, False)
        if args.child == "compiled":
            calls[f"compiled ({args.mode}), tuned"] = self.variant(self.teachers["eager, tuned"], True)
        for i, phase in enumerate(SAMPLES):
            for pair in calls.values():
                for _ in range(3):
                    result = pair[i]()
                if phase == "whole step" and not math.isfinite(float(result)):
                    raise SystemExit(f"the loss is {float(result)}")
            case = f"imagenet, {args.batch} images: {phase}"
            entries = {n: dict(case=case, variant=n, dtype="bf16", images=args.batch, ms=[]) for n in calls}
            self.part["steps"] += entries.values()
            for round in range(3 if args.toy else SAMPLES[phase]):
                for name in list(calls)[:: -1 if round % 2 else 1]:
                    entries[name]["ms"].append(rounded(self.time_ms(calls[name][i])))
            write(args.out, self.part)


def selftest():
    import tempfile

    step = lambda variant, ms: dict(case="c", variant=variant, dtype="bf16", images=2, ms=ms)
    part = lambda *steps: dict(torch="2", steps=list(steps), errors=[])
    both = merged([part(step("a", [1.0]), step("b", [2.0])), part(step("b", [3.0]))])
    assert [s["ms"] for s in both["steps"]] == [[1.0], [2.0, 3.0]], both
    assert rounded(1.23456) == 1.235
    try:
        import torch_models as models
    except ImportError:
        return print("selftest: ok, without PyTorch")
    models.selftest()
    # Both groups of variants, through the processes that measure them.
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "part.json")
        args = ["--toy", "--device", "cpu", "--batch", "2", "--out", out, "--budget", "300", "--mode", "default"]
        subprocess.run([sys.executable, os.path.abspath(__file__), *args], check=True)
        with open(out) as f:
            part = json.load(f)["torch"]
        names = {(s["case"].split(": ")[1], s["variant"]) for s in part["steps"]}
        variants = ["eager, as released", "eager, tuned", "compiled (default), tuned"]
        assert names == {(p, v) for p in ("teacher", "whole step") for v in variants} and not part["errors"], part
        assert all(len(s["ms"]) in (3, 6) for s in part["steps"]) and os.listdir(folder) == ["part.json"], part
    print("selftest: ok")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="the part to write")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--mode", default="max-autotune", help="of torch.compile")
    parser.add_argument("--variants", default="eager,compiled")
    parser.add_argument("--budget", type=float, default=300, help="seconds for everything")
    parser.add_argument("--selftest", action="store_true")
    parser.add_argument("--toy", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=["eager", "compiled"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.selftest:
        return selftest()
    if not args.out:
        parser.error("--out is needed")
    return Bench(args).run() if args.child else measure(args)


if __name__ == "__main__":
    sys.exit(main())
