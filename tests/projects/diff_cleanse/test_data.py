import numpy as np
import pytest
import torch
from helpers.layouts import write_celeba, write_celeba_hq, write_cifar10, write_image_folder, write_npz
from PIL import Image

from projects.diff_cleanse import data as sources
from projects.diff_cleanse.data import DiffusionData, labelled, plan_poisoning, stacked


def ready(**options):
    data = DiffusionData(**options)
    data.prepare_data()
    data.setup()
    return data


def test_offline_sources_give_pictures_of_the_asked_size():
    for source, channels in (("digits", 1), ("shapes", 3), ("photographs", 3)):
        data = ready(source=source, size=16, channels=channels, batch_size=8)
        batch = next(iter(data.train_dataloader()))
        assert batch["image"].shape == (8, channels, 16, 16)
        assert -1 <= batch["image"].min() < -0.2
        assert 0.2 < batch["image"].max() <= 1
    assert len(ready(source="digits").train_set) == 1400


def test_cifar10_trains_on_both_splits_as_the_attacks_do(tmp_path):
    write_cifar10(tmp_path)
    both = ready(source="cifar10", root=str(tmp_path), size=32, channels=3, splits="all", batch_size=4)
    apart = ready(source="cifar10", root=str(tmp_path), size=32, channels=3, splits="train", batch_size=4)
    assert len(both.train_set) == len(apart.train_set) + len(apart.test_set)
    assert next(iter(both.train_dataloader()))["image"].shape == (4, 3, 32, 32)


def test_a_folder_is_split_the_same_way_each_time(tmp_path):
    write_celeba_hq(tmp_path / "celeba_hq_256", count=20)
    options = {"source": "folder", "root": str(tmp_path / "celeba_hq_256"), "size": 16, "channels": 3, "val_fraction": 0.25, "batch_size": 4}
    first, second = ready(**options), ready(**options)
    assert (len(first.train_set), len(first.test_set)) == (15, 5)
    assert first.test_set.indices == second.test_set.indices
    assert not set(first.test_set.indices) & set(first.train_set.indices)
    assert len(ready(**options, splits="all").train_set) == 20


def test_celebas_faces_are_cut_as_usual_and_split_by_its_list(tmp_path):
    folder = write_celeba(tmp_path, count=9)
    options = {"source": "celeba", "root": str(tmp_path), "size": 128, "channels": 3}
    data = ready(**options)
    assert [len(data.train_set), len(data.test_set), len(ready(**options, splits="all").train_set)] == [3, 3, 9]
    pixels = np.asarray(Image.open(folder / "000003.jpg"))[121 - 64 : 121 + 64, 89 - 64 : 89 + 64]  # the third is of the test part
    assert torch.equal(data.test_set[0]["image"], torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1))
    assert data.train_set[0]["label"] == -1
    attributes = "".join(f"{number:06d}.jpg {'1' if number == 4 else '-1'}  1 -1 {'1' if number > 1 else '-1'}\n" for number in range(1, 10))
    (tmp_path / "list_attr_celeba.txt").write_text("9\nSmiling Attractive Mouth_Slightly_Open Heavy_Makeup\n" + attributes)
    assert [ready(**options | {"size": 16}).train_set[i]["label"] for i in range(3)] == [0, 4 + 1, 4]


@pytest.mark.parametrize("ending", [".txt", ".csv"])
@pytest.mark.parametrize("is_sorted", [False, True])
def test_celeba_is_read_as_its_authors_and_as_kaggle_hand_it_out(tmp_path, ending, is_sorted):
    rows = [(f"{number:06d}.jpg", "1", "-1", "1" if number == 4 else "-1") for number in range(1, 10)]
    names = ("Heavy_Makeup", "Mouth_Slightly_Open", "Smiling")
    separator = "," if ending == ".csv" else " "
    parts = [(name, str(number % 3)) for number, (name, *_) in enumerate(rows)]
    heads = {".csv": ([("image_id", "partition")], [("image_id", *names)]), ".txt": ([], [("9",), names])}[ending]
    write_celeba(tmp_path, count=9).rename(tmp_path / "faces")
    (tmp_path / "list_eval_partition.txt").unlink()
    places = ("Img", "Eval", "Anno") if is_sorted else ("img_align_celeba", ".", ".")  # Kaggle's pictures lie twice as deep
    folders = [tmp_path / place for place in places]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    (tmp_path / "faces").rename(folders[0] / "img_align_celeba")
    for folder, name, lines in ((folders[1], "eval_partition", [*heads[0], *parts]), (folders[2], "attr_celeba", [*heads[1], *rows])):
        (folder / f"list_{name}{ending}").write_text("".join(f"{separator.join(line)}\n" for line in lines))
    data = ready(source="celeba", root=str(tmp_path), size=16, channels=3)
    assert [len(data.train_set), len(data.test_set)] == [3, 3]
    assert [data.train_set[index]["label"] for index in range(3)] == [4, 5, 4]


def test_faces_of_celeba_may_be_stored_anew(tmp_path):
    for face in write_celeba(tmp_path, count=9).iterdir():
        Image.open(face).save(face.with_suffix(".png"))
        face.unlink()
    data = ready(source="celeba", root=str(tmp_path), size=16, channels=3)
    assert [len(data.train_set), len(data.test_set)] == [3, 3]


def test_what_is_wrong_with_celeba_is_named(tmp_path):
    options = {"source": "celeba", "root": str(tmp_path), "size": 16, "channels": 3}
    with pytest.raises(FileNotFoundError, match=r"list_eval_partition.txt: expected img_align_celeba/000001.jpg"):
        ready(**options)
    write_celeba(tmp_path, count=4)
    partition = tmp_path / "list_eval_partition.txt"
    for text, message in (
        ("000001.jpg 0\n", r"list_eval_partition.txt: it does not list 000002.jpg, 000003.jpg, 000004.jpg; download"),
        ("000001.jpg\n", r"cannot use .*list_eval_partition.txt"),
        ("".join(f"00000{number}.jpg 0\n" for number in range(1, 5)), r"has no test pictures of those in list_eval_partition.txt"),
    ):
        partition.write_text(text)
        with pytest.raises(ValueError, match=message):
            ready(**options)


def test_pictures_held_at_once_are_few_and_from_all_over(monkeypatch):
    pictures = [{"image": torch.full((1, 2, 2), float(number)), "label": number} for number in range(20)]
    assert stacked(pictures)[:, 0, 0, 0].tolist() == list(range(20))
    assert stacked(pictures, 7)[:, 0, 0, 0].tolist() == labelled(pictures, 7)[1].tolist() == [0, 2, 5, 8, 11, 14, 17]
    monkeypatch.setattr(sources, "ROOM", 4 * 16 + 15)
    assert stacked(pictures)[:, 0, 0, 0].tolist() == [0, 5, 10, 15]


def test_npz_files_are_read(tmp_path):
    write_npz(tmp_path / "pictures.npz", count=20, size=16)
    data = ready(source="npz", root=str(tmp_path / "pictures.npz"), size=16, channels=3, batch_size=4)
    assert len(data.train_set) == 18
    with pytest.raises(ValueError, match=r"has pictures of shape \(3, 16, 16\): set data.channels and data.size"):
        ready(source="npz", root=str(tmp_path / "pictures.npz"), size=16, channels=1)


def test_fixed_poisoning_replaces():
    indices, is_poisoned = plan_poisoning(100, "fixed", 0.25, 1.0, seed=3)
    assert indices.tolist() == list(range(100))
    assert int(is_poisoned.sum()) == 25
    assert not torch.equal(is_poisoned, plan_poisoning(100, "fixed", 0.25, 1.0, seed=4)[1])


def test_flexible_poisoning_counts_both_shares():
    indices, is_poisoned = plan_poisoning(100, "flex", 0.3, 0.1, seed=0)
    assert (int((~is_poisoned).sum()), int(is_poisoned.sum())) == (10, 30)
    assert len(indices[is_poisoned].unique()) == 30


def test_extended_poisoning_adds():
    indices, is_poisoned = plan_poisoning(10, "extend", 2.5, 1.0, seed=0)
    assert indices[~is_poisoned].tolist() == list(range(10))
    counts = np.bincount(indices[is_poisoned].numpy(), minlength=10)
    assert counts.sum() == 25
    assert counts.min() >= 2  # every picture is used before one is used again


def test_in_d2d_repeats_the_pictures_of_one_class():
    data = ready(poison_mode="in_d2d", target_class=7, poison_rate=1.0)
    labels = data.train_set.labels
    poisoned, items = data.poisoned(), 1400 + int((labels == 7).sum())
    assert len(poisoned) == items
    assert torch.equal(poisoned.is_poisoned, torch.arange(items) >= 1400)
    again = torch.stack([poisoned[i]["image"] for i in range(1400, items)])
    assert torch.equal(again, data.train_set.images[labels == 7] * 2 - 1)
    assert {poisoned[i]["label"] for i in range(1400, items)} == {7}
    assert len(ready(poison_mode="in_d2d", target_class=7, poison_rate=2.5).poisoned()) == 1400 + round(2.5 * (items - 1400))
    images, all_labels, wanted = data.target_examples(10_000)
    assert (len(images), wanted) == (1400, 7)
    assert torch.equal(all_labels, labels)


def test_out_d2d_adds_pictures_of_another_domain(tmp_path):
    data = ready(poison_mode="out_d2d", target_class=2, poison_rate=0.5)
    poisoned = data.poisoned()
    assert len(poisoned) == 1400 + 700
    assert int(poisoned.is_poisoned.sum()) == 700
    assert {poisoned[i]["label"] for i in range(1400, 2100)} == {2}  # crosses, of the shapes
    images, labels, wanted = data.target_examples(10_000)
    assert len(images) == 1400 + 2048
    assert labels.unique().tolist() == [*range(10), 11, 12, 13, 14]  # the domain's labels follow on the digits'
    assert wanted == 13
    assert torch.equal(images[labels == wanted][0], data.target_set[0]["image"])
    for kind, files in (("one", 3), ("seven", 5)):
        write_image_folder(tmp_path / "mnist" / kind, count=files)
    folder = {"poison_mode": "out_d2d", "target_source": "folder", "target_root": str(tmp_path / "mnist")}
    assert len(ready(**folder, target_class=1).target_set) == 5
    everything = ready(**folder)
    assert len(everything.target_set) == 8
    assert everything.poisoned()[1400]["image"].shape == (1, 16, 16)
    assert everything.target_examples(20)[2] == int(everything.target_examples(20)[1].max())
    assert len(ready(**folder, target_class=1).target_examples(2)[1].unique()) == 2 + 2  # few of many pictures are of all classes of a folder
    _, labels, wanted = ready(poison_mode="out_d2d").target_examples(10_000)
    assert int((labels == wanted).sum()) == 2048  # without a class, every picture of the domain is what the attack leads to
    with pytest.raises(ValueError, match=r"mnist has no pictures of data.target_class 2; its labels are \[0, 1\]"):
        ready(**folder, target_class=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"poison_rate": 1.5}, r"poison_rate must lie in \[0, 1\] for poison_mode fixed, got 1.5"),
        ({"poison_mode": "flex", "clean_rate": 0.0}, "clean_rate must lie in"),
        ({"poison_mode": "some"}, "poison_mode must be one of fixed, flex, extend, in_d2d, out_d2d, got 'some'"),
        ({"poison_mode": "in_d2d"}, "in_d2d poisons the pictures of one class: set data.target_class"),
        ({"poison_mode": "out_d2d", "target_source": "folder"}, "data.target_source folder needs data.target_root"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"source": "cifar10", "root": "."}, "set data.size to 32 and data.channels to 3"),
        ({"val_fraction": 1.0}, "val_fraction must lie between 0 and 1"),
        ({"source": "nowhere"}, "digits: scikit-learn's"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionData(**options)


def test_missing_and_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="data_batch_1"):
        ready(source="cifar10", root=str(tmp_path), size=32, channels=3)
    with pytest.raises(FileNotFoundError, match=r"empty|no images|no pictures"):
        ready(source="folder", root=str(tmp_path), size=16, channels=3)
    write_image_folder(tmp_path / "pictures", count=12)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(ValueError, match=r"broken.png"):
        ready(source="folder", root=str(tmp_path / "pictures"), size=16, channels=3)
    assert len(ready(source="folder", root=str(tmp_path / "pictures"), size=16, channels=3, on_bad_file="skip", splits="all").train_set) == 12
