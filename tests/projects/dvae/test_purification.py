import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from projects.dvae.losses import kl_divergence, rate_of_each, subtract
from projects.dvae.model import DVAE
from projects.dvae.module import Purifier
from projects.dvae.purification import cosine, psnr, purify, sample_noise, subtract_stages
from shared.seeding import generator


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    return [DVAE(4, (8, 8), width=4).eval() for _ in range(2)]


@pytest.fixture(scope="module")
def batch():
    random = torch.Generator().manual_seed(1)
    images = (torch.rand(6, 3, 8, 8, generator=random) * 255).round() / 255
    return images, torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(10, 16)


def test_the_products_are_the_papers(nets, batch):
    images, labels, indices = batch
    found = purify(nets, images, labels, indices, seed=3)

    def noise(stage):
        return torch.stack([torch.randn(16, 4, 4, generator=generator(3, "purify", stage, int(index))) for index in indices])

    with torch.no_grad():
        x1 = subtract(images, nets[0](images, labels, noise(0)).perturbation)
        x2 = subtract(x1, nets[1](x1, labels, noise(1)).perturbation)
        x3 = (nets[1](x2, labels, noise(2)).reconstruction * 255).round() / 255
    for product, expected in zip(found.products, (x1, x2, x3), strict=True):
        torch.testing.assert_close(product, expected)
    assert list(found.named()) == ["x1", "x2", "x3", "p1", "p2"]
    torch.testing.assert_close(subtract_stages(nets[:1], images, labels, indices, 3), x1)


def test_a_set_is_purified_alike_in_any_batches(nets, batch):
    images, labels, indices = batch
    whole = purify(nets, images, labels, indices, seed=3).named()
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    parts = [purify(nets, images[rows], labels[rows], indices[rows], seed=3).named() for rows in order.split(4)]
    for name, values in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), values[order], rtol=1e-5, atol=1 / 255 + 1e-6)
    other = purify(nets, images, labels, indices, seed=4).products[0]
    assert not torch.equal(whole["x1"], other), "sampling stays on at inference"


def test_batch_statistics_never_enter(batch):
    images, labels, indices = batch
    module = Purifier(classes=4, size=8, width=4)
    found = module.purify({"image": images, "label": labels, "index": indices})
    assert module.training
    assert module.stages[0].training
    module.eval()
    torch.testing.assert_close(found.products[-1], module.purify({"image": images, "label": labels, "index": indices}).products[-1])
    assert not any(buffer.any() for name, buffer in module.named_buffers() if "tracked" in name)
    with pytest.raises(ValueError, match="stage 1 is in training mode"):
        subtract_stages(module.train().stages, images, labels, indices, seed=3)


def test_noise_belongs_to_the_image(nets, batch):
    images, _, indices = batch
    noise = sample_noise(nets[0], images, indices, 0, "purify", 0)
    assert torch.equal(sample_noise(nets[0], images[2:3], indices[2:3], 0, "purify", 0)[0], noise[2])
    assert noise.shape == (6, 16, 4, 4)


def test_measures_are_those_of_libraries():
    images, clean = torch.rand(2, 3, 3, 9, 7).unbind()
    expected = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1) for a, b in zip(clean, images, strict=True)]
    assert np.allclose(psnr(images, clean), expected, atol=1e-4)
    flat = [(a.flatten().numpy(), b.flatten().numpy()) for a, b in zip(images, clean, strict=True)]
    assert np.allclose(cosine(images, clean), [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in flat], atol=1e-5)
    mean, log_variance = torch.randn(2, 3, 5, 4, 4).unbind()
    torch.testing.assert_close(rate_of_each(mean, log_variance).mean(), kl_divergence(mean, log_variance))
