"""Training, what validation measures, and judging pictures."""

from typing import get_args

import numpy as np
import pytest
import torch
from helpers.training import Watch, check_seeded, fit_quietly
from torch.nn import functional as F

from projects.hodinet.data import SaliencyData
from projects.hodinet.decoders import DecoderName
from projects.hodinet.fusion import FusionName
from projects.hodinet.losses import Kind, saliency_loss
from projects.hodinet.metrics import PROTOCOLS, SaliencyMetrics
from projects.hodinet.module import VALIDATED, SaliencyDetection
from shared.quiet import quiet_trainer, silence

WIDTHS = [8, 12, 16, 20]
SMALL = {"widths": WIDTHS, "size": 32, "lr": 1e-2}
DATA = {"size": 32, "length": 8, "test_length": 6, "batch_size": 4}


def small(**options):
    return SaliencyDetection(**(SMALL | options))


def data(**options):
    made = SaliencyData(**(DATA | options))
    made.setup()
    return made


def fit(module, epochs=1, pictures=None, **options):
    return fit_quietly(module, pictures or data(), epochs, 1.0, **options)


def batch_of(**options):
    return next(iter(data(**options).train_dataloader()))


def pair(height, width, batch=2):
    generator = torch.Generator().manual_seed(height)
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
    return images, torch.rand(batch, 1, height, width, generator=generator)


def losses(module, batch):
    return saliency_loss(module.net(batch["image"], batch["depth"]), batch["mask"], module.hparams.loss, module.hparams.head_weights)


def distance(first, second):
    """The largest difference between two modules' weights."""
    return max(float((one - other).detach().abs().max()) for one, other in zip(first.parameters(), second.parameters(), strict=True))


# ---- training


@pytest.mark.slow
def test_training_learns_a_handful_of_pictures_by_heart():
    module, watch, pictures = small(gamma=1.0), Watch(), data(length=4, augmentation="none")
    fit(module, 30, pictures, limit_val_batches=0, callbacks=[watch])
    assert watch.losses[-1] < 0.75 * watch.losses[0]
    learnt, metrics = pictures.train_set.pictures, SaliencyMetrics()
    metrics.update_batch(zip(module(learnt.images, learnt.depths), learnt.masks, strict=True))
    assert metrics.compute()["f_max"] > 0.8


def test_one_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    check_seeded(lambda seed: small(seed=seed).net)


@pytest.mark.parametrize("loss", get_args(Kind))
def test_the_loss_and_its_terms_are_logged(monkeypatch, loss):
    module, batch, logged = small(loss=loss, head_weights=[1, 0.5, 0.25, 0]), batch_of(), {}
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update(values))
    module.training_step(batch, 0)
    terms = losses(small(loss=loss, head_weights=[1, 0.5, 0.25, 0]), batch)
    assert set(logged) == {f"train/{name}" for name in terms}
    for name, value in terms.items():
        torch.testing.assert_close(logged[f"train/{name}"], value.detach())


def test_only_the_finest_head_learns_where_the_others_weigh_nothing():
    module, batch = small(head_weights=[1, 0, 0, 0]), batch_of()
    terms = losses(module, batch)
    terms["loss"].backward()
    with torch.no_grad():
        finest = module.net(batch["image"], batch["depth"])[:1]
    torch.testing.assert_close(terms["loss"].detach(), saliency_loss(finest, batch["mask"])["loss"])
    learns = [any(parameter.grad.abs().sum() > 0 for parameter in head.parameters()) for head in module.net.heads]
    assert learns == [True, False, False, False]


@pytest.mark.parametrize(
    "options",
    [
        *({"fusion": fusion, "decoder": decoder} for fusion in get_args(FusionName) for decoder in get_args(DecoderName)),
        {"aspp": True},
        {"streams": ["rgb"]},
        {"streams": ["depth"], "decoder": "fpn"},
        {"head_weights": [1, 0, 0, 0]},
        {"placement": "CCSS", "signed": True, "order": 3, "pool": 2},
        {"rgb": "tiny_cnn", "depth": "tiny_transformer"},
    ],
    ids=str,
)
def test_every_parameter_takes_part_in_training(options):
    """Several processes would wait for those that do not."""
    module = small(**options)
    losses(module, batch_of())["loss"].backward()
    assert not [name for name, parameter in module.named_parameters() if parameter.grad is None]
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
    for encoder in module.net.encoders.values():
        assert sum(float(parameter.grad.abs().sum()) for parameter in encoder.parameters()) > 0


def test_half_precision_gives_about_the_same_loss():
    module, batch = small(), batch_of()
    whole = losses(module, batch)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = losses(small(), batch)["loss"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(whole.item(), rel=0.02)


def test_half_precision_trains_with_gradients_cut_down():
    module, watch = small(), Watch()
    trainer = fit(module, precision="bf16-mixed", callbacks=[watch])
    assert np.isfinite(watch.losses).all()
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert 0 <= float(trainer.callback_metrics["val/s_measure"]) <= 1


def test_double_precision_trains_and_judges():
    watch = Watch()
    trainer = fit(small(), precision="64-true", callbacks=[watch])
    assert np.isfinite(watch.losses).all()
    assert 0 <= float(trainer.callback_metrics["val/s_measure"]) <= 1


@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_the_fused_optimiser_takes_the_steps_of_the_plain_one(optimiser):
    options = {"optimiser": optimiser, "lr": 1e-3, "weight_decay": 0.1}
    module, plain, batch = small(**options), small(**options), batch_of()
    fused = module.configure_optimizers()["optimizer"]
    other = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimiser](plain.parameters(), 1e-3, weight_decay=0.1, fused=False, foreach=False)
    losses(module, batch)["loss"].backward()
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for own, one in zip(module.parameters(), plain.parameters(), strict=True):
            own.grad = torch.randn(own.shape, generator=generator)
            one.grad = own.grad.clone()
        fused.step()
        other.step()
    assert distance(module, plain) < 1e-6
    assert distance(module, small(**options)) > 1e-3


def test_schedules():
    steps = small(lr=1e-3, gamma=0.5).configure_optimizers()["lr_scheduler"]
    for _ in range(2):
        steps.optimizer.step()
        steps.step()
    assert steps.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 4)
    watch = Watch()
    fit(small(gamma=0.5), 3, limit_val_batches=0, callbacks=[watch])
    assert watch.rates == pytest.approx([1e-2] * 2 + [5e-3] * 2 + [2.5e-3] * 2), "two steps an epoch"
    watch = Watch()
    fit(small(schedule="onecycle"), 3, limit_val_batches=0, callbacks=[watch])
    assert max(watch.rates) == pytest.approx(1e-2, rel=0.1)
    assert watch.rates[0] == pytest.approx(1e-2 / 25)
    assert watch.rates[-1] < 1e-2 / 1000, "it ends near nothing at the last step"


def test_a_training_that_diverges_says_so_and_keeps_no_such_weights(tmp_path):
    with pytest.raises(ValueError, match=r"the training diverged before step 2: lower model\.lr"):
        fit(small(lr=1e30))
    module = small()
    trainer = fit(module, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    with torch.no_grad():
        next(module.net.heads[0].parameters())[0] = torch.nan
    with pytest.raises(ValueError, match="diverged"):
        trainer.save_checkpoint(tmp_path / "bad.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["good.ckpt"]


def test_a_checkpoint_gives_the_same_module_without_running_code(tmp_path):
    module = small(fusion="concat", streams=["depth", "rgb"], head_weights=[1, 0.5, 0.5, 0.5], size=None, schedule="step")
    fit(module, limit_val_batches=0).save_checkpoint(tmp_path / "one.ckpt")
    stored = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert stored["hyper_parameters"] == dict(module.hparams)
    again = SaliencyDetection.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    assert dict(again.hparams) == dict(module.hparams)
    assert torch.equal(again(*pair(40, 50)), module(*pair(40, 50)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr is positive"),
        ({"gamma": 1.5}, r"gamma in \(0, 1\]"),
        ({"gamma": 0.0}, r"gamma in \(0, 1\]"),
        ({"weight_decay": -0.1}, "weight_decay 0 or more"),
        ({"head_weights": [1.0, 1.0]}, r"model\.head_weights holds 4 numbers"),
        ({"head_weights": [1.0, 1.0, 1.0, -1.0]}, r"model\.head_weights holds 4 numbers"),
        ({"head_weights": [0.0] * 4}, "not all 0"),
        ({"size": 31}, r"model\.size must be at least 32 pixels, got 31"),
        ({"streams": []}, "the streams are rgb, depth or both, not none"),
        ({"streams": ["rgb", "prayer"]}, "the streams are rgb, depth or both"),
        ({"rgb": "prayer"}, "no encoder 'prayer': choose among pvt_v2_b0"),
        ({"depth": "prayer"}, "no encoder 'prayer'"),
        ({"fusion": "prayer"}, "no fusion 'prayer': choose among high_order"),
        ({"decoder": "prayer"}, "prayer"),
        ({"placement": "SSC"}, "such as SSCC, not 'SSC'"),
        ({"widths": [8, 12, 16]}, "width"),
        ({"widths": [7, 12, 16, 20]}, "even"),
        ({"order": 1}, "order"),
        ({"pool": 0}, "pool"),
        ({"chunk": -1}, "chunk"),
        ({"loss": "prayer"}, "no loss 'prayer': choose among hybrid"),
        ({"optimiser": "prayer"}, "no optimiser 'prayer': choose among adam"),
        ({"schedule": "prayer"}, "no schedule 'prayer': choose among step"),
        ({"frozen_norms": True}, "takes no weights, frozen norms or checkpointing"),
        ({"rgb_weights": "x.safetensors"}, "takes no weights"),
        ({"depth": "resnet50", "frozen_norms": True, "rgb": "pvt_v2_b0"}, "give weights"),
        ({"rgb": "pvt_v2_b0", "rgb_weights": "pretrained"}, "give the path of a .safetensors or .pth file"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


# ---- validation and testing


def test_validation_measures_what_the_module_finds():
    module, pictures = small(), data()
    trainer = fit(module, 1, pictures)
    metrics = SaliencyMetrics()
    for one in pictures.val_set:
        metrics.update(module(one["image"][None], one["depth"][None])[0], one["mask"])
    expected = metrics.compute()
    assert {name: float(trainer.callback_metrics[f"val/{name}"]) for name in VALIDATED} == pytest.approx(
        {name: expected[name] for name in VALIDATED}, abs=1e-6
    )


def test_each_set_is_tested_under_both_protocols():
    module, pictures = small(), data(test_sets=["default", "inverted"])
    trainer = quiet_trainer(1, accelerator="cpu")
    with silence():
        trainer.test(module, datamodule=pictures, verbose=False)
    for name, own in zip(pictures.test_names, pictures.test_pictures, strict=True):
        assert {protocol: len(metrics.rows) for protocol, metrics in module.tested[name].items()} == dict.fromkeys(PROTOCOLS, 6)
        assert [one.place for one in module.measured[name]] == list(range(6))
        alone = SaliencyMetrics("pysod").update(module(own[2]["image"][None], own[2]["depth"][None])[0], own[2]["mask"])
        assert module.measured[name][2].numbers == pytest.approx(alone, abs=1e-5)
        assert float(trainer.callback_metrics[f"test/f_max_{name}"]) == pytest.approx(module.tested[name]["pysod"].compute()["f_max"])
    assert module.tested["default"]["pysod"].compute() != module.tested["inverted"]["pysod"].compute()


# ---- judging


def test_a_map_is_the_networks_probability():
    module, (images, depth) = small().eval(), pair(32, 32)
    found = module(images, depth)
    assert (found.shape, found.dtype, found.requires_grad) == ((2, 1, 32, 32), torch.float32, False)
    with torch.no_grad():
        torch.testing.assert_close(found, module.net(images, depth)[0].sigmoid())
    torch.testing.assert_close(module(images.float(), depth), found)


def test_pictures_are_judged_at_one_size_and_their_maps_scaled_back():
    module, (images, depth) = small(size=64).eval(), pair(40, 90)
    found = module(images, depth)
    scaled = [F.interpolate(layers.float(), (64, 64), mode="bilinear", antialias=True) for layers in (images, depth)]
    with torch.no_grad():
        logits = module.net(*scaled)[0]
    torch.testing.assert_close(found, F.interpolate(logits, (40, 90), mode="bilinear").sigmoid())


def test_a_large_picture_is_scaled_down_as_pillow_does():
    from PIL import Image

    module, (images, _) = small(size=32), pair(150, 211, 1)
    found = module.fitted(images)[0].permute(1, 2, 0)
    expected = np.asarray(Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(found.numpy(), expected, atol=1.1, err_msg="Pillow rounds twice")


@pytest.mark.parametrize(("height", "width"), [(20, 50), (32, 33), (96, 31), (1, 1)])
def test_without_a_size_pictures_are_judged_as_they_are_and_small_ones_enlarged(height, width):
    module, (images, depth) = small(size=None).eval(), pair(height, width)
    found = module(images, depth)
    assert found.shape == (2, 1, height, width)
    enlarged = [F.interpolate(layers.float(), (max(height, 32), max(width, 32)), mode="bilinear", antialias=True) for layers in (images, depth)]
    with torch.no_grad():
        logits = module.net(*enlarged)[0]
    torch.testing.assert_close(found, F.interpolate(logits, (height, width), mode="bilinear").sigmoid())


def test_judging_does_not_depend_on_the_batch_or_on_the_mode():
    module, (images, depth) = small(), pair(40, 50, 4)
    module.train()
    before = {name: value.clone() for name, value in module.net.state_dict().items()}
    together = module(images, depth)
    assert all(layer.training for layer in module.net.modules()), "the mode is the caller's"
    assert all(torch.equal(value, before[name]) for name, value in module.net.state_dict().items())
    module.eval()
    alone = [module(image[None], near[None]) for image, near in zip(images, depth, strict=True)]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-5)
    assert not any(layer.training for layer in module.net.modules())


@pytest.mark.parametrize("stream", ["rgb", "depth"])
def test_a_stream_alone_is_told_nothing_by_the_other(stream):
    module, (images, depth), (others, far) = small(streams=[stream]).eval(), pair(32, 32), pair(33, 33)
    found, other = module(images, depth), module(others[:, :, :32, :32], depth) if stream == "depth" else module(images, far[:, :, :32, :32])
    assert torch.equal(found, other)
    assert list(module.net.encoders) == [stream]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_trained_network_needs_no_file_of_its_encoders(tmp_path, frozen):
    """Only a training that begins does, and then says so."""
    from shared.backbones.factory import build_backbone

    files = {f"{name}_weights": tmp_path / f"{name}.pth" for name in ("rgb", "depth")}
    options = {"rgb": "resnet50", "depth": "resnet50", "size": None, "frozen_norms": frozen, "widths": [8, 8, 8, 8]}
    for file in files.values():
        torch.save(build_backbone("resnet50", None).state_dict(), file)
    with_files = SaliencyDetection(**options, **{name: str(file) for name, file in files.items()})
    with_files.check_weights()
    weights = with_files.state_dict()
    for file in files.values():
        file.unlink()
    without = SaliencyDetection(**options, **{name: str(file) for name, file in files.items()})
    without.load_state_dict(weights)
    layers = [torch.rand(1, channels, 64, 64) for channels in (3, 1)]
    assert torch.equal(without(*layers), with_files(*layers))
    with pytest.raises(FileNotFoundError, match=r"no weights file .*rgb\.pth: correct model.rgb_weights"):
        without.check_weights()
