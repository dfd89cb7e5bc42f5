import lightning as L
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from projects.rsknet import lightening
from projects.rsknet.data import SpeakerData
from projects.rsknet.lightening import lighten, separated
from projects.rsknet.lowrank import factorise
from projects.rsknet.model import RSKNet
from projects.rsknet.module import SpeakerVerification
from projects.rsknet.remembered import digests, known_to
from shared.checkpoints import load_checkpoint
from shared.losses import MarginSoftmax
from shared.quiet import quiet_trainer
from shared.seeding import generator

SIZES = {"layers": (1, 2), "widths": (6, 8), "embedding": 10, "dilations": ((1, 1), (1, 3))}
BINS = 8


def drawn(net, seed=0):
    """Give a network weights and statistics that no initialisation has."""
    rng = generator(seed, "weights")
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=rng)
                value.copy_(noise.exp() if name.endswith("running_var") else value + 0.3 * noise)
    return net.eval()


def crops(count=6, frames=40):
    return torch.randn(count, BINS, frames, generator=generator(0, "crops"))


@pytest.mark.parametrize("shape", [(12, 7, 3, 3), (5, 5, 3, 3)])
def test_separated_kernels_are_the_nearest_ones_of_rank_one_for_each_input_channel(shape):
    weight = torch.randn(shape, generator=generator(0, "kernel"), dtype=torch.float64)
    depthwise, pointwise = separated(weight)
    product = (pointwise * depthwise[:, 0]).numpy()  # (O, I, 3, 3)
    for channel in range(shape[1]):
        tail = np.linalg.svd(weight[:, channel].reshape(shape[0], 9).numpy(), compute_uv=False)[1:]
        assert np.linalg.norm(weight[:, channel].numpy() - product[:, channel]) == pytest.approx(np.linalg.norm(tail), rel=1e-10)


def test_a_convolution_that_is_separable_is_separated_exactly():
    depth, point = torch.randn(7, 1, 3, 3, generator=generator(0, "d")), torch.randn(9, 7, 1, 1, generator=generator(0, "p"))
    values = torch.randn(2, 7, 6, 11, generator=generator(0, "x"))
    depthwise, pointwise = separated(point * depth[:, 0])
    ours = F.conv2d(F.conv2d(values, depthwise, padding=1, groups=7), pointwise)
    torch.testing.assert_close(ours, F.conv2d(values, point * depth[:, 0], padding=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("separable", [False, True])
def test_low_rank_alone_keeps_the_statistics_and_errs_by_the_tail_of_the_singular_values(separable):
    full, light = drawn(RSKNet(BINS, **SIZES, separable=separable)), RSKNet(BINS, **SIZES, separable=separable, rank=4).eval()
    lighten(full, light, crops())
    torch.testing.assert_close(light.statistics(crops()), full.statistics(crops()), rtol=0, atol=0)
    product = (light.embed.second.weight @ light.embed.first.weight).detach().numpy()
    weight = full.embed.weight.detach().numpy()
    assert np.linalg.norm(weight - product) == pytest.approx(np.linalg.norm(np.linalg.svd(weight, compute_uv=False)[4:]), rel=1e-4)
    torch.testing.assert_close(light.embed.second.bias, full.embed.bias)


def separable_kernels(net):
    """Leave of each kernel behind the stem what is separable."""
    with torch.no_grad():
        for name, part in net.named_modules():
            if isinstance(part, torch.nn.Conv2d) and part.kernel_size == (3, 3) and not name.startswith("stem"):
                depthwise, pointwise = separated(part.weight)
                part.weight.copy_(pointwise * depthwise[:, 0])
    return net


@pytest.mark.parametrize("block", ["rsk", "fixed", "basic", "excited"])
def test_a_network_of_separable_kernels_becomes_its_light_twin_exactly(block):
    full = separable_kernels(drawn(RSKNet(BINS, **SIZES, block=block)))
    light = drawn(RSKNet(BINS, **SIZES, block=block, separable=True, rank=10), seed=1)
    lighten(full, light, crops())
    torch.testing.assert_close(light(crops()), full(crops()), rtol=1e-3, atol=1e-4 * float(full(crops()).detach().abs().max()))
    other = torch.randn(3, BINS, 33, generator=generator(1, "others"))
    torch.testing.assert_close(light(other), full(other), rtol=1e-3, atol=1e-4 * float(full(other).detach().abs().max()))


@torch.no_grad()
def test_training_begins_where_evaluation_does():
    full, light = separable_kernels(drawn(RSKNet(BINS, **SIZES))), RSKNet(BINS, **SIZES, separable=True, rank=10)
    lighten(full, light, crops())
    assert not any(part.training for part in full.modules())
    before = [part for part in light.modules() if isinstance(part, torch.nn.Sequential) and len(part) == 4]
    seen = []
    hooks = [part[1].register_forward_hook(lambda norm, given, found: seen.append((given[0], found))) for part in before]
    for part in light.modules():
        part.training = any(part is each[1] for each in before)  # only the new norms take the statistics of the batch
    found = light(crops())
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(before) == 9  # first convolutions and two branches of three blocks
    for given, kept in seen:
        torch.testing.assert_close(kept, given, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, full(crops()), rtol=1e-3, atol=1e-4 * float(found.detach().abs().max()))


@torch.no_grad()
def test_a_lightened_network_is_nearer_to_the_full_one_than_a_random_one():
    full = separable_kernels(drawn(RSKNet(BINS, **SIZES)))
    for part in full.stages.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.weight.mul_(1 + 0.1 * torch.randn(part.weight.shape, generator=generator(0, "bent")))
    light = drawn(RSKNet(BINS, **SIZES, separable=True, rank=8), seed=1)
    target, random = full(crops()), light(crops())
    lighten(full, light, crops())
    assert (light(crops()) - target).norm() < 0.5 * target.norm() < (random - target).norm()


@pytest.mark.parametrize("change", [{"widths": (6, 9)}, {"embedding": 11}, {"block": "basic"}, {"layers": (1, 1)}, {"scales": (2,)}])
def test_what_is_no_light_twin_is_refused_and_left_as_it_is(change):
    light = RSKNet(BINS, **(SIZES | change), separable=True, rank=4)
    before = {name: value.clone() for name, value in light.state_dict().items()}
    with pytest.raises(ValueError, match=r"no light twin[\s\S]*(shape|missing|unexpected) "):
        lighten(RSKNet(BINS, **SIZES), light, crops())
    for name, value in light.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


class Begun(L.Callback):
    """Keeps what a training began with, and writes a checkpoint at its end."""

    def __init__(self, file=None):
        self.file = file

    def on_train_start(self, trainer, pl_module):
        self.net = {name: value.clone() for name, value in pl_module.net.state_dict().items()}
        self.head = pl_module.head.weight.detach().clone()

    def on_train_end(self, trainer, pl_module):
        if self.file is not None:
            trainer.save_checkpoint(self.file)


def begun(net="tiny_rsknet_mtsp", weights=None, file=None, widths=(4,), subcentres=1, **data):
    """Train a step, and return what it began with."""
    options = {"layers": [1], "widths": list(widths), "embedding": 8} | ({"rank": 4} if net.endswith("_l") else {})
    learner = SpeakerVerification(
        net=net, options=options, weights=None if weights is None else str(weights), ramp=None, subcentres=subcentres, seed=1
    )
    seen, world = Begun(file), {"speakers": 3, "utterances": 2, "held_speakers": 2, "test_utterances": 2, "batch_size": 6}
    quiet_trainer(1, limit_val_batches=0, callbacks=[seen]).fit(learner, datamodule=SpeakerData(**(world | data)))
    return seen


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network that knows three speakers at three speeds."""
    file = tmp_path_factory.mktemp("trained") / "full.ckpt"
    begun(file=file, speed=True)
    return file


def test_training_begins_with_the_weights_and_the_classes_of_a_checkpoint(trained):
    checkpoint, seen = load_checkpoint(trained), begun(weights=trained, speed=True)
    for name, value in seen.net.items():
        torch.testing.assert_close(value, checkpoint["state_dict"][f"net.{name}"], rtol=0, atol=0)
    torch.testing.assert_close(seen.head, checkpoint["head"]["weight"], rtol=0, atol=0)


def test_without_further_speeds_speakers_keep_the_classes_of_their_own_speed(trained):
    torch.testing.assert_close(begun(weights=trained).head, load_checkpoint(trained)["head"]["weight"][:3], rtol=0, atol=0)


def test_other_speakers_begin_as_random_classes_with_a_remark(trained, capsys):
    assert begun(weights=trained, speakers=4).head.shape == (4, 8)
    assert "the classes begin at random" in capsys.readouterr().out


def test_classes_of_another_number_of_centres_begin_at_random(trained, capsys):
    begun(weights=trained, subcentres=3)
    assert "the classes begin at random" in capsys.readouterr().out


def test_classes_go_with_their_speakers_not_with_their_numbers(trained):
    checkpoint = load_checkpoint(trained)
    rows, known = checkpoint["head"]["weight"], checkpoint["speakers"]
    module = SpeakerVerification(net="tiny_rsknet_mtsp", options={"widths": (4,), "layers": (1,), "embedding": 8})
    module.head, module.learnt = MarginSoftmax(8, 2), [known[2], known[0]]
    lightening._load_classes(module, checkpoint, str(trained))
    torch.testing.assert_close(module.head.weight, rows[[2, 0]], rtol=0, atol=0)


def test_a_light_network_begins_with_what_a_full_one_factorises_into(trained, capsys):
    weights, seen = load_checkpoint(trained)["state_dict"], begun("tiny_rsknet_mtsp_l", trained).net
    assert "factorise" in capsys.readouterr().out
    for depthwise, pointwise in (
        ("stages.0.0.first.0", "stages.0.0.first.2"),
        ("stages.0.0.selective.branches.1.0", "stages.0.0.selective.branches.1.2"),
    ):
        nearest = separated(weights[f"net.{depthwise}.weight"])
        for name, value in zip((depthwise, pointwise), nearest, strict=True):
            torch.testing.assert_close(seen[f"{name}.weight"], value)
    full = torch.nn.Linear(weights["net.embed.weight"].shape[1], 8)
    full.load_state_dict({name: weights[f"net.embed.{name}"] for name in ("weight", "bias")})
    for name, value in factorise(full, 4).state_dict().items():
        torch.testing.assert_close(seen[f"embed.{name}"], value)


def test_speakers_of_the_training_before_are_remembered_and_not_tested_on(trained, tmp_path):
    first, second = load_checkpoint(trained), tmp_path / "second.ckpt"
    begun(weights=trained, file=second, speakers=2, batch_size=4)
    assert load_checkpoint(second)["speakers"] == first["speakers"][:2]
    assert set(known_to(str(second))) == set(first["speakers"])
    third = tmp_path / "third.ckpt"
    begun(weights=second, file=third, speakers=2, batch_size=4)
    assert set(known_to(str(third))) == set(first["speakers"]), "of the training before the last one too"
    torch.save(first | {"earlier": digests(["test0001"])}, tmp_path / "known.ckpt")
    with pytest.raises(ValueError, match="trained on 1 of the speakers of the trial lists, such as test0001"):
        begun(weights=tmp_path / "known.ckpt")


def test_weights_of_another_network_are_refused_by_name(trained):
    with pytest.raises(ValueError, match=r"full\.ckpt do not fit the network[\s\S]*stem\.0\.weight"):
        begun(weights=trained, widths=(5,))
