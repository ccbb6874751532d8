"""Gumbel noise and the Gumbel-Max trick: distributions, limits of floating point, masks."""

import math

import pytest
import torch
from scipy import stats

from nas.estimators import centred, gumbel_max, gumbel_noise

EULER = 0.5772156649015329
HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize(
    "logits",
    [[0.0] * 4, [1.0, -2.0, 0.5, 0.0, 0.3], [1e7 + 1, 1e7, 1e7 - 2], [0.2, -math.inf, 1.0, -math.inf]],
    ids=["flat", "plain", "offset", "masked"],
)
def test_gumbel_max_samples_the_softmax_exactly(logits, generator):
    logits = torch.tensor(logits)
    count = 200_000
    samples = gumbel_max(logits.expand(count, -1), generator)
    assert set(samples.unique().tolist()) == {0.0, 1.0}
    assert (samples.sum(-1) == 1).all()
    live = logits.isfinite()
    expected = count * logits.double().softmax(-1)
    # With right samples and other seeds, one in a thousand chi-square tests would fail.
    assert stats.chisquare(samples.sum(0).double()[live], expected[live]).pvalue > 1e-3
    assert not samples[:, ~live].any()


def test_gumbel_max_keeps_the_dtype_of_half_logits_but_draws_in_single(generator):
    """Noise rounded to bfloat16 has ties, which an argmax gives to the first candidate."""
    for dtype in HALVES:
        samples = gumbel_max(torch.zeros(200_000, 8, dtype=dtype), generator)
        assert samples.dtype == dtype
        assert stats.chisquare(samples.float().sum(0)).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_gumbel_distributed(dtype, generator):
    noise = gumbel_noise(torch.empty(100_000, dtype=dtype), generator)
    assert noise.dtype == dtype
    assert stats.kstest(noise.double().numpy(), "gumbel_r").pvalue > 1e-3


def test_noise_has_the_mean_and_variance_of_a_gumbel(generator):
    count, variance = 10**6, math.pi**2 / 6
    noise = gumbel_noise(torch.empty(count), generator).double()
    # Five standard errors; the excess kurtosis of a Gumbel is 12/5, so the variance's is sqrt((12/5 + 2) / n) of it.
    assert noise.mean().item() == pytest.approx(EULER, abs=5 * math.sqrt(variance / count))
    assert noise.var().item() == pytest.approx(variance, rel=5 * math.sqrt(4.4 / count))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_a_million_draws_are_finite_and_single_precision_at_least(dtype, generator):
    noise = gumbel_noise(torch.empty(10**6, dtype=dtype), generator)
    assert noise.dtype == torch.float32
    assert noise.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_finite_for_the_least_exponential(dtype, monkeypatch):
    """An exponential may be drawn as zero; its logarithm is taken of the smallest normal number instead."""
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, generator: self.zero_())
    noise = gumbel_noise(torch.empty(3, dtype=dtype))
    assert noise.tolist() == pytest.approx([-math.log(torch.finfo(dtype).tiny)] * 3)


def test_noise_is_a_function_of_its_generator():
    draws = [gumbel_noise(torch.empty(5), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_samples_do_not_change_when_logits_are_shifted():
    """Integers up to 2**24 are exact in float32, but noise added to 1e7 is rounded to integers."""
    logits = torch.tensor([0.0, 1.0, 2.0, -3.0]).expand(10_000, -1)
    near, far = (gumbel_max(x, torch.Generator().manual_seed(3)) for x in (logits, logits + 1e7))
    assert torch.equal(near, far)
    noise = gumbel_noise(logits, torch.Generator().manual_seed(3))
    uncentred = (logits + 1e7 + noise).argmax(-1)
    assert (uncentred != near.argmax(-1)).float().mean() > 0.05


def test_centred_logits_have_their_largest_at_zero_and_keep_masks():
    logits = torch.tensor([[3.0, -math.inf, 1.0], [-7.0, -7.0, -8.0]])
    assert centred(logits).tolist() == [[0.0, -math.inf, -2.0], [0.0, 0.0, -1.0]]
    for dtype in HALVES:
        assert centred(logits.to(dtype)).dtype == torch.float32


@pytest.mark.parametrize("row", [[-math.inf] * 3, [0.0, math.nan, 1.0], [0.0, math.inf, 1.0]])
def test_a_row_without_a_finite_largest_logit_is_refused(row):
    logits = torch.tensor([[0.0, 1.0, 2.0], row])
    for function in (centred, gumbel_max):
        with pytest.raises(ValueError, match="finite, or -inf for a masked candidate with at least one left"):
            function(logits)


def test_one_candidate_is_always_drawn(generator):
    assert gumbel_max(torch.randn(100, 1, generator=generator), generator).tolist() == [[1.0]] * 100
