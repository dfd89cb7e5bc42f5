import csv
import json
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.runs import copied, made_once
from scipy.special import expit

from projects.tripinet.cli import main
from projects.tripinet.export import BATCHES, FourierHighPass, Localiser, export, forged_examples, fourier_matrix
from projects.tripinet.forensics import FFTHighPass
from projects.tripinet.forging import forge
from projects.tripinet.module import ManipulationLocalisation
from shared.checkpoints import weights_digest
from shared.export import export_onnx

SMALL = ["--data.length=16", "--data.test_length=8", "--data.test_sets=[noise]", "--data.size=48", "--trainer.max_epochs=1"]
SMALL += ["--model.channels=8", "--model.width=8", "--trainer.enable_model_summary=false", "--model.streams=[srm]"]
SMALL += ["--model.fusion=add", "--model.decoder=fpn", "--model.norm=group"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of a short training; tests copy it."""
    return made_once(tmp_path_factory, main, ["fit", "--run", "tiny", *SMALL])


@pytest.fixture
def run(trained, run_folder):
    """The short training as this test's latest run."""
    return copied(trained, run_folder)


def pictures(height, width, count=2):
    return torch.stack([forge("val", index, 3, 150).image[:, :height, :width] for index in range(count)])


def stirred(**options):
    """Return a module whose maps differ from pixel to pixel, with attention that counts and a decision that changes something."""
    module = ManipulationLocalisation(channels=8, width=8, **options)
    images = pictures(64, 64, 4)
    with torch.no_grad():
        for name, parameter in module.net.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
        module.net.train()
        for _ in range(20):
            module.net(images)
        module.net.eval()
        head = module.net.heads[0]
        head.weight *= 3 / module.net(images).sides[0].std()
        head.bias -= module.net(images).sides[0].median()
    for name, value in {"temperature": 1.7, "threshold": -0.5, "slope": 0.4, "intercept": -1.0}.items():
        getattr(module.decision, name).fill_(value)
    return module.eval()


def agrees(module, path, height, width):
    """Compare a file with the module itself, on pictures that the export has not seen."""
    session, images = onnxruntime.InferenceSession(path), pictures(height, width)
    probability, score = session.run(["probability", "score"], {"images": images.numpy().astype(np.float32)})
    expected, judged = module(images), module.judge(images)
    assert probability.shape == (2, 1, height, width)
    np.testing.assert_allclose(probability, expected.numpy(), atol=1e-3)
    np.testing.assert_allclose(score, [module.decision.score(raw) for raw in judged.raw.tolist()], atol=1e-3)
    return expected


@pytest.mark.slow
def test_the_verb_leaves_a_file_that_judges_as_the_run_does(run, capsys):
    cli = main(["export", "--height=40", "--width=53"])
    folder = run / "artefacts" / "export"
    assert {path.name for path in folder.iterdir()} == {"localiser.onnx", "latency.csv", "latency.json"}
    agrees(cli.model, folder / "localiser.onnx", 40, 53)
    assert cli.result.summary["onnx/difference"] < 1e-3
    with (folder / "latency.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["runtime"] for row in rows] == ["ONNX Runtime", "torch"]
    for row in rows:
        assert float(row["megapixels_per_second"]) * float(row["milliseconds"]) == pytest.approx(40 * 53 / 1000)
    printed, decision = capsys.readouterr().out, cli.model.decision
    assert "(B, 3, 40, 53) float32 from 0 to 255, RGB" in printed
    assert f"mask = probability > {decision.pixel_threshold:.4g}" in printed
    assert decision.false_alarms() in printed
    about = onnxruntime.InferenceSession(folder / "localiser.onnx").get_modelmeta().custom_metadata_map
    assert (about["class_names"], about["input_size"], about["value_range"]) == ('["authentic", "manipulated"]', '["batch", 3, 40, 53]', "[0, 255]")
    assert json.loads(about["pixel_threshold"]) == decision.pixel_threshold
    assert about["false_alarms"] == decision.false_alarms()
    assert json.loads(about["configuration"])["streams"] == ["srm"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"streams": ["rgb"]}, (48, 64)),
        ({"streams": ["srm", "dct_corner"]}, (75, 101)),
        ({"symmetric": True, "image_head": True, "edge": True}, (96, 96)),
        ({"streams": ["rgb", "fft"], "fusion": "gated", "decoder": "cascaded"}, (45, 64)),
        ({"streams": ["srm3", "bayar"], "fusion": "cbam", "norm": "group"}, (64, 50)),
        ({"streams": ["haar", "dct_radial"], "fusion": "concat", "scaling": "minmax", "decoder": "fpn"}, (51, 64)),
        ({"encoder": "small", "decoder": "se_only"}, (96, 75)),
    ],
)
def test_any_streams_can_be_exported(tmp_path, options, size):
    module, path = stirred(**options), tmp_path / "localiser.onnx"
    export_onnx(Localiser(module), path, {"images": forged_examples(*size)}, ["probability", "score"], batches=BATCHES, tolerance=1e-3)
    assert agrees(module, path, *size).std() > 0.05, "maps differ from pixel to pixel"


@pytest.mark.parametrize(("height", "width", "alpha"), [(40, 60, 0.1), (33, 64, 0.1), (32, 47, 0.5), (48, 35, 1.0), (35, 40, 0.0)])
def test_products_with_matrices_are_the_fourier_high_pass(height, width, alpha):
    pixels = pictures(height, width).double()
    torch.testing.assert_close(FourierHighPass(alpha)(pixels), FFTHighPass(alpha)(pixels), rtol=0, atol=1e-9)
    rows = fourier_matrix(width, alpha)
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64))


def test_what_is_exported_is_calibrated_and_leaves_the_module_as_it_is():
    module, images = stirred(streams=["rgb", "fft"], fusion="add", decoder="fpn"), pictures(48, 40)
    before = weights_digest(module)
    with torch.no_grad():
        probability, score = Localiser(module)(images.float())
    logits = module.judge(images).logits
    torch.testing.assert_close(probability, (logits / 1.7).sigmoid(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(score, expit(0.4 * logits.flatten(1).amax(1).numpy() - 1.0), atol=1e-5)
    assert weights_digest(module) == before
    assert type(module.net.streams[1].front_end) is FFTHighPass


@pytest.mark.parametrize("size", [(40, 200), (301, 149)])
def test_examples_are_forged_pictures_in_their_own_resolution(size):
    images = forged_examples(*size)
    assert images.shape == (max(BATCHES), 3, *size)
    assert torch.equal(images, images.round())
    assert (images.min(), images.max()) >= (0, 100)
    assert torch.equal(images[0, :, : min(150, size[0]), : min(150, size[1])], forge("test", 0, size=150).image[:, : size[0], : size[1]])


@pytest.mark.parametrize("options", [["--height=31"], ["--width=0"]])
def test_pictures_that_are_too_small_are_refused(run, capsys, options):
    with pytest.raises(SystemExit) as stop:
        main(["export", *options])
    assert stop.value.code == 1
    assert "height and width must be at least 32 pixels" in capsys.readouterr().err
    assert not (run / "artefacts" / "export").exists()


def test_a_stream_that_rounds_is_refused_before_any_work(tmp_path):
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), verb="export", loggers=[])
    with pytest.raises(ValueError, match=r"block_dct rounds.* train with some of rgb, srm, .*, haar$"):
        export(trainer, ManipulationLocalisation(channels=8, width=8, streams=["rgb", "block_dct"]), 64, 64)
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("shared.export.find_spec", lambda name: None)
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), verb="export", loggers=[])
    with pytest.raises(ValueError, match="ONNX files need onnx: install the extra with `uv sync --extra onnx`"):
        export(trainer, ManipulationLocalisation(channels=8, width=8, streams=["rgb"]), 64, 64)
    assert not list(tmp_path.rglob("*.onnx"))
