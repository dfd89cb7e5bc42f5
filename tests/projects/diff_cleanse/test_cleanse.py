import json
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from projects.diff_cleanse import cleanse as cleansing
from projects.diff_cleanse.cleanse import Pictures, Recipe, cleanse, generate, plan_pruning, prune
from projects.diff_cleanse.cleanse_task import describe, make_recipe
from projects.diff_cleanse.inspection import Inspection, Trigger, common_picture, draw, short_steps, without_repetitions
from projects.diff_cleanse.repair import Repair, antithetic_timesteps, dual_loss, fit
from projects.diff_cleanse.scan_report import EXIT_CODES
from projects.diff_cleanse.schedule import NoiseSchedule
from shared.backbones.unets import build_unet, load_pipeline, replace_unet, save_pipeline
from shared.pruning import report

CONFIG = {"num_train_timesteps": 20, "beta_start": 1e-3, "beta_end": 0.3, "beta_schedule": "linear"}
QUICK = Recipe(generated=24, pictures=4, steps=3, batch=8, samples=30, shares=(0.1,))
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return build_unet("tiny", 8, 1).eval()


@pytest.fixture(scope="module")
def trigger():
    pattern = torch.full(SHAPE, -1.0)
    pattern[:, 4:7, 4:7] = 0.0
    return Trigger(pattern, "ddim")


@pytest.fixture(scope="module")
def cleansed(unet, trigger):
    return cleanse(unet, CONFIG, trigger, pictures(), recipe=QUICK, rescan=False)


def pictures(count=24):
    return Pictures(torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def repair_of(unet, plan=None, **options):
    return Repair(unet, deepcopy(unet), NoiseSchedule.from_scheduler_config(CONFIG), pictures(), 8, plan, **({"seed": 5} | options))


# ---- the loss


def test_dual_loss_is_summed_over_pixels_and_averaged_over_the_batch():
    predicted, eps, taught = torch.randn(3, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    expected = sum(((eps[i] - predicted[i]) ** 2).sum() + 0.5 * ((taught[i] - predicted[i]) ** 2).sum() for i in range(5)) / 5
    torch.testing.assert_close(dual_loss(predicted, eps, taught, weight=0.5), expected)
    torch.testing.assert_close(dual_loss(predicted, eps, taught, weight=0), F.mse_loss(predicted, eps) * 16)


def test_timesteps_come_in_antithetic_pairs():
    t = antithetic_timesteps(torch.arange(8), 20)
    assert t.tolist() == [0, 1, 2, 3, 19, 18, 17, 16]
    assert antithetic_timesteps(torch.arange(5), 20).tolist() == [0, 1, 2, 19, 18]


@pytest.mark.parametrize("loss", ["dual", "plain", "elijah"])
def test_every_loss_trains_the_student_only(unet, trigger, loss):
    student, before = build_unet("tiny", 8, 1), {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    student.load_state_dict(unet.state_dict())
    module = Repair(student, unet, NoiseSchedule.from_scheduler_config(CONFIG), pictures(), 8, None, loss, trigger, lr=1e-3, ema_decay=0.5)
    fit(module, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    moved = [name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(moved) > 0.9 * len(before)


def test_losses_that_need_something_say_so(unet):
    with pytest.raises(ValueError, match="elijah needs a trigger"):
        repair_of(unet, loss="elijah")
    with pytest.raises(ValueError, match="unknown loss 'triple'; known are dual, plain, elijah"):
        repair_of(unet, loss="triple")


# ---- pruning and tuning


def test_pruned_channels_stay_at_zero_through_tuning_and_averaging(unet, trigger, cleansed):
    images = pictures().images
    plan = plan_pruning(unet, CONFIG, trigger, images[:4], QUICK, 0.1)
    assert set(plan.dropped) == set(plan.index.free)  # at least one channel a group
    weights = cleansed.unet.state_dict()
    pruned = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for name, channels in plan.dropped.items():
        for item in plan.index.groups[name].items:
            if item.tensor and item.name not in plan.index.uncounted:
                pruned[item.name].index_fill_(item.dim, item.idx[torch.isin(item.root, channels)], 1)
    assert sum(int(mask.sum()) for mask in pruned.values()) > 1000
    assert all(bool((weights[name][mask.bool()] == 0).all()) for name, mask in pruned.items())
    kept = torch.cat([(weights[name] != unet.state_dict()[name])[~mask.bool()] for name, mask in pruned.items()])
    assert kept.float().mean() > 0.9  # all others were tuned


def test_tuning_goes_on_where_it_stopped(unet, tmp_path):
    def student():
        network = build_unet("tiny", 8, 1)
        network.load_state_dict(unet.state_dict())
        return network

    whole = repair_of(student())
    fit(whole, 6)

    class KilledError(Exception):
        pass

    stopped = repair_of(student())
    real_step = stopped.training_step

    def step(batch, batch_idx):
        if stopped.global_step == 4:
            raise KilledError
        return real_step(batch, batch_idx)

    stopped.training_step = step
    with pytest.raises(KilledError):
        fit(stopped, 6, state=tmp_path / "last.ckpt", every=2)
    resumed = repair_of(student())
    fit(resumed, 6, state=tmp_path / "last.ckpt", every=2)
    assert not any(name.startswith("teacher") for name in torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(a, b) for a, b in zip(whole.ema.parameters(), resumed.ema.parameters(), strict=True))


@pytest.mark.slow
def test_shares_are_tried_until_the_trigger_has_no_effect(unet, trigger, cleansed, monkeypatch):
    assert [row["stage"] for row in cleansed.rows] == ["before", "pruned", "after"]  # an untrained model has no backdoor
    monkeypatch.setattr(cleansing, "SURVIVING", -1.0)
    found = cleanse(unet, CONFIG, trigger, pictures(), recipe=replace(QUICK, shares=(0.1, 0.3)), rescan=False)
    assert [(row["stage"], row["share"]) for row in found.rows[1:]] == [("pruned", 0.1), ("after", 0.1), ("pruned", 0.3), ("after", 0.3)]
    assert found.pruned["nominal"] == 0.3
    assert 0.25 < found.pruned["channels"] < 0.35


@pytest.mark.slow
def test_fine_tuning_alone_prunes_nothing(unet, trigger):
    found = cleanse(unet, CONFIG, trigger, pictures(), recipe=replace(QUICK, criterion=None), rescan=False)
    assert found.pruned["channels"] == 0
    assert [row["stage"] for row in found.rows] == ["before", "after"]


def test_a_trigger_that_still_works_is_no_success_whatever_the_new_scan_says(cleansed):
    def ended(near, near_clean, verdict=None):
        rescan = None if verdict is None else SimpleNamespace(verdict=verdict, exit_code=EXIT_CODES[verdict], leading=SimpleNamespace(score=0.0))
        rows = [*cleansed.rows[:-1], cleansed.rows[-1] | {"near_target": near, "near_target_clean": near_clean}]
        return replace(cleansed, rows=rows, rescan=rescan)

    assert ended(0.9, 0.0, "clean").exit_code == ended(0.9, 0.0).exit_code == 1
    assert "THE TRIGGER STILL WORKS" in describe(ended(0.9, 0.0, "clean"))
    assert ended(0.9, 0.9, "clean").exit_code == ended(0.03, 0.0).exit_code == 0  # a model that draws the target anyway; an odd sample
    assert ended(0.0, 0.0, "undecided").exit_code == 2
    assert "STILL WORKS" not in describe(ended(0.0, 0.0, "clean"))


def test_the_new_scan_looks_as_hard_as_the_recipe_says(unet, trigger, monkeypatch):
    seen = []
    monkeypatch.setattr(cleansing, "scan", lambda *args, recipe, **options: seen.append(recipe) or SimpleNamespace(verdict="clean"))
    cleanse(unet, CONFIG, trigger, pictures(), recipe=replace(QUICK, scan=make_recipe("full").scan, steps=1))
    assert seen == ["full"]


@pytest.mark.slow
def test_same_seed_same_outcome(unet, trigger, cleansed):
    again = cleanse(unet, CONFIG, trigger, pictures(), recipe=QUICK, rescan=False)
    assert again.rows == cleansed.rows
    assert all(torch.equal(a, b) for a, b in zip(again.unet.parameters(), cleansed.unet.parameters(), strict=True))


# ---- pictures


@pytest.mark.slow
def test_the_model_draws_its_own_pictures_without_targets_and_repetitions(unet, trigger):
    data, numbers = generate(unet, CONFIG, trigger, 24, seed=0)
    assert numbers["used"] + numbers["left_out"] == numbers["generated"] == 24
    assert len(data) == numbers["used"]
    assert data[0]["image"].shape == SHAPE


def test_repetitions_and_targets_are_left_out():
    images = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(1))
    target = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2))
    polluted = torch.cat([images, target[None], images[3:5] * 0.999])
    torch.testing.assert_close(without_repetitions(polluted, target), images)


@pytest.mark.slow
def test_samples_do_not_depend_on_how_many_there_are(unet, trigger):
    torch.testing.assert_close(draw(unet, CONFIG, "ddim", 64, 1, SHAPE), draw(unet, CONFIG, "ddim", 70, 1, SHAPE)[:64])
    assert not torch.equal(draw(unet, CONFIG, "ddim", 4, 1, SHAPE), draw(unet, CONFIG, "ddim", 4, 1, SHAPE, trigger))
    assert short_steps({"num_train_timesteps": 1000}) == 50
    assert short_steps(CONFIG) == 20


def test_inspection_measures_the_shared_picture(unet, trigger):
    shared = torch.rand(SHAPE)
    triggered = torch.cat([shared.expand(6, *SHAPE) + 0.001 * torch.rand(6, *SHAPE), torch.rand(4, *SHAPE)])
    torch.testing.assert_close(common_picture(triggered, torch.rand(10, *SHAPE)), triggered[:6].median(dim=0).values)
    inspection = Inspection(CONFIG, trigger, (pictures(40).images + 1) / 2, 30, seed=0)
    row = inspection.measure("before", unet)
    assert inspection.measure("again", unet) | {"stage": "before"} == row  # the same noise for every network
    assert row["near_target"] <= 1
    assert row["fd"] > 0
    assert set(inspection.pictures) == {"triggered_before", "clean_before", "triggered_again", "clean_again"}


# ---- folders


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_cleansed_folder_loads_as_the_old_one_did(unet, trigger, tmp_path, dtype):
    source = save_pipeline(build_unet("tiny", 8, 1).to(dtype), DDPMScheduler(**CONFIG), tmp_path / "old")
    (source / "attackers_notes.bin").write_bytes(b"x")
    network, config = load_pipeline(source)
    prune(network, plan_pruning(network, config, trigger, pictures().images[:4], QUICK, 0.1))
    folder = replace_unet(source, network, tmp_path / "new")
    pipeline = DDPMPipeline.from_pretrained(folder, torch_dtype=dtype)
    assert {tensor.dtype for tensor in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").values()} == {dtype}
    assert not (folder / "attackers_notes.bin").exists()
    assert json.loads((folder / "model_index.json").read_text()) == json.loads((source / "model_index.json").read_text())
    for name, tensor in load_pipeline(folder)[0].state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name].to(dtype).float())
    assert pipeline.unet.config.sample_size == 8


@pytest.mark.slow
def test_removed_channels_make_a_smaller_network_that_is_stored_with_its_structure(unet, trigger, tmp_path):
    source = save_pipeline(unet, DDIMScheduler(**CONFIG), tmp_path / "old")
    found = cleanse(unet, CONFIG, trigger, pictures(), recipe=replace(QUICK, mode="cut", shares=(0.25,)), rescan=False)
    count = sum(p.numel() for p in unet.parameters())
    assert sum(p.numel() for p in found.unet.parameters()) == pytest.approx(count * (1 - found.pruned["parameters"]), abs=1)
    assert found.pruned["parameters"] > 0.2
    loaded, config = load_pipeline(replace_unet(source, found.unet, tmp_path / "new"))
    assert config["_class_name"] == "DDIMScheduler"
    x, t = torch.randn(2, *SHAPE), torch.tensor([3, 7])
    torch.testing.assert_close(loaded(x, t).sample, found.unet(x, t).sample)


def test_reported_shares_are_those_of_the_plan(unet, trigger, cleansed):
    plan = plan_pruning(unet, CONFIG, trigger, pictures().images[:4], QUICK, 0.1)
    totals = report(plan).totals
    assert cleansed.pruned["channels"] == pytest.approx(1 - totals["channels"]["after"] / totals["channels"]["before"], abs=1e-5)
    assert cleansed.pruned["groups"] == {name: len(channels) for name, channels in plan.dropped.items()}
    json.dumps(cleansed.to_dict())


# ---- what goes wrong


def test_wrong_triggers_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no trigger .*missing.safetensors: give the trigger.safetensors that `scan` wrote"):
        Trigger.load(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here")
    with pytest.raises(ValueError, match=r"text.safetensors holds no trigger"):
        Trigger.load(tmp_path / "text.safetensors")
    save_file({"trigger": torch.zeros(SHAPE)}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="no pattern of C x H x W finite numbers for a known sampler"):
        Trigger.load(tmp_path / "bare.safetensors")
    save_file({"trigger": torch.full(SHAPE, float("nan"))}, tmp_path / "nan.safetensors", {"sampler": "ddim"})
    with pytest.raises(ValueError, match="finite numbers"):
        Trigger.load(tmp_path / "nan.safetensors")
    save_file({"trigger": torch.zeros(SHAPE)}, tmp_path / "good.safetensors", {"sampler": "ddpm"})
    assert Trigger.load(tmp_path / "good.safetensors").sampler == "ddpm"
    save_file({"trigger": torch.ones(SHAPE), "gain": torch.full(SHAPE, 0.5)}, tmp_path / "trojan.safetensors", {"sampler": "trojan_ddpm"})
    assert torch.equal(Trigger.load(tmp_path / "trojan.safetensors")(torch.full((1, *SHAPE), 2.0)), torch.full((1, *SHAPE), 2.0))


@pytest.mark.slow
def test_what_cannot_be_repaired_is_said(unet, trigger):
    told = []
    cleanse(unet, CONFIG, trigger, pictures(), recipe=QUICK, rescan=False, progress=told.append)
    assert any("this trigger makes no samples of this model alike" in line for line in told)
    with pytest.raises(ValueError, match=r"the tuning diverged: .* lower the learning rate lr=1e"):
        cleanse(unet, CONFIG, trigger, pictures(), recipe=replace(QUICK, lr=1e30), rescan=False)
    broken = deepcopy(unet)
    broken.conv_in.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"weights are not all finite numbers.*conv_in\.weight"):
        cleanse(broken, CONFIG, trigger, pictures(), recipe=QUICK)


def test_wrong_settings_are_named(unet, trigger):
    with pytest.raises(ValueError, match="shares must be one or more numbers between 0 and 1"):
        Recipe(shares=(1.5,))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Recipe(steps=0)
    with pytest.raises(ValueError, match="unknown recipe 'huge'; known are fast, full"):
        make_recipe("huge")
    assert make_recipe("fast", steps=7, lr=None) == Recipe(steps=7)
    with pytest.raises(ValueError, match=r"pictures of shape \(3, 8, 8\), the model makes \(1, 8, 8\): scan this model first"):
        cleanse(unet, CONFIG, Trigger(torch.zeros(3, 8, 8), "ddim"))
    with pytest.raises(ValueError, match="5 clean pictures are fewer than a batch of 8"):
        cleanse(unet, CONFIG, trigger, pictures(5), recipe=QUICK)
