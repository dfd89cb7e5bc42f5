"""Training, what validation decides, and judging pictures."""

import math

import numpy as np
import pytest
import torch
from helpers.training import Watch, check_seeded, fit_quietly
from lightning.pytorch.callbacks import Callback
from torch import nn

from projects.tripinet import tasks
from projects.tripinet.data import ManipulationData
from projects.tripinet.losses import training_loss
from projects.tripinet.metrics import LocalisationMetrics, count
from projects.tripinet.module import ManipulationLocalisation, measure
from projects.tripinet.tasks import Examples, alarms, even, remarks
from projects.tripinet.tiles import predict_tiles

SMALL = {"channels": 8, "width": 8, "lr": 1e-2}
DATA = {"size": 32, "length": 8, "test_length": 6, "batch_size": 4, "test_sets": ["noise"]}


def small(**options):
    return ManipulationLocalisation(**(SMALL | options))


def data(**options):
    made = ManipulationData(**(DATA | options))
    made.setup()
    return made


def fit(module, epochs=1, pictures=None, **options):
    return fit_quietly(module, pictures or data(), epochs, 1.0, **options)


def batch_of(**options):
    return next(iter(data(**options).train_dataloader()))


# ---- training


def test_training_learns_a_handful_of_pictures_by_heart():
    module, watch, pictures = small(streams=["rgb", "srm"]), Watch(), data(batch_size=8, kinds=["noise"], authentic=0.0)
    fit(module, 25, pictures, limit_val_batches=0, callbacks=[watch])
    assert watch.losses[-1] < 0.75 * watch.losses[0]
    images, masks = pictures.train_set.pictures.images, pictures.train_set.pictures.masks
    found = [count(one, mask).f1 for one, mask in zip(module(images), masks, strict=True)]
    assert np.mean(found) > 0.5


def test_one_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    check_seeded(lambda seed: small(seed=seed).net)


def test_readers_in_processes_of_their_own_give_the_same_batches():
    for own, other in zip(*(data(augmentation="benco", per_set=6, num_workers=workers).train_dataloader() for workers in (0, 2)), strict=True):
        assert all(torch.equal(own[name], other[name]) for name in own)


def test_the_loss_and_its_terms_are_logged(monkeypatch):
    module, batch, logged = small(edge=True, image_head=True, side_weights=[1, 0.5, 0, 0], edge_weight=2, image_weight=3), batch_of(), {}
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update(values))
    module.training_step(batch, 0).backward()
    assert set(logged) == {"train/loss", "train/sides", "train/edge", "train/image"}
    terms = training_loss(module.net(batch["image"]), batch["mask"], batch["label"], "bce_dice", [1, 0.5, 0, 0])
    torch.testing.assert_close(logged["train/loss"], (terms["sides"] + 2 * terms["edge"] + 3 * terms["image"]).detach())
    for head in (module.net.edge_head, module.net.image_head):
        assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_half_precision_trains():
    module = small(edge=True, image_head=True)
    trainer = fit(module, precision="bf16-mixed")
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert 0 <= float(trainer.callback_metrics["val/pixel_auc"]) <= 1
    assert module.decision.temperature.isfinite()


def test_schedules():
    steps = small(lr=1e-3, gamma=0.5).configure_optimizers()["lr_scheduler"]
    for _ in range(2):
        steps.optimizer.step()
        steps.step()
    assert steps.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 4)
    watch = Watch()
    fit(small(schedule="onecycle"), 2, limit_val_batches=0, callbacks=[watch])
    assert max(watch.rates) == pytest.approx(1e-2, rel=0.5)
    assert watch.rates[-1] < 1e-2 / 1000, "it ends near nothing at the last step"
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
        fit(small(schedule="onecycle"), -1)


def test_a_training_that_diverges_says_so_and_keeps_no_such_weights(tmp_path):
    with pytest.raises(ValueError, match=r"the training diverged before step 2: lower model\.lr"):
        fit(small(lr=1e30))
    module = small()
    trainer = fit(module, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    with torch.no_grad():
        module.net.heads[0].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="diverged"):
        trainer.save_checkpoint(tmp_path / "bad.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["good.ckpt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr is positive"),
        ({"gamma": 1.5}, r"gamma in \(0, 1\]"),
        ({"side_weights": [1.0, 1.0]}, r"model\.side_weights holds 4 numbers"),
        ({"tile": 500}, r"model\.tile and model\.overlap are multiples of 32"),
        ({"overlap": 0}, r"model\.tile and model\.overlap"),
        ({"streams": []}, "at least one, such as rgb"),
        ({"streams": ["rgb", "prayer"]}, "no stream 'prayer': choose among rgb, srm"),
        ({"fusion": "prayer"}, "prayer"),
        ({"decoder": "prayer"}, "prayer"),
        ({"encoder": "prayer"}, "no encoder 'prayer': choose among tiny"),
        ({"norm": "prayer"}, "no norm 'prayer': choose among batch"),
        ({"norm": "frozen", "encoder": "resnet18"}, "give weights, or choose the norm group"),
        ({"weights": "x.safetensors"}, "the tiny encoder takes neither weights"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_the_encoders_file_is_needed_for_training_only():
    options = {"encoder": "resnet18", "streams": ["srm"]}
    module = small(**options, weights="nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors: correct model\.weights"):
        fit(module)
    module.load_state_dict(small(**options).state_dict())


# ---- validation


def test_the_few_pictures_of_the_sanity_check_decide_nothing():
    class Seen(Callback):
        def on_train_start(self, trainer, pl_module):
            self.counts = pl_module.decision.counts.tolist()

    seen, module = Seen(), small()
    fit(module, 1, data(authentic=0.5), callbacks=[seen], num_sanity_val_steps=2)
    assert seen.counts == [0, 0]
    assert int(module.decision.counts[0]) == 3


def test_validation_decides_by_the_weights_of_its_epoch(monkeypatch, tmp_path):
    drawn, sheet = [], tasks.examples
    monkeypatch.setattr(tasks, "examples", lambda module, pictures: (drawn.append(float(module.decision.temperature)), sheet(module, pictures))[1])
    module, pictures = small(), data(test_length=10)
    trainer = fit(module, 1, pictures, callbacks=[Examples()], default_root_dir=tmp_path)
    batches = list(pictures.val_dataloader())
    forged = [
        (mask, found)
        for batch in batches
        for mask, found, label in zip(batch["mask"], module.judge(batch["image"]).logits.sigmoid(), batch["label"], strict=True)
        if label
    ]
    f1 = [np.mean([count(found, mask, step / 256).f1 for mask, found in forged]) for step in range(256)]
    threshold = np.argmax(f1) / 256
    assert float(module.decision.threshold.sigmoid()) == pytest.approx(min(max(threshold, 2**-10), 1 - 2**-10), abs=1e-6)
    assert float(trainer.callback_metrics["val/pixel_f1_dataset"]) == pytest.approx(max(f1), abs=1e-6)
    assert float(trainer.callback_metrics["val/pixel_f1"]) == pytest.approx(f1[128], abs=1e-6)
    assert drawn == [float(module.decision.temperature)], "the sheet shows maps by what was decided just now"
    assert int(module.decision.counts[0]) == 10 - len(forged) == 2
    assert (tmp_path / "artefacts" / "fit" / "examples-000001.png").is_file()


def test_measures_that_are_not_defined_break_no_validation():
    module, pictures = small(), data(authentic=0.9)
    pictures.val_set.pictures.masks.zero_()
    trainer = fit(module, 1, pictures)
    assert math.isnan(trainer.callback_metrics["val/pixel_f1"])


# ---- judging


def test_judging_does_not_depend_on_the_batch_or_on_the_mode():
    module, images = small(), batch_of()["image"]
    module.train()
    before = {name: value.clone() for name, value in module.net.state_dict().items()}
    together = module.judge(images)
    assert module.net.training, "the mode is the caller's"
    assert all(torch.equal(value, before[name]) for name, value in module.net.state_dict().items())
    module.eval()
    alone = [module.judge(image[None]) for image in images]
    torch.testing.assert_close(torch.cat([one.logits for one in alone]), together.logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(together.raw, together.logits.amax((1, 2, 3)))
    assert not together.logits.requires_grad
    torch.testing.assert_close(module.judge(images.float()).logits, together.logits)
    torch.testing.assert_close(module(images), together.logits.sigmoid())


def test_flips_are_the_mean_of_four_mirrored_maps():
    module, images = small().eval(), torch.randint(256, (2, 3, 33, 47), dtype=torch.uint8, generator=torch.manual_seed(0))
    maps = [module.judge(images.flip(axes)).logits.flip(axes) for axes in ([], [3], [2], [2, 3])]
    torch.testing.assert_close(module.judge(images, flips=True).logits, torch.stack(maps).mean(0))


def test_large_pictures_are_judged_in_tiles():
    module = small(whole=64 * 64, tile=64, overlap=32).eval()
    image = torch.randint(256, (3, 64, 96), dtype=torch.uint8, generator=torch.manual_seed(0))
    tiled = predict_tiles(module.net, image, 64, 32)
    torch.testing.assert_close(module.judge(image[None]).logits[0, 0], tiled)
    torch.testing.assert_close(module.judge(image[None, :, :, :64], "always").logits, module.judge(image[None, :, :, :64]).logits)
    assert not torch.allclose(module.judge(image[None], "never").logits[0, 0], tiled)


def test_small_pictures_are_mirrored_and_their_maps_cut_back():
    module, image = small().eval(), torch.randint(256, (3, 10, 40), dtype=torch.uint8, generator=torch.manual_seed(0))
    padded = torch.from_numpy(np.pad(image.numpy(), [(0, 0), (0, 22), (0, 0)], "symmetric"))
    judged = module.judge(image[None])
    torch.testing.assert_close(judged.logits, module.judge(padded[None]).logits[:, :, :10])
    assert torch.equal(judged.raw, judged.logits.amax((1, 2, 3)))
    assert module.judge(image[None], "always", flips=True).logits.shape == (1, 1, 10, 40)


def test_the_head_for_pictures_gives_the_score():
    module, images = small(image_head=True).eval(), batch_of()["image"]
    judged = module.judge(images)
    with torch.no_grad():
        torch.testing.assert_close(judged.raw, module.net(images).image)
    assert not torch.equal(judged.raw, judged.logits.amax((1, 2, 3)))


# ---- what is reported


def test_alarms_count_by_the_calibrated_score():
    module, metrics = small(), LocalisationMetrics()
    module.decision.slope.fill_(2.0), module.decision.intercept.fill_(-1.0), module.decision.temperature.fill_(3.0)
    raw = torch.tensor([-4.0, 0.4, 0.6, 5.0, 0.6])
    masks = torch.zeros(5, 1, 32, 32)
    masks[2:4, :, :4] = 1
    batch = {"mask": masks, "kind": torch.tensor([0, 0, 4, 4, 0]), "format": ["png"] * 5}
    measure(metrics, batch, torch.full((5, 1, 32, 32), 0.5), raw / module.decision.temperature)
    assert alarms(module, metrics.rows) == {"detected": 1.0, "false_alarms": pytest.approx(1 / 3)}
    assert all(math.isnan(value) for value in alarms(module, []).values())


def test_rows_of_a_table_have_the_same_columns():
    rows = [{"set": "authentic", "images": 2.0}, {"set": "all", "images": 3.0, "pixel_f1": math.nan}]
    assert even(rows) == [{"set": "authentic", "images": 2.0, "pixel_f1": None}, {"set": "all", "images": 3.0, "pixel_f1": None}]


def test_what_is_seldom_meant_is_remarked():
    assert remarks(small(), ManipulationData()) == []
    module, files = small(encoder="resnet18", streams=["block_dct"], norm="group"), {"source": "mvss", "root": "x"}
    assert len(remarks(module, ManipulationData(**files, augmentation="benco"))) == 3
    assert len(remarks(module, ManipulationData(**files, align=True))) == 1


def test_every_parameter_takes_part_in_training():
    """Several processes would wait for those that do not."""
    for options in ({}, {"symmetric": True, "streams": ["rgb", "srm"]}, {"streams": ["srm"]}, {"decoder": "cascaded", "fusion": "cbam"}):
        module, batch = small(**options), batch_of()
        terms = training_loss(module.net(batch["image"]), batch["mask"], batch["label"])
        terms["loss"].backward()
        assert not [name for name, parameter in module.named_parameters() if parameter.grad is None], options
        assert isinstance(module.net, nn.Module)
