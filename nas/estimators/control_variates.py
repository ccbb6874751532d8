"""Control variates for the score function: an additive one fitted on past losses, REBAR's and RELAX's relaxed ones."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

from nas.estimators.gumbel import centred, displacement, finite, given_winner, gumbel_noise, one_hot_argmax
from nas.estimators.relaxed import require_temperature, softmax
from nas.estimators.score_function import RunningMean, log_probability, reinforce

LossOf = Callable[[Sequence[Tensor]], Tensor]
"""Maps one decision per table, one-hot or relaxed, (..., K) each, to losses (...)."""


class AdditiveControlVariate(nn.Module):
    """Q(D) = c + sum_e b_e[D_e], fitted by ridge regression with forgetting on the decisions and losses of the past.

    (L - Q(D))(D - pi) + J_pi b is unbiased for any b that the decision D had no part in, and quieter the more of the
    loss is additive over edges. The constant c is a running mean, so that the regression sees centred losses.

    Args:
        shapes: (E, K) of every table of logits, in order.
        forgetting: Weight of the past in each update, in (0, 1].
        ridge: Penalty on b, in units of one observation of a candidate.
        momentum: Of the running mean.
    """

    moments: Tensor
    products: Tensor
    coefficients: Tensor

    def __init__(
        self, shapes: Sequence[tuple[int, int]], forgetting: float = 0.99, ridge: float = 1.0, momentum: float = 0.9
    ) -> None:
        super().__init__()
        if not 0 < forgetting <= 1:
            raise ValueError(f"forgetting must be above 0 and at most 1, got {forgetting:g}")
        if not ridge > 0:
            raise ValueError(f"ridge must be positive, got {ridge:g}")
        self.shapes, self.forgetting, self.ridge = [*shapes], forgetting, ridge
        size = sum(rows * columns for rows, columns in shapes)
        self.mean = RunningMean(momentum)
        self.register_buffer("moments", torch.zeros(size, size, dtype=torch.float64))
        self.register_buffer("products", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("coefficients", torch.zeros(size, dtype=torch.float64))

    def forward(self, samples: Sequence[Tensor]) -> Tensor:
        """Returns Q of one decision, (): one-hot tables, or probabilities for Q's mean."""
        terms = [(b * d).sum() for b, d in zip(self.tables(), samples, strict=True)]
        return torch.stack([self.mean.forward(), *terms]).sum()

    def tables(self) -> list[Tensor]:
        """Returns b by table, (E, K) each."""
        sizes = [rows * columns for rows, columns in self.shapes]
        parts = torch.split(self.coefficients.clone(), sizes)  # a graph may outlive the next update
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def estimate(self, loss: Tensor, logits: Sequence[Tensor], samples: Sequence[Tensor]) -> Tensor:
        """Returns `loss`, with the gradient (loss - Q(D)) d log_prob + J_pi b beside its own, then learns from it."""
        log_prob = torch.stack([log_probability(t, d).sum() for t, d in zip(logits, samples, strict=True)]).sum()
        means = self.forward([softmax(table) for table in logits])
        surrogate = reinforce(loss, log_prob, self.forward(samples)) + (means - means.detach()).to(loss)
        self.update(loss, samples)
        return surrogate

    @torch.no_grad()
    def update(self, loss: Tensor, samples: Sequence[Tensor]) -> None:
        """Takes one decision and its loss in."""
        features = torch.cat([d.flatten() for d in samples]).to(self.moments)
        centre = self.mean() if self.mean.weight > 0 else loss
        target = (loss - centre).to(self.products)
        self.moments.mul_(self.forgetting).addr_(features, features)
        self.products.mul_(self.forgetting).add_(features * target)
        penalty = self.ridge * torch.eye(len(features), dtype=self.moments.dtype, device=self.moments.device)
        self.coefficients.copy_(torch.linalg.solve(self.moments + penalty, self.products))
        self.mean.update(loss)


def rebar(
    loss_of: LossOf,
    logits: Sequence[Tensor],
    temperature: Tensor,
    scale: Tensor,
    generator: Generator | None = None,
) -> Tensor:
    """Returns the mean loss, (), with REBAR's estimate as its gradient in the logits; unbiased.

    [f(D) - s f(y~)] d log p(D) + s d f(y) - s d f(y~), y the relaxation of the noise that gave D and y~ that of noise
    drawn again given D. `temperature` and `scale` s, scalar tensors, have the gradient of the estimate's squared norm,
    so that descending it makes the estimate quieter. Calls `loss_of` three times, twice with relaxed decisions.

    Args:
        loss_of: If it can be differentiated once only, the temperature's gradient takes df/dy as a constant.
        logits: Tables (..., K); a row of losses depends on the same row of logits only.
        temperature: (), positive.
        scale: ().

    Source: Tucker et al., 2017, arXiv:1703.07370.
    """

    def control(relaxed: Sequence[Tensor]) -> Tensor:
        return scale * loss_of(relaxed)

    return _relaxed_control(loss_of, control, logits, temperature, [temperature, scale], generator)


def relax(
    loss_of: LossOf,
    critic: nn.Module,
    logits: Sequence[Tensor],
    temperature: Tensor,
    generator: Generator | None = None,
) -> Tensor:
    """Returns the mean loss, (), with RELAX's estimate as its gradient in the logits; unbiased.

    As `rebar`, with critic(relaxed decisions) in place of s f: f runs once, with the hard decision. The critic's
    parameters, and a temperature that is learned, have the gradient of the estimate's squared norm.

    Args:
        loss_of: Called once.
        critic: Maps what `loss_of` takes to (...), by twice differentiable operations.
        logits: See `rebar`.
        temperature: (), positive.

    Source: Grathwohl et al., 2018, arXiv:1711.00123.
    """
    return _relaxed_control(loss_of, critic, logits, temperature, [temperature, *critic.parameters()], generator)


def _relaxed_control(
    loss_of: LossOf,
    control: LossOf,
    logits: Sequence[Tensor],
    temperature: Tensor,
    tuned: Sequence[Tensor],
    generator: Generator | None,
) -> Tensor:
    require_temperature(temperature.detach().item())
    leaves = [table.detach().requires_grad_() for table in logits]
    tables = [finite(centred(table)) for table in leaves]
    perturbed = [table + gumbel_noise(table, generator) for table in tables]
    hard = [one_hot_argmax(table.detach()) for table in perturbed]
    again = [given_winner(table, one, generator) for table, one in zip(tables, hard, strict=True)]
    loss = loss_of([one.to(table.dtype) for one, table in zip(hard, logits, strict=True)])
    if not torch.is_grad_enabled():
        return loss.mean()
    free, bound = (control([(z / temperature).softmax(-1) for z in drawn]) for drawn in (perturbed, again))
    paths = torch.autograd.grad((free - bound).sum(), leaves, create_graph=True, materialize_grads=True)
    residual = loss.detach() - bound
    estimates = [
        residual.reshape(residual.shape + (1,) * (one.dim() - residual.dim())) * (one - softmax(table.detach())) + path
        for one, table, path in zip(hard, leaves, paths, strict=True)
    ]
    square = torch.stack([(each**2).sum() for each in estimates]).sum()
    rows = max(loss.numel(), 1)
    learned = [each for each in tuned if each.requires_grad]
    slopes = torch.autograd.grad(square, learned, materialize_grads=True) if learned else ()
    value = _attach(loss.mean(), logits, [each.detach() / rows for each in estimates])
    return _attach(value, learned, [each / rows for each in slopes])


def _attach(value: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Returns `value` with further gradients."""
    for tensor, gradient in zip(tensors, gradients, strict=True):
        value = value + (gradient.to(value) * displacement(tensor)).sum()
    return value
