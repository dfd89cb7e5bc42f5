import csv
import json

import pytest
import torch
from helpers.planted import CONFIG, SHAPE, PlantedDenoiser, target
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from projects.diff_cleanse import scan as scanning
from projects.diff_cleanse.scan import deciding, judge, overall_verdict, scan
from projects.diff_cleanse.similarity import Agreement
from shared.backbones.unets import build_unet
from shared.checkpoints import load_tensors

QUICK = scanning.Budget(32, (-0.8, -0.5), 16, 8, 16, 30, 6, (15, 16), (15, 2))


@pytest.fixture(autouse=True)
def quick_budget(monkeypatch):
    monkeypatch.setitem(scanning.BUDGETS, "fast", QUICK)


def scan_planted(attack="none", spread=0.25, images=None, **options):
    return scan(PlantedDenoiser(attack, images, spread), CONFIG, shape=SHAPE, **options)


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
        return overall_verdict([scanning.replace(finding, method=method, verdict=verdict) for method, verdict in found])

    assert overall(("gradient", "clean"), ("bbti", "undecided")) == "undecided"
    assert overall(("gradient", "undecided"), ("bbti", "backdoored")) == "backdoored"
    assert overall(("gradient", "clean"), ("terd", "backdoored")) == "clean"
    assert overall(("terd", "backdoored")) == "backdoored"
    assert scanning.EXIT_CODES == {"clean": 0, "backdoored": 1, "undecided": 2}


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


def test_an_interrupted_scan_goes_on_where_it_stopped(tmp_path, monkeypatch):
    class StopError(Exception):
        pass

    made = []
    find = scanning._Job.find

    def counted(job, method, sampler):
        if len(made) == stop_after:
            raise StopError
        made.append((method, sampler))
        return find(job, method, sampler)

    monkeypatch.setattr(scanning._Job, "find", counted)
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
        ({"budget": "huge"}, "unknown budget 'huge'; known are fast, full"),
        ({"threshold": 0.0}, r"threshold must lie in \(0, 1\], got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            scan_planted(**options)
    with pytest.raises(ValueError, match=r"does not say how large its pictures are: pass shape=\(channels, height, width\)"):
        scan(nn.Identity(), CONFIG)
    with pytest.raises(ValueError, match="unknown prediction_type 'flow'"):
        scan(PlantedDenoiser(), CONFIG | {"prediction_type": "flow"}, shape=SHAPE)
