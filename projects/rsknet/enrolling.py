"""The verb `enroll`: voices of people by name, from one or several recordings each, in a file."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.rsknet.calibration import probability
from projects.rsknet.hearing import REFUSED, Heard, Models, calibrated, compare, find, listen, shown
from projects.rsknet.scoring import Backend, Scorer, read_safetensors
from shared.data.files import BadFileError, first_few
from shared.loggers import artefact_folder, log_table
from shared.messages import shown_path
from shared.runs import atomic, digest, remove

if TYPE_CHECKING:
    from projects.rsknet.module import SpeakerVerification
    from shared.cli import ProjectTrainer
    from shared.data.inputs import Input

VOICES = "voices.safetensors"
"""Name of the file in a run."""
PRIVACY = "voice prints are biometric data: enrol people who agreed to it, keep the file as safe as passwords, and remove people by --remove"
_KIND, _VERSION = "rsknet voices", "2"
_LONGEST_NAME = 200


@dataclass(frozen=True, eq=False)
class Voices:
    """V enrolled people.

    Attributes:
        names: (V,) of the people.
        vectors: (V, E) float64 means of their recordings' embeddings after `scoring.unit`, not scaled to length 1 again.
        projected: (V, D) float64 means of their recordings' projections by PLDA; D is 0 if the scorer has none.
        counts: (V,) int64 recordings of each.
        seconds: (V,) float64 length of them together.
        digests: (V,) digests of the recordings' content.
        network: digest of the network's weights.
        centre: digest of the mean that was subtracted from embeddings, and of PLDA.
    """

    names: tuple[str, ...]
    vectors: Tensor
    projected: Tensor
    counts: Tensor
    seconds: Tensor
    digests: tuple[tuple[str, ...], ...]
    network: str
    centre: str

    @classmethod
    def none(cls, scorer: Scorer) -> Voices:
        """Return voices of nobody."""
        nobody = scorer.side(torch.zeros(0, len(scorer.mean)))
        return cls((), *nobody, torch.zeros(0, dtype=torch.float64), (), scorer.network, _centre(scorer))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def models(self) -> Models:
        """The people as sides of comparisons."""
        return Models(self.vectors, self.projected, self.counts, self.seconds)

    def with_recordings(self, scorer: Scorer, name: str, heard: Mapping[str, Heard]) -> Voices:
        """Return voices with further recordings of a person, by the digests of their content; those that are there already do not count again."""
        new = {key: one for key, one in heard.items() if name not in self.names or key not in self.digests[self.names.index(name)]}
        if not new:
            return self
        added = Models.of(scorer, [list(new.values())])
        if name not in self.names:
            models = Models(*(torch.cat([own, other]) for own, other in zip(self.models, added, strict=True)))
            return self._with((*self.names, name), models, (*self.digests, tuple(new)))
        place = self.names.index(name)
        models = Models(*(column.clone() for column in self.models))
        models.counts[place] += added.counts[0]
        models.seconds[place] += added.seconds[0]
        for mean, other in ((models.vectors, added.vectors), (models.projected, added.projected)):
            mean[place] += (other[0] - mean[place]) * added.counts[0] / models.counts[place]  # the mean of all
        digests = tuple((*own, *new) if number == place else own for number, own in enumerate(self.digests))
        return self._with(self.names, models, digests)

    def only(self, name: str) -> Voices:
        """Return the voice of one person who is enrolled."""
        return self._rows([self.names.index(name)])

    def without(self, name: str) -> Voices:
        """Return voices without a person.

        Raises:
            ValueError: if nobody is enrolled under this name.
        """
        if name not in self.names:
            raise ValueError(f"nobody is enrolled as {name!r}; enrolled are: {', '.join(first_few(self.names)) or 'none'}")
        return self._rows([place for place, own in enumerate(self.names) if own != name])

    def _rows(self, places: Sequence[int]) -> Voices:
        names, digests = tuple(self.names[place] for place in places), tuple(self.digests[place] for place in places)
        return self._with(names, Models(*(column[list(places)] for column in self.models)), digests)

    def _with(self, names: tuple[str, ...], models: Models, digests: tuple[tuple[str, ...], ...]) -> Voices:
        return Voices(names, *models, digests, self.network, self.centre)

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file, in one piece or not at all."""
        from safetensors.torch import save_file

        if Path(path).suffix != ".safetensors":
            raise ValueError(f"voices are kept in a .safetensors file, not in {path}")
        people = json.dumps([{"name": name, "digests": own} for name, own in zip(self.names, self.digests, strict=True)])
        metadata = {"kind": _KIND, "version": _VERSION, "network": self.network, "centre": self.centre, "people": people}
        with atomic(path, private=True) as temporary:  # voices tell who speaks
            save_file({name: column.contiguous() for name, column in self.models._asdict().items()}, temporary, metadata)

    @classmethod
    def load(cls, path: str | Path, scorer: Scorer | None = None) -> Voices:
        """Read what `save` wrote; nothing in the file is executed.

        Args:
            path: the file.
            scorer: what they will be compared by; None takes any.

        Raises:
            FileNotFoundError: if there is no such file.
            BadFileError: if it is damaged, holds no voices, or voices of another version, network or scorer.
        """
        path = Path(path)
        absent = f"no voices {path}: correct the path, or enrol people with the verb enroll"
        metadata, tensors = read_safetensors(path, absent, ": enrol again into another file")
        if metadata.get("kind") != _KIND:
            raise BadFileError(f"{path} holds no voices: name a file that the verb enroll wrote")
        if metadata.get("version") != _VERSION:
            raise BadFileError(f"{path} has version {metadata.get('version')}; this code reads version {_VERSION}: enrol again")
        try:
            people = json.loads(metadata["people"])
            names, digests = tuple(str(one["name"]) for one in people), tuple(tuple(map(str, one["digests"])) for one in people)
            columns = (tensors["vectors"].double(), tensors["projected"].double(), tensors["counts"].long(), tensors["seconds"].double())
            voices = cls(names, *columns, digests, metadata["network"], metadata["centre"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise BadFileError(f"{path} is damaged: {error!r} is missing or unreadable; enrol again") from error
        voices._check(path)
        if scorer is not None and (voices.network, voices.centre) != (scorer.network, _centre(scorer)):
            what = "network" if voices.network != scorer.network else "calibration of the network"
            raise BadFileError(f"{path} holds voices of another {what}, with which recordings cannot be compared: use that one, or enrol anew")
        return voices

    def _check(self, path: Path) -> None:
        count = len(self.names)
        is_whole = self.vectors.ndim == self.projected.ndim == 2 and all(column.shape[:1] == (count,) for column in self.models)
        is_sound = is_whole and all(bool(column.isfinite().all()) for column in self.models) and bool((self.seconds > 0).all())
        if not is_sound or len(set(self.names)) < count or [len(own) for own in self.digests] != self.counts.tolist() or not all(self.digests):
            raise BadFileError(f"{path} is damaged: names, vectors, counts and lengths of its {count} voices do not fit; enrol again")


def _centre(scorer: Scorer) -> str:
    """Digest all that a scorer puts into voices: other means or another PLDA make voices that cannot be compared."""
    parts = [scorer.mean, *(scorer.plda.tensors().values() if scorer.plda else ())]
    return hashlib.sha256(b"".join(part.double().contiguous().numpy().tobytes() for part in parts)).hexdigest()[:12]


def voices_file(run: Path, voices: str | None) -> Path:
    """Return the file of enrolled voices that a user names, or else that of the run."""
    return run / VOICES if voices is None else Path(voices).expanduser()


def find_voices(run: Path, voices: str | None, scorer: Scorer) -> Voices | None:
    """Read the voices that a user names, or else those of the run; None if the run has none."""
    file = voices_file(run, voices)
    return None if voices is None and not file.exists() else Voices.load(file, scorer)


# ---- the verb


@dataclass(frozen=True)
class Enrolled:
    """What `enroll` returns: a row an enrolled voice, what should be looked at, the figures that head the run's page, and 0 or `REFUSED`."""

    rows: list[dict[str, Any]]
    remarks: list[str]
    summary: dict[str, Any]
    exit_code: int = 0


def enroll(
    trainer: ProjectTrainer,
    module: SpeakerVerification,
    scorer: Scorer,
    path: str,
    name: str | None,
    file: Path,
    replace: bool = False,
    backend: Backend = "cosine_asnorm",
) -> Enrolled:
    """Enrol people by recordings, beside those who are enrolled in the file; prints and writes who is there now, and what is odd.

    Args:
        trainer: the trainer, with its device, precision and run.
        module: the network.
        scorer: its scorer.
        path: recordings of one person, or a folder with a sub-folder of recordings for each person; see `people_of`.
        name: of the person, if it is one.
        file: the file of voices, which may be absent.
        replace: forgets what was enrolled under the names before.
        backend: that tells whether recordings resemble each other.

    Raises:
        FileNotFoundError, BadFileError: see `audio.find_audio` and `Voices.load`.
        ValueError: see `people_of`; or if the back-end is not calibrated, a name differs from an enrolled one in capitals only, or a recording
            has too little speech.
    """
    calibrated(scorer, backend)
    before = Voices.load(file, scorer) if file.exists() else Voices.none(scorer)
    people = people_of(find(module, path), path, name)
    keys = {given.file: digest(given.file) for inputs in people.values() for given in inputs}
    _check_names([*before.names, *(person for person in people if person not in before.names)])
    heard = dict(listen(trainer, module, {key: own for own, key in keys.items()}))
    if lacking := [f"{own} ({heard[key].lack})" for own, key in keys.items() if heard[key].lack]:
        mend = "too little speech; give longer recordings, or leave them out; nobody was enrolled"
        raise ValueError(f"{', '.join(first_few(lacking))}: {mend}")
    voices, remarks, unlike, added = before, [], [], {}
    for person, inputs in people.items():
        voices = voices.without(person) if replace and person in voices.names else voices
        own = {keys[given.file]: given.name for given in reversed(inputs)}  # a content goes by the first name that it has
        recordings = {key: heard[key] for key in sorted(own, key=lambda key: own[key])}
        earlier = voices.models.rows(place, place + 1) if (place := _place(voices, person)) is not None else None
        names, models = [own[key] for key in recordings], Models.of(scorer, [[one] for one in recordings.values()])
        remarks += _odd(scorer, backend, person, names, models)
        unlike += _unlike(scorer, backend, person, names, models, earlier) if earlier is not None else []
        remarks += [f"{person}: {own[key]}: {', '.join(said)}" for key, one in recordings.items() if (said := one.remarks(module.hparams.rate))]
        count = 0 if earlier is None else int(earlier.counts)
        voices = voices.with_recordings(scorer, person, recordings)
        added[person] = int(voices.counts[voices.names.index(person)]) - count
        if repeated := len(inputs) - added[person]:
            remarks.append(f"{person}: {repeated} of {len(inputs)} recordings have the content of others of {person}, and do not count again")
    voices.save(file)
    rows = _rows(scorer, backend, voices, added)
    return _report(trainer, rows, unlike + remarks + _alike(rows, added), file, REFUSED if unlike else 0)


def remove_voice(trainer: ProjectTrainer, name: str, file: Path) -> Enrolled:
    """Remove a person from a file of voices, and the file if nobody is left in it.

    Raises:
        FileNotFoundError, BadFileError: see `Voices.load`.
        ValueError: if nobody is enrolled under this name.
    """
    voices = Voices.load(file).without(name := clean_name(name))
    if len(voices):
        voices.save(file)
    else:
        remove(file)
    print(f"{name} is removed; {len(voices)} people are enrolled" + ("" if len(voices) else f", and the file is deleted: {shown_path(file)}"))
    rows = [{"name": own, "recordings": int(voices.counts[place]), "seconds": float(voices.seconds[place])} for place, own in enumerate(voices.names)]
    if rows:
        log_table(trainer, "voices", rows)
    else:
        for table in ("voices.csv", "voices.json"):
            remove(artefact_folder(trainer) / table)
    left = " and ".join(shown_path(artefact_folder(trainer).with_name(verb)) for verb in ("verify", "embed"))
    print(f"tables, pictures and verdicts of earlier verify and embed runs still hold the name: delete {left}")
    return Enrolled(rows, [], {"voices": len(voices), "removed": 1})


def clean_name(name: str) -> str:
    """Return a name as it is kept: composed characters (NFC), and one space at most between words."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def _check_names(names: Sequence[str]) -> None:
    """Refuse names that differ in capitals only."""
    known: dict[str, str] = {}
    for name in names:
        if (other := known.setdefault(name.casefold(), name)) != name:
            raise ValueError(f"{name!r} differs from {other!r} in capitals only: if it is the same person give --name {other!r}, else another name")


def people_of(inputs: Sequence[Input], path: str, name: str | None = None) -> dict[str, list[Input]]:
    """Tell who speaks in recordings: one person, or the names of the sub-folders.

    Raises:
        ValueError: if a name does not do, recordings lie beside sub-folders with recordings, or a pattern or a file with a number has no name.
    """
    root = Path(path).expanduser()
    folders = [given.name.partition("/")[0] if "/" in given.name else None for given in inputs]
    if name is None and None in folders and any(folders):
        raise ValueError(f"{path} has recordings beside folders of recordings: give a person's --name if all are theirs, or a folder for each person")
    if name is None and not root.exists():
        raise ValueError(f"{path} is a pattern: say whose recordings these are with --name")
    if name is None and root.is_file() and root.stem.isdigit():
        raise ValueError(f"{path} is named by a number: say whose recording it is with --name")
    people: dict[str, list[Input]] = {}
    alone = name if name is not None else root.stem if root.is_file() else root.resolve().name
    for given, folder in zip(inputs, folders, strict=True):
        people.setdefault(clean_name(folder if name is None and folder is not None else alone), []).append(given)
    for person in people:
        if not person or not person.isprintable() or "/" in person or len(person) > _LONGEST_NAME:
            raise ValueError(f"{person!r} cannot be a person's name: give up to {_LONGEST_NAME} printable characters without '/' by --name")
    return people


def _place(voices: Voices, name: str) -> int | None:
    return voices.names.index(name) if name in voices.names else None


def _odd(scorer: Scorer, backend: Backend, person: str, names: Sequence[str], models: Models) -> list[str]:
    """Name the recording that resembles a person's others least, if it seems to be of another speaker."""
    likely = probability(compare(scorer, backend, models, models)[1]).fill_diagonal_(1)
    if float(likely.min()) >= 0.5:
        return []
    odd = int(likely.mean(1).argmin())
    other = int(likely[odd].argmin())
    pair = f"{names[odd]} does not resemble the others (with {names[other]}: probability {shown(float(likely[odd, other]))})"
    return [f"{person}: {pair}: is it of someone else, or a bad recording?"]


def _unlike(scorer: Scorer, backend: Backend, person: str, names: Sequence[str], models: Models, earlier: Models) -> list[str]:
    """Name the recordings that seem to be of another speaker than what is enrolled already."""
    chances = probability(compare(scorer, backend, earlier, models)[1])[0].tolist()
    odd = [f"{own} ({shown(chance)})" for own, chance in zip(names, chances, strict=True) if chance < 0.5]
    mend = "it is added all the same; if it is someone else, enrol the right recordings with --replace"
    return [f"{person}: does not resemble what was enrolled under that name: {', '.join(first_few(odd, 3))}: {mend}"] if odd else []


def _rows(scorer: Scorer, backend: Backend, voices: Voices, added: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a row a voice, with the other one that it resembles most."""
    likely = probability(compare(scorer, backend, voices.models, voices.models)[1]).fill_diagonal_(-1)
    nearest = likely.max(1)
    rows = []
    for place, name in enumerate(voices.names):
        row = {"name": name, "recordings": int(voices.counts[place]), "seconds": round(float(voices.seconds[place]), 3), "added": added.get(name, 0)}
        other = voices.names[int(nearest.indices[place])] if len(voices) > 1 else None
        rows.append(row | {"nearest": other, "probability": None if other is None else float(nearest.values[place])})
    return rows


def _alike(rows: Sequence[Mapping[str, Any]], added: Mapping[str, int]) -> list[str]:
    close = [row for row in rows if row["name"] in added and row["probability"] is not None and row["probability"] > 0.5]
    pairs = {tuple(sorted((row["name"], row["nearest"]))): row["probability"] for row in close}
    return [f"{one} and {other}: one person (probability {shown(chance)}) under two names?" for (one, other), chance in pairs.items()]


def _report(trainer: ProjectTrainer, rows: list[dict[str, Any]], remarks: list[str], file: Path, exit_code: int) -> Enrolled:
    log_table(trainer, "voices", rows)
    for row in rows:
        if row["added"]:
            print(f"  {row['name']}: {row['recordings']} recordings, {row['seconds']:.1f} s ({row['added']} of them new)")
    for remark in remarks:
        print(f"look at {remark}")
    print(f"{len(rows)} people are enrolled in {shown_path(file)}, the table: {shown_path(artefact_folder(trainer) / 'voices.csv')}")
    print(PRIVACY)
    return Enrolled(rows, remarks, {"voices": len(rows), "added": sum(row["added"] for row in rows), "remarks": len(remarks)}, exit_code)
