"""Deciding a genotype from a finished search."""

from nas.checkpoint import latest
from nas.derivation import Argmax, Darts, Derivation, Sampled, discretise
from nas.errors import CheckpointError
from nas.randomness import generator
from nas.runs.configuration import Config
from nas.runs.search import BilevelSearch
from nas.runs.session import Session
from nas.runs.training import restore
from nas.space import Genotype


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
    search, config = load_search(session), session.config

    def score(genotype: Genotype) -> float:
        session.raise_if_stopped("while deriving")
        return session.evaluator.accuracy(search.network, discretise(config.space, genotype), "select")[0]

    session.status.update("derive", 0, 1, force=True)
    rule = config.derive or default_rule(config)
    return rule.derive(config.space, search.ranking(), score, generator(config.seed, "derive"))


def default_rule(config: Config) -> Derivation:
    """Returns the rule that fits selector and space (see `Config.derive`)."""
    if not config.selector.learns:
        return Sampled()
    retains = any(cell.retain is not None for cell in config.space.cells.values())
    return Darts() if retains else Argmax()
