"""The pitfalls of gradient estimators, each as a row that runs: symptom, cure, and the claim that they differ."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from vae.symptoms import (
    Numbers,
    collapse,
    cosine_variance,
    exploding_variance,
    fixed_rate,
    flat_logits,
    hidden_flatness,
    inflated_mean,
    laplace_from_uniform,
    loud_score,
    masked_gradient,
    masked_value,
    nan_noise,
    rao_through_noise,
    sampled_inference,
    silent_normal,
    soft_evaluation,
    soft_training,
    step_function,
    straight_through_sign,
    straight_through_zero,
    uncentred_logits,
    vanished_gradients,
)


@dataclass(frozen=True, kw_only=True)
class Pitfall:
    """One row of the table.

    Args:
        name: Also its key in `results/pitfalls.json`.
        number: What is measured.
        symptom: How one gets it.
        cure: What helps.
        measure: Returns the number with either.
        claim: Whether the two differ as they should.
        says: `claim` in words.
    """

    name: str
    number: str
    symptom: str
    cure: str
    measure: Callable[[], Numbers]
    claim: Callable[[float, float], bool]
    says: str


def _close(value: float, target: float, relative: float) -> bool:
    return abs(value - target) <= relative * abs(target)


PITFALLS = (
    Pitfall(
        name="NaN noise",
        number="share of NaN rows, 8 classes",
        symptom="-log(-log u), u cast to bfloat16 and clamped at 1 - 1e-9",
        cure="-log(Exp(1)) in float32 (`gumbel_noise`)",
        measure=nan_noise,
        claim=lambda a, b: 0.01 < a < 0.02 and b == 0,
        says="1 to 2%; none",
    ),
    Pitfall(
        name="uncentred logits",
        number="total variation from the true law",
        symptom="argmax(logits + noise) in float32, logits 1e7 + (0, 1, 2)",
        cure="the largest subtracted first (`centred`)",
        measure=uncentred_logits,
        claim=lambda a, b: a > 0.1 and b < 0.01,
        says="above .1; below .01",
    ),
    Pitfall(
        name="Laplace's u",
        number="share of NaN draws",
        symptom="u from (0, 1)",
        cure="u from (-1/2, 1/2) (`laplace`)",
        measure=laplace_from_uniform,
        claim=lambda a, b: _close(a, 0.5, 0.02) and b == 0,
        says="one half; none",
    ),
    Pitfall(
        name="exploding variance",
        number="variance of the gradient (trace), tau .1",
        symptom="Gumbel-Softmax, 1 sample",
        cure="the mean over M = 16 samples",
        measure=exploding_variance,
        claim=lambda a, b: _close(a / b, 16, 0.15),
        says="a ratio of 16 = M",
    ),
    Pitfall(
        name="vanished gradient",
        number="share of rows with gradient exactly 0, flat logits",
        symptom="tau .001",
        cure="tau .5",
        measure=vanished_gradients,
        claim=lambda a, b: a > 0.85 and b == 0,
        says="above .85; none",
    ),
    Pitfall(
        name="inflated gradient",
        number="mean gradient / exact, two classes, logits 8 apart",
        symptom="Gumbel-Softmax, tau 2",
        cure="an estimator without tau (`straight_through_softmax`)",
        measure=inflated_mean,
        claim=lambda a, b: a > 30 and _close(b, 1, 1e-6),
        says="above 30; 1",
    ),
    Pitfall(
        name="flat logits",
        number="best candidate's probability, 300 steps of SGD",
        symptom="tau 50",
        cure="tau 1",
        measure=flat_logits,
        claim=lambda a, b: a < 0.35 and b > 0.9,
        says="near 1/4; above .9",
    ),
    Pitfall(
        name="flat logits, hidden",
        number="best candidate's probability, tau 50",
        symptom="SGD",
        cure="Adam: no cure, it divides by the size of the tiny gradient and hides it",
        measure=hidden_flatness,
        claim=lambda a, b: a < 0.35 and b > 0.6,
        says="near 1/4; above .6",
    ),
    Pitfall(
        name="annealing rate",
        number="temperature after 3,000 steps, .5 wanted",
        symptom="a rate of 1e-5 from somebody else's run",
        cure="ln(tau_0 / tau_min) / steps (`Exponential`)",
        measure=fixed_rate,
        claim=lambda a, b: a > 0.9 and _close(b, 0.5, 1e-9),
        says="above .9; .5",
    ),
    Pitfall(
        name="straight-through, sign",
        number="cosine with J_pi v",
        symptom="hard + soft.detach() - soft",
        cure="hard + (soft - soft.detach()) (`straight_through`)",
        measure=straight_through_sign,
        claim=lambda a, b: _close(a, -1, 1e-5) and _close(b, 1, 1e-5),
        says="-1; 1",
    ),
    Pitfall(
        name="straight-through, zero",
        number="cosine with J_pi v (0: no gradient)",
        symptom="soft + (hard - soft), nothing detached",
        cure="hard + (soft - soft.detach()) (`straight_through`)",
        measure=straight_through_zero,
        claim=lambda a, b: abs(a) < 1e-5 and _close(b, 1, 1e-5),
        says="0; 1",
    ),
    Pitfall(
        name="Gumbel-Rao's noise",
        number="distance of the mean gradient from ST-GS's, relative",
        symptom="differentiated through the conditional noise",
        cure="conditional noise detached (`gumbel_rao`)",
        measure=rao_through_noise,
        claim=lambda a, b: a > 0.5 and b < 0.1,
        says="above .5; below .1",
    ),
    Pitfall(
        name="hard=True at inference",
        number="share of decisions that differ the second time",
        symptom="gumbel_softmax(hard=True)",
        cure="argmax of the logits",
        measure=sampled_inference,
        claim=lambda a, b: a > 0.5 and b == 0,
        says="above .5; none",
    ),
    Pitfall(
        name="REINFORCE without a baseline",
        number="variance of the gradient (trace), rewards 2.3 + .05 N(0, 1), 4 samples",
        symptom="(L - 0)(D - pi)",
        cure="`leave_one_out`, the same samples",
        measure=loud_score,
        claim=lambda a, b: a > 1000 * b,
        says="a ratio above 1,000",
    ),
    Pitfall(
        name="torch.normal",
        number="d E z^2 / d mu at mu = 1.5",
        symptom="torch.normal(mu, sigma): silent zeros",
        cure="mu + sigma eps (`normal`)",
        measure=silent_normal,
        claim=lambda a, b: a == 0 and _close(b, 3, 0.01),
        says="0; 2 mu = 3",
    ),
    Pitfall(
        name="a step's path",
        number="d P(z > 0) / d mu at mu = 0",
        symptom="pathwise",
        cure="score function",
        measure=step_function,
        claim=lambda a, b: a == 0 and _close(b, (2 * math.pi) ** -0.5, 0.01),
        says="0; the density, .399",
    ),
    Pitfall(
        name="a loud path",
        number="variance of the gradient of E cos(10 z)",
        symptom="pathwise",
        cure="score function",
        measure=lambda: cosine_variance(10.0, True),
        claim=lambda a, b: _close(a, 50, 0.02) and _close(b, 0.5, 0.02),
        says="50; .5",
    ),
    Pitfall(
        name="a loud score",
        number="variance of the gradient of E cos(.3 z)",
        symptom="score function",
        cure="pathwise",
        measure=lambda: cosine_variance(0.3, False),
        claim=lambda a, b: a > 50 * b,
        says="a ratio above 50",
    ),
    Pitfall(
        name="masked KL, value",
        number="values of KL(q, uniform) not finite, one logit -inf",
        symptom="pi log pi",
        cure="`entropy`",
        measure=masked_value,
        claim=lambda a, b: a == 1 and b == 0,
        says="1; 0",
    ),
    Pitfall(
        name="masked KL, gradient",
        number="of 3 derivatives of that KL, how many are not finite",
        symptom="xlogy(pi, pi), whose value is right",
        cure="`entropy`",
        measure=masked_gradient,
        claim=lambda a, b: a > 0 and b == 0,
        says="some; 0",
    ),
    Pitfall(
        name="soft at evaluation",
        number="negative ELBO, categorical VAE, digits, Gumbel-Softmax at tau 1",
        symptom="evaluated with relaxed codes: flattering, and no bound",
        cure="the truth, with hard codes",
        measure=soft_evaluation,
        claim=lambda a, b: b - a > 1,
        says="hard is worse by more than 1 nat",
    ),
    Pitfall(
        name="soft at training",
        number="hard minus relaxed negative ELBO",
        symptom="trained with relaxed codes, tau 1",
        cure="trained with hard codes, ST-GS, tau .5",
        measure=soft_training,
        claim=lambda a, b: a > 2 * b > 0,
        says="less than half",
    ),
    Pitfall(
        name="collapse, warm-up",
        number="active units of 16, Gaussian VAE, digits, learning rate .03",
        symptom="KL with weight 1 from the start",
        cure="its weight grows from 0 to 1 over half of the steps",
        measure=lambda: collapse(0.5, 0.0),
        claim=lambda a, b: a <= 2 and b >= 8,
        says="at most 2; at least 8",
    ),
    Pitfall(
        name="collapse, free bits",
        number="active units of 16, Gaussian VAE, digits, learning rate .03",
        symptom="every nat of the KL counts",
        cure="the first .1 nats of each latent are free",
        measure=lambda: collapse(0.0, 0.1),
        claim=lambda a, b: a <= 2 and b >= 8,
        says="at most 2; at least 8",
    ),
)
"""Each row is measured and checked by `run.py`, and by the tests."""
