"""Memory of a step: what autograd keeps for the backward, and the peak of a process that takes steps."""

import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nas.config import to_tree
from nas.runs.bench.steps import Subject, noise, retraining_subject, search_subject
from nas.runs.configuration import Config
from nas.runs.session import Session
from nas.space import Genotype

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class _Kept:
    """A tensor that autograd keeps; it lives exactly as long as autograd keeps it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


def saved_activations(subject: Subject) -> dict[str, int]:
    """Returns the bytes kept between forward and backward, for each step that trains.

    Unique storages that autograd has saved when the network's forward returns, without parameters and buffers, and
    what the native backend says that it holds.
    """
    return {kind: _saved(subject, step) for kind, step in subject.trained.items()}


def _saved(subject: Subject, step: Callable[[int], object]) -> int:
    known = {tensor.untyped_storage().data_ptr() for tensor in subject.network.state_dict(keep_vars=True).values()}
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()
    most = 0

    def keep(tensor: Tensor) -> _Kept:
        kept.add(found := _Kept(tensor))
        return found

    def count(*_: object) -> None:
        nonlocal most
        storages = {s.data_ptr(): s.nbytes() for s in (each.tensor.untyped_storage() for each in kept)}
        bytes_ = sum(size for place, size in storages.items() if place not in known)
        most = max(most, bytes_ + _held_by_native())

    hook = subject.network.register_forward_hook(count)
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda found: found.tensor):
            step(0)
    finally:
        hook.remove()
    return most


def _held_by_native() -> int:
    native = sys.modules.get("nas.supernet.native")
    return int(native.held()) if native else 0


def step_memory(config: Config, genotype: Genotype | None) -> tuple[dict[str, int] | None, str]:
    """Measures `peaks` in a process of its own (`__main__`), where nothing has been allocated and freed before.

    Args:
        config: With the backend to measure.
        genotype: To measure its retraining; None for a search.

    Returns:
        The bytes for each step that trains, or None and the reason.
    """
    text = json.dumps({"config": to_tree(config), "genotype": genotype and genotype.to_json()})
    command = [sys.executable, "-m", "nas.runs.bench"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return None, f"the process that measures it failed: {last}"
    found = json.loads(done.stdout)
    return found["peaks"], found["reason"]


def peaks(work: Session, genotype: Genotype | None) -> tuple[dict[str, int] | None, str]:
    """Returns how far above its level before the first step the memory of this process rises in two steps.

    The level is taken when network, optimizers and data are there, and after steps on a few tiny images, which load the
    code of torch and of the backend. What a backend keeps from one step to the next, as an arena, counts, and so do
    gradients and momentum. Weight steps come before architecture steps, so the peak of the latter includes what the
    former left behind. On a GPU: memory of tensors there.
    """
    _load(work, genotype)
    subject = _subject(work, genotype)
    meter = _GPU(work.device) if work.device.type == "cuda" else _Resident()
    if reason := meter.missing():
        return None, reason
    before, found = meter.now(), {}
    for kind, step in subject.trained.items():
        meter.reset()
        for number in range(2):
            step(number)
        found[kind] = meter.peak() - before
    return found, ""


def _subject(work: Session, genotype: Genotype | None) -> Subject:
    return search_subject(work) if genotype is None else retraining_subject(work, genotype)


def _load(work: Session, genotype: Genotype | None) -> None:
    """Takes every kind of step once on two images of at most 8x8; a space that needs larger ones does without."""
    config, task = work.config, work.task
    small = replace(
        config,
        dataset=noise(replace(task, height=min(task.height, 8), width=min(task.width, 8)), 2),
        search=replace(config.search, batch_size=2),
        retrain=replace(config.retrain, batch_size=2),
    )
    with suppress(RuntimeError, ValueError):
        for step in _subject(replace(work, config=small), genotype).trained.values():
            step(0)


class _Resident:
    """Resident set of this process, from Linux's /proc."""

    def missing(self) -> str:
        """Returns why it cannot be measured; empty if it can."""
        try:
            self.reset()
            self.peak()
        except (OSError, KeyError) as error:
            return f"the peak of the resident set can be reset on Linux only ({error})"
        return ""

    def now(self) -> int:
        return self._read("VmRSS")

    def peak(self) -> int:
        return self._read("VmHWM")

    def reset(self) -> None:
        RESET.write_text("5")

    def _read(self, key: str) -> int:
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return 1024 * int(lines[key].split()[0])


class _GPU:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def missing(self) -> str:
        return ""

    def now(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)
