"""Golden traces: the losses of a few bilevel steps, for every selector on three spaces.

They catch a change of mathematics, order or randomness that no other test names. Orders of summation differ between
machines, thread counts and engines by about 1e-3 in a float32 gradient; over six steps that moved a loss by at most
1e-3 (measured with the weights in channels_last), while a changed decision, key or formula moves it by more than the
tolerance. `python tests/test_golden.py` writes them.
"""

import json
from pathlib import Path

import pytest

from nas import registry
from nas.runs.pipeline import configure
from nas.runs.search import BilevelSearch
from nas.runs.session import session
from nas.runs.training import Training

GOLDEN = Path(__file__).parent / "golden" / "search.json"
STEPS = 6
TOLERANCE = 5e-3
SPACES = {
    "chain": {"channels": 4, "stages": 2, "blocks_per_stage": 2},
    "darts": {"channels": 4, "depth": 3, "nodes": 2},
    "nas-bench-201": {"channels": 4, "cells_per_stage": 1},
}


def steps(training: Training, count: int) -> list[dict[str, float]]:
    return [
        {name: float(value) for name, value in training.step(step, step / (count - 1)).items()} for step in range(count)
    ]


def trace(space: str, selector: str, folder: Path) -> list[dict[str, float]]:
    config = configure(
        space={"name": space, **SPACES[space]},
        selector=selector,
        dataset={"limit": 96},
        search={
            "epochs": STEPS,
            "batch_size": 16,
            "warmup": 0.2,
            "weights": {"lr": 0.1},
            "logits": {"lr": 0.1},
        },
        tracking={"wandb": "disabled"},
        device="cpu",
        threads=1,
    )
    with session(folder, config, "search", quiet=True) as work:
        return steps(BilevelSearch(work), STEPS)


@pytest.mark.parametrize("selector", registry.names("nas.selectors"))
@pytest.mark.parametrize("space", SPACES)
def test_the_first_steps_of_a_search_have_their_golden_losses(space, selector, tmp_path):
    expected = json.loads(GOLDEN.read_text())[space][selector]
    found = trace(space, selector, tmp_path)
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for row, golden in zip(found, expected, strict=True):
        for name in ("arch_loss", "train_loss"):
            if name in golden:
                assert row[name] == pytest.approx(golden[name], rel=TOLERANCE)


if __name__ == "__main__":
    import tempfile

    found = {
        space: {
            selector: trace(space, selector, Path(tempfile.mkdtemp())) for selector in registry.names("nas.selectors")
        }
        for space in SPACES
    }
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
