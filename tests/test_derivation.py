"""From probabilities to a genotype: the published rule, sampling, and the selections that discretise a supernet."""

import itertools
import math
import zlib
from collections import Counter
from dataclasses import replace

import pytest
import torch
from scipy import stats

from nas.derivation import Argmax, Darts, Judge, Sampled, discretise, sample, strongest, uniform
from nas.errors import ConfigError
from nas.randomness import generator as keyed
from nas.space import Cell, Edge, Genotype, SearchSpace
from search_spaces.darts import DARTS
from search_spaces.nas_bench_201 import NASBench201


class OneCell(SearchSpace):
    """A space of one cell."""

    def __init__(self, cell: Cell) -> None:
        object.__setattr__(self, "cell", cell)

    @property
    def cells(self):
        return {"cell": self.cell}

    def layers(self, task, searching):
        raise NotImplementedError


PADDED = OneCell(
    Cell(
        (Edge(0, 1, ("a", "none", "b")), Edge(0, 2, ("none", "b")), Edge(1, 2, ("b",)), Edge(0, 3, ("none",))),
        outputs=(1, 2, 3),
    )
)
"""Edges with three candidates, two, one, and nothing but `none`."""


def random_tables(space: SearchSpace, key: int) -> dict[str, torch.Tensor]:
    """Returns random probabilities, zero where an edge has no candidate."""
    tables = {}
    for name, cell in space.cells.items():
        logits = torch.randn(cell.mask.shape, generator=keyed(0, name, key), dtype=torch.float64)
        tables[name] = logits.masked_fill(~cell.mask, -torch.inf).softmax(-1)
    return tables


def refuse(*asked: object) -> float:
    raise AssertionError("this rule asks nothing")


NOBODY = Judge(genotype=refuse, restricted=refuse, tune=refuse)


# Argmax and the published rule


@pytest.mark.parametrize("key", range(20))
def test_the_darts_rule_keeps_the_two_inputs_whose_best_candidate_beats_all_others(key):
    space = DARTS(nodes=4)
    tables = random_tables(space, key)
    genotype = Darts().derive(space, tables, NOBODY, keyed(0))
    for name, cell in space.cells.items():
        value = {
            (e.source, e.target, o): tables[name][i, k].item()
            for i, e in enumerate(cell.edges)
            for k, o in enumerate(e.operations)
        }
        # By brute force: of all pairs of in-edges with any operations but `none`, the pair whose weaker one and whose
        # stronger one are both the largest; with distinct values that is the pair of the largest sum.
        for node in cell.order:
            ends = [choice for choice in value if choice[1] == node and choice[2] != "none"]
            pairs = [pair for pair in itertools.combinations(ends, 2) if pair[0][0] != pair[1][0]]
            best = max(pairs, key=lambda pair: sum(value[choice] for choice in pair))
            assert {choice for choice in genotype.cells[name] if choice[1] == node} == set(best)


def test_the_darts_rule_ignores_none_however_probable():
    space = DARTS(nodes=1)
    tables = {name: torch.full((2, 8), 0.01) for name in space.cells}
    for table in tables.values():
        table[:, 0], table[0, 3], table[1, 5] = 0.9, 0.02, 0.03
    expected = ((0, 2, "skip_connect"), (1, 2, "sep_conv_5x5"))
    assert Darts().derive(space, tables, NOBODY, keyed(0)).cells == {"normal": expected, "reduce": expected}


@pytest.mark.parametrize("key", range(5))
def test_argmax_takes_the_most_probable_candidate_of_every_edge(key):
    space = NASBench201()
    tables = random_tables(space, key)
    cell = space.cells["cell"]
    genotype = Argmax().derive(space, tables, NOBODY, keyed(0))
    expected = [
        (e.source, e.target, max(zip(row, e.operations, strict=True))[1])
        for e, row in zip(cell.edges, tables["cell"].tolist(), strict=True)
    ]
    assert genotype == Genotype({"cell": tuple(expected)})


def test_argmax_may_take_none():
    table = torch.full((6, 5), 0.1)
    table[:, 0] = 0.6
    genotype = Argmax().derive(NASBench201(), {"cell": table}, NOBODY, keyed(0))
    assert {operation for _, _, operation in genotype.cells["cell"]} == {"none"}


def test_padding_is_never_taken_and_an_edge_of_only_none_is_dropped_by_the_darts_rule():
    table = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.4, 9.0], [1.0, 9.0, 9.0], [1.0, 9.0, 9.0]])
    taken = strongest(PADDED, {"cell": table}).cells["cell"]
    assert taken == ((0, 1, "none"), (0, 2, "none"), (1, 2, "b"), (0, 3, "none"))
    assert strongest(PADDED, {"cell": table}, exclude="none").cells["cell"] == ((0, 1, "b"), (0, 2, "b"), (1, 2, "b"))


def test_ties_go_to_the_first_candidate_and_the_first_edges():
    edges = tuple(Edge(source, 4, ("a", "b", "c")) for source in (3, 1, 0, 2))
    space = OneCell(Cell(edges, outputs=(4,), inputs=4, retain=2))
    table = torch.tensor([[0.2, 0.4, 0.4], [0.4, 0.4, 0.2], [0.4, 0.2, 0.4], [0.4, 0.4, 0.2]])
    assert strongest(space, {"cell": table}).cells["cell"] == ((1, 4, "a"), (3, 4, "b"))


@pytest.mark.parametrize("rule", [Argmax(), Darts()])
@pytest.mark.parametrize("space", [NASBench201(), DARTS(nodes=2), PADDED], ids=["nas-bench-201", "darts", "padded"])
def test_an_argmax_over_equal_probabilities_is_refused_with_a_remedy(rule, space):
    with pytest.raises(ConfigError, match=r"cell '\w+': all candidates are equally probable.*derive\.name=sampled"):
        rule.derive(space, uniform(space), NOBODY, keyed(0))
    if "reduce" in space.cells:  # one undecided cell is enough
        with pytest.raises(ConfigError, match="cell 'reduce'"):
            rule.derive(space, {**random_tables(space, 0), "reduce": uniform(space)["reduce"]}, NOBODY, keyed(0))


def test_one_decided_edge_is_no_tie():
    tables = uniform(NASBench201())
    tables["cell"][3, 2] += 1e-6
    assert strongest(NASBench201(), tables).cells["cell"][3] == (0, 3, "nor_conv_1x1")


def test_a_cell_without_a_choice_needs_no_decision():
    space = OneCell(Cell((Edge(0, 1, ("a",)), Edge(0, 2, ("b",))), outputs=(1, 2)))
    assert strongest(space, uniform(space)).cells["cell"] == ((0, 1, "a"), (0, 2, "b"))


# A limit on skip connections


def skips_of(genotype: Genotype) -> dict[str, int]:
    return {name: sum(choice[2] == "skip_connect" for choice in cell) for name, cell in genotype.cells.items()}


@pytest.mark.parametrize("rule", [Argmax, Darts])
@pytest.mark.parametrize("space", [NASBench201(), DARTS(nodes=3)], ids=["nas-bench-201", "darts"])
def test_the_limit_on_skips_holds_and_changes_nothing_where_it_held_before(rule, space):
    changed = 0
    for key in range(20):
        tables = random_tables(space, key)
        for name, cell in space.cells.items():  # skips are likely, as they become in long searches
            tables[name][:, cell.edges[0].operations.index("skip_connect")] *= 3
        free = rule().derive(space, tables, NOBODY, keyed(0))
        for skips in (0, 1, 2):
            found = rule(skips=skips).derive(space, tables, NOBODY, keyed(0))
            assert max(skips_of(found).values()) <= skips
            for name, count in skips_of(free).items():
                assert len(found.cells[name]) == len(free.cells[name])
                if count <= skips:
                    assert found.cells[name] == free.cells[name]
                changed += count > skips
        assert rule(skips=20).derive(space, tables, NOBODY, keyed(0)) == free
    assert changed > 20


def p_darts(cell: Cell, table: torch.Tensor, skips: int) -> set[tuple[int, int, str]]:
    """The rule of P-DARTS, read plainly: derive; too many skips: set the least probable one's probability to zero."""
    value = {
        (edge.source, edge.target, o): table[e, k].item()
        for e, edge in enumerate(cell.edges)
        for k, o in enumerate(edge.operations)
        if o != "none"
    }
    while True:
        best = {}
        for choice, probability in value.items():
            if probability > best.get(choice[:2], (0, ""))[0]:
                best[choice[:2]] = (probability, choice[2])
        result = set()
        for node in cell.order:
            ends = sorted((pair for pair in best if pair[1] == node), key=lambda pair: -best[pair][0])
            result |= {(*pair, best[pair][1]) for pair in ends[: cell.retain]}
        taken = [choice for choice in result if choice[2] == "skip_connect"]
        if len(taken) <= skips:
            return result
        value[min(taken, key=value.get)] = 0


@pytest.mark.parametrize("retain", [None, 1, 2])
def test_the_limit_is_that_of_p_darts(retain):
    edges = tuple(
        Edge(source, target, ("none", "skip_connect", "a", "b")) for target in (2, 3, 4) for source in range(target)
    )
    space = OneCell(Cell(edges, outputs=(2, 3, 4), inputs=2, retain=retain))
    for key in range(100):
        tables = random_tables(space, key)
        tables["cell"][:, 1] *= 2
        for skips in (0, 1, 2):
            found = Darts(skips=skips).derive(space, tables, NOBODY, keyed(0)).cells["cell"]
            assert set(found) == p_darts(space.cell, tables["cell"], skips)


def test_the_weakest_skip_gives_way_to_the_next_best_which_may_lose_its_edge():
    edges = tuple(Edge(source, 3, ("skip_connect", "a")) for source in range(3))
    space = OneCell(Cell(edges, outputs=(3,), inputs=3, retain=2))
    tables = {"cell": torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]])}
    assert Argmax().derive(space, tables, NOBODY, keyed(0)).cells["cell"] == (
        (0, 3, "skip_connect"),
        (1, 3, "skip_connect"),
    )
    # Edge 1-3 is worth 0.4 without its skip, so 2-3 wins with 0.5, again a skip, and gives way to `a`.
    limited = Argmax(skips=1).derive(space, tables, NOBODY, keyed(0))
    assert limited.cells["cell"] == ((0, 3, "skip_connect"), (2, 3, "a"))


def test_a_skip_without_an_alternative_is_kept_for_last_and_then_refused():
    edges = (Edge(0, 1, ("skip_connect",)), Edge(0, 2, ("skip_connect", "none")), Edge(1, 2, ("skip_connect", "a")))
    space = OneCell(Cell(edges, outputs=(1, 2)))
    tables = {"cell": torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2]])}
    kept = Argmax(skips=1).derive(space, tables, NOBODY, keyed(0))
    assert kept.cells["cell"] == ((0, 1, "skip_connect"), (0, 2, "none"), (1, 2, "a"))
    with pytest.raises(ConfigError, match=r"derive\.skips = 0: cell 'cell' has 1 skip connections .* raise it"):
        Argmax(skips=0).derive(space, tables, NOBODY, keyed(0))
    with pytest.raises(ConfigError, match=r"derive\.skips = 1: cell 'cell' has 2"):  # `none` is excluded
        Darts(skips=1).derive(space, tables, NOBODY, keyed(0))


@pytest.mark.parametrize("rule", [Argmax, Darts])
def test_a_negative_limit_on_skips_is_refused(rule):
    with pytest.raises(ValueError, match=r"^skips must be at least 0, or null for no limit, got -1"):
        rule(skips=-1)


# Sampling


def test_uniform_is_equal_over_the_candidates_an_edge_has():
    third = 1 / 3
    expected = torch.tensor([[third, third, third], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(uniform(PADDED)["cell"], expected)


@pytest.mark.parametrize("skewed", [False, True])
def test_sampled_operations_have_the_given_frequencies_and_edges_are_independent(skewed):
    space, draws = NASBench201(), 2000
    tables = random_tables(space, 1) if skewed else uniform(space)
    random = keyed(0, "chi-square")
    drawn = [tuple(o for _, _, o in sample(space, tables, random).cells["cell"]) for _ in range(draws)]
    operations = space.cells["cell"].edges[0].operations
    edges = [(e.source, e.target) for e in space.cells["cell"].edges]
    order = sorted(range(6), key=lambda e: (edges[e][1], edges[e][0]))  # genotypes list edges by target
    for position, e in enumerate(order):
        counts = Counter(cell[position] for cell in drawn)
        expected = draws * tables["cell"][e].double()
        test = stats.chisquare([counts[o] for o in operations], expected / expected.sum() * draws)
        assert test.pvalue > 1e-4  # a false alarm among 12 edges and 30 pairs: below 5e-3, and the seed is fixed
    for one, two in itertools.combinations(range(6), 2):
        joint = Counter((cell[one], cell[two]) for cell in drawn)
        observed = torch.tensor([[joint[a, b] for b in operations] for a in operations])
        assert stats.chi2_contingency(observed.numpy()).pvalue > 1e-4


def test_where_nodes_retain_some_edges_samples_keep_that_many_never_none_and_each_edge_equally_often():
    space, draws = DARTS(nodes=3), 600
    inputs, operations = Counter(), Counter()
    random = keyed(0, "retain")
    for _ in range(draws):
        for cell in sample(space, uniform(space), random).cells.values():
            assert [target for _, target, _ in cell] == [2, 2, 3, 3, 4, 4]
            inputs.update((source, target) for source, target, _ in cell)
            operations.update(operation for _, _, operation in cell)
    assert set(operations) == set(space.operations) - {"none"}
    assert stats.chisquare([*operations.values()]).pvalue > 1e-4
    # Two of `node` inputs: each share is 2 / node, within five deviations of a binomial.
    for (_, node), count in inputs.items():
        share, trials = 2 / node, 2 * draws
        assert abs(count - share * trials) <= 5 * math.sqrt(trials * share * (1 - share))


def test_a_candidate_of_probability_zero_is_never_sampled():
    table = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    random = keyed(0)
    found = {sample(PADDED, {"cell": table}, random).cells["cell"] for _ in range(50)}
    rest = ((0, 2, "none"), (1, 2, "b"), (0, 3, "none"))
    assert found == {((0, 1, operation), *rest) for operation in ("a", "none")}


def test_sampling_changes_neither_the_probabilities_nor_anything_but_its_generator():
    space = DARTS(nodes=2)
    tables, state = random_tables(space, 0), torch.get_rng_state()
    before = {name: table.clone() for name, table in tables.items()}
    assert sample(space, tables, keyed(3)) == sample(space, tables, keyed(3)) != sample(space, tables, keyed(4))
    assert all(torch.equal(table, before[name]) for name, table in tables.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_sampled_returns_the_best_by_score_and_scores_each_genotype_once():
    space = NASBench201()
    tables = {"cell": torch.tensor([0.0, 0.6, 0.4, 0.0, 0.0]).repeat(6, 1)}
    scored = []

    def score(genotype: Genotype) -> float:
        scored.append(genotype)
        return float(zlib.crc32(genotype.to_json().encode()) % 1000)

    best = Sampled(samples=80).derive(space, tables, replace(NOBODY, genotype=score), keyed(0))
    assert score(best) == max(score(genotype) for genotype in [*scored])
    random = keyed(0)
    drawn = [sample(space, tables, random) for _ in range(80)]
    assert len(set(drawn)) < 80  # 64 genotypes are possible
    first = scored[: len(set(drawn))]
    assert len(set(first)) == len(first)
    assert set(first) == set(drawn)


def test_of_equal_scores_the_first_drawn_wins():
    space = NASBench201()
    indifferent = replace(NOBODY, genotype=lambda genotype: 1.0)
    best = Sampled(samples=10).derive(space, uniform(space), indifferent, keyed(0))
    assert best == sample(space, uniform(space), keyed(0))


def test_sampled_needs_at_least_one_sample():
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        Sampled(samples=0)


# Discretising


@pytest.mark.parametrize("space", [NASBench201(), DARTS(nodes=3)], ids=["nas-bench-201", "darts"])
def test_discretised_selections_are_the_genotype_and_derive_to_it_again(space):
    for key in range(10):
        genotype = sample(space, uniform(space), keyed(0, key))
        selections = discretise(space, genotype)
        tables, chosen = {}, {}
        for name, cell in space.cells.items():
            selection = selections[name]
            assert selection.weights is None
            assert not selection.probes
            running = [(e, k) for e, path in enumerate(selection.paths) for k in path]
            edges = [(cell.edges[e], k) for e, k in running]
            chosen[name] = tuple((edge.source, edge.target, edge.operations[k]) for edge, k in edges)
            tables[name] = torch.zeros(cell.mask.shape)
            tables[name][tuple(zip(*running, strict=True))] = 1.0
        assert Genotype(chosen) == genotype
        assert strongest(space, tables) == genotype


def test_an_edge_that_is_not_listed_runs_nothing():
    selection = discretise(NASBench201(), Genotype({"cell": ((0, 2, "nor_conv_3x3"),)}))["cell"]
    assert selection.paths == ((), (3,), (), (), (), ())


def test_a_genotype_of_another_space_cannot_be_discretised():
    with pytest.raises(ConfigError, match="is it of another space"):
        discretise(NASBench201(), sample(DARTS(), uniform(DARTS()), keyed(0)))
