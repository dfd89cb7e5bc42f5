"""Training of the network, its schedules and its head, and what embedding does with recordings of any length."""

import math
import shutil
from functools import lru_cache

import lightning as L
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from projects.rsknet.data import SpeakerData
from projects.rsknet.metrics import eer
from projects.rsknet.model import NETS
from projects.rsknet.module import SpeakerVerification
from shared.callbacks import ResumePoint
from shared.checkpoints import load_checkpoint
from shared.quiet import quiet_trainer, silence
from shared.seeding import generator

RATE, SIZE = 8000, 12
SMALL = {"layers": [1, 1, 1], "widths": [4, 6, 8], "embedding": SIZE}
SPEAKERS = 4


@lru_cache
def data():
    """Sixteen short recordings, two steps an epoch."""
    return SpeakerData(
        speakers=SPEAKERS, utterances=4, held_speakers=3, held_trials=30, test_utterances=3, batch_size=8, length=0.7, seconds=0.4, seed=5
    )


def small(net="tiny_rsknet_mtsp", **options):
    return SpeakerVerification(net, SMALL | options.pop("options", {}), **options)


def fit(module, epochs=2, callbacks=(), validate=False, ckpt_path=None):
    trainer = quiet_trainer(epochs, accelerator="cpu", callbacks=list(callbacks), limit_val_batches=1.0 if validate else 0)
    torch.manual_seed(0)
    with silence():
        trainer.fit(module, datamodule=data(), ckpt_path=ckpt_path)
    return trainer


def waveforms(*lengths, seed=0):
    return [0.1 * torch.randn(length, generator=generator(seed, "waveform", place)) for place, length in enumerate(lengths)]


class Watch(L.Callback):
    """Notes the margin and the learning rate of each step, and the features that the network is given."""

    def __init__(self, blanks=False):
        self.margins, self.rates, self.blanks, self.is_watched = [], [], [], blanks

    def on_train_start(self, trainer, module):
        if self.is_watched:
            self.hook = module.net.register_forward_pre_hook(lambda net, inputs: self.blanks.append(inputs[0] == 0))

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.margins.append(module.head.margin)


class Copies(L.Callback):
    """Keeps the point to resume from of each step."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        shutil.copy(self.folder / "last.ckpt", self.folder / f"{trainer.global_step}.ckpt")


# ---- schedules


def test_the_learning_rate_falls_as_published():
    """From 0 up in 6 of 150 epochs, times an exponential from 0.1 to 5e-5."""
    module = small(lr=0.1, final_lr=5e-5, warm_up=0.04)
    epochs = np.arange(151)
    rates = 0.1 * np.array([module.decay(epoch / 150) for epoch in epochs])
    np.testing.assert_allclose(rates, np.minimum(1, epochs / 6) * 0.1 * np.exp(np.log(5e-4) * epochs / 150), rtol=1e-12)
    assert rates[0] == 0
    assert rates.argmax() == 6
    assert rates[-1] == pytest.approx(5e-5)
    assert module.decay(1.2) == module.decay(1), "steps behind the end stay there"
    assert small(lr=0.1, warm_up=0.0).decay(0.0) == 1


def test_margin_and_learning_rate_are_functions_of_the_step():
    watch, module = Watch(), small(optimiser="sgd", lr=0.01, final_lr=1e-4, warm_up=0.25, schedule="exponential", ramp=[0.25, 0.75], margin=0.3)
    fit(module, 4, [watch])
    parts = np.clip((np.arange(8) - 2) / 4, 0, 1)
    expected = np.where(parts < 1, 0.3 * (1 - 0.001**parts), 0.3)
    np.testing.assert_allclose(watch.margins, expected, rtol=1e-12)
    np.testing.assert_allclose(watch.rates, [0.01 * module.decay(step / 8) for step in range(8)], rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "margin"), [({"ramp": None}, 0.2), ({"loss": "softmax", "ramp": [0.0, 0.5]}, 0.0), ({"loss": "am"}, 0.2)], ids=str
)
def test_without_a_ramp_the_margin_stands_from_the_first_step(options, margin):
    watch = Watch()
    fit(small(**options), 1, [watch])
    assert watch.margins == [margin, margin]


def test_a_training_without_end_has_no_schedule():
    with pytest.raises(ValueError, match=r"set trainer.max_epochs or trainer.max_steps"):
        fit(small(), -1)


# ---- the head, and going on


def kept():
    return small(ramp=[0.0, 1.0], spec_augment=True, dither=100.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training of two epochs, two steps each, and a checkpoint of each step."""
    folder = tmp_path_factory.mktemp("whole")
    module, watch = kept(), Watch()
    fit(module, 2, [ResumePoint(folder, 1), Copies(folder), watch], validate=True)
    return folder, module, watch


def test_checkpoints_keep_the_head_apart_from_what_is_kept_of_a_network(whole):
    folder, module, _ = whole
    checkpoint = load_checkpoint(folder / "last.ckpt")
    assert set(checkpoint["state_dict"]) == set(module.state_dict()) == {f"net.{name}" for name in module.net.state_dict()}
    assert checkpoint["head"]["weight"].shape == (SPEAKERS, SIZE)
    assert module.head is None
    loaded = SpeakerVerification.load_from_checkpoint(folder / "last.ckpt", weights_only=True)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_training_that_goes_on_ends_with_the_same_weights_and_classes(whole, tmp_path, step):
    folder, _, watch = whole
    again, went_on = kept(), Watch()
    fit(again, 2, [ResumePoint(tmp_path, 1), went_on], validate=True, ckpt_path=folder / f"{step}.ckpt")
    assert went_on.margins == watch.margins[step:]
    assert went_on.rates == watch.rates[step:]
    one, other = (load_checkpoint(place / "last.ckpt") for place in (folder, tmp_path))
    for part in ("state_dict", "head"):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())
    assert one["global_step"] == other["global_step"] == 4


def test_validation_measures_the_cosines_of_held_out_pairs(whole):
    _, module, _ = whole
    trainer = module.trainer
    recordings, trials = data().held, data().held_trials
    alone = {name: module(recordings.read(place)[None])[0].double() for place, name in enumerate(recordings.names)}
    sides = [(trials.models[a][0], trials.tests[b]) for a, b in zip(trials.enrol.tolist(), trials.test.tolist(), strict=True)]
    scores = torch.stack([F.cosine_similarity(alone[one], alone[other], dim=0) for one, other in sides])
    truth = torch.tensor([one.split("/")[0] == other.split("/")[0] for one, other in sides])
    assert 0 < truth.sum() < len(truth)
    assert float(trainer.callback_metrics["val/eer"]) == pytest.approx(eer(scores, truth), abs=1e-6)
    assert 0 < float(trainer.callback_metrics["val/min_dcf"]) <= 1
    norms = module.validated.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_error_rates_of_a_part_of_the_recordings_are_not_given():
    module = small()
    module.embedded = [(torch.tensor([0, 2]), torch.eye(12)[:2])]
    assert torch.equal(module.gathered([2, 0]), torch.eye(12)[[1, 0]])
    with pytest.raises(ValueError, match=r"1 of 3 recordings were not embedded.*leave out trainer.limit_val_batches"):
        module.gathered(range(3))


def test_weights_that_are_no_numbers_are_not_kept():
    with pytest.raises(ValueError, match="the training diverged before step"):
        fit(small(lr=1e30), 2, validate=True)


# ---- training options


def test_masks_of_features_depend_on_seed_and_step_alone():
    blanks = []
    for seed, noise in ((0, 0.0), (0, 1.0), (1, 0.0)):
        watch = Watch(blanks=True)
        fit(small(spec_augment=True, seed=seed, dither=noise), 1, [watch])
        blanks.append(torch.stack(watch.blanks))
    assert torch.equal(blanks[0], blanks[1])
    assert not torch.equal(blanks[0], blanks[2])
    one, two = blanks[0]
    assert not torch.equal(one, two)
    assert 0.02 < float(one.float().mean()) < 0.6


def test_dither_is_noise_of_its_deviation_in_training_alone():
    inputs = {}
    for noise in (0.0, 1000.0):
        module, inputs[noise] = small(dither=noise, lr=1e-9), []
        extracted = module.fbank.register_forward_pre_hook(lambda fbank, given, found=inputs[noise]: found.append(given[0].clone()))
        fit(module, 1, validate=True)
        extracted.remove()
    differences = [noisy - plain for plain, noisy in zip(inputs[0.0], inputs[1000.0], strict=True)]
    assert len(differences) > 2
    for step in (0, 1):
        assert float(differences[step].std()) == pytest.approx(1000 / 2**15, rel=0.02)
    assert not torch.equal(differences[0], differences[1])
    assert not any(difference.any() for difference in differences[2:]), "none in validation"


def test_the_first_factor_of_a_light_embedding_is_kept_near_to_orthogonal_rows():
    spreads = []
    for semi_orthogonal in (False, True):
        module = small("tiny_rsknet_mtsp_l", options={"rank": 4}, semi_orthogonal=semi_orthogonal)
        fit(module, 6)
        weight = module.net.embed.first.weight.detach()
        product = weight @ weight.T
        spreads.append(float((product / product.diagonal().mean() - torch.eye(4)).abs().max()))
    assert spreads[1] < 0.2 * spreads[0]


def test_one_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    first = small(seed=3).net.state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(weight, first[name]) for name, weight in small(seed=3).net.state_dict().items())
    assert not torch.equal(small(seed=4).net.stem[0].weight, first["stem.0.weight"])


def test_options_reach_the_network():
    module = SpeakerVerification("tiny_rsknet_mtsp", {"scales": [3], "block": "basic", "embedding": 20}, bins=30)
    assert (module.net.scales, module.embedding_size, module.net.bins) == ((3,), 20, 30)
    assert SpeakerVerification("tiny_xvector", coefficients=13).net(torch.zeros(2, 13, 40)).shape == (2, 64)


# ---- embedding


@pytest.mark.parametrize("net", [name for name in NETS if name.startswith("tiny")])
@pytest.mark.parametrize("mean_window", [None, 20])
def test_padding_changes_no_embedding(net, mean_window):
    module = SpeakerVerification(net, mean_window=mean_window).eval()
    parts = waveforms(5600, 2750, 4001)
    batch, lengths = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True), torch.tensor([len(part) for part in parts])
    together = module(batch, lengths)
    noisy = module(torch.where(torch.arange(5600) < lengths[:, None], batch, 0.3), lengths)
    for place, part in enumerate(parts):
        torch.testing.assert_close(together[place], module(part[None])[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(noisy, together, atol=1e-5, rtol=1e-5)
    assert torch.equal(module(batch[:1], lengths[:1]), module(batch[:1]))


def test_long_recordings_are_averaged_over_windows_that_overlap_by_half_and_reach_to_the_end():
    module, frames = small(longest=1.0).eval(), []
    long, short = waveforms(20_000, 6000)
    starts = [0, 4000, 8000, 12_000]
    windows = torch.stack([module(long[None, start : start + RATE])[0] for start in starts])
    batch = torch.stack([long, F.pad(short, (0, 20_000 - 6000))])
    with_hook = module.net.register_forward_pre_hook(lambda net, inputs: frames.append(tuple(inputs[0].shape)))
    found = module(batch, torch.tensor([20_000, 6000]))
    with_hook.remove()
    torch.testing.assert_close(found[1], module(short[None])[0])
    assert {shape[2] for shape in frames} == {module.fbank.frames(RATE), module.fbank.frames(6000)}, "memory does not grow with the recording"
    assert len(frames) == len(starts) + 1
    torch.testing.assert_close(found[0], windows.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(module(long[None])[0], found[0])
    for samples in (8001, 12_001, 20_001):  # a sample more, a window more, which ends with the recording
        longer = torch.stack(waveforms(samples))
        places = np.floor(np.linspace(0, samples - RATE, math.ceil((samples - RATE) / 4000) + 1)).astype(int)
        assert np.diff(places).max() <= 4000
        expected = torch.stack([module(longer[:, place : place + RATE])[0] for place in places]).mean(0)
        torch.testing.assert_close(module(longer)[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("longest", [1.0, 60.0])
def test_recordings_shorter_than_a_frame_are_refused(longest):
    module = small(longest=longest).eval()
    with pytest.raises(ValueError, match="100 samples is shorter than one frame: at least 200 samples"):
        module(torch.zeros(1, 100))
    with pytest.raises(ValueError, match=r"100 samples is shorter than (a|one) frame"):
        module(torch.zeros(2, 9000), torch.tensor([9000, 100]))


def test_embedding_is_without_chance_in_any_mode_and_leaves_the_mode_alone():
    module = small(spec_augment=True, dither=100.0).train()
    module.net.stages[0].eval()
    batch = torch.stack(waveforms(4000, 4000))
    statistics = {name: value.clone() for name, value in module.net.state_dict().items()}
    found = module(batch)
    assert torch.equal(found, module(batch))
    assert torch.equal(found, module.eval()(batch))
    assert all(torch.equal(value, statistics[name]) for name, value in module.net.state_dict().items())
    assert not found.requires_grad
    module.train()
    module(batch)
    assert module.training


def test_weights_of_double_precision_embed_alike_and_those_of_half_precision_are_refused():
    batch, lengths = torch.stack(waveforms(4000, 4000)), torch.tensor([4000, 3000])
    torch.testing.assert_close(small().double()(batch, lengths), small()(batch, lengths), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"weights are torch.bfloat16.*use --trainer.precision bf16-mixed"):
        small().bfloat16()(batch)


def test_features_are_without_their_mean():
    features, frames = small().eval().features(torch.stack(waveforms(4000, 4000)), torch.tensor([4000, 3000]))
    assert frames.tolist() == [39, 29]
    assert float(features[0].mean(1).abs().max()) < 1e-4
    assert float(features[1, :, :29].mean(1).abs().max()) < 1e-4
    assert not features[1, :, 29:].any()


# ---- what is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"net": "resnet99"}, "no network 'resnet99': choose among rsknet_mtsp"),
        ({"options": {"prayer": 1}}, "the network tiny_rsknet_mtsp does not take these options"),
        ({"options": {"block": "cube"}}, "no block 'cube'"),
        ({"loss": "hinge"}, "no loss 'hinge': choose among aam, am, softmax"),
        ({"optimiser": "lion"}, "no optimiser 'lion': choose among sgd, adamw"),
        ({"schedule": "none"}, "no schedule 'none': choose among exponential, onecycle"),
        ({"lr": 0.0}, "lr and final_lr are positive"),
        ({"warm_up": 1.0}, "warm_up lies in"),
        ({"ramp": [0.3, 0.2]}, "model.ramp holds the parts of the training where the margin begins and ends to rise"),
        ({"ramp": [0.3]}, "model.ramp holds"),
        ({"longest": 0.5}, "model.longest is at least 1 second"),
        ({"average": -1}, "model.average 0 or more"),
        ({"window": "kaiser"}, "window must be one of hamming"),
        ({"bins": 500}, "500 mel filters are too many"),
        ({"coefficients": 30}, "coefficients must be from 1 to the number of mel filters, 24"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SpeakerVerification(**options)
