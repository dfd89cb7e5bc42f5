import csv
import json

import numpy as np
import pytest
import torch
from helpers.processes import run_together, run_until_killed
from helpers.runs import copied, made_once
from helpers.workers import command_line, fit_until_killed
from PIL import Image

from projects.moe_ffd.cli import main
from shared.dashboards import validate
from shared.forgery.faces import faces
from shared.forgery.prediction import find_inputs
from shared.forgery.sets import FrameFiles
from shared.runs import REPOSITORY

SMALL = [
    "--trainer.max_epochs=2",
    "--data.length=64",
    "--data.test_length=24",
    "--trainer.enable_model_summary=false",
    "--trainer.log_every_n_steps=1",
]
SMALL += ["--model.ranks=[1,2]", "--model.kinds=[cv,rd]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of a short training; tests copy it."""
    return made_once(tmp_path_factory, main, ["fit", "--run", "short", *SMALL])


@pytest.fixture
def run(trained, run_folder):
    """The short training as this test's latest run."""
    return copied(trained, run_folder)


def write_faces(folder, count=4, seed=5):
    folder.mkdir(parents=True)
    for number, image in enumerate(faces("test", count, "swap", seed).frames):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return folder


def rows_of(path):
    return list(csv.DictReader(path.open()))


def test_fit_tests_every_set_and_keeps_what_was_trained(run):
    rows = rows_of(run / "artefacts" / "fit" / "sets.csv")
    assert [row["set"] for row in rows] == ["swap", "reenact", "self_blend", "mean"]
    assert all(0 <= float(row["video_auroc_low"]) <= float(row["video_auroc_high"]) <= 1 for row in rows)
    usage = rows_of(run / "artefacts" / "fit" / "usage_lora.csv")
    assert {row["kind"] for row in usage} == {"real", "swap", "reenact", "self_blend"}
    assert all(float(row["expert 0"]) + float(row["expert 1"]) == pytest.approx(1) for row in usage)
    share = (run / "artefacts" / "fit" / "delta.safetensors").stat().st_size / (run / "checkpoints" / "last.ckpt").stat().st_size
    assert share < 0.3


def test_a_delta_makes_a_run_with_the_same_scores(run, run_folder):
    before = main(["test"]).model.test_rows
    main(["convert", str(run / "artefacts" / "fit" / "delta.safetensors"), "--run", "again", *SMALL])
    after = main(["test", "--run", "again"]).model.test_rows
    assert [row["frame_auroc"] for row in after] == [row["frame_auroc"] for row in before]


def test_the_authors_weights_may_be_safetensors(run_folder, tmp_path, capsys):
    from safetensors.torch import save_file

    save_file({"head.bias": torch.zeros(2)}, tmp_path / "released.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "released.safetensors"), "--run", "theirs", *SMALL])
    assert "released.safetensors do not fit the detector" in capsys.readouterr().err, "they are read as weights, not as a delta"


def test_predict_judges_images_and_frames_of_videos(run, tmp_path):
    root = write_faces(tmp_path / "mine", 3)
    write_faces(root / "clip", 6)
    result = main(["predict", str(root), "--detector=none"]).result
    assert [(row["input"], row["frames"]) for row in result.rows] == [("0.png", 1), ("1.png", 1), ("2.png", 1), ("clip", 6)]
    clip = [row["score"] for row in result.frames if row["input"] == "clip"]
    assert result.rows[-1]["score"] == pytest.approx(np.mean(clip), abs=1e-6)
    assert result.rows[-1]["verdict"] == ("fake" if np.mean(clip) > 0.5 else "real")
    folder = run / "artefacts" / "predict"
    assert {path.name for path in folder.iterdir()} >= {"predictions.csv", "frames.csv", "timeline_003.png", "faces.png", "maps.png"}


def test_what_cannot_be_read_is_named_and_the_rest_is_judged(run, tmp_path, capsys):
    root = write_faces(tmp_path / "mine äö", 2)
    write_faces(root / "clip", 3)
    for broken in (root / "bad.png", root / "bad.mp4", root / "clip" / "1.png"):
        broken.write_bytes(b"no picture")
    result = main(["predict", str(root), "--detector=none"]).result
    assert {row["input"]: row["faces"] for row in result.rows} == {"0.png": 1, "1.png": 1, "bad.png": 0, "clip": 2, "bad.mp4": 0}
    assert [row["input"] for row in result.rows if row["verdict"] == "unreadable"] == ["bad.png", "bad.mp4"]
    assert [row["state"] for row in result.frames if row["input"] == "clip"] == ["face", "unreadable", "face"]
    with pytest.raises(SystemExit):
        main(["predict", str(root / "bad.png"), "--detector=none"])
    assert "nothing in" in capsys.readouterr().err


def test_crops_are_judged_as_the_frames_of_a_test_set_are(run, tmp_path):
    """Also those that are no squares: a test set's frames are stretched."""
    picture = faces("test", 2, "swap", 5, size=96).frames[1]
    Image.fromarray(picture.permute(1, 2, 0).numpy()[:60]).save(tmp_path / "wide.png")
    cli = main(["predict", str(tmp_path / "wide.png"), "--detector=none"])
    frames = FrameFiles([str(tmp_path / "wide.png")], 48)[torch.tensor([0])]
    with torch.no_grad():
        assert cli.result.rows[0]["score"] == pytest.approx(float(cli.model(frames)), abs=1e-6)


def test_where_no_face_is_found_nothing_is_claimed(run, tmp_path):
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "wall.png")
    result = main(["predict", str(tmp_path / "wall.png")]).result
    assert result.rows[0]["verdict"] == "no face"
    assert np.isnan(result.rows[0]["score"])


def test_inputs_of_a_folder(tmp_path):
    root = write_faces(tmp_path / "mine", 2)
    write_faces(root / "b" / "deep", 11)
    (root / "clip.mp4").write_bytes(b"")
    found = find_inputs(root)
    assert [(given.name, len(given.files), given.is_video) for given in found] == [
        ("0.png", 1, False),
        ("1.png", 1, False),
        ("b/deep", 11, False),
        ("clip.mp4", 1, True),
    ]
    assert [file.name for file in found[2].files][:3] == ["0.png", "1.png", "2.png"], "numbers are counted, not spelt"
    assert find_inputs(root / "1.png")[0].name == "1.png"


def test_robustness_writes_a_table(run):
    result = main(["robustness", "--perturbations=[blur]"]).result
    rows = rows_of(run / "artefacts" / "robustness" / "robustness.csv")
    assert [(row["perturbation"], row["level"]) for row in rows] == [("none", "0"), *(("blur", str(level)) for level in range(1, 6))]
    assert result.summary["robustness/clean"] == pytest.approx(float(rows[0]["frame_auroc"]), abs=1e-3)
    assert (run / "artefacts" / "robustness" / "robustness.png").is_file()


@pytest.mark.slow
def test_reproduce_makes_every_table(run_folder):
    from projects.moe_ffd.reproduction import TABLES

    main(["reproduce", "--quick", "--run", "quick"])
    for name in TABLES:
        assert json.loads((run_folder / "moe_ffd" / "quick" / f"results-{name}.json").read_text())["rows"]


def test_what_is_logged_is_on_the_dashboard(run):
    header = next(csv.reader((run / "fit" / "metrics.csv").open()))
    pictures = {path.stem for path in (run / "artefacts" / "fit").iterdir()}
    of_verbs = {"robustness"}  # tested with its verb
    assert validate(REPOSITORY / "projects" / "moe_ffd" / "dashboard.yaml").metrics <= {*header} | pictures | of_verbs


def test_a_killed_training_resumes_to_the_same_weights(run_folder):
    common = ["fit", *SMALL, "--data.test_length=8", "--save_every=1"]
    run_until_killed(run_folder, fit_until_killed, [*common, "--run", "broken"], "moe_ffd", 3)
    resumed = main(["fit", "--resume", "--run", "broken"])
    whole = main([*common, "--run", "whole"])
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, atol=1e-6, rtol=1e-6)  # rounding differs between the processes


@pytest.mark.slow
def test_two_processes_judge_as_one(run_folder):
    options = ["fit", *SMALL, "--model.lora_router=uniform", "--model.adapter_router=uniform", "--data.augmentation=none"]
    run_together(command_line, [*options, "--run", "two"], "moe_ffd")
    main([*options, "--run", "one"])
    tables = [rows_of(run_folder / "moe_ffd" / name / "artefacts" / "fit" / "sets.csv") for name in ("one", "two")]
    assert [row["frames"] for row in tables[0]] == [row["frames"] for row in tables[1]]
    for one, two in zip(*tables, strict=True):
        assert float(two["frame_auroc"]) == pytest.approx(float(one["frame_auroc"]), abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "/nowhere/at/all"], "/nowhere/at/all"),
        (["robustness", "--perturbations=[prayer]"], "--perturbations prayer: choose among saturation"),
        (["robustness", "--levels=[9]"], "--levels [9]: choose among 1"),
        (["predict", "pyproject.toml", "--detector=yunet"], "yunet"),
        (["convert", "/nowhere/delta.safetensors", "--run", "other"], "no delta checkpoint"),
    ],
)
def test_what_is_wrong_is_named_before_any_work(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
