import pytest
import torch
from torch import nn

from shared.smoothing import Branch, Budget, Placed, Placement, SmoothedClassifier, Smoothing

MEAN, STD = torch.tensor([0.4, 0.5]), torch.tensor([0.2, 0.3])
EVERY = torch.arange(2 * 6 * 8).view(2, 6, 8)
UPSAMPLED = torch.arange(2 * 6 * 4).view(2, 6, 4).repeat_interleave(2, dim=2)
MASKED = torch.full((2, 6, 8), -1)
MASKED[..., ::2] = torch.arange(2 * 6 * 4).view(2, 6, 4)


def even(images):
    return images[..., ::2]


def whole(images):
    return images


def normalised(images):
    return (images - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1)


CASES = {
    "identity": (EVERY, whole, lambda parts: parts),
    "upsampled": (UPSAMPLED, even, lambda parts: parts.repeat_interleave(2, dim=-1)),
    "masked": (MASKED, even, lambda parts: torch.stack([parts, torch.zeros_like(parts)], dim=-1).flatten(-2)),
    "first row": (EVERY[:, :1] % 8, whole, lambda parts: parts[:, :1, :1].expand(-1, 2, -1, -1)),
}


@pytest.mark.parametrize("case", CASES)
def test_votes_are_those_of_the_plain_composition(case):
    source, take, place = CASES[case]
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(2, 4, (1, 3)), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()
    placed = Placed(Placement(source, MEAN, STD), net)
    images = torch.rand(3, 2, 6, 8)
    assert torch.equal(placed.placement(take(images)), normalised(place(take(images))))
    assert torch.equal(placed(take(images)), net(normalised(place(take(images)))))

    def certify(classifier):
        branches = [Branch(classifier, take)]
        return SmoothedClassifier(branches, 3, Smoothing((0.5,)), Budget(20, 400), key=8).certify(images)

    for found, expected in zip(certify(placed), certify(lambda parts: net(normalised(place(parts)))), strict=True):
        assert torch.equal(found.estimation, expected.estimation)
        assert torch.equal(found.selection, expected.selection)


def test_other_precisions_are_reached_after_normalisation():
    seen = []

    def network(images):
        seen.append(images.clone())
        return images.float().mean((2, 3))

    placed = Placed(Placement(UPSAMPLED, MEAN, STD), Recorded(network))
    settings = {"classes": 2, "smoothing": Smoothing((0.5,)), "budget": Budget(4, 4)}
    for dtype in (torch.float32, torch.bfloat16):
        is_last = dtype == torch.bfloat16
        SmoothedClassifier([Branch(placed, even)], **settings, dtype=dtype, channels_last=is_last).certify(torch.full((1, 2, 6, 8), 0.3))
        assert seen[-1].is_contiguous(memory_format=torch.channels_last) or not is_last
    whole, half = (next(images for images in reversed(seen) if images.dtype == dtype) for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(whole.to(torch.bfloat16), half)


class Recorded(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.forward = network


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Placement(EVERY[0], MEAN, STD), "a mean and a deviation for each channel"),
        (lambda: Placement(EVERY, MEAN[:1], STD), "a mean and a deviation for each channel"),
        (lambda: Placement(EVERY - 2, MEAN, STD), "at least -1"),
        (lambda: Placement(EVERY, MEAN, -STD), "deviations positive"),
        (lambda: Placement(EVERY, MEAN, STD)(torch.rand(1, 2, 6, 4)), "takes 96 elements, the part has 48"),
        (lambda: Placement(EVERY[:1], MEAN[:1], STD[:1])(torch.rand(1, 1, 12, 8)), "takes 48 elements, the part has 96"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
