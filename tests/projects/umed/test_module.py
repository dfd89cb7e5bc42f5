from types import SimpleNamespace

import lightning as L
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from projects.umed.callbacks import Protections, change_sheet, protection_sheet
from projects.umed.data import ProtectionData
from projects.umed.losses import segmentation_loss
from projects.umed.module import Protector
from projects.umed.perturb import regions
from shared.quiet import quiet_trainer, silence

SMALL = {"generator_widths": [4, 6], "surrogate_widths": [4, 6], "lr_generator": 3e-3, "lr_surrogate": 3e-3}


def small(**options):
    return Protector(**(SMALL | options))


def data(**options):
    return ProtectionData(**({"batch_size": 4, "length": 24, "test_length": 6, "size": 16} | options))


def weights(net):
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def fit(module, **options):
    trainer = quiet_trainer(**({"epochs": 1, "accelerator": "cpu"} | options))
    with silence():
        trainer.fit(module, datamodule=data())
    return trainer


class Watch(L.Callback):
    """Notes after each step which side has moved, and in which mode the surrogate was."""

    def __init__(self):
        self.moved, self.modes, self.logged = [], [], set()

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.before = weights(module.perturbator), weights(module.surrogate)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        after = weights(module.perturbator), weights(module.surrogate)
        self.moved.append("".join(side for side, old, new in zip("gs", self.before, after, strict=True) if not torch.equal(old, new)))
        self.modes.append(module.surrogate.training)
        self.logged |= set(trainer.callback_metrics)


def test_sides_take_turns_and_the_other_one_is_frozen():
    module, watch = small(gen_steps=2, sur_steps=1), Watch()
    trainer = fit(module, callbacks=[watch])
    assert watch.moved == list("ggsggs")
    assert watch.modes == [False, False, True] * 2, "generators must not use a batch's statistics"
    assert module.iterations == trainer.global_step == 6
    assert {"train/generator_loss", "train/surrogate_loss", "train/dice", "val/psnr", "val/surrogate_dice"} <= watch.logged | set(
        trainer.callback_metrics
    )
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert [small(gen_steps=1, sur_steps=3).is_generator_turn(step) for step in range(5)] == [True, False, False, False, True]


def prepared(module, monkeypatch):
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: float(value)}))
    module._trainer = SimpleNamespace(world_size=1)
    optimizers = module.configure_optimizers()
    monkeypatch.setattr(module, "optimizers", lambda: optimizers)
    monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
    monkeypatch.setattr(module, "toggle_optimizer", lambda optimizer: None)
    monkeypatch.setattr(module, "untoggle_optimizer", lambda optimizer: None)
    return logged


@pytest.mark.parametrize("iteration", [0, 4])
def test_both_lower_cross_entropy_and_soft_dice(monkeypatch, iteration):
    module = small()
    logged, module.iterations = prepared(module, monkeypatch), iteration
    batch = next(iter(_ready(data()).train_dataloader()))
    module.surrogate.eval()
    images = batch["image"].float() / 255
    expected = segmentation_loss(module.surrogate((images + module(images, batch["mask"])).clamp(0, 1)), batch["mask"])
    module.training_step(batch, 0)
    name = "train/generator_loss" if iteration == 0 else "train/surrogate_loss"
    assert logged[name] == pytest.approx(expected.item(), abs=1e-6)


def _ready(module):
    module.setup()
    return module


def test_images_without_foreground_do_not_teach_the_generators(monkeypatch):
    module = small()
    logged = prepared(module, monkeypatch)
    batch = next(iter(_ready(data()).train_dataloader()))
    batch["mask"][1:] = 0
    images = batch["image"].float() / 255
    module.surrogate.eval()
    alone = segmentation_loss(module.surrogate(images[:1] + module(images[:1], batch["mask"][:1])), batch["mask"][:1])
    module.training_step(batch, 0)
    assert logged["train/generator_loss"] == pytest.approx(alone.item(), abs=1e-5)
    batch["mask"][:] = 0
    module.training_step(batch, 0)
    assert logged["train/generator_loss"] == 0, "and a batch without any is no 0 / 0"
    assert weights(module).isfinite().all()


def test_rounding_in_training_is_that_of_storage(monkeypatch):
    module = small(round_in_training=True)
    logged = prepared(module, monkeypatch)
    batch = next(iter(_ready(data()).train_dataloader()))
    module.surrogate.eval()
    expected = segmentation_loss(module.surrogate(module.protect(batch["image"], batch["mask"]).float() / 255), batch["mask"])
    before = weights(module.perturbator)
    module.training_step(batch, 0)
    assert logged["train/generator_loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert not torch.equal(before, weights(module.perturbator)), "gradients pass straight through"


def test_perturbations_are_laid_on_other_images_by_chance(monkeypatch):
    module, batch = small(exchange=1.0), next(iter(_ready(data()).train_dataloader()))
    logged, images = prepared(module, monkeypatch), batch["image"].float() / 255
    module.surrogate.eval()
    swapped = (images[[3, 0, 1, 2]] + module(images, batch["mask"])).clamp(0, 1)
    expected = segmentation_loss(module.surrogate(swapped), batch["mask"])
    module.training_step(batch, 0)
    assert logged["train/generator_loss"] == pytest.approx(expected.item(), abs=1e-6)
    with pytest.raises(ValueError, match="probability"):
        small(exchange=2)


class SaveThird(L.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 2:
            trainer.save_checkpoint(self.path)


def test_training_goes_on_in_the_middle_of_a_turn(tmp_path):
    options = {"gen_steps": 2, "sur_steps": 2, "augmentations": ["flip", "blur"]}
    whole, again, path = small(**options), small(**options), tmp_path / "third.ckpt"
    fit(whole, callbacks=[SaveThird(path)])
    watch, trainer = Watch(), quiet_trainer(1, accelerator="cpu")
    trainer.callbacks.append(watch)
    with silence():
        trainer.fit(again, datamodule=data(), ckpt_path=path, weights_only=True)
    assert watch.moved == list("sgg"), "the third step was the surrogate's first"
    assert again.iterations == 6
    assert torch.equal(weights(again), weights(whole))
    assert Protector.load_from_checkpoint(path, weights_only=True).iterations == 3


def test_test_measures_stored_integers_like_scikit_image():
    module, images = small(), _ready(data())
    with silence():
        found = quiet_trainer(1, accelerator="cpu").test(module, datamodule=images, verbose=False)[0]
    batch = images.test_set.__getitems__(range(len(images.test_set)))
    clean, stored = batch["image"], module.protect(batch["image"], batch["mask"])
    assert stored.dtype == torch.uint8
    pairs = list(zip(clean[:, 0].numpy(), stored[:, 0].numpy(), strict=True))
    psnr = [peak_signal_noise_ratio(before, after, data_range=255) for before, after in pairs]
    options = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    assert found["test/psnr"] == pytest.approx(sum(psnr) / len(psnr), abs=1e-3)
    assert found["test/ssim"] == pytest.approx(sum(structural_similarity(*pair, **options) for pair in pairs) / len(pairs), abs=2e-3)
    assert 0 < found["test/max_change"] <= 4
    assert found["test/psnr_roi"] < found["test/psnr"]
    assert 0 <= found["test/surrogate_dice"] <= 100


@pytest.mark.parametrize(("channels", "classes", "shape"), [(1, 1, (16, 16)), (3, 2, (21, 34))])
def test_any_image_can_be_protected(channels, classes, shape):
    module = small(channels=channels, classes=classes, epsilon=8.0)
    images = torch.randint(256, (2, channels, *shape), dtype=torch.uint8)
    masks = torch.zeros(2, *shape, dtype=torch.int64)
    masks[:, 3:12, 3:12] = 1
    masks[:, 5:9, 5:9] = classes
    delta, stored = module.delta(images, masks), module.protect(images, masks)
    assert delta.shape == images.shape
    assert not delta.requires_grad
    assert delta.abs().max() <= 8 / 255 + 1e-7
    assert (stored.int() - images.int()).abs().max() <= 8
    found = regions(masks, module.hparams.radius, classes)
    assert torch.equal(stored[~(found.band | found.interior).expand_as(stored)], images[~(found.band | found.interior).expand_as(stored)])
    assert module.perturbator.training, "the mode is what it was"


def test_one_seed_gives_the_same_networks_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    first = small(seed=3)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(weights(first), weights(small(seed=3)))
    assert not torch.equal(weights(first), weights(small(seed=4)))


def test_wrong_images_and_data_are_named():
    module = small()
    images, masks = torch.zeros(1, 1, 16, 16, dtype=torch.uint8), torch.zeros(1, 16, 16, dtype=torch.int64)
    with pytest.raises(ValueError, match="of uint8"):
        module.protect(images.float(), masks)
    with pytest.raises(ValueError, match="whole-number masks"):
        module.protect(images, masks[:, :8])
    with pytest.raises(ValueError, match=r"set model\.channels"):
        module.check_set(_ready(data(channels=3)))
    with pytest.raises(ValueError, match=r"set model\.classes"):
        module.check_set(_ready(data(classes=2)))
    with pytest.raises(ValueError, match=r"epsilon in 0\.5 to 127 levels"):
        small(epsilon=4 / 255)


def test_sheet_shows_what_is_done_where():
    module, images = small(channels=3), _ready(data(channels=3))
    batch = images.val_set.__getitems__(range(4))
    picture = protection_sheet(module, batch["image"], batch["mask"])
    assert picture.shape == (3, 4 * 96 + 15, 4 * 96 + 15)
    assert picture.min() >= 0
    assert picture.max() <= 1


def test_a_sheet_shows_images_of_any_size_by_their_own_pixels_around_the_foreground():
    module, mask = small(), torch.zeros(300, 20, dtype=torch.int64)
    mask[280:290, 5:15] = 1
    clean = torch.full((1, 300, 20), 100, dtype=torch.uint8)
    stored = clean.clone()
    stored[0, 281, 6], stored[0, 0, 0] = 102, 104
    picture = change_sheet(module, [clean, clean[:, :50]], [stored, clean[:, :50]], [mask, mask[:50]])
    height, change = 256 + 3, picture[0, 3 + 2 * (256 + 3) :, 3:23]
    assert picture.shape == (3, 4 * height + 3, 3 + 2 * (40 + 3))
    assert change[281 - 44, 6] == 2 / module.hparams.epsilon
    assert change[:256].count_nonzero() == 1, "the change far from the foreground is cut off"


def test_sheet_is_logged_at_the_end(monkeypatch):
    names = []
    monkeypatch.setattr("projects.umed.callbacks.log_image", lambda trainer, name, image, step: names.append((name, step)))
    fit(small(), callbacks=[Protections(every=1)])
    assert names == [("protection", 1), ("protection", None)]


def test_generators_lower_the_loss_of_a_frozen_surrogate(monkeypatch):
    module = small(gen_steps=100, lr_generator=2e-2)
    logged, losses = prepared(module, monkeypatch), []
    batch = next(iter(_ready(data()).train_dataloader()))
    for _ in range(25):
        module.training_step(batch, 0)
        losses.append(logged["train/generator_loss"])
    assert losses[-1] < losses[0] - 0.01


def test_the_band_grows_with_the_images_unless_it_is_given():
    masks = torch.zeros(1, 300, 256, dtype=torch.int64)
    masks[:, 100:200, 50:150] = 1
    images = torch.full((1, 1, 300, 256), 128, dtype=torch.uint8)
    for options, reach in (({}, 4), ({"radius": 2}, 2)):
        delta = small(size=32, **options).delta(images, masks)[0, 0]
        rows, columns = delta.nonzero().unbind(1)
        assert [int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())] == [100 - reach, 199 + reach, 50 - reach, 149 + reach]


def test_no_device_perturbs_more_pixels_at_once_than_its_memory_holds(monkeypatch):
    module, seen = small(), []
    module.perturbator.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    images, masks = torch.zeros(5, 1, 16, 16, dtype=torch.uint8), torch.zeros(5, 16, 16, dtype=torch.int64)
    monkeypatch.setattr("projects.umed.module._TOGETHER", 2 * 16 * 16)
    whole = module.delta(images, masks)
    assert module.to("meta").delta(images, masks).shape == whole.shape
    assert seen == [5, 2, 2, 1]
