"""The command line: configurations, trainings that go on, and what is said when something is wrong."""

import csv
import inspect
import json
import re
import shutil

import pytest
import torch
import yaml
from helpers.commands import failing, slow
from helpers.processes import start
from helpers.voices import pair_lines, write_musan, write_rirs, write_sitw, write_sound, write_speakers, write_voxceleb
from helpers.workers import fit_until_killed

from projects.rsknet.cli import main
from projects.rsknet.data import SpeakerData
from projects.rsknet.model import parameters
from projects.rsknet.module import SpeakerVerification
from shared.checkpoints import load_checkpoint
from shared.dashboards import validate
from shared.runs import REPOSITORY

PROJECT = REPOSITORY / "projects" / "rsknet"
SAMPLES = 8000  # half a second at 16 kHz


fails = failing(main)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Miniatures of both VoxCelebs, SITW, MUSAN and RIRS_NOISES."""
    root = tmp_path_factory.mktemp("real")
    write_voxceleb(root / "vox", SAMPLES)
    write_speakers(root / "vox" / "voxceleb2/dev/wav", ["id00018"], samples=SAMPLES)
    write_sitw(root / "sitw", samples=SAMPLES)
    write_musan(root, SAMPLES)
    write_rirs(root, 1600)
    return root


def paper(real, *options):
    """Options of a step of the paper's settings on the miniatures."""
    short = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_model_summary=false"]
    sounds = [f"--data.musan={real / 'musan'}", f"--data.rirs={real / 'RIRS_NOISES'}"]
    sizes = ["--data.num_workers=0", "--data.batch_size=2", "--data.held_speakers=2", "--data.held_trials=8"]
    return ["fit", "--config", "paper", *short, f"--data.root={real / 'vox'}", *sounds, *sizes, *options]


# ---- configurations


def test_the_papers_setting_takes_a_step_with_a_tiny_network(real, run_folder):
    cli = main(paper(real, "--data.lists=[Vox1-O]", "--model.net=tiny_rsknet_mtsp"))
    assert cli.trainer.global_step == 1
    assert cli.datamodule.crops.samples == 32_240
    assert cli.model.fbank.frames(cli.datamodule.crops.samples) == 200
    assert cli.datamodule.classes == 6, "two of four speakers, at three speeds"
    assert set(cli.datamodule.crops.augmentation.kinds) == {"reverberation", "noise", "music", "babble"}
    assert {row["list"] for row in cli.result.rows} == {"Vox1-O"}
    assert parameters(SpeakerVerification(**{**cli.model.hparams, "net": "rsknet_mtsp"}).net) == pytest.approx(13.586e6, abs=500)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "millions"), [([], 13.586), (["--config=light"], 3.86)], ids=["full", "light"])
def test_the_papers_setting_takes_a_step_at_its_size(real, run_folder, config, millions):
    cli = main(paper(real, "--data.lists=[Vox1-O]", *config))
    assert cli.trainer.global_step == 1
    assert parameters(cli.model.net) / 1e6 == pytest.approx(millions, abs=0.005)
    assert cli.model.net.bins == 80


@pytest.mark.slow
def test_speakers_in_the_wild_are_tested_beside_voxceleb(real, run_folder):
    cli = main(paper(real, "--config=sitw", f"--data.sitw={real / 'sitw'}", "--model.net=tiny_resnet"))
    assert list(dict.fromkeys(row["list"] for row in cli.result.rows)) == ["Vox1-O", "SITW-dev", "SITW-eval"]
    assert cli.datamodule.classes == 12, "six speakers, two of them held out"


@pytest.mark.parametrize("name", ["tiny", "paper", "light", "large_margin", "sitw"])
def test_configurations_name_options_that_there_are(name):
    given = yaml.safe_load((PROJECT / "configs" / f"{name}.yaml").read_text())
    for section, made in (("model", SpeakerVerification), ("data", SpeakerData)):
        assert set(given.get(section, {})) <= set(inspect.signature(made.__init__).parameters)
    assert (PROJECT / "configs" / f"{name}.yaml").read_text().startswith("# ")


def test_the_papers_setting_is_the_published_one():
    given = yaml.safe_load((PROJECT / "configs" / "paper.yaml").read_text())
    model, data = given["model"], given["data"]
    assert (model["bins"], model["frame_length"], model["frame_shift"], model["window"], model["rate"]) == (80, 25.0, 10.0, "hamming", 16000)
    assert (model["loss"], model["scale"], model["margin"], model["optimiser"], model["average"]) == ("aam", 32.0, 0.2, "sgd", 10)
    assert [round(150 * part) for part in model["ramp"]] == [20, 40]
    assert round(150 * model["warm_up"]) == 6
    assert (model["lr"], model["final_lr"], model["weight_decay"], given["trainer"]["max_epochs"]) == (0.1, 5e-5, 1e-4, 150)
    assert (data["batch_size"], data["speed"], data["probability"], data["added"]) == (128, True, 0.6, "files")
    fine = yaml.safe_load((PROJECT / "configs" / "large_margin.yaml").read_text())
    assert (fine["model"]["margin"], fine["trainer"]["max_epochs"], fine["data"]["speed"]) == (0.5, 5, False)
    assert (16000 * fine["data"]["seconds"] - 400) // 160 + 1 == 600


def test_what_is_logged_is_on_the_dashboard(trained):
    run = trained / "rsknet" / (trained / "rsknet" / "latest").read_text().strip()
    header = next(csv.reader((run / "fit" / "metrics.csv").open()))
    artefacts = {re.sub(r"-\d{6}$", "", path.stem) for path in (run / "artefacts" / "fit").iterdir()}
    summary = set(json.loads((run / "manifest.json").read_text())["stages"][-1]["summary"])
    of_others = {"files", "similarity", "verdicts", "voices"}  # tested with their verbs
    assert validate(PROJECT / "dashboard.yaml").metrics <= {*header} | artefacts | summary | of_others


@pytest.mark.parametrize("verb", ["fit", *(slow(verb) for verb in ("test", "calibrate", "embed", "enroll", "verify", "draw", "export", "reproduce"))])
def test_help_explains_every_option(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for section, made in (("model", SpeakerVerification), ("data", SpeakerData)):
        for name in inspect.signature(made.__init__).parameters:
            if name != "self":
                says = re.search(rf"^    {name}: (.*)$", inspect.getdoc(made), re.MULTILINE)
                assert says, f"{name} is not explained"
                option = re.search(rf"--{section}\.{name} .*?\(type: .*?default: (.*?)\)", text)
                assert option, f"{section}.{name} is not listed with its default"
                assert " ".join(says[1].split()[:3]) in option[0]


# ---- going on


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 4], ids=["in an epoch", "between epochs"])
def test_a_killed_training_ends_where_an_unbroken_one_does(run_folder, small, step):
    common = ["fit", *small, "--save_every=1", "--data.added=drawn", "--model.spec_augment=true", "--data.speed=true"]
    environment = {"TOUCHSTONE_RUNS": str(run_folder), "OMP_NUM_THREADS": "1"}
    process = start(fit_until_killed, [*common, "--run", "broken"], "rsknet", step, environment=environment)
    process.join()
    assert process.exitcode == -9
    resumed = main(["fit", "--resume", "--run", "broken"])
    whole = main([*common, "--run", "whole"])
    assert resumed.trainer.global_step == whole.trainer.global_step == 8
    one, other = (load_checkpoint(run_folder / "rsknet" / name / "checkpoints" / "last.ckpt") for name in ("whole", "broken"))
    for part in ("state_dict", "head"):
        for name, value in one[part].items():
            torch.testing.assert_close(other[part][name], value, atol=1e-5, rtol=1e-4)  # rounding differs between the processes


@pytest.mark.slow
def test_large_margin_training_begins_with_weights_and_classes_of_a_run(run, run_folder, small):
    best = run / "checkpoints" / "best.ckpt"
    options = [*small, "--trainer.max_epochs=1", f"--model.weights={best}", "--model.lr=1e-9", "--model.margin=0.5", "--model.ramp=null"]
    cli = main(["fit", "--run", "tuned", *options])
    before, after = load_checkpoint(best), load_checkpoint(cli.run.checkpoints / "last.ckpt")
    torch.testing.assert_close(after["head"]["weight"], before["head"]["weight"], atol=1e-5, rtol=1e-4)
    name = "net.stem.0.weight"
    torch.testing.assert_close(after["state_dict"][name], before["state_dict"][name], atol=1e-5, rtol=1e-4)


# ---- what can go wrong


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    """Folders of files in which something is wrong, in the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("good", "damaged", "leak", "listless"):
        write_speakers(tmp_path / name / "train", ["anna", "berta", "carl", "dora"], samples=SAMPLES)
        tested = write_speakers(tmp_path / name / "test", ["emil", "frida"], samples=SAMPLES)
    (tmp_path / "damaged" / "train" / "carl" / "vidA" / "00002.wav").write_bytes(b"RIFF damaged")
    shutil.copytree(tmp_path / "leak" / "test" / "emil", tmp_path / "leak" / "train" / "emil")
    (tmp_path / "listless" / "trials.txt").write_text("\n".join(pair_lines([*tested, "emil/vidC/00001.wav"])))
    (tmp_path / "empty").mkdir()
    write_sound(tmp_path / "vox" / "voxceleb1" / "dev" / "wav" / "id10001" / "vidA" / "00001.wav")
    write_sitw(tmp_path / "sitw", samples=SAMPLES)
    (tmp_path / "damaged.ckpt").write_bytes(b"PK damaged")


def folder(root, *options):
    return ["--data.source=folder", f"--data.root={root}", "--data.held_speakers=2", "--data.held_trials=8", "--data.batch_size=4", *options]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--model.prayer=1"], 2, "prayer"),
        slow(["--data.prayer=1"], 2, "prayer"),
        slow(["--data.added=prayer"], 2, "data.added"),
        slow(["--data.corpora=prayer"], 2, "data.corpora"),
        slow(["--model.loss=prayer"], 2, "model.loss"),
        slow(["--model.optimiser=prayer"], 2, "model.optimiser"),
        slow(["--model.rate=abc"], 2, "model.rate"),
        (["--config=prayer"], 1, "no configuration 'prayer': give a YAML file, or one of the project's own: large_margin, light, paper"),
        (["--model.net=prayer"], 1, "no network 'prayer': choose among rsknet_mtsp"),
        slow(["--model.options={prayer: 1}"], 1, "does not take these options"),
        slow(["--model.ramp=[0.5,0.1]"], 1, "model.ramp holds the parts of the training"),
        (["--data.source=prayer"], 1, "data.source 'prayer' is not known; choose one of: synthvox"),
        slow(["--data.batch_size=1"], 1, "data.batch_size must be at least 2"),
        (["--data.batch_size=400"], 1, "data.batch_size 400 is larger than the training set of 32 samples"),
        slow(["--data.held_trials=0"], 1, "data.held_trials is at least 2"),
        slow(["--data.added=files"], 1, "sounds from files need the folder of MUSAN"),
        slow(["--data.added=files", "--data.musan=empty"], 1, "no noise and no music and no speech in empty"),
        (["--trainer.max_epochs=-1"], 1, "set trainer.max_epochs or trainer.max_steps"),
        (["--model.weights=nowhere.ckpt"], 1, "no checkpoint nowhere.ckpt"),
        slow(["--model.weights=damaged.ckpt"], 1, "damaged.ckpt is damaged or no checkpoint"),
        (["--data.source=voxceleb"], 1, "say where they lie with --data.root FOLDER"),
        (["--data.source=voxceleb", "--data.root=nowhere"], 1, "nowhere does not exist: expected voxceleb1/{dev,test}/wav"),
        slow(["--data.source=voxceleb", "--data.root=empty"], 1, "no trial list in empty: expected one of veri_test2.txt"),
        (["--data.source=voxceleb", "--data.root=vox"], 1, "no trial list in vox: expected one of veri_test2.txt"),
        slow(["--data.source=sitw", "--data.root=sitw"], 1, "sitw has nothing to train on"),
        slow(["--data.source=kaldi", "--data.root=empty"], 1, "no data folder in empty: expected"),
        slow(folder("empty"), 1, "no utterances in empty: expected"),
        slow(folder("good", "--data.held_speakers=4"), 1, "cannot hold out 4 of 4 speakers"),
        (folder("damaged"), 1, "damaged/train/carl/vidA/00002.wav"),
        slow(folder("leak"), 1, "1 training speakers occur in the list test, such as emil"),
        (folder("listless"), 1, "emil/vidC/00001.wav"),
        slow(folder("good", "--data.sitw=nowhere"), 1, "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_named(wrong, run_folder, small, capsys, options, code, message):
    assert message in fails(["fit", "--run", "bad", *small, *options], capsys, code)
    assert not (run_folder / "rsknet" / "bad" / "scorer.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["test", "--ckpt_path=/nowhere.ckpt"], 1, "/nowhere.ckpt"),
        (["test", "--model.net=tiny_xvector", "--model.options=null"], 1, "does not fit the model that the settings describe"),
        slow(["test", "--run=other"], 1, "other"),
        slow(["test", "--data.source=folder"], 1, "say where they lie with --data.root FOLDER"),
        (["draw", "world", "--speakers=3"], 1, "draw needs at least 4 speakers and 2 utterances of each, got 3 and 6"),
        slow(["draw", "."], 1, "is not an empty folder, and what it holds is not replaced"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_a_run_is_named(wrong, run, capsys, arguments, code, message):
    assert message in fails(arguments, capsys, code)
    assert not (run / "artefacts" / "test").exists()


def test_a_run_without_its_scorer_and_a_scorer_of_other_weights_are_refused(run, capsys):
    last, best = (load_checkpoint(run / "checkpoints" / name)["state_dict"]["net.stem.0.weight"] for name in ("last.ckpt", "best.ckpt"))
    if not torch.equal(last, best):
        assert "use that checkpoint, or calibrate again" in fails(["test", "--ckpt_path=last"], capsys)
    (run / "scorer.safetensors").unlink()
    assert "the verb calibrate makes one, as fit does when it ends" in fails(["test"], capsys)


def test_a_training_that_diverges_says_so(run_folder, small, capsys):
    assert "the training diverged before step" in fails(["fit", "--run", "bad", *small, "--model.lr=1e30"], capsys)
    assert not (run_folder / "rsknet" / "bad" / "scorer.safetensors").exists()


def test_a_first_run_is_asked_for(run_folder, capsys):
    assert "fit" in fails(["test"], capsys)
