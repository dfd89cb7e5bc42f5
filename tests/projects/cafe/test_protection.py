from __future__ import annotations

import re

import pytest
import torch

from projects.cafe.defences import FakeGradients, GaussianNoise, Pruning
from projects.cafe.privacy import PrivateGradients, account
from projects.cafe.protection import KINDS, Protection

GIVEN = {
    "fake": FakeGradients(seed=7),
    "fake:": FakeGradients(seed=7),
    "fake:mode=absclip,scope=tensor,zeros=keep": FakeGradients("absclip", scope="tensor", zeros="keep", seed=7),
    "fake:sigma=2,candidates=3,tau=1e9,redraws=0,seed=1": FakeGradients(sigma=2.0, candidates=3, tau=1e9, redraws=0, seed=1),
    "fake:sigma=null": FakeGradients(seed=7),
    "noise:std=1e-3": GaussianNoise(1e-3, 7),
    " noise: std = 0.5 , seed = 2 ": GaussianNoise(0.5, 2),
    "prune:keep=0.1": Pruning(0.1),
    "prune:keep=1,scope=tensor,": Pruning(1.0, "tensor"),
    "private:clip=1,noise_multiplier=2.5": PrivateGradients(1.0, 2.5, 7),
}
WRONG = {
    "": "unknown defence '': choose none, or one of fake:mode=pair,.*, noise:std=.*, prune:keep=.*, private:clip=",
    "blur": "unknown defence 'blur': choose none, or one of fake",
    "none:std=1": "unknown defence 'none:std=1'",
    "Fake": "unknown defence 'Fake'",
    "noise": r"the defence 'noise' lacks std: write noise:std=\.\.\.,seed=0",
    "private:clip=1": r"lacks noise_multiplier: write private:clip=\.\.\.,noise_multiplier=\.\.\.,seed=0",
    "prune:scope=party": r"lacks keep: write prune:keep=\.\.\.,scope=party",
    "noise:sigma=1": "'sigma=1' is no setting of the defence 'noise:sigma=1': write noise:std",
    "noise:1e-3": "'1e-3' is no setting of the defence 'noise:1e-3': write noise:std",
    "prune:keep=0.1,seed=1": "'seed=1' is no setting of the defence",
    "noise:std=1,std=2": "the defence 'noise:std=1,std=2' says std twice: leave one out",
    "noise:std=much": "std of the defence 'noise:std=much' must be a number, got 'much'",
    "noise:std=": "std of the defence 'noise:std=' must be a number, got ''",
    "noise:std=nan": "must be a number, got 'nan'",
    "private:clip=inf,noise_multiplier=1": "must be a number, got 'inf'",
    "noise:std=null": "must be a number, got 'null'",
    "fake:candidates=2.5": "candidates of the defence 'fake:candidates=2.5' must be a whole number, got '2.5'",
    "fake:seed=true": "must be a whole number, got 'true'",
    "fake:mode=[": r"the defence 'fake:mode=\[' cannot be: mode must be one of pair, clip, absclip, got '\['",
    "fake:scope=no": "cannot be: scope must be one of party, tensor, got 'no'",
    "noise:std=-1": "the defence 'noise:std=-1' cannot be: std must be 0 or more, got -1.0",
    "prune:keep=0": "cannot be: keep must be above 0 and at most 1, got 0.0",
    "private:clip=0,noise_multiplier=1": "cannot be: clip must be positive",
}


@pytest.mark.parametrize("text", GIVEN)
def test_a_defence_is_read_with_its_settings(text):
    found = Protection.parse(text, seed=7)
    assert found == Protection(text.strip(), GIVEN[text])
    assert type(found.rule) is KINDS[text.strip().partition(":")[0]]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_defence_is_refused_with_what_to_write(text):
    with pytest.raises(ValueError, match=WRONG[text]):
        Protection.parse(text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_usage_in_messages_is_itself_a_defence(kind):
    with pytest.raises(ValueError, match="is no setting") as caught:
        Protection.parse(f"{kind}:nothing=1")
    usage = re.sub(r"=\.\.\.", "=0.5", str(caught.value).partition(": write ")[2]).replace("None", "null")
    assert type(Protection.parse(usage).rule) is KINDS[kind]


def test_none_leaves_gradients_as_they_are_and_promises_nothing():
    found = Protection.parse(" none ")
    assert found == Protection()
    assert (found.defence, found.local, found.rule) == (None, None, None)
    assert found.guarantee(torch.ones(3, 2, dtype=torch.bool), 4) is None


@pytest.mark.parametrize("text", ["fake", "noise:std=0.5", "prune:keep=0.5"])
def test_rules_for_gradients_that_are_there_change_them_and_promise_nothing(text):
    found = Protection.parse(text)
    assert found.local is None
    assert found.defence is found.rule
    gradients = {"weight": torch.arange(1.0, 7).reshape(2, 3), "bias": torch.tensor([-1.0, 0.5])}
    uploaded = found.defence(gradients, 0, 0)
    assert {name: value.shape for name, value in uploaded.items()} == {name: value.shape for name, value in gradients.items()}
    assert not torch.equal(uploaded["weight"], gradients["weight"])
    assert found.guarantee(torch.ones(3, 2, dtype=torch.bool), 4) is None


def test_private_gradients_are_made_by_the_party_and_promise_what_the_busiest_record_and_all_parties_uploads_make():
    found = Protection.parse("private:clip=1,noise_multiplier=3")
    assert found.defence is None
    assert found.local is found.rule
    schedule = torch.tensor([[True, False], [True, True], [True, False]])
    assert found.guarantee(schedule, 4, 1e-6) == account(3, 3.0, 1e-6, uploads=4)
    assert found.guarantee(schedule[:, 1:], 4).epsilon < found.guarantee(schedule, 4).epsilon
