from dataclasses import replace

import pytest
import torch

from projects.comad.features import build_features
from projects.comad.fusion import fuse
from projects.comad.inspector import Inspector, Recipe
from projects.comad.judgement import Judgement
from projects.comad.metrology import MetrologySettings
from projects.comad.naming import Rule
from projects.comad.segmentation import segment
from projects.comad.traysim import draw_tray

RECIPE = Recipe(k=8, restarts=3, crf=False, patches={"count": 300})
PARTS = ("logical", "position", "patches")


def trays(kind, split="test", count=12):
    return torch.stack([draw_tray(split, number, kind).image for number in range(count)])


@pytest.fixture(scope="module")
def learnt():
    return Inspector(build_features("offline"), RECIPE, Judgement(PARTS)).fit(trays("good", "train", 40).split(16), [trays("good", "validation", 16)])


@pytest.fixture
def inspector(learnt, tmp_path):
    """A copy of what was learnt, which a test may adjust."""
    learnt.save(tmp_path / "model.safetensors")
    return Inspector.load(tmp_path / "model.safetensors", build_features("offline"))


def verdicts(inspector, kind):
    return inspector.judge(inspector.examine(trays(kind)))


def test_anomalies_alarm_and_good_trays_do_not(learnt):
    assert verdicts(learnt, "good").alarms.sum() <= 3  # 16 pictures set the threshold
    for kind in ("missing", "extra", "fill", "swap", "scratch"):
        assert verdicts(learnt, kind).alarms.sum() >= 11, kind


def test_scores_do_not_depend_on_batches_or_their_order(learnt):
    images = torch.cat([trays("good", count=3), trays("missing", count=3)])
    whole, turned = learnt.judge(learnt.examine(images)).scores, learnt.judge(learnt.examine(images.flip(0))).scores
    torch.testing.assert_close(turned.flip(0), whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(learnt.judge(learnt.examine(images[4:5])).scores, whole[4:5], rtol=1e-6, atol=1e-6)


def test_fitting_again_gives_the_same(learnt):
    again = Inspector(build_features("offline"), RECIPE, Judgement(PARTS)).fit(trays("good", "train", 40).split(7), [trays("good", "validation", 16)])
    assert again.threshold == pytest.approx(learnt.threshold, rel=1e-6)
    torch.testing.assert_close(again.centres, learnt.centres)


def test_what_is_loaded_judges_as_what_was_saved(learnt, inspector):
    for kind in ("good", "extra"):
        assert torch.equal(verdicts(inspector, kind).scores, verdicts(learnt, kind).scores)
        assert verdicts(inspector, kind).texts == verdicts(learnt, kind).texts
    maps, others = (one.maps(one.examine(trays("scratch", count=2))) for one in (inspector, learnt))
    assert all(torch.equal(maps[name], others[name]) for name in (*PARTS, "fused"))


def test_the_fused_score_is_that_of_its_parts(learnt):
    examined = learnt.examine(trays("extra"))
    validation = learnt.examine(trays("good", "validation", 16)).scores
    expected = fuse({part: examined.scores[part] for part in PARTS}, {part: validation[part] for part in PARTS})
    torch.testing.assert_close(learnt.judge(examined).scores, expected)


def test_the_threshold_is_the_quantile_of_the_scores_of_validation(learnt):
    scores = learnt.judge(learnt.examine(trays("good", "validation", 16))).scores
    assert learnt.threshold == pytest.approx(float(scores.quantile(0.95)))


def test_heat_maps_are_those_of_the_segmentation(learnt):
    images = trays("good", count=2)
    expected = segment(learnt.features(images), images, learnt.centres, None, "euclidean")
    assert torch.equal(learnt.segment(images), (expected * 128).byte())


def test_the_fused_map_is_the_sum_of_maps_by_their_scales(learnt):
    maps, scales = learnt.maps(learnt.examine(trays("missing", count=2))), learnt.fusion.scales()
    torch.testing.assert_close(maps["fused"], sum(maps[part] / scales[part] for part in PARTS))


def test_a_scratch_is_hottest_where_it_is(learnt):
    hits = 0
    for number in range(8):
        tray = draw_tray("test", number, "scratch")
        found = learnt.maps(learnt.examine(tray.image[None]))["patches"][0, 0]
        hits += bool(tray.defects[0].mask.flatten()[found.argmax()])
    assert hits >= 7


def test_what_happens_to_a_silenced_component_changes_no_score(inspector):
    """Only the measures of one component are altered, as no picture could do it."""
    components = inspector.metrology.components
    measures = inspector.examine(trays("good", count=2)).measures
    found = measures.groups["global"]
    by = torch.tensor([3.0 if column.components == components[:1] else 1.0 for column in found.columns], dtype=torch.float64)
    histograms = (measures.histograms[0] + 2, *measures.histograms[1:])
    altered = replace(measures, groups=measures.groups | {"global": replace(found, normalised=found.normalised * by)}, histograms=histograms)
    for weight, expected in ((1.0, False), (0.0, True)):
        weights = torch.ones(8, dtype=torch.float64)
        weights[components[0]] = weight
        before, after = (inspector.scorer.score(each, weights).logical for each in (measures, altered))
        assert torch.equal(before, after) is expected


def test_a_silenced_background_quiets_the_patches_on_it(inspector):
    images = trays("paint", count=4)
    before = inspector.examine(images).structural
    inspector.judged_by(inspector.judgement.changed(["background.weight=0"]))
    after = inspector.examine(images).structural
    assert (after <= before + 1e-5).all()
    assert float(after.mean()) < 0.5 * float(before.mean())


def test_rules_are_reported_beside_the_score(inspector):
    component = inspector.metrology.components[-1]
    before = verdicts(inspector, "good")
    inspector.judged_by(inspector.judgement.changed([f"rule={component}:number:90:", f"component.{component}.name=rings"]))
    after = verdicts(inspector, "good")
    assert all(len(broken) == 1 for broken in after.broken)
    assert all("is below 90" in text for text in after.texts)
    assert torch.equal(before.scores, after.scores)
    assert torch.equal(before.alarms, after.alarms)


def test_components_keep_their_numbers_and_names_after_another_fit(learnt, inspector):
    component = inspector.metrology.components[1]
    inspector.judged_by(inspector.judgement.changed([f"component.{component}.name=rings", f"component.{component}.weight=2"]))
    again = Inspector(build_features("offline"), RECIPE)
    again.centres = learnt.centres[torch.randperm(8, generator=torch.Generator().manual_seed(1))] + 0.01
    again.number_like(inspector)
    torch.testing.assert_close(again.centres, learnt.centres + 0.01)
    assert again.judgement.names == {component: "rings"}
    assert again.judgement.weights == {component: 2.0}
    again.centres = again.centres[:6]
    with pytest.raises(ValueError, match="cannot be matched one to one"):
        again.number_like(inspector)


def test_the_number_of_clusters_may_be_chosen():
    chance = torch.Generator().manual_seed(0)
    tokens = (6 * torch.eye(8)[:5]).repeat_interleave(30, 0) + 0.1 * torch.randn(150, 8, generator=chance)
    inspector = Inspector(build_features("offline"), Recipe(k=9, choose="silhouette", restarts=2))
    inspector.learn_vocabulary(tokens)
    assert inspector.recipe.k == len(inspector.centres) == 5


def test_without_a_patch_memory_components_alone_judge():
    recipe = Recipe(k=8, restarts=2, crf=False, structural=False, metrology=MetrologySettings(extensions=()))
    inspector = Inspector(build_features("offline"), recipe).fit([trays("good", "train", 20)], [trays("good", "validation", 6)])
    assert inspector.judgement.parts == ("logical",)
    examined = inspector.examine(trays("missing"))
    assert set(examined.scores) == {"global", "number", "logical"}
    assert examined.structural is None
    assert set(inspector.maps(examined)) == {"logical", "fused"}


def test_names_and_rules_of_what_is_no_component_any_more_are_dropped(inspector):
    absent = next(k for k in range(8) if k not in inspector.metrology.components)
    inspector.judgement = Judgement(PARTS, names={absent: "nuts"}, rules=(Rule(absent, "number", 1, 1),))
    assert inspector.drop_absent() == [
        "the name nuts is dropped, for its cluster is no component any more",
        "a rule about number of nuts is dropped, for its cluster is no component any more",
    ]
    assert (inspector.judgement.names, inspector.judgement.rules) == ({}, ())


def test_an_alarm_without_a_finding_says_where_to_look(inspector):
    inspector.threshold = -1e9
    examined = inspector.examine(trays("good", count=6))
    said = inspector.judge(examined)
    assert all(("look at the anomaly map" in text) == (not found) for text, found in zip(said.texts, said.findings, strict=True))
    assert any(not found for found in said.findings)


def test_a_single_component_is_enough():
    square = torch.full((8, 3, 64, 64), 90, dtype=torch.uint8)
    for number in range(8):
        square[number, :, 20 : 40 + number % 3, 20:40] = torch.tensor([200, 30, 30], dtype=torch.uint8)[:, None, None]
    inspector = Inspector(build_features("offline"), Recipe(k=2, restarts=2, crf=False, fraction=0.1, patches={"count": 50})).fit([square], [square])
    assert len(inspector.metrology.components) == 1
    assert inspector.judge(inspector.examine(square)).scores.isfinite().all()


def test_a_crf_sharpens_a_transformers_components():
    """The whole path of the paper, with random weights: 16 x 16 tokens become maps that sum to 1 at the picture's size."""
    recipe = Recipe(k=4, fraction=0.05, restarts=2, metrology=MetrologySettings(filter="vote", certainty=0.2), patches={"count": 100})
    features = build_features("vit_tiny_patch16_224", 96)
    inspector = Inspector(features, recipe).fit([trays("good", "train", 6)], [trays("good", "validation", 3)])
    levels = inspector.segment(trays("good", count=2))
    assert levels.shape == (2, 4, 128, 128)
    assert (levels.int().sum(1) - 128).abs().max() <= 2
    assert inspector.judge(inspector.examine(trays("good", count=2))).scores.isfinite().all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("crf", [False, True])
def test_mixed_precision_is_of_networks_only(metric, crf):
    """What is done with features is done in float32, also the dense CRF, whose products of sparse matrices there are in no other precision."""
    images, features = trays("good", "train", 2), build_features("vit_tiny_patch16_224", 96)
    inspector = Inspector(features, Recipe(k=4, fraction=0.2, restarts=1, metric=metric, crf=crf, patches={"count": 40}))
    with torch.autocast("cpu", torch.bfloat16):
        given = features(images)
    assert given.dtype == torch.float32

    def outcome():
        tokens = inspector.sample(given, 0)
        if inspector.centres is None:
            inspector.learn_vocabulary(tokens)
            inspector.learn_patches([given])
        memory = inspector.memory(given, (128, 128))
        return [tokens, inspector.segment(images, given), memory.scores, memory.maps, build_features("offline")(images)]

    plain = outcome()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = outcome()
    assert all(torch.equal(one, other) for one, other in zip(plain, mixed, strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Inspector(build_features("offline"), RECIPE, Judgement(("logical", "colour"))), "no score 'colour' to fuse: there are global"),
        (lambda: Inspector(build_features("offline"), RECIPE).examine(trays("good", count=1)), "knows no product yet: fit it"),
        (lambda: Inspector(build_features("offline"), RECIPE).segment(trays("good", count=1)), "no vocabulary yet"),
        (lambda: Inspector(build_features("offline"), RECIPE).fit([trays("good", "train", 6)], []), "need good validation pictures"),
        (lambda: Recipe(k=1), "at least 2 clusters"),
        (lambda: Recipe(fraction=0), r"fraction must be in \(0, 1\], got 0"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_pictures_of_another_size_are_refused(learnt):
    with pytest.raises(ValueError, match=r"\(64, 64\) pixels, those that were learnt \(128, 128\)"):
        learnt.examine(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    for wrong in (torch.zeros(3, 128, 128, dtype=torch.uint8), torch.zeros(1, 3, 128, 128), torch.zeros(1, 1, 128, 128, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"pictures have shape \(B, 3, H, W\) and type uint8, not"):
            learnt.examine(wrong)


def test_other_features_are_refused(learnt, tmp_path):
    learnt.save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="of stride 4"):
        Inspector.load(tmp_path / "model.safetensors", build_features("offline", stride=4))
