"""From embeddings to the scores of trials, and the file that holds what was learnt for it.

scorer = Scorer.fit(train_embeddings, train_speakers, network=weights_digest(net))
scores = scorer.score_trials("cosine_asnorm", embeddings, trials)      # embeddings: (E,) by name of the file
scorer.save("scorer.safetensors")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from projects.rsknet.calibration import Calibration
from projects.rsknet.lists import Trials
from projects.rsknet.plda import Plda, speaker_means
from shared.data.files import BadFileError, first_few
from shared.runs import atomic

Backend = Literal["cosine", "cosine_snorm", "cosine_asnorm", "plda"]
"""How two embeddings are compared: by the cosine, by it normalised with the whole cohort or the nearest part of it, or by PLDA."""

BACKENDS: tuple[Backend, ...] = get_args(Backend)

TOP = 300
"""Nearest speakers of the cohort that as-norm takes."""

_VERSION = "2"
_CHUNK = 1 << 15  # trials, or sides of them, that are held at a time


def unit(embeddings: Tensor, mean: Tensor) -> Tensor:
    """Subtract a mean (E,) from embeddings (..., E) and scale them to length 1; float64 on the CPU."""
    return F.normalize(embeddings.detach().cpu().double() - mean, dim=-1)


def models(embeddings: Mapping[str, Tensor], trials: Trials) -> tuple[Tensor, Tensor]:
    """Average the embeddings of each enrolment model's files.

    Args:
        embeddings: (E,) by name of the file; those that `unit` made, so that files count alike.
        trials: M models.

    Returns:
        (M, E) means, not scaled to length 1 again, and (M,) int64 numbers of files.

    Raises:
        ValueError: if a file has no embedding.
    """
    _check_there(embeddings, trials)
    counts = torch.tensor([len(model) for model in trials.models])
    return _means(torch.stack([embeddings[name] for model in trials.models for name in model]), counts), counts


def _means(rows: Tensor, counts: Tensor) -> Tensor:
    """Average the first counts[0] rows, the next counts[1] ones and so on: (N, E) -> (M, E)."""
    place = torch.arange(len(counts)).repeat_interleave(counts)
    return rows.new_zeros(len(counts), rows.shape[1]).index_add_(0, place, rows) / counts[:, None]


class Side(NamedTuple):
    """M sides of comparisons, of one or several files each.

    Attributes:
        units: (M, E) float64 means of the files' embeddings after `unit`, which cosines are of; not scaled to length 1 again.
        projected: (M, D) float64 means of what `Plda.project` makes of them, which PLDA is exact for; D is 0 without PLDA.
        counts: (M,) int64 numbers of files.
    """

    units: Tensor
    projected: Tensor
    counts: Tensor

    def rows(self, index: Tensor) -> Side:
        """Return the sides of these (N,) rows."""
        return Side(*(column[index] for column in self))

    def averaged(self, counts: Tensor) -> Side:
        """Make a side of the first counts[0] sides of one file, another of the next counts[1] ones and so on."""
        return Side(_means(self.units, counts), _means(self.projected, counts), counts)


def cosine(enrol: Tensor, tests: Tensor, enrol_index: Tensor, test_index: Tensor) -> Tensor:
    """Cosines of pairs.

    Args:
        enrol: (M, E) of any length.
        tests: (K, E) of any length.
        enrol_index: (N,) rows of `enrol`.
        test_index: (N,) rows of `tests`.

    Returns:
        (N,) in [-1, 1]; the M x K matrix is never made.
    """
    enrol, tests = F.normalize(enrol, dim=1), F.normalize(tests, dim=1)
    pairs = zip(enrol_index.split(_CHUNK), test_index.split(_CHUNK), strict=True)
    return torch.cat([(enrol[left] * tests[right]).sum(1) for left, right in pairs]).clamp(-1, 1)


def cohort_statistics(embeddings: Tensor, cohort: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the cosines of embeddings with the speakers of a cohort that are nearest to each.

    Args:
        embeddings: (N, E).
        cohort: (C, E) means of speakers.
        top: number of speakers, at most C of which are taken.

    Returns:
        Two (N,); the deviation is that of the population, as in WeSpeaker.
    """
    if len(cohort) < 2:
        raise ValueError(f"normalising scores needs a cohort of at least 2 speakers, got {len(cohort)}")
    cohort, top = F.normalize(cohort, dim=1), min(top, len(cohort))
    parts = [F.normalize(part, dim=1) @ cohort.T for part in embeddings.split(max(1, 64 * _CHUNK // len(cohort)))]
    nearest = [part.topk(top, dim=1).values for part in parts]
    return torch.cat([part.mean(1) for part in nearest]), torch.cat([part.std(1, unbiased=False) for part in nearest]).clamp_min(1e-12)


def normalised(scores: Tensor, enrol: tuple[Tensor, Tensor], tests: tuple[Tensor, Tensor], enrol_index: Tensor, test_index: Tensor) -> Tensor:
    """Symmetric normalisation: the mean of (s - mu) / sd over both sides, each with the `cohort_statistics` (mu, sd) of its models or tests."""
    sides = ((scores - mean[index]) / deviation[index] for (mean, deviation), index in ((enrol, enrol_index), (tests, test_index)))
    return sum(sides, torch.zeros(())) / 2


@dataclass(frozen=True, eq=False)
class Scorer:
    """What is stored after training, beside the network.

    Attributes:
        mean: (E,) of the training embeddings, float64.
        cohort: (C, E) means of the training speakers' embeddings after `unit`, float64.
        network: `shared.checkpoints.weights_digest` of the network that the embeddings are of.
        plda: of embeddings after `unit`; None if none was fitted.
        calibrations: by backend.
        top: speakers of the cohort that as-norm takes.
    """

    mean: Tensor
    cohort: Tensor
    network: str
    plda: Plda | None = None
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    top: int = TOP

    @classmethod
    def fit(cls, embeddings: Tensor, speakers: Tensor, network: str, plda: bool = True, top: int = TOP) -> Scorer:
        """Learn from the training speakers.

        Args:
            embeddings: (N, E) as the network gives them.
            speakers: (N,) int64.
            network: digest of its weights.
            plda: fits PLDA too, which needs more embeddings than speakers by at least E.
            top: speakers of the cohort that as-norm takes.

        Raises:
            ValueError: as `Plda.fit`.
        """
        mean = embeddings.detach().cpu().double().mean(0)
        units = unit(embeddings, mean)
        return cls(mean, speaker_means(units, speakers)[0], network, Plda.fit(units, speakers) if plda else None, top=top)

    @property
    def backends(self) -> tuple[Backend, ...]:
        """Backends that there is enough for."""
        return tuple(name for name in BACKENDS if name != "plda" or self.plda is not None)

    def with_calibration(self, backend: Backend, calibration: Calibration) -> Scorer:
        """Return a scorer with one more calibration."""
        return replace(self, calibrations={**self.calibrations, backend: calibration})

    def score_trials(self, backend: Backend, embeddings: Mapping[str, Tensor], trials: Trials) -> Tensor:
        """Score all trials of a list.

        Args:
            backend: how to compare.
            embeddings: (E,) by name of the file, as the network gives them.
            trials: N trials.

        Returns:
            (N,) float64 scores on the CPU, higher for targets.

        Raises:
            ValueError: if a file has no embedding, their size is not E, or the scorer lacks what the backend needs.
        """
        _check_there(embeddings, trials)
        files = self.side(torch.stack([embeddings[name] for name in trials.files]))
        place = {name: row for row, name in enumerate(trials.files)}
        enrol = files.rows(torch.tensor([place[name] for model in trials.models for name in model]))
        enrol = enrol.averaged(torch.tensor([len(model) for model in trials.models]))
        return self.score(backend, enrol, files.rows(torch.tensor([place[name] for name in trials.tests])), trials.enrol, trials.test)

    def side(self, embeddings: Tensor) -> Side:
        """Make a side of each of (N, E) embeddings as the network gives them, on the CPU; `Side.averaged` joins the files of a model.

        Raises:
            ValueError: if their size is not E.
        """
        units = unit(self._fitting(embeddings), self.mean)
        return Side(units, units[:, :0] if self.plda is None else self.plda.project(units), torch.ones(len(units), dtype=torch.long))

    def score(self, backend: Backend, enrol: Side, tests: Side, enrol_index: Tensor, test_index: Tensor) -> Tensor:
        """Score pairs of models and tests.

        Args:
            backend: how to compare.
            enrol: M sides.
            tests: K sides.
            enrol_index: (N,) rows of `enrol`.
            test_index: (N,) rows of `tests`.

        Returns:
            (N,) float64 on the CPU. All backends are symmetric in the sides.

        Raises:
            ValueError: if there is no such backend, the scorer lacks what it needs, or embeddings are not of size E.
        """
        enrol_index, test_index = enrol_index.cpu(), test_index.cpu()
        if backend not in BACKENDS:
            raise ValueError(f"there is no backend {backend!r}: use one of {', '.join(BACKENDS)}")
        if backend == "plda":
            return self._plda(enrol, tests, enrol_index, test_index)
        units = self._fitting(enrol.units), self._fitting(tests.units)
        scores = cosine(*units, enrol_index, test_index)
        if backend == "cosine":
            return scores
        top = self.top if backend == "cosine_asnorm" else len(self.cohort)
        one, other = (cohort_statistics(side, self.cohort, top) for side in units)
        return normalised(scores, one, other, enrol_index, test_index)

    def _plda(self, enrol: Side, tests: Side, enrol_index: Tensor, test_index: Tensor) -> Tensor:
        if self.plda is None:
            raise ValueError("this scorer has no PLDA: fit it with more speakers, or use another backend")
        pairs = ((enrol.rows(left), tests.rows(right)) for left, right in zip(enrol_index.split(_CHUNK), test_index.split(_CHUNK), strict=True))
        return torch.cat([self.plda.score(one.projected, one.counts, other.projected, other.counts) for one, other in pairs])

    def _fitting(self, embeddings: Tensor) -> Tensor:
        if embeddings.ndim != 2 or embeddings.shape[1] != len(self.mean):
            raise ValueError(f"embeddings are {tuple(embeddings.shape)}, the scorer is of size {len(self.mean)}: it belongs to another network")
        return embeddings

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file, in one piece or not at all."""
        from safetensors.torch import save_file

        if Path(path).suffix != ".safetensors":
            raise ValueError(f"a scorer is a .safetensors file, got {path}")
        tensors = {"mean": self.mean, "cohort": self.cohort}
        tensors |= {f"plda.{name}": value for name, value in (self.plda.tensors() if self.plda else {}).items()}
        for backend, calibration in self.calibrations.items():
            tensors |= {f"calibration.{backend}.{name}": value for name, value in calibration.tensors().items()}
        metadata = {"kind": "rsknet scorer", "version": _VERSION, "network": self.network, "top": str(self.top)}
        with atomic(path) as temporary:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata | {"backends": ",".join(self.backends)})

    @classmethod
    def load(cls, path: str | Path, network: str | None = None) -> Scorer:
        """Read what `save` wrote; nothing in the file is executed.

        Args:
            path: the file.
            network: digest of the network that embeddings will come from; None takes any.

        Raises:
            FileNotFoundError: if there is no such file.
            BadFileError: if it is damaged, has values that are not finite, is no scorer, or of another version or network.
        """
        path = Path(path)
        metadata, tensors = _read(path)
        if metadata.get("version") != _VERSION:
            raise BadFileError(f"{path} has version {metadata.get('version')}; this code reads version {_VERSION}: calibrate again")
        if network is not None and metadata["network"] != network:
            raise BadFileError(f"{path} belongs to the network {metadata['network']}, not to {network}: use that checkpoint, or calibrate again")
        if spoilt := [name for name, value in tensors.items() if not bool(value.isfinite().all())]:
            raise BadFileError(f"{path} has values that are not finite, in {', '.join(first_few(spoilt, 3))}: calibrate again")
        try:
            calibrated = dict.fromkeys(name.split(".")[1] for name in tensors if name.startswith("calibration."))
            calibrations = {name: Calibration.from_tensors(_under(tensors, f"calibration.{name}.")) for name in calibrated}
            plda = Plda.from_tensors(_under(tensors, "plda.")) if "plda.psi" in tensors else None
            scorer = cls(tensors["mean"], tensors["cohort"], metadata["network"], plda, calibrations, int(metadata["top"]))
            scorer._check()
        except (KeyError, ValueError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise BadFileError(f"{path} is no whole scorer: {reason}; calibrate again") from error
        return scorer

    def _check(self) -> None:
        if self.mean.ndim != 1 or self.cohort.ndim != 2 or self.cohort.shape[1] != len(self.mean):
            raise ValueError(f"mean {tuple(self.mean.shape)} and cohort {tuple(self.cohort.shape)} do not fit: expected (E,) and (C, E)")
        if self.plda and len(self.plda.centre) != len(self.mean):
            raise ValueError(f"PLDA is of size {len(self.plda.centre)}, the mean of {len(self.mean)}")
        if unknown := [name for name in self.calibrations if name not in BACKENDS]:
            raise ValueError(f"there is no backend {unknown[0]!r}")


def read_safetensors(path: Path, absent: str, mend: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the metadata and tensors of a .safetensors file.

    Args:
        path: the file.
        absent: what to say if it is not there.
        mend: what to say behind the reason if it is damaged.

    Raises:
        FileNotFoundError: if there is no such file.
        BadFileError: if it is damaged, or something else.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(absent)
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise BadFileError(f"{path} is damaged or no safetensors file ({error}){mend}") from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    absent = f"no scorer {path}: correct the path, or calibrate"
    metadata, tensors = read_safetensors(path, absent, "; pickles are not read: calibrate again")
    if metadata.get("kind") != "rsknet scorer":
        raise BadFileError(f"{path} is no scorer: it holds {', '.join(first_few(list(tensors), 4)) or 'nothing'}")
    return metadata, {name: value.double() for name, value in tensors.items()}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_there(embeddings: Mapping[str, Tensor], trials: Trials) -> None:
    if lost := [name for name in trials.files if name not in embeddings]:
        few = ", ".join(first_few(lost, 3))
        raise ValueError(f"{len(lost)} of the {len(trials.files)} files of {trials.name} have no embedding, such as {few}: all trials must be scored")
