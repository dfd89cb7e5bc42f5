from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from projects.drs.certification import Plan
from projects.drs.cli import main
from projects.drs.denoising import denoised_branches
from projects.drs.module import DualSmoothing
from projects.drs.released import read_denoiser
from shared.backbones.denoisers import DnCNN
from shared.backbones.unets import build_unet, save_pipeline
from shared.runs import digest
from shared.smoothing import read_table
from shared.smoothing.log import read_rows
from shared.smoothing.votes import check_parts


class Blur(nn.Module):
    """Mixes neighbours."""

    def forward(self, images):
        return nn.functional.avg_pool2d(images, 3, 1, 1)


@pytest.fixture
def pipeline(tmp_path):
    torch.manual_seed(0)
    return str(save_pipeline(build_unet("tiny", 16, 1), DDPMScheduler(), tmp_path / "denoiser"))


def module(**options):
    return DualSmoothing(**({"size": 8, "channels": 1, "classes": 4, "statistics": "digits"} | options)).eval()


def test_sub_images_are_denoised_before_they_are_normalised():
    model = module()
    branch = denoised_branches(model.net, Blur(), "per_branch")[1]
    part = branch.take(torch.rand(3, 1, 8, 8))
    enlarged = nn.functional.interpolate(part, size=(8, 8), mode="nearest")
    expected = model.net.networks[1]((Blur()(enlarged) - 0.305) / 0.376)
    torch.testing.assert_close(branch.classifier(part), expected)
    plain = denoised_branches(model.net, nn.Identity(), "per_branch")[0]
    torch.testing.assert_close(plain.classifier(part), model.net.classifier(0)(part))


def test_whole_images_are_denoised_before_they_are_split():
    model = module(embedding="checkerboard_maxpool")
    branch = denoised_branches(model.net, Blur(), "shared")[1]
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(branch.classifier(branch.take(images)), model.net.classifier(1)(model.net.split.take(1)(Blur()(images))))
    with pytest.raises(ValueError, match="or those of another branch"):
        check_parts(denoised_branches(model.net, Blur(), "shared"), (1, 8, 8), may_overlap=False)


def test_only_the_radius_of_shared_noise_goes_with_a_shared_denoiser(pipeline):
    for certificate in ("joint", "main", "pooled"):
        with pytest.raises(ValueError, match="depend on one sub-image each"):
            Plan(0.25, certificate=certificate, denoiser=pipeline, denoising="shared")
    settings = Plan(0.25, denoiser=pipeline, denoising="shared").smooth(DualSmoothing(), torch.device("cpu")).settings
    assert settings["rule"] == "shared"
    with pytest.raises(ValueError, match="mixes pixels"):
        denoised_branches(module(embedding="checkerboard_maxpool").net, Blur(), "per_branch")


@pytest.mark.parametrize(("denoising", "rule"), [("per_branch", "joint"), ("shared", "shared")])
def test_certify_with_a_diffusion_model(run, pipeline, denoising, rule):
    result = main(["certify", "--denoiser", pipeline, "--denoising", denoising, "--data.limit=2", "--draws=40", "--selection=10"]).result
    settings, rows = read_rows(result.table.with_suffix(".jsonl"))
    assert settings["rule"] == rule
    assert settings["denoiser"] == digest(Path(pipeline))
    assert len(read_table(result.table)) == len(rows) == 2


def test_randomized_smoothing_with_a_diffusion_model(run_folder, pipeline):
    model = module(split="whole", embedding="packed_native", size=16)
    classifier = Plan(0.25, draws=40, selection=10, denoiser=pipeline).smooth(model, torch.device("cpu"))
    assert classifier.settings["rule"] == "main"
    assert len(classifier.certify(torch.rand(2, 1, 16, 16))) == 2


class Doubled(nn.Module):
    """Returns images at twice their width, as a U-Net of squares does."""

    def forward(self, images):
        return images.repeat_interleave(2, dim=-1)


def test_denoised_sub_images_come_back_at_the_shape_of_the_network(pipeline):
    model = module(split="column", embedding="packed_native", size=16)
    branch = denoised_branches(model.net, Doubled(), "per_branch")[0]
    part = branch.take(torch.linspace(0, 1, 16).expand(2, 1, 16, 16))
    seen = []
    model.net.networks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    branch.classifier(part)
    torch.testing.assert_close(seen[0], (part - 0.305) / 0.376, atol=0.15, rtol=0)
    classifier = Plan(0.25, draws=20, selection=5, denoiser=pipeline).smooth(model, torch.device("cpu"))
    assert len(classifier.certify(torch.rand(1, 1, 16, 16))) == 1


def test_a_folder_without_a_denoiser_is_named(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["certify", "--denoiser", str(tmp_path / "none"), "--data.limit=2"])
    assert str(tmp_path / "none") in capsys.readouterr().err


class Published(nn.Module):
    """A DnCNN of three convolutions as denoised smoothing's code lays it out."""

    def __init__(self, channels=1, width=6):
        super().__init__()
        layers = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        normalised = nn.BatchNorm2d(width, eps=1e-4)
        nn.init.uniform_(normalised.running_mean)
        nn.init.uniform_(normalised.running_var, 1e-4, 1e-3)  # small, so that eps matters
        self.dncnn = nn.Sequential(*layers, normalised, nn.ReLU(), nn.Conv2d(width, channels, 3, padding=1, bias=False))

    def forward(self, noised):
        return noised - self.dncnn(noised)


def published(path, network, prefix=""):
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    torch.save({"epoch": 90, "arch": "cifar_dncnn", "state_dict": state, "optimizer": optimizer.state_dict()}, path)
    return str(path)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_dncnns_denoise_as_they_did(tmp_path, prefix):
    network = Published().eval()
    images = torch.rand(3, 1, 8, 8)
    path = published(tmp_path / "checkpoint.pth.tar", network, prefix)
    network.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in torch.load(path)["state_dict"].items()})
    torch.testing.assert_close(read_denoiser(path, 1)(images), network(images))
    with pytest.raises(ValueError, match=r"checkpoint\.pth\.tar takes 1 channels, the images have 3"):
        read_denoiser(path, 3)


def test_certify_with_a_published_dncnn(run, tmp_path, capsys):
    path = published(tmp_path / "checkpoint.pth.tar", Published().eval())
    result = main(["certify", "--denoiser", path, "--denoising=shared", "--data.limit=2", "--draws=40", "--selection=10"]).result
    assert read_rows(result.table.with_suffix(".jsonl"))[0]["denoiser"] == digest(Path(path))
    torch.save({"arch": "memnet", "state_dict": {"feature_extractor.bn.weight": torch.ones(3)}}, tmp_path / "memnet.pth.tar")
    with pytest.raises(SystemExit):
        main(["certify", "--denoiser", str(tmp_path / "memnet.pth.tar"), "--data.limit=2"])
    assert "memnet.pth.tar holds no DnCNN (its weights are feature_extractor.bn.weight" in capsys.readouterr().err


def test_layers_of_the_published_sizes(tmp_path):
    """17 convolutions of 64 and 128 channels: weights of 3 -> w, 15 times w -> w with two of the normalisation, w -> 3, and one bias."""
    for width in (64, 128):
        denoiser = DnCNN(3, width)
        denoiser.noise[-1].register_parameter("bias", None)
        torch.save({name.replace("noise.", "dncnn."): tensor for name, tensor in denoiser.state_dict().items()}, tmp_path / "plain.pth")
        found = sum(parameter.numel() for parameter in read_denoiser(tmp_path / "plain.pth", 3).parameters())
        assert found == 27 * width + width + 15 * (9 * width**2 + 2 * width) + 27 * width
