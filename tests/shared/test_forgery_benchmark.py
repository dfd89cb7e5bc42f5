"""DeepfakeBench's lists, frames and stores in miniature, and the messages for what is missing or does not fit."""

import json
import logging

import pytest
import torch
from helpers.forgery_layouts import (
    loaded,
    seen,
    write_benchmark,
)

from shared.data.files import BadFileError
from shared.forgery.benchmark_json import benchmark, find_places


def test_deepfakebench(tmp_path, caplog):
    root = write_benchmark(tmp_path)
    with caplog.at_level(logging.WARNING):
        data = loaded(root, source="deepfakebench", train_frames=4, test_frames=4, test_sets=["FaceForensics++", "Celeb-DF-v2", "DFDC"])
    assert data.train_set.frames.kinds == ("Deepfakes", "NeuralTextures")
    assert [len(part) for part in data.test_sets] == [6 * 4, 2 * 4, 4 * 4]
    assert data.test_sets[1].__getitems__([0, 1, 2, 3])["image"][:, 0, 0, 0].tolist() == [0, 3, 6, 9], "not the first four"
    assert "Celeb-DF-v2: 2 of 6 videos in train are also in a held-out split" in caplog.text
    assert "Celeb-DF-v2: 2 of 2 videos in val" in caplog.text
    assert "the val split of DFDC_Real is malformed" in caplog.text
    part = benchmark(find_places(root), "FaceForensics++", "c40")["train"][0]
    assert all("/c40/" in path for path in part.frames)


def test_deepfakebench_trained_on_celeb_df(tmp_path, caplog):
    root = write_benchmark(tmp_path)
    data = loaded(root, source="deepfakebench", train_set="Celeb-DF-v2", batch_size=2)
    learnt = {name for _, name in seen(data.train_set.frames)} | {name for _, name in seen(data.val_set)}
    assert learnt == {"id5_0000", "id6_0000", "id5_id7_0000", "id6_id8_0000"}
    people = [{person for video in part.videos for person in video.identities} for part in (data.train_set.frames, data.val_set)]
    assert not people[0] & people[1]


def test_deepfakebench_paths(tmp_path):
    root = write_benchmark(tmp_path, prefix="/elsewhere/faces/")
    with pytest.raises(FileNotFoundError, match="frames are missing"):
        loaded(root, source="deepfakebench")
    assert len(loaded(root, source="deepfakebench", rewrite=("/elsewhere/faces/", "")).test_sets[0]) == 6 * 12
    with pytest.raises(ValueError, match="does not begin with '/nowhere/'"):
        loaded(root, source="deepfakebench", rewrite=("/nowhere/", ""))


def test_deepfakebench_s_oddities(tmp_path, caplog):
    """FaceShifter goes by FF-FH, paths may begin with ./datasets, and DFDC's val is its train where there was no test set."""
    root = write_benchmark(tmp_path, prefix=".\\datasets\\")
    content = json.loads((root / "dataset_json" / "FaceForensics++.json").read_text())["FaceForensics++"]
    (root / "dataset_json" / "FaceShifter.json").write_text(json.dumps({"FaceShifter": {"FF-real": content["FF-real"], "FF-FH": content["FF-DF"]}}))
    assert loaded(root, source="deepfakebench", test_sets=["FaceShifter:FaceShifter"]).test_sets[0].kinds == ("FaceShifter",)
    content = json.loads((root / "dataset_json" / "DFDC.json").read_text())["DFDC"]
    for splits in content.values():
        splits |= {"train": splits["test"], "val": splits["test"], "test": {}}
    (root / "dataset_json" / "DFDC.json").write_text(json.dumps({"DFDC": content}))
    parts = benchmark(find_places(root), "DFDC")
    assert {split: len(clips) for split, clips in parts.items()} == {"train": 4}
    assert "DFDC: val holds all videos of train, and is left out" in caplog.text


def test_deepfakebench_with_parts_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no dataset_json in"):
        loaded(tmp_path, source="deepfakebench")
    root = write_benchmark(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no list .*UADFV.json: there are Celeb-DF-v2, DFDC, FaceForensics"):
        loaded(root, source="deepfakebench", test_sets=["UADFV"])
    with pytest.raises(ValueError, match="no compression 'raw' for FF-real: set it to one of c23, c40"):
        loaded(root, source="deepfakebench", compression="raw")
    path = root / "dataset_json" / "DFDC.json"
    for content, message in (
        ({"DFDC": {"unknown": {}}}, "the label 'unknown' is not known"),
        ({"DFDC": {"DFDC_Real": {"test": [1]}}}, "DFDC_Real, test is not"),
        ([1], "is not like"),
        ({"DFDC": {"DFDC_Real": {"test": {"a": {"frames": ["datasets/rgb/../../secret.png"]}}}}}, "leads out of its folder"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(BadFileError, match=message):
            loaded(root, source="deepfakebench", test_sets=["DFDC"])
    path.write_text("{")
    with pytest.raises(BadFileError, match="is not JSON"):
        loaded(root, source="deepfakebench", test_sets=["DFDC"])


def test_deepfakebench_in_a_store(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    root = write_benchmark(tmp_path)
    (root / "lmdb").mkdir()
    with lmdb.open(str(root / "lmdb" / "FaceForensics++_lmdb"), map_size=2**24) as store, store.begin(write=True) as writing:
        for path in sorted((root / "rgb" / "FaceForensics++").rglob("*.png")):
            writing.put(str(path.relative_to(root / "rgb")).replace("/", "\\").encode(), path.read_bytes())
    data = loaded(root, source="deepfakebench", in_store=True)
    in_files = loaded(root, source="deepfakebench")
    assert torch.equal(data.test_sets[0].__getitems__([0, 5, 40])["image"], in_files.test_sets[0].__getitems__([0, 5, 40])["image"])
    loaders = (one.train_dataloader() for one in (data, loaded(root, source="deepfakebench", in_store=True, num_workers=1)))
    batches = [next(iter(loader)) for loader in loaders]
    assert torch.equal(batches[0]["image"], batches[1]["image"]), "also in another process"
    with pytest.raises(FileNotFoundError, match=r"no store .*DFDC_lmdb"):
        loaded(root, source="deepfakebench", in_store=True, test_sets=["DFDC"])


def test_deepfakebench_s_own_stores(tmp_path):
    """Its script joins the set's name by a backslash, and keeps all that was made of FaceForensics++ in one store."""
    lmdb = pytest.importorskip("lmdb")
    root = write_benchmark(tmp_path, prefix="")
    content = json.loads((root / "dataset_json" / "FaceForensics++.json").read_text())["FaceForensics++"]
    (root / "dataset_json" / "FF-DF.json").write_text(json.dumps({"FF-DF": {label: content[label] for label in ("FF-real", "FF-DF")}}))
    (root / "lmdb").mkdir()
    frames = root / "rgb" / "FaceForensics++"
    with lmdb.open(str(root / "lmdb" / "FaceForensics++_lmdb"), map_size=2**24) as store, store.begin(write=True) as writing:
        for path in sorted(frames.rglob("*.png")):
            writing.put(f"FaceForensics++\\{path.relative_to(frames)}".encode(), path.read_bytes())
    data = loaded(root, source="deepfakebench", in_store=True, test_sets=["FF-DF"])
    in_files = loaded(root, source="deepfakebench", test_sets=["FF-DF"])
    assert torch.equal(data.test_sets[0].__getitems__([0, 5, 40])["image"], in_files.test_sets[0].__getitems__([0, 5, 40])["image"])


@pytest.mark.parametrize("content", [b"", b"no store" * 1000])
def test_damaged_stores_are_named(tmp_path, content):
    path = write_benchmark(tmp_path, in_files=False) / "lmdb" / "FaceForensics++_lmdb" / "data.mdb"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(BadFileError, match=r"cannot use .*FaceForensics\+\+_lmdb.data\.mdb: .*make the store anew"):
        loaded(tmp_path, source="deepfakebench", in_store=True)
