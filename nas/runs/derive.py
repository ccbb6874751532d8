"""Deciding a genotype from a finished search."""

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nas import registry
from nas.benchmarks import Table
from nas.checkpoint import latest
from nas.config import build, differences, to_tree
from nas.derivation import Argmax, Darts, Derivation, Sampled
from nas.errors import CheckpointError, ConfigError, Interrupted
from nas.files import write_json
from nas.randomness import generator
from nas.runs.configuration import MEANING, Config
from nas.runs.cost import within_target
from nas.runs.folder import Run
from nas.runs.judge import Examination
from nas.runs.ranking import describe_training
from nas.runs.search import BilevelSearch
from nas.runs.session import Session, session
from nas.runs.training import restore
from nas.space import Genotype
from nas.status import lock

logger = logging.getLogger(__name__)

COMPARISON = "derivations.json"


def load_search(session: Session) -> BilevelSearch:
    """Returns the search at its end.

    Raises:
        CheckpointError: The run folder holds no finished search.
    """
    search = BilevelSearch(session)
    found = latest(session.folder / "checkpoints")
    if found is not None:
        restore(search.modules, found)
        search.settle()
    if found is None or not search.finished(found.step):
        reached = f"stopped at step {found.step} of {search.steps}" if found else "has not begun"
        raise CheckpointError(f"the search in {session.folder} {reached}; finish it with: nas resume {session.folder}")
    return search


def derive_genotype(session: Session) -> Genotype:
    """Decides a genotype by the configured rule."""
    search, rule = load_search(session), session.config.derive or default_rule(session.config)
    name = registry.name_of(Derivation.registry, type(rule))
    if not rule.follows_logits and (found := describe_training(search)):
        logger.warning(found)
    session.status.update("derive", 0, 1, force=True)
    with session.progress(1, f"derive by {name}") as bar:
        examination = Examination(session, search, lambda: bar.update(0, measured=examination.measurements))
        genotype = decide(examination, rule)
        bar.update(1, measured=examination.measurements)
    return genotype


def decide(examination: Examination, rule: Derivation) -> Genotype:
    """Returns the genotype that a rule decides; the supernet stays as it is."""
    search, config = examination.search, examination.session.config
    with examination as judge:
        judge = replace(judge, genotype=within_target(search.constraints, judge.genotype))
        return rule.derive(config.space, search.ranking(), judge, generator(config.seed, "derive"))


def default_rule(config: Config) -> Derivation:
    """Returns the rule that fits selector and space (see `Config.derive`)."""
    if not config.selector.learns:
        return Sampled()
    retains = any(cell.retain is not None for cell in config.space.cells.values())
    return Darts() if retains else Argmax()


def compare_rules(run: Run, config: Config, *, quiet: bool = False) -> dict[str, Any]:
    """Derives by every rule from the one supernet, and writes `derivations.json`; nothing else in the folder changes.

    Args:
        run: A finished search.
        config: The run's configuration, or one with another `derive`, `gap`, `benchmark` or place to run.
        quiet: Whether progress is hidden.

    Returns:
        `rules`, with a row for each, and what they have in common. A rule that cannot be applied says why.

    Raises:
        ConfigError: The search was done with other settings, or the table is not of this space.
        Interrupted: A signal asked for a stop; nothing was written.
    """
    changed = [key for key, *_ in differences(run.config, config) if key.partition(".")[0] in MEANING["search"]]
    if changed:
        raise ConfigError(f"{run.folder} was searched with other {', '.join(changed)}; leave them as they are")
    table = Table(config.benchmark) if config.benchmark.named else None
    hidden = replace(config, tracking=replace(config.tracking, wandb="disabled"))
    # The run's own status and metrics stay as they are: this work's are thrown away.
    with lock(run.folder), TemporaryDirectory() as aside, session(Path(aside), hidden, "derive", quiet=quiet) as work:
        work = replace(work, folder=run.folder)
        try:
            found = _compare(work, load_search(work), table)
        except Interrupted as error:
            asked = signal.Signals(error.signal_number).name
            raise Interrupted(
                f"stopped by {asked} while comparing; nothing was written, the same command begins again",
                error.signal_number,
            ) from error
        write_json(run.folder / COMPARISON, found)
    return found


def _compare(work: Session, search: BilevelSearch, table: Table | None) -> dict[str, Any]:
    chosen = work.config.derive or default_rule(work.config)
    rules = _rules(chosen)
    rows = []
    with work.progress(len(rules), "derive by every rule") as bar:
        for place, (name, rule) in enumerate(rules.items()):
            rows.append(_row(work, search, name, rule, table, partial(bar.update, place, rule=name)))
            bar.update(place + 1, rule=name)
    own = registry.name_of(Derivation.registry, type(chosen))
    configured = next(row["genotype"] for row in rows if row["rule"] == own)
    for row in rows:
        row["configured"] = row["rule"] == own
        row["as_configured"] = row["genotype"] == configured if configured and row["genotype"] else None
    return {"split": "select", "configured": own, "benchmark": to_tree(work.config.benchmark), "rules": rows}


def _rules(chosen: Derivation) -> dict[str, Derivation | ConfigError]:
    """Returns every registered rule, with its own defaults unless it is the one configured, and that one."""
    rules: dict[str, Derivation | ConfigError] = {}
    for name in registry.names(Derivation.registry):
        try:
            rules[name] = build(registry.load(Derivation.registry, name), [])
        except ConfigError as error:
            rules[name] = error
    rules[registry.name_of(Derivation.registry, type(chosen))] = chosen
    return rules


def _row(
    work: Session,
    search: BilevelSearch,
    name: str,
    rule: Derivation | ConfigError,
    table: Table | None,
    report: Callable[..., None],
) -> dict[str, Any]:
    """Derives by one rule; what cannot be applied has the reason in `refused` and nothing measured."""
    examination = Examination(work, search, lambda: report(measured=examination.measurements, tuned=examination.tuned))
    begun = time.process_time()
    row: dict[str, Any] = {"rule": name, "settings": None, "refused": None, "genotype": None, "cells": None}
    try:
        if isinstance(rule, ConfigError):
            raise rule
        row["settings"] = to_tree(rule)
        if rule.follows_logits and not search.selector.learns:
            raise ConfigError("the selector learns no logits to follow")
        genotype = decide(examination, rule)
    except ConfigError as error:
        return {**row, "refused": str(error), "inherited": None, "benchmark": None, **_cost(examination, begun)}
    cost = _cost(examination, begun)  # before the measurement that is the same for all
    inherited = examination.genotype(genotype)
    entry = table.entry(work.config.space, genotype).known() if table else None
    row |= {"genotype": work.config.space.format(genotype), "cells": genotype.cells}
    return {**row, "inherited": inherited, "benchmark": entry, **cost}


def _cost(examination: Examination, begun: float) -> dict[str, float]:
    seconds = round(time.process_time() - begun, 3)
    return {"measurements": examination.measurements, "tuning_steps": examination.tuned, "cpu_seconds": seconds}
