"""How a net comes apart at its first fully connected layer: what leads to it, the layer, and the rest."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from operator import getitem

from torch import fx, nn

from projects.cafe.nets import BottomNet

BY_HAND = "return a BottomNet(body, first, tail) from projects.cafe.nets"
"""What always helps, for messages."""
RESHAPES = frozenset({"flatten", "reshape", "view"})


class _Tracer(fx.Tracer):
    """Traces into all modules but torch's own and fully connected layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Linear) or super().is_leaf_module(m, module_qualified_name)


def taken_apart(net: nn.Module) -> BottomNet:
    """Split a net, which runs, at its first fully connected layer, by the graph of its forward pass.

    Raises:
        ValueError: if there is no such layer, it has no bias, it is used twice, something leads around it, or the graph cannot be told.
    """
    net = nn.Sequential(net) if isinstance(net, nn.Linear) else net
    graph = _traced(net)
    outputs = graph.output_node().all_input_nodes[-1]
    needed = _leading_to(outputs)
    call = _first_call(net, needed)
    layer = net.get_submodule(str(call.target))
    assert isinstance(layer, nn.Linear)
    after = _reached(needed, call)
    sizes = [node for node in needed if node not in after and _is_batch_size(node)]
    rest = _leading_to(outputs, {call, *sizes})
    source = next(node for node in graph.nodes if node.op == "placeholder")
    if source in rest:
        around = _reached(rest, source) - after
        merge = next(node for node in rest if node in after and not around.isdisjoint(node.all_input_nodes))
        raise ValueError(
            f"something leads around the first fully connected layer '{call.target}', into '{merge.name}': its output must be all that the rest of "
            f"the net sees, so take the skip connection out, or {BY_HAND} with a later layer as `first`"
        )
    h = call.all_input_nodes[0]
    return BottomNet(_part(net, _leading_to(h, {source}), source, h, []), layer, _part(net, rest, call, outputs, sizes))


def _traced(net: nn.Module) -> fx.Graph:
    """Return the graph of a net's forward pass, in which arguments after the first have their defaults."""
    _, *others = inspect.signature(net.forward).parameters.values()
    defaults = {other.name: other.default for other in others if other.default is not other.empty}
    try:
        return _Tracer().trace(net, concrete_args=defaults or None)
    except Exception as error:  # fx runs the user's code with symbols: there is no end to what that may raise
        raise ValueError(
            f"torch.fx cannot follow the forward pass of {type(net).__name__}, which may hang on its data: {type(error).__name__}: {error}; {BY_HAND}"
        ) from error


def _leading_to(result: fx.Node, stops: Collection[fx.Node] = ()) -> list[fx.Node]:
    """Return the nodes that a result depends on and itself, in their order, without `stops` and what only leads to these."""
    found, stack = set(), [result]
    while stack:
        node = stack.pop()
        if node not in found and node not in stops:
            found.add(node)
            stack += node.all_input_nodes
    return [node for node in result.graph.nodes if node in found]


def _reached(nodes: list[fx.Node], start: fx.Node) -> set[fx.Node]:
    found = {start}
    for node in nodes:
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _first_call(net: nn.Module, nodes: list[fx.Node]) -> fx.Node:
    """Return the call of the first fully connected layer, which must have a bias and no other call."""
    calls = {node: net.get_submodule(str(node.target)) for node in nodes if node.op == "call_module"}
    for call, module in calls.items():
        if isinstance(module, nn.Linear):
            if module.bias is None:
                raise ValueError(f"the first fully connected layer '{call.target}' has no bias, whose gradient step I reads: give it bias=True")
            if sum(other is module for other in calls.values()) > 1:
                raise ValueError(f"the first fully connected layer '{call.target}' is used twice, and the gradients add up: give each use its own")
            return call
        if any(isinstance(part, nn.Linear) for part in module.modules()):
            raise ValueError(
                f"the first fully connected layers are inside '{call.target}', a {type(module).__name__}, which does not come apart: "
                f"{BY_HAND} with a later layer as `first`"
            )
    raise ValueError("no nn.Linear leads to the net's outputs, but steps I and II read the gradients of one: end the net in one")


def _is_batch_size(node: fx.Node) -> bool:
    """Tell whether a node is `x.size(0)`, `x.size()[0]` or `x.shape[0]`, which say nothing about the records."""
    if node.op == "call_method":
        return node.target == "size" and (*node.args[1:], *node.kwargs.values()) == (0,)
    sized = node.args[0] if node.target is getitem and node.args[1] in (0,) else None
    return isinstance(sized, fx.Node) and (sized.target == "size" or sized.args[1:] == ("shape",))


def _part(net: nn.Module, nodes: list[fx.Node], source: fx.Node, result: fx.Node, sizes: list[fx.Node]) -> nn.Module:
    """Build a part of a net out of the nodes from `source` to `result`; `sizes` are read off its input."""
    if result is source:
        return nn.Identity()
    if all(_is_reshape(net, node) for node in nodes):
        return nn.Flatten()  # h is then known to be the record itself
    graph = fx.Graph()
    copies = {source: graph.placeholder("values")}
    copies |= {size: graph.call_method("size", (copies[source], 0)) for size in sizes}
    for node in nodes:
        copy = copies[node] = graph.node_copy(node, copies.__getitem__)
        if copy.kwargs.get("inplace"):
            copy.kwargs = {**copy.kwargs, "inplace": False}
    graph.output(copies[result])
    return fx.GraphModule(net, graph)


def _is_reshape(net: nn.Module, node: fx.Node) -> bool:
    """Tell whether a node moves no number, given that (B, D) comes out in the end."""
    if node.op == "call_module":
        return isinstance(net.get_submodule(str(node.target)), (nn.Flatten, nn.Identity, nn.Dropout))
    is_size = node.target == "size" or node.args[1:] == ("shape",)
    return is_size or _is_batch_size(node) or getattr(node.target, "__name__", node.target) in RESHAPES
