"""Training of networks: its loss, its schedules, the norms' statistics, and where a network looks."""

import copy
import math
from argparse import ArgumentError

import pytest
import torch
from helpers.forgery_layouts import video, write_celeb_list, write_preview, write_reference
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from projects.forgery_nas.data import SearchData
from projects.forgery_nas.genotype import RELEASED, random_genotype
from projects.forgery_nas.maps import grad_cam, map_sheet
from projects.forgery_nas.metrics import batch_auroc
from projects.forgery_nas.module import ForgeryNetTraining
from projects.forgery_nas.norms import measure_norms
from projects.forgery_nas.operations import SPACE
from shared.callbacks import ResumePoint
from shared.forgery.data import ForgeryData
from shared.forgery.detection import fit_detector, score
from shared.forgery.faces import faces
from shared.forgery.metrics import Scored, auroc, roc
from shared.quiet import quiet_trainer, silence
from shared.seeding import generator

SMALL = {"channels": 2, "layers": 2, "size": 16, "drop_path": 0.0, "norm_batches": 2}


def small(**options):
    return ForgeryNetTraining(**(SMALL | options))


def few(**options):
    return ForgeryData(**({"length": 16, "test_length": 8, "size": 16, "batch_size": 4, "test_sets": ["swap"]} | options))


@pytest.fixture(scope="module")
def images():
    return faces("test", 4, size=32).frames


class Watch(Callback):
    """Notes what a step begins with, and saves the training at one of them."""

    def __init__(self, path=None, step=-1):
        self.path, self.step, self.steps = path, step, []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.steps.append((batch, getattr(module.net, "drop_path", None), rate))
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("head", ["last", "pyramid"])
def test_a_step_follows_the_gradient_of_both_losses(head):
    data = few(length=4, size=64)
    module = small(head=head, auxiliary=True, size=64, layers=2, reductions=[1], lr=0.1, weight_decay=0.01, norm_batches=0)
    before, watch = copy.deepcopy(module.net).train(), Watch()
    fit_detector(module, data, 1, callbacks=[watch])
    batch = watch.steps[0][0]
    logits = before(batch["image"])
    levels = [F.cross_entropy(level, batch["label"]) for level in before.auxiliary_logits]
    assert len(levels) == 1
    (F.cross_entropy(logits, batch["label"]) + 0.4 * sum(levels) / len(levels)).backward()
    after = dict(module.net.named_parameters())
    for name, parameter in before.named_parameters():
        expected = parameter - 0.1 * (parameter.grad + 0.01 * parameter)
        torch.testing.assert_close(after[name], expected, atol=1e-6, rtol=1e-5)


def test_paths_are_dropped_more_and_the_rate_falls_along_a_cosine():
    watch = Watch()
    fit_detector(small(drop_path=0.2, lr=0.1), few(), 2, callbacks=[watch])
    assert [dropped for _, dropped, _ in watch.steps] == pytest.approx([0.2 * step / 8 for step in range(8)])
    assert [rate for *_, rate in watch.steps] == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 8)) for step in range(1, 9)])


def test_norms_are_those_of_the_batches():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2, momentum=0.2))
    same, batches = copy.deepcopy(net), [torch.rand(5, 3, 8, 8) for _ in range(3)]
    same[3] = nn.Identity()
    update_bn(batches, same)
    net[3].eval()
    modes, state = [layer.training for layer in net.modules()], torch.get_rng_state()
    measure_norms(net, batches)
    assert torch.equal(torch.get_rng_state(), state), "nothing was dropped"
    assert [layer.training for layer in net.modules()] == modes
    assert (net[1].momentum, net[5].momentum) == (0.1, 0.2)
    for place in (1, 5):
        torch.testing.assert_close(net[place].running_mean, same[place].running_mean)
        torch.testing.assert_close(net[place].running_var, same[place].running_var)


def test_a_short_training_is_not_judged_by_variances_of_one():
    judged = {}
    for batches in (0, 4):
        data, module = few(), small(norm_batches=batches)
        fit_detector(module, data, 1)
        batch = data.train_set.__getitems__(range(16))["image"]
        with torch.no_grad():
            judged[batches] = (module.eval().net(batch) - module.train().net(batch)).abs().mean() / module.net(batch).std()
    assert judged[4] < 0.1 < judged[0], judged


def test_a_broken_training_ends_with_the_same_weights_and_statistics(tmp_path):
    def run(callbacks, path=None):
        module = small(drop_path=0.3)
        torch.manual_seed(0 if path is None else 1)
        with silence():
            trainer = quiet_trainer(2, accelerator="cpu", callbacks=[ResumePoint(tmp_path / "last", 100), *callbacks])
            trainer.fit(module, datamodule=few(), ckpt_path=path)
        assert torch.isfinite(trainer.callback_metrics["val/video_auroc"])
        return module.state_dict()

    whole = run([Watch(tmp_path / "broken.ckpt", 3)])
    again = run([], tmp_path / "broken.ckpt")
    assert all(torch.equal(value, again[name]) for name, value in whole.items() if value.is_floating_point())


def test_a_checkpoint_needs_no_other_file(tmp_path):
    file = tmp_path / "genotype.json"
    file.write_text(random_genotype(SPACE, torch.Generator().manual_seed(1)).to_json())
    module = fit_detector(small(genotype=str(file)), few(length=4), 1)
    trainer = quiet_trainer(1)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "some.ckpt", weights_only=True)
    file.unlink()
    again = ForgeryNetTraining.load_from_checkpoint(tmp_path / "some.ckpt", weights_only=True).eval()
    assert again.genotype == module.genotype != RELEASED
    pictures = faces("test", 4, size=16).frames
    assert torch.equal(again(pictures), module(pictures))


@pytest.mark.slow
def test_the_paper_s_network_takes_a_step_on_the_authors_sets(tmp_path):
    root = write_reference(tmp_path)
    write_celeb_list(root)
    write_preview(root)
    video(root / "CDF" / "Celeb-real" / "id4_0001")
    names = {"architecture_sets": ["CDF"], "test_sets": ["FaceForensics++", "CDF", "DFDCP", "WDF"]}
    data = SearchData(source="reference", root=str(root), size=64, batch_size=4, train_frames=1, test_frames=1, augmentation="vflip", **names)
    module = ForgeryNetTraining(norm_batches=1)
    before = module.net.stem[0].weight.clone()
    assert sum(parameter.numel() for parameter in module.net.parameters()) == 9_285_806
    with silence():
        trainer = quiet_trainer(1, accelerator="cpu", limit_train_batches=1, limit_val_batches=0, gradient_clip_val=5.0)
        trainer.fit(module, datamodule=data)
    assert trainer.global_step == 1
    assert not torch.equal(module.net.stem[0].weight, before)
    assert data.test_names == ["FaceForensics++", "CDF (searched)", "DFDCP", "WDF"]
    assert score(module, data.test_sets[3]).scores.isfinite().all()


def test_one_seed_gives_the_same_network_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    first = small(seed=3).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(weight, first[name]) for name, weight in small(seed=3).state_dict().items())
    assert not torch.equal(small(seed=4).net.stem[0].weight, first["net.stem.0.weight"])


def test_a_training_that_diverges_says_so():
    with pytest.raises(ValueError, match=r"the training diverged before step 4: lower model\.lr, or set trainer\.gradient_clip_val"):
        fit_detector(small(lr=1e30), few(), 1)


def test_test_sets_are_also_judged_as_the_released_test_does(tmp_path):
    data, module = few(test_length=40, test_sets=["swap", "reenact"]), small()
    with silence():
        quiet_trainer(1, accelerator="cpu").test(module, data)
    for row, images in zip(module.test_rows, data.test_sets, strict=False):
        assert row["batch_auroc"] == batch_auroc(score(module, images)) != row["frame_auroc"]
    assert module.test_rows[2]["batch_auroc"] == pytest.approx(sum(row["batch_auroc"] for row in module.test_rows[:2]) / 2)


def test_the_released_test_s_average_is_no_auc_of_the_set():
    torch.manual_seed(0)
    scores, labels = torch.rand(110, dtype=torch.float64), (torch.rand(110) < 0.5).long()
    scored = Scored(scores, labels, torch.arange(110))
    assert batch_auroc(scored, 110) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    order = torch.randperm(110, generator=generator(0, "forgery_nas batches"))
    parts = order.split(24)
    areas = [roc_auc_score(labels[part], scores[part]) for part in parts]
    assert batch_auroc(scored) == pytest.approx(sum(len(part) * area for part, area in zip(parts, areas, strict=True)) / 110, abs=1e-12)
    drifting = Scored((scores + torch.arange(110)) / 111, labels, torch.arange(110))
    assert batch_auroc(drifting) != auroc(roc(*drifting.columns))
    alone = Scored(scores, torch.zeros(110).long().index_fill(0, parts[1][:1], 1), torch.arange(110))
    assert batch_auroc(alone) == roc_auc_score(alone.labels[parts[1]], scores[parts[1]]), "batches of one class are left out"
    assert math.isnan(batch_auroc(Scored(scores, torch.zeros(110).long(), torch.arange(110))))


def test_options_of_the_search_are_no_settings_of_the_training():
    parser = LightningArgumentParser(parser_mode="omegaconf+", exit_on_error=False)
    parser.add_lightning_class_args(ForgeryNetTraining, "model")
    given = [
        "--model.search.level",
        "alpha",
        "--model.search.space=[none,skip_connect]",
        "--model.search.keep=1",
        "--model.channels=2",
        "--model.layers=2",
    ]
    module = parser.instantiate(parser.parse_args(given)).model
    assert (module.search.level, module.search.operations, module.hparams.channels) == ("alpha", ("none", "skip_connect"), 2)
    assert "search" not in module.hparams
    with pytest.raises(ArgumentError, match="beta"):
        parser.parse_args(["--model.search.level", "beta"])


@pytest.mark.parametrize("network", ["meso4", "mesoinception4", "test_efficientnet"])
def test_hand_made_networks_train_in_the_same_way(network):
    data, module = few(size=32, length=8), ForgeryNetTraining(network=network, size=32)
    fit_detector(module, data, 1)
    assert module.genotype is None
    scored = score(module, data.test_sets[0])
    assert scored.scores.isfinite().all()
    assert module.explanation(data.test_sets[0].frames[:2]).shape == (3, 2 * (128 + 3) + 3, 2 * (128 + 3) + 3)


def test_maps_are_the_closed_form_of_a_linear_head(images):
    module = small(size=32).eval()
    with torch.no_grad():
        features = module.net.stages(images)[-1]
        real, fake = module.net.head.linear.weight
        expected = torch.einsum("c,bchw->bhw", (fake - real) / features[0, 0].numel(), features).relu()
    torch.testing.assert_close(grad_cam(module.net, images), expected, atol=1e-6, rtol=1e-4)


def test_maps_of_the_pyramid_are_the_gradient(images):
    net = small(size=32, head="pyramid").eval().net
    kept = []
    hook = net.cells[-1].register_forward_hook(lambda layer, inputs, output: kept.append(output.retain_grad() or output))
    logits = net(images)
    hook.remove()
    (logits[:, 1] - logits[:, 0]).sum().backward()
    expected = (kept[0].grad.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu()
    torch.testing.assert_close(grad_cam(net, images), expected.detach(), atol=1e-6, rtol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(grad_cam(net, images), expected.detach(), atol=1e-6, rtol=1e-4)


def test_maps_lie_below_their_images(images):
    sheet = map_sheet(small(size=32).eval().net, images)
    assert sheet.shape == (3, 2 * (128 + 3) + 3, 4 * (128 + 3) + 3)
    torch.testing.assert_close(sheet[:, 3:131:4, 3:131:4], images[0] / 255)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"genotype": "found.json"}, FileNotFoundError, "give a JSON file, or one of the built-in released"),
        ({"genotype": '{"normal": 1}'}, ValueError, "a genotype is"),
        ({"weights": "file.pth"}, ValueError, "is for networks of timm"),
        ({"network": "mesonet"}, ValueError, "timm has no model 'mesonet'"),
        ({"lr": 0}, ValueError, "lr is positive"),
        ({"norm_batches": -1}, ValueError, "norm_batches are 0 or more"),
        ({"head": "first"}, ValueError, "no head 'first'"),
    ],
)
def test_options_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        small(**options)
