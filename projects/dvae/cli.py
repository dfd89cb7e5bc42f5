"""D-VAE: purify training sets that were made unlearnable, make such sets, find them out, and compare defences against them."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.dvae.data import PurificationData
from projects.dvae.module import Purifier
from shared.cli import ProjectCLI, ProjectTrainer, run

if TYPE_CHECKING:
    from projects.dvae.tasks import Detected, Trained, WrittenSets


class Trainer(ProjectTrainer):
    """Lightning's trainer with this project's verbs."""

    makes_run = frozenset({"fit", "poison", "bench", "reproduce"})
    outside = frozenset({"purify.path"})
    reads = frozenset({"path", "reference"})
    resumable = frozenset({"fit", "purify", "bench", "reproduce"})
    begins = frozenset({"detect"})
    follow_up = MappingProxyType({"fit": "purify", "purify": "train x2 --run {run}", "train": "detect --run {run}"})

    def fit(self, model: Purifier, datamodule: PurificationData, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Train the D-VAE of each stage on the training set, and measure what they separate.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint to go on from; --resume finds the last one by itself.
        """
        from projects.dvae.callbacks import Separations

        self.callbacks.append(Separations())  # type: ignore[attr-defined]
        super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        super().test(model, datamodule=datamodule, verbose=False)

    def test(self, model: Purifier, datamodule: PurificationData, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Measure rates, distances of the products to the clean images (where unknown, to the images) and the cosine of p̂ with the true poison.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint; last (the default) or a file.
        """
        from projects.dvae.tasks import with_weights

        super().test(with_weights(model, ckpt_path, may_be_half_trained=True), datamodule=datamodule, verbose=False)

    def validate(self, model: Purifier, datamodule: PurificationData, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Measure as test does: a purifier is judged on the very set that it purifies.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint; last (the default) or a file.
        """
        self.test(model, datamodule, ckpt_path)

    def purify(
        self,
        model: Purifier,
        datamodule: PurificationData,
        path: str | None = None,
        out: str | None = None,
        products: list[str] | None = None,
        format: Literal["png", "npy"] = "png",  # noqa: A002
        ckpt_path: str | None = None,
    ) -> WrittenSets:
        """Purify a training set: x1, x2 (less the perturbations), x3 (the paper's result) and the perturbations p1, p2, each as a set of its own.

        Args:
            model: supplied.
            datamodule: supplied.
            path: your labelled images, FOLDER/<class>/*: trains the D-VAEs on them first, as model and trainer say (--config folder suits them).
            out: a folder for the result, beside what is kept in the run: the last product, as images under their old names.
            products: which of x1, x2, x3, p1, p2 to write; the default is all.
            format: png (a file an image, under its old name) or npy (images.npy and labels.npy).
            ckpt_path: checkpoint; last (the default) or a file.
        """
        from projects.dvae.tasks import purify, train_on_folder, with_weights

        if path is not None and ckpt_path is not None:
            raise ValueError("purify FOLDER trains on that folder: leave out --ckpt_path, or name the run that was trained on it with --run")
        if path is not None:
            model, datamodule = train_on_folder(self, model, datamodule, path)
        else:
            with_weights(model, ckpt_path)
        return purify(self, model, datamodule, products, format, out)

    def predict(self, model: Purifier, datamodule: PurificationData, ckpt_path: str | None = None) -> WrittenSets:  # type: ignore[override]
        """Purify the training set into PNG files; the verb purify has more options.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint; last (the default) or a file.
        """
        return self.purify(model, datamodule, ckpt_path=ckpt_path)

    def poison(
        self,
        model: Purifier,
        datamodule: PurificationData,
        attack: Literal["em", "em_class", "rem", "tap", "sep", "lsp", "ar", "ops", "cuda", "random"],
        out: str | None = None,
        radius: float | None = None,
        rate: float = 1.0,
        choice: Literal["random", "classes"] = "random",
        surrogate: str = "resnet18",
        recipe: Literal["paper", "quick"] = "paper",
        format: Literal["png", "npy"] = "npy",  # noqa: A002
    ) -> WrittenSets:
        """Write a poisoned copy of the training set that the data options name, with the bound measured on the stored integers.

        Args:
            model: supplied.
            datamodule: supplied.
            attack: em, em_class (error-minimising), rem (robust), tap (targeted), sep (checkpoints), lsp (separable patches), ar (autoregressive),
                ops (one pixel), cuda (filters) or random (uniform noise, a control).
            out: folder to write to; by default among the run's artefacts.
            radius: bound, in pixels of 255 (em, em_class, rem, tap, sep, random), as l2 norm in units of [0, 1] images (lsp, ar), or in pixels
                changed (ops); the default is the attack's customary one.
            rate: part of the images that is poisoned.
            choice: random images, or whole classes.
            surrogate: network of em, em_class, rem, tap and sep: cnn, resnet18, resnet50, densenet121, mobilenetv2, vgg19 or vit.
            recipe: paper, or quick (seconds to a minute for small sets on a CPU).
            format: png or npy.
        """
        from projects.dvae.tasks import poison

        return poison(self, datamodule, attack, out, radius, rate, choice, surrogate, recipe, format)

    def train(
        self,
        model: Purifier,
        datamodule: PurificationData,
        path: str | None = None,
        victim: str = "cnn",
        defence: str = "none",
        epochs: int | None = None,
        recipe: Literal["auto", "paper", "quick"] = "auto",
        seed: int = 0,
    ) -> Trained:
        """Train a classifier on a set, and test it on clean images after every epoch.

        Args:
            model: supplied.
            datamodule: supplied.
            path: a stored set, or x1, x2 or x3 of this run; the default is the data set as the data options have it.
            victim: cnn, resnet18, resnet50, densenet121, mobilenetv2, vgg19 or vit.
            defence: none, grey, jpeg:Q, bdr:BITS, blur, cutout, mixup, cutmix, at, ueraser, op, ae:CHANNELS or vae:RATE.
            epochs: epochs; the default is the recipe's.
            recipe: paper (60 epochs of SGD at 0.1), quick (for small sets on a CPU), or auto: quick for the offline sources.
            seed: seed of the classifier.
        """
        from projects.dvae.tasks import train

        return train(self, datamodule, path, victim, defence, epochs, recipe, seed)

    def detect(self, model: Purifier, datamodule: PurificationData, path: str | None = None, reference: str | None = None, seed: int = 0) -> Detected:
        """Judge whether a set was poisoned, by what a rate-limited reconstruction leaves of its images. Exit code 1 if it was.

        Args:
            model: supplied.
            datamodule: supplied.
            path: a stored set, class folders, or x1, x2 or x3 of this run; the default is the data set as the data options have it.
            reference: a clean set of the same kind, class folders or a stored set; without one a threshold from other sets is used.
            seed: seed of halves and training.
        """
        from projects.dvae.tasks import detect

        return detect(self, datamodule, path, reference, seed)

    def bench(
        self,
        model: Purifier,
        datamodule: PurificationData,
        attacks: list[str] | None = None,
        defences: list[str] | None = None,
        victim: str = "cnn",
        seeds: int = 3,
        jobs: int | None = None,
        recipe: Literal["auto", "paper", "quick"] = "auto",
    ) -> None:
        """Compare defences against attacks over seeds on the data that the data options name; goes on where it stopped with --resume.

        Args:
            model: supplied; its rates, epochs and width are those of dvae:x1, dvae:x2, dvae:x3 and dvae:second (its last stage alone).
            datamodule: supplied.
            attacks: clean, given (what the data options put on the set), or those of poison; the default is clean, lsp, ops, ar, or clean, given.
            defences: those of train, and the four of dvae; the default is none, grey, jpeg:10, bdr:2, op, dvae:x2 and dvae:x3.
            victim: cnn, resnet18, resnet50, densenet121, mobilenetv2, vgg19 or vit.
            seeds: number of seeds, from 0.
            jobs: computations at the same time; the default is one a core, or one where there is a GPU.
            recipe: paper, quick, or auto: quick for the offline sources.
        """
        from projects.dvae.benchmark import bench

        bench(self, model, datamodule, attacks, defences, victim, seeds, jobs, recipe)

    def reproduce(
        self,
        model: Purifier,
        datamodule: PurificationData,
        table: Literal["all", "separation", "rates", "ablation", "detection", "textures"] = "all",
        seeds: int | None = None,
        jobs: int | None = None,
        quick: bool = False,
        write: bool = False,
    ) -> None:
        """Reproduce the paper's claims on small data over seeds.

        Args:
            model: supplied.
            datamodule: supplied.
            table: separation (poisons and what is left of them), rates (targets, and distortion against accuracy), ablation (stages, embedding,
                normalisation, poison rates), detection, textures (the final product beside JPEG), or all.
            seeds: number of seeds, from 0; three by default.
            jobs: computations at the same time, one thread each; the default is one a core, or one where there is a GPU.
            quick: one seed, little training and few rows, to see that everything runs.
            write: write the tables into the project's README.
        """
        from projects.dvae.reproduction import TABLES
        from shared.tables import reproduce

        reproduce(self, __file__, TABLES, table, seeds, jobs, quick, write)


def main(args: Sequence[str] | None = None) -> ProjectCLI:
    """Run the command line with `args`, or with those of the process."""
    return run(Purifier, PurificationData, Trainer, args)


if __name__ == "__main__":
    main()
