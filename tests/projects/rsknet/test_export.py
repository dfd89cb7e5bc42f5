import json

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional as F

from projects.rsknet.calibration import Calibration, quality
from projects.rsknet.costs import settle
from projects.rsknet.export import SpeakerEmbedding, describe, export, usage
from projects.rsknet.module import SpeakerVerification
from projects.rsknet.scoring import Scorer
from projects.rsknet.synthesis import utterance
from shared.cli import ProjectTrainer
from shared.quiet import silence

RATE, SMALL = 8000, {"widths": [8, 16, 24], "embedding": 16}


def trainer_in(folder):
    with silence():
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
        trainer = ProjectTrainer(default_root_dir=folder, **quiet)
    trainer.verb = "export"
    return trainer


def drawn_module(net="tiny_rsknet_mtsp_l", **given):
    module = SpeakerVerification(net, **({"options": SMALL | {"rank": 8}} | given))
    settle(module.net, module.hparams.bins)
    return module.eval()


def drawn_scorer(module, count=40):
    chance = torch.Generator().manual_seed(1)
    embeddings = torch.randn(count, module.embedding_size, generator=chance) + 2
    scores, truth = torch.randn(400, generator=chance).double(), torch.arange(400) < 100
    seconds = 1 + 4 * torch.rand(2, 400, generator=chance)
    scorer = Scorer.fit(embeddings, torch.arange(count) // 4, "net", plda=False)
    return scorer.with_calibration("cosine", Calibration.fit((scores + 2 * truth) / 4, truth, quality(*seconds)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network, its scorer, its file, and what the verb returned and printed."""
    import contextlib
    import io

    module = drawn_module()
    scorer, folder, printed = drawn_scorer(module), tmp_path_factory.mktemp("exported"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = export(trainer_in(folder), module, scorer)
    return module, scorer, folder / "artefacts" / "export" / "speaker.onnx", result, printed.getvalue()


def test_the_file_embeds_recordings_of_any_length(exported):
    module, scorer, path, _, _ = exported
    session = onnxruntime.InferenceSession(path)
    for batch, samples in ((1, 2000), (3, 4001), (2, 12345), (1, 40000)):
        waveforms = torch.stack([utterance(3, "test", speaker, 0, 5.0, RATE)[:samples] for speaker in range(batch)])
        (found,) = session.run(None, {"waveform": waveforms.numpy()})
        expected = F.normalize(module(waveforms).double() - scorer.mean, dim=1)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("seconds", [1.5, 0.5])  # the scorer was calibrated on 1 to 5 seconds
def test_the_printed_lines_give_the_calibrated_ratio_of_a_pair(exported, seconds):
    module, scorer, path, _, printed = exported
    sounds = [utterance(4, "test", speaker, 0, seconds, RATE) for speaker, seconds in ((0, seconds), (1, 2.5))]
    lines = usage(str(path), module, scorer.calibrations["cosine"]).splitlines()[1:]
    calibration = scorer.calibrations["cosine"]
    assert all(line in printed for line in lines[3:])
    names = {"first": sounds[0].numpy(), "second": sounds[1].numpy()}
    exec("\n".join(line.strip() for line in lines if not line.strip().startswith("first, second")), names)
    a, b = (F.normalize(module(sound[None])[0].double() - scorer.mean, dim=0) for sound in sounds)
    expected = calibration.llr((a @ b)[None], quality(torch.tensor([seconds]), torch.tensor([2.5])))
    assert names["score"] == pytest.approx(float(a @ b), abs=1e-4)
    assert names["llr"] == pytest.approx(float(expected), abs=1e-3)
    assert names["same"] == (float(expected) >= calibration.threshold(0.01))  # of its one group


def test_the_file_says_what_it_takes_and_gives(exported):
    _, scorer, path, _, _ = exported
    session = onnxruntime.InferenceSession(path)
    assert [each.shape for each in (*session.get_inputs(), *session.get_outputs())] == [["batch", "samples"], ["batch", 16]]
    about = session.get_modelmeta().custom_metadata_map
    assert (about["rate"], about["is_centred"]) == ("8000", "true")
    assert json.loads(about["configuration"])["net"] == "tiny_rsknet_mtsp_l"
    calibration = json.loads(about["calibration"])
    assert calibration["scale"] == scorer.calibrations["cosine"].scale
    assert len(calibration["durations"]) == 2
    assert calibration["range"] == scorer.calibrations["cosine"].span.tolist()
    assert calibration["threshold"] == scorer.calibrations["cosine"].threshold(0.01)


def test_both_runtimes_are_timed_for_each_length(exported):
    result = exported[3]
    assert [(row["seconds"], row["runtime"]) for row in result.rows] == [
        (seconds, runtime) for seconds in (1.0, 2.0, 5.0) for runtime in ("ONNX Runtime", "torch")
    ]
    for row in result.rows:
        assert row["real_time_factor"] == pytest.approx(row["milliseconds"] / 1000 / row["seconds"])
    assert 0 <= result.summary["onnx/difference"] <= 1e-4


@pytest.mark.parametrize(
    ("net", "options"),
    [("tiny_xvector", None), pytest.param("tiny_ecapa", None, marks=pytest.mark.slow), pytest.param("tiny_resnet", SMALL, marks=pytest.mark.slow)],
    ids=["xvector", "ecapa", "resnet"],
)
def test_other_networks_are_exported_without_a_scorer(tmp_path, net, options):
    module = drawn_module(net, options=options)
    result = export(trainer_in(tmp_path), module, None)
    assert result.summary["onnx/difference"] <= 1e-4
    assert "calibration" not in describe(module, None)
    assert not describe(module, None)["is_centred"]


@pytest.mark.parametrize(("options", "said"), [({"mean_window": 30}, "mean_window null"), ({"vad": True}, "vad false")], ids=["mean", "vad"])
def test_sliding_means_and_silence_left_out_are_refused(tmp_path, options, said):
    with pytest.raises(ValueError, match=rf"train with model\.{said}"):
        export(trainer_in(tmp_path), drawn_module(**options), None)


def test_a_file_that_would_not_give_what_the_module_gives_is_refused(tmp_path):
    module = drawn_module()
    module.features = lambda waveforms, lengths=None: (module.fbank(waveforms).abs(), None)  # as a setting would that export does not know
    with pytest.raises(ValueError, match=r"would differ from the module's by .* not exported"):
        export(trainer_in(tmp_path), module, None)


def test_a_calibration_on_few_impostors_has_no_threshold():
    module = drawn_module()
    scores = torch.tensor([0.1, 0.2, 0.3, 0.6, 0.7, 0.25])
    calibration = Calibration.fit(scores, torch.tensor([0, 0, 0, 1, 1, 1]).bool())
    scorer = drawn_scorer(module).with_calibration("cosine", calibration)
    assert describe(module, scorer)["calibration"]["threshold"] is None
    assert "same =" not in usage("speaker.onnx", module, calibration)


def test_the_embedding_has_length_one_and_the_module_is_left_alone():
    module = drawn_module().train()
    network = SpeakerEmbedding(module)
    with torch.no_grad():
        norms = network(utterance(0, "test", 0, 0, 1.0, RATE)[None]).norm(dim=1)
    assert float(norms) == pytest.approx(1, abs=1e-6)
    assert module.training
