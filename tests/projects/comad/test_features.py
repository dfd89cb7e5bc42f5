import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from scipy import ndimage
from skimage.color import rgb2lab
from timm.layers import resample_abs_pos_embed

from projects.comad.features import CNNFeatures, OfflineFeatures, ViTFeatures, build_features, cielab
from projects.comad.module import ComponentInspection
from projects.comad.traysim import draw_tray

SMALL = "vit_tiny_patch16_224"


def pictures(count=2, height=24, width=30, seed=0):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A small ViT for pictures of 48 pixels, and the file of its weights."""
    torch.manual_seed(0)
    net = timm.create_model(SMALL, num_classes=1000, img_size=48).eval()
    torch.nn.init.normal_(net.pos_embed)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(net.state_dict(), path)
    return net, path


def test_cielab_is_that_of_scikit_image():
    images = pictures(height=64, width=64)
    images[0, :, 0, :20] = torch.arange(20, dtype=torch.uint8)  # dark greys, on the straight part of the curve
    expected = rgb2lab(images.movedim(1, -1).numpy())
    np.testing.assert_allclose(cielab(images).movedim(1, -1).numpy(), expected, atol=1e-2)  # their white is rounded otherwise


def test_greys_are_neutral():
    lab = cielab(torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256))[0, :, 0]
    assert lab[1:].abs().max() < 2e-4
    torch.testing.assert_close(lab[0, [0, 255]], torch.tensor([0.0, 100.0]), atol=1e-4, rtol=0)


def test_offline_channels_are_blurred_colours_and_local_deviations():
    images = pictures(1)
    lab = rgb2lab(images[0].permute(1, 2, 0).numpy()).transpose(2, 0, 1)

    def blur(layer, sigma):
        return ndimage.gaussian_filter(layer, sigma, mode="nearest", truncate=4)

    def deviation(sigma):
        return np.sqrt(blur(lab[0] ** 2, sigma) - blur(lab[0], sigma) ** 2)

    expected = np.stack([blur(layer, sigma) for sigma in (1, 2) for layer in lab] + [deviation(1.5), deviation(3)])
    raw = OfflineFeatures(stride=1).raw(images)[0].numpy()
    np.testing.assert_allclose(raw, expected, atol=1e-2)
    np.testing.assert_array_equal(OfflineFeatures(stride=3).raw(images)[0].shape, (8, 8, 10))
    np.testing.assert_allclose(OfflineFeatures(stride=3).raw(images)[0].numpy(), raw[:, ::3, ::3], atol=1e-3)


def test_the_grid_holds_every_second_pixel():
    assert build_features("offline")(pictures(height=25, width=30)).shape == (2, 8, 13, 15)


def test_a_flat_picture_has_no_deviation():
    images = torch.full((1, 3, 20, 20), 250, dtype=torch.uint8)
    assert OfflineFeatures().raw(images)[:, 6:].max() < 0.05


def test_training_pictures_are_standardised():
    images = pictures(40)
    features = OfflineFeatures().fit(images)
    values = features(images).movedim(1, 0).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(1, unbiased=False), torch.ones(8), atol=1e-4, rtol=0)
    batches = OfflineFeatures().fit(images.split(7))
    torch.testing.assert_close(batches.mean, features.mean)
    torch.testing.assert_close(batches.std, features.std)


def test_constant_channels_are_only_centred():
    grey = pictures()[:, :1].expand(-1, 3, -1, -1)
    features = OfflineFeatures().fit(grey)
    assert features.std[[1, 2, 4, 5]].tolist() == [1] * 4
    assert features(grey)[:, [1, 2, 4, 5]].abs().max() < 1e-3


def test_offline_features_are_stored_and_restored():
    images = pictures()
    features = OfflineFeatures(stride=3).fit(images)
    torch.testing.assert_close(OfflineFeatures(3).restore(features.state())(images), features(images))
    with pytest.raises(ValueError, match="'offline' of stride 3, not to 'offline' of stride 2"):
        OfflineFeatures(2).restore(features.state())


def test_the_papers_transformer_gives_28_by_28_tokens_of_384_channels():
    with torch.device("meta"):
        features = build_features("vit_small_patch8_224.dino")
        tokens = features(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    assert tokens.shape == (1, 384, 28, 28)
    assert sum(parameter.numel() for parameter in features.parameters()) == 21_670_272
    assert (len(features.net.blocks), features.net.blocks[0].attn.num_heads, features.channels) == (12, 6, 384)
    assert not any(parameter.requires_grad for parameter in features.parameters())


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("vit_small_patch14_dinov2", 224, (16, 16)),
        ("vit_small_patch14_reg4_dinov2", (28, 70), (2, 5)),
        ("vit_small_patch16_dinov3", 64, (4, 4)),
        ("deit_tiny_distilled_patch16_224", 64, (4, 4)),
    ],
)
@pytest.mark.parametrize("output", ["tokens", "keys"])
def test_class_and_register_tokens_are_dropped(name, size, grid, output):
    with torch.device("meta"):
        features = build_features(name, size, output=output)
        assert features(torch.zeros(2, 3, 30, 40, dtype=torch.uint8)).shape == (2, features.channels, *grid)


def normalised(images):
    mean, std = torch.tensor([0.5, 0.5, 0.5])[:, None, None], torch.tensor([0.5, 0.5, 0.5])[:, None, None]  # of the weights of `SMALL`
    return (images / 255 - mean) / std


def test_tokens_are_those_after_the_final_norm(stored):
    net, path = stored
    images = pictures(height=48, width=48)
    expected = net.forward_features(normalised(images))[:, 1:].mT.reshape(2, 192, 3, 3)
    torch.testing.assert_close(ViTFeatures(SMALL, 48, str(path))(images), expected)


def test_keys_are_those_of_the_last_attention(stored):
    net, path = stored
    images = pictures(height=48, width=48)
    seen = []
    hook = net.blocks[-1].attn.qkv.register_forward_hook(lambda module, given, found: seen.append(found))
    net.forward_features(normalised(images))
    hook.remove()
    expected = seen[0][:, 1:, 192:384].mT.reshape(2, 192, 3, 3)
    torch.testing.assert_close(ViTFeatures(SMALL, 48, str(path), output="keys")(images), expected)


def test_dino_is_normalised_as_imagenet():
    with torch.device("meta"):
        config = ViTFeatures("vit_small_patch8_224.dino").net.pretrained_cfg
    assert (config["mean"], config["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_position_embeddings_are_resized(stored):
    net, path = stored
    features = ViTFeatures(SMALL, (64, 32), str(path))
    torch.testing.assert_close(features.net.pos_embed, resample_abs_pos_embed(net.pos_embed, [4, 2], [3, 3]))
    assert features(pictures()).shape == (2, 192, 4, 2)


def test_plain_pickles_of_tensors_are_read(stored, tmp_path):
    net, path = stored
    torch.save(net.state_dict(), tmp_path / "vit.pth")
    images = pictures(height=48, width=48)
    torch.testing.assert_close(ViTFeatures(SMALL, 48, str(tmp_path / "vit.pth"))(images), ViTFeatures(SMALL, 48, str(path))(images))


def test_pictures_of_another_size_are_resized_without_regard_to_proportions(stored):
    _, path = stored
    features = ViTFeatures(SMALL, 48, str(path))
    wide = pictures(height=48, width=48)[:, :, :24].repeat_interleave(4, 2)  # (96, 48)
    assert features(wide).shape == (2, 192, 3, 3)


def test_random_weights_are_those_of_the_seed():
    state = torch.get_rng_state()
    first, again, other = (build_features(SMALL, 32, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    images = pictures(height=32, width=32)
    assert torch.equal(first(images), again(images))
    assert not torch.allclose(first(images), other(images))
    assert again.restore(first.state()) is again
    with pytest.raises(ValueError, match="fitted to other features: digest"):
        other.restore(first.state())


def test_extractors_stay_in_evaluation_mode():
    for features in (OfflineFeatures(), build_features(SMALL, 32)):
        assert not any(module.training for module in features.train().modules())
        assert not features(pictures(height=32, width=32)).requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_features("offline", weights="vit.pth"), "neither weights nor keys"),
        (lambda: build_features("offline", stride=0), "stride is 1 pixel or more"),
        (lambda: OfflineFeatures().fit(torch.zeros(0, 3, 8, 8, dtype=torch.uint8)), "there are none"),
        (lambda: OfflineFeatures()(torch.zeros(3, 8, 8, dtype=torch.uint8)), r"not \(3, 8, 8\) and uint8"),
        (lambda: OfflineFeatures()(torch.zeros(1, 3, 8, 8)), r"not \(1, 3, 8, 8\) and float32"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "size", "output", "message"),
    [
        ("resnet18", 32, "keys", "resnet18 is no plain vision transformer and has no keys"),
        ("mixer_s32_224", 224, "tokens", "mixer_s32_224 gives no maps of every 8 and 16 pixels: take a network such as resnet18"),
        ("swin_tiny_patch4_window7_224", 32, "tokens", "no network in stages for pictures of 32 x 32 pixels"),
        ("vit_small_patch8_225.dino", 32, "tokens", "timm has no model"),
        (SMALL, 40, "tokens", "patches of 16 pixels: take a size that is a multiple of it, not 40 x 40"),
        ("eva02_base_patch14_224", 28, "keys", "take its tokens"),
        (SMALL, 32, "values", "tokens or keys, not 'values'"),
    ],
)
def test_networks_that_do_not_fit_are_refused(name, size, output, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_features(name, size, output=output)


def test_weights_of_another_network_are_refused(stored, tmp_path):
    net, _ = stored
    save_file({name: tensor for name, tensor in net.state_dict().items() if "blocks.3" not in name}, tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=r"do not fit vit_tiny_patch16_224:\n.*\n.*blocks\.3"):
        build_features(SMALL, 48, str(tmp_path / "vit.safetensors"))


def test_a_convolutional_network_gives_its_stages_on_the_finest_grid():
    torch.manual_seed(3)
    net = timm.create_model("resnet18").eval()
    images = pictures(height=64, width=96)
    features = CNNFeatures("resnet18", (64, 96), seed=1)
    features.net.load_state_dict({name: tensor for name, tensor in net.state_dict().items() if name in features.net.state_dict()})
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    stem = net.maxpool(net.act1(net.bn1(net.conv1((images / 255 - mean) / std))))
    second = net.layer2(net.layer1(stem))
    ones = torch.ones(1, 1, 4, 6)
    means = [torch.nn.functional.avg_pool2d(stage, 3, 1, 1) for stage in (net.layer3(second), ones)]
    third = torch.nn.functional.interpolate(means[0] / means[1], size=(8, 12), mode="bilinear")
    found = features(images)
    assert (features.channels, found.shape) == (384, (2, 384, 8, 12))
    torch.testing.assert_close(found, torch.cat([second, third], 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "channels"), [("wide_resnet50_2", 1536), ("convnext_tiny", 576)])
def test_stages_are_chosen_by_their_grids(name, channels):
    with torch.device("meta"):
        features = build_features(name, 64)
        assert features(torch.zeros(1, 3, 70, 50, dtype=torch.uint8)).shape == (1, channels, 8, 8)
    assert features.channels == channels


def test_convolutional_networks_are_frozen_and_those_of_their_seed_or_file(tmp_path):
    images = pictures(height=32, width=32)
    first, again, other = (build_features("resnet18", 32, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first(images), again(images))
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert not any(module.training for module in first.train().modules())
    assert again.restore(first.state()) is again
    with pytest.raises(ValueError, match="fitted to other features: digest"):
        other.restore(first.state())
    net = timm.create_model("resnet18")
    save_file(net.state_dict(), tmp_path / "resnet.safetensors")
    read = build_features("resnet18", 32, str(tmp_path / "resnet.safetensors"))
    assert torch.equal(read.net.state_dict()["layer2.0.conv1.weight"], net.layer2[0].conv1.weight)


def test_an_inspector_with_a_patch_memory_of_a_convolutional_network_is_rebuilt_from_its_file(tmp_path):
    images = torch.stack([draw_tray("train", index, size=64).image for index in range(24)])
    module = ComponentInspection(k=6, restarts=1, crf=False, structural="resnet18", size=64, patches=40, filter="vote", seed=3)
    module.inspector.fit(images[:16].split(8), [images[16:]])
    module.inspector.save(tmp_path / "model.safetensors")
    loaded = ComponentInspection(seed=3).load(tmp_path / "model.safetensors")
    assert isinstance(loaded.structural, CNNFeatures)
    assert loaded.inspector.memory.memory.shape == (40, 384)
    torch.testing.assert_close(loaded(images[16:]), module(images[16:]))
    with pytest.raises(ValueError, match="fitted to other features: digest"):
        ComponentInspection(seed=4).load(tmp_path / "model.safetensors")


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no backbone weights .*dino\.pth"):
        build_features(SMALL, 32, str(tmp_path / "dino.pth"))
