"""Controls: what is no forgery must not tell the classes apart, neither in drawn faces nor on the way from files; where files do, it is said."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.forgery_layouts import frame
from PIL import Image
from scipy.fft import dctn
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shared.forgery.confounds import confounds
from shared.forgery.data import ForgeryData
from shared.forgery.faces import MANIPULATIONS, faces
from shared.forgery.sets import REAL, Clip, Video

FINE = np.add.outer(np.arange(8), np.arange(8)) >= 4
"""Frequencies of noise and of codecs, rather than of what a picture shows."""


def grain(images, blocks):
    """Mean logarithms of the fine frequencies of brightness in some of JPEG's blocks, given by their upper left corners."""
    luma = (images.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1).numpy()
    spectra = [np.abs(dctn(luma[:, row : row + 8, column : column + 8], axes=(1, 2), norm="ortho")) for row, column in blocks]
    return np.mean([np.log(1 + spectrum[:, FINE]) for spectrum in spectra], axis=0)


def learnt_auc(train, test, labels, blocks):
    """AUC on one set of images of a classifier by `grain` that has learnt another one."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(grain(train, blocks), labels[0])
    return roc_auc_score(labels[1], classifier.decision_function(grain(test, blocks)))


def tolerance(labels):
    """Three standard deviations of the AUC of scores that know nothing: sqrt((n + m + 1) / (12 n m)) for n real and m fake frames."""
    fakes = int(labels.sum())
    return 3 * ((len(labels) + 1) / (12 * fakes * (len(labels) - fakes))) ** 0.5


def test_outside_of_every_mask_drawn_fakes_are_like_reals():
    """Both classes have one camera and one codec, so their corners above the face do not tell them apart; what is replaced does."""
    train, test = (faces(split, 240, MANIPULATIONS, seed=12, video_frames=1) for split in ("train", "test"))  # frames of one video are alike
    labels = train.labels, test.labels
    chance = tolerance(test.labels)
    assert learnt_auc(train.frames, test.frames, labels, [(0, 0), (0, 40)]) == pytest.approx(0.5, abs=chance)
    assert learnt_auc(train.frames, test.frames, labels, [(16, 16), (16, 24), (24, 16), (24, 24)]) > 0.5 + chance


def write_codecs(root, label, codec):
    """Write real frames only: smooth fields with noise, in both splits; half are called fake, and half are stored as JPEG."""
    own = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        fields = F.interpolate(torch.rand(len(label), 3, 4, 4, generator=own), size=32, mode="bicubic")
        levels = (255 * (fields + 0.05 * torch.randn(fields.shape, generator=own)).clamp(0, 1)).byte().permute(0, 2, 3, 1).numpy()
        for number, (is_fake, is_jpeg) in enumerate(zip(label.tolist(), codec.tolist(), strict=True)):
            path = root / split / ("fake/none" if is_fake else "real") / f"{number}{'.jpg' if is_jpeg else '.png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(levels[number]).save(path)
    return root


def through_files(root):
    """Images of training and of the test through the loaders, with their labels and whether they were stored as JPEG."""
    data = ForgeryData(source="folder", root=str(root), size=32, batch_size=20, train_frames=1, test_frames=1)
    data.prepare_data()
    batches = list(data.train_dataloader()), list(data.test_dataloader()[0])
    images, labels, index = ([torch.cat([batch[name] for batch in part]) for part in batches] for name in ("image", "label", "index"))
    paths = data.train_set.frames.frames.paths, data.test_sets[0].frames.paths
    return images, labels, [torch.tensor([paths[part][place].endswith(".jpg") for place in index[part].tolist()]) for part in (0, 1)]


def test_real_frames_of_two_codecs_that_are_called_real_and_fake_at_random(tmp_path, caplog):
    """The label-shuffled control and the control of two codecs in one: every frame is real, labels are drawn, codecs are independent of them.

    The codec is there to be seen, but labels cannot be learnt, for files of both classes are read in the same way. Where codecs follow the labels,
    "forgeries" are detected that are none, and the warning says so.
    """
    codec = torch.arange(200) % 2
    blocks = [(row, column) for row in range(0, 32, 8) for column in range(0, 32, 8)]
    images, labels, codecs = through_files(
        write_codecs(tmp_path / "random", codec[torch.randperm(200, generator=torch.Generator().manual_seed(1))], codec)
    )
    assert learnt_auc(*images, codecs, blocks) > 0.95
    assert learnt_auc(*images, labels, blocks) == pytest.approx(0.5, abs=tolerance(labels[1]))
    assert "Detectors learn this" not in caplog.text
    images, labels, _ = through_files(write_codecs(tmp_path / "trap", codec, codec))
    assert learnt_auc(*images, labels, blocks) > 0.95
    for split in ("train", "test"):
        assert f"trap, {split}: none: .jpg where real ones are .png. Detectors learn this instead of forgeries" in caplog.text


def clips(root, kind, sizes, ending=".png"):
    return [Clip(Video("d", kind, f"{n}"), (str(frame(root / kind / f"{n}{ending}", 9, size)),)) for n, size in enumerate(sizes)]


def test_sizes_that_tell_the_classes_apart_are_named(tmp_path):
    real = clips(tmp_path, REAL, [40] * 6)
    assert confounds(real + clips(tmp_path, "a", [40] * 6) + clips(tmp_path, "b", [20, 20, 20, 20, 40, 20])) == []
    assert confounds(real + clips(tmp_path, "a", [40] * 6) + clips(tmp_path, "c", [20] * 5)) == [
        "c: 20 pixels where real ones have 40 (shorter side, median)"
    ]
    random = np.random.default_rng(0)
    varied = [clips(tmp_path, kind, random.integers(16, 64, 40)) for kind in (REAL, "d")]
    assert confounds(varied[0] + varied[1]) == [], "different sizes, but not by class"
    assert len(confounds(varied[0] + clips(tmp_path, "e", random.integers(56, 120, 40)))) == 1


def test_formats_count_as_they_are_and_frames_that_cannot_be_read_do_not(tmp_path):
    real = clips(tmp_path, REAL, [20] * 8, ".JPG")
    assert confounds(real + clips(tmp_path, "a", [20] * 8, ".jpeg")) == [], "two spellings of one format"
    mixed = clips(tmp_path, "b", [20] * 8)[:4] + clips(tmp_path, "b", [20] * 4, ".jpg")
    assert confounds(real + mixed) == [], "half of them"
    bad = clips(tmp_path, "c", [20] * 8, ".jpg")
    for clip in bad[:4]:
        (tmp_path / "c" / f"{clip.video.name}.jpg").write_bytes(b"no picture")
    assert confounds(real + bad + [Clip(Video("d", "c", "none"), ()), Clip(Video("d", "c", "lost"), (str(tmp_path / "lost.jpg"),))]) == []
    assert confounds(bad) == [], "no real frames to compare with"
