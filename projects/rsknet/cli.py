"""RSKNet-MTSP: tell whether two recordings are of the same person."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.rsknet.data import SpeakerData
from projects.rsknet.module import SpeakerVerification
from projects.rsknet.scoring import Backend, Scorer
from shared.cli import ProjectCLI, ProjectTrainer, run

if TYPE_CHECKING:
    from projects.rsknet.embedding import Found
    from projects.rsknet.enrolling import Enrolled
    from projects.rsknet.export import Exported
    from projects.rsknet.tasks import Drawn, Tested
    from projects.rsknet.verifying import Verified


class Trainer(ProjectTrainer):
    """Lightning's trainer with this project's verbs."""

    reads = frozenset({"path", "first", "second", "voices"})
    begins, changing = frozenset({"draw"}), frozenset({"enroll"})
    beside = frozenset({"voices.safetensors", "scorer.safetensors"})
    unnamed = MappingProxyType({"verify": 2})
    resumable = frozenset({"fit", "embed", "predict", "reproduce"})
    follow_up = MappingProxyType({"fit": "verify A.wav B.wav", "test": "verify A.wav B.wav", "enroll": "verify A.wav"})

    def fit(self, model: SpeakerVerification, datamodule: SpeakerData, ckpt_path: str | None = None) -> Tested:  # type: ignore[override]
        """Train the network, calibrate its scores on speakers held out, and test it on the trial lists.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint to go on from; --resume finds the last one by itself.
        """
        from projects.rsknet.tasks import calibrate, report_test, train

        train(self, model, datamodule, ckpt_path)
        return report_test(self, model, datamodule, calibrate(self, model, datamodule))

    def calibrate(self, model: SpeakerVerification, datamodule: SpeakerData, ckpt_path: str | None = None) -> Tested:
        """Learn back-ends and calibration anew, for another checkpoint or the voices and microphones of your place, and test.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.rsknet.tasks import calibrate, loaded, report_test

        return report_test(self, model, datamodule, calibrate(self, loaded(model, datamodule, ckpt_path, is_calibrated=True), datamodule))

    def test(  # type: ignore[override]
        self, model: SpeakerVerification, datamodule: SpeakerData, durations: list[float] | None = None, ckpt_path: str | None = None
    ) -> Tested:
        """Test on trial lists: EER, minDCF, calibration and DET curves of every back-end.

        Args:
            model: supplied.
            datamodule: supplied.
            durations: seconds that test recordings are also cut to, such as [1, 2, 5].
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.rsknet.judging import load_scorer
        from projects.rsknet.tasks import loaded, report_test

        found = load_scorer(self.run.path, loaded(model, datamodule, ckpt_path, is_calibrated=False))
        return report_test(self, model, datamodule, found, durations or [])

    def embed(
        self,
        model: SpeakerVerification,
        datamodule: SpeakerData,
        path: str,
        backend: Backend = "cosine_asnorm",
        voices: str | None = None,
        ckpt_path: str | None = None,
    ) -> Found:
        """Write embeddings of recordings as an .npz file, a table of the files, a picture of each, and who sounds like whom.

        Recordings that an interrupted run of the same settings has embedded are not embedded again.

        Args:
            model: supplied.
            datamodule: supplied; its data are not needed.
            path: a recording, a folder with sub-folders, or a pattern such as 'inbox/*.wav'.
            backend: cosine, cosine_snorm, cosine_asnorm or plda.
            voices: file of enrolled voices to compare with; null is voices.safetensors of the run, if there is one.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.rsknet.embedding import embed_files
        from projects.rsknet.enrolling import find_voices

        found = self._ready(model, ckpt_path)
        return embed_files(self, model, found, path, find_voices(self.run.path, voices, found), backend)

    predict = embed  # type: ignore[assignment]

    def enroll(
        self,
        model: SpeakerVerification,
        datamodule: SpeakerData,
        path: str,
        name: str | None = None,
        replace: bool = False,
        remove: bool = False,
        voices: str | None = None,
        ckpt_path: str | None = None,
    ) -> Enrolled:
        """Enrol people by recordings of them, one or several each; their voices are kept in a file of the run.

        Ends with 3 if a recording does not resemble what was enrolled under its name, to which it is added all the same.

        Args:
            model: supplied.
            datamodule: supplied; its data are not needed.
            path: a recording or folder of one person, or a folder with a sub-folder of recordings for each person; with --remove, a name.
            name: of the person; null takes that of the file or folder.
            replace: forgets what was enrolled under the name; otherwise recordings are added.
            remove: removes the person instead.
            voices: file of enrolled voices; null is voices.safetensors of the run.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.rsknet.enrolling import enroll, remove_voice, voices_file

        file = voices_file(self.run.path, voices)
        if remove:
            return remove_voice(self, path, file)
        return enroll(self, model, self._ready(model, ckpt_path), path, name, file, replace)

    def verify(
        self,
        model: SpeakerVerification,
        datamodule: SpeakerData,
        first: str,
        second: str | None = None,
        far: float = 0.01,
        prior: float = 0.5,
        backend: Backend = "cosine_asnorm",
        voices: str | None = None,
        ckpt_path: str | None = None,
    ) -> Verified:
        """Tell whether recordings are of the same person: score, calibrated probability, and decision. Ends with 3 if one is refused.

        Args:
            model: supplied.
            datamodule: supplied; its data are not needed.
            first: a recording, a folder of recordings of one person, or the name of an enrolled voice.
            second: a recording, folder or pattern of recordings to compare with it; null compares the first with all enrolled voices.
            far: false-accept rate of the decision, on speakers held out of training.
            prior: probability of the same person before anything is heard.
            backend: cosine, cosine_snorm, cosine_asnorm or plda.
            voices: file of enrolled voices; null is voices.safetensors of the run.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.rsknet.enrolling import find_voices
        from projects.rsknet.verifying import verify

        found = self._ready(model, ckpt_path)
        return verify(self, model, found, first, second, find_voices(self.run.path, voices, found), far, prior, backend)

    def draw(
        self, model: SpeakerVerification, datamodule: SpeakerData, path: str, speakers: int = 12, utterances: int = 6, espeak: bool = False
    ) -> Drawn:
        """Write drawn speakers as files in VoxCeleb1's layout, with a trial list, to try the other verbs on.

        Args:
            model: supplied; its rate is taken.
            datamodule: supplied; its seed and the length of its recordings are taken.
            path: folder to write, absent or empty.
            speakers: of training and of test together; a third of them are those of the trial list.
            utterances: of each.
            espeak: takes the voices of espeak-ng, which must be installed, instead of drawn ones.
        """
        from projects.rsknet.tasks import draw

        return draw(model, datamodule, path, speakers, utterances, espeak)

    def export(self, model: SpeakerVerification, datamodule: SpeakerData, ckpt_path: str | None = None) -> Exported:
        """Write the network, from waveform to embedding, as speaker.onnx for other runtimes, check it, and time it; needs the extra onnx.

        Args:
            model: supplied.
            datamodule: supplied; its data are not needed.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.rsknet.export import export

        return export(self, model, self._ready(model, ckpt_path))

    def reproduce(
        self,
        model: SpeakerVerification,
        datamodule: SpeakerData,
        table: Literal["all", "lag", "speakers", "conditions", "calibration", "sizes", "pooling", "powered"] = "all",
        seeds: int | None = None,
        jobs: int | None = None,
        quick: bool = False,
        write: bool = False,
    ) -> None:
        """Reproduce the paper's claims on drawn speakers over seeds.

        Args:
            model: supplied.
            datamodule: supplied.
            table: lag (near and far context), speakers (networks on new speakers), conditions (noise, rooms, short recordings), calibration, sizes
                (parameters and cost), pooling (before training), powered (many speakers, an hour), or all.
            seeds: number of seeds, from 0; null is the customary number.
            jobs: computations at the same time, one thread each; null is one a core, or one where there is a GPU.
            quick: one seed, little training and few rows, to see that everything runs.
            write: write the tables into the project's README.
        """
        from projects.rsknet.reproduction import TABLES
        from shared.tables import reproduce

        reproduce(self, __file__, TABLES, table, seeds, jobs, quick, write)

    def _ready(self, model: SpeakerVerification, ckpt_path: str | None) -> Scorer:
        """Load the weights and the scorer for a verb that runs in one process."""
        from projects.rsknet.judging import load_scorer
        from projects.rsknet.remembered import with_network
        from shared.distributed import in_one_process

        in_one_process(self)
        with_network(model, ckpt_path).to(self.strategy.root_device)
        return load_scorer(self.run.path, model)


def main(args: Sequence[str] | None = None) -> ProjectCLI:
    """Run the command line with `args`, or with those of the process."""
    return run(SpeakerVerification, SpeakerData, Trainer, args)


if __name__ == "__main__":
    main()
