"""Conformance kit: what the framework relies on in every search space and every selector, for plug-ins' own tests.

def test_my_space(): check_space(MySpace(channels=4))
def test_my_selector(): check_selector(MySelector())
"""

from collections.abc import Callable, Iterator, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from nas import yaml_guard
from nas.architecture import Architecture
from nas.config import build, dump, from_mapping
from nas.derivation import discretise, sample, uniform
from nas.randomness import generator
from nas.selection import Selection
from nas.selectors import Selector
from nas.selectors.softmax import Softmax
from nas.space import Cell, Edge, Genotype, SearchSpace, Task
from nas.supernet import Network
from nas.supernet.inspection import inspect

GENOTYPES = 4
DRAWS = 1000
PLAIN = torch.tensor([[0.5, -0.4, 0.2, 0.0], [-0.1, 0.8, -0.7, 0.3]])
MASKED = torch.tensor([[0.5, -torch.inf, 0.2, 0.0], [-torch.inf, -torch.inf, 1.0, -torch.inf]])
TABLES = (PLAIN, MASKED, torch.zeros(2, 1))
TASK = Task(channels=3, height=15, width=13, classes=7)
CASES = [(table, progress, seed) for table in TABLES for progress in (0.0, 0.5, 1.0) for seed in range(8)]


def check_space(space: SearchSpace, task: Task = TASK) -> None:
    """Checks what the framework relies on in a search space; give a small one, for its networks are built and run.

    Args:
        space: The search space.
        task: What its networks are for; odd sides by default, which strides must round up.

    Raises:
        AssertionError: A promise is broken; the message names it and what broke it.
    """
    checks = {
        "a space is a frozen dataclass, and its YAML gives it back": lambda space, task: _configures(space),
        "its layers fit together, and every candidate of an edge gives the same shape": _fits,
        "no two networks share a parameter": _builds_afresh,
        "genotypes survive their text and JSON": _writes_genotypes,
        "a derived network is part of the supernet and computes what the discretised supernet does": _derives,
        "the loss has a finite gradient in the logits of every cell": _passes_gradient,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _run(checks, space, task)


def check_selector(selector: Selector) -> None:
    """Checks what the framework relies on in a selector, on small tables of logits with and without masks.

    Raises:
        AssertionError: A promise is broken; the message names it and what broke it.
    """
    checks = {
        "a selector is a frozen dataclass, and its YAML gives it back": _configures,
        "probabilities are rows that sum to 1, and 0 where masked; the ranking is at least 0": _ranks,
        "a decision has the shape of the logits and concerns live candidates": _decides,
        "a decision is a function of logits, progress and generator": _repeats,
        "detach() keeps the decision and drops gradient, probes and zero weights": _detaches,
        "the objective has a gradient, finite and 0 where masked, exactly if the selector learns": _learns,
        "sampled paths follow the probabilities": _samples,
    }
    with torch.random.fork_rng(devices=[]):
        _run(checks, selector)


def _run(checks: Mapping[str, Callable[..., None]], subject: object, *arguments: object) -> None:
    for promise, check in checks.items():
        try:
            check(subject, *arguments)
        except Exception as error:
            raise AssertionError(f"{type(subject).__name__} breaks a promise: {promise}: {error}") from error


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _configures(value: SearchSpace | Selector) -> None:
    own = "__dataclass_params__" in vars(type(value))
    _require(own, "decorate the class itself with @dataclass(frozen=True, kw_only=True)")
    tree, _ = yaml_guard.parse(dump(value), "YAML")
    again = build(type(value), [from_mapping(cast(dict[str, object], tree), "YAML")])
    _require(again == value, f"{value} became {again}")


def _genotypes(space: SearchSpace) -> Iterator[Genotype]:
    draws = generator(0, "genotypes")
    return (sample(space, uniform(space), draws) for _ in range(GENOTYPES))


def _network(space: SearchSpace, task: Task) -> tuple[Network, Tensor]:
    """Returns a supernet, shaken so that a layer initialised with zeros hides nothing, and images."""
    network, draws = Network(space, task, searching=True), generator(0, "network")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    return network, torch.randn(4, task.channels, task.height, task.width, generator=draws)


def _fits(space: SearchSpace, task: Task) -> None:
    space.check()
    inspect(space, task, searching=True)
    for genotype in _genotypes(space):
        inspect(space.fix(genotype), task, searching=False)


def _builds_afresh(space: SearchSpace, task: Task) -> None:
    first, second = (Network(space, task, searching=True) for _ in range(2))
    kept = {id(value) for value in [*first.parameters(), *first.buffers()]}
    shared = [name for name, value in [*second.named_parameters(), *second.named_buffers()] if id(value) in kept]
    _require(not shared, f"both have {shared[:3]}; `layers` and operations must build new modules")
    _require(dict(space.cells) == dict(space.cells), "`cells` differs from call to call")


def _writes_genotypes(space: SearchSpace, task: Task) -> None:
    for genotype in _genotypes(space):
        for text, again in (
            (genotype.to_json(), Genotype.from_json(genotype.to_json())),
            (space.format(genotype), space.parse(space.format(genotype))),
        ):
            _require(again == genotype, f"{text} reads back as {again.to_json()}")


def _derives(space: SearchSpace, task: Task) -> None:
    supernet, images = _network(space, task)
    for genotype in _genotypes(space):
        derived, inherited = Network(space.fix(genotype), task, searching=True), supernet.state_dict()
        shapes = {name: value.shape for name, value in derived.state_dict().items()}
        strange = [name for name in shapes if name not in inherited or inherited[name].shape != shapes[name]]
        _require(not strange, f"the supernet has no {strange[:3]} of these shapes, which {genotype.to_json()} needs")
        derived.load_state_dict({name: inherited[name] for name in shapes})
        for training in (True, False):
            scores = []
            for network, decision in ((supernet, discretise(space, genotype)), (derived, None)):
                torch.manual_seed(0)
                scores.append(network.train(training)(images, decision).scores.detach())
            apart = f"{(scores[0] - scores[1]).abs().max():g} apart with training={training}, {genotype.to_json()}"
            _require(torch.equal(*scores), apart)


def _passes_gradient(space: SearchSpace, task: Task) -> None:
    network, images = _network(space, task)
    logits = Architecture(space, seed=0).logits()
    selections = {name: Softmax().select(table, 0.0, generator(0)) for name, table in logits.items()}
    loss = F.cross_entropy(network(images, selections).scores, torch.arange(len(images)) % task.classes)
    tables = [logits[name] for name in space.cells]
    gradients = torch.autograd.grad(loss, tables, allow_unused=True, materialize_grads=True)
    for (name, cell), gradient in zip(space.cells.items(), gradients, strict=True):
        _require(bool(gradient.isfinite().all()), f"cell {name!r} has a gradient that is not finite")
        idle = cell.candidates > 1 and not gradient.any()
        _require(not idle, f"cell {name!r} has no gradient; does a layer use it?")


def _ranks(selector: Selector) -> None:
    for logits in TABLES:
        rows = selector.probabilities(logits)
        # Float32 sums of at most four numbers in [0, 1].
        good = rows.shape == logits.shape and (rows >= 0).all() and ((rows.sum(-1) - 1).abs() < 1e-6).all()
        _require(bool(good) and not rows[logits.isinf()].any(), f"{logits.tolist()} give {rows.tolist()}")
        ranks = selector.ranking({"cell": logits})["cell"]
        good = ranks.shape == logits.shape and (ranks >= 0).all()
        _require(bool(good) and not ranks[logits.isinf()].any(), f"{logits.tolist()} rank {ranks.tolist()}")


def _decides(selector: Selector) -> None:
    for logits, progress, seed in CASES:
        chosen = selector.select(logits, progress, generator(seed))
        each = logits.shape[:1]
        for name, shape in (("weights", logits.shape), ("gates", each), ("offset", each), ("log_prob", ())):
            value = getattr(chosen, name)
            _require(value is None or (value.shape == shape and bool(value.isfinite().all())), f"{name}: {value}")
        _require(chosen.offset is None or not chosen.offset.any(), f"offset is not zero in value: {chosen.offset}")
        lists = (chosen.paths, chosen.probes or ((),) * len(logits))
        _require({len(rows) for rows in lists} == {len(logits)}, f"paths or probes: not {len(logits)} rows: {lists}")
        for e, (path, probes) in enumerate(zip(*lists, strict=True)):
            live = logits[e].isfinite().nonzero().flatten().tolist()
            alien = [k for k in (*path, *probes) if type(k) is not int or k not in live]
            _require(not alien, f"edge {e}: {alien} run or probed, but live candidates are {live}")
            _require(len({*path, *probes}) == len(path + probes), f"edge {e}: twice in paths {path}, probes {probes}")
            row = [] if chosen.weights is None else chosen.weights[e].tolist()
            _require(not any(w for k, w in enumerate(row) if k not in path), f"edge {e}: only {path} run: {row}")
            soft = len(path) == 1 and len(live) > 1 and row and sum(row) != 1 and not selector.weighs_edges
            _require(not soft, f"edge {e}: the weight of one path must be exactly 1: {row}")


def _repeats(selector: Selector) -> None:
    for logits, progress, seed in CASES:
        given = logits.clone()
        first = selector.select(given, progress, generator(seed))
        for other in (1, 2):
            state = torch.manual_seed(other).get_state()
            again = selector.select(given, progress, generator(seed))
            _require(torch.equal(state, torch.get_rng_state()), "it draws from torch's global generator")
            _require(_same(first, again), "equal generators give different decisions")
        _require(torch.equal(given, logits), "it changes the logits it is given")
    decisions = [selector.select(PLAIN, 0.5, generator(seed)) for seed in range(64)]
    varies = not all(_same(decisions[0], other) for other in decisions)
    _require(varies == selector.stochastic, f"stochastic is {selector.stochastic}, but decisions vary: {varies}")


def _same(one: Selection, other: Selection) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("weights", "log_prob", "offset", "gates")]
    equal = all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)
    return equal and one.paths == other.paths and one.probes == other.probes


def _detaches(selector: Selector) -> None:
    for logits, progress, seed in CASES:
        chosen = selector.select(logits.clone().requires_grad_(), progress, generator(seed))
        with torch.no_grad():
            again = selector.select(logits, progress, generator(seed)).detach()
        kept, weights = chosen.detach(), torch.ones_like(logits) if chosen.weights is None else chosen.weights
        _require(_same(kept, again), "the decision differs when gradients are off")
        expected = tuple(tuple(k for k in path if weights[e, k] != 0) for e, path in enumerate(chosen.paths))
        found = torch.ones_like(logits) if kept.weights is None else kept.weights
        same = all(found[e, k] == weights[e, k] for e, path in enumerate(expected) for k in path)
        bare = not (any(kept.probes) or found.requires_grad or kept.log_prob is not None or kept.offset is not None)
        _require(kept.paths == expected and same and bare, f"{chosen} became {kept}")


def _learns(selector: Selector) -> None:
    learns = False
    for logits, progress, seed in CASES:
        leaves = {name: logits.clone().requires_grad_() for name in ("first", "second")}
        cells = dict.fromkeys(leaves, _cell_of(logits))
        loss = selector.on(cells).objective(_toy_loss, leaves, progress, generator(seed), selector.memory(cells))
        _require(loss.shape == () and bool(loss.isfinite()), f"the objective is no finite scalar: {loss}")
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        for gradient in (leaf.grad for leaf in leaves.values() if leaf.grad is not None):
            good = bool(gradient.isfinite().all()) and not gradient[logits.isinf()].any()
            _require(good, f"logits {logits.tolist()} have gradient {gradient.tolist()}")
            learns |= bool(gradient.any())
    _require(learns == selector.learns, f"learns is {selector.learns}, but a gradient was found: {learns}")


def _cell_of(logits: Tensor) -> Cell:
    """Returns a cell of the shape of the logits, all of whose edges lead into one node."""
    edges, candidates = logits.shape
    operations = tuple(map(str, range(candidates)))
    return Cell(tuple(Edge(e, edges, operations) for e in range(edges)), outputs=(edges,), inputs=edges)


def _toy_loss(selections: Mapping[str, Selection]) -> Tensor:
    """Returns a loss that is quadratic in the outputs of edges, whose candidates give different numbers."""
    total = torch.zeros(())
    for chosen in selections.values():
        for e, path in enumerate(chosen.paths):
            output = torch.zeros(()) if chosen.offset is None else chosen.offset[e]
            for k in [*path, *(chosen.probes[e] if chosen.probes else ())]:
                output = output + (1.0 if chosen.weights is None else chosen.weights[e, k]) * (e - 0.7 * k + 1.3)
            total = total + (output - 0.4) ** 2
    return total


def _samples(selector: Selector) -> None:
    for logits in (PLAIN, MASKED) if selector.stochastic else ():
        draws, counts, expected = generator(0, "frequencies"), torch.zeros_like(logits), selector.probabilities(logits)
        for _ in range(DRAWS):
            paths = selector.select(logits, 0.5, draws).paths
            if any(len(path) != 1 for path in paths):
                return
            for e, (k,) in enumerate(paths):
                counts[e, k] += 1
        # Five standard errors of a frequency; one correct selector in 200,000 would fail with other draws.
        apart = (counts / DRAWS - expected).abs() > 5 * (expected * (1 - expected) / DRAWS).sqrt()
        _require(not apart.any(), f"frequencies {(counts / DRAWS).tolist()} of probabilities {expected.tolist()}")
