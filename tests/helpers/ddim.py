"""Networks under the names of DDIM's code, and what they compute by their definition, from the weights alone."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def weights(width=32, widths=(32, 64), blocks=1, attended=(1,), channels=3):
    """Random weights under the names of DDIM's code."""
    found = {}

    def layer(name, inputs, outputs, *kernel):
        linear = nn.Linear(inputs, outputs) if not kernel else nn.Conv2d(inputs, outputs, kernel)
        found.update({f"{name}.{kind}": value.detach() for kind, value in linear.named_parameters()})

    def norm(name, size):
        found.update({f"{name}.weight": 1 + 0.3 * torch.randn(size), f"{name}.bias": 0.3 * torch.randn(size)})

    def block(name, inputs, outputs):
        norm(f"{name}.norm1", inputs)
        layer(f"{name}.conv1", inputs, outputs, 3, 3)
        layer(f"{name}.temb_proj", 4 * width, outputs)
        norm(f"{name}.norm2", outputs)
        layer(f"{name}.conv2", outputs, outputs, 3, 3)
        if inputs != outputs:
            layer(f"{name}.nin_shortcut", inputs, outputs, 1, 1)

    def attention(name, size):
        norm(f"{name}.norm", size)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.{part}", size, size, 1, 1)

    layer("temb.dense.0", width, 4 * width)
    layer("temb.dense.1", 4 * width, 4 * width)
    layer("conv_in", channels, width, 3, 3)
    skips, size = [width], width
    for level, outputs in enumerate(widths):
        for number in range(blocks):
            block(f"down.{level}.block.{number}", size, outputs)
            size = outputs
            skips.append(size)
            if level in attended:
                attention(f"down.{level}.attn.{number}", size)
        if level < len(widths) - 1:
            layer(f"down.{level}.downsample.conv", size, size, 3, 3)
            skips.append(size)
    block("mid.block_1", size, size)
    attention("mid.attn_1", size)
    block("mid.block_2", size, size)
    for level in reversed(range(len(widths))):
        for number in range(blocks + 1):
            block(f"up.{level}.block.{number}", size + skips.pop(), widths[level])
            size = widths[level]
            if level in attended:
                attention(f"up.{level}.attn.{number}", size)
        if level:
            layer(f"up.{level}.upsample.conv", size, size, 3, 3)
    norm("norm_out", size)
    layer("conv_out", size, channels, 3, 3)
    return found


def predicted(found, x, t, levels=2, blocks=1, attended=(1,)):
    """The noise that the network predicts, (B, C, H, W), as Ho et al. 2020 and the appendix of DDIM define it."""

    def layer(name, x, **options):
        weight, bias = found[f"{name}.weight"], found[f"{name}.bias"]
        return F.linear(x, weight, bias) if weight.ndim == 2 else F.conv2d(x, weight, bias, **options)

    def norm(name, x):
        return F.group_norm(x, 32, found[f"{name}.weight"], found[f"{name}.bias"], 1e-6)

    def block(name, x):
        h = layer(f"{name}.conv1", F.silu(norm(f"{name}.norm1", x)), padding=1) + layer(f"{name}.temb_proj", F.silu(time))[:, :, None, None]
        h = layer(f"{name}.conv2", F.silu(norm(f"{name}.norm2", h)), padding=1)
        return h + (layer(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in found else x)

    def attention(name, x):
        q, k, v = (layer(f"{name}.{part}", norm(f"{name}.norm", x)).flatten(2).mT for part in "qkv")
        h = (q @ k.mT / math.sqrt(x.shape[1])).softmax(-1) @ v
        return x + layer(f"{name}.proj_out", h.mT.reshape(x.shape))

    half = found["temb.dense.0.weight"].shape[1] // 2
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / (half - 1))
    time = layer("temb.dense.1", F.silu(layer("temb.dense.0", torch.cat([angles.sin(), angles.cos()], 1))))
    skips = [layer("conv_in", x, padding=1)]
    for level in range(levels):
        for number in range(blocks):
            h = block(f"down.{level}.block.{number}", skips[-1])
            skips.append(attention(f"down.{level}.attn.{number}", h) if level in attended else h)
        if level < levels - 1:
            skips.append(layer(f"down.{level}.downsample.conv", F.pad(skips[-1], (0, 1, 0, 1)), stride=2))
    h = block("mid.block_2", attention("mid.attn_1", block("mid.block_1", skips[-1])))
    for level in reversed(range(levels)):
        for number in range(blocks + 1):
            h = block(f"up.{level}.block.{number}", torch.cat([h, skips.pop()], 1))
            h = attention(f"up.{level}.attn.{number}", h) if level in attended else h
        if level:
            h = layer(f"up.{level}.upsample.conv", F.interpolate(h, scale_factor=2), padding=1)
    return layer("conv_out", F.silu(norm("norm_out", h)), padding=1)
