"""The stages of a run, from Python: what they leave, what they may touch, and what their numbers mean."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch import nn

import nas
from nas.checkpoint import latest
from nas.config import to_tree
from nas.data import Batches, Images, in_order
from nas.derivation import discretise
from nas.errors import CheckpointError, ConfigError, LockedError, NumericsError
from nas.runs import retrain as retraining
from nas.runs.evaluation import Evaluator
from nas.runs.folder import Run
from nas.runs.ranking import random_genotypes
from nas.runs.search import BilevelSearch
from nas.runs.session import session
from nas.selectors.uniform import Uniform
from nas.space import Genotype
from nas.status import lock

SMALL = {
    "space": {"name": "nas-bench-201", "channels": 4, "cells_per_stage": 1},
    "dataset": {"limit": 48},
    "search": {"epochs": 2, "batch_size": 16},
    "retrain": {"epochs": 1, "batch_size": 32, "seeds": 2},
    "gap": {"random": 3, "decisions": 3},
    "threads": 1,
}


def small(**sections):
    """Returns the small configuration with some sections changed key by key."""
    merged = {
        key: {**SMALL.get(key, {}), **value} if isinstance(value, dict) else value for key, value in sections.items()
    }
    return {**SMALL, **merged}


def search(folder, **sections):
    return nas.search(out=folder, quiet=True, **small(**sections))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with all four stages done; tests leave it as it is."""
    run = search(tmp_path_factory.mktemp("finished") / "run", selector="st-gs")
    nas.derive(run, quiet=True)
    nas.retrain(run, quiet=True)
    nas.measure_gap(run, quiet=True)
    return run


@pytest.fixture
def work(tmp_path):
    """A session with a fresh search: `work(search={"clip": 0.1})`."""
    opened = []

    def open_session(**sections):
        manager = session(tmp_path / f"work-{len(opened)}", nas.configure(**small(**sections)), "search", quiet=True)
        opened.append(manager)
        return BilevelSearch(manager.__enter__())

    yield open_session
    for manager in reversed(opened):
        manager.__exit__(None, None, None)


def state(*modules: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def rows(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def copy(run: Run, folder: Path) -> Run:
    shutil.copytree(run.folder, folder / "copy")
    return Run.open(folder / "copy")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_importing_nas_loads_no_torch():
    code = "import nas, sys; assert 'search' in dir(nas); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_function_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = nas.serach


# What a run leaves


def test_the_run_folder_holds_what_is_documented(finished):
    found = {path.name for path in finished.folder.iterdir() if not path.name.startswith(".")}
    assert found == {
        *("config.yaml", "environment.json", "status.json", "metrics.jsonl", "checkpoints", "search.json"),
        *("genotype.json", "retrain", "gap.json"),
    }
    (step,) = (finished.folder / "checkpoints").iterdir()
    assert step.name == "step-000006"
    assert {path.suffix for path in step.iterdir()} == {".json", ".safetensors"}
    assert not [path for path in finished.folder.rglob("*") if path.suffix in (".pt", ".pth", ".pkl", ".npy")]
    assert json.loads((finished.folder / "status.json").read_text())["state"] == "done"
    assert json.loads((finished.folder / "environment.json").read_text())["packages"]["torch"]
    stages = {row["stage"].partition("/")[0] for row in rows(finished)}
    assert stages == {"search", "retrain"}


def test_the_configuration_in_the_folder_is_complete_and_reads_back(finished):
    assert Run.open(finished.folder).config == finished.config
    text = (finished.folder / "config.yaml").read_text()
    assert all(f"{key}:" in text for key in to_tree(finished.config))
    assert nas.configure(finished.folder / "config.yaml") == finished.config


def test_every_stage_runs_from_a_path_to_what_the_one_before_wrote(tmp_path):
    folder = search(tmp_path / "run").folder
    genotype = nas.derive(str(folder), quiet=True)
    assert genotype == Run.open(folder).genotype()
    results = nas.retrain(folder, quiet=True)
    assert [result.seed for result in results] == [0, 1]
    report = nas.measure_gap(folder, quiet=True)
    assert report["retrained"]["values"] == [result.select for result in results]
    assert report == json.loads((folder / "gap.json").read_text())


def test_a_stage_without_the_one_before_says_which_command_comes_first(tmp_path):
    run = Run.begin(tmp_path / "run", nas.configure(**SMALL))
    for stage, remedy in ((nas.derive, "nas resume"), (nas.retrain, "nas derive"), (nas.measure_gap, "nas derive")):
        with pytest.raises(CheckpointError, match=remedy):
            stage(run, quiet=True)
    with pytest.raises(CheckpointError, match="no run folder"):
        nas.derive(tmp_path / "absent")


def test_a_genotype_is_retrained_alone(tmp_path):
    space = nas.configure(**SMALL).space
    genotype = space.parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|")
    results = nas.retrain(genotype, out=tmp_path / "run", quiet=True, **SMALL)
    assert [result.genotype for result in results] == [space.format(genotype)] * 2
    assert Run.open(tmp_path / "run").genotype() == genotype
    other = space.parse("|nor_conv_1x1~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|")
    with pytest.raises(ConfigError, match="another genotype; choose another --out"):
        nas.retrain(other, out=tmp_path / "run", quiet=True, **SMALL)
    with pytest.raises(ConfigError, match="another space"):
        nas.retrain(genotype, out=tmp_path / "other", quiet=True, **{**SMALL, "space": "darts"})


def test_two_seeds_differ(finished, tmp_path):
    other = search(tmp_path / "run", seed=1, search={"epochs": 1})
    ours, theirs = (latest(run.folder / "checkpoints").tensors["architecture"] for run in (finished, other))
    assert not torch.equal(ours["tables.cell"], theirs["tables.cell"])


# Who sees which images


def test_the_splits_share_no_image():
    splits = nas.configure(**SMALL).dataset.load()
    places = [part.indices.tolist() for part in (splits.train, splits.arch, splits.select, splits.test)]
    assert sum(map(len, places)) == len(set().union(*places)) > 0


def test_each_split_serves_its_purpose_only(monkeypatch, tmp_path):
    """A step of the search is told by where it reads: train for weights, arch for logits, and never test."""
    config = nas.configure(**SMALL)
    splits = config.dataset.load()
    names = {}
    for name in ("train", "arch", "select", "test"):
        for place in getattr(splits, name).indices.tolist():
            names[place] = name
    seen: dict[str, set[str]] = {}
    doing = ["loading"]
    take = Images.take

    def watched(self, indices):
        seen.setdefault(doing[-1], set()).update(names[place] for place in self.indices[indices].tolist())
        return take(self, indices)

    def during(owner, method, what):
        real = getattr(owner, method)

        def wrapped(self, *arguments, **keywords):
            doing.append(what)
            try:
                return real(self, *arguments, **keywords)
            finally:
                doing.pop()

        monkeypatch.setattr(owner, method, wrapped)

    monkeypatch.setattr(Images, "take", watched)
    during(BilevelSearch, "_weight_step", "weights")
    during(BilevelSearch, "_architecture_step", "logits")
    during(retraining.Retraining, "step", "retrain")
    during(Evaluator, "quality", "accuracy")
    run = search(tmp_path / "run", selector="uniform", search={"epochs": 1}, derive={"name": "sampled", "samples": 2})
    nas.derive(run, quiet=True)
    assert seen.pop("accuracy") == {"train", "arch", "select"}  # train and arch calibrate
    assert seen.pop("loading") == {"train", "arch"}  # mean and deviation
    assert seen == {"weights": {"train"}}
    search(tmp_path / "learns", search={"epochs": 1})
    assert seen["logits"] == {"arch"}
    assert seen["weights"] == {"train"}
    assert "test" not in set().union(*seen.values())
    nas.retrain(run, quiet=True, retrain={"seeds": 1})
    assert seen["retrain"] == {"train", "arch"}
    assert seen["accuracy"] == {"train", "arch", "select", "test"}


# The steps of a search


@pytest.mark.parametrize("selector", ["st-gs", "softmax"])
def test_a_weight_step_leaves_the_logits_and_an_architecture_step_the_weights(selector, work):
    search = work(selector=selector)
    logits, weights = state(search.architecture), state(search.network)
    search._architecture_step(0, 0.5)
    assert same(state(search.network), weights)  # batch-norm statistics among them
    assert not same(state(search.architecture), logits)
    assert all(parameter.grad is None for parameter in search.network.parameters())
    logits = state(search.architecture)
    search._weight_step(0, 0.5)
    assert same(state(search.architecture), logits)
    assert not same(state(search.network), weights)


def test_a_step_walks_no_modules(work, monkeypatch):
    """A large supernet has thousands of modules, and a walk takes longer than a small step."""
    search = work(search={"warmup": 0.0})
    monkeypatch.setattr(search.network, "named_modules", None)
    monkeypatch.setattr(search.network, "children", None)
    assert "arch_loss" in search.step(0, 0.0)
    assert search.network.training


def test_warm_up_rests_the_logits_for_its_share_of_the_steps(work):
    search = work(search={"warmup": 0.5, "epochs": 4})  # 12 steps
    moved = []
    for step in range(search.steps):
        before = state(search.architecture)
        search.step(step, search.progress(step))
        moved.append(not same(state(search.architecture), before))
    assert moved == [step / 11 >= 0.5 for step in range(12)]
    assert [search.progress(step) for step in (0, 11)] == [0.0, 1.0]


def test_uniform_never_moves_the_logits(work):
    search = work(selector="uniform", search={"warmup": 0.0})
    before = state(search.architecture)
    assert "arch_loss" not in search.step(0, 1.0)
    assert same(state(search.architecture), before)


@pytest.mark.parametrize("clip", [0.01, 0.0])
def test_clipping_bounds_the_norm_of_the_gradient_of_the_weights(clip, work):
    search = work(search={"clip": clip})
    search._weight_step(0, 0.0)
    gradients = [p.grad.double() for p in search.network.parameters() if p.grad is not None]
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    # Clipping divides by norm + 1e-6 in float32.
    assert norm == pytest.approx(clip, rel=1e-3) if clip else norm > 0.1


def test_the_learning_rate_follows_its_cosine_from_the_first_step_to_the_last(work):
    lr = {"name": "cosine", "start": 0.1, "end": 0.02}
    search = work(search={"weights": {"name": "sgd", "lr": lr}})
    rates = []
    for step in range(search.steps):
        search.step(step, search.progress(step))
        rates.append(search.weights.param_groups[0]["lr"])
    expected = [0.02 + 0.08 * (1 + math.cos(math.pi * step / 5)) / 2 for step in range(6)]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert (rates[0], rates[-1]) == pytest.approx((0.1, 0.02))


def test_drop_path_grows_while_retraining(finished, tmp_path):
    config = nas.configure(finished.config, retrain={"drop_path": {"name": "linear", "start": 0.0, "end": 0.4}})
    with session(tmp_path / "work", config, "retrain", quiet=True) as opened:
        training = retraining.Retraining(opened, finished.genotype(), 0, tmp_path / "work" / "a" / "b")
        training.step(1, 0.5)
        assert {cell.drop_path for cell in training.network.mixed_cells} == {0.2}


# Accuracies


def test_an_evaluation_leaves_the_network_as_it_was_and_is_the_same_whatever_ran_before(work):
    search = work()
    for step in range(2):
        search.step(step, 0.5)
    evaluator = search.session.evaluator
    space = search.session.config.space
    first, second = (discretise(space, genotype) for genotype in random_genotypes(search.session, 2))
    before, mode = state(search.network), search.network.training
    momenta = [norm.momentum for norm in search.network.modules() if isinstance(norm, nn.BatchNorm2d)]
    alone = evaluator.accuracy(search.network, first, "select", "test")
    evaluator.accuracy(search.network, second, "test")
    assert evaluator.accuracy(search.network, first, "select", "test") == alone
    assert same(state(search.network), before)
    assert search.network.training == mode
    assert momenta == [norm.momentum for norm in search.network.modules() if isinstance(norm, nn.BatchNorm2d)]


def test_an_accuracy_is_that_of_a_plain_evaluation_after_recalibration(work):
    search = work()
    search.step(0, 0.5)
    settings, splits = search.session.config.evaluation, search.session.splits
    decision = search.decide(1.0, "test")
    found = search.session.evaluator.accuracy(search.network, decision, "select")
    norms = [module for module in search.network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    look = {"mean": splits.mean, "deviation": splits.deviation, "device": "cpu"}
    batches = Batches(splits.train + splits.arch, settings.batch_size, seed=0, stream="calibrate", **look)
    right = 0
    with torch.no_grad():
        search.network.train()
        for step in range(batches.steps_per_epoch):
            search.network(batches.batch(step)[0], decision)
        search.network.eval()
        for images, labels in in_order(splits.select, 7, **look):
            right += int((search.network(images, decision).scores.argmax(1) == labels).sum())
    assert found == [100 * right / len(splits.select)]


def test_the_trained_network_has_the_reported_accuracy(finished):
    splits = finished.config.dataset.load()
    evaluator = Evaluator(splits, finished.config.evaluation, finished.config.seed, torch.device("cpu"))
    report = finished.gap()
    for seed in range(2):
        network = nas.network(finished, seed)
        assert not network.training
        values = evaluator.accuracy(network, None, "select", "test")
        assert values == [report["retrained"]["values"][seed], report["test"]["retrained"]["values"][seed]]


# Deriving and retraining


def test_uniform_derives_by_sampling_and_refuses_an_argmax(tmp_path):
    assert not Uniform.learns
    with pytest.raises(ConfigError, match=r"learns no logits, got argmax; use sampled"):
        search(tmp_path / "refused", selector="uniform", derive="argmax")
    assert not (tmp_path / "refused").exists()  # before anything was computed
    run = search(tmp_path / "run", selector="uniform", search={"epochs": 1})
    with pytest.raises(ConfigError, match=r"learns no logits, got argmax; use sampled"):
        nas.derive(run, quiet=True, derive="argmax")
    genotype = nas.derive(run, quiet=True, derive={"name": "sampled", "samples": 3})
    run.config.space.require(genotype)


def test_another_rule_changes_the_genotype_and_drops_the_stale_gap(tmp_path):
    run = search(tmp_path / "run", search={"epochs": 1})
    nas.derive(run, quiet=True, derive={"name": "sampled", "samples": 1})
    run = Run.open(run.folder)
    nas.measure_gap(run, quiet=True, gap={"random": 0, "decisions": 1})
    run = Run.open(run.folder)
    before = contents(run.folder)
    first = run.genotype()
    genotype = nas.derive(run, quiet=True, derive="darts")
    assert "none" not in {operation for _, _, operation in genotype.cells["cell"]}
    assert genotype != first
    assert Run.open(run.folder).gap() is None
    after = contents(run.folder)
    changed = {path.name for path in before if after.get(path) != before[path]}
    assert changed - {"status.json"} == {"genotype.json", "gap.json", "config.yaml"}


def test_retrained_networks_are_filed_by_recipe(tmp_path, monkeypatch):
    run = search(tmp_path / "run", search={"epochs": 1})
    nas.derive(run, quiet=True)
    steps = []
    step = retraining.Retraining.step
    monkeypatch.setattr(retraining.Retraining, "step", lambda *a: steps.append(1) or step(*a))

    def trained(**recipe):
        steps.clear()
        folders = [result.folder for result in nas.retrain(Run.open(run.folder), quiet=True, retrain=recipe)]
        return len(steps), folders

    per_epoch = 3
    first, folders = trained(seeds=1)
    assert first == per_epoch
    again, more = trained(seeds=2)  # the first seed is only read
    assert (again, more[:1]) == (per_epoch, folders)
    longer, others = trained(seeds=1, epochs=2)
    assert longer == 2 * per_epoch
    assert others != folders
    assert trained(seeds=2, epochs=1) == (0, more)


def test_every_seed_is_a_training_of_its_own(finished):
    first, second = (nas.network(finished, seed) for seed in range(2))
    assert not same(state(first), state(second))


# The gap


def test_the_gap_is_the_sum_of_its_parts(finished):
    report = finished.gap()
    assert report["split"] == "select"
    supernet, inherited, retrained = report["supernet"], report["inherited"], report["retrained"]["mean"]
    assert report["discretisation_gap"] == pytest.approx(supernet - inherited)
    assert report["sharing_gap"] == pytest.approx(inherited - retrained)
    assert report["gap"] == pytest.approx(supernet - retrained)
    assert report["gap"] == pytest.approx(report["discretisation_gap"] + report["sharing_gap"])
    assert supernet == pytest.approx(np.mean(report["supernet_decisions"]["values"]))
    assert len(report["supernet_decisions"]["values"]) == 3
    assert set(report["test"]) == {"supernet", "inherited", "retrained", "random"}
    assert report["genotype"] == finished.config.space.format(finished.genotype())


def test_means_deviations_and_intervals_are_those_of_the_values(finished):
    report = finished.gap()
    for spread in (report["retrained"], report["random"], report["random_inherited"], report["test"]["random"]):
        values = spread["values"]
        assert spread["mean"] == pytest.approx(np.mean(values))
        assert spread["deviation"] == pytest.approx(np.std(values, ddof=1))
        low, high = spread["interval"]
        assert min(values) <= low <= spread["mean"] <= high <= max(values)


def test_the_rank_correlation_is_kendalls_tau(finished):
    report = finished.gap()
    expected = kendalltau(report["random_inherited"]["values"], report["random"]["values"]).statistic
    assert report["kendall_tau_n"] == len(report["random"]["values"]) == 3
    if math.isnan(expected):
        assert report["kendall_tau"] is None
    else:
        assert report["kendall_tau"] == pytest.approx(expected)


def test_random_genotypes_are_distinct_and_trained_as_long_as_the_derived_one(finished, tmp_path):
    with session(tmp_path / "work", finished.config, "gap", quiet=True) as opened:
        rivals = random_genotypes(opened, 3)
    assert len(set(rivals)) == 3
    keys = [retraining.recipe_key(finished.config, genotype) for genotype in (finished.genotype(), *rivals)]
    steps = {
        key: max(row["step"] for row in rows(finished) if row["stage"].startswith(f"retrain/{key}/")) for key in keys
    }
    assert set(steps.values()) == {3}
    results = [retraining.read_retrained(finished.config, finished.folder, rival, 1)[0] for rival in rivals]
    assert [result.select for result in results] == finished.gap()["random"]["values"]


def test_a_space_with_fewer_genotypes_gives_fewer_rivals(tmp_path):
    tiny = {"name": "chain", "channels": 4, "stages": 1, "blocks_per_stage": 1}
    config = nas.configure(**{**SMALL, "space": tiny})
    with session(tmp_path / "work", config, "gap", quiet=True) as opened:
        rivals = random_genotypes(opened, 10)
    assert len(rivals) == len(set(rivals)) == 6


def test_the_supernet_of_a_deterministic_selector_is_measured_once(tmp_path):
    run = search(tmp_path / "run", selector="softmax", search={"epochs": 1}, gap={"random": 0}, retrain={"seeds": 1})
    nas.derive(run, quiet=True)
    report = nas.measure_gap(run, quiet=True)
    assert len(report["supernet_decisions"]["values"]) == 1
    assert report["kendall_tau"] is None
    assert report["random"] == {"mean": None, "deviation": None, "interval": None, "values": []}


def test_a_table_of_accuracies_is_looked_up(finished, tmp_path):
    own = finished.config.space.format(finished.genotype())
    accuracies = {"cifar10_valid": [50.0, 1.0, 2.0, 3.0], "cifar10_test": [60.0, 70.0, 10.0, 90.0]}
    np.savez(tmp_path / "table.npz", arch=np.array([own, "b", "c", "d"]), **accuracies)
    entry = nas.measure_gap(copy(finished, tmp_path), quiet=True, benchmark={"path": str(tmp_path / "table.npz")})
    assert entry["benchmark"] == {"valid": 50.0, "test": 60.0, "rank": 3, "of": 4, "regret": 30.0}


def test_a_missing_table_is_reported_before_anything_is_trained(nas_command, tmp_path):
    outcome = nas_command("run", "--benchmark", tmp_path / "absent.npz", "--out", tmp_path / "run")
    assert outcome.code == 3
    assert "absent.npz: no such file" in outcome.err
    assert not (tmp_path / "run" / "checkpoints").exists()


# Refusals


def test_another_configuration_in_the_same_folder_is_refused_with_the_difference(finished):
    before = contents(finished.folder)
    with pytest.raises(ConfigError) as caught:
        search(finished.folder, search={"epochs": 3}, seed=5)
    message = str(caught.value)
    for part in ("search.epochs: 2 there, 3 asked for", "seed: 0 there, 5 asked for", "choose another --out"):
        assert part in message
    with pytest.raises(ConfigError, match="selector"):
        nas.derive(finished, selector="gdas")
    assert contents(finished.folder) == before


def test_a_folder_in_use_is_refused_and_left_as_it_is(finished):
    before = contents(finished.folder)
    with lock(finished.folder):
        for ask in (
            lambda: search(finished.folder),
            lambda: nas.derive(finished),
            lambda: nas.derive(finished, derive="darts"),
        ):
            with pytest.raises(LockedError, match=f"in use by process {os.getpid()}"):
                ask()
    assert contents(finished.folder) == before


@pytest.mark.parametrize("lr", [1e30, 1e10])
def test_numbers_that_are_not_finite_stop_the_search_and_keep_the_checkpoints_before(lr, tmp_path):
    rising = {"name": "sgd", "lr": {"name": "linear", "start": 0.01, "end": lr}}
    with pytest.raises(NumericsError, match=r"no longer finite at step .*lower the learning rate") as caught:
        search(tmp_path / "run", checkpoint_seconds=0, search={"epochs": 3, "weights": rising})
    assert caught.value.exit_code == 6
    kept = latest(tmp_path / "run" / "checkpoints")
    assert kept is not None
    learned = {**kept.tensors["network"], **kept.tensors["architecture"]}
    assert all(value.isfinite().all() for name, value in learned.items() if "running" not in name)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


def test_a_damaged_result_names_the_file(finished, tmp_path):
    run = copy(finished, tmp_path)
    for path in run.folder.rglob("result.json"):
        path.write_text('{"seed": 0}')
    with pytest.raises(CheckpointError, match=r"result\.json is damaged"):
        nas.retrain(run, quiet=True)


def test_a_genotype_survives_the_folder(finished):
    written = json.loads((finished.folder / "genotype.json").read_text())
    genotype = Genotype.from_json(json.dumps(written))
    assert genotype == finished.genotype() == finished.config.space.parse(written["text"])
