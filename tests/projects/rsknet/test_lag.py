import pytest
import torch

from projects.rsknet.lag import BANDS, FAR, FRAMES, NEAR, lag_examples
from projects.rsknet.reproduction import lag


@pytest.mark.parametrize("lags", [FAR, NEAR])
def test_every_example_has_pairs_of_clicks_at_the_lag_of_its_class(lags):
    features, labels = lag_examples(0, "train", 200, lags)
    assert features.shape == (200, BANDS, FRAMES)
    assert 70 < int(labels.sum()) < 130
    clicks = features.mean(1) > 0.75  # five deviations of the noise's mean over bands above it, and below a click
    for row, label in zip(clicks, labels.tolist(), strict=True):
        frames = set(row.nonzero()[:, 0].tolist())
        pairs = {frame for frame in frames if frame + lags[label] in frames}
        assert 1 <= len(pairs) <= 7
        assert frames == pairs | {frame + lags[label] for frame in pairs}
        assert len(frames) <= 8


def test_single_frames_do_not_tell_the_class():
    features, labels = lag_examples(0, "train", 3000)
    frames = features.mean(1)
    heights, order = frames.sum(1), frames.sort(1).values
    assert abs(float(heights[labels == 0].mean() - heights[labels == 1].mean())) < 4 * float(heights.std()) / 1500**0.5 * 2**0.5
    assert float((order[labels == 0].mean(0) - order[labels == 1].mean(0)).abs().max()) < 0.1


def test_examples_depend_on_seed_and_split_alone():
    first, again = lag_examples(0, "train", 20), lag_examples(0, "train", 20)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first[0], lag_examples(0, "test", 20)[0])
    assert not torch.equal(first[0], lag_examples(1, "train", 20)[0])


@pytest.mark.parametrize("lags", [(0, 3), (3, 100)])
def test_lags_that_do_not_fit_are_refused(lags):
    with pytest.raises(ValueError, match="from 1 to 99"):
        lag_examples(0, "train", 2, lags)


@torch.no_grad()
def reached(net, frame):
    """Return the frames of the last stage that a frame of the input has a part in."""
    seen = []
    net.stages[0][0].register_forward_hook(lambda block, given, found: seen.append(found))
    features = torch.randn(1, BANDS, FRAMES, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1)
    features[1, :, frame] += 100
    net.eval()(features)
    return set((seen[0][0] != seen[0][1]).any(0).any(0).nonzero()[:, 0].tolist())


@pytest.mark.parametrize(
    ("name", "neighbours", "steps"),
    [
        ("plain", True, range(-3, 4)),
        ("near + near", True, range(-3, 4)),
        ("RSK", True, range(-6, 7)),
        ("dilated only", True, range(-6, 7)),
        ("dilated only", False, range(-12, 13, 4)),
        ("RSK", False, sorted({a + b for a in range(-8, 9, 4) for b in (-4, -1, 0, 1, 4)})),
    ],
    ids=["plain", "near-near", "rsk", "dilated", "dilated everywhere", "rsk on dilated"],
)
def test_networks_see_the_frames_that_they_are_said_to(name, neighbours, steps):
    torch.manual_seed(0)
    options = {key: value for key, value in lag.NETS[name].items() if key != "block"} | (
        {"block": "basic"} if name == "plain" else {"block": "fixed"}
    )
    assert reached(lag.build(options, neighbours), 50) == {50 + step for step in steps}  # weights that are fixed: gates hear the whole utterance


def test_a_row_tells_accuracy_and_weight():
    row = lag.rows("8 or 11", "RSK", (100, 50), 1, 0)[0]
    assert (row["lag"], row["net"], row["seed"]) == ("8 or 11", "RSK", 0)
    assert 0 <= row["accuracy"] <= 1
    assert 0 < row["dilated branch"] < 1
    assert lag.rows("8 or 11", "RSK", (100, 50), 1, 0) == [row]


def test_the_table_has_every_network_and_expects_what_was_said(tmp_path):
    jobs = lag.jobs(tmp_path, [0, 1], False)
    assert len({(job.name, job.seed) for job in jobs}) == len(jobs) == 2 * (6 + 2)
    assert len(lag.jobs(tmp_path, [0], True)) == 1
    told = {
        ("8 or 11", "plain"): 0.51,
        ("8 or 11", "near + near"): 0.56,
        ("8 or 11", "RSK"): 0.97,
        ("1 or 2", "RSK"): 0.97,
        ("1 or 2", "dilated only"): 0.5,
    }
    summary = [{"lag": side, "net": net, "accuracy": {"mean": mean}, "dilated branch": {"mean": 0.52}} for (side, net), mean in told.items()]
    assert all(lag.expectations(summary).values())
    summary[2]["accuracy"]["mean"] = 0.8
    assert [name for name, held in lag.expectations(summary).items() if not held] == ["RSK does (at least 0.90)"]
