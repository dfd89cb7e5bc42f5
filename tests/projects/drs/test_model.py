import pytest
import torch
from torch.nn import functional as F

from projects.drs.model import STATISTICS, DualClassifier, build_network
from projects.drs.module import DualSmoothing, load_start
from projects.drs.released import load_released, read_released
from projects.drs.splits import BlockMax, make_split
from shared.backbones.resnets import CifarResNet
from shared.smoothing.votes import check_parts


def dual(split="checkerboard", embedding="packed_nearest", size=8, backbone="small", **options):
    torch.manual_seed(0)
    return DualClassifier(make_split(split, size, size), embedding, backbone, 4, 3, **options).eval()


def test_parameter_counts_of_the_published_networks():
    assert sum(p.numel() for p in CifarResNet(110).parameters()) == 1_730_714
    assert sum(p.numel() for p in CifarResNet(20).parameters()) == 272_474
    with pytest.raises(ValueError, match="6 n \\+ 2 layers"):
        CifarResNet(18)


def test_convolutions_begin_as_published():
    torch.manual_seed(0)
    weight = CifarResNet(20).layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("backbone", ["small", "resnet20", "test_resnet"])
@pytest.mark.parametrize(("split", "embedding"), [("checkerboard", "packed_nearest"), ("phases", "packed_native"), ("whole", "packed_native")])
def test_every_backbone_takes_every_sub_image(backbone, split, embedding):
    net = dual(split, embedding, 32, backbone)
    images = torch.rand(2, 3, 32, 32)
    for branch in net.branches():
        assert branch.classifier(branch.take(images)).shape == (2, 4)


def test_images_are_normalised_after_the_embedding():
    net = dual(statistics="cifar10")
    part = net.split.take(1)(torch.rand(2, 3, 8, 8))
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS["cifar10"])
    expected = net.networks[1]((F.interpolate(part, size=(8, 8), mode="nearest") - mean) / std)
    torch.testing.assert_close(net.classifier(1)(part), expected)


def test_the_published_embedding_keeps_zeros_before_it_normalises():
    net = dual(embedding="checkerboard_maxpool", statistics="cifar10")
    images = torch.rand(2, 3, 8, 8)
    left = torch.zeros(8, 8, dtype=torch.bool)
    left.view(-1)[net.split.parts[0].flatten()] = True
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS["cifar10"])
    expected = net.networks[0]((BlockMax(left)(images * left) - mean) / std)
    torch.testing.assert_close(net.classifier(0)(net.split.take(0)(images)), expected)


@pytest.mark.parametrize("name", ["checkerboard", "checkerboard_ref", "column", "row", "block", "random", "phases", "whole"])
def test_branches_are_what_certificates_rest_on(name):
    check_parts(dual(name).branches(), (3, 8, 8), may_overlap=False)


def test_a_branch_depends_on_its_own_pixels_only():
    for embedding in ("packed_nearest", "checkerboard_maxpool"):
        net = dual(embedding=embedding)
        images, other = torch.rand(2, 1, 3, 8, 8)
        mixed = images.clone().flatten(2)
        mixed[:, :, net.split.parts[1].flatten()] = other.flatten(2)[:, :, net.split.parts[1].flatten()]
        mixed = mixed.view_as(images)
        left, right = net.branches()
        assert torch.equal(left.classifier(left.take(images)), left.classifier(left.take(mixed)))
        assert not torch.equal(right.classifier(right.take(images)), right.classifier(right.take(mixed)))


def test_ensembles_average_logits_and_shared_networks_are_one():
    net = dual(ensemble=2)
    assert len(net.networks) == 4
    part = net.split.take(1)(torch.rand(2, 3, 8, 8))
    each = [classify(part) for branch, classify in net.members() if branch == 1]
    torch.testing.assert_close(net.classifier(1)(part), (each[0] + each[1]) / 2)
    one = dual(is_shared=True)
    assert len(one.networks) == 1
    assert len(one.members()) == 2
    torch.testing.assert_close(one.classifier(0)(part), one.classifier(1)(part))


def test_only_networks_are_saved():
    assert all(name.startswith("networks.") for name in dual(embedding="checkerboard_maxpool").state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistics": "mnist"}, "no statistics 'mnist'"),
        ({"split": "row", "embedding": "checkerboard_maxpool"}, "needs a checkerboard split"),
        ({"ensemble": 0}, "at least one network"),
        ({"backbone": "resnet5o"}, "no model 'resnet5o'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        dual(**options)


def released(path, prefix, network, extra=()):
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()} | dict(extra)
    torch.save({"epoch": 40, "arch": "cifar_resnet20", "state_dict": state, "optimizer": {"state": {}}}, path)
    return str(path)


@pytest.mark.parametrize("prefix", ["module.1.", "1.", ""])
def test_published_weights_are_converted(tmp_path, prefix):
    torch.manual_seed(1)
    networks = [CifarResNet(20, 4) for _ in range(2)]
    extra = {prefix.replace("1.", "0.") + "means": torch.zeros(3)} if "1." in prefix else {}
    files = [released(tmp_path / f"{n}.pth.tar", prefix, network, extra.items()) for n, network in enumerate(networks)]
    assert set(read_released(files[0])) == set(networks[0].state_dict())
    net = dual(backbone="resnet20", size=32, split="checkerboard_ref", embedding="checkerboard_maxpool")
    load_released(net, files)
    images = torch.rand(2, 3, 32, 32)
    for own, theirs in zip(net.networks, networks, strict=True):
        torch.testing.assert_close(own(images), theirs.eval()(images))
    with pytest.raises(ValueError, match="as many files, not 1"):
        load_released(net, files[:1])
    with pytest.raises(ValueError, match=r"do not fit the network that model\.backbone describes"):
        load_released(dual(), files)


def test_files_that_hold_no_network_are_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds no network"):
        read_released(tmp_path / "a.pth")
    torch.save({"state_dict": torch.nn.Linear(1, 1)}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="could execute code"):
        read_released(tmp_path / "b.pth")


def test_training_starts_from_a_whole_model_or_from_one_network(tmp_path):
    settings = {"size": 8, "channels": 3, "classes": 4}
    model = DualSmoothing(**settings)
    torch.save({"state_dict": model.state_dict(), "global_step": 3}, tmp_path / "whole.ckpt")
    again = DualSmoothing(**settings, seed=5)
    load_start(again.net, tmp_path / "whole.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(model.net.state_dict().values(), again.net.state_dict().values(), strict=True))
    single = DualSmoothing(**settings, split="whole", embedding="packed_native", seed=7)
    torch.save({"state_dict": single.state_dict()}, tmp_path / "single.ckpt")
    torch.save(single.net.networks[0].state_dict(), tmp_path / "network.pth")
    for name in ("single.ckpt", "network.pth"):
        started = DualSmoothing(**settings)
        load_start(started.net, tmp_path / name)
        for network in started.net.networks:
            assert all(torch.equal(a, b) for a, b in zip(single.net.networks[0].state_dict().values(), network.state_dict().values(), strict=True))
    torch.save(build_network("resnet20", 4, 3).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="fit neither this model nor one of its networks"):
        load_start(model.net, tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match="no weights"):
        load_start(model.net, tmp_path / "none.pth")


def test_networks_of_one_input_size_are_refused_at_another():
    with pytest.raises(ValueError, match=r"takes images of 224 x 224 pixels alone, not of 32 x 32: set data\.size"):
        DualClassifier(make_split("whole", 32, 32), "packed_nearest", "vit_tiny_patch16_224", 10, 3)
