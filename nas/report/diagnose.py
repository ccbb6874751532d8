"""The table and the figure of `nas diagnose`."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.errors import ConfigError, ResourceError
from nas.report.tables import show

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

COLUMNS = ("selector", "runs", "bias", "var", "cos", "mse64", "ms", "mse1s")
FORMATS = (".png", ".pdf", ".svg")
STYLES = tuple(
    zip(
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),  # Okabe and Ito
        "osD^vP*",
        ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))),
        strict=True,
    )
)


def show_diagnosis(found: Mapping[str, Any]) -> None:
    """Prints a table for each kind of weights, and below the last what the figures mean and how they were found."""
    parts = [(weights, found[key]) for weights, key in (("initial", "initial_rows"), ("trained", "rows")) if found[key]]
    for weights, rows in parts:
        last = weights == parts[-1][0]
        norm, error = found["gradient_norm"][weights], found["gradient_norm_error"][weights]
        norm_error = f" ± {error:.1g}" if error else ""
        notes = [
            f"gradient norm {norm:.3g}{norm_error}, expected loss {found['expected_loss'][weights]:.4g}, deviation "
            f"over architectures {found['loss_deviation'][weights]:.2g}"
        ]
        show(f"Gradients at {weights} weights", COLUMNS, map(_cells, rows), [*notes, *(_notes(found) if last else [])])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        _title(row),
        f"{row['candidates']:.3g}",
        _number(row["bias"]) + (f"±{_number(row['bias_error'])}" if row["bias_error"] else ""),
        *(_number(row[name]) for name in ("variance", "cosine", "mse_per_64_candidates")),
        f"{1000 * row['seconds_per_draw']:.3g}",
        _number(row["mse_per_second"]),
    )


def _title(row: Row) -> str:
    return f"{row['selector']}" + ("" if row["temperature"] is None else f" {row['temperature']:g}")


def _notes(found: Mapping[str, Any]) -> list[str]:
    setting, machine, space = found["setting"], found["machine"], found["space"]
    sizes = ", ".join(f"{key} {value}" for key, value in space.items() if key != "name")
    if found["reference"] == "sampled":
        against = f"compared with the score function's mean over {setting['decisions']:,} decisions, less its noise"
    else:
        against = f"compared with the exact gradient over {found['architectures']:,} architectures"
    reduced = [f"the space was reduced, its graph and layers kept: {found['reduced']}"] if found["reduced"] else []
    epochs = f", {setting['epochs']} epochs of uniform sampling" if setting["weights"] != "initial" else ""
    return [
        "bias (± standard error), var (trace): in units of the gradient's norm; cos: of the mean of the draws",
        "runs: candidates run or probed per edge and draw; mse: bias^2 + var / draws, as many as 64 of them (mse64) or "
        "one second (mse1s) pay for; --json has signs and all standard errors",
        f"{space['name']} ({sizes}) on {setting['dataset']['name']}, one batch of {setting['batch_size']}; {against}",
        *reduced,
        f"{setting['draws']} draws, {setting['logits']} logits, seed {setting['seed']}{epochs}",
        f"{machine['processor']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}, "
        f"device {machine['device']}, torch {machine['torch']}",
    ]


def _number(value: float) -> str:
    if abs(value) >= 99.95:
        return f"{value:.3g}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def check_plot(path: Path) -> None:
    """Says before any work whether a figure can be written.

    Raises:
        ConfigError: The name has no ending of a figure.
        ResourceError: There is no such folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--plot must end in {', '.join(FORMATS)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ResourceError(f"cannot write {path}: {path.parent} is no folder; make it, or choose another")


def plot_diagnosis(found: Mapping[str, Any], path: Path) -> None:
    """Draws bias and variance against temperature, and what 64 candidate evaluations leave of each selector's error.

    Raises:
        ResourceError: The file cannot be written.
    """
    parts = [(weights, found[key]) for weights, key in (("trained", "rows"), ("initial", "initial_rows")) if found[key]]
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["selector"] for row in parts[0][1] if row["temperature"] is not None))
    styles = {name: STYLES[place % len(STYLES)] for place, name in enumerate(names)}
    height = max(3.6, 0.21 * len(parts[0][1]) + 1.2)
    figure = Figure(figsize=(14 if names else 7, height * len(parts)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(parts), 3 if names else 1, squeeze=False, width_ratios=[1, 1, 1.25] if names else None)
    for (weights, rows), line in zip(parts, panels, strict=True):
        if names:
            _against_temperature(line[0], rows, "bias", styles)
            _against_temperature(line[1], rows, "variance", styles)
            line[0].set_title(f"{weights} weights: bias", loc="left")
            line[1].set_title("variance", loc="left")
            line[0].legend(frameon=False, fontsize=9)
        _errors(line[-1], rows)
        title = "squared error at 64 candidate evaluations per edge"
        line[-1].set_title(title if names else f"{weights} weights: {title}", loc="left")
    reduced = f", reduced to {found['architectures']:,} architectures" if found["reduced"] else ""
    figure.suptitle(
        f"Architecture gradients on {found['space']['name']}{reduced}, {found['setting']['dataset']['name']}, "
        f"{found['setting']['logits']} logits; relative to the norm of the gradient"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure.savefig(path, dpi=130)
    except OSError as error:
        raise ResourceError(f"cannot write {path} ({error.strerror}); choose another place") from error


def _against_temperature(axes: "Axes", rows: Sequence[Row], name: str, styles: Mapping[str, Any]) -> None:
    from matplotlib.ticker import NullLocator

    taus = sorted({row["temperature"] for row in rows if row["temperature"] is not None})
    for place, (selector, (colour, marker, line)) in enumerate(styles.items()):
        mine = sorted((row for row in rows if row["selector"] == selector), key=lambda row: float(row["temperature"]))
        aside = 1.03 ** (place - (len(styles) - 1) / 2)  # so that error bars do not hide each other
        axes.errorbar(
            [row["temperature"] * aside for row in mine],
            [row[name] for row in mine],
            [row[f"{name}_error"] for row in mine],
            color=colour,
            marker=marker,
            linestyle=line,
            capsize=2,
            label=selector,
        )
    axes.set_xscale("log")
    axes.set_xticks(taus, [f"{tau:g}" for tau in taus])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("temperature")
    if name == "variance":
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, max(1.05, axes.get_ylim()[1]))
        axes.axhline(1, color="0.6", linewidth=0.8, linestyle=":")
    _tidy(axes)


def _errors(axes: "Axes", rows: Sequence[Row]) -> None:
    """Draws the mean squared error of each row, and how much of it is bias."""
    ranked = sorted(rows, key=lambda row: -float(row["mse_per_64_candidates"]))
    least = max(min(row["mse_per_64_candidates"] for row in rows) / 3, 1e-4)  # an exact estimate has no logarithm
    errors = [max(row["mse_per_64_candidates"], least) for row in ranked]
    shares = [row["bias"] ** 2 for row in ranked]
    places = range(len(ranked))
    axes.hlines(places, [max(share, least) for share in shares], errors, color="0.75", linewidth=1.5)
    seen = [(share, place) for share, place in zip(shares, places, strict=True) if share > least]
    axes.plot(*zip(*seen, strict=True) if seen else ([], []), "|", color="#D55E00", markersize=9, label="squared bias")
    axes.plot(errors, places, "o", color="#0072B2", markersize=5, label="squared bias and variance")
    axes.set_xscale("log")
    axes.set_xlim(least, 2 * max(errors))
    axes.set_yticks(places, [*map(_title, ranked)], fontsize=8)
    axes.axvline(1, color="0.6", linewidth=0.8, linestyle=":")
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    axes.grid(axis="x", color="0.92")
    _tidy(axes)


def _tidy(axes: "Axes") -> None:
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
