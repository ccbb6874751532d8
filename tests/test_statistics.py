"""Batch-norm statistics: left alone where asked, and recalibrated without a trace."""

import pytest
import torch
from torch import nn

from nas.supernet.statistics import norms, recalibrated, untouched_statistics


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3, momentum=0.3),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(3, 2, 1),
        nn.BatchNorm2d(2, affine=False),
        nn.BatchNorm2d(2, track_running_stats=False),
    ).double()


def batches(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(i + 1) * torch.randn(4, 2, 6, 6, generator=generator, dtype=torch.float64) for i in range(count)]


def state(net: nn.Module) -> dict[str, object]:
    """Returns everything a measurement must leave as it was."""
    found: dict[str, object] = {name: value.clone() for name, value in net.state_dict().items()}
    for name, m in net.named_modules():
        found[f"settings of {name}"] = m.training, getattr(m, "momentum", 0), getattr(m, "track_running_stats", 0)
    return found


def same(one: dict[str, object], two: dict[str, object]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(value, two[name]) if isinstance(value, torch.Tensor) else value == two[name]
        for name, value in one.items()
    )


def test_norms_are_those_that_keep_running_statistics():
    net = network()
    assert norms(net) == [net[1], net[5]]


def test_untouched_statistics_normalise_by_the_batch_and_move_nothing():
    net, (x,) = network(), batches(1)
    net[3].p = 0.0
    before = state(net)
    with untouched_statistics(net):
        inside = net(x)
    assert same(state(net), before)
    assert torch.equal(inside, net(x))  # what training mode gives
    assert not same(state(net), before)  # and that does move them


def test_untouched_statistics_use_the_running_ones_in_evaluation():
    net, (x,) = network(), batches(1)
    net(x)
    net.eval()
    expected = net(x)
    with untouched_statistics(net):
        assert torch.equal(net(x), expected)


def test_untouched_statistics_are_put_back_after_an_error():
    net = network()
    before = state(net)
    with pytest.raises(KeyError), untouched_statistics(net):
        raise KeyError
    assert same(state(net), before)


def test_recalibrated_statistics_are_the_averages_over_the_batches():
    net, images = network(), batches(3)
    with recalibrated(net, images, net):
        first = [net[0](x) for x in images]
        # The second norm sees the first one normalised by each batch's own statistics.
        normal = [nn.functional.batch_norm(y, None, None, net[1].weight, net[1].bias, training=True) for y in first]
        second = [net[4](y.relu()) for y in normal]
        for norm, inputs in ((net[1], first), (net[5], second)):
            mean = torch.stack([y.mean((0, 2, 3)) for y in inputs]).mean(0)
            variance = torch.stack([y.var((0, 2, 3), unbiased=True) for y in inputs]).mean(0)
            torch.testing.assert_close(norm.running_mean, mean, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(norm.running_var, variance, rtol=1e-12, atol=1e-12)
            assert norm.num_batches_tracked == 3


@pytest.mark.parametrize("training", [True, False])
def test_recalibration_leaves_no_trace_in_statistics_modes_and_momentum(training):
    net = network().train(training)
    net[3].train(not training)  # modules may be in another mode than their network
    net[5].train(not training)
    net(batches(1, seed=1)[0])
    before = state(net)
    with recalibrated(net, batches(2), net):
        assert not same(state(net), before)
    assert same(state(net), before)
    with pytest.raises(KeyError), recalibrated(net, batches(2), net):
        raise KeyError
    assert same(state(net), before)

    def fails(images):
        net(images)
        raise KeyError

    with pytest.raises(KeyError), recalibrated(net, batches(2), fails):
        pass
    assert same(state(net), before)


def test_inside_the_network_is_in_evaluation_mode_and_keeps_no_graph():
    net, (x,) = network(), batches(1)
    modes = []
    with recalibrated(net, [x], lambda images: modes.append((net[3].training, net(images).requires_grad))):
        assert not any(module.training for module in net.modules())
        assert not net(x).requires_grad
        assert torch.equal(net(x), net(x))
    assert modes == [(False, False)]  # dropout is off while statistics are gathered
    assert net(x).requires_grad


def test_a_recalibrated_measurement_does_not_depend_on_earlier_statistics():
    net, images, (x,) = network(), batches(3), batches(1, seed=2)

    def measure():
        with recalibrated(net, images, net):
            return net(x)

    fresh = measure()
    for other in batches(5, seed=3):
        net(10 * other + 3)
    assert torch.equal(measure(), fresh)
    assert not torch.equal(net.eval()(x), fresh)
