"""Results as tables for a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nas.report.costs import benchmark_lines, cost_lines, expected_lines, ranking_lines
from nas.runs.retrain import Retrained
from nas.runs.watch.messages import watch_notes

LEAD = 0.05
"""Mean difference of two probabilities below which a search has preferred next to nothing."""


def show(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = (), left: bool = False
) -> None:
    """Prints a table to stdout; all columns but the first are aligned right unless `left`, notes follow below."""
    console = Console(soft_wrap=True, highlight=False)
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    table.show_header = any(columns)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place and not left else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    for note in notes:
        console.print(note, markup=False)


def show_gap(report: Mapping[str, Any], folder: str) -> None:
    """Prints the gap report."""
    test = report["test"]
    rows = [
        ("supernet", _percent(report["supernet"]), _percent(test["supernet"])),
        ("derived, inherited weights", _percent(report["inherited"]), _percent(test["inherited"])),
        (
            f"derived, retrained ({len(report['retrained']['values'])} seeds)",
            *map(_spread, (report["retrained"], test["retrained"])),
        ),
        (
            f"random, retrained ({len(report['random']['values'])} genotypes)",
            *map(_spread, (report["random"], test["random"])),
        ),
    ]
    notes = [
        f"gap {report['gap']:+.2f} points = discretisation {report['discretisation_gap']:+.2f} "
        f"(supernet - inherited) and sharing {report['sharing_gap']:+.2f} (inherited - retrained), on select",
        _verdict(test["retrained"], test["random"]),
        _tau(report),
        *ranking_lines(report.get("supernet_ranking")),
        *benchmark_lines(report["benchmark"] or {}),
        *cost_lines(report.get("cost", ())),
        f"genotype {report['genotype']}",
        f"{report['parameters']:,} parameters, {report['multiply_adds']:,} multiply-adds; everything is in {folder}",
    ]
    show("Search/eval gap: accuracy in %, mean ± deviation", ("", "select", "test"), rows, [n for n in notes if n])


def show_search(found: Mapping[str, Any], folder: str, *, learned: bool) -> None:
    """Prints what the logits prefer after a search."""
    rows = []
    for edge in found["edges"]:
        ranked = sorted(edge["probabilities"].items(), key=lambda item: -item[1])[:3]
        cells = [f"{operation} {value:.2f}" for operation, value in ranked]
        rows.append((f"{edge['cell']} {edge['source']}-{edge['target']}", *cells, *[""] * (3 - len(cells))))
    notes = [
        f"mean entropy per edge {found['entropy']:.3f} nats, supernet {found['select']:.2f}% on select; "
        f"derive a genotype with: nas derive {folder}",
        *(_lead(found) if learned else []),
        *watch_notes(found["watch"]),
        *expected_lines(found.get("cost", ())),
    ]
    show("The most probable candidates of each edge", ("cell and edge", "first", "second", "third"), rows, notes)


def _lead(found: Mapping[str, Any]) -> list[str]:
    """Says so if the logits prefer next to nothing: a genotype follows from them all the same."""
    ranked = [sorted(edge["probabilities"].values(), reverse=True) for edge in found["edges"]]
    leads = [row[0] - row[1] for row in ranked if len(row) > 1]
    if not leads or mean(leads) >= LEAD:
        return []
    return [
        f"the first candidate of an edge leads the second by {mean(leads):.3f} in probability, on average: the logits "
        "prefer next to nothing, and what is derived may be chance. What helps: more search.epochs, a higher "
        "search.logits.lr, or less of what keeps logits alike (beta-decay, search.entropy); nas derive --compare also "
        "ranks by measuring"
    ]


def show_retrained(results: Sequence[Retrained], folder: str) -> None:
    """Prints what retraining reached."""
    rows = [(f"seed {result.seed}", _percent(result.select), _percent(result.test)) for result in results]
    if len(results) > 1:
        rows.append(("mean", _percent(mean(r.select for r in results)), _percent(mean(r.test for r in results))))
    first = results[0]
    notes = [
        f"genotype {first.genotype}",
        f"{first.parameters:,} parameters, {first.multiply_adds:,} multiply-adds; everything is in {folder}",
    ]
    show("Retrained from scratch: accuracy in %", ("", "select", "test"), rows, notes)


def _percent(value: float) -> str:
    return f"{value:.2f}"


def _spread(values: Mapping[str, Any]) -> str:
    if values["mean"] is None:
        return "-"
    return _percent(values["mean"]) + (f" ± {values['deviation']:.2f}" if values["deviation"] is not None else "")


def _verdict(derived: Mapping[str, Any], random: Mapping[str, Any]) -> str:
    """Says what the search added, and whether the intervals of the means are apart."""
    if random["mean"] is None:
        return ""
    text = f"the search added {derived['mean'] - random['mean']:+.2f} points of test accuracy over random genotypes"
    if derived["interval"] is None or random["interval"] is None:
        return f"{text} (too few retrainings for an interval)"
    apart = derived["interval"][0] > random["interval"][1] or derived["interval"][1] < random["interval"][0]
    intervals = " and ".join(f"{low:.2f} to {high:.2f}" for low, high in (derived["interval"], random["interval"]))
    return f"{text}; 95% intervals {intervals} {'are apart' if apart else 'overlap: no difference shown'}"


def _tau(report: Mapping[str, Any]) -> str:
    count, interval = report["kendall_tau_n"], report["kendall_tau_interval"]
    if report["kendall_tau"] is None:
        return f"Kendall tau of inherited with retrained accuracy: not defined over {count} genotypes"
    between = f", 95% interval {interval[0]:+.2f} to {interval[1]:+.2f}" if interval else ""
    return f"Kendall tau of inherited with retrained accuracy {report['kendall_tau']:+.2f} (N = {count}{between})"
