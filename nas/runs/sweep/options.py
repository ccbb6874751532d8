"""The options of `nas sweep` beside those that all commands share; the command line loads no torch for them."""

from functools import partial

import click

option = partial(click.option, show_default=True)

OPTIONS = [
    click.option("--selectors", help="Names or file.py:Class, separated by commas, or all; default: as configured."),
    option("--seeds", type=click.IntRange(1), default=3, help="How many, from the configured seed on."),
    click.option("--vary", multiple=True, metavar="KEY=A,B", help="Values of a setting; repeated, their combinations."),
    option("--workers", type=click.IntRange(1), default=1, help="Processes; they share the cores."),
    click.option("--no-retrain", is_flag=True, help="Judge derived cells by the table alone, without retraining them."),
    click.option("--out", type=click.Path(), required=True, help="Folder of the sweep, with one for each run."),
]
