"""The table and the lines that a test ends with."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from helpers.party_sets import write_parties

from projects.vafl.cli import main
from projects.vafl.data import VerticalRecords
from projects.vafl.module import VerticalFederation
from projects.vafl.predicting import HEAD, draw_missing, missing_rows, quality_line, with_all_nets
from shared.checkpoints import SafeCheckpointIO
from shared.data.files import BadFileError

WITHOUT = {"without_0_accuracy": 0.7, "without_0_auroc": 0.8, "without_1_accuracy": 0.91, "without_1_auroc": 0.95}
FOUND = {"accuracy": 0.9, "auroc": 0.95, "loss": 0.3} | WITHOUT


def test_a_row_says_what_is_lost_without_a_client():
    first, second = missing_rows(FOUND)
    assert first == {"client": 0, "accuracy": 0.7, "accuracy_lost": pytest.approx(0.2), "auroc": 0.8, "auroc_lost": pytest.approx(0.15)}
    assert (second["client"], second["accuracy_lost"]) == (1, pytest.approx(-0.01))
    axes = draw_missing([first, second], FOUND).axes
    assert [[bar.get_height() for bar in axis.patches] for axis in axes] == [pytest.approx([0.2, -0.01]), pytest.approx([0.15, 0.0])]


def test_more_than_two_classes_have_no_auroc():
    found = {name: value for name, value in FOUND.items() if "auroc" not in name}
    assert list(missing_rows(found)[0]) == ["client", "accuracy", "accuracy_lost"]
    assert quality_line("all clients", found, "") == "all clients: accuracy 0.9000, loss 0.3000"
    assert quality_line("noisy", {"noisy_accuracy": 0.5, "noisy_auroc": 0.6}, "noisy_") == "noisy: accuracy 0.5000, AUROC 0.6000"


QUIET = ["--trainer.enable_model_summary", "false", "--trainer.enable_progress_bar", "false"]


def rewritten(source, target, change):
    """Write a CSV file anew as `change` makes its lines."""
    target.parent.mkdir(exist_ok=True)
    lines = list(csv.reader(source.read_text(encoding="utf-8-sig").splitlines()))
    target.write_text("\n".join(map(",".join, change(lines))) + "\n", encoding="utf-8")


def predicted(*args):
    done = main(["predict", *args, *QUIET])
    return json.loads((done.run.artefacts("predict") / "predictions.json").read_text())


def test_new_records_of_parties_are_classified_without_labels_whatever_the_order_of_their_columns(run_folder, tmp_path, capsys):
    known, new = tmp_path / "known", tmp_path / "neue Fälle"
    write_parties(known)
    main(["fit", "--data.source", "parties", "--data.root", str(known), "--data.batch_size", "4", "--model.seconds", "2", *QUIET])
    tests = {row["record"]: row for row in predicted()}

    def turned(lines):
        """Return the test records alone, their columns and lines the other way round."""
        return [line[::-1] for line in (lines[0], *(line for line in lines[:0:-1] if line[0] in tests))]

    for file in sorted(known.glob("party-*.csv")):
        rewritten(file, new / file.name, turned)
    rows = {row["record"]: row for row in predicted(str(new))}
    assert "label" not in next(iter(rows.values()))
    assert {name: row["predicted"] for name, row in rows.items()} == {name: row["predicted"] for name, row in tests.items()}
    assert all(row["probability"] == pytest.approx(tests[name]["probability"], abs=1e-5) for name, row in rows.items())

    (new / "party-0.csv").unlink()
    capsys.readouterr()
    fewer = {row["record"]: row for row in predicted(str(new))}
    assert fewer.keys() == rows.keys()
    assert fewer != rows
    assert "without party 0" in capsys.readouterr().out


def test_new_lines_of_a_table_are_scaled_as_its_training_records_were(tmp_path):
    chance = torch.Generator().manual_seed(0)
    lines = [[f"{value:.3f}" for value in torch.randn(3, generator=chance).tolist()] + ["ja" if row % 2 else "nein"] for row in range(20)]
    file, new = tmp_path / "alle.csv", tmp_path / "neu.csv"
    file.write_text("\n".join(map(",".join, [["a", "b", "c", "klasse"], *lines])))
    new.write_text("\n".join(map(",".join, [["c", "x", "a", "b"], *([row[2], "text", row[0], row[1]] for row in lines)])))
    data = VerticalRecords("table", str(file), batch_size=4)
    data.setup()
    blocks, names = data.unseen(new)
    places = [names.index(name) for name in data.test.ids]
    assert len(places) == len(data.test)
    for block, ours in zip(data.test.blocks, blocks, strict=True):
        torch.testing.assert_close(ours[places], block)
    rewritten(new, tmp_path / "less.csv", lambda rows: [row[:3] for row in rows])
    with pytest.raises(BadFileError, match="lacks columns of the training records, 'b'"):
        data.unseen(tmp_path / "less.csv")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        data.unseen(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="not with digits"):
        VerticalRecords("digits").unseen(new)


def test_the_checkpoint_of_a_server_is_judged_with_the_clients_nets_beside_it_only(tmp_path):
    trained, module = (VerticalFederation([[3], [2]], 2, bottom="mlp", head="concat", seed=seed) for seed in (1, 2))
    other = [net.state_dict() for net in VerticalFederation([[3], [2]], 2, bottom="mlp", head="concat", seed=3).model.bottoms]
    file = tmp_path / "last.ckpt"
    SafeCheckpointIO().save_checkpoint({"state_dict": trained.state_dict(), "federation": {"only": HEAD}}, file)
    SafeCheckpointIO().save_checkpoint({"client": {"net": other[0]}}, tmp_path / "client-0.ckpt")
    with pytest.raises(ValueError, match=r"holds the server's head only.*copy client-1.ckpt from the clients' runs"):
        with_all_nets(module, str(file))
    SafeCheckpointIO().save_checkpoint({"client": {"net": other[1]}}, tmp_path / "client-1.ckpt")
    whole = with_all_nets(module, str(file))
    for net, expected in zip(whole.model.bottoms, other, strict=True):
        torch.testing.assert_close(dict(net.state_dict()), dict(expected))
    torch.testing.assert_close(dict(whole.model.head.state_dict()), dict(trained.model.head.state_dict()))
    SafeCheckpointIO().save_checkpoint({"state_dict": trained.state_dict(), "federation": {"only": "the net of client 1"}}, file)
    with pytest.raises(ValueError, match=r"holds the net of client 1 only.*go to the server's run"):
        with_all_nets(module, str(file))
