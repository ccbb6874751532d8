"""What is said of costs, of devices and of a supernet's ranking, one line each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nas.cost import Quantity, Target

HELP = "help_"


def expected_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields what a search expects the derived network to cost, a line for each target."""
    for row in rows:
        target = _target(row)
        excess = row["expected_cost"] / row["limit"] - 1
        yield (
            f"cost.target {row['target']}: expected {target.show(row['expected_cost'])} ({100 * excess:+.1f}%), "
            f"price {row['cost_price']:.3g}{_fit(row)}"
        )


def range_rows(limited: Sequence[Quantity]) -> Iterator[tuple[str, str]]:
    """Yields each target and what networks of the space cost."""
    for each in limited:
        least, most = each.target.show(each.least), each.target.show(each.most)
        yield f"cost.target {each.target.text}", f"networks cost {least} to {most}"


def cost_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields what a derived network costs, a line for each target."""
    for row in rows:
        if row["cost"] is None:
            yield f"cost.target {row['target']}: the table does not know what the network costs"
            continue
        excess = row["cost"] / row["limit"] - 1
        verdict = "kept" if row["kept"] else "MISSED"
        cost = _target(row).show(row["cost"])
        yield f"cost.target {row['target']}: {verdict}, the network costs {cost} ({100 * excess:+.1f}%)"


def benchmark_lines(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yields what tables know of a genotype: accuracy, and latency and energy on each device."""
    if "test" in entry:
        early = f", {entry['valid_12ep']:.2f}% on validation after 12 epochs" if "valid_12ep" in entry else ""
        yield (
            f"benchmark: test {entry['test']:.2f}%, rank {entry['rank']:,} of {entry['of']:,}, "
            f"regret {entry['regret']:.2f} points{early}"
        )
    costs = entry.get("hardware", {})
    for title, ending in (("latency in ms", "_latency"), ("energy in mJ", "_energy")):
        found = {name.removesuffix(ending): value for name, value in costs.items() if name.endswith(ending)}
        if found:
            yield f"benchmark: {title}: {_list(found)}"
    measured = {name.removeprefix(HELP): value for name, value in costs.items() if name.startswith(HELP)}
    if measured:
        yield f"benchmark: latency in ms, device and batch size: {_list(measured)}"


def ranking_lines(found: Mapping[str, Any] | None) -> Iterator[str]:
    """Yields how the supernet's ranking of genotypes agrees with a table's."""
    if found is None:
        return
    top = found["top_half"]
    spearman = "" if found["spearman"] is None else f", Spearman {found['spearman']:+.2f}"
    yield (
        f"supernet's ranking (inherited accuracy on select against the table's on test): {_tau(found)}{spearman}; "
        f"among the better half {_tau(top)}"
    )


def _tau(found: Mapping[str, Any]) -> str:
    if found["tau"] is None:
        return f"Kendall tau is not defined over {found['n']}"
    interval = found["interval"]
    between = f", 95% interval {interval[0]:+.2f} to {interval[1]:+.2f}" if interval else ""
    return f"Kendall tau {found['tau']:+.2f} (N = {found['n']}{between})"


def _list(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())


def _target(row: Mapping[str, Any]) -> Target:
    return Target(row["quantity"], row["limit"], row["target"])


def _fit(row: Mapping[str, Any]) -> str:
    return f"; a sum over candidates explains {row['fit']:.2f} of the table's variance" if "fit" in row else ""
