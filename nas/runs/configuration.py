"""The complete configuration of a run. YAML files and `--set` mirror these classes key for key."""

from dataclasses import dataclass, field

from nas import registry
from nas.benchmarks import Benchmark
from nas.cost import Cost
from nas.data import Dataset, Digits
from nas.derivation import Derivation
from nas.errors import require_at_least
from nas.hypergradients import FirstOrder, Hypergradient
from nas.runs.modifiers import Modifier
from nas.runs.optimizers import SGD, Adam, Optimizer
from nas.runs.watch import Watch
from nas.schedules import Constant, Cosine, Linear, Schedule
from nas.selectors import Selector
from nas.selectors.softmax import Softmax
from nas.space import SearchSpace
from nas.supernet.backends import Backend, Precision
from nas.tracking import Tracking


@dataclass(frozen=True, kw_only=True)
class Search:
    """The bilevel search.

    Attributes:
        epochs: Passes over `train`.
        batch_size: Images per weight step, and per architecture step.
        warmup: Share of the steps, at the beginning, that train only weights.
        entropy: Bonus on the entropy of the decisions, in units of the loss per nat and edge; keeps them open.
        forward_temperature: Decisions are drawn from softmax(logits / this), in training and in measurements; above 1
            it explores, which a selector's own temperature does not.
        hypergradient: How the logits' gradient sees that the weights depend on them.
        modifiers: What else changes the supernet and its steps, applied in this order (`nas list modifiers`).
        weights: Optimizer of the supernet's weights.
        logits: Optimizer of the architecture logits.
        clip: Largest norm of the weights' gradient; 0 for no limit.
        evaluate_every: Epochs between evaluations on `select`; the last epoch is always evaluated.
        decisions: Decisions averaged in such an evaluation.
        watch: Signals of a collapse, and what is then done.
    """

    epochs: int = 40
    batch_size: int = 32
    warmup: float = 0.1
    entropy: Schedule = Constant(value=0.0)
    forward_temperature: Schedule = Constant(value=1.0)
    hypergradient: Hypergradient = FirstOrder()
    modifiers: tuple[Modifier, ...] = ()
    weights: Optimizer = SGD()
    logits: Optimizer = Adam(lr=Constant(value=0.01))  # a short search must move further per step than the published
    clip: float = 5.0
    evaluate_every: int = 1
    decisions: int = 1
    watch: Watch = Watch()

    def __post_init__(self) -> None:
        require_at_least(self, 1, "epochs", "batch_size", "evaluate_every", "decisions")
        require_at_least(self, 0, "clip")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be at least 0 and below 1, got {self.warmup:g}")
        kinds = [registry.name_of(Modifier.registry, type(each)) for each in self.modifiers]
        if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise ValueError(f"modifiers must differ, got {', '.join(twice)} more than once")
        for kind, each in zip(kinds, self.modifiers, strict=True):
            for other in sorted({*kinds} & {*each.apart}):
                raise ValueError(f"modifiers cannot hold {kind} beside {other}: {each.apart[other]}; leave one away")
            if each.since < self.warmup:
                raise ValueError(
                    f"warmup must end before {kind} goes by the logits, at {each.since:g}, got {self.warmup:g}"
                )
        self.entropy.require("entropy", lambda value: value >= 0, "at least 0")
        self.forward_temperature.require("forward_temperature", lambda value: value > 0, "positive")


@dataclass(frozen=True, kw_only=True)
class Retrain:
    """Training a genotype from scratch, with the recipe of DARTS.

    Attributes:
        epochs: Passes over `train` and `arch`.
        batch_size: Images per step.
        seeds: How many times the derived genotype is retrained.
        seed: Key of the randomness of all of them; None takes the run's.
        optimizer: Of the weights.
        clip: Largest norm of the gradient; 0 for no limit.
        drop_path: Probability of dropping a candidate's output for a sample.
        auxiliary_weight: Weight of the auxiliary classifiers' loss, where the space has any; 0 builds none.
        label_smoothing: Probability mass given to all classes alike.
        cutout: Whether squares are cut out of the images (their size: dataset.augmentation.cutout).
    """

    epochs: int = 20
    batch_size: int = 64
    seeds: int = 3
    seed: int | None = None
    optimizer: Optimizer = SGD(lr=Cosine(start=0.025, end=0.0))
    clip: float = 5.0
    drop_path: Schedule = Linear(start=0.0, end=0.2)
    auxiliary_weight: float = 0.4
    label_smoothing: float = 0.0
    cutout: bool = True

    def __post_init__(self) -> None:
        require_at_least(self, 1, "epochs", "batch_size", "seeds")
        require_at_least(self, 0, "clip", "auxiliary_weight", *([] if self.seed is None else ["seed"]))
        self.drop_path.require("drop_path", lambda value: 0 <= value < 1, "at least 0 and below 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing:g}")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How accuracies are measured.

    Attributes:
        batch_size: Images per batch.
        calibration_batches: Batches from which batch-norm statistics are recomputed before every measurement.
    """

    batch_size: int = 256
    calibration_batches: int = 4

    def __post_init__(self) -> None:
        require_at_least(self, 1, "batch_size", "calibration_batches")


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The gap report.

    Attributes:
        decisions: Keyed decisions over which the supernet's accuracy is averaged (1 for a deterministic selector).
        random: Random genotypes retrained at equal budget; the baseline, and the sample of Kendall's tau.
        ranked: Random genotypes whose inherited accuracies are ranked against the benchmark's; 0 for none.
    """

    decisions: int = 20
    random: int = 5
    ranked: int = 0

    def __post_init__(self) -> None:
        require_at_least(self, 1, "decisions")
        require_at_least(self, 0, "random", "ranked")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How networks are run. It changes the speed, and results only by rounding.

    Attributes:
        backend: `reference` is plain, `aten` is made of stock torch operations, `native` has kernels of its own for
            CPUs, `auto` takes the fastest for the device.
        precision: `bfloat16` rounds the factors of dense convolutions in cells, by `aten`; pays on processors with
            matrix units for it.
    """

    backend: Backend = "auto"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.precision == "bfloat16" and self.backend not in ("auto", "aten"):
            raise ValueError(f"precision bfloat16 needs backend aten or auto, got {self.backend}")


def _small_space() -> SearchSpace:
    """Returns the space that runs in minutes on a laptop; a space that is named has its published size."""
    space: SearchSpace = registry.load(SearchSpace.registry, "nas-bench-201")(channels=8, cells_per_stage=1)
    return space


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run depends on.

    Attributes:
        space: What is searched.
        selector: How logits become decisions.
        dataset: On what.
        seed: Key of all randomness but the splits'.
        search: The bilevel search.
        cost: What the derived network may cost.
        derive: From logits to a genotype; None: by sampling if the selector learns nothing, by DARTS's rule if nodes
            retain some of their in-edges, otherwise by argmax.
        retrain: Training from scratch.
        evaluation: How accuracies are measured.
        gap: The gap report.
        benchmark: Tables of published accuracies, and of costs on devices.
        tracking: How the run is recorded.
        engine: How networks are run.
        device: `auto` takes a GPU if there is one.
        threads: CPU threads; 0 leaves torch's choice. Bit-identical results need the same number.
        checkpoint_seconds: Time between checkpoints; one is also written at the end and on a signal.
    """

    space: SearchSpace = field(default_factory=_small_space)
    selector: Selector = Softmax()
    dataset: Dataset = Digits()
    seed: int = 0
    search: Search = Search()
    cost: Cost = Cost()
    derive: Derivation | None = None
    retrain: Retrain = Retrain()
    evaluation: Evaluation = Evaluation()
    gap: Gap = Gap()
    benchmark: Benchmark = Benchmark()
    tracking: Tracking = Tracking()
    engine: Engine = Engine()
    device: str = "auto"
    threads: int = 0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        require_at_least(self, 0, "threads", "seed", "checkpoint_seconds")
        if self.derive is not None and self.derive.follows_logits and not self.selector.learns:
            name = registry.name_of(Derivation.registry, type(self.derive))
            raise ValueError(f"derive must measure for a selector that learns no logits, got {name}; use sampled")
        if self.cost.target is not None and not self.selector.learns:
            name = registry.name_of(Selector.registry, type(self.selector))
            raise ValueError(
                f"cost.target needs a selector that learns logits, which it pushes towards cheap candidates; {name} "
                "learns none: use another selector, such as st-gs, or leave cost.target away"
            )
        if self.gap.ranked and not self.benchmark.named:
            raise ValueError(
                f"gap.ranked = {self.gap.ranked} needs a table of accuracies to rank against; give one with --benchmark"
            )


MEANING = {
    "search": ("space", "selector", "dataset", "seed", "search", "cost", "evaluation"),
    "derive": ("derive",),
    "retrain": ("space", "dataset", "seed", "retrain", "evaluation"),
    "gap": ("gap", "benchmark"),
}
"""The sections on which each stage's results depend."""
