#!/usr/bin/env python3
"""The yardstick: the step of dtk's recipe `benchmark`, and its conv2d benchmark shapes, in PyTorch on the CPU.

    python3 tools/bench_torch.py [--steps 10] [--threads N]     one line: ms/step and img/s
    python3 tools/bench_torch.py --ops                          GFLOP/s of each convolution, forward and backward

The step does the work of `cargo run --release --example step_time`: noise for every image, a frozen ADM U-Net `tiny`
at t = 150 with the time embedding folded and nothing computed behind its last tap, ResNet-18 with FPN and pyramid
pooling of width 64, whitened MSE + 10 x attention transfer over four levels, the cosine of every level, backward,
gradient clipping at 5, AdamW. 16 images of 64 x 64 pixels, f32, channels_last, eager mode.
"""

import argparse
import math
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

BATCH, SIDE, T = 16, 64, 150
WIDTH, MULT, ATTENTION, HEAD = 32, (1, 1, 1, 2, 2, 2), (16, 32), 32
TAPS = (32, 16, 8, 4)


def conv(c_in, c_out, k=3, stride=1, bias=True):
    return nn.Conv2d(c_in, c_out, k, stride, k // 2, bias=bias)


class ResBlock(nn.Module):
    """Norm, SiLU, (resample,) convolution, norm with scale and shift of the time step, SiLU, convolution; residual."""

    def __init__(self, c_in, c_out, resample=None):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, c_in), conv(c_in, c_out)
        self.emb = nn.Linear(4 * WIDTH, 2 * c_out)
        self.norm2, self.conv2 = nn.GroupNorm(32, c_out), conv(c_out, c_out)
        self.skip = conv(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.resample = resample

    @torch.no_grad()
    def fold(self, emb):
        """The time step is fixed, so its scale and shift become the norm's own."""
        scale, shift = self.emb(emb).chunk(2, dim=1)
        self.norm2.bias.copy_((self.norm2.bias * (1 + scale) + shift)[0])
        self.norm2.weight.copy_((self.norm2.weight * (1 + scale))[0])

    def forward(self, x):
        h = F.silu(self.norm1(x))
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = (F.interpolate(v, scale_factor=2, mode="nearest") for v in (h, x))
        h = self.conv2(F.silu(self.norm2(self.conv1(h))))
        return self.skip(x) + h


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm, self.qkv, self.proj = nn.GroupNorm(32, c), nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.heads = c // HEAD

    def forward(self, x):
        n, c, h, w = x.shape
        t = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(t).view(n, h * w, self.heads, 3, HEAD).permute(3, 0, 2, 1, 4)
        y = F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(n, h * w, c)
        return x + self.proj(y).transpose(1, 2).view(n, c, h, w)


class Adm(nn.Module):
    """The decoder's maps of strides 32, 16, 8 and 4, each before it is up-sampled."""

    def __init__(self):
        super().__init__()

        def block(c_in, c_out, ds):
            layers = [ResBlock(c_in, c_out)] + ([Attention(c_out)] if ds in ATTENTION else [])
            return nn.Sequential(*layers)

        c, ds = WIDTH, 1
        self.encoder, skips = nn.ModuleList([conv(3, WIDTH)]), [WIDTH]
        for level, mult in enumerate(MULT):
            self.encoder.append(block(c, mult * WIDTH, ds))
            c = mult * WIDTH
            skips.append(c)
            if level + 1 < len(MULT):
                self.encoder.append(ResBlock(c, c, "down"))
                skips.append(c)
                ds *= 2
        self.middle = nn.Sequential(ResBlock(c, c), Attention(c), ResBlock(c, c))
        self.decoder = nn.ModuleList()
        for mult in reversed(MULT[2:]):
            for last in (False, True):
                body = block(c + skips.pop(), mult * WIDTH, ds)
                c = mult * WIDTH
                up = ResBlock(c, c, "up") if last and ds > TAPS[-1] else None
                self.decoder.append(nn.ModuleDict({"body": body} | ({"up": up} if up else {})))
                if last:
                    ds //= 2
        freqs = torch.exp(-math.log(10000) * torch.arange(WIDTH // 2) / (WIDTH // 2))
        sinusoid = torch.cat([torch.cos(T * freqs), torch.sin(T * freqs)])[None]
        emb = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.SiLU(), nn.Linear(4 * WIDTH, 4 * WIDTH), nn.SiLU())
        for m in self.modules():
            if isinstance(m, ResBlock):
                m.fold(emb(sinusoid))

    def forward(self, x):
        skips, maps = [], []
        for layer in self.encoder:
            x = layer(x)
            skips.append(x)
        x = self.middle(x)
        for i, layer in enumerate(self.decoder):
            x = layer["body"](torch.cat([x, skips.pop()], dim=1))
            if i % 2 == 1:
                maps.append(x)
            if "up" in layer:
                x = layer["up"](x)
        return maps[::-1]


class ConvModule(nn.Sequential):
    def __init__(self, c_in, c_out, k):
        super().__init__(conv(c_in, c_out, k, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class Basic(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(c_in, c_out, 3, stride, False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = conv(c_out, c_out, bias=False), nn.BatchNorm2d(c_out)
        plain = stride == 1 and c_in == c_out
        self.down = (
            nn.Identity()
            if plain
            else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        )

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(h)) + self.down(x), inplace=True)


class Student(nn.Module):
    """ResNet-18, and on it pyramid pooling, a feature pyramid of width 64 and a 1x1 convolution per level."""

    def __init__(self, out, width=64, scales=(1, 2, 3, 6)):
        super().__init__()
        channels = (64, 128, 256, 512)
        self.stem = nn.Sequential(conv(3, 64, 7, 2, False), nn.BatchNorm2d(64), nn.ReLU(True), nn.MaxPool2d(3, 2, 1))
        ins = (64,) + channels[:-1]
        self.stages = nn.ModuleList(
            nn.Sequential(Basic(i, c, 1 + (n > 0)), Basic(c, c, 1)) for n, (i, c) in enumerate(zip(ins, channels))
        )
        self.scales = scales
        self.psp = nn.ModuleList(ConvModule(512, width, 1) for _ in scales)
        self.bottleneck = ConvModule(512 + len(scales) * width, width, 3)
        self.lateral = nn.ModuleList(ConvModule(c, width, 1) for c in channels[:-1])
        self.fpn = nn.ModuleList(ConvModule(width, width, 3) for _ in channels[:-1])
        self.proj = nn.ModuleList(conv(width, c, 1) for c in out)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, x):
        x, features = self.stem(((x + 1) * 0.5 - self.mean) / self.std), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        resize = lambda v, like: F.interpolate(v, like.shape[2:], mode="bilinear", align_corners=False)
        pooled = [resize(m(F.adaptive_avg_pool2d(x, s)), x) for m, s in zip(self.psp, self.scales)]
        maps = [m(f) for m, f in zip(self.lateral, features)] + [self.bottleneck(torch.cat([x] + pooled, dim=1))]
        for i in (2, 1, 0):
            maps[i] = maps[i] + resize(maps[i + 1], maps[i])
        maps = [m(v) for m, v in zip(self.fpn, maps)] + maps[3:]
        return [p(v) for p, v in zip(self.proj, maps)]


def feature_loss(student, teacher):
    """Whitened MSE + 10 x attention transfer, mean over levels; and the cosine of every level, as dtk logs it."""
    mse = at = 0
    cosines = []
    for s, t in zip(student, teacher):
        white = F.layer_norm(t, t.shape[1:])
        mse = mse + F.mse_loss(s, white)
        us, ut = (F.normalize(v.square().sum(1).flatten(1), dim=1) for v in (s, t))
        at = at + (us - ut).norm(dim=1).mean()
        with torch.no_grad():
            cosines.append(F.cosine_similarity(s.flatten(1), white.flatten(1)).mean().item())
    return (mse + 10 * at) / len(student), cosines


def bench_step(steps, warm_up=2):
    torch.manual_seed(0)
    last = torch.channels_last
    teacher = Adm().eval().requires_grad_(False).to(memory_format=last)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[T].item()
    images = (torch.rand(BATCH, 3, SIDE, SIDE) * 2 - 1).to(memory_format=last)
    with torch.no_grad():
        out = [m.shape[1] for m in teacher(images)]
    student = Student(out).train().to(memory_format=last)
    decayed = [p for p in student.parameters() if p.ndim > 1]
    plain = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    times = []
    for step in range(warm_up + steps):
        start = time.perf_counter()
        with torch.no_grad():
            noisy = math.sqrt(alpha_bar) * images + math.sqrt(1 - alpha_bar) * torch.randn_like(images)
            targets = teacher(noisy)
        loss, _ = feature_loss(student(images), targets)
        assert math.isfinite(loss.item())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        if step >= warm_up:
            times.append(time.perf_counter() - start)
    median = statistics.median(times)
    count = sum(p.numel() for p in student.parameters())
    print(
        f"torch {torch.__version__}: {1e3 * median:.1f} ms/step, {BATCH / median:.1f} img/s "
        f"({torch.get_num_threads()} threads, median of {steps}; student of {count} parameters)"
    )


# batch, side, input channels, output channels, kernel, stride, groups: the benchmark cases of dtk's conv2d.
CONVS = [
    (8, 64, 64, 64, 3, 1, 1),
    (8, 32, 128, 128, 3, 1, 1),
    (1, 64, 256, 256, 3, 1, 1),
    (1, 16, 1024, 1024, 3, 1, 1),
    (4, 8, 1024, 1024, 3, 1, 1),
    (8, 56, 256, 64, 1, 1, 1),
    (8, 224, 3, 64, 7, 2, 1),
    (4, 32, 128, 128, 7, 1, 128),
]


def bench_ops(repeats):
    def measure(f):
        f()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            f()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    for n, hw, ci, co, k, stride, groups in CONVS:
        x = torch.randn(n, ci, hw, hw).contiguous(memory_format=torch.channels_last).requires_grad_()
        layer = nn.Conv2d(ci, co, k, stride, k // 2, groups=groups, bias=groups > 1).to(
            memory_format=torch.channels_last
        )
        y = layer(x)
        gy = torch.ones_like(y)
        flops = 2 * y.numel() * k * k * (ci // groups)
        inputs = [x, *layer.parameters()]
        with torch.no_grad():
            forward = measure(lambda: layer(x))
        backward = measure(lambda: torch.autograd.grad(y, inputs, gy, retain_graph=True))
        print(
            f"conv2d [{n}, {hw}, {hw}, {ci}] -> {co}, {k}x{k}: forward {1e3 * forward:7.2f} ms "
            f"{flops / forward / 1e9:7.1f} GFLOP/s, backward {1e3 * backward:7.2f} ms "
            f"{2 * flops / backward / 1e9:7.1f} GFLOP/s"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10, help="measured steps, or repeats of each convolution")
    parser.add_argument("--threads", type=int, help="threads; PyTorch's choice if left out")
    parser.add_argument("--ops", action="store_true", help="time the convolutions instead of the step")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    (bench_ops if args.ops else bench_step)(args.steps)


if __name__ == "__main__":
    main()
