import csv
import json
import shutil
import signal
import sys

import pytest
import torch
from helpers.processes import run_together, run_until_killed
from helpers.workers import certify_until_killed, command_line, stopping
from PIL import Image

from projects.drs.certification import Certification
from projects.drs.cli import main
from projects.drs.released import write_checkpoint
from projects.drs.verdicts import own_tables
from shared.backbones.resnets import CifarResNet
from shared.runs import Run
from shared.smoothing import read_table
from shared.smoothing.log import read_rows

FEW = ["--data.limit=6", "--draws=300"]


def rows_of(run):
    return [(row.index, row.label, row.predicted, row.radius, row.details) for row in read_rows(own_tables(Run(run))[-1].with_suffix(".jsonl"))[1]]


def pictures(folder, count=5, size=24):
    folder.mkdir()
    for number in range(count):
        random = torch.randint(0, 256, (size, size), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(random.numpy()).save(folder / f"{number}.png")
    return folder


def test_certify_writes_cohens_table_and_our_own(run, capsys):
    cli = main(["certify", *FEW])
    table = read_table(own_tables(Run(run))[0])
    assert table.index.tolist() == list(range(6))
    settings, rows = read_rows(own_tables(Run(run))[0].with_suffix(".jsonl"))
    assert settings["sigmas"] == [0.35355339, 0.35355339]
    assert settings["rule"] == "joint"
    assert [sum(branch.values()) for branch in rows[0].details["estimation"]] == [300, 300]
    assert {"certified_accuracy.csv", "certified_accuracy.png"} <= {path.name for path in (run / "artefacts" / "certify").iterdir()}
    shown = capsys.readouterr().out
    assert "6 images, 800 forward passes" in shown, "of 100 and 300 draws in each of two branches"
    assert "certified accuracy: 0: " in shown
    assert cli.result.summary["certify/acr"] == pytest.approx(sum(row.radius * row.is_correct for row in rows) / 6, abs=1e-6)
    assert "next: lightning run projects/drs/cli.py analyze" in shown


def test_counts_depend_on_neither_batches_nor_processes(run, run_folder, monkeypatch):
    main(["certify", *FEW])
    expected = rows_of(run)
    main(["certify", *FEW, "--batch_size=7", "--force"])
    assert rows_of(run) == expected
    shutil.rmtree(run / "artefacts" / "certify")
    run_together(command_line, ["certify", *FEW, "--batch_size=31", "--force", "--run", "short"], "drs")
    assert rows_of(run) == expected
    assert len(list(own_tables(Run(run))[-1].parent.glob("part-*.jsonl"))) == 2


STOPPED = ["certify", "--data.limit=6", "--draws=4000", "--run", "short"]


def test_a_terminated_certification_keeps_its_votes_and_goes_on(run, monkeypatch):
    folder = run / "artefacts" / "certify"
    with monkeypatch.context() as patch:
        patch.setattr(Certification, "_advance", stopping(Certification._advance, signal.SIGTERM, 5))
        with pytest.raises(SystemExit) as stop:
            main(STOPPED)
    assert stop.value.code == 143
    assert list(folder.glob("*/partial-0000.json")), "the votes of the images in the works are kept"
    goes_on_as_one_that_was_not_stopped(run)


@pytest.mark.slow
def test_a_killed_certification_goes_on(run, run_folder):
    run_until_killed(run_folder, certify_until_killed, STOPPED, 5)
    goes_on_as_one_that_was_not_stopped(run)


def goes_on_as_one_that_was_not_stopped(run):
    folder = run / "artefacts" / "certify"
    [part] = folder.glob("*/part-0000.jsonl")
    main([*STOPPED, "--batch_size=100"])
    broken = rows_of(run)
    shutil.rmtree(folder)
    main([*STOPPED, "--force"])
    assert rows_of(run) == broken
    assert part.parent.name == own_tables(Run(run))[-1].parent.name


@pytest.mark.parametrize(
    "options",
    [
        ["--certificate=main"],
        ["--certificate=pooled"],
        ["--certificate=runner_up"],
        ["--sound_grid=true"],
        ["--precision=bfloat16"],
        ["--tolerance=0.2"],
        ["--sigma=0.5"],
    ],
)
def test_every_way_to_certify(run, options):
    result = main(["certify", "--data.limit=2", "--draws=600", *options]).result
    assert len(read_table(result.table)) == 2


def test_own_images_are_certified_and_predicted(run, tmp_path, capsys):
    folder = pictures(tmp_path / "mine")
    main(["certify", str(folder), "--draws=200"])
    rows = list(csv.DictReader((run / "artefacts" / "certify" / "certificates.csv").open()))
    assert [row["file"] for row in rows] == [f"{number}.png" for number in range(5)]
    result = main(["predict", str(folder), "--draws=200", "--seed=3"]).result
    assert [row["file"] for row in result.rows] == [f"{number}.png" for number in range(5)]
    assert all(row["class"] in {"", *"0123456789"} for row in result.rows)
    table = json.loads((run / "artefacts" / "predict" / "predictions.json").read_text())
    assert table == result.rows
    assert (run / "artefacts" / "predict" / "predictions.png").is_file()
    again = main(["predict", str(folder / "2.png"), "--draws=200", "--seed=3"]).result
    assert len(again.rows) == 1
    Image.new("L", (24, 24), 255).save(folder / "2.png")
    capsys.readouterr()
    main(["predict", str(folder / "2.png"), "--draws=200", "--seed=3"])
    assert "done already" not in capsys.readouterr().out, "the file has changed"


def test_classes_have_the_names_of_the_training(run, tmp_path):
    path = run / "checkpoints" / "last.ckpt"
    names = [f"digit {number}" for number in range(10)]
    torch.save(torch.load(path, weights_only=True) | {"class_names": names}, path)
    deep = torch.randint(0, 1 << 16, (16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    Image.fromarray(deep.numpy().astype("uint16")).save(tmp_path / "deep.png")
    folder = ["--data.source=folder", f"--data.root={tmp_path / 'gone'}"]
    [row] = main(["predict", str(tmp_path / "deep.png"), "--draws=50", "--alpha=1", "--sound_grid", *folder]).result.rows
    assert row["class"] in names


def test_predictions_of_the_data_set(run):
    result = main(["predict", "--data.limit=20", "--draws=400"]).result
    assert result.summary["accuracy"] > 0.6
    assert result.summary["images"] == 20


def test_tables_are_analyzed_and_audited(run, capsys, tmp_path):
    main(["certify", *FEW])
    main(["analyze"])
    names = {path.name for path in (run / "artefacts" / "analyze").iterdir()}
    assert {"analysis.csv", "analysis.tex", "certified_accuracy.png", "probability_bounds.png"} <= names
    assert main(["audit"]).exit_code == 0
    copy = tmp_path / "certify.tsv"
    copy.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t1.5\t1\t0:00:10\n")
    capsys.readouterr()
    sys.argv = ["cli.py", "audit", str(copy), "--sigma", "0.25", "--draws", "1000", "--alpha", "0.001"]
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "the most that 1000 draws" in capsys.readouterr().out.replace("1,000", "1000")


def test_published_weights_become_a_run(run_folder, tmp_path, capsys):
    torch.manual_seed(0)
    files = []
    for side, prefix in (("left", "module.1."), ("right", "1.module.")):
        network = CifarResNet(20, 10)
        files.append(tmp_path / f"{side}.pth.tar")
        torch.save({"epoch": 1, "arch": "x", "state_dict": {f"{prefix}{k}": v for k, v in network.state_dict().items()}}, files[-1])
    options = ["--config", "released", "--model.backbone=resnet20", "--run", "theirs"]
    main(["convert", str(files[0]), "--right", str(files[1]), *options])
    assert "certify it with: lightning run projects/drs/cli.py certify --run theirs" in capsys.readouterr().out
    folder = pictures(tmp_path / "mine", 2, 32)
    result = main(["certify", str(folder), "--run", "theirs", "--draws=20", "--selection=10"]).result
    assert len(read_table(result.table)) == 2
    main(["convert", str(files[0]), *options[:-1], "plain", "--config", "rs"])
    assert read_table(main(["certify", str(folder), "--run", "plain", "--draws=20", "--selection=10"]).result.table)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["certify", "--sigma=-1"], "sigmas must be positive"),
        (["certify", "--certificate=pooled", "--radii=[0.5]"], "needs a fixed number of draws"),
        (["certify", "--sigma=0"], "sigmas must be positive"),
        (["certify", "--data.source=shapes"], "the data has 4 classes"),
        (["test", "--data.source=shapes"], "the data has 4 classes"),
        (["certify", "--batch_size=0"], "at least one image in a batch"),
        (["certify", "--data.stop=0"], "leave none"),
        (["certify", "--draws=0"], "needs draws"),
        (["predict", "--draws=0"], "a prediction needs draws"),
        (["predict", "--alpha=2"], "a prediction needs draws, and alpha"),
        (["certify", "--alpha=2"], "alpha must lie in"),
        (["certify", "--data.start=999"], "leave none of 397 images"),
        (["certify", "/nowhere"], "/nowhere"),
        (["predict", "/nowhere"], "/nowhere"),
        (["analyze"], "holds no certification table of a data set"),
        (["audit", "/nowhere.tsv", "--sigma=1", "--draws=10", "--alpha=0.1"], "/nowhere.tsv"),
        (["certify", "--ckpt_path=/none.ckpt"], "no checkpoint /none.ckpt"),
        (["certify", "--model.backbone=resnet20"], "does not fit the model"),
    ],
)
def test_mistakes_end_with_a_message(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_nan_weights_abstain(run):
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    state = {name: torch.full_like(value, float("nan")) if value.is_floating_point() else value for name, value in state.items()}
    write_checkpoint(state, run / "checkpoints" / "last.ckpt")
    table = read_table(main(["certify", "--data.limit=2", "--draws=100"]).result.table)
    assert table.predicted.tolist() == [-1, -1]


def test_a_log_belongs_to_one_classifier_and_one_data_set(run, tmp_path, capsys):
    options = ["certify", "--draws=100", "--selection=10", "--data.limit=2"]
    changes = [[], ["--model.split=column"], ["--model.statistics=digits"], ["--data.split=train"]]
    tables = {main([*options, *change]).result.table for change in changes}
    assert len(tables) == len(changes)
    assert 'trained with other settings than those here: split "checkerboard", here "column"' in capsys.readouterr().err
    for name in ("a", "b"):
        for split in ("train", "test"):
            for label in "0123456789":
                (tmp_path / name / split / label).mkdir(parents=True)
                Image.new("L", (16, 16), 200 if name == "a" else 90).save(tmp_path / name / split / label / "same name.bmp")
    roots = [main([*options, "--data.source=folder", f"--data.root={tmp_path / name}"]).result.table for name in ("a", "b")]
    assert roots[0] != roots[1]


def test_tables_hold_what_was_asked_for(run):
    main(["certify", "--draws=100", "--selection=10", "--data.limit=6"])
    table = main(["certify", "--draws=100", "--selection=10", "--data.start=2", "--data.stop=8", "--data.skip=2"]).result.table
    assert read_table(table).index.tolist() == [2, 4, 6]
    main(["certify", "--draws=100", "--selection=10", "--data.limit=6", "--force"])
    assert read_table(table).index.tolist() == list(range(6))


def test_own_images_are_no_part_of_an_analysis(run, tmp_path):
    main(["certify", *FEW])
    main(["certify", str(pictures(tmp_path / "mine")), "--draws=100"])
    assert len(main(["analyze"]).result.rows) == 1
    own = next((run / "artefacts" / "certify").glob("own-*/certify.tsv"))
    assert not read_table(own).is_correct.any(), "nothing is right where nothing is known"


def test_pictures_that_cannot_be_read_may_be_skipped(run, tmp_path, capsys):
    folder = pictures(tmp_path / "mine")
    (folder / "2.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit):
        main(["predict", str(folder), "--draws=50"])
    assert "2.png" in capsys.readouterr().err
    found = main(["predict", str(folder), "--draws=50", "--data.on_bad_file=skip"]).result
    assert [row["file"] for row in found.rows] == ["0.png", "1.png", "3.png", "4.png"]
