"""Who may be in which split: official pairs, people that videos show, divisions that separate them, guards against leaks, and protocols."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from shared.data.files import BadFileError, first_few, read_json
from shared.data.selection import OnLeak
from shared.forgery.sets import REAL, Clip, Video, check_kinds
from shared.seeding import generator

FAMILIES = {
    "FF-DF": "FaceForensics++",
    "FF-F2F": "FaceForensics++",
    "FF-FS": "FaceForensics++",
    "FF-NT": "FaceForensics++",
    "FaceShifter": "FaceForensics++",
    "Celeb-DF-v1": "Celeb-DF-v2",
}
"""Names of sets that hold the videos of another one."""
NUMBERED = ("WildDeepfake", "WDF")
"""Sets whose videos have plain numbers, which begin anew in every class and do not tell who is seen; sequences of faces lie below them."""
DEEPER = ("DeeperForensics-1.0", "DeeperForensics", "DFR")
"""Sets whose fakes, `000_M101`, show an actor's face in a video of FaceForensics++, and whose real videos are those of FaceForensics++."""

_log = logging.getLogger(__name__)


def family_of(dataset: str) -> str:
    """Return the set whose videos a set holds, by its name: copies of one compression, such as `FaceForensics++_C23`, hold those of the whole set."""
    whole = re.sub(r"_(raw|c\d+)$", "", dataset, flags=re.IGNORECASE)
    return FAMILIES.get(whole, whole)


def identities(dataset: str, name: str) -> frozenset[str]:
    """Return who or what a video shows, as far as its name tells.

    `000` and `000_003` of FaceForensics++ show the videos 000 and 003, `id0_id16_0002` of Celeb-DF the people id0 and id16,
    `26_18__walking_fast__8RMVXQ9P` of DeepFakeDetection the actors 26 and 18, `1255229_1003254_A_001` of DFDC's preview the people 1255229 and
    1003254, and `000_M101` of a set in `DEEPER` the actor M101 and FaceForensics++'s video 000; any other video shows itself, and a sequence of a set
    in `NUMBERED` the video that it was cut from: `fake_train/12/fake/3` shows `fake_train/12`.

    Args:
        dataset: name of the data set.
        name: name of the video, a path before it being left out.
    """
    family = family_of(dataset)
    stem = name.replace("\\", "/").rsplit("/", 1)[-1]
    patterns = (r"(\d{3})(?:_(\d{3}))?", r"(id\d+)(?:_(id\d+))?_\d+", r"(\d\d)(?:_(\d\d))?__.*", r"(\d{4,})(?:_(\d{4,}))?_[A-Z](?:_\d+)?")
    if dataset in NUMBERED and (whole := re.match(r"(?:.*?/)?\d+(?=/|$)", name)):
        return frozenset({f"{family}/{whole[0]}"})
    if dataset in DEEPER and (match := re.fullmatch(r"(\d{3})?(?:(?:^|_)([MW]\d{3}))?(?:_\D.*)?", stem)) and any(match.groups()):
        return frozenset(f"{of}/{one}" for of, one in zip(("FaceForensics++", family), match.groups(), strict=True) if one)
    for pattern in patterns:
        if match := re.fullmatch(pattern, stem):
            return frozenset(f"{family}/{part}" for part in match.groups() if part)
    return frozenset({f"{family}/{name}"})


def official_pairs(path: str | Path) -> frozenset[str]:
    """Read a split of FaceForensics++, `[["071", "054"], ...]`: both videos of a pair and their fakes in both orders belong to it.

    Returns:
        Names of videos: `071`, `054`, `071_054`, `054_071`, ...

    Raises:
        FileNotFoundError: if there is no such file.
        BadFileError: if it holds something else.
    """
    path = Path(path)
    pairs = read_json(path, "take train.json, val.json or test.json of FaceForensics++")
    is_good = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(one, str) for one in pair) for pair in pairs
    )
    if not is_good:
        raise BadFileError(f'{path} is no list of pairs [["071", "054"], ...]: take train.json, val.json or test.json of FaceForensics++')
    return frozenset(name for one, other in pairs for name in (one, other, f"{one}_{other}", f"{other}_{one}"))


def divide(clips: Sequence[Clip], fraction: float, seed: int) -> tuple[list[Clip], list[Clip]]:
    """Divide videos so that nobody is in both parts; people seen in one video together stay together.

    Where more than half of the videos hang together, as in Celeb-DF, whose fakes link nearly all people, the people are divided one by one, and
    videos that show people of both parts are left out. Where the second part would lack real or fake videos, it gets one group more that has some, if
    there is another one for the first.

    Args:
        clips: the videos.
        fraction: part of the groups of people, or of the people, that goes into the second part, at least one.
        seed: seed of the choice, which depends on names, not on their order.

    Raises:
        ValueError: if all videos hang together, so that they cannot be divided.
    """
    groups = _groups([clip.video for clip in clips])
    if clips and max(Counter(groups).values()) > len(clips) / 2:
        people = [set(shown(clip.video)) for clip in clips]
        parts = _cut(clips, people, _first_part(_linked_order(people, seed), fraction))
        if all({clip.video.label for clip in part} == {clip.video.label for clip in clips} for part in parts):
            lost = len(clips) - len(parts[0]) - len(parts[1])
            if lost:
                _log.warning("%d of %d videos show people of both parts into which they are divided, and are left out", lost, len(clips))
            return parts
    names = sorted(set(groups))
    if len(names) < 2:
        raise ValueError(f"the {len(clips)} training videos show the same people and cannot be divided: add videos, or a split of their own")
    order = torch.randperm(len(names), generator=generator(seed, "forgery division")).tolist()
    names = [names[number] for number in order]
    second = _first_part(names, fraction)
    for label in (0, 1):
        having = {group for group, clip in zip(groups, clips, strict=True) if clip.video.label == label}
        if len(having) > 1 and not having & second:
            second.add(next(name for name in names if name in having))
    return _cut(clips, [{group} for group in groups], second)


def _first_part(order: Sequence[str], fraction: float) -> set[str]:
    """Return the first ones of an order, at least one of them and not all."""
    return set(order[: min(len(order) - 1, max(1, round(fraction * len(order))))])


def _cut(clips: Sequence[Clip], parties: Sequence[set[str]], second: set[str]) -> tuple[list[Clip], list[Clip]]:
    """Put some parties into the second part; a video of parties on both sides is in neither."""
    sides = list(zip(clips, parties, strict=True))
    return [clip for clip, party in sides if not party & second], [clip for clip, party in sides if party <= second]


def _linked_order(people: Sequence[set[str]], seed: int) -> list[str]:
    """Order people so that those who are seen together are near each other: depth first, from starts drawn at random."""
    linked: dict[str, set[str]] = defaultdict(set)
    for together in people:
        for name in together:
            linked[name] |= together
    names = sorted(linked)
    starts = torch.randperm(len(names), generator=generator(seed, "forgery division")).tolist()
    order: dict[str, None] = {}
    for start in starts:
        stack = [names[start]]
        while stack:
            name = stack.pop()
            if name not in order:
                order[name] = None
                stack += sorted(linked[name] - order.keys())
    return list(order)


def shown(video: Video) -> list[str]:
    """Return whom a video shows, sorted; itself where that is not known."""
    return sorted(video.identities) or ["/".join(video.key)]


def _groups(videos: Sequence[Video]) -> list[str]:
    """Return the first name of all people that hang together with those of each video."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    people = [shown(video) for video in videos]
    for names in people:
        for other in names[1:]:
            low, high = sorted((root(names[0]), root(other)))
            parent[high] = low
    return [root(names[0]) for names in people]


def guard(clips: Sequence[Clip], held_out: Sequence[Clip], on_leak: OnLeak, what: str = "training") -> list[Clip]:
    """Keep what is held out from being learnt: videos that are in both parts, and videos that show people of both.

    Args:
        clips: videos to learn from.
        held_out: videos to judge by.
        on_leak: "remove" removes both with a warning, "refuse" raises, "keep" only warns of shared people, for sets whose own splits share them.
        what: name of the first part, for messages.

    Returns:
        Those of `clips` that remain.

    Raises:
        ValueError: if there is a leak and `on_leak` is "refuse", or if nothing remains.
    """
    videos = {_family_key(clip.video) for clip in held_out}
    people = {person for clip in held_out for person in clip.video.identities}
    kept = [clip for clip in clips if _family_key(clip.video) not in videos]
    if len(kept) < len(clips):
        twice = [clip.video.name for clip in clips if _family_key(clip.video) in videos]
        leak = f"{len(twice)} of {len(clips)} {what} videos are held out too: {', '.join(first_few(twice, 5))}"
        if on_leak == "refuse":
            raise ValueError(f"{leak}; divide them otherwise, or set on_leak to remove")
        _log.warning("%s; they are removed", leak)
    shared = [clip for clip in kept if clip.video.identities & people]
    if shared:
        kept = _share(kept, shared, people, on_leak, what)
    if clips and not kept:
        mend = "take another set to learn from" if not shared else "take another set to learn from, or keep shared people with on_leak: keep"
        raise ValueError(f"no {what} videos remain without those that are held out: {mend}")
    return kept


def _share(kept: list[Clip], shared: list[Clip], people: set[str], on_leak: OnLeak, what: str) -> list[Clip]:
    named = first_few(sorted({person for clip in shared for person in clip.video.identities & people}), 5)
    leak = f"{len(shared)} of {len(kept)} {what} videos show people or source videos that are held out: {', '.join(named)}"
    if on_leak == "refuse":
        raise ValueError(f"{leak}; divide them otherwise, or set on_leak to remove or keep")
    _log.warning("%s; they are %s", leak, "kept" if on_leak == "keep" else "removed")
    if on_leak == "keep":
        return kept
    dropped = {clip.video.key for clip in shared}
    return [clip for clip in kept if clip.video.key not in dropped]


def _family_key(video: Video) -> tuple[str, str, str]:
    return replace(video, dataset=family_of(video.dataset)).key


@dataclass(frozen=True)
class Protocol:
    """What a detector learns and what it is judged by: names of manipulations; real frames always belong to both."""

    train: tuple[str, ...]
    tests: tuple[tuple[str, ...], ...]


def within(kinds: Iterable[str]) -> Protocol:
    """Learn all manipulations, and be judged by all at once and by each one."""
    known = _kinds(kinds)
    return Protocol(known, (known, *((kind,) for kind in known)))


def one_against_rest(kinds: Iterable[str], kept: str) -> Protocol:
    """Learn one manipulation, and be judged by each one (the custom of most papers)."""
    known = _kinds(kinds)
    check_kinds([kept], known)
    return Protocol((kept,), tuple((kind,) for kind in known))


def leave_one_out(kinds: Iterable[str], left: str) -> Protocol:
    """Learn all manipulations but one, and be judged by that one.

    Raises:
        ValueError: if there is no other one.
    """
    known = _kinds(kinds)
    check_kinds([left], known)
    if len(known) < 2:
        raise ValueError(f"leaving out {left} leaves no manipulation to learn: there are no others")
    return Protocol(tuple(kind for kind in known if kind != left), ((left,),))


def _kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(kinds) - {REAL}))
