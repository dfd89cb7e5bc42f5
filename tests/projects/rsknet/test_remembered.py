import hashlib

import pytest
import torch

from projects.rsknet.module import SpeakerVerification
from projects.rsknet.remembered import digests, known_to, refuse_known, with_network


def test_speakers_are_remembered_by_digests_of_their_names():
    assert digests(["id10001", "Zoë"]) == [hashlib.blake2b(name.encode(), digest_size=8).hexdigest() for name in ("id10001", "Zoë")]


def test_speakers_who_were_learnt_from_are_refused_by_name():
    known = digests(["anna", "berta"])
    refuse_known(known, ["carl", "dora"], "speakers held out")
    with pytest.raises(
        ValueError, match=r"trained on 1 of the speakers held out, such as berta, .* data.seed and data.held_speakers of its training"
    ):
        refuse_known(known, ["carl", "berta", "berta"], "speakers held out")


def test_weights_are_not_used_on_other_features_than_they_were_trained_on(tmp_path):
    options = {"options": {"layers": [1], "widths": [4], "embedding": 8}}
    module, file = SpeakerVerification(**options), tmp_path / "net.ckpt"
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, file)
    with_network(SpeakerVerification(**options, vad=True, longest=20.0), str(file))
    with pytest.raises(ValueError, match=r"trained with model.rate 8000, not 16000, model.frame_shift 12.5, not 10.0: use it with the config.yaml"):
        with_network(SpeakerVerification(**options, rate=16000, frame_shift=10.0), str(file))


def test_a_checkpoint_that_does_not_say_is_taken_to_know_nobody(tmp_path):
    torch.save({"state_dict": {}, "speakers": ["0" * 16]}, tmp_path / "one.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert (known_to(str(tmp_path / "one.ckpt")), known_to(str(tmp_path / "other.ckpt"))) == (["0" * 16], [])
