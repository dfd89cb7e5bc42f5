import torch

from projects.cafe.federation import Federation, observe
from projects.cafe.nets import ServerNet, tabular_bottom
from projects.cafe.rivals.attacks import idlg
from projects.cafe.rivals.views import attacked_at, observed_at


def view_of(**options):
    federation = Federation([tabular_bottom(features, [12], 5, seed) for seed, features in enumerate((3, 4))], ServerNet(2, 5, 3, 2))
    blocks = [torch.rand(6, features, generator=torch.Generator().manual_seed(features)) for features in (3, 4)]
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    schedule = torch.eye(6, dtype=torch.bool)
    if options.pop("training", False):
        options["optimiser"] = torch.optim.SGD(federation.parameters(), lr=0.1)
    return observe(federation, blocks, labels, schedule, **options), blocks, labels


def test_a_view_of_a_trained_federation_gives_each_rounds_model_and_gradients():
    view, blocks, labels = view_of(training=True)
    for t in (0, 5):
        attacked = attacked_at(view, t)
        attacked.check(observed_at(view, t))
        target = torch.nn.functional.one_hot(labels[t : t + 1], 3).float()
        torch.testing.assert_close(attacked.gradients([block[t : t + 1] for block in blocks], target), observed_at(view, t))


def test_only_the_recorded_gradients_are_matched():
    view, _, _ = view_of(names=["first.weight"])
    shapes = [tuple(parameter.shape) for parameter in attacked_at(view, 0).parameters]
    assert shapes == [tuple(gradient.shape) for gradient in observed_at(view, 0)]
    assert len(shapes) == 4


def test_an_attack_reads_the_label_off_a_view():
    view, _, labels = view_of()
    for t in range(3):
        found = idlg(attacked_at(view, t), observed_at(view, t), view.shapes, 1, steps=1)
        assert int(found.labels.argmax()) == labels[t]
