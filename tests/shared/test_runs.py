import hashlib
import json
import os
import resource
import signal

import pytest

from shared.runs import Run, atomic, claim_folder, digest, find_run, new_run, resolve_run, write_json, write_text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a" / "file.txt"
    write_text(file, "old")
    with pytest.raises(OSError, match="absent"), atomic(file) as temporary:
        temporary.write_text((file.parent / "absent").read_text())
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]
    write_text(file, "new")
    assert file.read_text() == "new"


def test_a_folder_is_replaced_whole(tmp_path):
    for content in ("old", "new"):
        with atomic(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]


def test_only_results_are_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "mark.json").touch()
    for name in ("absent", "absent/below", "empty", "earlier"):
        assert claim_folder(tmp_path / name, "mark.json") == tmp_path / name
    (tmp_path / "letters" / "old").mkdir(parents=True)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"letters is not empty and no earlier result \(it has no mark.json\)"):
        claim_folder(tmp_path / "letters", "mark.json")
    with pytest.raises(ValueError, match="file is a file: name a folder"):
        claim_folder(tmp_path / "file", "mark.json")
    with pytest.raises(OSError, match=r"cannot write into .*file"):
        claim_folder(tmp_path / "file" / "below", "mark.json")
    for inside in ("earlier", "earlier/below", "."):
        with pytest.raises(ValueError, match="is, holds or lies in the folder that is read"):
            claim_folder(tmp_path / inside, "mark.json", tmp_path / "earlier")


def test_a_file_does_not_replace_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    with pytest.raises(OSError, match="directory"):
        write_text(tmp_path / "folder", "text")
    assert (tmp_path / "folder" / "kept").is_file()


def test_a_full_disk_is_named(tmp_path):
    old_limit, old_handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old_limit[1]))
    try:
        with pytest.raises(OSError, match=r"no room left to write .*file.bin: free some space"), atomic(tmp_path / "file.bin") as temporary:
            temporary.write_bytes(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_text_can_be_hashed_and_written_down(tmp_path):
    try:
        (tmp_path / "caf\udce9.png").write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes only text for names")
    assert len(digest(tmp_path)) == 16
    write_json(tmp_path / "names.json", ["caf\udce9.png"])
    assert json.loads((tmp_path / "names.json").read_text()) == ["caf\udce9.png"]


def test_digests_tell_files_and_folders_apart(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert digest(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()[:16]
    before = digest(tmp_path)
    (tmp_path / "x").rename(tmp_path / "y")
    assert digest(tmp_path) != before


def stage(run, verb="test", **options):
    return run.stage(verb, ["cli.py", verb], "cpu", 0, **options)


def test_stages_are_recorded_with_how_they_end(run_folder):
    run = Run(run_folder / "paper" / "one")
    with stage(run, "fit", latest=True) as record:
        (run.checkpoints).mkdir()
        (run.checkpoints / "last.ckpt").touch()
        record["summary"] = {"val/loss": 0.5}
        assert run.manifest()["stages"][0]["status"] == "running"
    with pytest.raises(ValueError, match="broken"), stage(run):
        raise ValueError("broken")
    with pytest.raises(KeyboardInterrupt), stage(run, "predict"):
        raise KeyboardInterrupt
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert [(s["verb"], s["status"]) for s in manifest["stages"]] == [("fit", "done"), ("test", "failed"), ("predict", "interrupted")]
    assert manifest["stages"][0]["outputs"] == ["checkpoints/last.ckpt"]
    assert manifest["stages"][0]["summary"] == {"val/loss": 0.5}
    assert {"torch", "python", "lightning"} <= manifest["versions"].keys()
    assert find_run("paper").path == run.path


def test_a_done_stage_counts_while_its_outputs_are_there(run_folder):
    run = Run(run_folder / "paper" / "one")
    with stage(run) as record:
        record["fingerprint"] = "f"
        write_json(run.artefacts("test") / "table.json", [])
    assert run.is_done("test", "f")
    assert not run.is_done("test", "g")
    assert not run.is_done("fit", "f")
    (run.artefacts("test") / "table.json").unlink()
    assert not run.is_done("test", "f")


def test_only_the_last_time_counts_for_what_came_after_overwrote_it(run_folder):
    run = Run(run_folder / "paper" / "one")
    for fingerprint in ("f", "g"):
        with stage(run) as record:
            record["fingerprint"] = fingerprint
    assert (run.is_done("test", "f"), run.is_done("test", "g")) == (False, True)
    with pytest.raises(OSError, match="full"), stage(run):
        raise OSError("the disk is full")
    assert not run.is_done("test", "g")


def test_runs_are_found_by_name_and_by_path(run_folder):
    first = new_run("paper", stamp="20260101-000000")
    with stage(first, "fit", latest=True):
        pass
    assert new_run("paper", stamp="20260101-000000").name == "20260101-000000-2"
    assert resolve_run("paper") == resolve_run("paper/20260101-000000") == resolve_run(str(first.path)) == first.path
    with pytest.raises(FileNotFoundError, match="no run 'moon'"):
        resolve_run("moon")
    with pytest.raises(FileNotFoundError, match=r"no run 'x' in .*; its runs: 20260101-000000"):
        find_run("paper", "x")


@pytest.mark.parametrize("name", ["", "latest", "a/b", "..", ".hidden", "a b"])
def test_names_that_are_no_folder_names(name):
    from shared.runs import check_run_name

    with pytest.raises(ValueError, match="will not do"):
        check_run_name(name)


def test_missing_checkpoints_are_listed(run_folder):
    run = Run(run_folder / "paper" / "one")
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / "last.ckpt").touch()
    assert run.checkpoint("last").name == "last.ckpt"
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*best.ckpt: the run paper/one has last.ckpt"):
        run.checkpoint("best")


def test_files_are_for_whom_the_umask_lets_or_for_their_owner_alone(tmp_path):
    before = os.umask(0o022)
    try:
        for private in (False, True):
            with atomic(tmp_path / f"table-{private}.csv", private) as file:
                file.touch(mode=0o600 if not private else 0o666)
        with atomic(tmp_path / "folder") as folder:
            folder.mkdir()
            (folder / "weights.safetensors").touch(mode=0o600)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.*")}
    assert modes == {"table-False.csv": 0o644, "weights.safetensors": 0o644, "table-True.csv": 0o600}
