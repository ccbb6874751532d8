"""The supernet's ranking of genotypes against a table's."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import nas
from nas.benchmarks import Benchmark, Table
from nas.derivation import discretise
from nas.errors import ConfigError, Interrupted
from nas.runs.derive import load_search
from nas.runs.pipeline import configure
from nas.runs.ranking import ENOUGH, describe_training, random_genotypes, rank_correlations, rank_supernet
from nas.runs.session import session
from nas.runs.statistics import kendall, spearman

SMALL = {
    "space": {"name": "nas-bench-201", "channels": 4, "cells_per_stage": 1},
    "dataset": {"limit": 96},
    "search": {"epochs": 2, "batch_size": 16},
    "retrain": {"epochs": 1, "batch_size": 32, "seeds": 1},
    "gap": {"random": 0, "decisions": 1},
    "threads": 1,
}
COUNT = 12


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that derived its genotype; tests leave it as it is."""
    run = nas.search(out=tmp_path_factory.mktemp("finished") / "run", quiet=True, **SMALL, selector="uniform")
    run.write_genotype(
        run.config.space.parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|")
    )
    return run


@pytest.fixture
def work(finished, tmp_path):
    """The finished search in a session that leaves the run alone."""
    with session(tmp_path / "work", finished.config, "gap", quiet=True) as opened:
        (tmp_path / "work" / "checkpoints").symlink_to(finished.folder / "checkpoints")
        yield opened, load_search(opened)


@pytest.fixture(scope="module")
def own(finished, tmp_path_factory) -> dict[str, float]:
    """The inherited accuracies of the genotypes that are ranked, by their text."""
    folder, space = tmp_path_factory.mktemp("own") / "work", finished.config.space
    with session(folder, finished.config, "gap", quiet=True) as opened:
        (folder / "checkpoints").symlink_to(finished.folder / "checkpoints")
        network = load_search(opened).network
        return {
            space.format(each): opened.evaluator.accuracy(network, discretise(space, each), "select")[0]
            for each in random_genotypes(opened, COUNT, "ranked genotypes")
        }


def table(path: Path, accuracies: dict[str, float], **more) -> Table:
    values = np.array([*accuracies.values()])
    np.savez(path, arch=np.array([*accuracies]), cifar10_valid=np.zeros_like(values), cifar10_test=values, **more)
    return Table(Benchmark(path=str(path)))


def test_a_supernet_that_agrees_with_the_table_has_tau_one_and_its_opposite_minus_one(work, own, tmp_path):
    assert len(set(own.values())) > COUNT / 2  # ties would hide what is tested
    agreeing = rank_supernet(*work, table(tmp_path / "same.npz", own), COUNT)
    assert agreeing["tau"] == pytest.approx(1)
    assert agreeing["spearman"] == pytest.approx(1)
    assert agreeing["n"] == COUNT
    opposite = rank_supernet(*work, table(tmp_path / "not.npz", {k: -v for k, v in own.items()}), COUNT)
    assert opposite["tau"] == pytest.approx(-1)
    assert opposite["interval"][1] < 0


def test_ranks_are_of_test_accuracies_after_the_whole_training(work, own, tmp_path):
    opposite = -np.array([*own.values()])
    more = {"cifar10_valid_12ep": opposite, "cifar100_valid": opposite, "cifar100_test": opposite}
    assert rank_supernet(*work, table(tmp_path / "table.npz", own, **more), COUNT)["tau"] == pytest.approx(1)


def test_a_cell_that_the_table_lacks_is_refused_before_anything_is_measured(work, own, tmp_path, monkeypatch):
    monkeypatch.setattr(type(work[0].evaluator), "accuracy", None)
    with pytest.raises(ConfigError, match="the table does not know"):
        rank_supernet(*work, table(tmp_path / "table.npz", dict([*own.items()][1:])), COUNT)


def test_ranking_ends_with_a_signal(work, own, tmp_path):
    opened, search = work
    known = table(tmp_path / "table.npz", own)
    opened.stop.requested = 15
    with pytest.raises(Interrupted, match="while ranking"):
        rank_supernet(opened, search, known, COUNT)


def test_correlations_are_those_of_the_whole_and_of_the_better_half():
    inherited, published = [1.0, 2.0, 3.0, 6.0, 5.0, 4.0], [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
    found = rank_correlations(inherited, published)
    assert found["tau"] == pytest.approx((12 - 3) / 15)  # of fifteen pairs the three among the best disagree
    assert found["spearman"] == pytest.approx(1 - 6 * (4 + 4) / (6 * 35))
    assert found["top_half"]["tau"] == pytest.approx(-1)
    assert found["top_half"]["n"] == 3
    assert {key: found[key] for key in ("tau", "n", "interval")} == kendall(inherited, published)


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0])])
def test_where_a_rank_correlation_is_not_defined_none_is_given(first, second):
    assert spearman(first, second) is None
    found = rank_correlations(first, second)
    assert (found["tau"], found["spearman"], found["top_half"]["tau"]) == (None, None, None)


def test_the_gap_report_has_the_ranking_if_asked_for(finished, nas_command, tmp_path, own):
    path, folder = tmp_path / "table.npz", shutil.copytree(finished.folder, tmp_path / "copy")
    table(path, {finished.config.space.format(finished.genotype()): 0.0, **own})
    outcome = nas_command("gap", folder, "--quiet", "--benchmark", path)
    assert outcome.code == 0, outcome.err
    assert json.loads((folder / "gap.json").read_text())["supernet_ranking"] is None
    assert "ranking" not in outcome.out
    outcome = nas_command("gap", folder, "--quiet", "--benchmark", path, "--set", f"gap.ranked={COUNT}")
    assert outcome.code == 0, outcome.err
    ranking = json.loads((folder / "gap.json").read_text())["supernet_ranking"]
    assert (ranking["tau"], ranking["n"]) == (pytest.approx(1), COUNT)
    assert f"Kendall tau +1.00 (N = {COUNT}, 95% interval" in outcome.out


def test_a_ranking_needs_a_table(nas_command):
    with pytest.raises(ConfigError, match=r"gap.ranked = 3 needs a table of accuracies.*--benchmark"):
        configure(gap={"ranked": 3})
    outcome = nas_command("run", "--set", "gap.ranked=3")
    assert outcome.code == 2
    assert "gap.ranked = 3 needs a table" in outcome.err


def test_a_table_of_hardware_alone_does_not_do(work, tmp_path):
    names = np.array(["fpga_latency"])
    np.savez(tmp_path / "hw.npz", arch=np.array(["a"]), hwnas_cifar10=np.ones((1, 1)), hwnas_names=names)
    with pytest.raises(ConfigError, match=r"has no accuracies; add a table that has"):
        rank_supernet(*work, Table(Benchmark(path=str(tmp_path / "hw.npz"))), COUNT)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_ranking_by_a_table_without_accuracies_is_refused_before_the_search(more, nas_command, tmp_path, monkeypatch):
    monkeypatch.setattr("nas.runs.pipeline.run_search", None)
    space = configure(**SMALL).space
    with session(tmp_path / "work", configure(**SMALL), "gap", quiet=True) as opened:
        arch = np.array([*map(space.format, random_genotypes(opened, COUNT, "ranked genotypes"))])
    np.savez(tmp_path / "hw.npz", arch=arch, hwnas_cifar10=np.ones((COUNT, 1)), hwnas_names=np.array(["fpga_latency"]))
    flags = ("--set", "space.channels=4", "--benchmark", tmp_path / "hw.npz", "--set", "gap.ranked=3")
    outcome = nas_command("run", *flags, "--out", tmp_path / "run", *more)
    assert outcome.code == 2, outcome.err
    assert "has no accuracies; add a table that has" in outcome.err


def test_random_genotypes_are_of_those_that_count_and_begin_alike(work):
    opened, _ = work
    space = opened.config.space

    def keeps(genotype):
        return space.format(genotype).startswith("|none~0|+|none~0|none~1|+|none~0|")  # one in 625

    found = random_genotypes(opened, 4, keeps=keeps)
    assert len(found) == 4
    assert all(map(keeps, found))
    assert random_genotypes(opened, 2, keeps=keeps) == found[:2]
    assert random_genotypes(opened, 4, keeps=lambda genotype: False) == []


def test_random_genotypes_of_two_keys_differ(work):
    opened, _ = work
    first, second = random_genotypes(opened, 5), random_genotypes(opened, 5, "ranked genotypes")
    assert len({*first, *second}) > 5
    assert random_genotypes(opened, 5) == first


@pytest.mark.parametrize(
    ("selector", "modifiers", "each"),
    [("uniform", [], 1 / 5), ("st-gs", [], 1 / 5), ("uniform", ["fair-paths"], 1)],
)
def test_a_supernet_of_sampled_paths_says_if_its_candidates_were_trained_too_little(
    selector, modifiers, each, searching
):
    search = searching("nas-bench-201", *modifiers, selector=selector)
    assert f"trained for about {round(3 * each)} steps" in describe_training(search)
    search.steps = int(ENOUGH / each)
    assert describe_training(search) is None


@pytest.mark.parametrize("selector", ["softmax", "entmax"])
def test_a_mixture_says_nothing_of_it_even_where_it_is_sparse(selector, searching):
    search = searching("nas-bench-201", selector=selector)
    with torch.no_grad():
        search.architecture.tables["cell"][:, 0] = 9.0
    assert describe_training(search) is None


def test_a_derivation_by_inherited_accuracy_says_so(finished, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    nas.derive(folder, quiet=True, derive={"name": "sampled", "samples": 2})
    assert "raise search.epochs" in caplog.text
