import json
import re

import pytest

from shared.dashboards import STEP, Panel, missing_for_saving, publish, validate, wandb_key_source

SPEC = """
project: touchstone-demo
description: What **demo** shows.
sections:
  - name: Training
    panels:
      - {kind: line, title: Loss, metrics: [train/loss, val/loss]}
      - {kind: line, metrics: [val/auroc], x: epoch}
      - {kind: image, metrics: [samples]}
  - name: Results
    panels:
      - {kind: scalar, metrics: [test/fd]}
      - {kind: bar, metrics: [test/asr, test/mse]}
      - {kind: table, metrics: [summary]}
"""


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_ENTITY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def spec(tmp_path):
    def write(text=SPEC):
        file = tmp_path / "demo" / "dashboard.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file

    return write


def test_spec_is_read(spec):
    dashboard = validate(spec())
    assert (dashboard.project, dashboard.description) == ("touchstone-demo", "What **demo** shows.")
    assert [section.name for section in dashboard.sections] == ["Training", "Results"]
    assert dashboard.sections[0].panels[:2] == (
        Panel("line", ("train/loss", "val/loss"), "Loss", STEP),
        Panel("line", ("val/auroc",), None, "epoch"),
    )
    assert dashboard.metrics == {"train/loss", "val/loss", "val/auroc", "samples", "test/fd", "test/asr", "test/mse", "summary"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("touchstone-demo", "other", "project is 'other', but the project logs to 'touchstone-demo'"),
        ("project: touchstone-demo", "", "the file lacks project"),
        ("description:", "describtion:", "the file has describtion, which is not known; the keys are project, sections, description"),
        ("kind: scalar", "kind: pie", "sections[1].panels[0].kind is 'pie'; use one of line, scalar, bar, image, table"),
        ("[test/fd]", "[test/fd, test/asr]", "sections[1].panels[0].metrics has 2 names, but a scalar shows one"),
        ("[test/fd]", "test/fd", "sections[1].panels[0].metrics must be a list with at least one entry, got 'test/fd'"),
        ("[samples]", "[1]", "sections[0].panels[2].metrics[0] must be text, got 1"),
        ("metrics: [samples]", "metric: [samples]", "sections[0].panels[2] lacks metrics"),
        ("[samples]}", "[samples], x: epoch}", "sections[0].panels[2].x belongs to a line, not to kind image"),
        ("[summary]}", "[summary], title: All}", "sections[1].panels[2].title cannot be shown"),
        ("name: Results", "name:", "sections[1].name must be text, got None"),
        ("- {kind: image", "- {kind: [image", "is not YAML"),
        (SPEC, "", "the file must have the keys project, sections, description, got None"),
    ],
)
def test_mistakes_are_named_by_file_and_key(spec, old, new, message):
    assert SPEC.count(old) == 1
    file = spec(SPEC.replace(old, new))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        validate(file)
    assert str(file) in str(error.value)


def test_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no dashboard .*dashboard\.yaml: write one with the keys"):
        validate(tmp_path / "dashboard.yaml")


@pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # inside wandb_workspaces
def test_workspace_is_printed_offline(spec, capsys):
    pytest.importorskip("wandb_workspaces")
    assert publish(spec(), entity="team", dry_run=True) == 0
    out, err = capsys.readouterr()
    view = json.loads(out)
    assert (view["project"], view["entity"], err) == ("touchstone-demo", "team", "")
    training, results = view["spec"]["section"]["panelBankConfig"]["sections"]
    assert [panel["viewType"] for panel in training["panels"]] == [
        "Markdown Panel",
        "Run History Line Plot",
        "Run History Line Plot",
        "Media Browser",
    ]
    assert [panel["viewType"] for panel in results["panels"]] == ["Scalar Chart", "Bar Chart", "Weave"]
    loss, auroc = (panel["config"] for panel in training["panels"][1:3])
    assert (loss["chartTitle"], loss["xAxis"], loss["metrics"]) == ("Loss", STEP, ["train/loss", "val/loss"])
    assert (auroc["xAxis"], auroc["metrics"]) == ("epoch", ["val/auroc"])
    assert training["panels"][3]["config"]["mediaKeys"] == ["samples"]


def test_without_key_it_is_printed_and_what_is_missing_said(spec, capsys):
    pytest.importorskip("wandb_workspaces")
    assert publish(spec()) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["displayName"] == "touchstone-demo"
    assert "printed, not saved: there is no W&B API key; set WANDB_API_KEY or run `wandb login`" in err


def test_key_and_mode_decide_whether_it_can_be_saved(tmp_path, monkeypatch):
    assert wandb_key_source() is None
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.netrc").write_text("machine api.wandb.ai\n  login user\n  password 0123\n")
    (tmp_path / "home/.netrc").chmod(0o600)
    assert wandb_key_source() == "netrc"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert wandb_key_source() is None
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert wandb_key_source() == "WANDB_API_KEY"
    assert missing_for_saving() is None
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert missing_for_saving() == "WANDB_MODE is offline; unset it"


def test_refusal_of_the_server_is_a_message(spec, monkeypatch):
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    with pytest.raises(ValueError, match=r"W&B did not save touchstone-demo: (.|\n)*check the API key, --entity, and that the project exists"):
        publish(spec())
