"""What every rule of derivation made of one supernet, as a table for a terminal."""

from collections.abc import Mapping
from typing import Any

from nas.report.tables import show


def show_derivations(found: Mapping[str, Any], file: str) -> None:
    """Prints a row for every rule, the most accurate first; equal genotypes have the same letter, and follow below."""
    refused = [row for row in found["rules"] if row["refused"]]
    done = sorted((row for row in found["rules"] if not row["refused"]), key=lambda row: -row["inherited"])
    letters = {text: _letter(place) for place, text in enumerate(dict.fromkeys(row["genotype"] for row in done))}
    columns = ["rule", "", found["split"], "tried", "CPU s"]
    notes = [
        f"letters: the genotypes below; * as by {found['configured']}, the rule of this run's configuration",
        f"{found['split']}: accuracy in % with the supernet's weights; tried: networks that a rule measured on it, "
        "and chose by",
        *(f"{row['rule']} took {row['tuning_steps']} weight steps, now undone" for row in done if row["tuning_steps"]),
    ]
    known: Mapping[str, Any] = next((row["benchmark"] for row in done if row["benchmark"]), {})
    if "test" in known:
        columns += ["test", "rank", "regret"]
        benchmark = found["benchmark"]
        notes.append(
            f"test, rank of {known['of']:,}, regret: for {benchmark['dataset']} in the table {benchmark['path']}"
        )
    notes += [f"{letter}: {text}" for text, letter in letters.items()]
    notes += [f"{row['rule']} was not applied: {row['refused']}" for row in refused]
    notes.append(f"the run's genotype stays as it is; everything is in {file}")
    rows = [_cells(row, letters) for row in done]
    rows += [(row["rule"], *["-"] * (len(columns) - 1)) for row in refused]
    show("Derived from one supernet", columns, rows, notes)


def _cells(row: Mapping[str, Any], letters: Mapping[str, str]) -> tuple[str, ...]:
    letter = letters[row["genotype"]] + ("*" if row["as_configured"] else "")
    costs = (str(row["measurements"]), f"{row['cpu_seconds']:.1f}")
    known = row["benchmark"] or {}
    published = (f"{known['test']:.2f}", f"{known['rank']:,}", f"{known['regret']:.2f}") if "test" in known else ()
    return (row["rule"], letter, f"{row['inherited']:.2f}", *costs, *published)


def _letter(place: int) -> str:
    """Returns A to Z, then A1 to Z1 and so on."""
    turn, letter = divmod(place, 26)
    return chr(ord("A") + letter) + (str(turn) if turn else "")
