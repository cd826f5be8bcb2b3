"""What `torch_step.py` times: the teacher, the student, their loss and LAMB, of the recipe `imagenet`, in PyTorch.

    teacher    the network of guided-diffusion's 256x256 models up to its tap of stride 4, as released or tuned
    student    ResNet-50, pyramid pooling on its coarsest level, a feature pyramid, a projection to the channels of every tap
    loss       MSE to the whitened map and ten times the distance of the attention maps, mean over the levels
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

LEVELS, GROUPS, WHITEN_EPS, TIME_STEP = 4, 32, 1e-5, 150
ADM = dict(image=256, base=256, mult=(1, 1, 2, 2, 4, 4), blocks=2, attention=(8, 16, 32), head=64, resnet=(3, 4, 6, 3), width=64, fpn=256)
TOY = dict(image=64, base=32, mult=(1, 1, 1, 1, 2, 2), blocks=1, attention=(8, 16), head=16, resnet=(1, 1, 1, 1), width=8, fpn=16)


def group_norm(x, weight, bias, f32):
    if not f32:
        return F.group_norm(x, GROUPS, weight, bias, 1e-5)
    return F.group_norm(x.float(), GROUPS, weight.float(), bias.float(), 1e-5).to(x.dtype)


class Block(nn.Module):
    """Norm, SiLU, convolution; scale and shift by the time; norm, SiLU, convolution."""

    def __init__(self, ci, co, embedding, how, mode=None):
        super().__init__()
        self.how, self.mode = how, mode
        self.norm1, self.conv1 = nn.GroupNorm(1, ci), nn.Conv2d(ci, co, 3, padding=1)
        self.time = nn.Linear(embedding, 2 * co)
        self.norm2, self.conv2 = nn.GroupNorm(1, co), nn.Conv2d(co, co, 3, padding=1)
        self.skip = nn.Identity() if ci == co else nn.Conv2d(ci, co, 1)

    def resample(self, x):
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.mode == "up" else F.avg_pool2d(x, 2)

    def forward(self, x, embedding):
        h = F.silu(group_norm(x, self.norm1.weight, self.norm1.bias, self.how["f32"]))
        if self.mode:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        if self.how["folded"]:
            h = group_norm(h, self.scale, self.shift, self.how["f32"])
        else:
            scale, shift = self.time(F.silu(embedding)).to(h.dtype)[:, :, None, None].chunk(2, 1)
            h = group_norm(h, self.norm2.weight, self.norm2.bias, self.how["f32"]) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))

    def fold(self, embedding):
        scale, shift = self.time(F.silu(embedding))[0].chunk(2)
        self.register_buffer("scale", self.norm2.weight * (1 + scale))
        self.register_buffer("shift", self.norm2.bias * (1 + scale) + shift)


class Attention(nn.Module):
    def __init__(self, c, head, how):
        super().__init__()
        self.how, self.head = how, head
        self.norm, self.qkv, self.out = nn.GroupNorm(1, c), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x, embedding):
        n, c, h, w = x.shape
        y = self.qkv(group_norm(x, self.norm.weight, self.norm.bias, self.how["f32"]))
        if self.how["fused"]:
            q, k, v = y.permute(0, 2, 3, 1).reshape(n, h * w, -1, 3, self.head).permute(3, 0, 2, 1, 4).unbind(0)
            a = F.scaled_dot_product_attention(q, k, v)
            return x + self.out(a.transpose(1, 2).reshape(n, h, w, c).permute(0, 3, 1, 2))
        q, k, v = y.reshape(-1, 3 * self.head, h * w).split(self.head, 1)
        size = self.head**-0.25
        weights = torch.softmax(((q * size).transpose(1, 2) @ (k * size)).float(), -1).to(x.dtype)
        return x + self.out((v @ weights.transpose(1, 2)).reshape(n, c, h, w))


class Teacher(nn.Module):
    """The network of guided-diffusion's 256x256 models up to the tap of stride 4; taps fine to coarse."""

    def __init__(self, cfg):
        super().__init__()
        how = self.how = {"f32": True, "folded": False, "fused": False}
        base, embedding = cfg["base"], 4 * cfg["base"]
        self.base, self.head = base, nn.Conv2d(3, base, 3, padding=1)
        self.embed = nn.Sequential(nn.Linear(base, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        c, stride, kept = base, 1, [base]

        def level(ci, co):
            stack = [Block(ci, co, embedding, how)]
            return nn.ModuleList(stack + ([Attention(co, cfg["head"], how)] if stride in cfg["attention"] else []))

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, m in enumerate(cfg["mult"]):
            for _ in range(cfg["blocks"]):
                self.down.append(level(c, m * base))
                c = m * base
                kept.append(c)
            if i + 1 < len(cfg["mult"]):
                self.down.append(nn.ModuleList([Block(c, c, embedding, how, "down")]))
                kept.append(c)
                stride *= 2
        self.middle = nn.ModuleList([Block(c, c, embedding, how), Attention(c, cfg["head"], how), Block(c, c, embedding, how)])
        self.channels = []
        for i in reversed(range(len(cfg["mult"]) - LEVELS, len(cfg["mult"]))):
            for j in range(cfg["blocks"] + 1):
                m = cfg["mult"][i] * base
                self.up.append(level(c + kept.pop(), m))
                c = m
            self.channels.insert(0, c)
            self.up.append(Block(c, c, embedding, how, "up"))
            stride //= 2
        # The last tap lies before its up-sampler, which is never computed.
        del self.up[-1]

    def embedding(self, n, device):
        half = self.base // 2
        angles = TIME_STEP * torch.exp(torch.arange(half, device=device) * (-math.log(10000) / half))
        return self.embed(torch.cat([angles.cos(), angles.sin()])[None].expand(n, -1))

    def forward(self, x):
        x = x.to(self.head.weight.dtype)
        embedding = None if self.how["folded"] else self.embedding(x.shape[0], x.device)
        h = self.head(x)
        kept, taps = [h], []
        for stack in self.down:
            for layer in stack:
                h = layer(h, embedding)
            kept.append(h)
        for layer in self.middle:
            h = layer(h, embedding)
        for stack in self.up:
            if isinstance(stack, Block):
                taps.insert(0, h)
                h = stack(h, embedding)
                continue
            h = torch.cat([h, kept.pop()], 1)
            for layer in stack:
                h = layer(h, embedding)
        return [h] + taps

    def released(self, dtype):
        """A copy with operands in `dtype`; norms and embedding stay f32."""
        out = copy.deepcopy(self)
        for m in out.modules():
            m.to(dtype) if isinstance(m, nn.Conv2d) else None
        return out.to(memory_format=torch.channels_last)

    def tuned(self, dtype):
        """A copy with all in `dtype`, the time folded into the norms, and fused attention."""
        out = copy.deepcopy(self)
        with torch.no_grad():
            embedding = out.embedding(1, out.head.weight.device)
            for m in out.modules():
                if isinstance(m, Block):
                    m.fold(embedding)
                    del m.time
        del out.embed
        out.how.update(f32=False, folded=True, fused=True)
        return out.to(dtype).to(memory_format=torch.channels_last)


def unit(ci, co, k, stride=1, relu=True):
    layers = [nn.Conv2d(ci, co, k, stride, k // 2, bias=False), nn.BatchNorm2d(co)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class Bottleneck(nn.Module):
    def __init__(self, ci, width, stride):
        super().__init__()
        co = 4 * width
        self.body = nn.Sequential(unit(ci, width, 1), unit(width, width, 3, stride), unit(width, co, 1, relu=False))
        self.skip = unit(ci, co, 1, stride, relu=False) if ci != co or stride > 1 else nn.Identity()

    def forward(self, x):
        return F.relu(self.body(x) + self.skip(x))


class Student(nn.Module):
    """ResNet, PPM on its coarsest level, FPN, a projection to the channels of every tap."""

    def __init__(self, cfg, channels):
        super().__init__()
        self.stem, self.stages, c, fpn = unit(3, cfg["width"], 7, 2), nn.ModuleList(), cfg["width"], cfg["fpn"]
        sizes = []
        for i, n in enumerate(cfg["resnet"]):
            width = cfg["width"] << i
            blocks = [Bottleneck(c if j == 0 else 4 * width, width, 2 if i and j == 0 else 1) for j in range(n)]
            self.stages.append(nn.Sequential(*blocks))
            c = 4 * width
            sizes.append(c)
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(k), unit(c, fpn, 1)) for k in (1, 2, 3, 6))
        self.bottleneck = unit(c + 4 * fpn, fpn, 3)
        self.lateral = nn.ModuleList(unit(s, fpn, 1) for s in sizes[:-1])
        self.smooth = nn.ModuleList(unit(fpn, fpn, 3) for _ in sizes[:-1])
        self.project = nn.ModuleList(nn.Conv2d(fpn, o, 1) for o in channels)

    def forward(self, x):
        up = lambda a, b: F.interpolate(a, size=b.shape[-2:], mode="bilinear", align_corners=False)
        h, maps = F.max_pool2d(self.stem(x), 3, 2, 1), []
        for stage in self.stages:
            h = stage(h)
            maps.append(h)
        h = self.bottleneck(torch.cat([h] + [up(p(h), h) for p in self.pools], 1))
        out = [h]
        for lateral, smooth, x in zip(reversed(self.lateral), reversed(self.smooth), reversed(maps[:-1])):
            h = lateral(x) + up(h, x)
            out.insert(0, smooth(h))
        return [p(y) for p, y in zip(self.project, out)]


def feature_loss(students, teachers):
    """Mean over the levels of the MSE to the whitened map and ten times the distance of the attention maps."""
    total = 0.0
    for s, t in zip(students, teachers):
        s, t = s.float(), t.float()
        variance, mean = torch.var_mean(t, dim=(1, 2, 3), correction=0, keepdim=True)
        mse = (s - (t - mean) * torch.rsqrt(variance + WHITEN_EPS)).square().mean()
        unit = lambda x: F.normalize(x.square().sum(1).flatten(1), dim=1)
        total = total + mse + 10.0 * (unit(s) - unit(t)).norm(dim=1).mean()
    return total / len(students)


class Lamb:
    """LAMB of all tensors at once: clipping to a global norm, corrected moments, decay and trust ratio of matrices only."""

    def __init__(self, params, lr=1e-6, betas=(0.9, 0.95), eps=1e-6, decay=0.05, clip=5.0):
        self.lr, self.betas, self.eps, self.decay, self.clip, self.step_count = lr, betas, eps, decay, clip, 0
        self.params = sorted(params, key=lambda p: p.dim() <= 1)
        self.adapted = sum(p.dim() > 1 for p in self.params)
        self.m, self.v = ([torch.zeros_like(p) for p in self.params] for _ in range(2))

    def step(self):
        b1, b2 = self.betas
        self.step_count += 1
        with torch.no_grad():
            grads = [p.grad for p in self.params]
            norm = torch.stack(torch._foreach_norm(grads)).norm()
            grads = torch._foreach_div(grads, (norm / self.clip).clamp(min=1.0))
            torch._foreach_lerp_(self.m, grads, 1 - b1)
            torch._foreach_mul_(self.v, b2)
            torch._foreach_addcmul_(self.v, grads, grads, 1 - b2)
            below = torch._foreach_sqrt(self.v)
            torch._foreach_div_(below, math.sqrt(1 - b2**self.step_count))
            torch._foreach_add_(below, self.eps)
            update = torch._foreach_div(self.m, 1 - b1**self.step_count)
            torch._foreach_div_(update, below)
            some, weights = update[: self.adapted], self.params[: self.adapted]
            torch._foreach_add_(some, weights, alpha=self.decay)
            ratio = torch._foreach_div(torch._foreach_norm(weights), torch._foreach_norm(some))
            torch._foreach_mul_(some, [r.nan_to_num(nan=1.0, posinf=1.0) for r in ratio])
            torch._foreach_add_(self.params, update, alpha=-self.lr)


def selftest():
    """Sizes against the published models, both ways to compute the teacher, LAMB against its formula, the loss."""
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    with torch.device("meta"):
        whole = Teacher(ADM)
        student = Student(ADM, whole.channels)
    assert whole.channels == [512, 512, 1024, 1024], whole.channels
    count = sum(p.numel() for p in student.stem.parameters()) + sum(p.numel() for p in student.stages.parameters())
    assert count == 23_508_032, count  # ResNet-50 without its classifier
    with FlopCounterMode(display=False) as counter:
        whole(torch.empty(1, 3, 256, 256, device="meta"))
    assert abs(counter.get_total_flops() / 2e9 - 486.4) < 0.1, counter.get_total_flops() / 2e9
    # Both ways to compute the teacher agree.
    teacher = Teacher(TOY).eval().requires_grad_(False)
    x = torch.randn(2, 3, 64, 64)
    for a, b in zip(teacher.released(torch.float32)(x), teacher.tuned(torch.float32)(x)):
        assert (a - b).abs().max() < 1e-4 * a.abs().max(), (a - b).abs().max()
    # LAMB against its formula, tensor by tensor.
    params = [torch.randn(3, 4, requires_grad=True), torch.randn(5, requires_grad=True)]
    want = [p.detach().double().clone() for p in params]
    moments, lamb = [[0.0, 0.0] for _ in want], Lamb(params, lr=0.1, clip=1.0)
    for i in (1, 2):
        for p in params:
            p.grad = torch.randn_like(p)
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in params))
        lamb.step()
        for p, w, m in zip(params, want, moments):
            g = p.grad.double() / max(norm, 1.0)
            m[0], m[1] = 0.9 * m[0] + 0.1 * g, 0.95 * m[1] + 0.05 * g * g
            u = m[0] / (1 - 0.9**i) / ((m[1] / (1 - 0.95**i)).sqrt() + 1e-6)
            if w.dim() > 1:
                u += 0.05 * w
                u *= w.norm() / u.norm()
            w -= 0.1 * u
            assert (p.detach() - w).abs().max() < 1e-5, (i, p, w)
    # The loss of a map that is the teacher's whitened one is its attention term alone, which is zero for equal maps.
    t = torch.randn(2, 8, 4, 4)
    t = (t - t.mean((1, 2, 3), keepdim=True)) / t.var((1, 2, 3), correction=0, keepdim=True).sqrt()
    assert float(feature_loss([t], [t])) < 1e-6 and float(feature_loss([t], [-t])) > 1
