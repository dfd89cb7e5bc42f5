import json

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from safetensors.torch import save_file

from projects.diff_cleanse import cleanse_task
from projects.diff_cleanse.cli import main
from shared.backbones.unets import build_unet, load_pipeline, save_pipeline

QUICK = ["--steps=2", "--batch_size=8", "--generated=30", "--shares=[0.1]", "--rescan=false", "--wandb=disabled", "--trainer.log_every_n_steps=1"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    torch.manual_seed(0)
    scheduler = DDPMScheduler(num_train_timesteps=20, beta_start=1e-3, beta_end=0.3)
    return save_pipeline(build_unet("tiny", 8, 1), scheduler, tmp_path_factory.mktemp("models") / "suspect")


@pytest.fixture
def trigger(tmp_path):
    save_file({"trigger": torch.full((1, 8, 8), -0.5)}, tmp_path / "trigger.safetensors", {"sampler": "ddim"})
    return tmp_path / "trigger.safetensors"


def test_cleanse_writes_a_folder_that_stock_diffusers_loads(run_folder, pipeline, trigger, tmp_path, capsys):
    cli = main(["cleanse", str(pipeline), "--trigger", str(trigger), "--run", "c", "--out", str(tmp_path / "new"), *QUICK])
    made = run_folder / "diff_cleanse" / "c" / "artefacts" / "cleanse"
    assert cli.exit_code == 0
    for folder in (made / "pipeline", tmp_path / "new"):
        assert DDPMPipeline.from_pretrained(folder).unet.config.sample_size == 8
        about = json.loads((folder / "cleaning.json").read_text())
        assert [row["stage"] for row in about["rows"]] == ["before", "pruned", "after"]
        assert about["source"]["folder"] == str(pipeline)
        assert about["pruned"]["channels"] == pytest.approx(0.1, abs=0.03)
    assert {file.name for file in made.glob("*.png")} >= {"triggered_before.png", "triggered_after.png", "clean_before.png", "clean_after.png"}
    assert (made / "cleansing.csv").is_file()
    assert "cleanse/loss" in (made.parent.parent / "cleanse" / "metrics.csv").read_text().splitlines()[0]
    assert "triggered samples that show the target (ddim)" in capsys.readouterr().out
    unchanged, cleansed = load_pipeline(pipeline)[0], load_pipeline(made / "pipeline")[0]
    assert any(not torch.equal(a, b) for a, b in zip(unchanged.parameters(), cleansed.parameters(), strict=True))


@pytest.mark.slow
def test_cleanse_tunes_on_pictures_of_the_user(run_folder, pipeline, trigger):
    own = ["--pictures=data", "--data.source=digits", "--mode=cut"]  # size and channels are the model's
    cli = main(["cleanse", str(pipeline), "--trigger", str(trigger), "--run", "own", *own, *QUICK])
    assert cli.result.tuned_on == {"used": 1400, "generated": 0, "left_out": 0}
    smaller, _ = load_pipeline(run_folder / "diff_cleanse" / "own" / "artefacts" / "cleanse" / "pipeline")
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in load_pipeline(pipeline)[0].parameters())


def test_the_channels_are_scored_on_pictures_of_all_classes(run_folder, pipeline, trigger, tmp_path, monkeypatch):
    for label, name in enumerate(("dark", "light")):
        for number in range(20):
            (tmp_path / "own" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 255 * label).save(tmp_path / "own" / name / f"{number}.png")
    first = []

    def cleanse(*_, pictures, **__):
        first.extend(float(pictures[i]["image"].mean()) for i in range(12))
        raise ValueError("that is enough")

    monkeypatch.setattr(cleanse_task, "cleanse", cleanse)
    own = ["--pictures=data", "--data.source=folder", f"--data.root={tmp_path / 'own'}"]
    with pytest.raises(SystemExit):
        main(["cleanse", str(pipeline), "--trigger", str(trigger), "--run", "own", *own, *QUICK])
    assert set(first) == {-1.0, 1.0}


@pytest.mark.slow
def test_a_cut_pipeline_is_cleansed_again(run_folder, pipeline, trigger, tmp_path, capsys):
    for source, out in ((pipeline, "cut"), (tmp_path / "cut", "twice")):
        main(["cleanse", str(source), "--trigger", str(trigger), "--run", out, "--out", str(tmp_path / out), "--mode=cut", *QUICK])
        assert "load it with shared.backbones.unets.load_pipeline" in capsys.readouterr().out
    once, twice = (load_pipeline(tmp_path / name)[0] for name in ("cut", "twice"))
    assert sum(p.numel() for p in twice.parameters()) < sum(p.numel() for p in once.parameters())


@pytest.mark.slow
def test_pictures_need_not_be_square(run_folder, tmp_path):
    from diffusers import UNet2DModel

    from shared.backbones.unets import PRESETS

    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=(8, 12), in_channels=3, out_channels=3, **PRESETS["tiny"])
    wide = save_pipeline(unet, DDPMScheduler(num_train_timesteps=20, beta_start=1e-3, beta_end=0.3), tmp_path / "wide")
    save_file({"trigger": torch.full((3, 8, 12), -0.5)}, tmp_path / "wide.safetensors", {"sampler": "ddim"})
    assert main(["cleanse", str(wide), "--trigger", str(tmp_path / "wide.safetensors"), "--run", "wide", *QUICK]).exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["no/such/folder"], "no pipeline folder 'no/such/folder'"),
        (["PIPELINE", "--trigger", "missing.safetensors"], "no trigger missing.safetensors"),
        (["PIPELINE", "--trigger", "TRIGGER", "--recipe", "huge"], "unknown recipe 'huge'; known are fast, full"),
        (["PIPELINE", "--trigger", "TRIGGER", "--shares", "[2.0]"], "shares must be one or more numbers between 0 and 1"),
        (["PIPELINE", "--trigger", "TRIGGER", "--batch_size", "5000"], "clean pictures are fewer than a batch of 5000"),
        (["PIPELINE", "--trigger", "TRIGGER", "--out", "PIPELINE"], "is, holds or lies in the folder that is read"),
        (["PIPELINE", "--trigger", "TRIGGER", "--out", "."], "is not empty and no earlier result"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(run_folder, pipeline, trigger, capsys, options, message):
    given = [{"PIPELINE": str(pipeline), "TRIGGER": str(trigger)}.get(option, option) for option in options]
    with pytest.raises(SystemExit) as stop:
        main(["cleanse", *given, "--generated=30"])
    assert stop.value.code == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_attack_is_fit_under_an_attack(run_folder, tmp_path):
    clean = save_pipeline(build_unet("tiny", 16, 1), DDPMScheduler(num_train_timesteps=10, beta_end=0.5), tmp_path / "clean")
    small = ["--trainer.max_steps=2", "--model.eval_samples=8", "--wandb=disabled"]
    cli = main(["attack", "baddiffusion", "--model.pretrained", str(clean), "--run", "a", *small])
    assert cli.subcommand == "fit"
    assert cli.model.hparams.attack == "baddiffusion"
    assert (run_folder / "diff_cleanse" / "a" / "pipeline" / "unet" / "config.json").is_file()
