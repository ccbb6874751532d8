"""Score-function estimators (REINFORCE): gradients through a decision that the loss need not be differentiable in.

Each returns a surrogate: the loss in value, the estimate in gradient; what else the loss depends on keeps its gradient.

Source: Williams, 1992, doi:10.1007/BF00992696.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from nas.estimators.gumbel import centred, gumbel_max, one_hot_argmax


def log_probability(logits: Tensor, sample: Tensor) -> Tensor:
    """Returns the log-probability of one-hot samples under softmax(logits), (...,) for (..., K) each."""
    return torch.where(sample != 0, centred(logits).log_softmax(-1), 0.0).sum(-1)


def reinforce(loss: Tensor, log_prob: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    """Returns `loss`, with the gradient (loss - baseline) d log_prob beside its own.

    Args:
        loss: (...).
        log_prob: (...), of the decision under which the loss was found.
        baseline: Anything that does not depend on that decision; the estimate is unbiased with any.
    """
    score = (loss - baseline).detach() * (log_prob - log_prob.detach())
    # A running mean is float64 and a log-probability never half; a loss that counts is no floating-point number.
    return loss + (score.to(loss.dtype) if loss.is_floating_point() else score)


def leave_one_out(losses: Tensor, log_probs: Tensor) -> Tensor:
    """Returns the mean loss over M >= 2 independent decisions, each with the mean of the others as its baseline.

    Args:
        losses: (M, ...).
        log_probs: (M, ...).

    Source: Kool et al., 2019, "Buy 4 REINFORCE samples, get a baseline for free!".

    Raises:
        ValueError: There is one decision only.
    """
    count = len(losses)
    if count < 2:
        raise ValueError(f"leave-one-out needs at least 2 decisions, got {count}")
    others = (losses.sum(0, keepdim=True) - losses) / (count - 1)
    return reinforce(losses, log_probs, others).mean(0)


class RunningMean(nn.Module):
    """The exponentially weighted mean of past losses, as a baseline; it starts unbiased, at the first loss.

    Args:
        momentum: Weight of the past, in [0, 1).
    """

    total: Tensor
    weight: Tensor

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {momentum:g}")
        self.momentum = momentum
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    def forward(self) -> Tensor:
        """Returns the mean, (); 0 before the first loss."""
        return self.total / self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)

    @torch.no_grad()
    def update(self, loss: Tensor) -> None:
        """Takes a loss in; call it after the loss's own estimate, which must not see it."""
        self.total.lerp_(loss.detach().to(self.total).mean(), 1 - self.momentum)
        self.weight.lerp_(torch.ones_like(self.weight), 1 - self.momentum)


def antithetic_gumbel_max(logits: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """Returns two one-hot samples of softmax(logits), (..., K) each, from uniform noise u and 1 - u.

    Each alone is an exact sample. Where the loss is monotone in the noise the two estimates cancel in part.
    """
    table = centred(logits)
    tiny = torch.finfo(table.dtype).tiny
    exponential = torch.empty_like(table).exponential_(generator=generator).clamp_min(tiny)  # -log u
    mirrored = torch.where(exponential < 1, -(-torch.expm1(-exponential)).log(), -torch.log1p(-(-exponential).exp()))
    first, second = (one_hot_argmax(table - noise.clamp_min(tiny).log()) for noise in (exponential, mirrored))
    return first.to(logits.dtype), second.to(logits.dtype)


def rao_blackwellised(
    loss_of: Callable[[Tensor], Tensor], logits: Tensor, exact: int, generator: Generator | None = None
) -> Tensor:
    """Returns the loss, summed over the `exact` most probable candidates and sampled among the rest.

    With one sample its variance is that of REINFORCE times the rest's probability or less; with exact = K it is zero.

    Args:
        loss_of: Maps one-hot decisions (..., K) to losses (...); called exact + 1 times, or K times where that is less.
        logits: (..., K).
        exact: From 0 to K.

    Source: Liu et al., 2019, arXiv:1810.04777.
    """
    table = centred(logits)
    if not 0 <= exact <= table.shape[-1]:
        raise ValueError(f"exact must be between 0 and the {table.shape[-1]} candidates, got {exact}")
    probabilities = table.softmax(-1)
    order = table.detach().argsort(-1, descending=True)
    total = torch.zeros_like(probabilities[..., 0])
    rest = table.detach()
    for place in range(exact):
        column = order[..., place : place + 1]
        share = probabilities.gather(-1, column)
        # A masked candidate's loss, which may be NaN, is not asked for: the row takes its best again, with no share.
        asked = torch.where(share > 0, column, order[..., :1])
        loss = loss_of(torch.zeros_like(table).scatter(-1, asked, 1.0).to(logits.dtype))
        share = share.squeeze(-1)
        total = total + share.detach() * loss + (share - share.detach()) * loss.detach()
        rest = rest.scatter(-1, column, -torch.inf)
    left = torch.isfinite(rest).any(-1)
    if not left.any():
        return total
    # A row whose candidates are all summed takes any; its share of the estimate is zero.
    sample = gumbel_max(torch.where(left[..., None], rest, table.detach()), generator)
    remaining = torch.where(left, rest.exp().sum(-1) / table.detach().exp().sum(-1), 0.0)
    return total + remaining * reinforce(loss_of(sample.to(logits.dtype)), log_probability(table, sample))


def importance_weighted(
    loss: Tensor, log_prob: Tensor, proposal_log_prob: Tensor, baseline: Tensor | float = 0.0
) -> Tensor:
    """Returns `loss` and its REINFORCE gradient, both times p / q, for a decision drawn from a proposal q.

    Args:
        loss: (...).
        log_prob: (...), of the decision under the distribution p whose parameters are learned.
        proposal_log_prob: (...), under q, which must give every decision of p a chance.
        baseline: See `reinforce`; E[p / q] = 1 takes it out of the mean.
    """
    ratio = (log_prob - proposal_log_prob).detach().exp()
    # What q draws and p cannot has a log-probability of -inf, and no part in the mean.
    return ratio * reinforce(loss, torch.where(ratio > 0, log_prob, 0.0), baseline)


def local_expectation(loss_of: Callable[[Tensor], Tensor], logits: Tensor, sample: Tensor) -> Tensor:
    """Returns the loss of a sample, with each row's expectation over its own candidates as gradient.

    Row e contributes J_pi L_e, where L_e[k] is the loss with row e set to k and the other rows as sampled: unbiased,
    and the choice of row e itself adds no variance. Costs one loss per live candidate of every row.

    Args:
        loss_of: Maps one-hot decisions (E, K) to a loss ().
        logits: (E, K), independent rows.
        sample: (E, K), one-hot.

    Source: Titsias and Lázaro-Gredilla, 2015, arXiv:1503.01494.
    """
    probabilities = centred(logits).softmax(-1)
    value = loss_of(sample)
    for e, row in enumerate(torch.isfinite(logits).tolist()):
        for k in (k for k, live in enumerate(row) if live):
            changed = sample.clone()
            changed[e] = 0
            changed[e, k] = 1
            share = probabilities[e, k]
            value = value + loss_of(changed).detach() * (share - share.detach())
    return value
