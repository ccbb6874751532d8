"""The figures of the README, from results that are there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator
from vae.train import Data

Groups = dict[str, list[dict[str, Any]]]
"""Results by name, one for each seed."""

HARD, RELAXED = "#1b4f8a", "#e0762f"
LINES: tuple[dict[str, Any], ...] = (
    {"color": "#1b4f8a"},
    {"color": "#e0762f", "lw": 3, "alpha": 0.6},  # the last two may coincide
    {"color": "#3f8f4f"},
    {"color": "#5a2d6e", "ls": ":"},
)
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.dpi": 130,
}


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None}, bbox_inches="tight")
    plt.close(figure)


def _band(axis: Any, rows: list[dict[str, Any]], key: str, **style: Any) -> None:
    values = np.array([row["curve"][key] for row in rows])
    steps = rows[0]["curve"]["step"]
    axis.plot(steps, values.mean(0), **style)
    axis.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.15, lw=0)


def learning_curves(groups: Groups, names: Sequence[str], path: Path) -> None:
    """Hard and relaxed negative ELBO by step, one panel for each estimator."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 4, figsize=(10, 5), sharex=True, sharey=True, layout="constrained")
        best = min(np.mean([row["final"]["hard"] for row in groups[name]]) for name in names)
        lowest = min(min(row["curve"]["relaxed"]) for name in names for row in groups[name])
        highest = max(row["curve"]["hard"][1] for name in names for row in groups[name])
        for axis, name in zip(axes.flat, names, strict=True):
            _band(axis, groups[name], "hard", color=HARD, label="hard (the ELBO)")
            _band(axis, groups[name], "relaxed", color=RELAXED, ls="--", label="relaxed")
            axis.axhline(best, color="0.4", lw=0.8, ls=":")
            axis.set(title=name)
        margin = 0.04 * (highest - lowest)
        axes[0, 0].set(ylim=(lowest - margin, highest + margin))
        axes[0, 0].legend(loc="upper right")
        figure.supxlabel("step")
        figure.supylabel("negative ELBO on test images, nats")
        figure.suptitle("Lower is better; band: the range over seeds; dotted: the best estimator's last hard ELBO")
        _save(figure, path)


def gaps(groups: Groups, path: Path) -> None:
    """The last hard and relaxed negative ELBO of every categorical training, side by side."""
    rows = {name: group for name, group in groups.items() if "relaxed" in group[0]["final"]}
    with plt.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure, axis = plt.subplots(figsize=(7.5, 0.36 * len(rows) + 1.3), layout="constrained")
        for place, group in enumerate(rows.values()):
            hard, relaxed = ([row["final"][key] for row in group] for key in ("hard", "relaxed"))
            axis.plot([np.mean(relaxed), np.mean(hard)], [place, place], color="0.75", lw=3, zorder=1)
            for values, color, label in ((relaxed, RELAXED, "relaxed"), (hard, HARD, "hard (the ELBO)")):
                axis.scatter(values, [place] * len(values), s=12, color=color, alpha=0.5, lw=0, zorder=2)
                axis.scatter(np.mean(values), place, s=45, color=color, zorder=3, label=label if not place else None)
        axis.set(yticks=range(len(rows)), yticklabels=[*rows], xlabel="negative ELBO on test images, nats")
        axis.invert_yaxis()
        figure.legend(loc="outside upper center", ncols=2)
        _save(figure, path)


def collapse(groups: Groups, names: Sequence[str], path: Path) -> None:
    """The Gaussian VAE: the KL's weight, the KL and the active units by step."""
    panels = (
        ("kl_weight", "weight of the KL"),
        ("kl", "KL, nats"),
        ("active", "active units"),
        ("hard", "negative ELBO, nats"),
    )
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(11, 3.1), layout="constrained")
        for axis, (key, title) in zip(axes, panels, strict=True):
            for name, line in zip(names, LINES, strict=True):
                _band(axis, groups[name], key, label=name.removeprefix("gaussian-"), **line)
            axis.set(title=title, xlabel="step")
        axes[2].yaxis.set_major_locator(MaxNLocator(integer=True))
        values = [row["curve"]["hard"] for name in names for row in groups[name]]
        lowest, early = min(map(min, values)), max(curve[2] for curve in values)
        axes[3].set(ylim=(lowest - 0.05 * (early - lowest), early))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        _save(figure, path)


def grids(results: Path, data: Data, names: Sequence[str], path: Path) -> None:
    """Test images, reconstructions, and samples of the prior."""
    with np.load(results / f"{data.name}-{names[0]}-images.npz") as file:
        rows = [("test images", file["original"])]
    for name in names:
        with np.load(results / f"{data.name}-{name}-images.npz") as file:
            rows += [(f"{name}:\nreconstruction", file["reconstruction"]), (f"{name}:\nsample", file["sample"])]
    count = len(rows[0][1])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(rows), 1, figsize=(8.2, 0.72 * len(rows)), layout="constrained")
        for axis, (label, pictures) in zip(axes, rows, strict=True):
            tiles = np.pad(pictures.reshape(count, data.side, data.side), ((0, 0), (0, 0), (0, data.side // 8)))
            strip = np.concatenate([*tiles], axis=1)
            axis.imshow(strip, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
            axis.set(xticks=[], yticks=[data.side / 2], yticklabels=[label])
            axis.tick_params(length=0)
            axis.grid(False)
            axis.spines[:].set_visible(False)
        _save(figure, path)


def variance(found: dict[str, Any], path: Path) -> None:
    """Variance of Gumbel-Softmax's gradient and the share of zero gradients, by temperature."""
    tau = np.array(found["temperatures"])
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        for samples, color in ((1, HARD), (16, RELAXED)):
            label = f"{samples} sample{'s' * (samples > 1)}"
            left.loglog(tau, found[f"variance_{samples}"], color=color, marker="o", ms=3, label=label)
        anchor = found["variance_1"][0] * 2
        shown = tau <= 0.1
        left.loglog(tau[shown], anchor * tau[0] / tau[shown], color="0.5", ls=":", label="slope -1")
        left.set(xlabel="temperature", ylabel="variance of the gradient (trace)")
        left.legend()
        right.semilogx(tau, found["zero"], color=HARD, marker="o", ms=3)
        right.set(xlabel="temperature", ylabel="share of gradients that are exactly 0", ylim=(-0.03, 1.03))
        figure.suptitle("Gumbel-Softmax, 8 classes, flat logits: E (r z)^2 in float64 (left), E r z in float32 (right)")
        _save(figure, path)
