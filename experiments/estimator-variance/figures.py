"""Figures of the results, in Okabe and Ito's colours, which the colour-blind can tell apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

STYLE: dict[str, tuple[str, str, str]] = {  # colour, line, marker; score functions are drawn solid
    "REINFORCE": ("#000000", "-", "o"),
    "running mean": ("#D55E00", "-", "v"),
    "leave-one-out": ("#0072B2", "-", "^"),
    "REBAR": ("#56B4E9", "-", "D"),
    "Gumbel-Softmax": ("#009E73", "--", "s"),
    "ST-GS": ("#CC79A7", ":", "x"),
    "Gumbel-Rao(10)": ("#E69F00", "--", "P"),
    "ReinMax": ("#7F7F7F", "--", "*"),
}
LINEAR = ("N(0, 1)", "U(0, 1)", "1 + .1 N", "2.3 + .05 N", "linspace(0, 1)")


def seeds(found: dict[str, Any], prefix: str) -> list[Any]:
    return [values for name, values in found.items() if name.startswith(prefix)]


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def draw(found: dict[str, Any], folder: Path) -> None:
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.5})
    _samples(seeds(found, "samples"), folder / "samples.png")
    for kind, title in (("flat", "equal logits"), ("peaked", "one logit 8 above the others")):
        _temperature(seeds(found, "temperature"), kind, title, folder / f"temperature-{kind}.png")
    _limits(seeds(found, "temperature"), folder / "limits.png")
    _supernet(found, folder / "supernet.png")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def _samples(runs: list[Any], path: Path) -> None:
    figure, axes = plt.subplots(2, 4, figsize=(14, 7.2), layout="constrained")
    panels = [*((name, f"linear, r ~ {name}") for name in LINEAR), ("quadratic", "quadratic"), ("MLP", "MLP")]
    for axis, (name, title) in zip(axes.flat, panels, strict=False):
        for estimator, (colour, line, marker) in STYLE.items():
            counts = [int(count) for count in runs[0][name][estimator]["variance"]]
            values = [median([run[name][estimator]["variance"][str(n)] for run in runs]) for n in counts]
            axis.plot(counts, values, line, color=colour, marker=marker, markersize=5, label=estimator)
        axis.set(xscale="log", yscale="log", title=title.replace("~ linspace", "= linspace"))
        top = max(median([run[name][e]["variance"]["10"] for run in runs]) for e in STYLE) * 10
        axis.plot([1, 1000], [top * 4, top * 4e-3], color="#BBBBBB", lw=1, zorder=0)
        axis.annotate("slope -1", (60, top * 4 / 60), (90, top * 4 / 25), color="#777777", fontsize=8)
        axis.grid(alpha=0.25, which="major")
    for axis in axes[:, 0]:
        axis.set_ylabel("variance of the mean of n samples")
    for axis in axes.flat[:7]:
        axis.set_xlabel("samples n")
    _bias(axes[1, 3], runs)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    figure.suptitle(
        "Gradient of E f(z) in the first of eight equal logits: variance over 200 trials, temperature .5 "
        "(solid: unbiased score functions)"
    )
    _save(figure, path)


def _bias(axis: Any, runs: list[Any]) -> None:
    names = [*STYLE, "straight-through", "softmax"]
    for problem, label, colour, marker, shift in (
        ("N(0, 1)", "linear, N(0, 1)", "#0072B2", "o", 0.2),
        ("quadratic", "quadratic", "#D55E00", "s", 0.0),
        ("MLP", "MLP", "#009E73", "^", -0.2),
    ):
        for place, name in enumerate(names):
            entries = [run[problem][name] for run in runs]
            scale = [abs(run[problem]["exact"]) for run in runs]
            value = median([abs(entry["bias"]) / s for entry, s in zip(entries, scale, strict=True)])
            error = median([entry["error"] / s for entry, s in zip(entries, scale, strict=True)])
            style = {"color": colour, "marker": marker, "markersize": 5, "ls": "none"}
            hollow = value <= 2 * error + 1e-9
            axis.plot(
                max(value, 1e-3),
                -place + shift,
                **style,
                fillstyle="none" if hollow else "full",
                label=label if name == "softmax" else None,
            )
    axis.set(xscale="log", title="bias (hollow: within 2 errors of 0)", xlabel="|bias| / |exact gradient|")
    axis.set_yticks([-place for place in range(len(names))], names)
    axis.grid(alpha=0.25, axis="x")
    axis.set_xlim(7e-4, 3)
    axis.legend(fontsize=8, loc="upper right", frameon=True)


def _temperature(runs: list[Any], kind: str, title: str, path: Path) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained", sharex=True)
    for column, problem in enumerate(("linear", "quadratic", "MLP")):
        for estimator in ("Gumbel-Softmax", "ST-GS", "Gumbel-Rao(10)"):
            colour, line, marker = STYLE[estimator]
            table = [run[kind][problem][estimator] for run in runs]
            taus = [float(tau) for tau in table[0]]
            variances = [median([each[tau]["variance"] for each in table]) for tau in table[0]]
            biases = [
                median([e[tau]["bias"] if e[tau]["bias"] > e[tau]["floor"] else np.nan for e in table])
                for tau in table[0]
            ]
            style = {"color": colour, "ls": line, "marker": marker, "markersize": 5, "label": estimator}
            if estimator == "ST-GS":  # on top: it coincides with others
                style |= {"zorder": 5, "markersize": 8}
            axes[0, column].plot(taus, variances, **style)
            axes[1, column].plot(taus, biases, **style)
        for name, colour, line in (("ReinMax", "#7F7F7F", "-."), ("straight-through", "#0072B2", (0, (1, 3)))):
            entries = [run[kind][problem][name]["0.0"] for run in runs]
            for row, key in ((0, "variance"), (1, "bias")):
                value = median([e[key] if key == "variance" or e["bias"] > e["floor"] else 0.0 for e in entries])
                if value > 1e-9:
                    axes[row, column].axhline(value, color=colour, ls=line, label=f"{name} (no temperature)")
        axes[0, column].set_title(f"{problem} f")
        axes[1, column].set_xlabel("temperature")
        for row in (0, 1):
            axes[row, column].set(xscale="log", yscale="log")
            axes[row, column].grid(alpha=0.25)
        axes[1, column].set_ylim({"flat": (0.02, 1.3), "peaked": (0.2, 130)}[kind])
        axes[1, column].yaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_ylabel("variance of one draw / |exact|²")
    axes[1, 0].set_ylabel("|bias| / |exact|")
    labels = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(f"Eight classes, {title}; medians of {len(runs)} functions; a bias below two errors is not drawn")
    _save(figure, path)


def _limits(runs: list[Any], path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
    for kind, colour, line, marker in (("flat", "#0072B2", "-", "o"), ("N(0, 1)", "#D55E00", "--", "s")):
        taus = [tau for tau in runs[0]["zero rows"][kind] if float(tau) <= 0.5]
        shares = [100 * median([run["zero rows"][kind][tau] for run in runs]) for tau in taus]
        axes[0].plot([float(t) for t in taus], shares, line, color=colour, marker=marker, label=f"{kind} logits")
    axes[0].set(
        xscale="log", xlabel="temperature", ylabel="% of rows", title="Rows with exactly zero gradient (float32)"
    )
    axes[0].legend(frameon=False)
    for kind, colour, line, marker in (("flat", "#0072B2", "-", "o"), ("peaked", "#D55E00", "--", "s")):
        table = [run[kind]["linear"]["Gumbel-Softmax"] for run in runs]
        taus = np.array([float(tau) for tau in table[0]])
        logs = np.array([[np.log(entry["variance"]) for entry in each.values()] for each in table])
        slopes = np.median(np.diff(logs, axis=1) / np.diff(np.log(taus)), axis=0)
        middle = np.sqrt(taus[1:] * taus[:-1])
        axes[1].plot(middle, slopes, line, color=colour, marker=marker, label=f"{kind} logits")
    for value in (-1, -2, -4):
        axes[1].axhline(value, color="#BBBBBB", lw=1, zorder=0)
    axes[1].set(
        xscale="log", xlabel="temperature", title="Log-log slope of the variance in temperature", ylabel="slope"
    )
    axes[1].legend(frameon=False)
    for classes, colour, line, marker in (("2", "#0072B2", "-", "o"), ("8", "#D55E00", "--", "s")):
        taus = [float(tau) for tau in runs[0]["inflation"]]
        values = [median([run["inflation"][tau][classes] for run in runs]) for tau in runs[0]["inflation"]]
        axes[2].plot(taus, values, line, color=colour, marker=marker, label=f"{classes} classes")
    axes[2].axhline(1, color="#BBBBBB", lw=1, zorder=0)
    axes[2].set(xscale="log", yscale="log", xlabel="temperature", ylabel="mean / exact gradient")
    axes[2].set_title("Mean gradient for a gap of 8 between logits")
    axes[2].legend(frameon=False)
    for axis in axes:
        axis.grid(alpha=0.25)
    figure.suptitle("What temperature does to the Gumbel-Softmax gradient (linear f)")
    _save(figure, path)


def _supernet(found: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.6), layout="constrained", sharey=True)
    limit = 1.5
    names = list(seeds(found, "supernet-normal")[0]["rows"])
    for axis, kind, title in zip(axes, ("normal", "flat"), ("logits N(0, 1)", "equal logits"), strict=True):
        runs = seeds(found, f"supernet-{kind}")
        for place, name in enumerate(names):
            rows = [run["rows"][name] for run in runs]
            bias = median([row["bias"] ** 2 for row in rows])
            noise = median([row["variance"] * row["cost"] / 64 for row in rows])
            total = bias + noise
            axis.barh(-place, min(bias, limit), color="#D55E00", label="bias²" if not place else None)
            left, label = min(bias, limit), "variance x cost / 64" if not place else None
            axis.barh(-place, min(noise, limit - left), left=left, color="#56B4E9", label=label)
            beyond = " →" if total > limit else ""
            axis.text(min(total, limit) + 0.015, -place, f"{total:.2f}{beyond}", va="center", fontsize=8)
        axis.set_yticks([-place for place in range(len(names))], names)
        axis.set(xlim=(0, limit * 1.1), title=title, xlabel="squared error / |exact gradient|²")
        axis.axvline(1, color="#777777", lw=1, ls=":", zorder=0)
    axes[0].legend(frameon=False, loc="lower right")
    figure.suptitle(
        "Supernet of 64 architectures: squared error for 64 candidate evaluations per edge (1: as bad as no step)"
    )
    _save(figure, path)
