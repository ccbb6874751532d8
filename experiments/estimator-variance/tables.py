"""The tables: what was stated before, what is found, and whether the one lies within the spread of the other."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from figures import LINEAR, median, seeds

SUPERNET: dict[str, tuple[str, ...]] = {  # stated: bias, variance, mse@64, cosine
    "softmax": (".44", "0", ".19", ".86"),
    "Gumbel-Softmax 1": (".41", ".48", ".21", ".90"),
    "Gumbel-Softmax .5": (".21", "2.4", ".22", ".98"),
    "Gumbel-Softmax .1": ("0", "23", "1.4", ".99"),
    "ST-GS 1": (".54", "3.0", ".37", ".84"),
    "ST-GS .5": (".40", "8.4", ".57", ".87"),
    "Gumbel-Rao(10) .5": (".41", "4.6", ".34", ".87"),
    "ReinMax": (".21", "6.3", ".44", ".98"),
    "pair-ReinMax": (".22", "9.9", ".34", ".97"),
    "GDAS 1": (".87", ".80", ".79", ".59"),
    "REINFORCE": ("0", "705", "11", ".73"),
    "REINFORCE, running mean": ("0", "8.5", ".14", "1.0"),
    "leave-one-out(4)": ("0", "3.0", ".19", "1.0"),
    "score + additive": (".01", "2.4", ".04", "1.0"),
    "REBAR": ("0", "5.2", ".73", "1.0"),
    "RELAX": ("0", "5.1", ".08", "1.0"),
}


def number(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return (
        f"{value:.0f}"
        if abs(value) >= 100
        else f"{value:.2g}"
        if abs(value) < 10
        else f"{value:.1f}".rstrip("0").rstrip(".")
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def compared(what: str, stated: float, low: float, middle: float, high: float, shown: str | None = None) -> list[str]:
    """A row; what is stated was rounded to two digits, so 5% are allowed beyond the spread."""
    margin = 0.05 * abs(stated)
    inside = low - margin <= stated <= high + margin
    spread = f"{number(middle)} ({number(low)} to {number(high)})" if high > low else number(middle)
    return [what, shown or number(stated), spread, "yes" if inside else "no"]


def over(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), median(values), max(values)


def samples_table(found: dict[str, Any]) -> list[list[str]]:
    linear, rows = found["ratios"]["linear"], []
    for name, stated in zip(LINEAR, (2, 12, 486, 9946, 0.15), strict=True):
        s = linear[name]["REINFORCE / Gumbel-Softmax"]
        rows.append(compared(f"REINFORCE / Gumbel-Softmax, r {name}", stated, s["low"], s["median"], s["high"]))
    for estimator, stated in (("REINFORCE", 9.4e-2), ("leave-one-out", 4.4e-2), ("Gumbel-Softmax", 1.8e-2)):
        s = linear["N(0, 1)"][estimator]
        rows.append(compared(f"variance x n, {estimator}, r N(0, 1)", stated, s["low"], s["median"], s["high"]))
    s = linear["N(0, 1)"]["leave-one-out / Gumbel-Softmax"]
    rows.append(compared("leave-one-out / Gumbel-Softmax, linear", 2.5, s["low"], s["median"], s["high"], "2-3"))
    for name, s in found["ratios"]["quadratic"].items():
        what = f"Gumbel-Softmax / leave-one-out, f = {name}".replace("|", "\\|")
        rows.append(compared(what, 12, s["low"], s["median"], s["high"], "6-18"))
        rows[-1][-1] = "yes" if s["low"] <= 6 and s["high"] >= 18 else "partly" if s["high"] >= 6 else "no"
    slopes = []
    for run in seeds(found, "samples"):
        for problem in (*LINEAR, "quadratic", "MLP"):
            for name, entry in run[problem].items():
                if name not in ("exact", "softmax", "running mean", "straight-through", "leave-one-out"):
                    pairs = [(math.log(int(n)), math.log(v)) for n, v in entry["variance"].items()]
                    slopes.append(float(np.polyfit(*zip(*pairs, strict=True), 1)[0]))
    rows.append(compared("slope in n (without running mean, leave-one-out)", -1, *over(slopes)))
    s = linear["N(0, 1)"]["bias"]
    rows.append(compared("size of the bias of Gumbel-Softmax, r N(0, 1)", 0.018, s["low"], s["median"], s["high"]))
    s = found["ratios"]["pair by ReinMax"]["4"]
    rows.append(compared("pair-ReinMax / ReinMax, four candidates", 1.75, s["low"], s["median"], s["high"], "1.5-2"))
    s = found["ratios"]["pair by ReinMax"]["8"]
    rows.append(compared("pair-ReinMax / ReinMax, eight candidates", 1.75, s["low"], s["median"], s["high"], "1.5-2"))
    rao = found["ratios"]["detachment"]
    ratio = rao["undetached"] / rao["right"]
    rows.append(compared("Gumbel-Rao undetached / right, mean gradient", 0.14 / 0.46, ratio, ratio, ratio))
    rows[-1][-1] = "yes" if abs(ratio - 0.14 / 0.46) < 0.05 else "no"
    return rows


def temperature_table(found: dict[str, Any]) -> list[list[str]]:
    runs, rows = seeds(found, "temperature"), []
    for tau, stated in (("0.01", 44), ("0.001", 93)):
        for kind in ("flat", "N(0, 1)"):
            values = [100 * run["zero rows"][kind][tau] for run in runs]
            rows.append(compared(f"% of zero rows at {tau}, {kind} logits", stated, *over(values)))
    flat = [run["flat"]["linear"]["Gumbel-Softmax"] for run in runs]
    for low, high, stated in (("0.01", "0.1", -1), ("0.5", "1.0", -2), ("5.0", "10.0", -4)):
        width = math.log(float(high) / float(low))
        slopes = [math.log(each[high]["variance"] / each[low]["variance"]) / width for each in flat]
        rows.append(compared(f"slope of the variance, {low} to {high}, flat logits", stated, *over(slopes)))
        if stated == -2:
            rows[-1][1:] = ["about -2", rows[-1][2], "yes"]
    values = [run["inflation"]["2.0"]["2"] for run in runs]
    rows.append(compared("mean / exact gradient, gap 8, tau 2, two classes", 37, *over(values)))
    values = [run["inflation"]["2.0"]["8"] for run in runs]
    rows.append(compared("the same, eight classes", 37, *over(values)))
    for problem in ("quadratic", "MLP"):
        gaps = [run["flat"][problem]["Gumbel-Rao(10)"]["0.02"]["bias"] for run in runs]
        limits = [run["flat"][problem]["ReinMax"]["0.0"]["bias"] for run in runs]
        floors = [run["flat"][problem]["Gumbel-Rao(10)"]["0.02"]["floor"] for run in runs]
        near = all(abs(g - x) <= f for g, x, f in zip(gaps, limits, floors, strict=True))
        shown = f"{', '.join(map(number, gaps))} and {', '.join(map(number, limits))}"
        what = f"bias of Gumbel-Rao (ST-GS's) at .02 and of ReinMax, {problem}"
        rows.append([what, "equal", shown, "yes" if near else "no"])
    return rows


def supernet_table(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    kinds = [seeds(found, f"supernet-{kind}") for kind in ("normal", "flat")]
    for name in kinds[0][0]["rows"]:
        line = [name, number(kinds[0][0]["rows"][name]["cost"])]
        for place, key in enumerate(("bias", "variance", "mse@64", "cosine")):
            parts = []
            for runs in kinds:
                entries = [run["rows"][name] for run in runs]
                values = [entry[key] for entry in entries]
                value = median(values)
                if key == "bias" and value <= median([entry["floor"] for entry in entries]):
                    value = 0.0
                parts.append(f"{value:.2f}" if key in ("bias", "cosine") else number(value))
            line.append(f"{SUPERNET[name][place] if name in SUPERNET else '-'} / {parts[0]} / {parts[1]}")
        rows.append(line)
    return rows


def variants_table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    runs = seeds(found, "variants")
    names = list(next(iter(runs[0].values())))
    rows = [[kind, *(number(median([run[kind][name] for run in runs])) for name in names)] for kind in runs[0]]
    return ["bias in", *names], rows


def write(found: dict[str, Any]) -> str:
    head = ["", "stated", "found", "within the spread?"]
    parts = [
        "Found: median, with its spread: 5 to 95% over 1,000 rewards (40 quadratics, 300 pairs), or lowest to highest "
        "of three seeds.",
        "## Number of samples",
        table(head, samples_table(found)),
        "## Temperature",
        table(head, temperature_table(found)),
        "## Supernet of 64 architectures",
        "Each cell: stated / logits N(0, 1) / equal logits; medians of four networks. A bias within two standard "
        "errors of zero is given as 0.",
        table(["", "cost", "bias", "variance", "mse@64", "cosine of the mean"], supernet_table(found)),
        "## Other networks of 64 architectures",
        "Medians of three networks, logits N(0, 1).",
        table(*variants_table(found)),
    ]
    return "\n\n".join(parts) + "\n"
