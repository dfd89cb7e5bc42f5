import csv
import json
import shutil
from itertools import pairwise

import pytest
import torch
import yaml
from helpers.processes import run_together, run_until_killed
from helpers.runs import runs_in
from helpers.workers import command_line, fit_until_killed
from PIL import Image

from projects.forgery_nas import compare_task, search_task
from projects.forgery_nas.cli import main
from projects.forgery_nas.genotype import RELEASED, Genotype, load_genotype
from projects.forgery_nas.inference import count
from projects.forgery_nas.module import ForgeryNetTraining
from projects.forgery_nas.network import ForgeryNet
from projects.forgery_nas.options import SPACES, SearchOptions
from projects.forgery_nas.search import ArchitectureSearch
from projects.forgery_nas.strategies import search_cost
from shared.checkpoints import load_checkpoint
from shared.dashboards import validate
from shared.forgery.augmentation import TrainingFrames
from shared.forgery.faces import faces
from shared.runs import REPOSITORY

DATA = ["--data.length=64", "--data.test_length=16", "--data.size=32", "--data.batch_size=16"]
QUIET = ["--trainer.max_epochs=1", "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1"]
SPACE = ["max_pool_3x3", "sep_cdc_3x3_0.7", "skip_connect", "none"]
CELLS = {"channels": 4, "layers": 3, "warmup": 1, "prune_every": 1, "candidate_epochs": 1}
SMALL = [*DATA, *QUIET, "--model.channels=4", "--model.layers=3", f"--model.search.space=[{','.join(SPACE)}]"]
SMALL += [f"--model.search.{name}={value}" for name, value in CELLS.items()]
STEPS = 2
"""Steps of an epoch of a search: half of the 64 frames learn the weights, in batches of 16."""
BUDGET = search_cost(SearchOptions(space=SPACE, **CELLS), STEPS, 16)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of a short search and of a short training of what it found; tests copy them."""
    folder = tmp_path_factory.mktemp("made")
    with runs_in(folder):
        main(["search", "--run", "searched", *SMALL])
        genotype = folder / "forgery_nas" / "searched" / "artefacts" / "search" / "genotype.json"
        main(["fit", "--run", "short", "--model.genotype", str(genotype), *SMALL])
    return folder / "forgery_nas"


@pytest.fixture
def run(made, run_folder):
    """The short training as this test's latest run, beside the search."""
    shutil.copytree(made, run_folder / "forgery_nas")
    return run_folder / "forgery_nas" / "short"


def rows_of(path):
    return list(csv.DictReader(path.open()))


def history_of(folder):
    """Return what a search remembered of its stages or candidates, but for the time that they took."""
    return [{**row, "seconds": None} for row in json.loads((folder / "history.json").read_text())]


def found_by(folder, name):
    """Return the folder of what a search wrote, and the genotype that it found."""
    found = folder / "forgery_nas" / name / "artefacts" / "search"
    return found, load_genotype(str(found / "genotype.json"))


def fails(arguments, capsys):
    """Run a command that must end with exit code 1 and without a traceback, and return its message."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def interrupt(monkeypatch, task, trainings):
    """Count the trainings of a task from now on in the list that is returned; Ctrl-C comes in place of the one after `trainings`."""
    done, train = [], task.fit_detector

    def until_interrupted(*args, **options):
        if len(done) == trainings:
            raise KeyboardInterrupt
        done.append(args)
        return train(*args, **options)

    monkeypatch.setattr(task, "fit_detector", until_interrupted)
    return done


def test_search_writes_what_it_found_and_how(made):
    folder = made / "searched" / "artefacts" / "search"
    genotype = load_genotype(str(folder / "genotype.json"))
    stages = rows_of(folder / "stages.csv")
    assert [row["alive"] for row in stages] == ["3", "2", "2"]
    assert [row["epoch"] for row in stages] == ["2", "3", "3"]
    history = history_of(folder)
    assert [len(row["dropped"]) for row in history] == [28, 28, 0], "one on each edge of both cells"
    assert Genotype.from_json(history[-1]["genotype"]) == genotype
    assert all(float(one["seconds"]) <= float(other["seconds"]) for one, other in pairwise(stages))
    operations = rows_of(folder / "operations.csv")
    assert [row["operation"] for row in operations] == SPACE[:-1]
    assert [sum(int(row[cell]) for row in operations) for cell in ("normal", "reduce")] == [8, 8]
    [cost] = rows_of(folder / "cost.csv")
    net = ForgeryNet(genotype, 4, 3)
    assert (cost["strategy"], int(cost["images"])) == ("pruning", BUDGET)
    assert int(cost["parameters"]) == count(net, 32).parameters
    assert float(cost["seconds"]) == pytest.approx(float(stages[-1]["seconds"]), abs=0.051)
    pictures = {"genotype.png", "alpha.png", "importance.png", "importance-000005.png", "operations.png"}
    assert pictures | {"genotype.dot"} <= {path.name for path in folder.iterdir()}
    assert [path.relative_to(made / "searched").as_posix() for path in (made / "searched").rglob("*.ckpt")] == ["artefacts/search/last.ckpt"]
    assert (made / "searched" / "report.html").is_file()


def test_fit_trains_what_was_found_and_tests_it(made):
    rows = rows_of(made / "short" / "artefacts" / "fit" / "sets.csv")
    assert [row["set"] for row in rows] == ["swap", "reenact", "self_blend", "mean"]
    trained = load_checkpoint(made / "short" / "checkpoints" / "last.ckpt")["hyper_parameters"]["genotype"]
    assert Genotype.from_json(trained) == load_genotype(str(made / "searched" / "artefacts" / "search" / "genotype.json"))
    assert (made / "latest").read_text().strip() == "short", "what follows works on the training, not on the search"


def test_test_repeats_what_fit_measured_without_the_file_of_the_cells(run, run_folder):
    searched = run_folder / "forgery_nas" / "searched"
    genotype = load_genotype(searched / "artefacts" / "search" / "genotype.json")
    shutil.rmtree(searched)
    keys = ("set", "frame_auroc", "video_auroc")
    model = main(["test"]).model
    tested = [{key: str(row[key]) for key in keys} for row in model.test_rows]
    assert tested == [{key: row[key] for key in keys} for row in rows_of(run / "artefacts" / "fit" / "sets.csv")]
    assert model.genotype == genotype, "which the run keeps itself: a file may change or go"


def test_predict_judges_images_and_frames_of_videos(run, tmp_path):
    for folder, number in ((tmp_path, 2), (tmp_path / "clip", 3)):
        folder.mkdir(exist_ok=True)
        for place, image in enumerate(faces("test", number, "swap", 5).frames):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{place}.png")
    result = main(["predict", str(tmp_path), "--detector=none"]).result
    assert [(row["input"], row["frames"]) for row in result.rows] == [("0.png", 1), ("1.png", 1), ("clip", 3)]
    assert all(0 <= row["score"] <= 1 and row["verdict"] == ("fake" if row["score"] > 0.5 else "real") for row in result.rows)
    assert {path.name for path in (run / "artefacts" / "predict").iterdir()} >= {"predictions.csv", "frames.csv", "faces.png", "maps.png"}


def test_robustness_writes_a_table(run):
    main(["robustness", "--perturbations=[blur]"])
    rows = rows_of(run / "artefacts" / "robustness" / "robustness.csv")
    assert [(row["perturbation"], row["level"]) for row in rows] == [("none", "0"), *(("blur", str(level)) for level in range(1, 6))]
    assert (run / "artefacts" / "robustness" / "robustness.png").is_file()


def test_what_is_logged_is_on_the_dashboard(made):
    headers = [next(csv.reader((made / name / verb / "metrics.csv").open())) for name, verb in (("searched", "search"), ("short", "fit"))]
    artefacts = {path.stem for path in made.glob("*/artefacts/*/*")}
    of_verbs = {"robustness", "networks"}  # tested with their verbs
    assert validate(REPOSITORY / "projects" / "forgery_nas" / "dashboard.yaml").metrics <= {*headers[0], *headers[1]} | artefacts | of_verbs


# ---- strategies


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("pcdarts", "random", "evolution")]


@pytest.mark.parametrize("strategy", ["weight_sharing", *SLOW])
def test_a_strategy_finds_cells_at_the_same_cost(strategy, run_folder):
    main(["search", "--strategy", strategy, "--run", "one", *SMALL])
    folder, genotype = found_by(run_folder, "one")
    [cost] = rows_of(folder / "cost.csv")
    assert cost["strategy"] == strategy
    assert 0 < int(cost["images"]) <= BUDGET
    assert {name for cell in (genotype.normal, genotype.reduce) for node in cell for name, _ in node} <= set(SPACE[:-1])
    if strategy == "pcdarts":
        [row] = rows_of(folder / "stages.csv")
        assert (row["alive"], int(cost["images"])) == ("4", BUDGET), "nothing was pruned"
    else:
        rows = rows_of(folder / "candidates.csv")
        best = max(history_of(folder), key=lambda row: row["score"])
        assert Genotype.from_json(best["genotype"]) == genotype
        assert int(rows[-1]["images"]) == int(cost["images"])
    if strategy in ("random", "evolution"):
        assert len(rows) == BUDGET // 32, "a candidate learns from what the weights of a supernet do"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pruning", "pcdarts", "random", "evolution", "weight_sharing"])
def test_a_strategy_is_a_function_of_its_seed(strategy, run_folder):
    for name in ("one", "two"):
        main(["search", "--strategy", strategy, "--run", name, *SMALL])
    (one, first), (two, second) = (found_by(run_folder, name) for name in ("one", "two"))
    assert history_of(one) == history_of(two)
    assert first == second


def in_order_of_classes(count):
    """Real frames before fake ones, as files are read."""
    drawn = faces("train", count, size=16, video_frames=1)
    return drawn.subset(drawn.labels.argsort(stable=True))


def test_candidates_are_scored_on_batches_of_both_classes():
    ordered = in_order_of_classes(64)
    scored = search_task.scored_frames(TrainingFrames(ordered), 0)
    assert sorted(video.key for video in scored.videos) == sorted(video.key for video in ordered.videos)
    assert all(0.2 < part.float().mean() < 0.8 for part in scored.labels.split(16)), "norms of shared weights see a batch at a time"


def test_candidates_are_scored_on_the_blends_that_stand_for_fakes():
    reals = in_order_of_classes(32).select([])
    scored = search_task.scored_frames(TrainingFrames(reals, "vflip", self_blended=True), 0)
    assert scored.labels.bincount().tolist() == [16, 16]
    assert {video.name for video in scored.videos if video.label} == {video.name for video in scored.videos if not video.label}
    shown = {image.numpy().tobytes() for image in scored.frames[scored.labels == 0]}
    assert shown == {image.numpy().tobytes() for image in reals.frames}, "as they are, without augmentation"


def test_networks_are_ranked_by_what_the_search_did_not_see():
    assert compare_task.not_searched(["swap", "reenact", "self_blend (searched)"]) == ["swap", "reenact"]
    assert compare_task.not_searched(["self_blend (searched)"]) == ["self_blend (searched)"]


# ---- going on


def test_a_killed_search_resumes_to_the_same_cells(made, run_folder):
    arguments = ["search", *SMALL, "--save_every=5", "--run", "broken"]
    run_until_killed(run_folder, fit_until_killed, arguments, "forgery_nas", 2 * STEPS + 1)
    point = run_folder / "forgery_nas" / "broken" / "artefacts" / "search" / "last.ckpt"
    assert len(load_checkpoint(point)["search"]["history"]) == 1, "it was killed after the first pruning"
    main(["search", "--resume", "--run", "broken"])
    resumed, genotype = found_by(run_folder, "broken")
    whole, expected = found_by(made.parent, "searched")
    assert genotype == expected
    for name, value in load_checkpoint(whole / "last.ckpt")["state_dict"].items():  # alpha, beta, importances and weights
        torch.testing.assert_close(load_checkpoint(point)["state_dict"][name], value, atol=1e-5, rtol=1e-5)  # rounding differs between processes
    assert history_of(resumed) == history_of(whole)
    steps = [row["step"] for row in rows_of(run_folder / "forgery_nas" / "broken" / "search" / "metrics.csv")]
    assert steps == sorted({*steps}, key=int), "no step is in the log twice"


@pytest.mark.slow
def test_a_resumed_random_search_trains_no_candidate_twice(run_folder, monkeypatch, capsys):
    done = interrupt(monkeypatch, search_task, 2)
    with pytest.raises(SystemExit) as stop:
        main(["search", "--strategy=random", "--run", "broken", *SMALL])
    assert stop.value.code == 130
    assert "--resume --run broken" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("TOUCHSTONE_RUNS", str(run_folder))
    rest = interrupt(monkeypatch, search_task, None)
    main(["search", "--strategy=random", "--resume", "--run", "broken"])
    rows = rows_of(found_by(run_folder, "broken")[0] / "candidates.csv")
    assert (len(done), len(rest), len(rows)) == (2, BUDGET // 32 - 2, BUDGET // 32)


def test_compare_sets_found_cells_beside_others_and_goes_on(run, run_folder, monkeypatch, capsys):
    genotype = run_folder / "forgery_nas" / "searched" / "artefacts" / "search" / "genotype.json"
    arguments = ["compare", "--cells=2", "--networks=[meso4]", "--run", "beside", "--model.genotype", str(genotype), *SMALL]
    with monkeypatch.context() as patch:
        done = interrupt(patch, compare_task, 3)
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 130
    with monkeypatch.context() as patch:
        rest = interrupt(patch, compare_task, None)
        result = main([*arguments, "--resume"]).result
    found = [(row["network"], row["kind"]) for row in result.rows]
    plain = [("searched, theta 0", "plain convolutions")]
    others = [("released", "released"), ("random 0", "random"), ("random 1", "random"), ("meso4", "hand-made")]
    assert found == [("searched", "given"), *plain, *others]
    assert (len(done), len(rest)) == (3, len(found) - 3)
    searched, random = result.rows[0]["mean"], [row["mean"] for row in result.rows if row["kind"] == "random"]
    assert result.summary["compare/percentile"] == 100 * sum((searched > one) + 0.5 * (searched == one) for one in random) / len(random)
    assert result.rows[0]["mean"] == pytest.approx(sum(result.rows[0][name] for name in ("swap", "reenact", "self_blend")) / 3)
    assert result.rows[0]["parameters"] == result.rows[1]["parameters"], "theta has no parameters"
    folder = run_folder / "forgery_nas" / "beside" / "artefacts" / "compare"
    assert [row["network"] for row in rows_of(folder / "networks.csv")] == [name for name, _ in found]
    assert (folder / "networks.png").is_file()
    assert "of 2 random ones" in capsys.readouterr().out


# ---- all of it


@pytest.mark.slow
def test_two_processes_find_one_genotype(run_folder):
    run_together(command_line, ["search", *SMALL, "--run", "two"], "forgery_nas")
    folder, genotype = found_by(run_folder, "two")
    history = history_of(folder)
    assert [row["alive"] for row in history] == [3, 2, 2]
    assert Genotype.from_json(history[-1]["genotype"]) == genotype
    assert rows_of(folder / "cost.csv")[0]["images"] == str(BUDGET)


@pytest.mark.slow
def test_reproduce_makes_every_table(run_folder):
    from projects.forgery_nas.reproduction import TABLES

    main(["reproduce", "--quick", "--run", "quick"])
    for name in TABLES:
        assert json.loads((run_folder / "forgery_nas" / "quick" / f"results-{name}.json").read_text())["rows"]


# ---- what can go wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--model.genotype=/nowhere/genotype.json"], "/nowhere/genotype.json"),
        (["fit", "--model.genotype=broken.json"], "broken.json"),
        (["fit", "--model.size=64"], "the data have 32 pixels and the network is for 64: set data.size and model.size alike"),
        (["search", "--model.search.space=prayer"], "no search space 'prayer': choose full, small, plain"),
        (["search", "--model.search.epochs=2"], "2 epochs are too few"),
        (["search", "--model.search.k=3"], "K must divide the 4 channels"),
        (["search", "--data.architecture_sets=[prayer]"], "prayer"),
        (["search", "--data.source=folder", "--data.root=nothing"], "nothing"),
        (["search", "--strategy=random", "--model.search.candidate_epochs=6"], "take from 1 to 5 epochs"),
        (["search", "--strategy=evolution", "--model.search.candidate_epochs=0"], "take from 1 to 5 epochs"),
        (["compare", "--model.network=meso4"], "set model.network searched"),
        (["compare", "--networks=[prayer]"], "prayer"),
        (["compare", "--trainings=0"], "not --cells 8 and --trainings 0"),
    ],
)
def test_what_is_wrong_is_named_before_any_training(run_folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text('{"normal": [')
    verb, *options = arguments
    assert message in fails([verb, "--run", "bad", *SMALL, *options], capsys)
    assert not (run_folder / "forgery_nas" / "bad").exists()


@pytest.mark.parametrize("arguments", [["test"], ["predict", "pyproject.toml"]])
def test_a_search_leaves_no_detector(run, capsys, arguments):
    assert "the run forgery_nas/searched has none" in fails([*arguments, "--run", "searched"], capsys)


def test_the_papers_settings_build_its_network_and_supernet(run_folder, tmp_path, capsys):
    message = fails(["search", "--config", "paper", "--data.root", str(tmp_path), "--run", "full"], capsys)
    assert "FaceForensics++" in message, "all settings were read before the data were asked for"
    text = (REPOSITORY / "projects" / "forgery_nas" / "configs" / "paper.yaml").read_text()
    settings = yaml.safe_load(text.replace("${seed_everything}", "0").replace("${data.size}", "64"))["model"]
    searched = ArchitectureSearch(SearchOptions(**settings.pop("search")))
    assert searched.options.length == 15 + 5 * (len(SPACES["full"]) - 2)
    assert (len(searched.net.cells), searched.net.k) == (8, 4)
    model = ForgeryNetTraining(**settings)
    assert model.genotype == RELEASED
    assert count(model.net, 64).parameters == 9_285_806
