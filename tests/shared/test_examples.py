from types import SimpleNamespace

import pytest
import torch

from shared import examples
from shared.examples import ValidationExamples


class Counted(ValidationExamples):
    def draw(self, module, pictures):
        return torch.full((3, 1, 1), len(pictures) / 10)


def test_sheets_are_drawn_after_epochs_that_double_in_number(monkeypatch):
    drawn = []
    monkeypatch.setattr(examples, "log_image", lambda trainer, name, image, step: drawn.append((name, float(image.mean()), step)))
    trainer = SimpleNamespace(sanity_checking=False, is_global_zero=True, max_epochs=11, datamodule=SimpleNamespace(val_set=[1, 2, 3]))
    for epoch in range(11):
        trainer.current_epoch = epoch
        Counted().on_validation_end(trainer, None)
    assert drawn == [("examples", pytest.approx(0.3), step) for step in (1, 2, 4, 8, 11)]
    for change in ({"sanity_checking": True}, {"is_global_zero": False}):
        Counted().on_validation_end(SimpleNamespace(**(vars(trainer) | change)), None)
    assert len(drawn) == 5
