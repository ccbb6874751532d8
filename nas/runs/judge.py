"""What rules of derivation ask about the supernet of a finished search."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.derivation import Judge, Masks, Quality, discretise
from nas.randomness import generator, seed_global
from nas.runs.search import BilevelSearch
from nas.runs.session import Session
from nas.runs.training import require_finite, update
from nas.selection import Selection
from nas.space import Genotype

FAR_BELOW = 30.0
"""How far the logits of an edge that runs nothing fall, so that a selector that weighs edges does not choose it."""


class Examination:
    """Answers questions about a supernet and counts them; leaving its block brings the weights back, bit for bit.

    Args:
        session: Where to measure.
        search: At its end.
        report: Called after every answer and every step of tuning.

    Attributes:
        measurements: Networks measured on `select` so far.
        tuned: Weight steps taken so far.
    """

    def __init__(self, session: Session, search: BilevelSearch, report: Callable[[], None] = lambda: None) -> None:
        self.session, self.search, self.report = session, search, report
        self.measurements = self.tuned = 0
        self._before: dict[str, Tensor] = {}
        self._modes = [(module, module.training) for module in search.network.modules()]
        self._optimizer: torch.optim.Optimizer | None = None
        settings = search.settings
        self._batches = session.batches(session.splits.train, settings.batch_size, seed=search.seed, stream="derive")

    def __enter__(self) -> Judge:
        return Judge(genotype=self.genotype, restricted=self.restricted, tune=self.tune)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._before:
            self.search.network.load_state_dict(self._before)
            self.search.network.zero_grad()
        for module, training in self._modes:
            module.training = training

    def genotype(self, genotype: Genotype) -> float:
        """Returns the accuracy in % of a genotype with inherited weights."""
        return self._measure(discretise(self.session.config.space, genotype)).accuracy

    def restricted(self, masks: Masks, decisions: int) -> Quality:
        """Returns the supernet's mean quality over decisions among the candidates that are left.

        All restrictions see the same noise, so that they differ by what they leave out.
        """
        drawn = self.search.selector.stochastic and any((mask.sum(-1) > 1).any() for mask in masks.values())
        found = [self._measure(self.decide(masks, place)) for place in range(decisions if drawn else 1)]
        accuracies, likelihoods = zip(*found, strict=True)
        return Quality(sum(accuracies) / len(found), sum(likelihoods) / len(found))

    def decide(self, masks: Masks, *key: int | str) -> dict[str, Selection]:
        """Returns the decision drawn with `key` among the candidates that are left.

        A candidate alone on its edge runs with weight 1, as in the genotype, whatever the selector would give it.
        """
        search = self.search
        with torch.no_grad():
            logits = {name: self._among(table, masks[name]) for name, table in search.forward_logits(1.0).items()}
            draws = generator(search.seed, "decide", "derive", *key)
            decision = search.selector.decide(logits, 1.0, draws)
        return {name: _confined(selection, masks[name]) for name, selection in decision.items()}

    def tune(self, masks: Masks, steps: int) -> None:
        """Trains the weights on `train` under decisions among the candidates that are left.

        By the search's optimizer, afresh, at a tenth of its first learning rate, as DARTS-PT does.
        """
        search, network = self.search, self.search.network
        if self._optimizer is None:
            self._before = {name: value.clone() for name, value in network.state_dict().items()}
            self._optimizer = search.settings.weights.build(network.parameters())
            for group in self._optimizer.param_groups:
                group["lr"] = search.settings.weights.lr(0.0) / 10
        network.train()
        for _ in range(steps):
            self.session.raise_if_stopped("while deriving")
            seed_global(search.seed, "derive", self.tuned)
            images, labels = self._batches.batch(self.tuned)
            decision = self.decide(masks, "tune", self.tuned)
            scores = network(images, {name: each.to(images.device) for name, each in decision.items()}).scores
            loss = F.cross_entropy(scores, labels)
            require_finite(bool(loss.isfinite()), "the loss of tuning a supernet", self.tuned + 1)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            binding = [each for each in search.attached if each.binding]
            for each in binding:
                each.gradients(self.tuned, 1.0)
            update(self._optimizer, search.settings.clip)
            for each in binding:
                each.after(self.tuned, 1.0)
            self.tuned += 1
            self.report()

    def _measure(self, decision: Mapping[str, Selection]) -> Quality:
        self.session.raise_if_stopped("while deriving")
        (quality,) = self.session.evaluator.quality(self.search.network, decision, "select")
        self.measurements += 1
        self.report()
        return quality

    def _among(self, table: Tensor, mask: Tensor) -> Tensor:
        """Returns the logits, -inf for candidates that are gone.

        An edge on which nothing is left to decide keeps its own, so that those beside it compete as before.
        """
        counts = mask.sum(-1, keepdim=True)
        masked = table.masked_fill(~mask & (counts > 1), -torch.inf)
        return torch.where(counts > 0, masked, masked - FAR_BELOW) if self.search.selector.weighs_edges else masked


def _confined(selection: Selection, mask: Tensor) -> Selection:
    """Returns a decision without gradient: an edge with one candidate runs it whole, one with none runs nothing."""
    counts = mask.sum(-1)
    several = counts > 1
    weights = mask.to(torch.get_default_dtype()) if selection.weights is None else selection.weights
    alone = torch.where(several[:, None], weights, mask.to(weights.dtype))
    gates = None
    if selection.gates is not None and several.any():
        gates = selection.gates.masked_fill(~several, 1.0)
    paths = tuple(
        path if count > 1 else tuple(k for k, take in enumerate(row) if take)
        for path, count, row in zip(selection.paths, counts.tolist(), mask.tolist(), strict=True)
    )
    return Selection(paths, alone, gates=gates).detach()
