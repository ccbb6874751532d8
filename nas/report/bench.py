"""The table of `nas bench`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from nas.report.tables import show

STEPS = ("weight_step", "architecture_step", "bilevel_step", "retraining_step", "evaluation")
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def show_bench(found: Mapping[str, Any]) -> None:
    """Prints what `nas bench` measured."""
    setting, machine = found["setting"], found["machine"]
    rows = [*_times(found), *_memory(found)]
    clock = "CPU time of the process" if setting["clock"] == "cpu" else "time on the wall"
    channels, height, width = setting["image"]
    what = f"the genotype {setting['genotype']}" if setting["genotype"] else f"selector {setting['selector']['name']}"
    space = ", ".join(f"{key} {value}" for key, value in setting["space"].items() if key != "name")
    notes = [
        f"{setting['space']['name']} ({space}), {what}, batch {setting['batch_size']} of {channels}x{height}x{width}",
        f"{clock}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}: medians and ranges over "
        f"{setting['pairs']} alternating pairs; a ratio above 1 is in favour of {setting['backend']}",
        *_overhead(found),
        *found["notes"],
        f"{machine['processor']}, {machine['cores']} cores, device {machine['device']}, torch {machine['torch']}, "
        f"Python {machine['python']}" + (f", numba {machine['numba']}" if "numba" in machine else ""),
    ]
    show(
        f"Backend {setting['backend']} ({setting['execution']})",
        ("", "reference", setting["backend"], "ratio", "range"),
        rows,
        notes,
    )


def show_latency(found: Mapping[str, Any], path: Path) -> None:
    """Prints a latency table."""
    rows = []
    for each in found["candidates"]:
        shape = f"{each['in_channels']}x{each['height']}x{each['width']}"
        low, high = (f"{1000 * value:.3g}" for value in each["range"])
        where = (each["operation"], shape, str(each["channels"]), str(each["stride"]))
        rows.append((*where, _seconds(each["seconds"]), f"{low} to {high} ms"))
    machine, task = found["machine"], found["task"]
    clock = "CPU time of the process" if found["clock"] == "cpu" else "time on the wall"
    agreement = [
        f"{words} {found[name]:.2f}"
        for name, words in (("r_squared", "R squared"), ("spearman", "Spearman"))
        if found[name] is not None
    ]
    notes = [
        f"{found['space']['name']} in its retrained form, batch {found['batch_size']} of "
        f"{task['channels']}x{task['height']}x{task['width']}; {clock}, medians over {found['rounds']} rounds",
        f"every network needs {_seconds(found['fixed'])} besides its candidates; over {len(found['networks'])} random "
        f"networks, sum against whole: {', '.join(agreement) or 'all take the same'}",
        f"{machine['processor']}, {machine['threads']} threads, device {machine['device']}, torch {machine['torch']}",
        f"written to {path}; search by it with: --set cost.latency_table={path} --set 'cost.target=latency<=...ms'",
    ]
    show("Latency of each candidate", ("candidate", "input", "channels", "stride", "median", "range"), rows, notes)


def _times(found: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    clock = found["setting"]["clock"]
    for kind in STEPS:
        if kind not in found["pairs"]:
            continue
        seconds = {name: median(each[clock]) for name, each in found["pairs"][kind].items()}
        yield _words(kind), *map(_seconds, (seconds["reference"], seconds["backend"])), *_ratio(found, kind)
        if "fixed" in seconds:
            both = map(_seconds, (seconds["fixed"], seconds["backend"]))
            yield "  against a plain fixed network", *both, *_ratio(found, f"fixed_{kind}")


def _memory(found: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for measure, by in found["memory"].items():
        if by["backend"] is None:
            continue
        yield _words(measure), "", "", "", ""
        for kind, size in by["backend"].items():
            other = by["reference"][kind] if by["reference"] else None
            ratio = f"{other / size:.2f}x" if other and size else "-"
            yield f"  {_words(kind)}", _bytes(other), _bytes(size), ratio, ""


def _overhead(found: Mapping[str, Any]) -> Iterator[str]:
    for kind, pieces in found["overhead_seconds"].items():
        whole = sum(pieces.values())
        others = sorted((name for name in pieces if name != "arithmetic"), key=lambda name: -pieces[name])
        parts = ", ".join(f"{name} {100 * pieces[name] / whole:.1f}" for name in others)
        yield f"{100 * found['overhead_share'][kind]:.1f}% of the {_words(kind)} is not model arithmetic ({parts})"


def _ratio(found: Mapping[str, Any], key: str) -> tuple[str, str]:
    low, high = found["ranges"][key]
    return f"{found['ratios'][key]:.2f}x", f"{low:.2f} to {high:.2f}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _bytes(value: int | None) -> str:
    if value is None:
        return "-"
    return next((f"{value / size:.3g} {unit}" for unit, size in UNITS if value >= size), f"{value} B")
