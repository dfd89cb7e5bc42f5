import pytest
import torch
from torch import nn

from projects.dvae.model import DVAE, BottleneckAutoencoder, RateVAE


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_published_network_has_its_size():
    net = DVAE(10, (32, 32))
    assert count(net) == 1_181_382, "about 1.2 M"
    assert count(net.embed) == 327_680
    assert count(DVAE(100, (32, 32)).embed) == 3_276_800


def test_the_published_layers_in_their_order():
    net = DVAE(10, (32, 32))
    convolutions = [m for m in net.encoder.stem.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0], c.bias is not None) for c in convolutions] == [
        (3, 64, 3, 1, False),
        *[(64, 64, 3, 1, False)] * 4,
        (64, 128, 3, 2, False),
        (128, 128, 3, 1, False),
        (64, 128, 1, 2, False),
    ]
    for decoder in (net.decoder, net.perturbation_decoder):
        layers = [
            (type(m).__name__, getattr(m, "in_channels", 0), getattr(m, "out_channels", 0), getattr(m, "stride", (0,))[0]) for m in decoder.layers
        ]
        assert layers == [
            ("ConvTranspose2d", 128, 64, 2),
            ("ConvTranspose2d", 64, 64, 1),
            ("InstanceNorm2d", 0, 0, 0),
            ("ReLU", 0, 0, 0),
            ("ConvTranspose2d", 64, 32, 1),
            ("InstanceNorm2d", 0, 0, 0),
            ("ReLU", 0, 0, 0),
            ("ConvTranspose2d", 32, 3, 1),
        ]
        assert not any(m.affine or m.track_running_stats for m in decoder.layers if isinstance(m, nn.InstanceNorm2d))
    assert net.noise_shape(32, 32) == (256, 16, 16)


def test_the_imagenet_variant_has_an_eighth_of_the_resolution():
    net = DVAE(100, (224, 224), levels=3, latent=256, embedding="broadcast")
    assert net.noise_shape(224, 224) == (256, 28, 28)
    assert net.inner == 512
    small = DVAE(5, (24, 16), width=4, levels=3, latent=6, embedding="spatial", embedding_grid=1)
    assert small.embed_labels(torch.tensor([0, 3])).shape == (2, 32, 3, 2)


@pytest.mark.parametrize("embedding", ["spatial", "broadcast", "none"])
@pytest.mark.parametrize("mode", ["add", "concat"])
@pytest.mark.parametrize("perturbation", ["sample", "features", "class"])
@pytest.mark.parametrize(("size", "channels"), [((8, 6), 1), ((10, 10), 3)])
def test_every_switch_gives_images_back(embedding, mode, perturbation, size, channels):
    if (embedding, perturbation) == ("none", "class"):
        with pytest.raises(ValueError, match="written from the embedding alone"):
            DVAE(4, size, channels, width=4, embedding=embedding, perturbation=perturbation)
        return
    net = DVAE(4, size, channels, width=4, embedding=embedding, embed_mode=mode, perturbation=perturbation)
    images, labels = torch.rand(3, channels, *size), torch.tensor([0, 3, 3])
    found = net(images, labels, torch.randn(3, *net.noise_shape(*size)))
    assert found.reconstruction.shape == found.perturbation.shape == images.shape
    assert 0 < found.reconstruction.min() <= found.reconstruction.max() < 1
    found.perturbation.sum().backward()
    assert (net.embed is None) or net.embed.weight.grad.abs().sum(1).gt(0).tolist() == [True, False, False, True]
    if perturbation == "class":
        torch.testing.assert_close(found.perturbation[1], found.perturbation[2])


def test_the_perturbation_is_written_from_z_and_the_label():
    net = DVAE(4, (8, 8), width=4).eval()
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([1, 2])
    noise = torch.randn(2, *net.noise_shape(8, 8))
    latent = net.encode(images)
    z = net.post(latent.mean + noise * latent.log_variance.mul(0.5).exp())
    u = net.embed.weight[labels].reshape(2, 8, 4, 4)
    found = net(images, labels, noise)
    torch.testing.assert_close(found.perturbation, net.perturbation_decoder(z + u))
    torch.testing.assert_close(found.reconstruction, net.decoder(z).sigmoid())


def test_a_plain_vae_and_a_bottleneck():
    net = RateVAE(1, width=4)
    images = torch.rand(2, 1, 8, 8)
    reconstruction, latent = net(images, torch.zeros(2, *net.noise_shape(8, 8)))
    torch.testing.assert_close(reconstruction, net.decode(net.post(latent.mean)))
    narrow = BottleneckAutoencoder(2, 1, width=4)
    assert narrow(images).shape == images.shape
    assert narrow.encoder.mean.out_channels == 2
    assert not any("log_variance" in name for name, _ in narrow.named_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (9, 8)}, "9 x 8 pixels do not divide by 2"),
        ({"levels": 2}, "levels must be 1"),
        ({"norm": "layer"}, "norm must be one of instance, batch"),
        ({"embedding": "full"}, "embedding must be one of spatial, broadcast, none"),
        ({"embed_mode": "multiply"}, "embed_mode must be one of add, concat"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DVAE(**({"classes": 3, "size": (8, 8), "width": 4} | options))
