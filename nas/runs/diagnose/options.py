"""The options of `nas diagnose` beside those that all commands share; the command line loads no torch for them."""

from functools import partial

import click

option = partial(click.option, show_default=True)

WEIGHTS = click.Choice(["trained", "initial", "both"])
LOGITS = click.Choice(["flat", "normal"])
REFERENCE = click.Choice(["auto", "enumerate", "sampled"])

OPTIONS = [
    option("--selectors", default="all", help="Names or file.py:Class, separated by commas; all that can be judged."),
    option("--temperatures", default=".1,.5,1", help="Of selectors with a temperature that could be scheduled."),
    option("--draws", type=int, default=200, help="Estimates of every selector."),
    option("--burn-in", type=int, default=200, help="Draws before these, in which what a selector remembers learns."),
    option("--batch-size", type=int, default=64, help="Images of the one batch on which the loss is taken."),
    option("--epochs", type=int, default=3, help="Training by uniform sampling before the trained weights are judged."),
    option("--weights", type=WEIGHTS, default="both", help="At which weights."),
    option("--logits", type=LOGITS, default="normal", help="As a search starts, or N(0, 1), as inside a search."),
    option("--reference", type=REFERENCE, default="auto", help="Enumerate, a large space reduced; or all; or sample."),
    option("--decisions", type=int, default=4096, help="Of a sampled reference."),
    click.option("--plot", type=click.Path(dir_okay=False), help="Also draw a figure: a .png, .pdf or .svg."),
    click.option("--threads", type=int, help="CPU threads; with one, the process's CPU time is measured."),
]
