"""Who attacks, with what knowledge, and where that ends: the threat model that every report begins with."""

from __future__ import annotations

from collections.abc import Sequence

from projects.cafe.checks import batch_dependent
from projects.cafe.module import FederatedClassifier
from projects.cafe.protection import Protection
from projects.cafe.watching import Watch

Threat = list[tuple[str, str]]
"""Questions and answers."""
MALICIOUS = "malicious"
_DRAWN = {"uniform": "drawn at random", "epochs": "shuffled passes over the records", MALICIOUS: "chosen by the server to tell records apart"}


def threat_model(
    watch: Watch, module: FederatedClassifier, protection: Protection, state: str, adaptive: bool = False, single_round: bool = False
) -> Threat:
    """Say who attacks, and what is known.

    Args:
        watch: what the server records.
        module: the federated classifier.
        protection: what the parties do to their gradients.
        state: when the model is attacked, in words such as "as training begins".
        adaptive: whether the attacker undoes fake gradients by their ranks.
        single_round: whether the attack uses one round alone, and not who is in it.
    """
    answers = [("attacker", _attacker(watch, adaptive)), ("knows", _knows(watch, module, state)), ("sees", _sees(watch, module, single_round))]
    if fixed := sorted({type(part).__name__ for _, part in batch_dependent(module.federation)}):
        answers.append(("supposes", f"{', '.join(fixed)} in evaluation mode in every round; nothing is said of parties that train with them on"))
    return [
        *answers,
        ("labels", "told to the attacker" if watch.known_labels else "not told: they are recovered too"),
        ("does not use", "features, representations, or the outputs and the loss of a single record; only the judgement knows the truth"),
        ("defence", _defence(protection)),
        ("not covered", "split learning where the server sees outputs, but neither the parties' nets nor their gradients: this attack needs both"),
        ("meant for", "public or synthetic data, and the audit of systems that you answer for; attacks on others' data may be unlawful"),
    ]


def threat_lines(threat: Sequence[tuple[str, str]]) -> str:
    """Write a threat model for the terminal, a line a question."""
    width = max(len(question) for question, _ in threat) + 1
    return "\n".join(f"  {question + ':':<{width}} {answer}" for question, answer in threat)


def _attacker(watch: Watch, adaptive: bool) -> str:
    who = (
        "the server, malicious: it keeps to the protocol but for the batches, which it chooses"
        if watch.schedule == MALICIOUS
        else "the server, honest but curious: it keeps to the protocol, and all that it sees"
    )
    return f"{who}; it has records of its own, and undoes the fake gradients by their ranks" if adaptive else who


def _knows(watch: Watch, module: FederatedClassifier, state: str) -> str:
    nets = len(module.federation.bottoms)
    whose = "the party's net and its own" if nets == 1 else f"the {nets} parties' nets and its own"
    whose = f"the net that {watch.workers} workers share" if watch.workers > 1 else whose
    moves = f"before each round, between which Adam trains them at {watch.lr:g}" if watch.lr else "which stay as they are while rounds are recorded"
    return f"architecture and parameters of {whose} ({state}), {moves}"


def _sees(watch: Watch, module: FederatedClassifier, single_round: bool) -> str:
    parties = watch.workers if watch.workers > 1 else len(module.federation.bottoms)
    who = "worker" if watch.workers > 1 else "party"
    upload = f"the gradient that each {who} uploads for the batch as a whole"
    if watch.secure_sum:
        upload = f"the mean of what {parties} workers upload for their batches, but not what each does"
    if single_round:
        return f"of one round, {upload}, and the server's own gradient; not which records these are"
    batches = _DRAWN.get(watch.schedule, f"the log {watch.schedule}")
    rounds = f"in each of the last {watch.window} rounds" if watch.window else "in each round"
    return f"{rounds}, the numbers of the records in the batch ({batches}), {upload}, and the server's own gradient"


def _defence(protection: Protection) -> str:
    if protection.rule is None:
        return "none"
    formal = "a formal promise to each record" if protection.local is not None else "without any formal promise"
    return f"{protection.text}, {formal}"
