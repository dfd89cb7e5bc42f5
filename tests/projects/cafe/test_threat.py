"""What a threat model says follows from the settings."""

import pytest

from projects.cafe.module import FederatedClassifier
from projects.cafe.protection import Protection
from projects.cafe.threat import threat_lines, threat_model
from projects.cafe.watching import Watch


def threat(parties=2, defence="none", adaptive=False, single_round=False, **watch):
    module = FederatedClassifier([[3]] * parties, 2)
    return dict(threat_model(Watch(**watch), module, Protection.parse(defence), "as training begins", adaptive, single_round))


@pytest.mark.parametrize(
    ("settings", "question", "words"),
    [
        ({}, "attacker", "honest but curious"),
        ({"schedule": "malicious"}, "attacker", "malicious"),
        ({"adaptive": True}, "attacker", "records of its own"),
        ({}, "knows", "2 parties' nets and its own (as training begins), which stay as they are"),
        ({"lr": 1e-6}, "knows", "Adam trains them at 1e-06"),
        ({"parties": 1, "workers": 4}, "knows", "the net that 4 workers share"),
        ({}, "sees", "in each round, the numbers of the records in the batch (drawn at random), the gradient that each party uploads"),
        ({"schedule": "log.csv", "window": 7}, "sees", "in each of the last 7 rounds, the numbers of the records in the batch (the log log.csv)"),
        ({"parties": 1, "workers": 4}, "sees", "the gradient that each worker uploads"),
        ({"parties": 1, "workers": 4, "secure_sum": True}, "sees", "the mean of what 4 workers upload for their batches, but not what each does"),
        ({"single_round": True}, "sees", "not which records these are"),
        ({}, "labels", "not told"),
        ({"known_labels": True}, "labels", "told to the attacker"),
        ({"defence": "noise:std=1e-3"}, "defence", "noise:std=1e-3, without any formal promise"),
        ({"defence": "private:clip=1,noise_multiplier=1"}, "defence", "a formal promise"),
        ({}, "not covered", "split learning"),
        ({}, "meant for", "audit"),
    ],
)
def test_the_answer_tells_the_setting(settings, question, words):
    assert words in threat(**settings)[question]


def test_layers_that_only_evaluation_mode_makes_fit_are_named():
    assert "supposes" not in threat()
    module = FederatedClassifier([[1, 8, 8]], 2, widths=[4], batch_norm=True)
    answers = dict(threat_model(Watch(), module, Protection(), "as training begins"))
    assert answers["supposes"].startswith("BatchNorm2d in evaluation mode in every round")


def test_lines_are_one_a_question_and_aligned():
    lines = threat_lines([("who", "the server"), ("knows what", "all nets")]).split("\n")
    assert lines == ["  who:        the server", "  knows what: all nets"]
