"""That a user's own net comes apart at its first fully connected layer without becoming another net."""

import copy
import pickle
import sys

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from projects.cafe.closed import solve_inputs, solve_outputs
from projects.cafe.federation import Federation, observe
from projects.cafe.foreign import as_bottom, build_bottoms, load_builder
from projects.cafe.nets import BottomNet, ServerNet
from projects.cafe.schedules import uniform

SHAPE = (1, 8, 8)
CLASSES = 3


class Functional(nn.Module):
    """Flattens, resizes and rectifies in functions, with the batch's size in the tail and arguments that nobody gives."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 3, 3), nn.Linear(27, 9), nn.Linear(9, 4)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, mask=None, twice=False):
        batch, _, _, _ = x.shape
        x = F.max_pool2d(F.relu(self.conv(x * self.scale), inplace=True), 2)
        if mask is not None:
            x = x * mask
        u = F.relu(self.fc1(x.view(x.size(0), -1)), inplace=True)
        u = F.dropout(u, 0.5, self.training)
        return self.fc2(u.view(batch, -1)) * self.scale


class Norms(nn.Module):
    """Has nested parts of the user's own, a residual block before the first fully connected layer, and one after it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)), nn.ReLU(inplace=True))
        self.inner = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.ModuleDict({"one": nn.Linear(48, 8), "two": nn.Linear(8, 8), "out": nn.Linear(8, 4)})

    def forward(self, x):
        skipped = self.stem(x)
        x = self.inner(skipped)
        x += skipped
        u = self.head["one"](F.adaptive_avg_pool2d(x, 4).flatten(1))
        return self.head["out"](u + torch.tanh(self.head["two"](u)))


def sequential():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(inplace=True), nn.Dropout2d(0.3)), nn.Flatten()),
        nn.Sequential(nn.Linear(72, 10), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        nn.Linear(10, 4),
    )


def only_tail():
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 12), nn.ELU(inplace=True), nn.Linear(12, 4))


NETS = {
    "sequential": (sequential, SHAPE),
    "functional": (Functional, SHAPE),
    "norms": (Norms, SHAPE),
    "images-first": (only_tail, SHAPE),
    "tables": (lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)), (5,)),
    "one-layer": (lambda: nn.Linear(5, 4), (5,)),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(2, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(4)), SHAPE),
}
each_net = pytest.mark.parametrize("name", list(NETS))


def drawn(name, records=6):
    """Build a net with the statistics of its batch norms unlike the initial ones, and draw blocks."""
    torch.manual_seed(0)
    make, shape = NETS[name]
    net, blocks = make(), torch.rand(records, *shape)
    net.train()(blocks.clone())
    return net.eval(), blocks


@each_net
def test_the_parts_give_what_the_net_gives_with_the_very_same_parameters(name):
    net, blocks = drawn(name)
    before = copy.deepcopy(net)
    bottom = as_bottom(net, blocks.shape[1:])
    h, u = bottom.middle(blocks)
    assert torch.equal(bottom(blocks), before(blocks.clone()))
    assert torch.equal(bottom(blocks[:1]), before(blocks[:1].clone()))
    assert h.shape == (6, bottom.first.in_features)
    assert torch.equal(u, F.linear(h, bottom.first.weight, bottom.first.bias))
    assert set(bottom.parameters()) == set(net.parameters())
    assert bottom.first is next(module for module in net.modules() if isinstance(module, nn.Linear))
    assert not any(module.training for module in bottom.modules())


@each_net
def test_the_first_layers_gradients_are_the_sums_over_records(name):
    """The bias gradient sums dL/du and the weight gradient dL/du h^T, record by record in the user's own net."""
    net, blocks = drawn(name)
    whole = copy.deepcopy(net).double()
    federation = Federation([as_bottom(net, blocks.shape[1:])], ServerNet(1, 4, CLASSES, 0)).double()
    labels = torch.arange(6) % CLASSES
    found = federation.gradients([blocks.double()], labels).parties[0]
    layer = next(module for module in whole.modules() if isinstance(module, nn.Linear))
    seen = {}
    layer.register_forward_hook(lambda module, args, u: seen.update(h=args[0].clone(), u=u) or u * 1)
    bias, weight = 0, 0
    for block, label in zip(blocks.double(), labels, strict=True):
        loss = F.cross_entropy(federation.server.top(whole(block[None].clone())), label[None]) / 6
        (v,) = torch.autograd.grad(loss, seen["u"])
        bias, weight = bias + v[0], weight + v.T @ seen["h"]
    torch.testing.assert_close(found["first.bias"], bias, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found["first.weight"], weight, rtol=1e-10, atol=1e-14)


def test_all_gradients_are_those_of_the_users_net():
    net, blocks = drawn("functional")
    bottom = as_bottom(net, SHAPE)
    names = {parameter: name for name, parameter in net.named_parameters()}
    found = torch.autograd.grad(bottom(blocks).square().sum(), list(bottom.parameters()))
    expected = dict(zip(names.values(), torch.autograd.grad(net(blocks).square().sum(), list(names)), strict=True))
    for parameter, gradient in zip(bottom.parameters(), found, strict=True):
        assert torch.equal(gradient, expected[names[parameter]])


@each_net
def test_copies_and_pickles_stand_alone(name):
    net, blocks = drawn(name)
    bottom = as_bottom(net, blocks.shape[1:])
    outputs = bottom(blocks)
    twins = [copy.deepcopy(bottom), pickle.loads(pickle.dumps(bottom))]
    for twin in twins:
        twin.load_state_dict(bottom.state_dict())
        assert list(twin.state_dict()) == list(bottom.state_dict())
        assert not set(twin.parameters()) & set(bottom.parameters())
        assert not any(module.training for module in twin.modules())
    with torch.no_grad():
        bottom.first.bias += 1
    for twin in twins:
        assert torch.equal(twin(blocks), outputs)


@pytest.mark.parametrize("name", ["images-first", "tables", "one-layer"])
def test_a_body_that_moves_no_number_is_told_from_one_that_does(name):
    net, blocks = drawn(name)
    bottom = as_bottom(net, blocks.shape[1:])
    assert isinstance(bottom.body, (nn.Identity, nn.Flatten))
    assert torch.equal(bottom.middle(blocks)[0], blocks.flatten(1))


def test_numbers_that_change_place_or_value_are_not_the_record_itself():
    for function in (lambda net, x: net.out(net.fc(x.mT.flatten(1))), lambda net, x: net.out(net.fc((2 * x).view(x.shape[0], -1)))):
        bottom, blocks = as_bottom(Made(function), SHAPE), torch.rand(2, *SHAPE)
        assert not isinstance(bottom.body, nn.Flatten)
        assert not torch.equal(bottom.middle(blocks)[0], blocks.flatten(1))
    assert isinstance(as_bottom(Made(lambda net, x: net.out(net.fc(x.view(x.shape[0], -1)))), SHAPE).body, nn.Flatten)


@pytest.mark.parametrize("name", ["functional", "norms"])
def test_the_closed_form_recovers_h_of_a_users_net(name):
    torch.manual_seed(0)
    records, blocks = 12, [torch.rand(12, *SHAPE), torch.rand(12, *SHAPE)]
    nets = [NETS[name][0](), NETS[name][0]()]
    federation = Federation([as_bottom(net, SHAPE, seed) for seed, net in enumerate(nets)], ServerNet(2, 4, CLASSES, 0))
    schedule = uniform(records, 3, 30, 0)
    view = observe(federation, blocks, torch.arange(records) % CLASSES, schedule)
    for party, bottom in enumerate(federation.bottoms):
        h = bottom.middle(blocks[party])[0].detach().double()
        outputs = solve_outputs(view.bias_gradients(party), schedule)
        found = solve_inputs(view.weight_gradients(party), schedule, outputs).complete()
        assert (found - h).norm() / h.norm() < 1e-4


def test_a_residual_network_of_torchvision_ends_in_its_first_fully_connected_layer():
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=4)
    blocks = torch.rand(2, 3, 32, 32)
    bottom = as_bottom(net, (3, 32, 32))
    assert bottom.first is net.fc
    assert isinstance(bottom.tail, nn.Identity)
    assert torch.equal(bottom(blocks), net(blocks))


def test_a_bottom_net_is_returned_as_it_is():
    class Wayward(nn.Module):
        def forward(self, x):
            return x.flatten(1) if len(x) else -x.flatten(1)

    own = BottomNet(Wayward(), nn.Linear(64, 5), nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 2)))
    assert as_bottom(own, SHAPE) is own
    assert not own.tail.training


def test_the_global_generators_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    as_bottom(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), SHAPE)
    assert torch.equal(torch.rand(3), expected)


class Made(nn.Module):
    """A net out of a function of itself and its blocks, with layers to choose from."""

    def __init__(self, function):
        super().__init__()
        self.fc, self.out, self.wide, self.plain = nn.Linear(64, 8), nn.Linear(8, 4), nn.Linear(8, 8), nn.Linear(64, 8, bias=False)
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)
        self.conv, self.coder = nn.Conv2d(1, 4, 8), nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def spoilt(net, x):
    u = net.fc(x.flatten(1)).exp()
    u += 1
    return net.out(u)


def without_gradient(net, x):
    with torch.no_grad():
        x = net.conv(x)
    return net.out(x.flatten(1).repeat(1, 2))


def branching(net, x):
    return net.out(net.fc(x.flatten(1))) if x.shape[0] > 0 else net.out(-net.fc(x.flatten(1)))


REFUSED = {
    "none": (lambda net, x: net.conv(x).flatten(1), "no nn.Linear leads to the net's outputs.*end the net in one"),
    "unused": (lambda net, x: (net.fc(x.flatten(1)), net.conv(x).flatten(1))[1], "no nn.Linear leads to the net's outputs"),
    "no-bias": (lambda net, x: net.out(net.plain(x.flatten(1))), "'plain' has no bias, .*give it bias=True"),
    "sequence": (lambda net, x: net.out(net.wide(x[:, 0]).mean(1)), r"is given \(3, 8, 8\) for 3 records, .*: flatten before it"),
    "encoder": (lambda net, x: net.out(net.coder(x[:, 0]).mean(1)), "inside 'coder', a TransformerEncoderLayer, .*later layer"),
    "skip": (lambda net, x: net.out(net.fc(x.flatten(1)) + x.flatten(1)[:, :8]), "leads around .* 'fc', into 'add'.*take the skip connection out"),
    "input-again": (lambda net, x: torch.cat([net.fc(x.flatten(1)), x.mean((1, 2, 3))[:, None]], 1), "leads around .* 'fc', into 'cat'"),
    "two-branches": (lambda net, x: net.out(net.fc(x.flatten(1)) * net.wide(x[:, 0, 0])), "leads around .* 'fc', into 'mul'"),
    "twice": (lambda net, x: net.out(net.wide(net.wide(x[:, 0, 0]).relu())), "'wide' is used twice, .*: give each use its own"),
    "tied": (lambda net, x: F.linear(net.fc(x.flatten(1)), net.fc.weight.t()), "shares its weight or bias .*: untie them"),
    "branching": (branching, "torch.fx cannot follow the forward pass of Made.*TraceError.*return a BottomNet"),
    "refuses": (lambda net, x: net.out(net.fc(x)), r"cannot take blocks of shape \(3, 1, 8, 8\).*: RuntimeError: .*; build it for this shape"),
    "squeezes": (lambda net, x: net.out(net.fc(x.flatten(1)).squeeze()), r"a tensor of shape \(4,\) for 1 records"),
    "tuple": (lambda net, x: (net.out(net.fc(x.flatten(1))), x), r"gives a tuple for 3 records: .*\(records, outputs\)"),
    "flat": (lambda net, x: net.out(net.fc(x.flatten(1)))[:, 0], r"gives a tensor of shape \(3,\) for 3 records"),
    "nan": (lambda net, x: net.out(net.fc(x.flatten(1))) / 0, "not finite"),
    "chance": (lambda net, x: net.out(F.dropout(net.fc(x.flatten(1)))), "other outputs when asked again.*training=self.training"),
    "batch": (lambda net, x: net.out(net.fc(x.flatten(1)) - net.fc(x.flatten(1)).mean(0)), "depend on the rest of its batch: "),
    "spoilt": (spoilt, "cannot be trained, since its loss cannot be differentiated: .*modified by an inplace operation"),
    "no-grad": (without_gradient, r"not differentiate, what the net does.*no_grad\(\).*take them out"),
    "no-grad-at-all": (torch.no_grad()(lambda net, x: net.out(net.fc(x.flatten(1)))), "not differentiate, what the net does"),
    "in-place": (lambda net, x: net.out(net.fc(x.flatten(1)).relu_()), r"output of the first fully connected layer in place: write x = f\(x\)"),
    "blocks-in-place": (lambda net, x: net.out(net.fc(x.relu_().flatten(1))), "changes its blocks in place"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_does_not_come_apart_is_refused_with_the_mend(name):
    function, message = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        as_bottom(Made(function), SHAPE)


def test_weights_without_a_gradient_of_their_own_are_refused():
    net = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 8)), nn.Linear(8, 4))
    with pytest.raises(ValueError, match="computed from other parameters: remove its parametrisation"):
        as_bottom(net, SHAPE)
    frozen = sequential()
    frozen[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"body\.0\.0\.weight and 1 more parameters are frozen .*requires_grad_\(True\)"):
        as_bottom(frozen, SHAPE)


SOURCE = """
import random
import layers_beside
import numpy
import torch
from torch import nn

def net(width, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, outputs))
def both(shape, seed):
    torch.manual_seed(seed)
    return net(shape[0], 4)
def shape_only(size, outputs=4):
    import layers_beside_too
    return net(size[0], outputs)
def nothing(outputs=4):
    return net(5, outputs)
def swapped(seed, shape=None):
    assert isinstance(seed, int)
    return net(shape[0], 4)
def drawn(shape):
    own = net(shape[0], 4)
    nn.init.constant_(own[1].bias, random.random() + numpy.random.rand())
    return own
def uneven(shape): return net(shape[0], shape[0])
def wrong(shape): return {}
def raises(shape): return shape["width"]
def many(shape, seed, device): return net(shape[0], 4)
KEPT = net(5, 4)
def same(): return KEPT
def tall(shape): return net(shape[0] + 1, 4)
_hidden = both
"""


@pytest.fixture
def source(tmp_path):
    (tmp_path / "layers_beside.py").write_text("")
    (tmp_path / "layers_beside_too.py").write_text("")
    (tmp_path / "nets.py").write_text(SOURCE)
    yield str(tmp_path / "nets.py")
    for name in ("layers_beside", "layers_beside_too"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("function", ["both", "shape_only", "nothing", "swapped", "drawn"])
def test_a_users_function_gets_what_it_asks_for_and_weights_can_be_had_again(source, function):
    path, known = list(sys.path), torch.get_rng_state()
    one, two = build_bottoms(f"{source}:{function}", [(5,), (5,)], 0)
    again, other = build_bottoms(f"{source}:{function}", [(5,), (5,)], 0)[0], build_bottoms(f"{source}:{function}", [(5,), (5,)], 1)[0]
    assert torch.equal(one.first.weight, again.first.weight)
    assert torch.equal(one.first.bias, again.first.bias)
    assert not torch.equal(one.first.weight, two.first.weight)
    assert not torch.equal(one.first.weight, other.first.weight)
    assert sys.path == path
    assert torch.equal(torch.get_rng_state(), known)


def test_a_function_of_a_module_is_found_by_its_name():
    bottoms = build_bottoms("torchvision.models:resnet18", [(3, 32, 32)], 0)
    assert bottoms[0].first.out_features == 1000


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("nets.py", ValueError, r"'.*nets\.py' names no function: give file\.py:function"),
        ("absent.py:both", FileNotFoundError, r"no file .*absent\.py"),
        ("nets.py:absent", ValueError, "no function 'absent': it has net, both, shape_only, nothing, swapped, drawn, .*, tall$"),
        ("nets.py:KEPT_", ValueError, "no function 'KEPT_'"),
        ("broken.py:both", ValueError, r"broken\.py raises ZeroDivisionError: .*; while it is imported, line 2"),
        ("stops.py:both", ValueError, r"stops\.py raises SystemExit: 3; while it is imported"),
        ("mistyped.py:both", ValueError, r"mistyped\.py raises SyntaxError: "),
        ("lacking.py:both", ValueError, r"lacking\.py raises ModuleNotFoundError: No module named 'layers_absent'"),
    ],
    ids=["no-colon", "no-file", "no-function", "no-such-name", "raises", "exits", "syntax", "imports"],
)
def test_what_cannot_be_imported_is_refused(source, tmp_path, path, error, message):
    (tmp_path / "broken.py").write_text("x = 1\nx / 0\n")
    (tmp_path / "stops.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "mistyped.py").write_text("def both(:\n")
    (tmp_path / "lacking.py").write_text("import layers_absent\n")
    known = set(sys.modules)
    with pytest.raises(error, match=message):
        load_builder(str(tmp_path / path))
    assert not any(name.startswith("_cafe_foreign") for name in set(sys.modules) - known) or "nets.py:" in path


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"no module torch\.absent_module: install it"):
        load_builder("torch.absent_module:net")


@pytest.mark.parametrize(
    ("function", "shapes", "message"),
    [
        ("wrong", [(5,)], r"nets\.py:wrong returned a dict: it must return a torch\.nn\.Module"),
        ("raises", [(5,)], r"nets\.py raises TypeError: .*; in raises\(\) for blocks of shape \(5,\), line 27"),
        ("many", [(5,)], r"is given a shape and a seed, but it takes \(shape, seed, device\)"),
        ("uneven", [(5,), (7,)], "with 5, 7 outputs: the server needs the same number from all parties"),
        ("same", [(5,), (5,)], "parties 0 and 1 the same parameters: build a new net at each call"),
        ("tall", [(5,)], r"nets\.py:tall for party 0: the net cannot take blocks of shape \(3, 5\)"),
    ],
    ids=["no-net", "raises", "arguments", "widths", "shared", "shape"],
)
def test_what_a_users_function_gets_wrong_is_named(source, function, shapes, message):
    with pytest.raises(ValueError, match=message):
        build_bottoms(f"{source}:{function}", shapes, 0)
