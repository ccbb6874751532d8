"""Splits are disjoint, complete, stratified and repeatable."""

from dataclasses import dataclass, replace

import pytest
import torch

from nas.data import Dataset, Images, Memory, Samples
from nas.data.splits import statistics, stratified_order
from nas.errors import DataError
from nas.randomness import generator
from nas.space import Task

NAMES = ("train", "arch", "select", "test")


@dataclass(frozen=True, kw_only=True)
class Numbered(Dataset):
    """Images that carry their number in two channels, sorted by class."""

    counts: tuple[int, ...] = (300, 300, 300)
    tested: int = 0

    def task(self):
        return Task(2, 1, 1, len(self.counts))

    def read(self):
        labels = torch.arange(len(self.counts)).repeat_interleave(torch.tensor(self.counts))
        labels = torch.cat([labels, labels[: self.tested]])
        number = torch.arange(len(labels))
        images = torch.stack([number // 256, number % 256], 1).to(torch.uint8)[:, :, None, None]
        return Samples(Memory(images), labels, self.tested)


def numbers(images):
    return (images.take(torch.arange(len(images))).long()[:, :, 0, 0] @ torch.tensor([256, 1])).tolist()


COUNTS = [(300, 300, 300), (7, 500, 40, 3), (1, 1, 1, 1, 90), (2, 2)]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("tested", [0, 2])
def test_splits_are_disjoint_and_cover_everything(counts, tested):
    dataset = Numbered(counts=counts, tested=tested)
    splits = dataset.load()
    found = [number for name in NAMES for number in numbers(getattr(splits, name))]
    assert sorted(found) == list(range(sum(counts) + tested))
    if tested:
        assert sorted(numbers(splits.test)) == list(range(sum(counts), sum(counts) + tested))


def test_labels_belong_to_their_images():
    dataset = Numbered()
    labels, splits = dataset.read().labels, dataset.load()
    for name in NAMES:
        split = getattr(splits, name)
        assert torch.equal(split.labels, labels[numbers(split)])


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("seed", range(5))
def test_any_stretch_holds_every_class_in_proportion(counts, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = stratified_order(labels, generator(seed, "order"))
    assert sorted(order.tolist()) == list(range(len(labels)))
    sizes = torch.tensor(counts, dtype=torch.float64)
    for start, end in torch.randint(len(labels) + 1, (50, 2), generator=generator(seed, "ends")).sort(1)[0].tolist():
        found = labels[order[start:end]].bincount(minlength=len(counts))
        # One share s of the whole explains all counts: |found - s * size| < 1 for every class.
        assert ((found - 1) / sizes).max() < ((found + 1) / sizes).min()


def test_equal_classes_are_divided_equally():
    splits = Numbered().load()
    assert [getattr(splits, name).labels.bincount().tolist() for name in NAMES] == [
        [108] * 3,
        [108] * 3,
        [24] * 3,
        [60] * 3,
    ]


def test_limit_keeps_the_first_samples_of_each_split_balanced():
    dataset = Numbered()
    whole, limited = dataset.load(), replace(dataset, limit=9).load()
    for name in NAMES:
        split = getattr(limited, name)
        assert numbers(split) == numbers(getattr(whole, name))[:9]
        assert split.labels.bincount().tolist() == [3, 3, 3]
    assert isinstance(limited.train.pixels, Memory)
    assert len(limited.train.pixels.tensor) == 36  # the other images are not kept


def test_splits_depend_on_split_seed_alone():
    first, again = Numbered().load(), Numbered().load()
    other = Numbered(split_seed=1).load()
    assert all(numbers(getattr(first, name)) == numbers(getattr(again, name)) for name in NAMES)
    assert all(numbers(getattr(first, name)) != numbers(getattr(other, name)) for name in NAMES)


def test_arch_fraction_changes_neither_test_nor_select():
    first, other = Numbered().load(), Numbered(arch_fraction=0.25).load()
    assert numbers(first.test) == numbers(other.test)
    assert numbers(first.select) == numbers(other.select)
    assert len(other.arch) == 162


def test_too_few_samples_are_an_error():
    with pytest.raises(DataError, match="3 samples are too few for the splits train, arch, select and test"):
        Numbered(counts=(2, 1)).load()
    with pytest.raises(DataError, match="2 samples are too few for the splits train, arch and select"):
        Numbered(counts=(1, 1), tested=1).load()


@pytest.mark.parametrize(
    "settings", [{"limit": 0}, {"select_fraction": 0.0}, {"arch_fraction": 1.0}, {"test_fraction": -1}]
)
def test_a_setting_out_of_range_is_named(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"^{name} must "):
        Numbered(**settings)


def test_joined_splits_hold_both():
    splits = Numbered().load()
    joined = splits.train + splits.arch
    assert numbers(joined) == numbers(splits.train) + numbers(splits.arch)
    assert torch.equal(joined.labels, torch.cat([splits.train.labels, splits.arch.labels]))
    assert numbers(joined.first(5)) == numbers(splits.train)[:5]


def test_mean_and_deviation_are_those_of_train_and_arch():
    splits = Numbered().load()
    images = torch.cat([split.take(torch.arange(len(split))) for split in (splits.train, splits.arch)])
    deviation, mean = torch.std_mean(images.double() / 255, (0, 2, 3), correction=0)
    # Two exact formulas in float64 over 648 values.
    torch.testing.assert_close(torch.tensor(splits.mean).double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor(splits.deviation).double(), deviation, rtol=1e-6, atol=0)


def test_a_constant_channel_is_normalised_to_zero():
    images = Images.of(torch.full((4, 1, 2, 2), 51, dtype=torch.uint8), torch.zeros(4).long())
    assert statistics(images) == ((0.2,), (1 / 255,))
