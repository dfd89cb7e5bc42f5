"""The training: what it hides, what its terms are, units, what it learns beside fields, and what it refuses."""

import csv

import lightning as L
import pytest
import torch
from helpers.processes import start
from helpers.workers import fit_until_killed

from projects.s3rp.cli import main
from projects.s3rp.data import PlumeData
from projects.s3rp.hiding import shown_of
from projects.s3rp.layouts import write_observations
from projects.s3rp.losses import coarse_loss, negativity, roughness, step_loss
from projects.s3rp.module import SHORT, PlumeSuperResolution, scale
from projects.s3rp.observing import block_mean
from projects.s3rp.physics import Physics, Wind
from projects.s3rp.sets import Observations
from projects.s3rp.worlds import World, draw_plumes
from shared.checkpoints import load_checkpoint
from shared.seeding import generator

WORLD = World(size=16, frames=5, diffusivity=0.01)


def trainer(steps, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", max_steps=steps, log_every_n_steps=1, **quiet, **options)


def fit(module, data, steps=1, **options):
    """Train for some steps; returns what was logged last."""
    run = trainer(steps, **({"limit_val_batches": 0} | options))
    run.fit(module, data)
    return {name: float(value) for name, value in run.callback_metrics.items()}


def drawn(world=WORLD, train=4, **options):
    return PlumeData(world=world, train=train, val=3, test=3, **({"batch_size": train} | options))


class Watch(L.Callback):
    """Keeps what a network was shown in each step."""

    def on_train_start(self, trainer, module):
        self.seen = []
        self.handle = module.net.register_forward_pre_hook(lambda net, arguments: self.seen.append(arguments[0]))

    def on_train_end(self, trainer, module):
        self.handle.remove()


# ---- the terms


def test_the_loss_is_the_weighted_sum_of_its_terms():
    data = drawn(World(size=16, frames=5, diffusivity=0.01, missing=0.3))
    options = {"lambda_physics": 0.5, "lambda_negative": 0.3, "lambda_smooth": 0.2, "projection": 0.0}
    said = fit(PlumeSuperResolution(channels=4, **options), data)
    batch, physics = data.observations("train").batch(), data.observations("train").physics
    unit = batch["coarse"].amax((1, 2, 3), keepdim=True)
    fields, coarse = PlumeSuperResolution(channels=4, **options)(batch, physics) / unit, batch["coarse"] / unit
    expected = {
        "train/coarse": coarse_loss(fields, coarse, batch["mask"]),
        "train/physics": step_loss(fields, Wind(batch["u"], batch["v"]), physics),
        "train/negative": negativity(fields),
        "train/smooth": roughness(fields[:, :1], "periodic"),
    }
    for name, value in expected.items():
        assert said[name] == pytest.approx(float(value), rel=1e-4, abs=1e-9)
    weighted = sum(weight * said[name] for name, weight in zip(expected, (1, 0.5, 0.3, 0.2), strict=True))
    assert said["train/loss"] == pytest.approx(weighted, rel=1e-5)


def test_the_residual_form_is_another_loss_of_the_same_fields():
    said = {form: fit(PlumeSuperResolution(channels=4, physics=form), drawn()) for form in ("step", "residual")}
    assert said["residual"]["train/physics"] == pytest.approx(said["step"]["train/physics"], rel=0.6)
    assert said["residual"]["train/physics"] != said["step"]["train/physics"]


def in_units(observations, length, time, amount):
    """The same sequences in other units of length, time and concentration."""
    known = observations.physics
    spacing = (known.spacing[0] * length, known.spacing[1] * length)
    physics = Physics(known.diffusivity * length**2 / time, known.interval * time, spacing, known.boundary)
    wind = observations.wind.scaled(length / time, length / time)
    source = None if observations.source is None else observations.source * amount / time
    return Observations(observations.coarse * amount, observations.mask, wind, physics, observations.sigma * amount, source)


@pytest.mark.parametrize(("net", "form"), [("s3rp_d", "step"), ("s3rp_d", "residual"), pytest.param("s3rp_r", "step", marks=pytest.mark.slow)])
def test_units_change_neither_losses_nor_fields(tmp_path, net, form):
    """Metres, seconds and kilograms by cubic metre in the place of the domain's side, the time and the peak."""
    world = World(size=16, frames=5, diffusivity=0.01, sigma=0.02, missing=0.2, sources=1)
    said, fields, units = [], [], (10_000.0, 3600.0, 7.5e-6)
    options = {"hide": 0.3, "forecast": 2, "lambda_forecast": 1.0, "lambda_smooth": 0.1, "hybrid": net == "s3rp_d", "find_source": net == "s3rp_d"}
    for number, scales in enumerate([(1.0, 1.0, 1.0), units]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for split in ("train", "val"):
            write_observations(folder / f"{split}.npz", in_units(draw_plumes(world, 4, split).observations, *scales))
        module, data = PlumeSuperResolution(net=net, physics=form, channels=4, **options), PlumeData("files", str(folder), batch_size=4)
        said.append(fit(module, data, 4, limit_val_batches=1))
        fields.append(module(data.observations("train").batch(), data.observations("train").physics))
        if net == "s3rp_d":
            fields[-1] = torch.stack(
                [fields[-1], module.find_sources(data.observations("train").batch(), data.observations("train").physics).expand_as(fields[-1])]
            )
            fields[-1][1] *= scales[1]
    assert {"train/loss", "train/physics", "train/forecast", "val/loss"} <= said[0].keys()
    assert said[1] == pytest.approx(said[0], rel=2e-2, abs=1e-6)
    torch.testing.assert_close(fields[1] / units[2], fields[0], rtol=1e-2, atol=1e-3)


# ---- what is hidden


def test_what_is_hidden_is_a_function_of_seed_and_step():
    options, mask = {"hide": 0.3, "forecast": 2, "lambda_forecast": 1.0}, torch.rand(3, 6, 8, 8) > 0.2
    module, batch = PlumeSuperResolution(**options), {"mask": mask}
    for step in range(4):
        shown, ahead = shown_of(module.hparams, batch, step)
        again = shown_of(PlumeSuperResolution(**options).hparams, batch, step)
        assert torch.equal(shown, again[0])
        assert torch.equal(ahead, again[1])
        assert not bool((shown & ~mask).any() | (ahead & ~mask).any() | (shown & ahead).any())
        assert bool(ahead[:, -2:].any()) is bool(step % 2), "every other step forecasts"
        assert not ahead[:, :-2].any()
        left = mask.clone()
        left[:, -2:] &= not step % 2
        assert float(shown.sum() / left.sum()) == pytest.approx(0.7, abs=0.04)
    assert not torch.equal(shown_of(module.hparams, batch, 0)[0], shown_of(module.hparams, batch, 2)[0])
    assert not torch.equal(shown_of(module.hparams, batch, 0)[0], shown_of(PlumeSuperResolution(**options, seed=1).hparams, batch, 0)[0])


def test_sequences_too_short_for_a_forecast_are_shown_whole():
    mask = torch.ones(2, 3, 4, 4, dtype=torch.bool)
    assert torch.equal(shown_of(PlumeSuperResolution(forecast=2, lambda_forecast=1.0).hparams, {"mask": mask}, 1)[0], mask)


def test_the_network_is_not_shown_what_it_is_asked_for():
    watch, data = Watch(), drawn()
    fit(PlumeSuperResolution(channels=4, hide=0.4, forecast=2, lambda_forecast=1.0), data, 2, callbacks=[watch])
    first, second = watch.seen[:2]
    assert not bool(first.coarse[~first.mask].any())
    assert 0.4 < float(first.mask.float().mean()) < 0.8
    assert not second.mask[:, -2:].any()
    assert not second.coarse[:, -2:].any()


def test_a_curriculum_begins_with_short_sequences():
    watch = Watch()
    fit(PlumeSuperResolution(channels=4, curriculum=0.5), drawn(), 6, callbacks=[watch])
    assert [seen.frames for seen in watch.seen] == [SHORT] * 3 + [5] * 3


# ---- validation


@pytest.mark.parametrize("net", ["s3rp_d", "s3rp_r"])
def test_validation_scores_hidden_pixels_and_physics(net):
    said = fit(PlumeSuperResolution(net=net, channels=4, hide=0.3), drawn(), 1, limit_val_batches=1)
    assert said["val/coarse"] > 0
    assert said["val/physics"] > 0
    assert said["val/loss"] == pytest.approx(said["val/coarse"] + said["val/physics"])


def test_without_a_projection_and_hidden_pixels_validation_still_sees_the_observations():
    """Else a field of zeros, which moves as the equation says, would be the best."""
    module, data = PlumeSuperResolution(channels=4, projection=0.0, lr=1e-12), drawn()
    torch.nn.init.constant_(module.net.decoder[-1].bias, 0.5)
    said = fit(module, data, 1, limit_val_batches=1)
    assert said["val/coarse"] > 0.1


def test_validation_moves_by_the_physics_of_its_own_split(tmp_path):
    """Frames that lie twice as far apart as the training's are carried for twice the time."""
    for split, interval in (("train", 0.05), ("val", 0.1)):
        world = World(**(vars(WORLD) | {"interval": interval}))
        write_observations(tmp_path / f"{split}.npz", draw_plumes(world, 4, split).observations)
    data = PlumeData("files", str(tmp_path), batch_size=4)
    said = fit(PlumeSuperResolution(channels=4, lr=1e-12), data, 1, limit_val_batches=1)
    seen = data.observations("val")
    unit = seen.coarse.amax((1, 2, 3), keepdim=True)
    fields = PlumeSuperResolution(channels=4)(seen.batch(), seen.physics) / unit
    assert said["val/physics"] == pytest.approx(float(step_loss(fields, seen.wind, seen.physics)), rel=1e-3)


# ---- what it does for its user


@pytest.mark.parametrize("net", ["s3rp_d", "s3rp_r", "srcnn"])
def test_a_network_serves_sequences_of_any_length_and_size_and_keeps_its_mode(net):
    module = PlumeSuperResolution(net=net, channels=4).train()
    for size, frames in ((16, 2), (24, 7), (16, 1)):
        seen = draw_plumes(World(size=size, frames=frames, diffusivity=0.01), 2, "test").observations
        fields = module(seen.batch(), seen.physics)
        assert fields.shape == (2, frames, size, size)
        torch.testing.assert_close(block_mean(fields, 4), seen.coarse, rtol=0, atol=1e-5)
        assert torch.equal(fields, module(seen.batch(), seen.physics))
    assert module.training
    assert module.net.training


def test_only_a_stochastic_network_draws():
    seen = draw_plumes(WORLD, 2, "test").observations
    members = PlumeSuperResolution(net="s3rp_r", channels=4).sample(seen.batch(), seen.physics, 3, generator(0, "draw"))
    assert members.shape == (3, 2, 5, 16, 16)
    with pytest.raises(TypeError, match=r"draws nothing: use ensembles.matheron"):
        PlumeSuperResolution().sample(seen.batch(), seen.physics, 3, generator(0, "draw"))
    with pytest.raises(TypeError, match=r"--model.find_source true"):
        PlumeSuperResolution().find_sources(seen.batch(), seen.physics)


def test_fields_of_other_concentrations_are_those_fields_scaled():
    seen, module = draw_plumes(WORLD, 2, "test").observations, PlumeSuperResolution(channels=4)
    torch.nn.init.normal_(module.net.decoder[-1].weight, std=0.1)
    batch = seen.batch()
    torch.testing.assert_close(module(batch | {"coarse": 1024 * batch["coarse"]}, seen.physics), 1024 * module(batch, seen.physics))


def test_winds_are_shown_in_cells_a_frame():
    seen = draw_plumes(WORLD, 2, "test").observations
    moved = scale(seen.batch(), seen.physics).seen.courant
    expected = (seen.wind.u + seen.wind.u.roll(-1, -1)) / 2 * WORLD.interval * WORLD.size
    torch.testing.assert_close(moved[:, :, 0], expected)


def test_a_hidden_frame_does_not_tell_its_size():
    """The unit of a sequence is that of what the network may see: frames that it is to forecast must not come in by it."""
    watch, data = Watch(), drawn()
    known = data.observations("train")
    known.coarse[:, -2:] *= 50
    fit(PlumeSuperResolution(channels=4, forecast=2), data, 2, callbacks=[watch])
    assert float(watch.seen[1].coarse.amax((1, 2, 3)).min()) == pytest.approx(1)


# ---- seeds


@pytest.mark.parametrize("net", ["s3rp_d", "s3rp_r"])
def test_the_same_seed_gives_the_same_weights_and_another_one_others(net):
    ended = []
    for seed in (0, 0, 1):
        torch.rand(seed + 3)
        module = PlumeSuperResolution(net=net, channels=4, hide=0.2, seed=seed)
        fit(module, drawn(seed=seed, train=2), 2)
        ended.append(torch.cat([parameter.flatten() for parameter in module.parameters()]))
    assert torch.equal(ended[0], ended[1])
    assert not torch.allclose(ended[0], ended[2])


@pytest.mark.parametrize("divergence", ["mmd", pytest.param("critic", marks=pytest.mark.slow)])
def test_a_stochastic_network_learns(divergence):
    module = PlumeSuperResolution(net="s3rp_r", channels=4, hide=0.2, divergence=divergence, lr=1e-2)
    first, last = fit(module, drawn(), 1), fit(module, drawn(), 8)
    assert last["train/ahead"] < first["train/ahead"]
    assert {"train/latents", "train/crps"} <= last.keys()


# ---- what is learnt beside fields


@pytest.mark.slow
@pytest.mark.parametrize("off", [0.5, 2.0])
def test_the_diffusivity_is_found_again(tmp_path, off):
    world = World(size=16, factor=2, frames=5, diffusivity=0.01, widths=(0.08, 0.12))
    for split in ("train", "val"):
        seen = draw_plumes(world, 16, split).observations
        physics = seen.physics.with_options(diffusivity=off * 0.01)
        write_observations(tmp_path / f"{split}.npz", Observations(seen.coarse, seen.mask, seen.wind, physics))
    module = PlumeSuperResolution(factor=2, channels=8, learn_diffusivity=True, lr=1e-2)
    said = fit(module, PlumeData("files", str(tmp_path), batch_size=16), 250)
    assert said["train/diffusivity"] == pytest.approx(0.01, rel=0.2)


@pytest.mark.slow
def test_sources_are_found():
    """Steady releases in a world without anything else: the map has its peak there, and the loss falls."""
    world = World(size=16, frames=6, diffusivity=0.01, sources=1, rates=(0.2, 0.4), wind=0.3, mean_wind=0.3, interval=0.1)
    plumes = draw_plumes(world, 32, "train", known_source=False)
    data = drawn(world, train=32, batch_size=8)
    data._observations["train"] = plumes.observations
    losses, ends = {}, {}
    for looks in (False, True):
        module = PlumeSuperResolution(channels=8, find_source=looks, lr=5e-3)
        losses[looks] = fit(module, data, 250)["train/physics"]
        ends[looks] = module
    assert losses[True] < losses[False]
    found = ends[True].find_sources(plumes.observations.batch(), plumes.observations.physics)[:, 0]
    place, true = (field.flatten(1).argmax(1) for field in (found, plumes.source[:, 0]))
    gap = torch.stack([(place // 16 - true // 16), (place % 16 - true % 16)]).abs()
    gap = torch.minimum(gap, 16 - gap).float().square().sum(0).sqrt()
    assert float(gap.median()) <= 4, "within a coarse cell"


# ---- going on


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 4], ids=["in an epoch", "between epochs"])
@pytest.mark.parametrize("net", ["s3rp_d", "s3rp_r"])
def test_a_killed_training_ends_where_an_unbroken_one_does(run_folder, small, monkeypatch, step, net):
    common = [
        "fit",
        *small,
        f"--model.net={net}",
        f"--model.forecast={2 * (net == 's3rp_d')}",
        "--trainer.max_epochs=3",
        "--model.curriculum=0.4",
        "--save_every=1",
        "--members=0",
    ]
    environment = {"TOUCHSTONE_RUNS": str(run_folder), "OMP_NUM_THREADS": "1"}
    process = start(fit_until_killed, [*common, "--run=broken"], "s3rp", step, environment=environment)
    process.join()
    assert process.exitcode == -9
    main(["fit", "--resume", "--run=broken"])
    main([*common, "--run=whole"])
    broken, whole = (load_checkpoint(run_folder / "s3rp" / name / "checkpoints" / "last.ckpt") for name in ("broken", "whole"))
    assert broken["global_step"] == whole["global_step"] == 6
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(broken["state_dict"][name], value, atol=1e-6, rtol=1e-5)
    rows = [list(csv.DictReader((run_folder / "s3rp" / name / "fit" / "metrics.csv").open())) for name in ("broken", "whole")]
    scores = [[float(row["val/loss"]) for row in part if row["val/loss"]][-1] for part in rows]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


# ---- what it refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"net": "unet"}, "no model.net 'unet': choose among s3rp_d, s3rp_r, srcnn"),
        ({"boundary": "wall"}, "no model.boundary 'wall'"),
        ({"cell": "rnn"}, "no model.cell 'rnn'"),
        ({"grid": "medium"}, "no model.grid 'medium'"),
        ({"physics": "weak"}, "no model.physics 'weak'"),
        ({"divergence": "kl"}, "no model.divergence 'kl'"),
        ({"channels": 0}, "model.channels must be at least 1"),
        ({"members": 0}, "model.members must be at least 1"),
        ({"lambda_physics": -1}, "model.lambda_physics must be 0 or more"),
        ({"beta": -1}, "model.beta must be 0 or more"),
        ({"forecast": -1}, "model.forecast must be 0 or more"),
        ({"projection": 1.5}, "model.projection lies between 0 and 1"),
        ({"curriculum": 2}, "model.curriculum lies between 0 and 1"),
        ({"hide": 1.0}, "model.hide is a part"),
        ({"lr": 0}, "model.lr must be positive"),
        ({"net": "srcnn", "forecast": 2}, "a srcnn knows single frames"),
        ({"net": "s3rp_r", "find_source": True}, "model.find_source needs the net s3rp_d"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PlumeSuperResolution(**options)


def test_a_training_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"set trainer.max_epochs or trainer.max_steps"):
        fit(PlumeSuperResolution(channels=4), drawn(), -1, max_epochs=-1)


def test_a_training_that_diverged_is_refused():
    module = PlumeSuperResolution(channels=4)
    with torch.no_grad():
        module.net.cell.gates.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"diverged before step .*: lower model.lr"):
        trainer(1).validate(module, drawn(), verbose=False)
