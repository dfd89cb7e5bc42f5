"""Moving pictures: every frame is there, what is missing is grey, and a colour means the same in every frame."""

import numpy as np
import pytest
import torch
from PIL import Image

from projects.s3rp.animation import FRAMES, animate


def _frames(path):
    with Image.open(path) as picture:
        found = []
        for number in range(picture.n_frames):
            picture.seek(number)
            found.append(np.asarray(picture.convert("RGB")).astype(int))
    return found


def _panel(frame, place, panels):
    """Return the middle colour of a panel: the panels are the boxes between black borders."""
    dark = (frame.sum(2) < 60).mean(0) > 0.6
    edges = np.flatnonzero(dark)
    groups = np.split(edges, np.flatnonzero(np.diff(edges) > 1) + 1)
    assert len(groups) >= 2 * panels
    left, right = groups[2 * place].max(), groups[2 * place + 1].min()
    return frame[frame.shape[0] // 2, (left + right) // 2]


def test_colours_are_fixed_over_time_and_missing_frames_are_grey(tmp_path):
    levels = torch.tensor([1.0, 0.5, 0.5, 0.25])[:, None, None]
    mask = torch.ones(4, 4, 4, dtype=torch.bool)
    mask[3] = False
    fields = levels.expand(4, 16, 16)
    path = animate(tmp_path / "a.gif", levels.expand(4, 4, 4), fields, 0.1 * fields, mask=mask)
    frames = _frames(path)
    assert len(frames) == 4
    from matplotlib import colormaps

    for frame, level in zip(frames, (1.0, 0.5, 0.5, 0.25), strict=True):
        expected = 255 * np.array(colormaps["viridis"](level)[:3])
        assert np.abs(_panel(frame, 1, 2) - expected).max() < 8
    grey = _panel(frames[3], 0, 2)
    assert np.ptp(grey) <= 1
    assert 200 < grey[0] < 235


def test_long_sequences_are_thinned_and_signed_fields_have_two_colours(tmp_path, monkeypatch):
    monkeypatch.setattr("projects.s3rp.animation.FRAMES", 3)
    fields = torch.tensor([-1.0, 0.0, 0.0, 1.0, 1.0])[:, None, None].expand(5, 8, 8)
    frames = _frames(animate(tmp_path / "a.gif", fields[:, ::4, ::4], fields, truth=fields, times=[f"{hour} h" for hour in range(5)], unit="ppm"))
    assert len(frames) == 3
    assert np.ptp(_panel(frames[1], 2, 3)) < 12  # zero is nearly white
    assert FRAMES > 3


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "a.gif").mkdir()
    with pytest.raises(OSError, match=r"a\.gif"):
        animate(tmp_path / "a.gif", torch.rand(2, 2, 2), torch.rand(2, 8, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]
