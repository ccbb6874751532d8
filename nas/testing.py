"""Conformance kit: what the framework relies on in every search space and every selector, for plug-ins' own tests.

def test_my_space(): check_space(MySpace(channels=4))
def test_my_selector(): check_selector(MySelector())
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nas import yaml_guard
from nas.architecture import Architecture
from nas.config import build, dump, from_mapping
from nas.derivation import discretise, sample, uniform
from nas.randomness import generator
from nas.selectors import Selector
from nas.selectors.softmax import Softmax
from nas.space import Genotype, SearchSpace, Task
from nas.supernet import Network
from nas.supernet.inspection import inspect

GENOTYPES = 4
SEEDS = range(8)
PROGRESS = (0.0, 0.5, 1.0)
DRAWS = 2000

PLAIN = torch.tensor([[0.5, -0.4, 0.2, 0.0], [-0.1, 0.8, -0.7, 0.3]])
MASKED = torch.tensor([[0.5, -torch.inf, 0.2, 0.0], [-torch.inf, -torch.inf, 1.0, -torch.inf]])
TABLES = {"4 candidates": PLAIN, "masked candidates": MASKED, "1 candidate": torch.zeros(2, 1)}
"""Logits (E, K)."""


def check_space(space: SearchSpace, task: Task = Task(3, 15, 13, 7)) -> None:
    """Checks what the framework relies on in a search space; give a small one, a network of it is trained a step.

    Args:
        space: The search space.
        task: What its networks are for; odd sides by default, which strides round up.

    Raises:
        AssertionError: A promise is broken; the message names it and what broke it.
    """
    checks: dict[str, Callable[[SearchSpace, Task], None]] = {
        "a space is a frozen dataclass, and its YAML gives it back": lambda space, task: _configures(space),
        "its layers fit together, and every candidate of an edge gives the same shape": _fits,
        "two networks share nothing": _builds_afresh,
        "genotypes survive their text and JSON": _writes_genotypes,
        "a derived network is part of the supernet and computes what the discretised supernet does": _derives,
        "the loss has a finite gradient in the logits of every cell": _passes_gradient,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for promise, check in checks.items():
            try:
                check(space, task)
            except Exception as error:
                raise AssertionError(f"{type(space).__name__} breaks a promise: {promise}: {error}") from error


def check_selector(selector: Selector) -> None:
    """Checks what the framework relies on in a selector.

    Raises:
        AssertionError: A promise is broken; the message names it and what broke it.
    """
    checks: dict[str, Callable[[Selector], None]] = {
        "a selector is a frozen dataclass, and its YAML gives it back": _configures,
        "probabilities are rows that sum to 1, and 0 where masked": _ranks,
        "a decision has the logits' shape and concerns live candidates only": _decides,
        "a decision is a function of logits, progress and generator": _repeats,
        "detach() keeps the decision and drops its gradient": _detaches,
        "gradients are finite, and 0 where masked": _differentiates,
        "the objective has a gradient exactly if the selector learns": _learns,
        "one sampled path follows the probabilities": _samples,
    }
    for promise, check in checks.items():
        try:
            check(selector)
        except Exception as error:
            raise AssertionError(f"{type(selector).__name__} breaks a promise: {promise}: {error}") from error


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _configures(value: SearchSpace | Selector) -> None:
    own = "__dataclass_params__" in vars(type(value))
    _require(own, "decorate the class itself with @dataclass(frozen=True, kw_only=True)")
    tree, _ = yaml_guard.parse(dump(value), "YAML")
    again = build(type(value), [from_mapping({"value": tree}["value"], "YAML")])  # type: ignore[dict-item]
    _require(again == value, f"{value} became {again}")


def _genotypes(space: SearchSpace) -> Iterator[Genotype]:
    draws = generator(0, "genotypes")
    return (sample(space, uniform(space), draws) for _ in range(GENOTYPES))


def _network(space: SearchSpace, task: Task) -> tuple[Network, Tensor]:
    """Returns a supernet, shaken so that a layer initialised with zeros hides nothing, and images."""
    network, draws = Network(space, task, searching=True), generator(0, "network")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draws)
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
        derived = Network(space.fix(genotype), task, searching=True)
        own, inherited = derived.state_dict(), supernet.state_dict()
        strange = [k for k in own if k not in inherited or own[k].shape != inherited[k].shape]
        _require(not strange, f"the supernet has no {strange[:3]} of these shapes, which {genotype.to_json()} needs")
        derived.load_state_dict({key: inherited[key] for key in own})
        decision = discretise(space, genotype)
        for training in (True, False):
            scores = []
            for network, selections in ((supernet.train(training), decision), (derived.train(training), None)):
                torch.manual_seed(0)
                scores.append(network(images, selections).scores.detach())
            mode = "training" if training else "evaluation"
            apart = f"scores differ by up to {(scores[0] - scores[1]).abs().max():g} in {mode}, {genotype.to_json()}"
            _require(torch.equal(*scores), apart)


def _passes_gradient(space: SearchSpace, task: Task) -> None:
    network, images = _network(space, task)
    logits = Architecture(space, seed=0).logits()
    selections = {name: Softmax().select(table, 0.0, generator(0)) for name, table in logits.items()}
    loss = F.cross_entropy(network(images, selections).scores, torch.arange(len(images)) % task.classes)
    names = [name for name, cell in space.cells.items() if cell.candidates > 1]
    gradients = torch.autograd.grad(loss, [logits[name] for name in names]) if names else ()
    for name, gradient in zip(names, gradients, strict=True):
        _require(bool(gradient.isfinite().all()), f"cell {name!r} has a gradient that is not finite")
        _require(bool(gradient.any()), f"cell {name!r} has no gradient; does a layer use it?")
