"""What `fit`, `test`, `calibrate` and `draw` write, and the figures of tests."""

import contextlib
import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from helpers.voices import pair_lines, write_sitw, write_speakers
from torch.nn import functional as F

from projects.rsknet import charts
from projects.rsknet.audio import read
from projects.rsknet.charts import draw_det, draw_scores, draw_similarities
from projects.rsknet.cli import main
from projects.rsknet.data import SpeakerData
from projects.rsknet.judging import Judged
from projects.rsknet.layouts import voxceleb
from projects.rsknet.lists import Trials
from projects.rsknet.metrics import eer
from projects.rsknet.module import SpeakerVerification
from projects.rsknet.remembered import digests
from projects.rsknet.scoring import Scorer
from projects.rsknet.synthesis import utterance
from projects.rsknet.tasks import COLUMNS, loaded
from shared.checkpoints import load_checkpoint


def rows_of(path):
    return list(csv.DictReader(path.open()))


@pytest.fixture(scope="module")
def short(trained):
    """The folder of the short training."""
    return trained / "rsknet" / (trained / "rsknet" / "latest").read_text().strip()


@pytest.fixture(scope="module")
def other_files(trained, tmp_path_factory):
    """What `test` returns and prints of files with the short training."""
    root, runs = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("tested")
    names = write_speakers(root / "test", ["emil", "frida"], samples=8000)
    write_speakers(root / "train", ["anna", "berta", "carl", "dora"], samples=8000)
    (root / "trials.txt").write_text("\n".join(pair_lines(names)) + "\n")
    shutil.copytree(trained / "rsknet", runs / "rsknet")
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.setenv("TOUCHSTONE_RUNS", str(runs))
        patch.setenv("WANDB_MODE", "disabled")
        patch.setattr("shared.report.build_report", lambda folder: None)
        result = main(["test", "--data.source=folder", f"--data.root={root}"]).result
    return result, shown.getvalue()


def some_trials(count=200):
    place = torch.arange(count)
    return Trials("some", tuple((f"{i}",) for i in range(count)), tuple(f"{i}" for i in range(count)), place, place, place % 3 == 0)


def some_judged(name="some", backend="cosine"):
    trials = some_trials()
    scores = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1.5 * trials.is_target
    return Judged(trials, backend, scores, 3 * scores - 1, {"eer": eer(scores, trials.is_target)})


# ---- what is written


def test_fit_leaves_weights_a_scorer_tables_and_figures(short):
    artefacts = {path.name for path in (short / "artefacts" / "fit").iterdir()}
    scores = {f"scores_SynthVox_{backend}.txt" for backend in ("cosine", "cosine_snorm", "cosine_asnorm", "plda")}
    figures = {"det.png", "scores.png", "branches.png", "similarities-000001.png", "similarities-000002.png"}
    assert artefacts == {"lists.csv", "lists.json"} | scores | figures
    assert {path.name for path in (short / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (short / "scorer.safetensors").is_file()
    assert (short / "report.html").is_file()
    summary = json.loads((short / "manifest.json").read_text())["stages"][-1]["summary"]
    assert {"test/eer", "test/min_dcf", "test/eer_asnorm", "test/cllr"} <= set(summary)


def test_scores_of_every_trial_are_written_and_are_those_of_the_table(short):
    for row in rows_of(short / "artefacts" / "fit" / "lists.csv"):
        lines = [line.split() for line in (short / "artefacts" / "fit" / f"scores_SynthVox_{row['backend']}.txt").read_text().splitlines()]
        assert len(lines) == int(row["trials"]) == 15 * 14 // 2
        truth = torch.tensor([one.split("/")[0] == other.split("/")[0] for one, other, *_ in lines])
        for column in (2, 3):
            scores = torch.tensor([float(line[column]) for line in lines], dtype=torch.float64)
            if row["cllr"] or column == 2:
                assert scores.isfinite().all()
        assert eer(torch.tensor([float(line[2]) for line in lines], dtype=torch.float64), truth) == pytest.approx(float(row["eer"]), abs=0.02)


def test_the_best_epoch_is_tested(short):
    rows = [row for row in rows_of(short / "fit" / "metrics.csv") if row["val/eer"]]
    best = min(range(2), key=lambda epoch: float(rows[epoch]["val/eer"]))
    assert load_checkpoint(short / "checkpoints" / "best.ckpt")["epoch"] == best
    assert Scorer.load(short / "scorer.safetensors").network == _digest(short / "checkpoints" / "best.ckpt")


def _digest(path):
    from shared.checkpoints import weights_digest

    return weights_digest(SpeakerVerification.load_from_checkpoint(path, weights_only=True).net)


def test_test_repeats_what_fit_measured_and_cuts_recordings(run, capsys):
    result = main(["test", "--durations=[0.5]"]).result
    assert [row["length"] for row in result.rows] == ["whole"] * 4 + ["0.5 s"] * 4
    before = rows_of(run / "artefacts" / "fit" / "lists.csv")
    written = rows_of(run / "artefacts" / "test" / "lists.csv")
    assert [row["list"] for row in written] == ["SynthVox"] * 8
    for row, earlier in zip(written[:4], before, strict=True):
        for name in ("eer", "min_dcf_01"):
            assert float(row[name]) == pytest.approx(float(earlier[name]), abs=1e-6)
    assert any(row["eer"] != whole["eer"] for row, whole in zip(written[4:], written[:4], strict=True))
    shown = capsys.readouterr().out
    assert "| list | length | backend |" in shown
    assert all(heading in shown for heading in COLUMNS.values())


def test_calibrate_makes_the_scorer_anew(run):
    kept = Scorer.load(run / "scorer.safetensors")
    (run / "scorer.safetensors").unlink()
    result = main(["calibrate"]).result
    again = Scorer.load(run / "scorer.safetensors")
    assert again.network == kept.network
    torch.testing.assert_close(again.mean, kept.mean, atol=1e-5, rtol=1e-4)
    before = rows_of(run / "artefacts" / "fit" / "lists.csv")
    assert [row["eer"] for row in result.rows] == pytest.approx([float(row["eer"]) for row in before], abs=1e-6)


def test_other_files_are_tested_with_the_scorer_of_the_training(other_files):
    result, shown = other_files
    assert [(row["list"], row["trials"]) for row in result.rows] == [("trials", 28)] * 4
    assert "trials: 4 of 12 target trials are within one session" in shown


@pytest.mark.slow
def test_the_average_of_the_last_epochs_is_what_is_kept(run_folder, small):
    cli = main(["fit", *small, "--model.average=1", "--data.speakers=3", "--data.batch_size=6", "--model.net=tiny_resnet"])
    best, last = (load_checkpoint(cli.run.checkpoints / name)["state_dict"] for name in ("best.ckpt", "last.ckpt"))
    assert all(torch.equal(value, last[name]) for name, value in best.items())
    assert "branches.png" not in {path.name for path in cli.run.artefacts("fit").iterdir()}, "a network without selective kernels"


def test_speakers_in_the_wild_whom_the_network_may_know_are_refused_or_remarked_on(tmp_path):
    module = SpeakerVerification(options={"layers": [1], "widths": [4], "embedding": 8})
    torch.save({"state_dict": module.state_dict(), "speakers": digests(["id10002"])}, tmp_path / "net.ckpt")
    write_sitw(tmp_path / "sitw", samples=1600)

    def tested():
        data = SpeakerData("sitw", str(tmp_path / "sitw"))
        loaded(module, data, str(tmp_path / "net.ckpt"), is_calibrated=False)
        return data.remarks

    assert [remark.partition(":")[0] for remark in tested() if "occur in SITW" in remark] == ["SITW-dev", "SITW-eval"]
    (tmp_path / "sitw" / "voxceleb1_sitw_overlap.txt").write_text("id10001\n")
    assert not any("occur in SITW" in remark for remark in tested())
    (tmp_path / "sitw" / "voxceleb1_sitw_overlap.txt").write_text("id10001\nid10002\n")
    with pytest.raises(ValueError, match="trained on 1 of the speakers of the trial lists, such as id10002"):
        tested()


# ---- draw


def test_draw_writes_speakers_that_can_be_trained_and_tested_on(run, tmp_path, capsys):
    folder = tmp_path / "world"
    result = main(["draw", str(folder), "--speakers=6", "--utterances=4", "--data.length=0.5", "--data.seed=3"]).result
    assert (result.folder, result.summary) == (folder, {"draw/recordings": 24})
    corpus = voxceleb(folder, "voxceleb1")
    spoken = torch.stack([read(one.file, 8000) for one in corpus.train])
    for split in ("train", "held", "test"):  # a network that knows these speakers would be too sure of their files, which have other names
        known = torch.stack([utterance(3, split, speaker, index, 0.5) for speaker in range(4) for index in range(4)])
        assert float((F.normalize(spoken) @ F.normalize(known).T).max()) < 0.9
    assert len({one.speaker for one in corpus.train}) == 4
    assert len(corpus.train) == 16
    assert [trials.name for trials in corpus.tests] == ["Vox1-O"]
    assert len(set(corpus.speakers.values())) == 2
    shown = capsys.readouterr().out
    assert "24 recordings of 6 speakers in" in shown
    assert "cli.py verify" in shown


# ---- figures


def test_errors_trade_off_on_probit_axes():
    judged = {"one": some_judged(), "two": some_judged()}
    axes = draw_det(judged).axes[0]
    assert len(axes.lines) == 3
    x, y = axes.lines[0].get_data()
    rate = judged["one"].measures["eer"]
    nearest = int(np.abs(np.asarray(x) - np.asarray(y)).argmin())
    assert float(torch.special.ndtr(torch.tensor(float(x[nearest])))) == pytest.approx(rate, abs=0.02)
    assert axes.get_legend().get_texts()[0].get_text() == f"one: {100 * rate:.2f} %"


def test_ratios_of_both_kinds_are_drawn_for_the_first_lists():
    scorer = Scorer(torch.zeros(3), torch.zeros(2, 3), "x")
    figure = draw_scores([some_judged(backend=backend) for backend in ("cosine", "cosine_asnorm") for _ in range(6)], scorer)
    assert len(figure.axes) == charts.SHOWN
    assert {axes.get_title() for axes in figure.axes} == {"some, cosine_asnorm"}
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["different speakers", "same speaker"]


def test_similarities_are_drawn_speaker_by_speaker():
    units = torch.eye(4)[[0, 1, 0, 1]]
    figure = draw_similarities(units, ["b", "a", "b", "a"])
    image = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(image, np.kron(np.eye(2), np.ones((2, 2))))
    assert len(figure.axes[0].lines) == 2
