"""Who learns what in a search, in what order, and what is called unseen afterwards."""

import lightning as L
import numpy as np
import pytest
import torch
from helpers.forgery_layouts import video, write_benchmark, write_celeb_list, write_folder, write_preview, write_reference, write_table
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback

from projects.forgery_nas.data import SearchData, TurnSampler, apart
from shared.callbacks import ResumePoint
from shared.forgery.faces import faces
from shared.quiet import quiet_trainer, silence


def searching(**options):
    data = SearchData(**({"length": 48, "test_length": 8, "size": 16, "batch_size": 4, "video_frames": 2} | options))
    data.is_search = True
    data.prepare_data()
    return data


def people(sets):
    return {person for one in sets for video in one.frames.videos for person in video.identities}


def batches(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def keys(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return list(loader.sampler)


@pytest.mark.parametrize("options", [{}, {"architecture_sets": ["self_blend"]}, {"architecture_sets": ["self_blend", "reenact"], "rotate": True}])
def test_nobody_is_in_both_roles_nor_in_validation_and_tests(options):
    data = searching(**options)
    roles = data.roles
    assert not people(roles.weights) & people(roles.architecture)
    held_out = {person for frames in (data.val_set, *data.test_sets) for video in frames.videos for person in video.identities}
    assert not (people(roles.weights) | people(roles.architecture)) & held_out
    assert all(set(part.frames.labels.tolist()) == {0, 1} for role in roles for part in role)
    loaders = data.train_dataloader()
    assert list(loaders) == ["train", "val"]
    assert len(loaders["train"]) == len(loaders["val"]) == len(roles.weights[0]) // 4


def test_the_roles_have_the_sets_that_are_named():
    kinds = lambda role: [part.frames.kinds for part in role]  # noqa: E731
    assert [kinds(role) for role in searching().roles] == [[("swap",)], [("swap",)]]
    assert [kinds(role) for role in searching(architecture_sets=[]).roles] == [[("swap",)], [("swap",)]]
    cross = searching(architecture_sets=["self_blend", "reenact"])
    assert [kinds(role) for role in cross.roles] == [[("swap",)], [("self_blend",), ("reenact",)]]
    turns = searching(architecture_sets=["self_blend", "reenact"], rotate=True).roles
    assert kinds(turns.weights) == [("swap",), ("self_blend",), ("reenact",)]
    assert kinds(turns.architecture) == [("self_blend",), ("reenact",), ("swap",)], "what the weights learn next chooses now"
    blended = searching(manipulations=[], self_blended=True).roles
    assert all(len(part) == 2 * len(part.frames) for role in blended for part in role), "a fake of each real frame"


def test_sets_without_common_people_are_whole():
    first, second = faces("train", 24, size=16, video_frames=1), faces("test", 4, size=16)
    parts = apart([first], [second], seed=0)
    assert parts[0][0] is first
    assert parts[1][0] is second
    halves = apart([first, second], [first], seed=0)
    assert torch.equal(halves[0][1].frames, second.frames), "only those whom both roles see are divided"
    assert 8 <= len(halves[0][0]) + len(halves[1][0]) <= 24


def test_every_frame_has_its_turn_and_a_smaller_set_is_gone_through_again():
    data = searching(architecture_sets=["self_blend"], rotate=True)
    roles, loaders = data.roles, data.train_dataloader()
    length = len(roles.weights[0])
    for role, loader in zip(roles, loaders.values(), strict=True):
        for number, part in enumerate(role):
            dealt = [keys(loader, epoch) for epoch in range(number, 8, 2)]
            assert all(len(one) == length and {turn for turn, _ in one} == {number} for one in dealt)
            indices = [index for one in dealt for _, index in one]
            whole = len(indices) // len(part) * len(part)
            assert sorted(indices[:whole]) == list(range(whole)), "in every pass each frame once, in an epoch of its own for the augmentation"
    batch = batches(loaders["val"], 1)[0]
    same = roles.architecture[1].__getitems__([index for _, index in keys(loaders["val"], 1)[:4]])
    assert all(torch.equal(batch[name], same[name]) for name in same)


def test_readers_in_other_processes_see_the_same_turns():
    options = {"architecture_sets": ["self_blend"], "rotate": True, "augmentation": "vflip"}
    loaders = [searching(**options, num_workers=count).train_dataloader()["val"] for count in (0, 1)]
    for epoch in (0, 1, 3):
        for one, other in zip(*(batches(loader, epoch) for loader in loaders), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_processes_share_an_epoch():
    sampler = searching().train_dataloader()["val"].sampler
    whole = list(sampler)
    halves = []
    for rank in (0, 1):
        part = TurnSampler(sampler.dataset, sampler.seed)
        part.num_replicas, part.rank, part.total_size = 2, rank, len(whole) // 2 * 2
        halves.append(list(part))
    assert [key for pair in zip(*halves, strict=True) for key in pair] == whole[: len(whole) // 2 * 2]


class Recorder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def training_step(self, batch, batch_idx):
        self.seen.append([batch[name]["index"].tolist() for name in ("train", "val")])
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches == 3 * self.trainer.num_training_batches, "asking for it makes Lightning forget positions"
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Saver(Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("broken", "options"), [(3, {}), (8, {}), (7, {"architecture_sets": ["self_blend"], "rotate": True})])
def test_a_broken_search_goes_on_with_the_next_batch(tmp_path, broken, options):
    def run(callbacks, path=None):
        module, callbacks = Recorder(), [ResumePoint(tmp_path / "last", 100), *callbacks]
        with silence():
            quiet_trainer(3, accelerator="cpu", limit_val_batches=0, callbacks=callbacks).fit(
                module, datamodule=searching(length=40, **options), ckpt_path=path
            )
        return module.seen

    whole = run([Saver(tmp_path / "broken.ckpt", broken)])
    assert run([], tmp_path / "broken.ckpt") == whole[broken:]


def test_training_what_was_found_is_as_without_a_search():
    data = SearchData(length=48, test_length=8, size=16, batch_size=4, architecture_sets=["self_blend"])
    data.setup()
    assert sorted(torch.cat([batch["index"] for batch in data.train_dataloader()]).tolist()) == list(range(48))
    assert data.train_set.frames.kinds == ("swap",)


def test_sets_that_the_search_saw_are_called_so(caplog):
    def named(**options):
        caplog.clear()
        data = SearchData(**({"length": 8, "test_length": 4, "size": 16, "video_frames": 2} | options))
        data.setup()
        return data.test_names

    assert named() == ["swap", "reenact", "self_blend"]
    assert not caplog.text
    assert named(architecture_sets=["self_blend"]) == ["swap", "reenact", "self_blend (searched)"]
    assert "the search saw self_blend: tests call them (searched), and they tell nothing about unseen sets; unseen: reenact" in caplog.text
    assert named(searched=["swap", "reenact"], test_sets=["reenact"]) == ["reenact (searched)"]
    assert "no test set is unseen: name one in data.test_sets" in caplog.text
    assert named(architecture_sets=["self_blend"], searched=[]) == ["swap", "reenact", "self_blend"]
    assert named(architecture_sets=["self_blend"], manipulations=["swap", "self_blend"])[2] == "self_blend", "it is learnt, too"


def test_a_search_across_benchmark_sets(tmp_path, caplog):
    options = {"source": "deepfakebench", "root": str(write_benchmark(tmp_path)), "train_frames": 2, "test_frames": 2, "batch_size": 2}
    names = {"architecture_sets": ["Celeb-DF-v2"], "test_sets": ["FaceForensics++", "Celeb-DF-v2", "DFDC"]}
    data = searching(**options, **names)
    roles = data.roles
    assert {video.dataset for video in roles.weights[0].frames.videos} == {"FaceForensics++"}
    assert {video.name for video in roles.architecture[0].frames.videos} == {"id5_0000", "id6_0000", "id5_id7_0000", "id6_id8_0000"}, "no test videos"
    assert data.test_names == ["FaceForensics++", "Celeb-DF-v2 (searched)", "DFDC"]
    assert [video.dataset for video in data.train_set.frames.videos] == [video.dataset for video in roles.weights[0].frames.videos]
    within = searching(**options, manipulations=["Deepfakes"], architecture_sets=["FaceForensics++:NeuralTextures"])
    assert not people(within.roles.weights) & people(within.roles.architecture), "manipulations of one set share their people"
    assert within.roles.architecture[0].frames.kinds == ("NeuralTextures",)
    assert within.train_dataloader()["val"].dataset.__getitems__([(0, 0), (0, 1)])["image"].shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"DFDC in .* has no videos to learn from, only to test on: leave it out of data\.architecture_sets"):
        searching(**options, architecture_sets=["DFDC"])


def test_a_search_across_the_authors_sets(tmp_path, caplog):
    root = write_reference(tmp_path)
    write_celeb_list(root)
    write_preview(root)
    options = {"source": "reference", "root": str(root), "train_frames": 2, "test_frames": 2, "size": 64, "batch_size": 4, "augmentation": "vflip"}
    names = {"architecture_sets": ["CDF"], "test_sets": ["FaceForensics++", "CDF", "DFDCP"]}
    with pytest.raises(ValueError, match=r"CDF in .* has no real videos but held out ones to choose by: leave it out of architecture_sets"):
        searching(**options, **names)
    assert "show people or source videos that are held out: CDF/id0" in caplog.text, "id0 is in the test list, and so in none of the roles"
    video(root / "CDF" / "Celeb-real" / "id4_0001")
    data = searching(**options, **names)
    [learnt], [chosen] = data.roles
    assert {one.dataset for one in learnt.frames.videos} == {"FaceForensics++"}
    assert {one.name for one in chosen.frames.videos} == {"Celeb-real/id4_0001", "Celeb-synthesis/id2_id3_0009"}
    assert data.test_names == ["FaceForensics++", "CDF (searched)", "DFDCP"], "the third set is for claims"
    assert {name: batch["image"].shape for name, loader in data.train_dataloader().items() for batch in batches(loader)[:1]} == {
        "train": (4, 3, 64, 64),
        "val": (4, 3, 64, 64),
    }
    data = SearchData(**options, **names)
    data.setup()
    assert data.train_set.frames.videos == learnt.frames.videos, "training has the whole of the training split"
    assert all(images.labels.unique().tolist() == [0, 1] for images in data.test_sets)


def test_a_search_across_lists_of_frames(tmp_path):
    for number, name in enumerate(("first", "second", "third")):
        for split in ("train", "val", "test"):
            folders = [(video(tmp_path / name / split / f"{label} {shot}", 4, 50 * number), label) for label in (0, 1) for shot in range(4)]
            rows = [(str(path.relative_to(tmp_path / name)), str(label)) for folder, label in folders for path in sorted(folder.iterdir())]
            np.save(tmp_path / name / f"{split}.npy", np.array(rows))
    data = searching(source="npy", root=str(tmp_path), train_set="first", architecture_sets=["second"], test_sets=["second", "third"], train_frames=2)
    assert [{one.dataset for one in part.frames.videos} for role in data.roles for part in role] == [{"first"}, {"second"}]
    assert data.test_names == ["second (searched)", "third"]
    within = searching(source="npy", root=str(tmp_path), train_set="first", train_frames=2)
    parts = [{one.name for one in role[0].frames.videos} for role in within.roles]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 8, "whole videos"


def test_classes_that_choose_are_balanced(tmp_path):
    root = write_reference(tmp_path)
    write_celeb_list(root)
    for number in range(5, 9):
        video(root / "CDF" / "Celeb-synthesis" / f"id{number}_id{number + 10}_0001", 12)
    video(root / "CDF" / "Celeb-real" / "id4_0001", 12)
    options = {"source": "reference", "root": str(root), "architecture_sets": ["CDF"], "train_frames": 2}
    assert searching(**options).roles.architecture[0].frames.labels.bincount().tolist() == [10, 10], "one real video, five fakes"
    assert searching(**options, real_frames=3).roles.architecture[0].frames.labels.bincount().tolist() == [3, 10]


def test_people_are_divided_where_a_list_names_them(tmp_path):
    table = write_table(tmp_path)
    data = searching(source="csv", root=str(table), train_frames=2)
    assert sorted(len(people(role)) for role in data.roles) == [1, 2]
    lines = table.read_text(encoding="utf-8-sig").replace("persontrain0", "one").replace("persontrain1", "one").replace("persontrain2", "one")
    table.write_text(lines, encoding="utf-8")
    with pytest.raises(ValueError, match="videos show the same people and cannot be divided: add videos"):
        searching(source="csv", root=str(table), train_frames=2)


def test_manipulations_of_a_folder_are_sets_too(tmp_path):
    data = searching(
        source="folder", root=str(write_folder(tmp_path)), manipulations=["mine"], architecture_sets=["other"], train_frames=2, batch_size=2
    )
    [learnt], [chosen] = data.roles
    assert (learnt.frames.kinds, chosen.frames.kinds) == (("mine",), ("other",))
    assert not {one.key for one in learnt.frames.videos} & {one.key for one in chosen.frames.videos}, "real videos are divided"


def test_videos_of_unknown_people_are_divided_by_video(tmp_path):
    data = searching(source="folder", root=str(write_folder(tmp_path)), train_frames=2, batch_size=2)
    parts = [{video.key for video in role[0].frames.videos} for role in data.roles]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotate": True}, "name them in data.architecture_sets"),
        ({"architecture_sets": ["swap", "swap"]}, "names a set twice"),
        ({"architecture_sets": ["morph"]}, "no manipulation morph"),
        ({"length": 2}, "faces lacks a class: take more videos"),
        ({"batch_size": 32}, "32 is larger than the training set of 20 samples"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        searching(**options).train_dataloader()


def test_options_of_all_data_can_be_given_on_the_command_line():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SearchData, "data")
    given = parser.parse_args(["--data.architecture_sets=[self_blend]", "--data.length=8", "--data.size=16"])
    data = parser.instantiate(given).data
    assert (data.length, data.architecture_sets) == (8, ["self_blend"])
    assert data.hparams.length == 8
