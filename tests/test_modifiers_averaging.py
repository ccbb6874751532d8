"""Stochastic weight averaging."""

import pytest
import torch

from nas.config import build, from_setting
from nas.errors import ConfigError
from nas.runs.configuration import Config

EACH = {"name": "weight-averaging", "begin": 0.3, "every": 1}


def weights(search):
    return [weight.detach().clone() for weight in search.network.parameters()]


def train(search, steps=3, first=0):
    """Takes steps, and returns the weights after each."""
    seen = []
    for step in range(first, steps):
        search.step(step, step / 3)
        seen.append(weights(search))
    return seen


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_finished_search_is_measured_with_the_mean_of_the_weights_since_the_beginning_of_averaging(searching):
    search = searching("nas-bench-201", EACH)
    _, second, third = train(search)  # the first step lies before the share of 0.3
    assert_equal(weights(search), third)
    search.settle()
    assert_equal(weights(search), [(a + b) / 2 for a, b in zip(second, third, strict=True)])
    search.settle()
    assert_equal(weights(search), [(a + b) / 2 for a, b in zip(second, third, strict=True)])


def test_only_every_so_many_steps_count(searching):
    search = searching("nas-bench-201", {**EACH, "begin": 0, "every": 2})
    _, second, third = train(search)
    search.settle()
    assert_equal(weights(search), second)
    assert any(not torch.equal(a, b) for a, b in zip(second, third, strict=True))


def test_training_itself_is_not_changed(searching):
    averaged, plain = searching("nas-bench-201", EACH), searching("nas-bench-201")
    for one, other in zip(train(averaged), train(plain), strict=True):
        assert all(map(torch.equal, one, other))


def test_a_search_that_ends_before_the_averaging_keeps_its_weights(searching):
    search = searching("nas-bench-201", EACH)
    (last,) = train(search, 1)
    search.settle()
    assert all(map(torch.equal, weights(search), last))


def test_a_resumed_search_goes_on_with_the_same_mean(searching):
    whole, part, rest = (searching("nas-bench-201", EACH) for _ in range(3))
    train(whole)
    train(part, 2)
    for name, module in rest.modules.items():
        module.load_state_dict(part.modules[name].state_dict())
    rest.weights.load_state_dict(part.weights.state_dict())
    rest.logits.load_state_dict(part.logits.state_dict())
    train(rest, first=2)
    whole.settle()
    rest.settle()
    assert_equal(weights(rest), weights(whole))


@pytest.mark.parametrize(
    ("settings", "words"), [("begin: 1", "begin must be"), ("every: 0", "every must be at least 1")]
)
def test_a_wrong_setting_is_refused(settings, words):
    with pytest.raises(ConfigError, match=f"search.modifiers.0.{words}"):
        build(Config, [from_setting(f"search.modifiers=[{{name: weight-averaging, {settings}}}]")])
