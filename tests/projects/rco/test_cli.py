"""The command line: the way from a teacher to an exported student, configurations, and what is said when something is wrong."""

import csv
import inspect
import json
import re

import numpy as np
import pytest
import torch
import yaml
from helpers.commands import failing, slow
from helpers.distilling import SHORT, SMALL, STEPS, world
from helpers.layouts import write_cifar10, write_cifar100, write_class_folder, write_imagenet
from helpers.processes import start
from helpers.workers import fit_until_killed

from projects.rco.anchors import Recording, Route, write_route
from projects.rco.cli import main
from projects.rco.data import DistillationData
from projects.rco.module import RouteDistillation
from projects.rco.networks import build_network
from projects.rco.objectives import KINDS, Loss
from projects.rco.recipes import Recipe
from projects.rco.walking import Walk
from shared.checkpoints import load_checkpoint
from shared.dashboards import validate
from shared.runs import REPOSITORY

PROJECT = REPOSITORY / "projects" / "rco"
CONFIGS = sorted(file.stem for file in (PROJECT / "configs").glob("*.yaml"))


fails = failing(main)


# ---- the whole way


def test_a_student_predicts_and_is_done_with_it(runs, tmp_path, capsys):
    data = world()
    data.setup()
    np.save(tmp_path / "some.npy", next(iter(data.ordered("test")))["input"][:5])
    main(["predict", str(tmp_path / "some.npy")])
    assert "predict is done" in capsys.readouterr().out
    main(["predict", str(tmp_path / "some.npy")])
    assert "predict was done already with these settings and weights" in capsys.readouterr().out
    assert list((runs / "student" / "artefacts" / "predict").iterdir())
    main(["test"])
    assert "test is done" in capsys.readouterr().out
    main(["test"])
    assert "test was done already" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_way_from_a_teacher_to_a_file(run_folder, tmp_path, capsys):
    pytest.importorskip("onnx")
    main(["teach", "--run=teacher", *SHORT])
    assert "--model.route teacher" in capsys.readouterr().out
    main(["fit", "--run=student", "--model.route=latest", *SHORT])
    assert "cli.py route" in capsys.readouterr().out
    main(["fit", "--run=other", "--model.route=teacher", *SHORT, "--model.walk.anchors=1"])
    runs = run_folder / "rco"
    assert (runs / "latest").read_text().strip() == "other"
    shown = {}
    for verb in (["test"], ["route", "--candidates=3", "--epochs=3"], ["predict", str(tmp_path / "x.csv")], ["export"]):
        (tmp_path / "x.csv").write_text("1,-1,1,1,1,-1,1,1,1,1\n1,1,1,1,1,1,1,1,1,1\n")
        main([*verb, "--run=student"])
        shown[verb[0]] = capsys.readouterr().out
        assert f"{verb[0]} is done" in shown[verb[0]]
        assert {path.name for path in (runs / "student" / "artefacts").iterdir()} >= {verb[0]} or verb[0] == "test"
        main([*verb, "--run=student"])
        assert "was done already" in capsys.readouterr().out
    assert not (runs / "other" / "artefacts" / "export").exists()
    import onnxruntime

    session = onnxruntime.InferenceSession(runs / "student" / "artefacts" / "export" / "student.onnx")
    inputs = np.array([[1, -1, 1, 1, 1, -1, 1, 1, 1, 1]], dtype=np.float32)
    (said,) = session.run(None, {session.get_inputs()[0].name: inputs})
    module = RouteDistillation.load_from_checkpoint(runs / "student" / "checkpoints" / "last.ckpt", weights_only=True).eval()
    np.testing.assert_allclose(said, module(torch.from_numpy(inputs)).softmax(1).detach(), atol=1e-5)


def test_two_students_of_two_seeds_have_different_weights_and_the_same_route(runs):
    main(["fit", "--run=second", "--model.route=latest", *SHORT, "--model.seed=1", "--trainer.max_epochs=2"])
    first, second = (load_checkpoint(runs / name / "checkpoints" / "last.ckpt") for name in ("student", "second"))
    assert first["walk"]["anchors"] == second["walk"]["anchors"] == [2, 4]
    assert not torch.equal(first["state_dict"]["student.hidden1.weight"], second["state_dict"]["student.hidden1.weight"])


def test_a_route_of_another_secret_is_refused(runs, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["fit", "--run=other", "--model.route=latest", *SHORT, "--data.seed=3"])
    assert re.search(r"teacher learnt .*'seed': 0.*and the data are .*'seed': 3.*make them equal", capsys.readouterr().err, re.DOTALL)


@pytest.mark.slow
@pytest.mark.reports
def test_a_page_is_drawn():
    cli = main(["fit", *SHORT])
    page = (cli.run.path / "report.html").read_text()
    assert "walk" in page
    assert "test/accuracy" in page


# ---- configurations


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_name_options_that_there_are(name):
    text = (PROJECT / "configs" / f"{name}.yaml").read_text()
    given = yaml.safe_load(text)
    assert text.startswith("# lightning run projects/rco/cli.py fit")
    for section, made in (("model", RouteDistillation), ("data", DistillationData)):
        assert set(given.get(section, {})) <= set(inspect.signature(made.__init__).parameters)
    model = given["model"]
    for option, kind in (("walk", Walk), ("loss", Loss), ("learning", Recipe), ("teaching", Recipe), ("recording", Recording)):
        kind(**model.get(option, {}))


def test_the_papers_setting_is_the_published_one():
    given = yaml.safe_load((PROJECT / "configs" / "paper.yaml").read_text())
    model = given["model"]
    assert (model["teacher"], model["student"], model.get("teacher_epochs"), given["trainer"]["max_epochs"]) == (
        "resnet50",
        "mobilenetv2_0.5",
        None,
        240,
    )
    assert (model["walk"]["choice"], model["walk"]["anchors"], model["walk"]["budget"]) == ("eei", 4, "mirror")
    learning, teaching = Recipe(**model["learning"]), Recipe(**model["teaching"])
    assert (learning.lr, teaching.lr) == (0.01, 0.05)
    for recipe in (learning, teaching):
        assert (recipe.optimiser, recipe.momentum, recipe.weight_decay, recipe.milestones, recipe.gamma) == ("sgd", 0.9, 5e-4, [150, 180, 210], 0.1)
    loss = Loss(**model["loss"])
    assert (loss.kinds, loss.temperature, loss.ce_weight, loss.weight("kd")) == (["kd"], 4.0, 0.1, 0.9)
    assert (given["data"]["source"], given["data"]["batch_size"]) == ("cifar100", 64)
    assert all(anchor % model["recording"]["every"] == 0 for anchor in (60, 120, 180, 240))
    student, teacher = (build_network(model[name], (3, 32, 32), 100) for name in ("student", "teacher"))
    assert sum(parameter.numel() for parameter in student.parameters()) == 812_836
    assert sum(parameter.numel() for parameter in teacher.parameters()) == pytest.approx(23.7e6, rel=0.005)
    assert teacher(torch.zeros(1, 3, 32, 32)).shape == (1, 100)


STEP = [
    "--trainer.limit_train_batches=1",
    "--trainer.max_epochs=4",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.precision=32-true",
]
STEP += ["--trainer.enable_model_summary=false", "--data.batch_size=4", "--model.teacher_epochs=4", "--data.num_workers=0"]


@pytest.mark.parametrize(
    "nets",
    [["--model.teacher=cnn_2", "--model.student=cnn_1"], slow([])],
    ids=["tiny networks", "its own networks"],
)
@pytest.mark.parametrize("config", [[], slow(["--config=dkd"])], ids=["kd", "dkd"])
def test_the_papers_setting_takes_steps_on_a_miniature(tmp_path, run_folder, nets, config):
    root = write_cifar100(tmp_path).parent
    epochs = [] if not nets else ["--model.recording.every=1"]
    short = ["--model.recording.every=1", "--model.walk.anchors=2", "--trainer.max_epochs=2", "--model.teacher_epochs=2"] if not nets else []
    cli = main(["fit", "--config=paper", *config, f"--data.root={root}", *STEP, *nets, *epochs, *short])
    assert cli.trainer.global_step == (4 if nets else 2)
    route = Route.load(cli.run.artefacts("fit") / "anchors")
    assert route.half
    assert load_checkpoint(cli.run.checkpoints / "last.ckpt")["walk"]["anchors"] == ([1, 2, 3, 4] if nets else [1, 2])
    assert {"accuracy", "top5", "congruence loss"} <= set(cli.result.rows[0])
    assert "congruence loss, training set" not in cli.result.rows[0], "of augmented data"
    assert cli.model.learning.milestones == [150, 180, 210]
    assert cli.model.loss.kinds == (["dkd"] if config else ["kd"])


@pytest.mark.parametrize(
    ("config", "source", "options"),
    [
        ("drawn_faces", None, ["--data.people=6", "--data.shots=6", "--data.size=16", "--model.teacher=cnn_2", "--model.student=cnn_1"]),
        slow("imagenet", "imagenet", ["--data.size=32", "--model.teacher=cnn_2", "--model.student=cnn_1"]),
    ],
    ids=["drawn_faces", "imagenet"],
)
def test_other_configurations_take_steps_on_miniatures(tmp_path, run_folder, config, source, options):
    root = [f"--data.root={write_imagenet(tmp_path / 'imagenet')}"] if source else []
    short = ["--model.recording.every=1", "--trainer.max_epochs=2", "--model.teacher_epochs=2", "--model.walk.anchors=2"]
    cli = main(["fit", f"--config={config}", *root, *STEP, *options, *short])
    assert cli.trainer.global_step == 2
    assert ("rank1" in cli.result.rows[0]) == (config == "drawn_faces")


@pytest.mark.slow
@pytest.mark.parametrize(
    "data", [["--data.source=digits", "--data.held_out=0.1"], ["--data.source=tiles", "--data.bits=16", "--data.secret=2", "--data.length=128"]]
)
def test_worlds_of_images_take_steps(run_folder, data):
    cli = main(["fit", *data, *STEP, "--data.batch_size=64", "--model.walk.anchors=2", "--model.teacher=cnn_2", "--model.student=cnn_1"])
    assert cli.trainer.global_step == 4


def test_what_is_logged_is_on_the_dashboard(runs):
    header = {name for verb in ("teacher/teach", "student/fit") for name in next(csv.reader((runs / verb / "metrics.csv").open()))}
    artefacts = {path.stem for path in runs.glob("*/artefacts/*/*")}
    summary = {name for run in ("teacher", "student") for name in json.loads((runs / run / "manifest.json").read_text())["stages"][-1]["summary"]}
    wanted = validate(PROJECT / "dashboard.yaml").metrics
    known = header | artefacts | summary
    assert {"train/loss", "train/kd", "train/anchor", "val/accuracy", "val/congruence"} <= header
    of_others = {name for name in wanted - known if not name.startswith(("train/", "val/"))}  # of other verbs, and of faces
    of_others |= {f"train/{kind}" for kind in KINDS} | {"train/ce", "val/top5"}  # of other losses, and of ten classes
    assert wanted - of_others <= known


@pytest.mark.parametrize("verb", ["fit", *(slow(verb) for verb in ("teach", "collect", "test", "route", "predict", "export", "reproduce"))])
def test_help_explains_every_option(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for section, made in (("model", RouteDistillation), ("data", DistillationData)):
        for name in inspect.signature(made.__init__).parameters:
            if name in ("self", "shape", "classes"):
                continue
            says = re.search(rf"^    {name}: (.*)$", inspect.getdoc(made), re.MULTILINE)
            assert says, f"{name} is not explained"
            assert re.search(rf"--{section}\.{name} ", text), f"{section}.{name} is not listed"
            assert " ".join(says[1].split()[:3]) in text
    for section, made in (("walk", Walk), ("loss", Loss), ("learning", Recipe), ("teaching", Recipe), ("recording", Recording)):
        for name in inspect.signature(made.__init__).parameters:
            if name != "self":
                assert re.search(rf"--model\.{section}\.{name} ", text), f"model.{section}.{name} is not listed"


# ---- going on after a kill


@pytest.mark.slow
@pytest.mark.parametrize("step", [STEPS + 2, 2 * STEPS], ids=["in an epoch", "between legs"])
@pytest.mark.parametrize("phase", ["teach", "fit"])
def test_a_killed_process_goes_on_to_the_weights_of_an_unbroken_one(run_folder, phase, step):
    verb = [phase, *SHORT] if phase == "teach" else ["fit", *SHORT, "--model.route=latest"]
    main(["teach", "--run=teacher", *SHORT])
    environment = {"TOUCHSTONE_RUNS": str(run_folder), "OMP_NUM_THREADS": "1"}
    process = start(fit_until_killed, [*verb, "--save_every=1", "--run=broken"], "rco", step, environment=environment)
    process.join()
    assert process.exitcode == -9
    main([phase, "--resume", "--run=broken"])
    main([*verb, "--run=whole"])
    if phase == "teach":
        broken, whole = (Route.load(run_folder / "rco" / name / "artefacts" / "teach" / "anchors") for name in ("broken", "whole"))
        pairs = [(broken.tensors(epoch), whole.tensors(epoch)) for epoch in whole.epochs]
        assert broken.epochs == whole.epochs
    else:
        pairs = [tuple(load_checkpoint(run_folder / "rco" / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("broken", "whole"))]
    for found, expected in pairs:
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)  # rounding may differ between the processes


# ---- what can go wrong


@pytest.fixture
def wrong(tmp_path, monkeypatch, teacher):
    """Files in which something is wrong, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("damaged", "unfinished", "stateless"):
        route = Route(tmp_path / name, teacher.about, () if name == "stateless" else teacher.states, teacher.history, False)
        (tmp_path / name).mkdir()
        for state in route.states:
            (tmp_path / name / state.file).write_bytes((teacher.folder / state.file).read_bytes())
        write_route(route)
    (tmp_path / "damaged" / "route.json").write_text("{")
    write_cifar10(tmp_path)
    write_class_folder(tmp_path / "classes" / "train", per_class=6)
    write_class_folder(tmp_path / "classes" / "test")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--model.prayer=1"], 2, "prayer"),
        slow(["--model.walk.prayer=1"], 2, "prayer"),
        slow(["--data.prayer=1"], 2, "prayer"),
        slow(["--model.walk.choice=prayer"], 2, "model.walk.choice"),
        slow(["--model.learning.schedule=prayer"], 2, "schedule"),
        (["--config=prayer"], 1, "no configuration 'prayer': give a YAML file, or one of the project's own"),
        (["--model.student=prayer"], 1, "prayer"),
        slow(["--model.teacher=prayer"], 1, "prayer"),
        slow(["--model.walk.anchors=0"], 1, "walk.anchors must be at least 1, got 0"),
        (["--model.learning.lr=-1"], 1, "lr is positive"),
        slow(["--model.loss.kind=prayer"], 1, "loss.kind 'prayer' has an unknown part 'prayer'"),
        slow(["--model.loss.kind=mimic", "--model.loss.weights=null", "--model.embedding=4", "--model.loss.ce=1"], 1, "loss.ce 1 is of class scores"),
        (["--model.embedding=4"], 1, "take loss.kind mimic, with loss.ce 0"),
        (
            ["--model.route=prayer"],
            1,
            "no route 'prayer': give a folder with route.json, or a run that has a route (there are: none); `teach` makes one",
        ),
        slow(["--model.route=empty"], 1, "no route 'empty'"),
        (["--model.route=damaged"], 1, "route.json is not JSON"),
        (["--model.route=unfinished"], 1, "was stopped after epoch 6: go on with it where it was trained"),
        slow(["--model.route=stateless"], 1, "has no states yet"),
        (["--model.walk.anchors=5"], 1, "walk.anchors 5 asks for 5 distinct states"),
        (["--model.walk.choice=greedy", "--data.held_out=0"], 1, "set data.held_out, such as 0.1"),
        slow(["--model.cache=true", "--model.loss={kind: kd+hint, hint_stage: 0}"], 1, "model.cache keeps outputs on unaugmented samples"),
        (["--data.source=prayer"], 1, "data.source 'prayer' is not known"),
        slow(["--data.source=cifar10"], 1, "say where they lie with --data.root FOLDER"),
        slow(["--data.source=cifar10", "--data.root=.", "--data.held_out=0"], 1, "fewer than a batch of 64"),
        slow(["--data.source=cifar10", "--data.root=."], 1, "data.held_out 64 leaves none of 20 training samples to learn"),
        slow(["--data.batch_size=400"], 1, "400"),
        slow(["--model.route=latest"], 1, "no route 'latest'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_named(wrong, run_folder, capsys, options, code, message):
    assert message in fails(["fit", "--run=bad", *SHORT, *options], capsys, code)
    assert not (run_folder / "rco" / "bad" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test", "--run=prayer"], "prayer"),
        (["test", "--ckpt_path=/nowhere.ckpt"], "/nowhere.ckpt"),
        (["test", "--model.student=mlp_7"], "does not fit the model that the settings describe"),
        (["fit", "--run=student", *SMALL], "the run rco/student exists: choose another --run"),
        (["fit", "--resume", "--run=student", "--model.walk.anchors=1"], "the checkpoint's walk differs"),
        slow(["fit", "--resume", "--run=student", "--model.student=mlp_7"], "student.hidden1"),
        (["predict", "nowhere.npy"], "nowhere.npy"),
        slow(["route", "--gap=true", "--data.held_out=0"], "set data.held_out, such as 0.1"),
        slow(["test", "--data.bits=12"], "does not fit the model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and len(value) < 5 else "",
)
def test_what_does_not_suit_a_run_is_named(runs, capsys, arguments, message):
    assert message in fails(arguments, capsys)


def test_a_student_is_not_tested_on_classes_of_other_names(runs, capsys):
    last = runs / "student" / "checkpoints" / "last.ckpt"
    torch.save(load_checkpoint(last) | {"class_names": ["cat", "dog"]}, last)
    assert "the student learnt the classes cat, dog, the data have even, odd" in fails(["test", "--run=student"], capsys)


def test_a_verb_without_a_run_says_so(run_folder, capsys):
    assert "fit" in fails(["test"], capsys)


def test_a_route_of_other_inputs_is_refused(runs, capsys):
    said = fails(["fit", "--run=wide", "--model.route=teacher", *SHORT, "--data.bits=12"], capsys)
    assert "the route's teacher takes [10] to 2 outputs (embedding: False), the student [12] to 2 (False): make them equal" in said
