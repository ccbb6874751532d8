"""Comparing runs: the statistics by closed forms and simulation, the groups, and what is said of them."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from nas.errors import CheckpointError, ConfigError
from nas.report.compare import show_comparison
from nas.runs.compare.comparison import compare
from nas.runs.compare.metrics import METRICS
from nas.runs.compare.rows import PLAN, Gathered, Row, gather, read_row
from nas.runs.compare.statistics import holm, paired, t_interval, welch
from nas.runs.folder import Run
from nas.runs.pipeline import configure
from nas.runs.statistics import spread

TRIALS = 1000


def within(rate, share, trials=TRIALS):
    """Whether a share of trials is as far from a probability as 4 standard errors at most."""
    return abs(share - rate) <= 4 * math.sqrt(rate * (1 - rate) / trials)


@pytest.fixture
def draws():
    return np.random.default_rng(0)


# Statistics


def test_holm_by_hand():
    # In order: 4 x .005; 3 x .01; 2 x .03; and 1 x .04, which must not be below the .06 before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_holm_keeps_the_order_and_lies_between_the_raw_p_and_bonferroni(count, draws):
    for _ in range(50):
        ps = draws.uniform(0, 1, count) ** 3
        corrected = np.array(holm(ps.tolist()))
        assert (np.diff(corrected[ps.argsort()]) >= 0).all()
        assert (corrected >= ps).all()
        assert (corrected <= np.minimum(1, count * ps)).all()
        assert corrected.min() == pytest.approx(min(1, count * ps.min()))


@pytest.mark.parametrize("counts", [(2, 2), (3, 3), (3, 6), (9, 4)])
def test_the_tests_are_those_of_scipy(counts, draws):
    first, second = (draws.normal(shift, scale, n) for n, shift, scale in zip(counts, (0, 1), (1, 3), strict=True))
    found, expected = welch(first, second), stats.ttest_ind(first, second, equal_var=False)
    assert (found.p, found.freedom) == pytest.approx((expected.pvalue, expected.df))
    difference = stats.permutation_test(
        (first, second), lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=math.inf, vectorized=True
    )
    # scipy doubles the smaller tail, which is the same where both samples are of one size.
    if counts[0] == counts[1]:
        assert found.permutation_p == pytest.approx(difference.pvalue)
    count = min(counts)
    first, second = first[:count], second[:count]
    found, expected = paired(first, second), stats.ttest_rel(first, second)
    assert (found.p, found.difference, found.freedom) == pytest.approx(
        (expected.pvalue, first.mean() - second.mean(), expected.df)
    )
    flips = stats.permutation_test(
        (first, second),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        permutation_type="samples",
        n_resamples=math.inf,
        vectorized=True,
    )
    assert found.permutation_p == pytest.approx(flips.pvalue)


def test_a_permutation_of_three_pairs_cannot_show_anything(draws):
    assert paired([10.0, 11.0, 12.0], [0.0, 0.5, 0.1]).permutation_p == 0.25
    assert min(paired(draws.normal(9, 1, 3), draws.normal(0, 1, 3)).permutation_p for _ in range(50)) == 0.25


def test_equal_differences_are_judged_by_their_signs_alone():
    # A t would be infinite: seeds that all lead to one cell would "prove" a difference with N = 2.
    assert paired([3.0, 2.3, 7.1], [2.0, 1.3, 6.1]).p == pytest.approx(2 / 2**3)
    assert paired([1.0] * 40, [0.0] * 40).p == pytest.approx(2.0**-39)
    assert paired([1.0, 2.0], [1.0, 2.0]).p == 1
    assert welch([1.0] * 3, [2.0] * 3).p == pytest.approx(2 / math.comb(6, 3))
    assert welch([1.0] * 3, [1.0] * 3).p == 1
    assert welch([1.0] * 20, [2.0] * 20).p == pytest.approx(2 / math.comb(40, 20))
    assert paired([3.0, 2.3, 7.1], [2.0, 1.3, 6.1]).detectable(0.05) is None


def test_a_constant_sample_leaves_the_freedom_of_the_other(draws):
    values = draws.normal(0, 1, 5)
    found = welch([0.1 + 0.2] * 3, values)
    assert found.freedom == pytest.approx(4)
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0.3).pvalue)


@pytest.mark.parametrize("count", [3, 5])
def test_the_paired_test_rejects_a_true_null_as_often_as_it_says(count, draws):
    ps = [paired(draws.normal(0, 1, count), draws.normal(0, 2, count)).p for _ in range(TRIALS)]
    for level in (0.05, 0.2):
        assert within(level, np.mean(np.less(ps, level)))


@pytest.mark.parametrize("scale", [1, 4])
def test_the_test_of_independent_samples_rejects_a_true_null_no_oftener_than_it_says(scale, draws):
    ps = [welch(draws.normal(0, 1, 4), draws.normal(0, scale, 4)).p for _ in range(TRIALS)]
    share = np.mean(np.less(ps, 0.05))
    # Satterthwaite's degrees of freedom are an approximation; its size at these N is known to be .03 to .06.
    assert 0.02 < share < 0.06 + 4 * math.sqrt(0.05 * 0.95 / TRIALS)


def test_corrected_tests_of_many_equal_groups_seldom_show_any_difference(draws):
    any_shown = 0
    for _ in range(500):
        groups = draws.normal(0, 1, (5, 4)) + draws.normal(0, 1, 4)
        ps = [paired(groups[i], groups[j]).p for i, j in itertools.combinations(range(5), 2)]
        assert len(ps) == 10
        any_shown += min(holm(ps)) < 0.05
    assert any_shown / 500 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 500)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_t_interval_holds_the_mean_as_often_as_it_says(count, draws):
    intervals = [t_interval(draws.normal(5, 2, count)) for _ in range(TRIALS)]
    assert within(0.95, np.mean([low <= 5 <= high for low, high in intervals]))


def test_the_bootstrap_interval_of_three_values_holds_the_mean_three_times_of_four_at_most(draws):
    intervals = [spread(draws.normal(5, 2, 3).tolist(), seed)["interval"] for seed in range(500)]
    assert np.mean([low <= 5 <= high for low, high in intervals]) <= 0.75 + 4 * math.sqrt(0.75 * 0.25 / 500)


def test_a_value_or_equal_values_have_no_t_interval():
    assert t_interval([1.0]) is None
    assert t_interval([7.24, 7.24, 7.24]) is None


def test_pairing_shows_what_seeds_share_would_hide(draws):
    shown = {paired: 0, welch: 0}
    for _ in range(200):
        shared = draws.normal(0, 5, 5)
        first, second = shared + draws.normal(2, 0.5, 5), shared + draws.normal(0, 0.5, 5)
        for test in shown:
            shown[test] += test(first, second).p < 0.05
    # The differences have a mean of 2 and a deviation of .7: t is 6.3 against a quantile of 2.8; unpaired it is .6.
    assert shown[paired] > 190
    assert shown[welch] < 20


def test_a_difference_is_shown_just_where_it_is_detectable(draws):
    for test in (paired, welch):
        for _ in range(100):
            found = test(draws.normal(1, 1, 4), draws.normal(0, 1, 4))
            for level in (0.05, 0.01):
                assert (found.p < level) == (abs(found.difference) > found.detectable(level))


# Groups


def row(kind="search", seed=0, seconds=1.0, cells=None, table_mean=None, config=None, **metrics):
    config = {"selector.name": "softmax", "space.name": "nas-bench-201"} if config is None else config
    if kind != "search":
        config = {key: value for key, value in config.items() if not key.startswith(("selector", "search"))}
    spent = {"search": seconds} if kind == "search" else {}
    return Row(Path(f"{kind}-{seed}"), kind, seed, config, metrics, spent, cells, table_mean)


def rows_of(metric, kind="search", config=None, **values):
    """Returns rows by selector: `rows_of("regret", softmax=[1, 2])`."""
    return [
        row(kind, seed, config={"selector.name": name, **(config or {})}, **{metric: value})
        for name, series in values.items()
        for seed, value in enumerate(series)
    ]


def compared(*rows, metric=None, **more):
    return compare(Gathered([*rows], {}, [], **more) if not more else Gathered([*rows], **more), metric)


def pair(found, first, second):
    (one,) = [each for each in found["pairs"] if {each["first"], each["second"]} == {first, second}]
    return one


SELECTORS = {"a": [1.0, 2.0, 3.0, 4.0, 5.0], "b": [1.3, 2.1, 3.4, 4.2, 5.5]}
RANDOM = [20.0, 24.0, 19.0, 22.0, 21.0]


def baselines(metric, cell=RANDOM, search=RANDOM):
    return rows_of(metric, "random cell", x=cell) + rows_of(metric, "random search", x=search)


def test_rows_have_their_statistics_and_the_best_comes_first_after_the_baselines():
    found = compared(*rows_of("regret", b=SELECTORS["b"], a=SELECTORS["a"]), *baselines("regret"))
    assert [each["label"] for each in found["rows"]] == ["random cells", "random search", "a", "b"]
    assert [each["baseline"] for each in found["rows"]] == [True, True, False, False]
    first = found["rows"][2]
    assert (first["n"], first["seeds"], first["mean"], first["values"]) == (5, [0, 1, 2, 3, 4], 3.0, SELECTORS["a"])
    assert first["deviation"] == pytest.approx(math.sqrt(2.5))
    half = stats.t.ppf(0.975, 4) * math.sqrt(2.5 / 5)
    assert first["interval"] == pytest.approx([3 - half, 3 + half])
    assert first["interval"][0] < first["bootstrap_interval"][0] < 3
    better = compared(*rows_of("retrained", b=SELECTORS["b"], a=SELECTORS["a"]))
    assert (better["better"], [each["label"] for each in better["rows"]]) == ("higher", ["b", "a"])


def test_searches_are_paired_by_seed_and_baselines_are_not():
    found = compared(*rows_of("regret", **SELECTORS), *baselines("regret"))
    both = pair(found, "a", "b")
    expected = stats.ttest_rel(SELECTORS["a"], SELECTORS["b"])
    assert (both["test"], both["n"], both["p"]) == ("paired t", 5, pytest.approx(expected.pvalue))
    # Fifth of six: the four against random cells are smaller, that of the baselines, which are equal, is 1.
    assert both["corrected_p"] == pytest.approx(2 * both["p"])
    against = pair(found, "a", "random cells")
    expected = stats.ttest_ind(RANDOM, SELECTORS["a"], equal_var=False)
    assert (against["test"], against["p"]) == ("Welch's t", pytest.approx(expected.pvalue))
    assert against["difference"] == pytest.approx(np.mean(RANDOM) - 3)
    assert found["comparisons"] == len(found["pairs"]) == 6
    assert sorted(each["corrected_p"] for each in found["pairs"]) == pytest.approx(
        sorted(holm([each["p"] for each in found["pairs"]]))
    )


def test_only_common_seeds_are_paired_and_without_two_of_them_samples_are_independent():
    a = rows_of("regret", a=[1.0, 2.0, 3.5, 9.0])
    b = [row(seed=seed, config={"selector.name": "b"}, regret=value) for seed, value in ((2, 4.0), (3, 9.1), (7, 0.0))]
    found = compared(*a, *b)["pairs"][0]
    assert (found["test"], found["n"]) == ("paired t", 2)
    assert found["p"] == pytest.approx(stats.ttest_rel([3.5, 9.0], [4.0, 9.1]).pvalue)
    assert compared(*a[:2], *b)["pairs"][0]["test"] == "Welch's t"


def test_a_difference_is_called_so_only_if_it_is_shown():
    far = compared(*rows_of("regret", a=SELECTORS["a"], b=[v + 9 + 0.1 * v for v in SELECTORS["a"]]))
    assert far["pairs"][0]["statement"] == "difference"
    near = compared(*rows_of("regret", a=[1.0, 2.0, 3.0], b=[2.0, 1.5, 3.2]))["pairs"][0]
    assert near["statement"] == "no difference shown"
    assert near["detectable"] > abs(near["difference"])


def test_one_seed_shows_nothing_and_is_not_counted_as_a_test():
    found = compared(*rows_of("regret", a=[1.0], b=[90.0], c=[1.0, 2.0], d=[3.0, 4.5]))
    assert pair(found, "a", "b")["p"] is None
    assert pair(found, "a", "b")["statement"] == "no difference shown"
    assert found["comparisons"] == 1
    assert pair(found, "c", "d")["corrected_p"] == pair(found, "c", "d")["p"]


@pytest.mark.parametrize(
    ("metric", "values", "verdict"),
    [
        ("regret", [1.0, 2.0, 3.0, 2.5, 1.5], "beats"),
        ("regret", [41.0, 42.0, 43.0, 42.5, 41.5], "worse"),
        ("regret", [19.0, 25.0, 20.0, 22.0, 21.5], "no difference shown"),
        ("retrained", [1.0, 2.0, 3.0, 2.5, 1.5], "worse"),
        ("retrained", [41.0, 42.0, 43.0, 42.5, 41.5], "beats"),
    ],
)
def test_the_verdict_against_random_follows_the_direction_of_the_metric(metric, values, verdict):
    found = compared(*rows_of(metric, a=values), *baselines(metric))
    assert [(each["against"], each["verdict"]) for each in found["verdicts"]] == [
        ("random cells", verdict),
        ("random search", verdict),
    ]
    assert found["verdicts"][0]["difference"] == pytest.approx(np.mean(values) - np.mean(RANDOM))


def test_a_selector_is_held_against_the_baselines_of_its_own_settings():
    rows = []
    for channels in (4, 8):
        config = {"space.channels": channels}
        rows += rows_of("regret", config=config, a=SELECTORS["a"])
        rows += rows_of("regret", "random cell", config=config, x=RANDOM)
    found = compared(*rows)
    assert [(each["label"], each["against"]) for each in found["verdicts"]] == [
        ("a space.channels=4", "random cells space.channels=4"),
        ("a space.channels=8", "random cells space.channels=8"),
    ]


def test_the_metric_without_a_direction_has_no_verdict():
    found = compared(*rows_of("gap", **SELECTORS), metric="gap")
    assert (found["better"], found["verdicts"]) == (None, [])


def test_the_default_metric_is_the_regret_where_all_have_one():
    known = rows_of("regret", a=[1.0, 2.0])
    assert compared(*known)["metric"] == "regret"
    assert compared(*known, row(seed=4, retrained=3.0))["metric"] == "retrained"


def test_groups_without_the_metric_are_listed_and_not_tested():
    found = compared(*rows_of("inherited", a=[1.0, 2.0], b=[2.0, 4.0]), *baselines("retrained"), metric="inherited")
    assert [each["n"] for each in found["rows"]] == [0, 0, 2, 2]
    assert found["rows"][0]["mean"] is None
    assert len(found["pairs"]) == 1


def test_a_metric_that_no_run_has_is_refused_with_those_they_have():
    with pytest.raises(ConfigError, match="--metric test: none of the runs has it; they have regret"):
        compared(*rows_of("regret", a=[1.0]), metric="test")


def test_nothing_done_is_nothing_to_compare():
    with pytest.raises(CheckpointError, match="none of the runs is done yet"):
        compare(Gathered([], {}, ["a"]))


def labelled(*configs):
    """Returns the labels of searches with these settings."""
    rows = [row(seed=place, config=config, regret=float(place)) for place, config in enumerate(configs)]
    return [each["label"] for each in compared(*rows)["rows"]]


def test_labels_name_the_selector_and_what_tells_groups_apart():
    a, b = {"selector.name": "a", "selector.start": 1}, {"selector.name": "b"}
    assert labelled(a, b) == ["a", "b"]
    assert labelled(a, {**a, "selector.start": 2}, b) == ["a selector.start=1", "a selector.start=2", "b"]
    assert labelled({**a, "search.entropy.value": 0.0}, {**a, "search.entropy.value": 0.1}) == [
        "a search.entropy=0.0",
        "a search.entropy=0.1",
    ]
    assert labelled({"selector.name": "x.py:A"}, b) == ["A", "b"]
    assert labelled({"selector.name": "x.py:A"}, {"selector.name": "y.py:A"}) == ["x.py:A", "y.py:A"]


def test_labels_give_the_name_of_a_part_alone_where_that_is_enough():
    plain, unrolled = {"search.h.name": "plain"}, {"search.h.name": "unrolled", "search.h.step": 0.1}
    assert labelled({"selector.name": "a", **plain}, {"selector.name": "a", **unrolled}) == [
        "a search.h=plain",
        "a search.h=unrolled",
    ]
    third = {"selector.name": "a", **unrolled, "search.h.step": 0.2}
    assert labelled({"selector.name": "a", **unrolled}, third, {"selector.name": "a", **plain})[:2] == [
        "a search.h=unrolled search.h.step=0.1",
        "a search.h=unrolled search.h.step=0.2",
    ]


def test_lists_of_parts_are_labelled_by_their_names():
    base = {"selector.name": "a"}
    assert labelled(
        {**base, "search.modifiers": []}, {**base, "search.modifiers": [{"name": "x", "share": 1}, {"name": "y"}]}
    ) == ["a search.modifiers=none", "a search.modifiers=x+y"]


def test_groups_that_differ_inside_a_list_of_parts_have_labels_of_their_own_and_are_all_compared():
    two, four = ({"search.modifiers": [{"name": "x", "share": share}]} for share in (2, 4))
    found = compared(*rows_of("regret", config=two, a=[1.0, 2.0]), *rows_of("regret", config=four, a=[3.0, 4.5]))
    names = [f'a search.modifiers=[{{"name": "x", "share": {share}}}]' for share in (2, 4)]
    assert [each["label"] for each in found["rows"]] == names
    assert [(each["first"], each["second"]) for each in found["pairs"]] == [tuple(names)]


def test_the_mean_over_the_table_is_told_only_if_there_is_one():
    def told(*means):
        return compared(*(row(seed=i, regret=1.0, table_mean=mean) for i, mean in enumerate(means)))["table_mean"]

    assert told({"regret": 7.0}, None, {"regret": 7.0}) == 7.0
    assert told({"regret": 7.0}, {"regret": 8.0}) is None
    assert told(None, {"table_test": 8.0}) is None


# Folders


def make(folder, regret=None, retrained=80.0, select=79.0, **sections):
    """Makes a run folder as `nas run` leaves it, but for what it trained."""
    config = configure(**sections)
    run = Run(folder, config)
    run.write()
    cell = config.space.parse("|skip_connect~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    run.write_genotype(cell)
    spreads = {"retrained": {"mean": retrained}}
    table = None if regret is None else {"regret": regret, "test": 94.0 - regret, "rank": 7, "of": 9, "valid": 1.0}
    report = {"supernet": 50.0, "inherited": 40.0, "gap": -30.0, **spreads, "test": spreads, "benchmark": table}
    (folder / "gap.json").write_text(json.dumps(report))
    (folder / "status.json").write_text(json.dumps({"cpu_seconds": {"search": 12.0, "derive": 2.0, "retrain": 99.0}}))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Plain run folders of two selectors, three seeds."""
    values = {"softmax": (90.0, 91.0, 90.5), "gdas": (80.0, 81.5, 80.0)}
    return [
        make(tmp_path / f"{name}-{seed}", retrained=value, selector=name, seed=seed)
        for name, series in values.items()
        for seed, value in enumerate(series)
    ]


def test_plain_run_folders_are_compared(runs, nas_command):
    outcome = nas_command("compare", *runs, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert found["metric"] == "retrained"
    assert [(each["label"], each["n"]) for each in found["rows"]] == [("softmax", 3), ("gdas", 3)]
    assert found["rows"][0]["search_seconds"] == 14.0
    assert found["pairs"][0]["statement"] == "difference"
    assert nas_command("compare", *runs, "--metric", "gap").code == 0


def test_runs_that_differ_in_neutral_settings_are_one_group(tmp_path, nas_command):
    folders = [
        make(tmp_path / "a", seed=0, threads=1, device="cpu"),
        make(tmp_path / "b", seed=1, threads=2, benchmark={"path": "elsewhere.npz"}, tracking={"log_every": 3}),
        make(tmp_path / "d", seed=3, gap={"random": 0}),
        make(tmp_path / "e", seed=4, gap={"ranked": 9}, benchmark={"path": "elsewhere.npz"}),
        make(tmp_path / "c", seed=2, search={"epochs": 3}),
    ]
    found = json.loads(nas_command("compare", *folders, "--json").out)
    assert [(each["label"], each["n"]) for each in found["rows"]] == [
        ("softmax search.epochs=40", 4),
        ("softmax search.epochs=3", 1),
    ]


def test_a_run_given_twice_counts_once(runs, nas_command):
    outcome = nas_command("compare", *runs, runs[0])
    assert "1 run repeats the settings and seed of another" in outcome.out
    assert json.loads(nas_command("compare", *runs, runs[0], "--json").out)["rows"][0]["n"] == 3


def test_a_reader_sees_means_tests_and_what_is_not_shown(runs, nas_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    outcome = nas_command("compare", *runs)
    text = outcome.out
    for part in (
        "Accuracy on select of the derived network, retrained, in % (higher is better)",
        "90.50 ± 0.50",
        "softmax vs gdas",
        "corrected by Holm for 1 pair",
        "holds a mean 75% of the time at best",
        "no random baseline with its settings",
    ):
        assert part in text
    assert "none shown" in nas_command("compare", *runs, "--metric", "inherited").out


def test_folders_that_hold_nothing_to_compare_are_refused(runs, tmp_path, nas_command):
    empty = tmp_path / "empty"
    empty.mkdir()
    (runs[0] / "gap.json").unlink()
    for folder, part in ((empty, "is no run folder"), (runs[0], f"do it with: nas gap {runs[0]}")):
        outcome = nas_command("compare", folder)
        assert (outcome.code, outcome.out) == (4, "")
        assert part in outcome.err
    outcome = nas_command("compare", runs[1], "--metric", "regret")
    assert outcome.code == 2
    assert "they have gap, inherited, parameter_free, retrained, supernet, test" in outcome.err


def planned(folder, *names):
    (folder / PLAN).write_text(json.dumps({"runs": [{"name": name} for name in names]}))


def write_row(folder, **content):
    (folder / "row.json").write_text(json.dumps(content))


def test_a_sweep_says_what_failed_and_what_is_missing(tmp_path, nas_command):
    for name in ("a", "b", "extra"):
        make(tmp_path / name, seed=len(name), retrained=70.0)
        cell = "|skip_connect~0|+|none~0|none~1|+|none~0|none~1|none~2|"
        write_row(tmp_path / name, kind="search", genotype=cell, metrics={"retrained": 1.0}, seconds={"search": 3.0})
    (tmp_path / "b" / "row.json").write_text('{"failed": "a loss is NaN"}')
    planned(tmp_path, "a", "b", "absent")
    found = gather([tmp_path])
    assert [each.folder.name for each in found.rows] == ["a", "extra"]  # a sweep may have been larger once
    assert (found.failed, found.missing) == ({"b": "a loss is NaN"}, ["absent"])
    printed = nas_command("compare", tmp_path).out
    assert "failed: b: a loss is NaN" in printed
    assert "not done yet: absent" in printed


def test_a_gap_that_was_measured_again_is_newer_than_the_row(tmp_path):
    make(tmp_path / "a", retrained=70.0)
    write_row(tmp_path / "a", kind="search", genotype="old", metrics={"retrained": 1.0}, seconds={"search": 3.0})
    planned(tmp_path, "a")
    (found,) = gather([tmp_path]).rows
    assert (found.metrics["retrained"], found.search_seconds) == (70.0, 3.0)


def test_what_only_the_row_knows_counts_beside_the_gap_if_it_is_of_the_same_genotype(tmp_path):
    run = Run.open(make(tmp_path / "a", retrained=70.0))
    cell = run.config.space.format(run.genotype())
    for genotype, parameter_free in ((cell, 12.5), ("old", 100.0)):
        metrics = {"retrained": 1.0, "parameter_free": 12.5}
        write_row(run.folder, kind="search", genotype=genotype, metrics=metrics, seconds={})
        found = read_row(run)
        assert (found.metrics["retrained"], found.metrics["parameter_free"]) == (70.0, parameter_free)


def test_plain_runs_have_the_share_of_edges_without_parameters(tmp_path):
    made = read_row(Run.open(make(tmp_path / "a")))
    assert made.metrics["parameter_free"] == 100.0
    run = Run.open(make(tmp_path / "b"))
    run.write_genotype(run.config.space.parse("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|nor_conv_1x1~2|"))
    (run.folder / "gap.json").write_bytes((tmp_path / "a" / "gap.json").read_bytes())
    assert read_row(run).metrics["parameter_free"] == pytest.approx(100 * 4 / 6)


def test_the_mass_without_parameters_is_the_mean_over_edges_that_have_the_choice(tmp_path):
    edges = [
        {"none": 0.1, "skip_connect": 0.2, "nor_conv_3x3": 0.7},
        {"avg_pool_3x3": 1.0, "nor_conv_1x1": 3.0},  # independent weights of a sigmoid: shares of their sum
        {"none": 0.5, "skip_connect": 0.5},  # no choice
    ]
    for selector, mass in (("softmax", pytest.approx(100 * (0.3 + 0.25) / 2)), ("uniform", None)):
        run = Run.open(make(tmp_path / selector, selector=selector))
        searched = {"edges": [{"probabilities": each} for each in edges]}
        (run.folder / "search.json").write_text(json.dumps(searched))
        assert read_row(run).metrics.get("parameter_free_mass") == mass


def test_a_plain_run_whose_images_are_gone_is_compared_without_what_needs_them(tmp_path):
    found = read_row(Run.open(make(tmp_path / "a", dataset={"name": "npz", "path": str(tmp_path / "gone.npz")})))
    assert found.metrics["retrained"] == 80.0
    assert "parameter_free" not in found.metrics


def test_a_row_of_another_genotype_than_the_run_has_now_does_not_count(tmp_path):
    make(tmp_path / "a")
    (tmp_path / "a" / "gap.json").unlink()
    write_row(tmp_path / "a", kind="search", genotype="old", metrics={"retrained": 1.0}, seconds={})
    planned(tmp_path, "a")
    assert gather([tmp_path]).missing == ["a"]


def test_a_run_of_a_sweep_that_has_only_begun_is_not_done_yet(tmp_path):
    make(tmp_path / "a")
    for product in ("gap.json", "genotype.json"):
        (tmp_path / "a" / product).unlink()
    planned(tmp_path, "a")
    assert gather([tmp_path]).missing == ["a"]


def test_many_pairs_are_cut_short_for_a_reader_but_for_those_with_a_difference(capsys, draws):
    alike = {name: draws.normal(80, 1, 4).tolist() for name in "abcdefg"}
    far = (draws.normal(0, 0.01, 4) + 9).tolist()
    found = compared(*rows_of("retrained", z=far, **alike))
    assert len(found["pairs"]) == 28
    show_comparison(found)
    printed = capsys.readouterr().out
    assert "and 6 more pairs without a difference shown" in printed
    assert printed.count("none shown") == 15
    assert printed.count(" vs ") == 15 + 7


def test_every_metric_can_be_asked_for(nas_command):
    text = nas_command("compare", "--help").out
    assert all(name in text for name in METRICS)
