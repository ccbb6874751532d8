"""The vocabulary of spaces: which cells are refused, when genotypes are equal, and what every message says."""

import itertools
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import networkx
import pytest
import torch
from torch import nn

from nas.errors import ConfigError
from nas.space import Cell, CellSlot, Edge, Genotype, SearchSpace, Task

ALL = ("none", "skip", "pool")
OPERATIONS = dict.fromkeys(ALL, lambda site: nn.Identity())


@dataclass(frozen=True, kw_only=True)
class Toy(SearchSpace):
    """A space of the given cells."""

    table: Mapping[str, Cell] = field(default_factory=dict)

    operations = OPERATIONS

    @property
    def cells(self):
        return self.table

    def layers(self, task: Task, searching: bool):
        return [CellSlot(name, 2) for name in self.table]


def edges(*pairs: tuple[int, int], operations: tuple[str, ...] = ALL) -> tuple[Edge, ...]:
    return tuple(Edge(source, target, operations) for source, target in pairs)


DIAMOND = Cell(edges((0, 1), (0, 2), (1, 3), (2, 3)), outputs=(3,))
"""0 to 1 and 2, both to 3."""


def diamond(*operations: str) -> Genotype:
    choices = zip([(0, 1), (0, 2), (1, 3), (2, 3)], operations, strict=True)
    return Genotype({"cell": tuple((s, t, o) for (s, t), o in choices if o != "-")})


# Cells


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cell(edges((0, 1), (1, 2), (2, 1)), outputs=(2,)), r"cycle through nodes 1 -> 2"),
        (lambda: Cell(edges((0, 1), (1, 1)), outputs=(1,)), r"cycle through nodes 1"),
        (lambda: Cell(edges((0, 1), (0, 1)), outputs=(1,)), r"parallel edges \[\(0, 1\)\]"),
        (lambda: Cell(edges((0, 2), (0, 1)), outputs=(2,), inputs=2), r"edge 0-1 leads into an input.*0 to 1"),
        (lambda: Cell(edges((-1, 1), (0, 1)), outputs=(1,)), r"edge -1-1"),
        (lambda: Cell(edges((0, 1), operations=()), outputs=(1,)), r"edge 0-1 needs distinct candidates, got \(\)"),
        (lambda: Cell(edges((0, 1), operations=("skip", "skip")), outputs=(1,)), r"edge 0-1 needs distinct"),
        (lambda: Cell(edges((0, 1)), outputs=()), r"outputs must be nodes after the 1 inputs, got \(\)"),
        (lambda: Cell(edges((0, 1)), outputs=(0, 1)), r"outputs must be nodes after the 1 inputs, got \(0, 1\)"),
        (lambda: Cell(edges((0, 1)), outputs=(1,), inputs=0), r"outputs must be nodes after the 0 inputs"),
        (lambda: Cell(edges((0, 1)), outputs=(1,), combine="concat"), r"combine.*'concat'"),
        (lambda: Cell(edges((0, 1)), outputs=(1,), retain=0), r"retain.*0"),
    ],
)
def test_cells_that_are_no_acyclic_graph_of_candidates_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_order_is_topological_whatever_the_order_and_numbers_of_the_edges():
    pairs = [(0, 4), (1, 4), (4, 2), (4, 5), (2, 3), (5, 3), (0, 3)]
    for seed in range(20):
        random.Random(seed).shuffle(pairs)
        cell = Cell(edges(*pairs), outputs=(3,), inputs=2)
        assert sorted(cell.order) == [2, 3, 4, 5]
        position = {node: i for i, node in enumerate((0, 1, *cell.order))}
        assert all(position[source] < position[target] for source, target in pairs)


def test_a_node_without_in_edges_is_in_the_order_and_an_output_without_edges_too():
    assert Cell(edges((7, 2)), outputs=(2, 4)).order == (4, 7, 2)


def test_edges_with_fewer_candidates_are_masked_at_the_end_of_their_row():
    cell = Cell((Edge(0, 1, ("a",)), Edge(0, 2, ("a", "b", "c")), Edge(1, 2, ("c", "a"))), outputs=(2,))
    assert cell.candidates == 3
    assert cell.mask.tolist() == [[True, False, False], [True, True, True], [True, True, False]]
    assert cell.mask.dtype == torch.bool


def test_in_edges_are_rows_in_the_order_of_the_logits():
    cell = Cell(edges((0, 3), (0, 1), (1, 3), (0, 2), (2, 3)), outputs=(3,))
    assert [cell.in_edges(node) for node in range(4)] == [[], [1], [3], [0, 2, 4]]


def test_the_graph_of_a_cell_has_its_nodes_edges_and_candidates():
    cell = Cell((Edge(0, 3, ("a", "b")), Edge(1, 3, ("c",))), outputs=(3, 4), inputs=3)
    graph = cell.graph()
    assert isinstance(graph, networkx.DiGraph)
    assert sorted(graph.nodes) == [0, 1, 2, 3, 4]
    assert dict(graph.edges) == {(0, 3): {"operations": ("a", "b")}, (1, 3): {"operations": ("c",)}}


# Spaces


def test_a_sound_space_passes_its_check():
    Toy(table={"cell": DIAMOND}).check()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": Cell(edges((0, 1), operations=("skip", "pol")), outputs=(1,))}, r"cell 'a', edge 0-1.*'pol'.*'pool'\?"),
        ({"a": Cell(edges((0, 1), (0, 2)), outputs=(2,))}, r"cell 'a': nodes \[1\] lie on no path"),
        ({"a": Cell(edges((0, 2), (1, 2)), outputs=(2,))}, r"cell 'a': nodes \[1\] lie on no path"),
        ({"a": Cell(edges((0, 1)), outputs=(1, 2))}, r"cell 'a': nodes \[2\] lie on no path"),
        ({"a": Cell(edges((0, 3), (1, 2), (2, 3), (3, 4)), outputs=(4,))}, r"nodes \[1, 2\] lie on no path"),
        ({"a": Cell((), outputs=(1,))}, r"cell 'a' needs at least one edge"),
        ({"a.b": DIAMOND}, r"cell 'a.b' needs .* a name without a dot"),
    ],
)
def test_spaces_with_unknown_operations_or_dead_nodes_are_refused(table, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Toy(table={"sound": DIAMOND, **table}).check()
    assert caught.value.exit_code == 2


def test_a_fixed_space_may_have_dead_nodes_and_empty_cells():
    space = Toy(table={"cell": DIAMOND})
    space.fix(diamond("skip", "-", "-", "-")).check()
    space.fix(diamond("-", "-", "-", "-")).check()


def test_a_fixed_space_has_one_candidate_on_every_decided_edge_and_keeps_the_rest_of_the_cell():
    cell = Cell(edges((0, 2), (1, 2), (0, 3), (2, 3)), outputs=(2, 3), inputs=2, retain=1, combine="sum")
    fixed = Toy(table={"a": cell}).fix(Genotype({"a": ((2, 3, "pool"), (1, 2, "skip"))})).cells["a"]
    assert fixed.edges == (Edge(1, 2, ("skip",)), Edge(2, 3, ("pool",)))
    assert (fixed.outputs, fixed.inputs, fixed.retain, fixed.combine) == ((2, 3), 2, 1, "sum")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"normal": ()}, r"cells \['normal'\] but the space has \['cell'\]; is it of another space\?"),
        ({"cell": (), "more": ()}, r"\['cell', 'more'\] but the space has \['cell'\]"),
        ({"cell": ((0, 3, "skip"),)}, r"cell 'cell', edge 0-3: no such edge in this space; is the genotype of another"),
        ({"cell": ((0, 1, "skpi"),)}, r"edge 0-1: unknown operation 'skpi': did you mean 'skip'\?"),
        ({"cell": ((0, 1, "skip"), (0, 1, "pool"))}, r"edge 0-1: listed twice; give each edge one operation"),
    ],
)
def test_a_genotype_of_another_space_is_refused_with_what_differs(cells, message):
    space = Toy(table={"cell": DIAMOND})
    for use in (space.require, space.fix):
        with pytest.raises(ConfigError, match=message):
            use(Genotype(cells))


def test_a_genotype_may_leave_edges_out():
    Toy(table={"cell": DIAMOND}).require(diamond("skip", "-", "pool", "-"))


def test_prune_removes_exactly_the_edges_that_lie_on_no_path():
    space = Toy(table={"cell": Cell(edges((0, 1), (0, 2), (1, 2), (1, 3), (2, 3)), outputs=(3,))})
    pairs = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]
    for chosen in itertools.product([False, True], repeat=5):
        kept = [pair for pair, take in zip(pairs, chosen, strict=True) if take]
        graph = networkx.DiGraph(kept)
        graph.add_nodes_from([0, 3])
        on_a_path = {edge for path in networkx.all_simple_edge_paths(graph, 0, 3) for edge in path}
        pruned = space.prune(Genotype({"cell": tuple((s, t, "skip") for s, t in kept)}))
        assert {(s, t) for s, t, _ in pruned.cells["cell"]} == on_a_path


# Genotypes


def test_genotypes_are_equal_when_their_sorted_edge_lists_are():
    one = Genotype({"b": ((0, 2, "skip"), (0, 1, "pool"), (1, 2, "skip")), "a": ()})
    other = Genotype({"a": [], "b": [[1, 2, "skip"], [0, 1, "pool"], [0, 2, "skip"]]})
    assert one == other
    assert hash(one) == hash(other)
    assert one.cells["b"] == ((0, 1, "pool"), (0, 2, "skip"), (1, 2, "skip"))
    different = [
        Genotype({"b": one.cells["b"]}),
        Genotype({"a": (), "b": one.cells["b"][:2]}),
        Genotype({"a": (), "b": (*one.cells["b"][:2], (1, 2, "pool"))}),
        Genotype({"a": (), "b": (*one.cells["b"][:2], (1, 3, "skip"))}),
    ]
    assert all(genotype != one for genotype in different)
    assert len({one, other, *different}) == 1 + len(different)
    assert one != one.cells


def test_json_is_one_line_and_reads_back_the_same_genotype():
    genotype = Genotype({"normal": ((0, 2, "skip"), (1, 2, 'sép\n"')), "reduce": ()})
    text = genotype.to_json()
    assert "\n" not in text
    assert json.loads(text) == {"cells": {"normal": [[0, 2, "skip"], [1, 2, 'sép\n"']], "reduce": []}}
    assert Genotype.from_json(text) == genotype
    space = Toy(table={"cell": DIAMOND})
    assert space.parse(space.format(diamond(*["skip"] * 4))) == diamond(*["skip"] * 4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        '{"cells": 3}',
        '{"cells": []}',
        '{"cells": {"a": 3}}',
        '{"cells": {"a": [3]}}',
        '{"cells": {"a": [[0, 1]]}}',
        '{"cells": {"a": [[0, 1, "skip", 4]]}}',
        '{"cells": {"a": [["x", 1, "skip"]]}}',
        '{"cells": {"a": [["0", 1, "skip"]]}}',
        '{"cells": {"a": [[0.5, 1, "skip"]]}}',
        '{"cells": {"a": [[null, 1, "skip"]]}}',
        '{"cells": {"a": [[Infinity, 1, "skip"]]}}',
        '{"cells": {"a": [[NaN, 1, "skip"]]}}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:40],
)
def test_malformed_json_is_a_configuration_error_that_shows_the_form(text):
    with pytest.raises(ConfigError, match=r"is no genotype .*JSON genotypes read \{\"cells\"") as caught:
        Genotype.from_json(text)
    assert caught.value.exit_code == 2


def test_the_graph_of_a_genotype_has_its_edges_and_operations():
    graph = diamond("skip", "pool", "-", "none").graph("cell")
    assert isinstance(graph, networkx.DiGraph)
    assert networkx.get_edge_attributes(graph, "operation") == {(0, 1): "skip", (0, 2): "pool", (2, 3): "none"}


def test_without_removes_the_edges_of_one_operation():
    assert diamond("none", "skip", "none", "pool").without("none") == diamond("-", "skip", "-", "pool")


# Isomorphism


def random_cell(seed: int, nodes: int) -> tuple[Cell, Genotype]:
    """Returns a space's complete cell of one input, `nodes` inner nodes and an output, and a random sparse genotype."""
    draw = random.Random(seed)
    pairs = [(s, t) for t in range(1, nodes + 2) for s in range(t)]
    chosen = tuple((s, t, draw.choice(ALL)) for s, t in pairs if draw.random() < 0.5)
    return Cell(edges(*pairs), outputs=(nodes + 1,)), Genotype({"cell": chosen})


def renumber(genotype: Genotype, new: Mapping[int, int]) -> Genotype:
    return Genotype({n: tuple((new.get(s, s), new.get(t, t), o) for s, t, o in c) for n, c in genotype.cells.items()})


@pytest.mark.parametrize("seed", range(4))
def test_isomorphic_hash_does_not_change_under_any_renumbering_of_inner_nodes(seed):
    cell, genotype = random_cell(seed, nodes=4)
    space, inner = Toy(table={"cell": cell}), (1, 2, 3, 4)
    hashes = {
        space.isomorphic_hash(renumber(genotype, dict(zip(inner, order, strict=True))))
        for order in itertools.permutations(inner)
    }
    assert len(hashes) == 1
    assert len(hashes.pop()) == 64


def test_isomorphic_hash_separates_exactly_what_a_graph_matcher_separates():
    def colour(genotype):
        graph = genotype.graph("cell")
        graph.add_nodes_from(range(4))
        networkx.set_node_attributes(graph, {0: "input", 1: "inner", 2: "inner", 3: "output"}, "role")
        return graph

    pairs = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]
    space = Toy(table={"cell": Cell(edges(*pairs), outputs=(3,))})
    draw = random.Random(0)
    decided = [tuple((s, t, draw.choice(["", "skip", "pool"])) for s, t in pairs) for _ in range(40)]
    genotypes = [Genotype({"cell": choices}).without("") for choices in decided]
    hashes, graphs = [space.isomorphic_hash(g) for g in genotypes], [colour(g) for g in genotypes]
    same = {"node_match": lambda a, b: a == b, "edge_match": lambda a, b: a == b}
    outcomes = set()
    for (i, a), (j, b) in itertools.combinations(enumerate(graphs), 2):
        assert (hashes[i] == hashes[j]) == networkx.is_isomorphic(a, b, **same)
        outcomes.add((genotypes[i] == genotypes[j], hashes[i] == hashes[j]))
    assert outcomes == {(True, True), (False, True), (False, False)}


def test_outputs_may_swap_but_inputs_may_not():
    cell = Cell(edges((0, 2), (1, 2), (0, 3), (1, 3), (2, 3)), outputs=(2, 3), inputs=2)
    space = Toy(table={"cell": cell})

    def digest(*choices):
        return space.isomorphic_hash(Genotype({"cell": choices}))

    assert digest((0, 2, "skip"), (1, 3, "pool")) == digest((0, 3, "skip"), (1, 2, "pool"))
    assert digest((0, 2, "skip"), (1, 3, "pool")) != digest((1, 2, "skip"), (0, 3, "pool"))


def test_isomorphic_hash_sees_which_cell_holds_what():
    space = Toy(table={"a": DIAMOND, "b": DIAMOND})
    one, two = ((0, 1, "skip"),), ((0, 1, "pool"),)
    hashes = [space.isomorphic_hash(Genotype(cells)) for cells in ({"a": one, "b": two}, {"a": two, "b": one})]
    assert hashes[0] != hashes[1]
