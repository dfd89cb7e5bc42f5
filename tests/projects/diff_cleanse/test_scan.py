import csv
import json
import os
import re
import signal
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.planted import CONFIG, SHAPE, PlantedDenoiser, PlantedNetwork, target
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from projects.diff_cleanse import scan as scanning
from projects.diff_cleanse.scan import Scan, scan
from projects.diff_cleanse.scan_report import EXIT_CODES, deciding, judge, overall_verdict
from projects.diff_cleanse.similarity import Agreement
from shared.backbones.unets import build_unet
from shared.checkpoints import load_tensors
from shared.runs import REPOSITORY

QUICK = scanning.Budget(32, (-0.8, -0.5), 16, 8, 16, 30, 6, (15, 16), (15, 2))


@pytest.fixture(autouse=True)
def quick_recipe(monkeypatch):
    monkeypatch.setitem(scanning.BUDGETS, "fast", QUICK)


def scan_planted(attack="none", spread=0.25, images=None, **options):
    return scan(PlantedDenoiser(attack, images, spread), CONFIG, shape=SHAPE, **({"samplers": ["ddim", "ddpm"]} | options))


@pytest.mark.parametrize(("attack", "sampler"), [("villandiffusion", "ddim"), ("baddiffusion", "ddpm"), ("villandiffusion", "dpmsolver++")])
@pytest.mark.parametrize("method", ["gradient", "bbti"])
def test_a_planted_backdoor_is_found(attack, sampler, method):
    report = scan_planted(attack, methods=[method], samplers=[sampler])
    assert (report.verdict, report.exit_code) == ("backdoored", 1)
    finding = report.leading
    assert finding.score > 0.7
    assert finding.agreement.untriggered <= 0.25
    assert (finding.tensors["triggered"].median(dim=0).values - (target() / 2 + 0.5)).abs().mean() < 0.05  # the attacker's picture
    assert "of triggered samples are one picture" in finding.reason


@pytest.mark.parametrize("method", ["gradient", "bbti"])
def test_a_clean_model_is_not_suspected(method):
    report = scan_planted(methods=[method])
    assert report.verdict != "backdoored"
    assert [finding.sampler for finding in report.findings] == ["ddim", "ddpm"]


@pytest.mark.slow
def test_models_of_little_diversity_are_not_called_backdoored():
    nearly_constant = torch.full((1, *SHAPE), 0.2)
    nearly_constant[0, :, 2:5] = 0.4
    for options in ({"images": nearly_constant, "spread": 0.02}, {"images": nearly_constant, "spread": 0.0}, {"spread": 0.0}):
        report = scan_planted(**options)
        assert report.verdict != "backdoored", options
    memorised = scan_planted(spread=0.0, samplers=["ddim"]).leading  # draws two pictures and can be steered to either
    assert memorised.agreement.repetition > 0.5
    assert memorised.verdict in ("clean", "undecided")
    torch.manual_seed(0)
    assert scan(build_unet("tiny", 16, 1), CONFIG, samplers=["ddim"]).verdict == "clean"  # untrained


def test_baselines_and_the_released_variant_stand_beside_and_do_not_decide():
    report = scan_planted("villandiffusion", methods=["gradient", "bbti_released", "elijah", "terd"], samplers=["ddim"])
    gradient, released, elijah, terd = report.findings
    assert report.leading is gradient
    assert set(elijah.scores) == {"uniformity", "uniformity_untriggered", "total_variation", "total_variation_untriggered"}
    assert set(terd.scores) == {"divergence_mean", "divergence_variance"}
    assert len(set(released.tensors["curve"].tolist())) == 1  # the pattern stands, so the share of similar images does
    assert deciding(report.findings) == [gradient]
    alone = scan_planted("villandiffusion", methods=["elijah"], samplers=["ddim"])
    assert deciding(alone.findings) == alone.findings


def test_verdicts():
    def verdict(triggered, untriggered=0.0, repetition=0.0, threshold=0.5):
        return judge(Agreement(triggered, untriggered, 0.01, repetition, 1.0, 0.8), threshold)[0]

    assert [verdict(share) for share in (0.0, 0.25, 0.3, 0.49, 0.5, 1.0)] == ["clean", "clean", *["undecided"] * 2, *["backdoored"] * 2]
    assert verdict(0.6, untriggered=0.5) == "clean"  # a fifth of what could
    assert verdict(1.0, untriggered=1.0) == "clean"
    assert verdict(1.0, repetition=0.3) == "undecided"
    assert verdict(0.5, threshold=0.8) == "undecided"
    few = judge(Agreement(1.0, 0.4, 0.01, 0.75, 1.0, 0.8))[1]
    assert few.endswith("but 75% of untriggered ones repeat a picture too: this model draws few pictures anyway")

    report = scan_planted(samplers=["ddim"])
    [finding] = report.findings

    def overall(*found):
        return overall_verdict([replace(finding, method=method, verdict=verdict) for method, verdict in found])

    assert overall(("gradient", "clean"), ("bbti", "undecided")) == "undecided"
    assert overall(("gradient", "undecided"), ("bbti", "backdoored")) == "backdoored"
    assert overall(("gradient", "clean"), ("terd", "backdoored")) == "clean"
    assert overall(("terd", "backdoored")) == "backdoored"
    assert overall(("terd", "clean"), ("bbti_released", "clean")) == "undecided"
    assert EXIT_CODES == {"clean": 0, "backdoored": 1, "undecided": 2}


def comparable(report):
    content = report.to_dict() | {"seconds": None}
    return content | {"findings": [finding | {"seconds": None} for finding in content["findings"]]}


def test_the_same_seed_gives_the_same_report_and_another_seed_other_noise():
    first, again, other = (scan_planted("villandiffusion", samplers=["ddim"], seed=seed) for seed in (3, 3, 4))
    assert comparable(first) == comparable(again)
    assert torch.equal(first.trigger, again.trigger)
    assert not torch.equal(first.leading.tensors["untriggered"], other.leading.tensors["untriggered"])
    assert other.verdict == "backdoored"


def test_a_scan_does_not_depend_on_which_others_run_with_it():
    both, alone = scan_planted("villandiffusion"), scan_planted("villandiffusion", samplers=["ddpm"])
    assert torch.equal(both.findings[1].tensors["trigger"], alone.findings[0].tensors["trigger"])


def test_what_is_written(tmp_path):
    lines = []
    report = scan_planted("villandiffusion", out=tmp_path, model_hash="0123456789abcdef", progress=lines.append)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content == report.to_dict()
    assert content["verdict"] == "backdoored"
    assert content["leading"] == {"method": "gradient", "sampler": "ddim"}
    assert content["model_hash"] == "0123456789abcdef"
    assert {"torch", "diffusers", "python"} <= set(content["versions"])
    assert [finding["sampler"] for finding in content["findings"]] == ["ddim", "ddpm"]
    assert content["findings"][0]["agreement"]["triggered"] > 0.7
    assert torch.equal(load_tensors(tmp_path / "trigger.safetensors")["trigger"], report.trigger)
    for name in ("trigger", "samples_clean", "samples_triggered"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 8
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert len(rows) == 2 * QUICK.iterations
    assert list(rows[0]) == ["method", "sampler", "iteration", "loss"]
    assert float(rows[QUICK.iterations - 1]["loss"]) < float(rows[0]["loss"])
    assert len(lines) == 2
    assert lines[0].startswith("gradient under ddim: backdoored, found in ")
    assert not list(tmp_path.rglob(".*"))  # no temporary file is left


@pytest.mark.slow
def test_an_interrupted_scan_goes_on_where_it_stopped(tmp_path, monkeypatch):
    class StopError(Exception):
        pass

    made = []
    make = Scan.make

    def counted(job, method, sampler):
        if len(made) == stop_after:
            raise StopError
        made.append((method, sampler))
        return make(job, method, sampler)

    monkeypatch.setattr(Scan, "make", counted)
    stop_after = 1
    with pytest.raises(StopError):
        scan_planted("villandiffusion", out=tmp_path)
    assert not (tmp_path / "report.json").exists()
    stop_after, lines = 10, []
    resumed = scan_planted("villandiffusion", out=tmp_path, progress=lines.append)
    assert made == [("gradient", "ddim"), ("gradient", "ddpm")]
    assert "found earlier in" in lines[0]
    assert comparable(resumed) == comparable(scan_planted("villandiffusion"))
    made.clear()
    scan_planted("villandiffusion", out=tmp_path)
    assert made == []
    for options in ({"seed": 1}, {"threshold": 0.6}, {"attack": "none"}):
        scan_planted(**({"attack": "villandiffusion", "samplers": ["ddim"], "out": tmp_path} | options))
    assert made == [("gradient", "ddim")] * 3  # other settings, another model: not taken up
    (tmp_path / "parts" / "gradient-ddpm.safetensors").write_bytes(b"cut short")
    made.clear()
    scan_planted("villandiffusion", samplers=["ddpm"], out=tmp_path)
    assert made == [("gradient", "ddpm")]
    assert set(load_file(tmp_path / "parts" / "gradient-ddpm.safetensors")) == {"trigger", "triggered", "untriggered", "curve"}


@pytest.mark.slow
def test_the_network_is_left_as_it_was_and_hashed_by_its_weights():
    torch.manual_seed(0)
    unet = build_unet("tiny", 16, 1).train()
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    report = scan(unet, CONFIG, samplers=["ddim"], methods=["elijah"])
    assert report.shape == (1, 16, 16)
    assert unet.training
    assert all(parameter.requires_grad for parameter in unet.parameters())
    assert all(torch.equal(tensor, before[name]) and tensor.is_contiguous() for name, tensor in unet.state_dict().items())
    again = scanning._hash_of(unet, CONFIG)
    assert report.model_hash == again
    unet.conv_out.bias.data[0] += 1e-6
    assert scanning._hash_of(unet, CONFIG) != again
    assert scanning._hash_of(unet, CONFIG | {"beta_end": 0.2}) != again


def test_messages():
    for options, message in (
        ({"methods": ["ufid"]}, "unknown method 'ufid'; known are gradient, bbti, bbti_released, elijah, terd"),
        ({"methods": []}, "a scan needs at least one method: gradient, bbti"),
        ({"samplers": ["euler"]}, "unknown sampler 'euler'; known are ddim, ddpm"),
        ({"recipe": "huge"}, "unknown recipe 'huge'; known are quick, fast, full"),
        ({"threshold": 0.0}, r"threshold must lie in \(0, 1\], got 0.0"),
        ({"threshold": 1.5}, r"threshold must lie in \(0, 1\], got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            scan_planted(**options)
    with pytest.raises(ValueError, match=r"does not say how large its pictures are: pass shape=\(channels, height, width\)"):
        scan(nn.Identity(), CONFIG)
    with pytest.raises(ValueError, match="unknown prediction_type 'flow'"):
        scan(PlantedDenoiser(), CONFIG | {"prediction_type": "flow"}, shape=SHAPE)
    unet, broken = build_unet("tiny", 16, 1), build_unet("tiny", 16, 1)
    broken.conv_in.weight.data[0, 0, 0] = torch.nan
    broken.conv_out.bias.data[0] = torch.inf
    with pytest.raises(ValueError, match=r"not all finite numbers.*: conv_in.weight \(3 of 144 values\), conv_out.bias \(1 of 1 values\)$"):
        scan(broken, CONFIG)
    with pytest.raises(ValueError, match=r"no pictures of shape \(3, 16, 16\) can be drawn from the network: .*channels"):
        scan(unet, CONFIG, shape=(3, 16, 16))
    unet.conv_out = nn.Conv2d(16, 2, 3, padding=1)
    with pytest.raises(ValueError, match=r"the network maps \(1, 1, 16, 16\) to \(1, 2, 16, 16\).*; learned variances are not supported"):
        scan(unet, CONFIG)
    with pytest.raises(ValueError, match="draws pictures under ddim that are not numbers"):
        scan(NotANumber(), CONFIG, shape=SHAPE, samplers=["ddim"])


class NotANumber(nn.Module):
    def forward(self, x, t):
        return torch.where(x == 0, x, torch.nan)


def test_a_folder_that_cannot_be_written_into_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(Scan, "make", None)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=re.escape(f"cannot write a report into {folder} (")):
            scan_planted(out=folder)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(TypeError):
        scan_planted(out=tmp_path)
    assert not (tmp_path / "report.json").exists()  # a verdict from before does not stand beside a failure


def test_a_scheduler_serves_as_well_as_its_settings_and_names_as_well_as_lists():
    given = {"shape": SHAPE, "samplers": ["ddim"]}
    settings = DDPMScheduler(**CONFIG).config
    listed = scan(PlantedDenoiser("villandiffusion"), dict(settings), **given)
    assert comparable(scan(PlantedDenoiser("villandiffusion"), DDPMScheduler(**CONFIG), **given)) == comparable(listed)
    named = scan_planted("villandiffusion", methods="gradient,elijah", samplers="ddim")
    assert [(finding.method, finding.sampler) for finding in named.findings] == [("gradient", "ddim"), ("elijah", "ddim")]


@pytest.mark.parametrize(("attack", "verdict"), [("villandiffusion", "backdoored"), ("none", "clean")])
def test_half_precision_comes_to_the_same_verdict(attack, verdict):
    options = {"samplers": ["ddim"]}
    whole = scan(PlantedNetwork(attack), CONFIG, **options)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = scan(PlantedNetwork(attack), CONFIG, **options)
    half = scan(PlantedNetwork(attack).to(torch.bfloat16), CONFIG, **options)
    assert [report.verdict for report in (whole, mixed, half)] == [verdict] * 3
    assert [report.leading.precision for report in (whole, mixed, half)] == ["float32", "float32, autocast to bfloat16", "bfloat16"]
    assert not torch.equal(whole.trigger, mixed.trigger)
    assert {report.trigger.dtype for report in (mixed, half)} == {torch.float32}


def test_activations_are_computed_again_where_they_would_take_much_memory(monkeypatch):
    seen, invert = [], scanning.invert
    monkeypatch.setattr(scanning, "invert", lambda *args, **options: seen.append(options["save_memory"]) or invert(*args, **options))
    kept = scan_planted("villandiffusion", samplers=["ddim"])
    monkeypatch.setattr(scanning, "MEMORY", 2**16)
    again = scan_planted("villandiffusion", samplers=["ddim"])
    assert comparable(again) == comparable(kept)
    scan_planted("villandiffusion", samplers=["ddim"], save_memory=False)
    assert seen == [False, True, False]
    assert 0.5 * 2**20 < Scan(build_unet("tiny", 16, 1), CONFIG).activations < 1.5 * 2**20  # a picture and step


def test_large_batches_are_put_through_the_network_in_parts(monkeypatch):
    whole = scan_planted("villandiffusion", samplers=["ddim"])
    monkeypatch.setattr(scanning, "PIXELS", 5 * SHAPE[1] * SHAPE[2])
    parts = scan_planted("villandiffusion", samplers=["ddim"])
    assert parts.verdict == whole.verdict
    torch.testing.assert_close(parts.leading.tensors["untriggered"], whole.leading.tensors["untriggered"], atol=1e-4, rtol=0)


def test_a_scan_that_lacks_findings_has_no_verdict():
    job = Scan(PlantedDenoiser(), CONFIG, shape=SHAPE, samplers=["ddim", "ddpm"])
    with pytest.raises(ValueError, match="cut short before gradient under ddpm: there is no verdict"):
        job.report(job.find(job.pairs[:1]))


def test_the_verdict_in_words(tmp_path):
    report = scan_planted("villandiffusion")
    words = report.describe("there")
    assert words.startswith("BACKDOORED: noise that wears the inverted trigger makes this model draw one and the same picture; it answers to ddim")
    assert "up to 0.25 is clean, from 0.50 backdoored" in words
    assert "samples_clean.png, in there; report.json" in words
    assert report.summary["verdict"] == "backdoored"
    clean = replace(report, verdict="clean").describe("there")
    assert clean.startswith("CLEAN: no trigger was found that makes samples of this model alike, under ddim (deterministic), ddpm (stochastic).")
    assert "the recipe fast" in clean
    assert replace(report, verdict="undecided").describe("there").startswith("UNDECIDED: neither clearly clean nor clearly backdoored")


def test_the_trigger_is_that_of_the_verdict():
    found = scan_planted("villandiffusion")
    ddim, ddpm = found.findings
    doubtful = replace(ddpm, verdict="undecided", score=1.0)
    assert ddim.verdict == "backdoored"
    assert replace(found, findings=[replace(ddim, score=0.6), doubtful]).leading.sampler == "ddim"


def test_scanning_needs_no_lightning():
    seen, waiting = set(), {"projects.diff_cleanse.scan"}
    while waiting:
        seen.add(module := waiting.pop())
        file = REPOSITORY / f"{module.replace('.', '/')}.py"
        text = (file if file.is_file() else file.with_suffix("") / "__init__.py").read_text()
        found = set(re.findall(r"^(?:from|import) ([\w.]+)", text, re.MULTILINE))  # at the top level
        assert not [name for name in found if name.split(".")[0] == "lightning"], module
        found |= {f"projects.diff_cleanse.{name}" for name in re.findall(r"^from projects.diff_cleanse import (\w+)", text, re.MULTILINE)}
        waiting |= {name for name in found if name.startswith(("projects.", "shared."))} - seen - {"projects.diff_cleanse"}
    assert "projects.diff_cleanse.baselines" in seen


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_findings_made_side_by_side_are_those_made_one_by_one(precision):
    job = Scan(PlantedDenoiser(), CONFIG, shape=SHAPE, samplers=["ddim", "ddpm"])
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        alone = [finding for pair in job.pairs for finding in job.find([pair])]
        together = job.find(job.pairs)
    assert [replace(finding, seconds=0) for finding in together] == [replace(finding, seconds=0) for finding in alone]
    for one, other in zip(together, alone, strict=True):
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in other.tensors)


@pytest.mark.usefixtures("two_threads")
def test_an_interrupt_ends_findings_in_all_threads(monkeypatch):
    job = Scan(PlantedDenoiser(), CONFIG, shape=SHAPE, samplers=["ddim", "ddpm"])
    ended = []

    def make(job, method, sampler):
        if sampler == "ddpm":
            os.kill(os.getpid(), signal.SIGINT)
        try:
            while True:
                job._network(torch.zeros(1, *SHAPE), torch.zeros(1, dtype=torch.int64))
        finally:
            ended.append(sampler)

    monkeypatch.setattr(Scan, "make", make)
    with pytest.raises(KeyboardInterrupt):
        job.find(job.pairs)
    assert sorted(ended) == ["ddim", "ddpm"]
