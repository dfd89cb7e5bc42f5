"""What a student says of a user's own files: the test set's preprocessing, the table, what is kept, and what is refused."""

import csv
import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.layouts import save_picture
from PIL import Image

from projects.rco import prediction
from projects.rco.data import DistillationData
from projects.rco.module import RouteDistillation
from projects.rco.objectives import Loss
from projects.rco.prediction import draw_bars, names_of, nearest, picture_set, predict, read_vectors
from shared.data.files import BadFileError
from shared.results import LEFT_OUT

NAMES = ["ant", "bee", "cat", "dog", "eel", "fox"]
PICTURES = ("a/0.png", "a/1.png", "b/2.png")
SIZES = ((20, 30), (40, 24), (32, 32))


class Plain:
    """What `predict` needs of a trainer."""

    precision, verb, loggers = "32-true", "predict", ()

    def __init__(self, folder, is_forced=False):
        self.default_root_dir, self.is_forced = folder, is_forced
        self.strategy = SimpleNamespace(root_device=torch.device("cpu"))
        self.precision_plugin = SimpleNamespace(forward_context=nullcontext)


def network(shape, student, **options):
    return RouteDistillation(list(shape), len(NAMES), student=student, **options).eval()


def faces():
    return network((3, 16, 16), "cnn_2", embedding=5, loss=Loss(kind="mimic", ce=0.0))


@pytest.fixture
def pictures(tmp_path):
    for number, (name, size) in enumerate(zip(PICTURES, SIZES, strict=True)):
        save_picture(tmp_path / "in" / name, *size, seed=number)
    return tmp_path / "in"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "artefacts" / "predict"


def gone(source, size=None, **options):
    """A data module whose files are not there."""
    return DistillationData(source, root="/nowhere", size=size, **options)


# ---- the table


def test_pictures_are_said_what_the_softmax_of_the_test_sets_view_says(pictures, folder, capsys):
    module, data = network((3, 16, 16), "cnn_2"), gone("folder", 16)
    found = predict(Plain(folder.parents[1]), module, data, str(pictures), NAMES)
    mean, std = (np.array(numbers)[:, None, None] for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert [row["file"] for row in found.rows] == list(PICTURES)
    for row, (height, width) in zip(found.rows, SIZES, strict=True):
        side, image = min(height, width), Image.open(pictures / row["file"])
        left, top = (width - side) // 2, (height - side) // 2
        square = image.crop((left, top, left + side, top + side)).resize((16, 16), Image.Resampling.BILINEAR)
        levels = np.asarray(square, np.float32).transpose(2, 0, 1) / 255
        logits = module(torch.from_numpy((levels - mean) / std).float()[None])[0].detach().double().numpy()
        chances = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-chances)[:5]
        ranks = ("", "_2", "_3", "_4", "_5")
        assert [row[f"probability{rank}"] for rank in ranks] == pytest.approx(chances[order].tolist(), abs=2e-3)  # Pillow rounds between its passes
        assert row["class"] == NAMES[order[0]]
    assert json.loads((folder / "predictions.json").read_text()) == found.rows
    assert [row["class"] for row in csv.DictReader((folder / "predictions.csv").open())] == [row["class"] for row in found.rows]
    assert (folder / "overview.png").is_file()
    assert found.exit_code == 0
    assert f"a/0.png: {found.rows[0]['class']} (" in capsys.readouterr().out


def test_pictures_become_what_test_images_are(pictures):
    from helpers.layouts import write_imagenet

    files = sorted(pictures.rglob("*.png"))
    root = write_imagenet(pictures.parent / "imagenet", classes=2, per_class=2)
    data = DistillationData("imagenet", str(root), size=28)
    data.setup()
    given = picture_set(data, (3, 28, 28), data.test_set.paths)
    assert all(torch.equal(given[place]["input"], data.test_set[place]["input"]) for place in range(len(data.test_set)))
    grey = picture_set(gone("digits"), (1, 8, 8), files)[0]["input"]
    centre = Image.open(files[0]).convert("L").crop((5, 0, 25, 20)).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(grey[0].numpy(), np.asarray(centre) / 255, atol=2.5 / 255)
    assert picture_set(gone("tiles", side=4), (1, 20, 32), files)[0]["input"].shape == (1, 20, 32)


def test_names_are_those_of_the_checkpoint_or_numbers(tmp_path):
    module, file = network((4,), "mlp_3"), tmp_path / "last.ckpt"
    torch.save({"class_names": NAMES}, file)
    assert names_of(module, str(file)) == NAMES
    torch.save({}, file)
    assert names_of(module, str(file)) == names_of(module, None) == ["0", "1", "2", "3", "4", "5"]


# ---- what is kept


def test_what_lies_finished_is_not_judged_again(pictures, folder, monkeypatch):
    module, data, judged = network((3, 16, 16), "cnn_2"), gone("folder", 16), []
    answers = prediction._answers
    monkeypatch.setattr(prediction, "BATCH", 2)
    monkeypatch.setattr(prediction, "_draw", lambda *given: None)  # it takes the time
    monkeypatch.setattr(prediction, "_answers", lambda trainer, module, inputs: judged.append(len(inputs)) or answers(trainer, module, inputs))

    def rows(**options):
        judged.clear()
        return predict(Plain(folder.parents[1], **options), module, data, str(pictures), NAMES).rows

    whole = rows()
    assert judged == [2, 1]
    parts = sorted((folder / "answers").rglob("*.npz"))
    parts[1].write_bytes(parts[1].read_bytes()[:100])  # as no interrupted run leaves it
    lost = len(parts) == 2 and rows()
    assert lost == whole
    assert judged in ([2], [1])
    assert (rows(), judged) == (whole, [])
    save_picture(pictures / "c.png", 20, 20, seed=9)
    assert rows()[:3] == whole
    assert judged == [1]
    assert (rows(is_forced=True)[:3], judged) == (whole, [2, 2])
    with torch.no_grad():
        module.student.output.bias += 1
    assert (len(rows()), judged) == (4, [2, 2])


# ---- faces


def test_faces_are_embedded_and_each_is_told_whom_it_resembles(pictures, folder):
    save_picture(pictures / "b" / "again.png", *SIZES[0], seed=0)  # the very picture a/0.png
    save_picture(pictures / "b" / "other.png", 18, 18, seed=7)
    found = predict(Plain(folder.parents[1]), faces(), gone("identities", 16), str(pictures))
    with np.load(folder / "embeddings.npz", allow_pickle=False) as file:
        names, embeddings = file["names"].tolist(), file["embeddings"].astype(np.float64)
    assert names == [row["file"] for row in found.rows]
    np.testing.assert_allclose((embeddings**2).sum(1), 1, atol=1e-5)
    cosines = embeddings @ embeddings.T - 9 * np.eye(len(names))
    for place, row in enumerate(found.rows):
        order = np.argsort(-cosines[place])[:4]
        assert [row["cosine"], row["cosine_2"], row["cosine_3"], row["cosine_4"]] == pytest.approx(cosines[place][order].tolist(), abs=1e-5)
        assert row["nearest"] == names[order[0]]
    assert (found.rows[0]["nearest"], found.rows[0]["cosine"]) == ("b/again.png", pytest.approx(1, abs=1e-6))
    assert predict(Plain(folder.parents[1]), faces(), gone("identities", 16), str(pictures / "a" / "0.png")).rows == [
        {"file": "0.png", "nearest": None, "cosine": None}
    ]


def test_the_nearest_are_those_of_all_pairs_though_rows_are_compared_in_parts(monkeypatch):
    monkeypatch.setattr(prediction, "_ROWS", 4)
    embeddings = torch.nn.functional.normalize(torch.randn(11, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    similarity = embeddings.double() @ embeddings.double().T
    expected = similarity.fill_diagonal_(-9).sort(dim=1, descending=True)
    places, cosines = nearest(embeddings)
    assert torch.equal(places, expected.indices[:, :5])
    torch.testing.assert_close(cosines.double(), expected.values[:, :5], atol=1e-6, rtol=0)


# ---- vectors


def test_vectors_are_read_from_each_kind_of_file(tmp_path, folder):
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    inbox = tmp_path / "in"
    inbox.mkdir()
    np.save(inbox / "a.npy", x)
    np.save(inbox / "b.npy", x[1])
    np.savez(inbox / "c.npz", x=x, y=np.zeros(3))
    (inbox / "d.csv").write_text("\n".join(["p,q,r,s", *(",".join(str(value) for value in row) for row in x)]) + "\n\n", encoding="utf-8-sig")
    for name, expected in (("a.npy", x), ("b.npy", x[1:2]), ("c.npz", x), ("d.csv", x)):
        np.testing.assert_array_equal(read_vectors(inbox / name, 4).numpy(), expected)
    module = network((4,), "mlp_3")
    found = predict(Plain(folder.parents[1]), module, DistillationData(bits=40), str(inbox), NAMES)
    assert [(row["file"], row["row"]) for row in found.rows][2:5] == [("a.npy", 2), ("b.npy", 0), ("c.npz", 0)]
    chances = module(torch.from_numpy(x)).softmax(1).detach()
    assert [row["probability"] for row in found.rows[:3]] == pytest.approx(chances.amax(1).tolist(), abs=1e-6)
    assert [row["class"] for row in found.rows[:3]] == [NAMES[place] for place in chances.argmax(1)]
    axis = draw_bars(found.rows[:1]).axes[0]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx(chances[0].sort(descending=True).values[:5].tolist(), abs=1e-6)


X = np.ones((3, 4))
REFUSED = {
    "nan.npy": (np.where(np.arange(12).reshape(3, 4) == 6, np.nan, X), r"NaN or infinity in 1 of its rows, counted from 0: 1"),
    "wide.npy": (np.ones((3, 5)), r"rows have 5 numbers, the student takes 4"),
    "deep.npy": (np.ones((3, 2, 2)), r"float64 of shape \(3, 2, 2\), expected numbers of shape \(4,\) or \(N, 4\)"),
    "words.npy": (np.array(["a", "b"]), r"expected numbers"),
    "objects.npy": (np.array([{}, {}], dtype=object), r"allow_pickle"),
    "two.npz": ({"p": X, "q": X}, r"arrays p, q: call the one to judge x"),
    "torn.npz": (b"PK\x03\x04 torn", r"cannot use .*torn.npz"),
    "word.csv": (b"a,b,c,d\n1,2,3,4\n1,2,x,4\n", r"row 1, counted from 0 below the header, has the word 'x'"),
    "short.csv": (b"1,2,3,4\n1,2,3\n", r"row 1, .* has 3 columns, expected 4"),
    "inf.csv": (b"1,2,3,4\ninf,2,3,4\n", r"in 1 of its rows, counted from 0: 1"),
    "empty.csv": (b"a,b,c,d\n", r"shape \(0,\)"),
    "picture.png": (b"", r"takes vectors: give a file ending in .npy, .npz, .csv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_vectors_that_do_not_fit_are_refused_by_their_row(name, tmp_path):
    content, said = REFUSED[name]
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content)
    with pytest.raises(BadFileError, match=said):
        read_vectors(path, 4)


# ---- what cannot be read


def test_pictures_that_cannot_be_read_are_refused_or_left_out_and_listed(pictures, folder, capsys, monkeypatch):
    monkeypatch.setattr(prediction, "_draw", lambda *given: None)
    (pictures / "a" / "torn.png").write_bytes(b"no picture")
    module, trainer = network((3, 16, 16), "cnn_2"), Plain(folder.parents[1])
    with pytest.raises(BadFileError, match="1 of 4 images cannot be read"):
        predict(trainer, module, gone("folder", 16), str(pictures), NAMES)
    assert not folder.exists()
    found = predict(trainer, module, gone("folder", 16, on_bad_file="skip"), str(pictures), NAMES)
    assert ([row["file"] for row in found.rows], found.exit_code) == (list(PICTURES), LEFT_OUT)
    (left,) = csv.DictReader((folder / "left_out.csv").open())
    assert left["file"] == "a/torn.png"
    assert "not an image" in left["reason"]
    assert "1 files cannot be read and were left out" in capsys.readouterr().out
    (pictures / "a" / "torn.png").unlink()
    assert predict(trainer, module, gone("folder", 16), str(pictures), NAMES).exit_code == 0
    assert not (folder / "left_out.csv").exists()


def test_answers_that_are_not_finite_are_refused(pictures, folder):
    module = network((3, 16, 16), "cnn_2")
    with torch.no_grad():
        module.student.output.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        predict(Plain(folder.parents[1]), module, gone("folder", 16), str(pictures), NAMES)
    with pytest.raises(FileNotFoundError, match="a picture, a folder of pictures"):
        predict(Plain(folder.parents[1]), module, gone("folder", 16), str(pictures / "none"), NAMES)
