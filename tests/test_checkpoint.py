"""Checkpoints: what comes back, what is noticed, and what survives a crash at any point."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from pprint import pformat

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from nas.checkpoint import latest, load, optimizer_tensors, restore_optimizer, save
from nas.errors import CheckpointError, ResourceError

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}
STATE = {"epoch": 2, "best": 0.5, "name": "ä"}


def put(folder: Path, step: int, value: float = 0.0, keep: int = 2) -> Path:
    return save(folder, step, {"weights": {"w": torch.full((4,), value)}}, {"value": value}, keep)


def bytes_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_comes_back(tmp_path):
    path = save(tmp_path / "checkpoints", 123, {"weights": WEIGHTS, "empty": {}}, STATE)
    assert path == tmp_path / "checkpoints" / "step-000123"
    found = load(path)
    assert (found.step, found.state, found.path) == (123, STATE, path)
    assert found.tensors.keys() == {"weights", "empty"}
    assert not found.tensors["empty"]
    assert found.tensors["weights"].keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert torch.equal(found.tensors["weights"][name], tensor)


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "uint16", "int64", "float8_e4m3fn", "float16", "bfloat16", "float64", "complex64"],
)
def test_every_dtype_comes_back(tmp_path, dtype):
    dtype = getattr(torch, dtype)
    tensor = torch.tensor([0, 1, 1, 0]).to(dtype)
    found = load(save(tmp_path, 1, {"x": {"t": tensor, "none": tensor[:0]}}, {})).tensors["x"]
    assert found["t"].dtype == found["none"].dtype == dtype
    assert found["t"].view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist()
    assert found["none"].shape == (0,)


def test_views_and_shared_storage_come_back(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"base": base, "same": base, "turned": base.T, "part": base[1:, ::2], "point": base[2, 3]}
    tensors["parameter"] = nn.Parameter(base)
    tensors["last"] = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    found = load(save(tmp_path, 0, {"x": tensors}, {})).tensors["x"]
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name
    found["base"].add_(1)  # what comes back is writable and shares nothing
    assert torch.equal(found["same"], base)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_tensor_on_a_gpu_comes_back_on_the_cpu(tmp_path):
    found = load(save(tmp_path, 0, {"x": {"t": torch.ones(3, device="cuda")}}, {})).tensors["x"]["t"]
    assert found.device.type == "cpu"
    assert torch.equal(found, torch.ones(3))


def test_equal_content_gives_equal_bytes(tmp_path):
    one = save(tmp_path / "one", 7, {"weights": WEIGHTS, "logits": WEIGHTS}, {"x": 1, "y": 2})
    turned = dict(reversed(WEIGHTS.items()))
    two = save(tmp_path / "two", 7, {"logits": turned, "weights": turned}, {"y": 2, "x": 1})
    assert bytes_of(one) == bytes_of(two)


def test_the_manifest_lists_every_file_and_nothing_is_a_pickle(tmp_path):
    path = save(tmp_path, 7, {"weights": WEIGHTS}, STATE)
    assert sorted(bytes_of(path)) == ["manifest.json", "state.json", "weights.safetensors"]
    manifest = json.loads((path / "manifest.json").read_text())
    assert {name: entry["size"] for name, entry in manifest["files"].items()} == {
        name: len(data) for name, data in bytes_of(path).items() if name != "manifest.json"
    }
    for name, data in bytes_of(path).items():
        assert not data.startswith((b"\x80", b"PK")), name
    assert b"__metadata__" not in (path / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused_in_the_state(tmp_path, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(tmp_path, 1, {}, {"loss": number})
    assert steps(tmp_path) == []


# --- optimizers


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))


def train(model: nn.Module, optimizer: Optimizer, start: int, stop: int) -> None:
    for step in range(start, stop):
        images = torch.rand(4, 2, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda model: SGD(model.parameters(), lr=0.01),
    "momentum": lambda model: SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda model: Adam(model.parameters(), lr=0.01, betas=(0.5, 0.999)),
    "adamw": lambda model: AdamW(model.parameters(), lr=0.01, amsgrad=True),
    "groups": lambda model: Adam([{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(model.parameters())]),
    "named": lambda model: AdamW(model.named_parameters(), lr=0.01),
    "tensor rate": lambda model: Adam(model.parameters(), lr=torch.tensor(0.01)),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_goes_on_bit_for_bit(tmp_path, kind):
    straight, resumed = network(), network()
    optimizer = OPTIMIZERS[kind](straight)
    train(straight, optimizer, 0, 3)
    tensors, state = optimizer_tensors(optimizer)
    found = load(save(tmp_path, 3, {"weights": straight.state_dict(), "optimizer": tensors}, {"optimizer": state}))

    resumed.load_state_dict(found.tensors["weights"])
    other = OPTIMIZERS[kind](resumed)
    restore_optimizer(other, found.tensors["optimizer"], found.state["optimizer"])
    assert pformat(other.state_dict()) == pformat(optimizer.state_dict())  # sorts the keys
    before = {name: tensor.clone() for name, tensor in found.tensors["optimizer"].items()}
    train(straight, optimizer, 3, 6)
    train(resumed, other, 3, 6)
    for one, two in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
    for name, tensor in before.items():  # training leaves the checkpoint in memory alone
        assert torch.equal(found.tensors["optimizer"][name], tensor)


@pytest.mark.parametrize("cls", [SGD, Adam, AdamW])
def test_a_fused_optimizer_goes_on_for_weights_in_another_memory_format(cls):
    """A checkpoint is plain; fused steps read weight, gradient and state in the order of memory."""

    def build():
        model = network().to(memory_format=torch.channels_last)
        return model, cls(model.parameters(), lr=0.01, fused=True, **({"momentum": 0.9} if cls is SGD else {}))

    (straight, one), (resumed, two) = build(), build()
    train(straight, one, 0, 3)
    tensors, state = optimizer_tensors(one)
    resumed.load_state_dict(straight.state_dict())
    restore_optimizer(two, {name: tensor.contiguous() for name, tensor in tensors.items()}, state)
    train(straight, one, 3, 6)
    train(resumed, two, 3, 6)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_an_optimizer_of_another_network_is_refused():
    model = network()
    tensors, state = optimizer_tensors(SGD(model.parameters(), lr=0.1))
    with pytest.raises(CheckpointError, match="other parameters"):
        restore_optimizer(SGD([nn.Parameter(torch.ones(1))], lr=0.1), tensors, state)


# --- damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated tensors": lambda path: os.truncate(path / "weights.safetensors", 40),
    "flipped byte in the tensors": lambda path: flip(path / "weights.safetensors"),
    "flipped byte in the state": lambda path: flip(path / "state.json"),
    "no tensors": lambda path: (path / "weights.safetensors").unlink(),
    "no state": lambda path: (path / "state.json").unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "invalid JSON": lambda path: (path / "manifest.json").write_text("{"),
    "not a manifest": lambda path: (path / "manifest.json").write_text("[]"),
    "not text": lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe"),
    "not finite": lambda path: (path / "manifest.json").write_text('{"step": NaN}'),
    "another step": lambda path: edit(path / "manifest.json", lambda m: m.update(step=9)),
    "another file": lambda path: edit(path / "manifest.json", lambda m: m["files"].update({"x.safetensors": {}})),
    "a file less": lambda path: edit(path / "manifest.json", lambda m: m["files"].pop("weights.safetensors")),
    "another format": lambda path: edit(path / "manifest.json", lambda m: m.update(format=99)),
    "a folder for a file": lambda path: ((path / "state.json").unlink(), (path / "state.json").mkdir()),
    "empty": lambda path: (shutil.rmtree(path), path.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_noticed_and_an_older_checkpoint_taken(tmp_path, kind, caplog):
    older, newest = put(tmp_path, 1, 1.0), put(tmp_path, 2, 2.0)
    DAMAGE[kind](newest)
    with pytest.raises(CheckpointError, match="step-000002") as caught:
        load(newest)
    assert caught.value.exit_code == 4
    with caplog.at_level(logging.WARNING, logger="nas"):
        assert latest(tmp_path).path == older
    assert [record.name for record in caplog.records] == ["nas"]
    assert "step-000002" in caplog.text

    DAMAGE[kind](older)
    with pytest.raises(CheckpointError, match="step-000002"):
        latest(tmp_path)
    put(tmp_path, 2, 2.0)  # and a run that gets this far again mends it
    assert latest(tmp_path).step == 2


def test_without_checkpoints_there_is_no_latest(tmp_path):
    assert latest(tmp_path / "nothing") is None
    assert latest(tmp_path) is None
    (tmp_path / "step-notes.txt").touch()
    (tmp_path / ".step-000003.tmp").mkdir()
    assert latest(tmp_path) is None


# --- saving again, keeping, crashing


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    for step in (8, 9, 10, 999_999, 1_000_000):
        put(tmp_path, step, keep=keep)
    assert latest(tmp_path).step == 1_000_000
    expected = [1_000_000, 999_999, 10][:keep]
    assert steps(tmp_path) == sorted(f"step-{step:06d}" for step in expected)


def test_saving_an_earlier_step_rewinds(tmp_path):
    put(tmp_path, 100, 1.0)
    flip(put(tmp_path, 200, 2.0) / "state.json")
    put(tmp_path, 150, 3.0, keep=1)
    assert steps(tmp_path) == ["step-000150"]


def test_saving_the_same_again_writes_nothing(tmp_path, monkeypatch):
    path = put(tmp_path, 5, 1.0)
    inode = path.stat().st_ino
    put(tmp_path, 5, 1.0)
    assert path.stat().st_ino == inode
    put(tmp_path, 5, 2.0)
    assert latest(tmp_path).state == {"value": 2.0}
    assert steps(tmp_path) == ["step-000005"]


class Killed(BaseException):
    pass


def crashing(monkeypatch: pytest.MonkeyPatch, survive: int) -> None:
    """Lets `survive` calls to the file system happen, then dies instead of the next, and of every later one."""
    left = iter(range(survive))

    def dying(call: Callable) -> Callable:
        def run(*args: object, **kwargs: object) -> object:
            if next(left, None) is None:
                raise Killed
            return call(*args, **kwargs)

        return run

    for place, name in [(os, "fsync"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")]:
        monkeypatch.setattr(place, name, dying(getattr(place, name)))


@pytest.mark.parametrize("step", [2, 3], ids=["the same step", "the next step"])
def test_a_crash_at_any_point_leaves_a_valid_checkpoint(tmp_path, monkeypatch, caplog, step):
    for survive in range(100):
        folder = tmp_path / str(survive)
        put(folder, 1, 1.0)
        put(folder, 2, 2.0)
        with monkeypatch.context() as patch:
            crashing(patch, survive)
            try:
                put(folder, step, 3.0, keep=1)
                finished = True
            except Killed:
                finished = False
        assert latest(folder).state["value"] == 3.0 if finished else latest(folder).state["value"] in (2.0, 3.0)
        put(folder, step, 3.0, keep=1)
        assert steps(folder) == [f"step-{step:06d}"]
        assert latest(folder).state == {"value": 3.0}
        if finished:
            assert not caplog.records  # a crash of ours never looks like damage
            return
    pytest.fail("saving takes more than 100 calls")


KILL = """
import os, random, signal, sys, time, warnings
from pathlib import Path
import torch
from nas.checkpoint import latest, save

warnings.simplefilter("ignore")  # fork in a process with threads: the child touches none of them
folder = Path(sys.argv[1])
random.seed(0)
for round in range(15):
    found = latest(folder)
    start = found.step + 1 if found else 0
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        for step in range(start, 10**6):
            save(folder, step, {"w": {"t": torch.full((1000,), float(step))}}, {"step": step})
            os.write(tell, b"%8d" % step)
    os.close(tell)
    heard = os.read(told, 8)
    time.sleep(0.02 * random.random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    heard += os.fdopen(told, "rb").read()
    found = latest(folder)
    assert found and found.step >= int(heard[-8:]), (found, heard)
    assert found.tensors["w"]["t"].eq(found.step).all() and found.state == {"step": found.step}
print(found.step)
"""


def test_kill_9_while_saving_leaves_a_valid_latest(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILL, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 14  # 15 rounds, a step or more in each
    assert "damaged" not in done.stderr


@pytest.fixture
def full_disk(monkeypatch) -> Iterator[None]:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


def test_a_full_disk_is_reported_and_leaves_nothing_behind(tmp_path, request):
    put(tmp_path, 1, 1.0)
    request.getfixturevalue("full_disk")
    with pytest.raises(ResourceError, match=r"step-000002: No space left.*free some space"):
        put(tmp_path, 2, 2.0)
    assert steps(tmp_path) == ["step-000001"]
    assert latest(tmp_path).state == {"value": 1.0}


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"cannot write .*step-000001"):
        put(tmp_path / "file" / "checkpoints", 1)
