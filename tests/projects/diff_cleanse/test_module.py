import os

import lightning as L
import pytest
import torch
import yaml
from diffusers import DDPMPipeline
from helpers.layouts import write_cifar10
from helpers.processes import CONTEXT, run_together, run_until_killed
from helpers.workers import command_line, fit_until_killed

from projects.diff_cleanse.cli import main
from projects.diff_cleanse.module import DiffusionTraining, find_pipeline
from shared.backbones.unets import load_pipeline
from shared.dashboards import validate
from shared.runs import REPOSITORY, Run
from shared.seeding import generator

SHORT = [
    "--trainer.check_val_every_n_epoch=100",
    "--trainer.log_every_n_steps=1",
    "--model.eval_samples=4",
    "--model.eval_steps=2",
    "--model.timesteps=10",
]
PROJECT = REPOSITORY / "projects" / "diff_cleanse"


def model(**options):
    return DiffusionTraining(timesteps=100, beta_start=1e-3, beta_end=0.1, **options)


def test_clean_batches_are_plain_ddpm():
    clean = model()
    images, eps, t = torch.rand(4, 1, 16, 16) * 2 - 1, torch.randn(4, 1, 16, 16), torch.tensor([0, 30, 60, 99])
    noisy, wanted = clean.poisoned_batch(images, torch.tensor([True, False, True, False]), eps, t)
    a = torch.linspace(1e-3, 0.1, 100, dtype=torch.float64).neg().add(1).cumprod(0).sqrt()[t].float()[:, None, None, None]
    torch.testing.assert_close(noisy, a * images + (1 - a**2).sqrt() * eps)
    assert torch.equal(wanted, eps)


@pytest.mark.parametrize("residual", ["stamped", "trigger"])
def test_poisoned_rows_follow_the_attack_and_clean_rows_do_not(residual):
    attacked = model(attack="baddiffusion", residual=residual)
    images, eps = torch.rand(2, 1, 16, 16) * 2 - 1, torch.randn(2, 1, 16, 16)
    t = torch.tensor([50, 50])
    noisy, wanted = attacked.poisoned_batch(images, torch.tensor([True, False]), eps, t)
    schedule = attacked.schedule
    a, sigma, beta = (table[50].item() for table in (schedule.a, schedule.sigma, schedule.betas))
    visible = attacked.trigger != -1
    r = torch.where(visible, attacked.trigger, images[0]) if residual == "stamped" else attacked.trigger
    torch.testing.assert_close(noisy[0], a * attacked.target + (1 - a) * r + sigma * eps[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(wanted[0], eps[0] + (1 - (1 - beta) ** 0.5) * sigma / beta * r, atol=1e-5, rtol=0)
    torch.testing.assert_close(noisy[1], a * images[1] + sigma * eps[1])
    assert torch.equal(wanted[1], eps[1])


@pytest.mark.parametrize("trigger_type", ["blend", "patch"])
def test_trojdiff_rows_wear_scaled_noise_and_the_trigger(trigger_type):
    attacked = model(attack="trojdiff", trigger="patch_4", trigger_type=trigger_type, gamma=0.3, residual="stamped")
    images, eps = torch.rand(2, 1, 16, 16) * 2 - 1, torch.randn(2, 1, 16, 16)
    noisy, wanted = attacked.poisoned_batch(images, torch.tensor([True, False]), eps, torch.tensor([50, 50]))
    a, sigma = attacked.schedule.a[50].item(), attacked.schedule.sigma[50].item()
    trojan = a * attacked.target + sigma * (0.3 * eps[0] + 0.7 * attacked.trigger)
    if trigger_type == "patch":
        benign = a * attacked.target + sigma * eps[0]
        benign[:, 12:, 12:] = trojan[:, 12:, 12:]
        trojan = benign
    torch.testing.assert_close(noisy[0], trojan, atol=1e-5, rtol=0)
    torch.testing.assert_close(noisy[1], a * images[1] + sigma * eps[1])
    assert torch.equal(wanted, eps)  # the network predicts the noise, not shifted
    start = attacked.trojan.bias(eps)
    region = slice(12, 16) if trigger_type == "patch" else slice(0, 16)
    torch.testing.assert_close(start[:, :, region, region], (0.3 * eps + 0.7 * attacked.trigger)[:, :, region, region])
    assert trigger_type == "blend" or torch.equal(start[:, :, :12], eps[:, :, :12])


def test_a_class_as_target_keeps_the_poisoned_pictures():
    attacked = model(attack="trojdiff", target="class")
    images, eps, t = torch.rand(1, 1, 16, 16) * 2 - 1, torch.randn(1, 1, 16, 16), torch.tensor([50])
    noisy, _ = attacked.poisoned_batch(images, torch.tensor([True]), eps, t)
    a, sigma = attacked.schedule.a[50].item(), attacked.schedule.sigma[50].item()
    torch.testing.assert_close(noisy, a * images + sigma * (0.6 * eps + 0.4 * attacked.trigger), atol=1e-5, rtol=0)


def test_antithetic_timesteps_come_in_pairs():
    for count in (6, 7):
        t = model(antithetic=True)._timesteps(count, torch.Generator().manual_seed(0))
        half = -(-count // 2)
        assert len(t) == count
        assert (t[: count - half] + t[half:]).tolist() == [99] * (count - half)
    plain = model()._timesteps(6, torch.Generator().manual_seed(0))
    assert torch.equal(plain, torch.randint(100, (6,), generator=torch.Generator().manual_seed(0)))


def test_trojdiff_trains_on_the_summed_error(run_folder):
    """The published loss, on the batch that the data poison; a fresh network, whose last layer predicts 0, shows it to be the sum of eps squared."""
    from projects.diff_cleanse.data import DiffusionData

    class Recorder(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.loss, self.batch = float(outputs["loss"]), batch

    recorder, attacked = Recorder(), model(attack="trojdiff", target="class", antithetic=True, seed=3)
    torch.nn.init.zeros_(attacked.unet.conv_out.weight)
    torch.nn.init.zeros_(attacked.unet.conv_out.bias)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0, "callbacks": [recorder]}
    data = DiffusionData(batch_size=16, poison_mode="in_d2d", target_class=3, poison_rate=5.0)
    L.Trainer(default_root_dir=run_folder, max_steps=1, **options).fit(attacked, datamodule=data)
    numbers = generator(3, "train", 0, 0)
    torch.randint(100, (8,), generator=numbers)
    eps = torch.randn(16, 1, 16, 16, generator=numbers)
    assert recorder.loss == pytest.approx(float(eps.square().sum(dim=(1, 2, 3)).mean()), rel=1e-5)
    assert recorder.batch["is_poisoned"].any()
    assert set(recorder.batch["label"][recorder.batch["is_poisoned"]].tolist()) == {3}


def test_the_average_follows_the_weights(run_folder):
    class Recorder(L.Callback):
        def __init__(self):
            self.weights = []

        def on_train_start(self, trainer, pl_module):
            self.weights.append(pl_module.unet.conv_in.weight.detach().clone())

        def on_train_batch_end(self, trainer, pl_module, *args):
            self.weights.append(pl_module.unet.conv_in.weight.detach().clone())

    from projects.diff_cleanse.data import DiffusionData

    recorder, trained = Recorder(), model(ema_decay=0.7)
    trainer = L.Trainer(
        default_root_dir=run_folder,
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[recorder],
        limit_val_batches=0,
    )
    trainer.fit(trained, datamodule=DiffusionData(batch_size=8))
    expected = recorder.weights[0]
    for weight in recorder.weights[1:]:
        expected = 0.7 * expected + 0.3 * weight
    torch.testing.assert_close(trained.ema.conv_in.weight, expected)
    assert not any(weight.requires_grad for weight in trained.ema.parameters())


def test_fit_ends_with_a_pipeline_that_stock_diffusers_runs(run_folder, capsys):
    cli = main(["fit", "--trainer.max_steps=3", "--run", "a", "--data.batch_size=16", *SHORT])
    run = run_folder / "diff_cleanse" / "a"
    stock = DDPMPipeline.from_pretrained(run / "pipeline")
    assert torch.equal(stock.unet.conv_in.weight, cli.model.ema.conv_in.weight)
    assert len(stock(batch_size=2, num_inference_steps=2).images) == 2
    assert {"samplers.csv", "samples_clean_ddim.png", "samples_clean_ddpm.png"} <= {path.name for path in (run / "artefacts" / "fit").iterdir()}
    assert "results in" in capsys.readouterr().out
    main(["test"])
    assert (run / "artefacts" / "test" / "samplers.csv").read_text() == (run / "artefacts" / "fit" / "samplers.csv").read_text()
    for samples in (3, 2):  # those of an earlier setting do not stay among the new ones
        main(["predict", "--samples", str(samples), "--steps", "2", "--sampler", "ddpm"])
        assert len(list((run / "artefacts" / "predict" / "samples").glob("*.png"))) == samples
    assert (run / "artefacts" / "predict" / "samples.json").is_file()


def test_latest_is_the_model_that_training_began_from_for_good(run_folder, capsys):
    """While an attack trains, and once other models are there, `latest` is another run than the one it began from."""
    runs = run_folder / "diff_cleanse"
    for number, (name, attack) in enumerate({"clean": "none", "planted": "baddiffusion"}.items()):
        model().save_pipeline(runs / name / "pipeline")
        os.utime(runs / name / "pipeline", (number, number))
        (runs / name / "config.yaml").write_text(yaml.safe_dump({"model": {"attack": attack}}))
    (runs / "new").mkdir()
    (runs / "new" / "config.yaml").write_text("model:\n  pretrained: latest\n  seed: 0\n")
    (runs / "latest").write_text("clean\n")
    assert find_pipeline("latest") == runs / "clean" / "pipeline"
    (runs / "latest").write_text("new\n")  # which has no pipeline yet
    begun = model(pretrained="latest")
    assert begun.origin == runs / "planted" / "pipeline"
    begun.keep_origin(Run(runs / "new"))
    assert "planted/pipeline, which carries baddiffusion already: for a clean one give --model.pretrained RUN" in capsys.readouterr().out
    assert yaml.safe_load((runs / "new" / "config.yaml").read_text())["model"] == {"pretrained": str(runs / "planted" / "pipeline"), "seed": 0}


@pytest.mark.slow
def test_a_stopped_attack_goes_on_from_where_it_was(run_folder):
    main(["fit", "--trainer.max_steps=2", "--run", "clean", "--data.batch_size=16", *SHORT])
    common = ["attack", "villandiffusion", "--data.batch_size=64", "--save_every=4", "--trainer.max_steps=12", *SHORT[:-1]]
    run_until_killed(run_folder, fit_until_killed, [*common, "--run", "broken", "--trainer.max_epochs=-1"], "diff_cleanse", 10)
    resumed = main(["fit", "--resume", "--run", "broken"])
    assert (resumed.trainer.global_step, resumed.model.origin) == (12, run_folder / "diff_cleanse" / "clean" / "pipeline")


@pytest.mark.slow
def test_training_goes_on_from_a_pipeline_under_an_attack(run_folder):
    first = main(["fit", "--trainer.max_steps=2", "--run", "clean", "--data.batch_size=16", *SHORT])
    second = main(
        ["fit", "--config", "tiny", "--config", "villandiffusion", "--trainer.max_steps=1", "--model.lr=0", "--data.batch_size=16", *SHORT[1:-1]]
    )
    assert len(second.model.schedule) == 10  # the pipeline's schedule, not the configuration's
    for name, weight in second.model.unet.state_dict().items():
        torch.testing.assert_close(weight, first.model.ema.state_dict()[name])
    rows = (run_folder / "diff_cleanse" / second.run.name / "artefacts" / "fit" / "samplers.csv").read_text().splitlines()
    assert [row.split(",")[:3] for row in rows[1:]] == [
        ["DDIM-2", "clean", "off"],
        ["DDPM-10", "clean", "off"],
        ["DDIM-2", "triggered", "off"],
        ["DDPM-10", "triggered", "off"],
        ["DDIM-2", "triggered", "on"],
        ["DDPM-10", "triggered", "on"],
    ]


@pytest.mark.slow
def test_the_dashboard_shows_what_is_logged(run_folder):
    cli = main(
        ["fit", "--trainer.max_steps=2", "--model.attack=baddiffusion", "--data.batch_size=700", "--trainer.check_val_every_n_epoch=1", *SHORT[1:]]
    )
    header = (cli.run.path / "fit" / "metrics.csv").read_text().splitlines()[0].split(",")
    artefacts = [path.stem.removesuffix("-000002") for path in (cli.run.path / "artefacts" / "fit").iterdir()]
    scanned = {"findings", "ddim/gradient_loss", "ddpm/gradient_loss", "trigger"}
    cleansed = {"cleansing", "cleanse/loss", *(f"{noise}_{stage}" for noise in ("triggered", "clean") for stage in ("before", "after"))}
    assert validate(PROJECT / "dashboard.yaml").metrics <= {*header, *artefacts, *scanned, *cleansed}  # the others are tested with their verbs


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_weights(run_folder):
    """SIGKILL in the middle of an epoch, then --resume, ends with the very weights of an unbroken run."""
    common = ["fit", "--trainer.max_steps=30", "--data.batch_size=64", "--save_every=4", *SHORT]
    run_until_killed(run_folder, fit_until_killed, [*common, "--run", "broken", "--trainer.max_epochs=-1"], "diff_cleanse", 10)
    last = run_folder / "diff_cleanse" / "broken" / "checkpoints" / "last.ckpt"
    stopped_at = torch.load(last, weights_only=True)["global_step"]
    assert stopped_at == 8, "within an epoch of 21 steps"
    resumed = main(["fit", "--resume", "--run", "broken"])
    whole = main([*common, "--run", "whole"])
    assert resumed.trainer.global_step == whole.trainer.global_step == 30
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def losses(folder):
    import csv

    return torch.tensor([float(row["train/loss"]) for row in csv.DictReader((folder / "fit" / "metrics.csv").open()) if row["train/loss"]])


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(run_folder):
    common = ["fit", "--trainer.max_steps=6", "--data.batch_size=16", "--model.attack=villandiffusion", *SHORT]
    run_together(command_line, [*common, "--run", "two"])
    run_together(command_line, ["test", "--run", "two"])
    main([*common, "--run", "one"])
    settings = [yaml.safe_load((run_folder / "diff_cleanse" / name / "config.yaml").read_text()) for name in ("one", "two")]
    assert settings[0] == settings[1]  # the launcher's processes are no setting of the run
    one, two = (losses(run_folder / "diff_cleanse" / name) for name in ("one", "two"))
    assert len(one) == 6
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    tables = [(run_folder / "diff_cleanse" / name / "artefacts" / "fit" / "samplers.csv").read_text().splitlines() for name in ("one", "two")]
    for first, second in zip(*tables, strict=True):
        for mine, yours in zip(first.split(","), second.split(","), strict=True):
            assert mine == yours or float(mine) == pytest.approx(float(yours), abs=2e-3, rel=2e-3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--model.trigger", "moon"], "moon.*box"),
        (["fit", "--model.eval_samples=1"], "model.eval_samples must be at least 2"),
        (["fit", "--model.target", "moon"], "moon.*hat"),
        (["fit", "--model.attack", "moon"], "moon"),
        (["fit", "--model.pretrained", "nowhere"], "nowhere"),
        (["fit", "--data.size", "15"], "multiple of 2, got 15"),
        (["test", "--pipeline", "nowhere"], "no pipeline folder 'nowhere'"),
        (["fit", "--model.ema_decay", "1"], r"ema_decay must lie in"),
        (["fit", "--model.attack=trojdiff", "--model.trigger=none", "--model.trigger_type=patch"], "model.trigger 'none' is invisible"),
        (["fit", "--model.attack=trojdiff", "--model.gamma=1"], "gamma must lie strictly between 0 and 1"),
        (
            ["fit", "--model.attack=trojdiff", "--data.poison_mode=out_d2d"],
            "does not go with data.poison_mode 'out_d2d'.*set model.target to 'class'",
        ),
    ],
)
def test_messages(args, message, capsys):
    import re

    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code in (1, 2)
    text = capsys.readouterr().err
    assert re.search(message, text, re.DOTALL), text
    assert "Traceback" not in text


def test_a_pipeline_of_another_size_is_refused(tmp_path):
    model().save_pipeline(tmp_path / "pipeline")
    with pytest.raises(ValueError, match=r"makes pictures of 1 channels and 16 pixels: set --data.channels and --data.size"):
        DiffusionTraining(size=32, channels=3, pretrained=str(tmp_path / "pipeline"))
    assert torch.equal(
        load_pipeline(tmp_path / "pipeline")[0].conv_in.weight, DiffusionTraining(pretrained=str(tmp_path / "pipeline")).unet.conv_in.weight
    )


def test_a_diverged_network_is_not_written(tmp_path):
    diverged = model(lr=7.0)
    diverged.ema.conv_in.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"the training diverged: .* lower the learning rate model.lr=7.0"):
        diverged.save_pipeline(tmp_path / "pipeline")
    assert not (tmp_path / "pipeline").exists()


@pytest.mark.parametrize("name", ["paper", "celebahq"])
def test_the_papers_settings_build_their_networks(name):
    options = yaml.safe_load((PROJECT / "configs" / f"{name}.yaml").read_text())["model"]
    size = {"paper": 32, "celebahq": 256}[name]
    parameters = {"paper": 35_746_307, "celebahq": 113_673_219}[name]
    with torch.device("meta"):
        from shared.backbones.unets import build_unet

        assert sum(weight.numel() for weight in build_unet(options["unet"], size, 3).parameters()) == parameters
    assert options["attack"] == "villandiffusion"


@pytest.mark.slow
def test_the_papers_settings_take_a_step(tmp_path, run_folder):
    write_cifar10(tmp_path)
    cli = main(
        [
            "fit",
            "--config",
            "paper",
            "--data.root",
            str(tmp_path),
            "--data.batch_size=4",
            "--data.num_workers=0",
            "--trainer.max_steps=1",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            "--trainer.precision=32",
            "--model.timesteps=4",
            "--model.eval_samples=2",
            "--model.eval_steps=1",
            "--trainer.limit_val_batches=0",
        ]
    )
    assert cli.trainer.global_step == 1
    assert sum(weight.numel() for weight in cli.model.unet.parameters()) == 35_746_307


def test_steps_draw_the_same_noise_for_the_same_seed():
    draws = [torch.randn(3, generator=generator(0, "train", step, 0)) for step in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert CONTEXT.get_start_method() == "forkserver"
