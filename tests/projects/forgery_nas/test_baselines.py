"""Hand-made networks: that they are what was published, and have one face."""

import pytest
import timm
import torch

from projects.forgery_nas.baselines import InceptionBlock, MesoNet, build_baseline


@pytest.mark.parametrize(("inception", "published"), [(False, 27_977), (True, 28_615)])
def test_mesonets_have_the_published_parameters(inception, published):
    net = MesoNet(256, inception).eval()
    assert sum(parameter.numel() for parameter in net.parameters()) == published
    features = net.features(torch.zeros(1, 3, 256, 256))
    assert features.shape == (1, 16, 8, 8)
    logits = net(torch.rand(2, 3, 256, 256))
    torch.testing.assert_close(logits.softmax(1)[:, 1], logits[:, 1].sigmoid())


def test_branches_see_as_far_as_their_dilation():
    block = InceptionBlock(2, (1, 4, 4, 2)).double()
    image = torch.zeros(1, 2, 15, 15, dtype=torch.float64)
    image[..., 7, 7] = 1
    changed = (block(image) - block(0 * image))[0].abs() > 1e-12
    reach = [int((part.any(0).nonzero() - 7).abs().max()) for part in changed.split([1, 4, 4, 2])]
    assert reach == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["meso4", "mesoinception4", "mobilenetv3_small_100"])
def test_bytes_and_levels_are_the_same_image(name):
    net = build_baseline(name, 48).eval()
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(net(images), net(images / 255))
        torch.testing.assert_close(net.classify(net.features(images)), net(images))


def test_networks_of_timm_get_their_normalisation():
    net = build_baseline("mobilenetv3_small_100", 64).eval()
    same = timm.create_model("mobilenetv3_small_100", num_classes=2).eval()
    same.load_state_dict(net.net.state_dict())
    images = torch.rand(2, 3, 64, 64)
    normalise = timm.data.create_transform(**timm.data.resolve_data_config({}, model=same)).transforms[-1]
    with torch.no_grad():
        torch.testing.assert_close(net(images), same(normalise(images)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("meso", 64), "timm has no model 'meso'"),
        (("meso4", 16), "take them of 32 pixels or more, not 16"),
        (("meso4", 64, "file.pth"), "leave model.weights out"),
        (("test_vit", 160), "test_vit is no convolutional network"),
        (("vit_tiny_patch16_224", 64), "does not take images of 64 x 64 pixels"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_baseline(*options)
