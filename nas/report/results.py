"""Prints what a stage of a run found, for a reader or as JSON."""

import json
from dataclasses import asdict
from typing import Any

from nas.files import read_json
from nas.report.costs import cost_lines
from nas.report.tables import show_gap, show_retrained, show_search
from nas.runs.folder import PRODUCTS, Run
from nas.runs.retrain import read_retrained
from nas.runs.search import SUMMARY


def show_result(run: Run, stage: str, as_json: bool) -> None:
    """Prints the result of a finished stage."""
    folder = str(run.folder)
    if stage == "search":
        found = read_json(run.folder / SUMMARY)
        if as_json:
            print_json({**found, "folder": folder})
        else:
            show_search(found, folder, learned=run.config.selector.learns)
    elif stage == "derive":
        written = read_json(run.folder / PRODUCTS["derive"])
        if as_json:
            print_json({**written, "folder": folder})
        else:
            print("\n".join([written["text"], *cost_lines(written.get("cost", ()))]))
    elif stage == "retrain":
        results = read_retrained(run.config, run.folder, run.genotype(), run.config.retrain.seeds)
        if as_json:
            print_json([{**asdict(result), "folder": str(result.folder)} for result in results])
        else:
            show_retrained(results, folder)
    else:
        report = run.gap()
        assert report is not None
        if as_json:
            print_json({**report, "folder": folder})
        else:
            show_gap(report, folder)


def print_json(data: Any) -> None:
    """Prints data as JSON."""
    print(json.dumps(data, indent=2))
