import json
import re
from collections import Counter

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from projects.forgery_nas.genotype import (
    BUILT_IN,
    CELLS,
    RELEASED,
    Genotype,
    as_released,
    draw,
    edge_number,
    edges,
    histogram,
    load_genotype,
    mutate,
    random_genotype,
    to_dot,
)
from projects.forgery_nas.operations import SMALL_SPACE, SPACE, check_operation


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def flat(genotype):
    return [edge for cell in CELLS for node in getattr(genotype, cell) for edge in node]


def pair(first="skip_connect", sources=(0, 1)):
    return tuple((first, source) for source in sources)


def test_edges_are_numbered_node_by_node():
    assert len(edges(4)) == 14
    assert edges(2) == ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2))
    for number, (node, source) in enumerate(edges(6)):
        assert edge_number(node, source) == number == sum(2 + m for m in range(node)) + source


def test_released_genotype_is_the_published_one():
    counts = histogram(RELEASED)
    assert counts["normal"] == Counter({"sep_cdc_3x3_0.5": 3, "sep_cdc_3x3_0.0": 2, "max_pool_3x3": 1, "sep_cdc_3x3_0.8": 1, "sep_cdc_3x3_0.7": 1})
    assert counts["reduce"] == Counter({"max_pool_3x3": 5, "sep_cdc_3x3_0.8": 2, "sep_cdc_3x3_0.7": 1})
    assert all(name in SPACE for name, _ in flat(RELEASED))
    assert load_genotype("released") == RELEASED


@pytest.mark.parametrize("nodes", [1, 4, 5])
def test_json_there_and_back(nodes, tmp_path):
    for seed in range(20):
        genotype = random_genotype(SPACE, rng(seed), nodes)
        content = json.loads(genotype.to_json())
        assert content["normal_concat"] == list(range(2, 2 + nodes))
        assert [tuple(edge) for edge in content["normal"] + content["reduce"]] == flat(genotype)
        assert Genotype.from_json(genotype.to_json()) == genotype
    path = tmp_path / "found.json"
    path.write_text(json.dumps(content | {"stage": 3}))
    assert load_genotype(path) == load_genotype(str(path)) == genotype


def test_order_of_a_nodes_edges_does_not_matter():
    swapped = Genotype(tuple(node[::-1] for node in RELEASED.normal), [list(node)[::-1] for node in RELEASED.reduce])
    assert swapped == RELEASED
    assert hash(swapped) == hash(RELEASED)
    assert swapped.to_json() == RELEASED.to_json()


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((), "the normal cell has no nodes"),
        ((pair(), pair(sources=(0, 1, 2))), "node 1 of the normal cell has 3 edges"),
        ((pair(sources=(0, 2)),), "node 0 of the normal cell has the inputs 0 and 2: they are from 0 .* to 1"),
        ((pair(sources=(-1, 0)),), "they are from 0"),
        ((pair(), pair(sources=(2, 2))), "has input 2 twice"),
        ((pair("none"),), "operation none"),
    ],
)
def test_invalid_cells_are_refused(nodes, message):
    with pytest.raises(ValueError, match=message):
        Genotype(normal=nodes, reduce=(pair(),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: "{", "a genotype is JSON"),
        (lambda c: json.dumps([1]), "normal is missing"),
        (lambda c: json.dumps({k: v for k, v in c.items() if k != "reduce"}), "reduce is missing"),
        (lambda c: json.dumps(c | {"reduce": [["skip_connect", "0"]]}), r'reduce has \["skip_connect", "0"\]'),
        (lambda c: json.dumps(c | {"normal": [["skip_connect", True]]}), "normal has"),
        (lambda c: json.dumps(c | {"normal": [["skip_connect", 0]]}), "normal has 1 edges, not two a node"),
        (lambda c: json.dumps(c | {"normal_concat": [3, 4, 5]}), r"normal_concat is \[3, 4, 5\]: a cell joins all its nodes, \[2, 3, 4, 5\]"),
        (lambda c: json.dumps(c | {"normal": [["none", 0], ["skip_connect", 1]], "normal_concat": [2]}), "operation none"),
    ],
)
def test_files_without_a_genotype_are_refused(change, message, tmp_path):
    path = tmp_path / "genotype.json"
    path.write_text(change(json.loads(RELEASED.to_json())))
    with pytest.raises(ValueError, match=f"genotype.json holds no genotype: .*{message}"):
        load_genotype(path)


def test_missing_genotypes_are_named():
    with pytest.raises(FileNotFoundError, match=r"no genotype realesed: .*built-in released"):
        load_genotype("realesed")


def test_random_genotypes_are_uniform():
    generator = rng()
    drawn = [random_genotype(SMALL_SPACE, generator) for _ in range(1500)]
    operations = Counter(name for genotype in drawn for name, _ in flat(genotype))
    assert set(operations) == set(SMALL_SPACE) - {"none"}
    assert all(abs(count / (16 * 1500) - 1 / 6) < 0.012 for count in operations.values())  # 5 standard deviations
    last = Counter(tuple(source for _, source in genotype.reduce[3]) for genotype in drawn)
    assert len(last) == 10
    assert all(abs(count / 1500 - 0.1) < 0.04 for count in last.values())
    assert random_genotype(SMALL_SPACE, rng(7)) == random_genotype(SMALL_SPACE, rng(7)) != random_genotype(SMALL_SPACE, rng(8))


def changed(parent, child):
    """Return what differs: the multisets of a node's edges that only one of both has."""
    found = []
    for cell in CELLS:
        for before, after in zip(getattr(parent, cell), getattr(child, cell), strict=True):
            if before != after:
                found.append((set(before) - set(after), set(after) - set(before)))
    return found


def test_mutation_changes_one_operation_or_one_input():
    generator, kinds = rng(), Counter()
    genotype = random_genotype(SPACE, generator)
    for _ in range(300):
        child = mutate(genotype, SPACE, generator)
        ((lost, gained),) = changed(genotype, child)
        ((name, source),), ((other_name, other_source),) = lost, gained
        assert (name != other_name) != (source != other_source)
        kinds["operation" if name != other_name else "input"] += 1
        genotype = child
    assert 0.3 < kinds["input"] / 300 < 0.55  # 12 of the 28 changes there are
    assert mutate(RELEASED, SPACE, rng(3)) == mutate(RELEASED, SPACE, rng(3))


def test_mutation_needs_something_to_change():
    with pytest.raises(ValueError, match="nothing can change"):
        mutate(Genotype((pair(),), (pair(),)), ["skip_connect", "none"], rng())
    with pytest.raises(ValueError, match="besides none"):
        random_genotype(["none"], rng())
    only_inputs = mutate(Genotype((pair(), pair()), (pair(),)), ["skip_connect"], rng())
    assert 2 in [source for _, source in only_inputs.normal[1]]


def test_renaming_keeps_the_topology():
    genotype = Genotype((pair("dil_cdc_3x3_0.7"), pair("sep_cdc_3x3_0.7", (1, 2))), (pair(),))
    released = as_released(genotype)
    assert [source for _, source in flat(released)] == [source for _, source in flat(genotype)]
    assert {name for name, _ in flat(released)} == {"dil_cdc_3x3_0.0", "sep_cdc_3x3_0.7", "skip_connect"}
    assert as_released(RELEASED) == RELEASED
    assert released.replaced({"dil_cdc_3x3_0.0": "dil_cdc_3x3_0.7"}) == genotype


def test_dot_has_every_edge():
    for genotype in (*BUILT_IN.values(), random_genotype(SPACE, rng())):
        text = to_dot(genotype)
        for cell in CELLS:
            found = re.findall(rf'{cell}_(\d+) -> {cell}_(\d+) \[label="(.*?)"\]', text)
            expected = [(name, source, node) for node, pairs in enumerate(getattr(genotype, cell), start=2) for name, source in pairs]
            assert sorted((name, int(source), int(node)) for source, node, name in found) == sorted(expected)
        unquoted = re.sub(r'"[^"]*"', "", text)
        assert unquoted.count("{") == unquoted.count("}") == 3


def test_picture_names_every_operation():
    genotype = random_genotype(SPACE, rng(1), nodes=5)
    figure = draw(genotype)
    for axes, cell in zip(figure.axes, CELLS, strict=True):
        written = Counter(text.get_text() for text in axes.texts)
        assert written & histogram(genotype)[cell] == histogram(genotype)[cell]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:  # no label covers another
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in axes.texts if text.get_text()]
        assert not any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[:number])


def test_operations_of_built_in_genotypes_exist():
    for name in {name for genotype in BUILT_IN.values() for name, _ in flat(genotype)} | set(SPACE):
        check_operation(name)
