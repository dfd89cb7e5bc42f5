"""UMed: protecting images beside a straightforward loop, as images grow, in one process.

python tests/bench/bench_umed.py [--device cuda] [--threads 1] [--rounds 3] [--batch 8] [--quick]

The straightforward version goes image by image: masks by scipy's morphology, texture by scikit-image, both generators on one image in float32 with
channels first, and the central-difference convolution in its three parts. Both end in the same images, as they are stored: that is checked. What
comes before the networks, regions and texture, is also timed by itself; the networks' share is the same arithmetic in both.
"""

import argparse
import resource

import numpy as np
import torch
from scipy import ndimage
from skimage.feature import local_binary_pattern
from timing import medians, record
from torch import nn
from torch.nn import functional as F

from projects.umed.model import CentralDifferenceConv
from projects.umed.module import Protector
from projects.umed.perturb import default_radius, local_texture, protect_images, regions
from projects.umed.worlds import ellipses


class ThreeParts(nn.Module):
    """The central-difference convolution as the equation stands: two convolutions, and one of 1 x 1 for the centre."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, features):
        padded = F.pad(features, (1, 1, 1, 1), mode="replicate")
        centre = F.conv2d(features, self.conv.central.sum((2, 3), keepdim=True))
        return F.conv2d(padded, self.conv.vanilla) + self.conv.theta * (F.conv2d(padded, self.conv.central) - centre)


def in_three_parts(net):
    for name, child in net.named_children():
        setattr(net, name, ThreeParts(child) if isinstance(child, CentralDifferenceConv) else in_three_parts(child))
    return net


def texture_of(levels):
    """Count the neighbours that are not darker; scikit-image's own eight lie on a circle, so the corners are compared here."""
    code = local_binary_pattern(np.pad(levels, 1, "edge"), 4, 1)[1:-1, 1:-1].astype(np.uint8)
    count = np.unpackbits(code[..., None], axis=2).sum(2)
    padded, (height, width) = np.pad(levels, 1, "edge"), levels.shape
    for row in (0, 2):
        for column in (0, 2):
            count += padded[row : row + height, column : column + width] >= levels
    return count / 8


def regions_of(mask, radius):
    square = np.ones((2 * radius + 1, 2 * radius + 1), bool)
    band = ndimage.binary_dilation(mask, square) & ~ndimage.binary_erosion(mask, square, border_value=1)
    return band, mask & ~band


@torch.no_grad()
def straightforward(net, images, masks, epsilon, radius, device):
    stored = []
    for image, mask in zip(images.numpy(), masks.numpy(), strict=True):
        band, interior = regions_of(mask > 0, radius)
        strength = texture_of(image[0])
        one = torch.from_numpy(image).to(device)[None].float() / 255
        contour, texture = net.contour(one)[0, 0].cpu().numpy(), net.texture(one)[0, 0].cpu().numpy()
        delta = epsilon * np.tanh(contour) * band + np.clip(epsilon * np.tanh(texture), -epsilon * strength, epsilon * strength) * interior
        stored.append(np.clip(np.round(image[0] + 255 * delta), 0, 255).astype(np.uint8)[None])
    return torch.from_numpy(np.stack(stored))


WHY = "nearly all of the time are the generators' convolutions, which both versions need"


def show(what, size, seconds, batch, target=None):
    rate = {name: batch / each for name, each in seconds.items()}
    for name in (name for name in seconds if name != "straightforward"):
        way, beside = f"{what}{name.removeprefix('ours')}", "image by image, scipy and scikit-image"
        record(way, size, rate[name], rate["straightforward"], beside, unit="images/s", target=target, reason=WHY)
    rates = "  ".join(f"{name} {batch / each:9.1f} images/s" for name, each in seconds.items())
    ratios = "  ".join(f"{seconds['straightforward'] / each:.2f}" for name, each in seconds.items() if name != "straightforward")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what}, {size}: {rates}  ratio {ratios}  (peak memory of the process {memory:.0f} MB)", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="one round of the smallest size, to see that everything runs")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.batch = 1, 2
    torch.set_num_threads(options.threads)
    print(torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU thread(s)", f"batches of {options.batch}")
    for size in (128,) if options.quick else (128, 256, 512):
        module = Protector(size=size, surrogate_widths=[8, 16]).to(options.device).eval()
        other = Protector(size=size, surrogate_widths=[8, 16]).to(options.device).eval()
        net = in_three_parts(other.perturbator)
        batch = ellipses("test", options.batch, size).__getitems__(range(options.batch))
        images, masks, radius = batch["image"], batch["mask"], default_radius(max(batch["mask"].shape[1:]))
        there, where = (images.float() / 255).to(options.device), masks.to(options.device)
        arguments = (net, images, masks, 4 / 255, radius, options.device)
        apart = (module.protect(images, masks).int() - straightforward(*arguments).int()).abs()
        if apart.max() > 1 or apart.float().mean() > 0.01:
            raise RuntimeError(f"the two versions differ by up to {apart.max()} levels, {apart.float().mean():.4f} in the mean")

        def prepared(there=there, where=where, radius=radius):
            return regions(where, radius), local_texture(there)

        def prepared_one_by_one(images=images, masks=masks, radius=radius):
            return [(regions_of(mask > 0, radius), texture_of(image[0])) for image, mask in zip(images.numpy(), masks.numpy(), strict=True)]

        def in_bf16(module=module, images=images, masks=masks):
            with torch.autocast(torch.device(options.device).type, torch.bfloat16):
                return protect_images(images, module.delta(images, masks).float().cpu())

        off = (in_bf16().int() - module.protect(images, masks).int()).abs()
        print(f"{size} x {size}: bfloat16 changes {100 * (off > 0).float().mean():.2f} % of the pixels, by {off.max()} level(s) at most")
        whole = {"ours": lambda m=module, i=images, k=masks: m.protect(i, k), "ours in bfloat16": in_bf16}
        whole["straightforward"] = lambda a=arguments: straightforward(*a)
        setting = f"{size} x {size} pixels, {options.device}"
        show("protect", setting, medians(whole, options.rounds, options.device), options.batch, 5 if size == 256 else None)
        before = {"ours": prepared, "straightforward": prepared_one_by_one}
        show("regions and texture", setting, medians(before, options.rounds, options.device), options.batch)


if __name__ == "__main__":
    main()
