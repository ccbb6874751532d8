"""The tables of `nas compare`, and of a finished or planned sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

from nas.report.results import print_json
from nas.report.tables import show
from nas.runs.compare.comparison import NONE_SHOWN, in_short
from nas.runs.statistics import CONFIDENCE
from nas.runs.sweep.plan import Planned
from nas.runs.sweep.work import finished

Row = Mapping[str, Any]

PAIRS = 15
"""Pairs that are printed though no difference is shown."""


def show_comparison(found: Mapping[str, Any]) -> None:
    """Prints means, tests, and what they say of each selector."""
    columns = ("", "N", "mean", "t interval", "bootstrap", "search s")
    rows = [
        (
            row["label"] + _cells(row) + "*" * row["baseline"],
            str(row["n"]),
            _spread(row),
            _interval(row["interval"]),
            _interval(row["bootstrap_interval"]),
            f"{row['search_seconds']:.3g}",
        )
        for row in found["rows"]
    ]
    better = f" ({found['better']} is better)" if found["better"] else ""
    show(f"{found['title'][0].upper()}{found['title'][1:]}{better}", columns, rows, _notes(found))
    _show_pairs(found)
    for row in found["rows"]:
        told = [_verdict(verdict) for verdict in found["verdicts"] if verdict["label"] == row["label"]]
        if told:
            print(f"{row['label']}: {'; '.join(told)}")
        elif not row["baseline"] and row["n"] and found["better"]:
            print(f"{row['label']}: no random baseline with its settings has this metric; `nas sweep` makes them")
    for name, message in found["failed"].items():
        print(f"failed: {name}: {message}")
    if found["missing"]:
        print(f"not done yet: {', '.join(found['missing'])}")


def _show_pairs(found: Mapping[str, Any]) -> None:
    pairs = sorted((pair for pair in found["pairs"] if pair["p"] is not None), key=lambda pair: float(pair["p"]))
    if not pairs:
        print("no test is possible: a difference needs two runs or more on each side")
        return
    alike = [pair for pair in pairs if pair["statement"] == NONE_SHOWN]
    left_out = alike[PAIRS:]
    rows = [
        (
            f"{pair['first']} vs {pair['second']}",
            str(pair["n"]),
            f"{pair['difference']:+.2f}",
            "-" if pair["detectable"] is None else f"{pair['detectable']:.2f}",
            _p(pair["corrected_p"]),
            "none shown" if pair["statement"] == NONE_SHOWN else "shown",
        )
        for pair in pairs
        if pair not in left_out
    ]
    least = min(pair["n"] for pair in pairs)
    notes = [
        "p: two-sided paired t tests over common seeds, Welch's against random baselines, corrected by Holm for "
        f"{len(pairs)} pair{'s' * (len(pairs) > 1)}; differences are taken for normal, on the word of {least} values",
        "shown from: means as far apart would have a p below .05, with this deviation; what is less is not excluded",
    ]
    if left_out:
        notes.insert(0, f"and {len(left_out)} more pairs without a difference shown (all are in --json)")
    show("Differences of means", ("", "N", "means differ by", "shown from", "p", "difference"), rows, notes)


def _notes(found: Mapping[str, Any]) -> list[str]:
    counts = [row["n"] for row in found["rows"] if row["n"]]
    marked = "* random baseline; " if any(row["baseline"] for row in found["rows"]) else ""
    notes = [f"{marked}mean ± deviation over seeds, 95% intervals of the mean, median seconds of a search"]
    if min(counts) < 2:
        notes.append("a single run has no deviation: repeat with more seeds")
    elif (least := min(counts)) < 6:
        held = 1 - 2 ** (1 - least)
        notes.append(
            f"the bootstrap interval of {least} values cannot be wider than they are, which holds a mean {held:.0%} of "
            f"the time at best, not {CONFIDENCE:.0%}: trust the t interval"
        )
    if found["metric"] == "retrained" and any(row["cells"] for row in found["rows"]):
        notes.append("random search chose on select, which favours it there; --metric test is free of that")
    if found["table_mean"] is not None:
        notes.append(f"mean over the whole table: {found['table_mean']:.2f}")
    if found["repeated"]:
        count = found["repeated"]
        notes.append(f"{count} run{'s' * (count > 1)} repeat{'s' * (count == 1)} the settings and seed of another")
    return notes


def _verdict(verdict: Row) -> str:
    against, p = verdict["against"], verdict["corrected_p"]
    if verdict["verdict"] == NONE_SHOWN:
        limit = "" if verdict["detectable"] is None else f" (one of {verdict['detectable']:.2f} would be)"
        return f"no difference shown against {against}{limit}"
    words = "beats" if verdict["verdict"] == "beats" else "is worse than"
    return f"{words} {against} by {abs(verdict['difference']):.2f} (corrected p {_p(p)}, N = {verdict['n']})"


def show_plan(planned: Sequence[Planned], as_json: bool) -> None:
    """Prints what a sweep would do."""
    done = [finished(each) for each in planned]
    if as_json:
        print_json([{**each.listed(), "done": ready} for each, ready in zip(planned, done, strict=True)])
        return
    rows = [
        (
            each.name,
            each.kind,
            str(each.seed),
            " ".join(f"{key}={in_short(value)}" for key, value in each.settings.items()),
            "done" if ready else "to do",
        )
        for each, ready in zip(planned, done, strict=True)
    ]
    notes = [
        f"{len(planned)} runs, {sum(done)} of them done",
        "a random search retrains as many random cells as fit into the seconds of the slowest group's median search",
    ]
    show("Dry run: nothing was trained", ("run", "kind", "seed", "settings", ""), rows, notes, left=True)


def _cells(row: Row) -> str:
    if not row["cells"]:
        return ""
    least, most = row["cells"]
    return f", {least}" + (f"-{most}" if most > least else "") + (" cells" if most > 1 else " cell")


def _spread(row: Row) -> str:
    if row["mean"] is None:
        return "-"
    return f"{row['mean']:.2f}" + ("" if row["deviation"] is None else f" ± {row['deviation']:.2f}")


def _interval(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.0005 else f"{p:.0e}"
