"""Groups of runs that differ by their seed only, and which differences between them are shown.

Two searched groups are compared by a paired t test over their common seeds: with equal seeds they start from equal
weights and see equal batches, so part of what a seed adds falls out of the difference. A random baseline shares no
choice with any search, and at most the draws of its retraining; pairing it would be valid too, but halves the degrees
of freedom for nothing. So it is compared by Welch's test for independent samples, on the safe side where retraining
draws are shared. All p values are corrected together, by Holm's method (1979). Data splits are the same for all
seeds: what is shown, is shown for these splits.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from nas.config import ABSENT
from nas.errors import CheckpointError, ConfigError
from nas.randomness import seed_of
from nas.runs.compare.metrics import METRICS
from nas.runs.compare.rows import BASELINES, SEARCH_ONLY, Gathered, Kind, Row
from nas.runs.compare.statistics import LEVEL, Test, holm, paired, t_interval, welch
from nas.runs.statistics import spread

DIFFERENCE, NONE_SHOWN = "difference", "no difference shown"


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed only.

    Attributes:
        kind: What they did.
        config: Their settings by dotted path.
        rows: By seed.
    """

    kind: Kind
    config: Mapping[str, object]
    rows: Mapping[int, Row]

    def values(self, metric: str) -> dict[int, float]:
        """Returns the metric by seed, in order."""
        return {seed: row.metrics[metric] for seed, row in sorted(self.rows.items()) if metric in row.metrics}


def compare(gathered: Gathered, metric: str | None = None) -> dict[str, Any]:
    """Compares groups of runs.

    Args:
        gathered: The runs.
        metric: See `METRICS`; None takes the regret where all runs have one, otherwise the retrained accuracy.

    Returns:
        `rows`, one per group, the random baselines first and then the best; `pairs` of groups; `verdicts` on each
        searched group against the baselines of its settings; `failed`, `missing`; ready for JSON.

    Raises:
        CheckpointError: Nothing is done yet.
        ConfigError: No run has the metric.
    """
    if not gathered.rows:
        raise CheckpointError("none of the runs is done yet; repeat the command that began them")
    if metric is None:
        metric = "regret" if all("regret" in row.metrics for row in gathered.rows) else "retrained"
    if not any(metric in row.metrics for row in gathered.rows):
        known = sorted({name for row in gathered.rows for name in row.metrics if name in METRICS})
        raise ConfigError(f"--metric {metric}: none of the runs has it; they have {', '.join(known)}")
    groups = _grouped(gathered.rows)
    names = dict(zip(groups, labels([*groups.values()]), strict=True))
    sign = -1 if METRICS[metric].better == "higher" else 1
    rows = {key: _summary(names[key], group, metric) for key, group in groups.items()}
    order = sorted(
        groups,
        key=lambda key: (
            [*BASELINES, "search"].index(groups[key].kind),
            rows[key]["mean"] is None,
            sign * (rows[key]["mean"] or 0.0),
        ),
    )
    ordered = {names[key]: groups[key] for key in order}
    pairs = _pairs(ordered, metric)
    means = {row.table_mean[metric] for row in gathered.rows if row.table_mean and metric in row.table_mean}
    return {
        "metric": metric,
        "title": METRICS[metric].title,
        "better": METRICS[metric].better,
        "rows": [rows[key] for key in order],
        "pairs": pairs,
        "verdicts": _verdicts(ordered, pairs, METRICS[metric].better),
        "comparisons": sum(pair["p"] is not None for pair in pairs),
        "table_mean": means.pop() if len(means) == 1 else None,
        "repeated": len(gathered.rows) - sum(len(group.rows) for group in groups.values()),
        "failed": dict(gathered.failed),
        "missing": list(gathered.missing),
    }


def _grouped(rows: Sequence[Row]) -> dict[str, Group]:
    """Returns the groups by a text of their settings; of runs with equal settings and seed the first counts."""
    found: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        found[json.dumps([row.kind, row.config], sort_keys=True)].setdefault(row.seed, row)
    return {key: Group((first := next(iter(by.values()))).kind, first.config, by) for key, by in found.items()}


def labels(groups: Sequence[Group]) -> list[str]:
    """Returns for each group its selector, or what baseline it is, and the settings in which it differs from others."""
    found = []
    for group in groups:
        alike = [each for each in groups if each.kind == group.kind]
        name = BASELINES.get(group.kind) or _selector(group, alike)
        same = [each for each in alike if each.config.get("selector.name") == group.config.get("selector.name")]
        own = [key for key in _differing(same) if key.startswith("selector.")]
        shared = [key for key in _differing(alike) if not key.startswith("selector.")]
        found.append(" ".join([name, *_written(group, [*own, *shared], alike)]))
    assert len({*found}) == len(found), f"groups share a label: {found}"
    return found


def _selector(group: Group, alike: Sequence[Group]) -> str:
    """Returns the selector's name, that of its class if it is in a file of its own."""
    names = {str(each.config["selector.name"]) for each in alike}
    full = str(group.config["selector.name"])
    short = full.rpartition(":")[2]
    return short if sum(name.rpartition(":")[2] == short for name in names) == 1 else full


def _differing(groups: Sequence[Group]) -> list[str]:
    keys = dict.fromkeys(key for group in groups for key in group.config)
    return [key for key in keys if len({json.dumps(group.config.get(key, ABSENT)) for group in groups}) > 1]


def _written(group: Group, keys: Sequence[str], alike: Sequence[Group]) -> list[str]:
    """Returns `key=value` for the keys, less the settings of a part whose name alone tells the groups apart."""
    named = [key.removesuffix("name") for key in keys if key.endswith(".name")]
    enough = [
        part for part in named if len({each.config.get(f"{part}name") for each in alike}) == len(_parts(alike, part))
    ]
    kept = [key for key in keys if not any(key.startswith(part) and key != f"{part}name" for part in enough)]
    return [
        f"{key.removesuffix('.name').removesuffix('.value')}={_text(group, key, alike)}"
        for key in kept
        if key in group.config
    ]


def _text(group: Group, key: str, alike: Sequence[Group]) -> str:
    """Returns a group's value: in short if that tells apart all values that groups have, otherwise as JSON."""
    values = [each.config[key] for each in alike if key in each.config]
    whole = {json.dumps(value, sort_keys=True) for value in values}
    enough = len({*map(in_short, values)}) == len(whole)
    return in_short(group.config[key]) if enough else json.dumps(group.config[key], sort_keys=True)


def in_short(value: object) -> str:
    """Returns a value, of a list of parts their names."""
    if not isinstance(value, list) or not all(isinstance(part, str) or "name" in part for part in value):
        return str(value)
    return "+".join(part if isinstance(part, str) else part["name"] for part in value) or "none"


def _parts(groups: Iterable[Group], part: str) -> set[str]:
    """Returns the different settings that groups have below a dotted path."""
    return {json.dumps({key: value for key, value in group.config.items() if key.startswith(part)}) for group in groups}


def _summary(label: str, group: Group, metric: str) -> dict[str, Any]:
    by_seed = group.values(metric)
    values = [*by_seed.values()]
    found = spread(values, seed_of(0, "bootstrap", label))
    cells = [row.cells for row in group.rows.values() if row.cells is not None]
    return {
        "label": label,
        "baseline": group.kind in BASELINES,
        "n": len(values),
        "seeds": [*by_seed],
        "mean": found["mean"],
        "deviation": found["deviation"],
        "interval": t_interval(values),
        "bootstrap_interval": found["interval"],
        "values": values,
        "search_seconds": median(row.search_seconds for row in group.rows.values()),
        "cells": [min(cells), max(cells)] if cells else None,
    }


def _pairs(groups: Mapping[str, Group], metric: str) -> list[dict[str, Any]]:
    """Returns a test for every pair of groups that have the metric, corrected over all of them."""
    named = {label: group for label, group in groups.items() if group.values(metric)}
    tested = [
        (first, second, *_test(named[first], named[second], metric))
        for first, second in itertools.combinations(named, 2)
    ]
    done = [test for _, _, test, _, _ in tested if test is not None]
    corrected = iter(holm([test.p for test in done]))
    found = []
    for first, second, test, how, count in tested:
        p = next(corrected) if test else None
        found.append(
            {
                "first": first,
                "second": second,
                "test": how,
                "n": count,
                "difference": test.difference if test else None,
                "p": test.p if test else None,
                "corrected_p": p,
                "permutation_p": test.permutation_p if test else None,
                # As far apart as this the means would have been with p below any threshold of Holm's.
                "detectable": test.detectable(LEVEL / len(done)) if test else None,
                "statement": DIFFERENCE if p is not None and p < LEVEL else NONE_SHOWN,
            }
        )
    return found


def _test(first: Group, second: Group, metric: str) -> tuple[Test | None, str | None, int]:
    """Returns the test that fits two groups, its name, and the number of pairs or of values in the smaller group."""
    a, b = first.values(metric), second.values(metric)
    common = sorted({*a} & {*b})
    if first.kind == second.kind == "search" and len(common) > 1:
        return paired([a[seed] for seed in common], [b[seed] for seed in common]), "paired t", len(common)
    count = min(len(a), len(b))
    return (welch([*a.values()], [*b.values()]), "Welch's t", count) if count > 1 else (None, None, count)


def _verdicts(groups: Mapping[str, Group], pairs: Sequence[Mapping[str, Any]], better: str | None) -> list[Any]:
    """Returns whether each searched group beats each baseline of its settings."""
    found = []
    for pair in pairs if better else []:  # baselines come first
        baseline, group = groups[pair["first"]], groups[pair["second"]]
        own = {key: value for key, value in group.config.items() if key.partition(".")[0] not in SEARCH_ONLY}
        if group.kind != "search" or own != baseline.config:
            continue
        verdict = NONE_SHOWN
        if pair["statement"] == DIFFERENCE:
            verdict = "beats" if (pair["difference"] > 0) == (better == "lower") else "worse"
        difference = None if pair["difference"] is None else -pair["difference"]
        more = {key: pair[key] for key in ("corrected_p", "detectable", "n")}
        found.append(
            {"label": pair["second"], "against": pair["first"], "verdict": verdict, "difference": difference, **more}
        )
    return sorted(found, key=lambda each: [*groups].index(each["label"]))
