"""Every selector searches every space under every modifier, or is refused at once, with the reason."""

import pytest
import torch
from test_matrix import SPACES

from nas import registry
from nas.errors import ConfigError
from nas.runs.pipeline import configure
from nas.runs.search import BilevelSearch, examine
from nas.runs.session import session

STEPS = 3
PARTIAL = {"name": "partial-channels", "share": 2}
SOON = {
    "partial-channels": PARTIAL,
    "oles": {"name": "oles", "every": 1, "window": 1},
    "perturbed-weights": {"name": "perturbed-weights", "kind": "adversarial", "steps": 2},
    "lambda-darts": {"name": "lambda-darts", "weight": 0.1},
    "shrinking": {"name": "shrinking", "at": [0.4], "keep": [0.5]},
    "weight-averaging": {"name": "weight-averaging", "begin": 0.3, "every": 1},
}
"""Settings with which a modifier does something within a few steps."""

ROWS = [(modifier, space) for modifier in registry.names("nas.modifiers") for space in sorted(SPACES)]
QUICK = {(modifier, "nas-bench-201") for modifier in registry.names("nas.modifiers")}
FEW = ("softmax", "st-gs", "score-cv", "uniform")


def outcome(modifier, space, selector, folder):
    """Returns the reason of a refusal, or None after a few steps that went well."""
    config = configure(
        space={"name": space, **dict(settings(SPACES[space]))},
        selector=selector,
        dataset={"limit": 8 * STEPS},
        search={"epochs": 1, "batch_size": 8, "warmup": 0, "modifiers": [SOON.get(modifier, modifier)]},
        tracking={"wandb": "disabled"},
        threads=1,
    )
    with session(folder, config, "search", quiet=True) as work:
        try:
            examine(config, work.task)
            search = BilevelSearch(work)
        except ConfigError as refused:
            return str(refused)
        for step in range(STEPS):
            values = search.step(step, search.progress(step))
            assert all(torch.isfinite(value) for value in values.values()), (selector, values)
        search.settle()
        assert all(torch.isfinite(value).all() for value in search.network.parameters()), selector
        for name, table in search.probabilities().items():
            assert torch.allclose(table.sum(-1), torch.ones(len(table)), atol=1e-5), (selector, name)
    return None


def settings(written):
    """Turns `space.channels=4` into a pair of a setting's name and its value."""
    for each in written:
        key, value = each.split("=")
        yield key.removeprefix("space."), int(value) if value.isdigit() else value


def check(modifier, space, selectors, folder):
    reasons = {name: outcome(modifier, space, name, folder / name) for name in selectors}
    for name, reason in reasons.items():
        assert reason is None or (modifier in reason and len(reason) > 60), (name, reason)
    return {name for name, reason in reasons.items() if reason is None}


@pytest.mark.parametrize(("modifier", "space"), sorted(QUICK))
def test_each_modifier_runs_with_some_selector_on_nas_bench_201(modifier, space, tmp_path):
    assert check(modifier, space, FEW, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("modifier", "space"), ROWS)
def test_every_selector_runs_on_every_space_under_every_modifier_or_says_why_not(modifier, space, tmp_path):
    check(modifier, space, registry.names("nas.selectors"), tmp_path)


def test_modifiers_combine(tmp_path):
    config = configure(
        space={"name": "darts", "channels": 4, "depth": 3, "nodes": 2},
        selector="edge-normalised",
        dataset={"limit": 24},
        search={
            "epochs": 1,
            "batch_size": 8,
            "warmup": 0,
            "modifiers": [PARTIAL, "auxiliary-skip", SOON["perturbed-weights"], SOON["oles"], "beta-decay"],
        },
        tracking={"wandb": "disabled"},
        threads=1,
    )
    with session(tmp_path / "run", config, "search", quiet=True) as work:
        search = BilevelSearch(work)
        for step in range(STEPS):
            assert all(torch.isfinite(value) for value in search.step(step, search.progress(step)).values())
