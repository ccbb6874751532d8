"""What a reader is told of the signals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Signal:
    """How a signal is reported.

    Attributes:
        found: What is the matter, with the value in place of {}.
        remedy: What helps.
    """

    found: str
    remedy: str


SIGNALS = {
    "parameter_free": Signal(
        "{:.0%} of the edges of the most probable genotype hold candidates without parameters",
        "search.modifiers with perturbed-weights or oles, more images (dataset.limit), fewer search.epochs, or a lower "
        "search.logits.lr",
    ),
    "entropy": Signal(
        "the decisions are closing early, their mean entropy is {:.1%} of its maximum",
        "search.entropy (a bonus), search.forward_temperature above 1, a longer search.warmup, or a lower "
        "search.logits.lr",
    ),
    "discretisation": Signal(
        "discretising the supernet costs {:.1f} points of accuracy",
        "search.modifiers with perturbed-weights, or a selector that trains sampled paths, such as st-gs",
    ),
    "eigenvalue": Signal(
        "the largest eigenvalue of the Hessian of the architecture loss has grown {:.2f} times",
        "search.modifiers with perturbed-weights, a larger search.weights.weight_decay, or fewer search.epochs",
    ),
}


def describe_watch(found: Mapping[str, Any]) -> list[str]:
    """Returns, from a summary, sentences for a reader: what fired, and how the search ended if it ended early."""
    fired = [
        f"{SIGNALS[each['signal']].found.format(each['value'])} at epoch {each['epoch']} "
        f"(search.watch.{each['signal']}={each['threshold']:g})"
        for each in found["fired"]
    ]
    if found["ended"] is not None:
        then = f"the watch ended the search after epoch {found['ended']} of {found['epochs']}"
        if found["rolled_back_to"] is not None:
            then += f"; the logits are those of epoch {found['rolled_back_to']}"
        fired.append(then)
    return fired


def watch_notes(found: Mapping[str, Any]) -> list[str]:
    """Returns, from a summary, the lines below a search's table."""
    if found["parameter_free"] is None:
        return []
    share = SIGNALS["parameter_free"].found.format(found["parameter_free"])
    return [f"{share}; collapse watch: {'; '.join(describe_watch(found)) or 'nothing fired'}"]
