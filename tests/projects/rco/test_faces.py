import logging
import re

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from projects.rco.face_protocols import FaceProtocol, Identification, Verification, best_threshold, fold_accuracies, read_pairs
from projects.rco.faces import _traits, drawn_faces, read_faces, training_people
from shared.data.files import BadFileError
from shared.data.folders import NO_LABEL
from shared.seeding import generator


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_search(seed=0, d=4):
    """Nine probes of three people, who have 2, 3 and 4 in mixed order, and 50 distractors, rows shuffled."""
    people = torch.tensor([2, 0, 1, 2, 1, 0, 2, 1, 2])
    rows = torch.randperm(59, generator=torch.Generator().manual_seed(seed))
    search = Identification(rows[:9], people, rows[9:])
    centres = normal(3, d, seed=seed + 1)
    embeddings = normal(59, d, seed=seed + 2)
    embeddings[rows[:9]] = 0.7 * embeddings[rows[:9]] + centres[people]
    return search, embeddings


def brute_cmc(search, embeddings, ranks, distractors=None):
    """The definition in plain loops, float64."""
    unit = (embeddings.double() / embeddings.double().norm(dim=1, keepdim=True)).numpy()
    others = (search.distractors if distractors is None else distractors).tolist()
    probes, people = search.probes.tolist(), search.people.tolist()
    shares = []
    for i, probe in enumerate(probes):
        mates = [row for j, row in enumerate(probes) if j != i and people[j] == people[i]]
        places = [1 + sum(unit[probe] @ unit[other] >= unit[probe] @ unit[mate] - 1e-7 for other in others) for mate in mates]
        shares.append([np.mean([place <= rank for place in places]) for rank in range(1, ranks + 1)])
    return np.mean(shares, axis=0)


# ---- verification


def some_pairs(count=400, seed=0):
    same = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    folds = torch.arange(count) % 10
    scores = (normal(count, seed=seed + 1) + same).mul(10).round() / 10  # with equal scores
    return scores, same, folds


def test_accuracy_over_folds_is_that_of_a_plain_loop_over_all_thresholds():
    scores, same, folds = some_pairs()
    x, y, f = scores.double().numpy(), same.numpy(), folds.numpy()
    expected = []
    for fold in range(10):
        seen = np.unique(x[f != fold])
        cuts = [np.inf, *((seen[1:] + seen[:-1]) / 2)[::-1], -np.inf]
        accuracy = [((x[f != fold] >= cut) == y[f != fold]).mean() for cut in cuts]
        best = cuts[int(np.argmax(accuracy))]
        expected.append(((x[f == fold] >= best) == y[f == fold]).mean())
    np.testing.assert_allclose(fold_accuracies(scores, same, folds).numpy(), expected, atol=1e-12)


def test_threshold_lies_half_way_between_and_is_infinite_where_all_pairs_are_of_one_kind():
    assert best_threshold(torch.tensor([0.1, 0.2, 0.6, 0.9]), torch.tensor([False, False, True, True])) == pytest.approx(0.4)
    assert best_threshold(torch.tensor([0.1, 0.2]), torch.tensor([False, False])) == torch.inf
    assert best_threshold(torch.tensor([0.1, 0.2]), torch.tensor([True, True])) == -torch.inf


def test_verification_agrees_with_scikit_learn_on_cosines():
    embeddings, (_, same, folds) = normal(120, 6), some_pairs(300)
    first, second = torch.randint(120, (2, 300), generator=torch.Generator().manual_seed(5))
    found = FaceProtocol(120, Verification(first, second, same, folds)).judge(embeddings)
    unit = (embeddings / embeddings.norm(dim=1, keepdim=True)).double().numpy()
    scores = (unit[first] * unit[second]).sum(1)
    fpr, tpr, _ = roc_curve(same, scores, drop_intermediate=False)
    nearest = np.abs(1 - tpr - fpr).min()
    assert found["auroc"] == pytest.approx(roc_auc_score(same, scores), abs=1e-6)
    assert abs(found["eer"] - fpr[np.abs(1 - tpr - fpr).argmin()]) <= nearest + 1e-6
    folded = fold_accuracies(torch.from_numpy(scores), same, folds).numpy()
    assert (found["lfw_accuracy"], found["lfw_std"]) == pytest.approx((folded.mean(), folded.std()), abs=1e-6)
    assert set(found) == {"lfw_accuracy", "lfw_std", "auroc", "eer"}


def test_the_threshold_of_a_fold_does_not_come_from_it():
    scores = torch.tensor([0.1, 0.9, 0.1, 0.9, 5.1, 5.9])  # the last fold lies elsewhere: all of it is called one person
    same, folds = torch.tensor([False, True] * 3), torch.tensor([0, 0, 1, 1, 2, 2])
    assert fold_accuracies(scores, same, folds)[2] == 0.5


# ---- identification


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_identification_is_that_of_the_double_loop(seed):
    search, embeddings = a_search(seed)
    expected = brute_cmc(search, embeddings, 12)
    np.testing.assert_allclose(search.cmc(embeddings, 12).numpy(), expected, atol=1e-9)
    found = FaceProtocol(59, identification=search).judge(3 * embeddings)  # lengths do not count
    assert found == pytest.approx({"rank1": expected[0], "rank5": expected[4]}, abs=1e-9)
    assert 0 < expected[0] < expected[4]


def test_ties_are_lost():
    search, embeddings = a_search()
    embeddings[search.distractors[:9]] = embeddings[search.probes]  # a copy of every mate
    copied = search.cmc(embeddings, 12).numpy()
    np.testing.assert_allclose(copied, brute_cmc(search, embeddings, 12), atol=1e-9)
    assert copied[0] == 0
    collapsed = FaceProtocol(59, identification=search).judge(normal(1, 4).expand(59, 4))
    assert collapsed == {"rank1": 0.0, "rank5": 0.0}


def test_blocks_of_distractors_do_not_change_what_is_found():
    search, embeddings = a_search(3)
    whole = next(search._nearest(embeddings, search.distractors, [50], 7))
    for block in (1, 40, 170):  # 1, 4 and 18 distractors at once
        parts = next(search._nearest(embeddings, search.distractors, [50], 7, block))
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)


def test_curve_takes_growing_parts_of_one_random_order():
    search, embeddings = a_search()
    curve = search.curve(embeddings)
    assert list(curve) == [10, 50]
    assert curve[50] == pytest.approx(float(search.cmc(embeddings, 1)[0]))
    order = search.distractors[torch.randperm(50, generator=generator(7, "distractors"))]
    parts = search.curve(embeddings, [17, 3], seed=7)
    assert list(parts) == [3, 17]
    assert parts == pytest.approx({count: brute_cmc(search, embeddings, 1, order[:count])[0] for count in (3, 17)}, abs=1e-9)
    values = list(search.curve(embeddings, range(1, 51)).values())
    assert values == sorted(values, reverse=True)
    with pytest.raises(ValueError, match="from 1 to the 50"):
        search.curve(embeddings, [51])


def test_fewer_distractors_than_a_rank_leave_it_out():
    search = Identification(torch.tensor([0, 1]), torch.tensor([4, 4]), torch.tensor([2, 3]))
    assert search.judge(torch.eye(4) + 0.5) == {"rank1": 0.0}
    near = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [-1, 0]])
    assert search.judge(near) == {"rank1": 1.0}
    assert search.cmc(near, 5).tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Identification(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 7]), torch.tensor([3])), "person 7 has one probe only"),
        (lambda: Identification(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([])), "needs probes and distractors"),
        (lambda: Identification(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([2])), "2 probes, but persons of 1"),
        (lambda: Verification(*torch.zeros(2, 4).long(), torch.tensor([True, False] * 2), torch.zeros(4).long()), "at least two folds"),
        (lambda: Verification(*torch.zeros(2, 4).long(), torch.tensor([True, False] * 2), torch.zeros(3).long()), r"\[4, 4, 4, 3\]"),
        (lambda: FaceProtocol(3), "nothing to judge"),
        (lambda: FaceProtocol(58, identification=a_search()[0]).judge(torch.zeros(59, 4)), "each of the 58 test images"),
        (lambda: FaceProtocol(59, identification=a_search()[0]).judge(torch.zeros(59, 4).fill_diagonal_(torch.nan)), "first one in row 0"),
    ],
    ids=["no mate", "no distractor", "lengths", "one fold", "pair lengths", "empty", "shape", "nan"],
)
def test_impossible_protocols_and_embeddings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- pairs.txt


def lfw_text(folds, pairs, header=True, between="\t"):
    lines = [between.join((str(folds), str(pairs)))] if header else []
    for fold in range(folds):
        lines += [between.join((f"Ann_{fold}", "1", str(2 + row))) for row in range(pairs)]
        lines += [between.join((f"Ann_{fold}", "1", f"Bob_{fold}", str(1 + row))) for row in range(pairs)]
    return "\n".join(lines) + "\n"


def written(tmp_path, text, name="pairs.txt"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path / name


@pytest.mark.parametrize("between", ["\t", "  "], ids=["tabs", "spaces"])
def test_pairs_are_read_in_their_folds_with_and_without_the_first_line(tmp_path, between):
    pairs = read_pairs(written(tmp_path, lfw_text(10, 3, between=between)))
    assert [pair.fold for pair in pairs] == [fold for fold in range(10) for _ in range(6)]
    assert [pair.same for pair in pairs] == [True, True, True, False, False, False] * 10
    assert (pairs[1].first, pairs[1].second, pairs[1].line) == (("Ann_0", 1), ("Ann_0", 3), 3)
    assert (pairs[5].first, pairs[5].second) == (("Ann_0", 1), ("Bob_0", 3))
    bare = read_pairs(written(tmp_path, lfw_text(10, 3, header=False, between=between)))
    assert [pair[:4] for pair in bare] == [pair[:4] for pair in pairs]


def test_pairs_with_only_a_count_are_dealt_over_ten_folds(tmp_path):
    body = lfw_text(1, 25, header=False)
    pairs = read_pairs(written(tmp_path, "\ufeff25\r\n" + body.replace("\n", "\r\n") + "\r\n\r\n"))
    assert len(pairs) == 50
    for kind in (True, False):
        counts = np.bincount([pair.fold for pair in pairs if pair.same is kind])
        assert len(counts) == 10
        assert set(counts) == {2, 3}
    few = read_pairs(written(tmp_path, lfw_text(1, 3, header=False)))
    assert [pair.fold for pair in few] == [0, 1, 2, 0, 1, 2]


def test_names_may_hold_spaces_between_tabs(tmp_path):
    pairs = read_pairs(written(tmp_path, "A b\t1\t2\nA b\t1\t3\nA b\t1\tC\t2\nA b\t2\tC\t1\n"))
    assert pairs[0].first == ("A b", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10 300\nAnn 1 2\nAnn 1\n", r"2 .*|line 3: 'Ann 1' is neither"),
        ("1 1\nAnn 1 2\nAnn 0 Bob 1\n", r"line 3: 'Ann 0 Bob 1' is neither"),
        ("Ann one 2\nAnn 1 Bob 1\n", r"line 1: 'Ann one 2' is neither"),
        ("Ann 2 2\nAnn 1 Bob 1\n", "line 1: .* an image with itself"),
        ("Ann 1 2\nAnn 1 Ann 2\n", "line 2: .* one person twice"),
        ("ten 300\nAnn 1 2\n", "first line: 'ten 300' is neither"),
        (lfw_text(2, 3) + "Ann_0 1 9\n", "7 pairs of one person and 6 of two, but its first line says 2 folds of 3 and 3"),
        ("2 1\nA 1 2\nA 1 3\nA 1 B 1\nA 1 B 2\n", "fold by fold"),
        ("Ann 1 2\nAnn 1 Bob 1\n", "at least 2 of each"),
        ("", "0 pairs of one person and 0 of two"),
        (b"\xff\xfe\xfa", "not text in UTF-8"),
    ],
    ids=["short", "zero", "word", "itself", "twice", "header", "count", "order", "few", "empty", "binary"],
)
def test_malformed_pairs_are_named(tmp_path, text, message):
    with pytest.raises(BadFileError, match=message):
        read_pairs(written(tmp_path, text))


# ---- folders


def shot(path, grey, size=(12, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, 0, 0)).save(path)


@pytest.fixture
def root(tmp_path):
    """Three people to learn from, LFW with two folds, two probes' people with 2 and 3 images, four distractors at two depths."""
    for number, name in enumerate(["cleo", "abel", "berta"]):
        for row in range(2):
            shot(tmp_path / "train" / name / f"{row}.jpg", 50 * number)
    for name in ("Ann_0", "Ann_1", "Bob_0", "Bob_1"):
        for row in range(1, 4):
            shot(tmp_path / "lfw" / name / f"{name}_{row:04d}.jpg", 10 * row)
    shot(tmp_path / "lfw" / "Unused" / "Unused_0001.jpg", 0)
    (tmp_path / "lfw" / "pairs.txt").write_text(lfw_text(2, 2))
    for name, count in (("Paul", 2), ("Quinn", 3)):
        for row in range(count):
            shot(tmp_path / "probes" / name / f"{row}.png", 200)
    for name in ("1.jpg", "2.jpg", "deep/er/3.jpg", "deep/4.jpg"):
        shot(tmp_path / "distractors" / name, 255, size=(20, 30))
    return tmp_path


def test_all_parts_are_read_in_the_order_of_the_protocol(root):
    sets = read_faces(root, size=8)
    assert sets.class_names == ["abel", "berta", "cleo"] == training_people(root)
    assert [(item["label"], item["index"]) for item in map(sets.train.__getitem__, range(6))] == [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)]
    item = sets.train[5]
    assert item["input"].shape == (3, 8, 8)
    torch.testing.assert_close(item["input"].mean((1, 2)), torch.zeros(3), atol=0.02, rtol=0)  # cleo is black
    names = [path.relative_to(root).as_posix() for path in sets.test.paths]
    assert names[0] == "lfw/Ann_0/Ann_0_0001.jpg"
    assert len(names) == len(set(names)) == 19
    assert not any("Unused" in name for name in names)
    pairs, search = sets.protocol.verification, sets.protocol.identification
    read = [(names[first], names[second], same) for first, second, same in zip(pairs.first, pairs.second, pairs.same.tolist(), strict=True)]
    assert read[1] == ("lfw/Ann_0/Ann_0_0001.jpg", "lfw/Ann_0/Ann_0_0003.jpg", True)
    assert read[7] == ("lfw/Ann_1/Ann_1_0001.jpg", "lfw/Bob_1/Bob_1_0002.jpg", False)
    assert [names[row] for row in search.probes] == ["probes/Paul/0.png", "probes/Paul/1.png", *(f"probes/Quinn/{row}.png" for row in range(3))]
    assert search.people.tolist() == [0, 0, 1, 1, 1]
    assert [names[row] for row in search.distractors] == [f"distractors/{name}" for name in ("1.jpg", "2.jpg", "deep/4.jpg", "deep/er/3.jpg")]
    assert {sets.test[row]["label"] for row in range(19)} == {NO_LABEL}
    means = torch.stack([sets.test[row]["input"].mean((1, 2)) for row in range(19)]) + 0.01
    assert set(sets.protocol.judge(means)) == {"lfw_accuracy", "lfw_std", "auroc", "eer", "rank1"}


def test_one_part_is_enough_to_test_on(root):
    (root / "probes").rename(root / "elsewhere")
    assert read_faces(root).protocol.identification is None
    (root / "elsewhere").rename(root / "probes")
    (root / "lfw").rename(root / "elsewhere")
    found = read_faces(root)
    assert found.protocol.verification is None
    assert len(found.test) == 9


def test_people_tested_on_are_not_learned_from(root, caplog):
    shot(root / "train" / "ann 1" / "0.jpg", 9)
    shot(root / "train" / "Quinn" / "0.jpg", 9)
    with caplog.at_level(logging.WARNING):
        sets = read_faces(root)
    assert sets.class_names == ["abel", "berta", "cleo"] == training_people(root)
    assert len(sets.train) == 6
    assert re.search(r"2 people in .*/train are tested on as well and not learned from: Quinn, ann 1", caplog.text)


def test_a_probe_without_a_mate_is_left_out_with_a_remark(root, caplog):
    shot(root / "probes" / "Olga" / "0.jpg", 9)
    sets = read_faces(root)
    assert len(sets.test) == 19
    assert "1 people" in caplog.text
    assert "Olga" in caplog.text


def test_unreadable_images_are_skipped_in_training_only(root):
    (root / "train" / "abel" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(BadFileError, match=r"abel/0\.jpg"):
        read_faces(root)
    sets = read_faces(root, on_bad_file="skip")
    assert sets.train.labels.tolist() == [0, 1, 1, 2, 2]
    (root / "distractors" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(BadFileError, match=r"distractors/1\.jpg"):
        read_faces(root, on_bad_file="skip")
    assert len(read_faces(root, on_bad_file=None).test) == 19


def remove(root, *names):
    for name in names:
        (root / name).rename(root / f".{name.replace('/', ' ')}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: remove(root, "train"), "train does not exist: expected root/train/<person>"),
        (lambda root: remove(root, "lfw", "probes"), "holds nothing to test on"),
        (lambda root: remove(root, "lfw/pairs.txt"), "the pairs of .*lfw are missing"),
        (lambda root: (root / "lfw/pairs.txt").rename(root / "pairs.txt") and remove(root, "lfw"), "the images of .*pairs.txt, are missing"),
        (lambda root: remove(root, "lfw/Bob_1/Bob_1_0002.jpg"), r"1 of 10 images .* missing .*\n  Bob_1/Bob_1_0002 \(line 9\)"),
        (lambda root: remove(root, "distractors"), "distractors does not exist: expected images of other people"),
        (lambda root: remove(root, "train/abel", "train/cleo"), "holds 1 people to learn from: expected two"),
        (lambda root: [(root / "train" / old).rename(root / "train" / new) for old, new in (("abel", "bob_0"), ("cleo", "PAUL"))], "beside 2 .*PAUL"),
        (lambda root: (root / "train" / "dora").mkdir(), "no images in .*train/dora"),
        (lambda root: remove(root, "probes/Quinn", "probes/Paul/1.png"), "nobody in .*probes has two images"),
    ],
    ids=["train", "nothing", "pairs", "lfw", "image", "distractors", "one person", "all leaked", "empty", "no mates"],
)
def test_what_is_missing_is_named(root, spoil, message):
    spoil(root)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        read_faces(root)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone is no folder: expected"):
        read_faces(tmp_path / "gone")


# ---- painted


@pytest.fixture(scope="module")
def drawn():
    return drawn_faces(seed=3, size=24, people=6, shots=5, tested=40, distractors=60)


def test_drawn_faces_depend_on_the_seed_alone(drawn):
    again = drawn_faces(seed=3, size=24, people=4, shots=3, tested=40, distractors=60)
    assert torch.equal(again.test.images, drawn.test.images)  # who is learned from does not matter
    assert torch.equal(again.protocol.verification.second, drawn.protocol.verification.second)
    assert not torch.equal(drawn_faces(4, 24, 6, 1, 20, 1).train.images, drawn.train.images[::5])


def test_drawn_sets_give_whole_batches_of_bytes(drawn):
    assert drawn.class_names == [f"person {number:04d}" for number in range(6)]
    batch = drawn.train.__getitems__([7, 2])
    assert batch["input"].dtype == torch.uint8
    assert batch["input"].shape == (2, 3, 24, 24)
    assert (batch["label"].tolist(), batch["index"].tolist()) == ([1, 0], [7, 2])
    assert torch.equal(drawn.train[7]["input"], batch["input"][0])
    assert len(drawn.test) == 40 * 6 + 60 == drawn.protocol.images


def test_nobody_drawn_is_in_two_sets_or_two_folds(drawn):
    looks = torch.cat([_traits(3, role, count)[0] for role, count in (("train", 6), ("test", 40), ("distractors", 60))])
    assert torch.pdist(looks).min() > 0.3
    pairs = drawn.protocol.verification
    who = drawn.protocol.identification.people
    assert torch.equal(pairs.same, who[pairs.first] == who[pairs.second])
    assert torch.bincount(pairs.folds[pairs.same]).tolist() == torch.bincount(pairs.folds[~pairs.same]).tolist() == [60] * 10
    seen = [set(torch.cat([who[pairs.first[pairs.folds == fold]], who[pairs.second[pairs.folds == fold]]]).tolist()) for fold in range(10)]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 40


def test_raw_pixels_tell_drawn_people_apart_but_not_well(drawn):
    pixels = drawn.test.images.float().flatten(1) / 255
    own = pixels[:240].view(40, 6, -1)
    nearest = torch.cdist(own[:, 3:].flatten(0, 1), own[:, :3].mean(1)).argmin(1)
    assert 0.1 < (nearest == torch.arange(40).repeat_interleave(3)).float().mean() < 0.6  # chance 0.025
    found = drawn.protocol.judge(pixels - pixels.mean(0))
    assert 0.55 < found["auroc"] < 0.9
    assert 0.52 < found["lfw_accuracy"] < 0.85
    assert found["rank1"] < found["rank5"] < 0.8


@pytest.mark.parametrize("options", [{"size": 8}, {"people": 1}, {"tested": 19}, {"distractors": 0}, {"shots": 0}], ids=str)
def test_too_little_to_draw_is_refused(options):
    with pytest.raises(ValueError, match="drawn faces need"):
        drawn_faces(0, **options)
