import math

import pytest
import torch
from helpers.judging import drawn

from shared.forgery import pictures
from shared.forgery.metrics import Scored


def draw(figure, folder):
    file = folder / "picture.png"
    figure.savefig(file)
    assert file.stat().st_size > 3000
    return figure.axes


def test_a_timeline_shows_frames_and_their_mean(tmp_path):
    scores = torch.tensor([0.2, math.nan, 0.9, 0.7])
    (axes,) = draw(pictures.timeline(scores, torch.arange(4) / 25, title="clip.mp4"), tmp_path)
    frames, mean, _ = axes.lines
    torch.testing.assert_close(torch.tensor(frames.get_ydata()), scores, equal_nan=True, check_dtype=False)
    assert mean.get_ydata()[0] == pytest.approx(0.6)
    assert axes.get_xlabel() == "seconds"


def test_reliability_counts_each_interval():
    scored = Scored(torch.tensor([0.0, 0.05, 0.55, 1.0]), torch.tensor([0, 1, 1, 1]), torch.arange(4))
    mean, part, count = pictures.reliability(scored, bins=10)
    torch.testing.assert_close(mean, torch.tensor([0.025, 0.55, 1.0], dtype=torch.float64))
    assert part.tolist() == [0.5, 1, 1]
    assert count.tolist() == [2, 1, 1]
    with pytest.raises(ValueError, match="bins"):
        pictures.reliability(scored, bins=0)


def test_curves_leave_out_sets_of_one_class(tmp_path):
    fakes = Scored(torch.rand(3), torch.ones(3), torch.arange(3))
    left, right = draw(pictures.curves({"both": drawn(), "fakes": fakes}), tmp_path)
    assert len(left.lines) == 2  # with the diagonal
    assert len(right.lines) == 3


def test_usage_is_stacked_to_one(tmp_path):
    shares = torch.rand(3, 5).softmax(1)
    (axes,) = draw(pictures.usage(shares, ["cv", "cd", "ad", "rd", "scd"], "adapters"), tmp_path)
    tops = [bar.get_y() + bar.get_height() for bar in axes.containers[-1]]
    assert tops == pytest.approx([1, 1, 1])


def test_robustness_begins_with_clean_images(tmp_path):
    (axes,) = draw(pictures.robustness({"blur": [0.9, 0.8], "jpeg": [0.95, 0.9]}, clean=0.99), tmp_path)
    assert list(axes.lines[0].get_ydata()) == [0.99, 0.9, 0.8]


def test_faces_have_their_scores(tmp_path):
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    axes = draw(pictures.scored_faces(images, torch.tensor([0.1, 0.9, 0.2, 0.8, 0.6]), torch.tensor([0, 0, 1, 1, 1]), columns=3), tmp_path)
    assert [one.get_title() for one in axes] == ["0.10", "0.90", "0.20", "0.80", "0.60", ""]
    assert [one.title.get_color() for one in axes[:3]] == [pictures.REAL, pictures.FAKE, pictures.FAKE]


def test_overlays_keep_the_image_below():
    image = torch.randint(256, (3, 48, 48), dtype=torch.uint8)
    heat = torch.zeros(8, 8)
    heat[2, 5] = 3
    torch.testing.assert_close(pictures.heat_overlay(image, heat, strength=0), image / 255)
    bright = pictures.heat_overlay(image, heat, strength=1).mean(0)
    assert divmod(int(bright.argmax()), 48)[0] // 6 == 2
    assert divmod(int(bright.argmax()), 48)[1] // 6 == 5
    assert pictures.heat_overlay(image, torch.ones(4, 4)).isfinite().all()
    experts = torch.arange(64).view(8, 8) % 3
    patches = pictures.expert_overlay(image, experts, strength=1).unflatten(1, (8, 6)).unflatten(3, (8, 6)).permute(1, 3, 0, 2, 4).flatten(2)
    assert (patches.std(2) < 1e-6).all() or (patches.unflatten(2, (3, 36)).std(3) < 1e-6).all()  # one colour a patch
    assert len({tuple(patch.unflatten(0, (3, 36))[:, 0].tolist()) for patch in patches.flatten(0, 1)}) == 3
