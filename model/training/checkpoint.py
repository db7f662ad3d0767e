"""Checkpoints that survive kill -9, a full disk and a flipped bit; no pickle.

A checkpoint is the directory step_NNNNNNNNN: model.safetensors, optimizer.safetensors and state.json,
which is written last and holds size and SHA-256 of the other two and of itself. The directory is
filled under another name and renamed, so a checkpoint is there as a whole or not at all.
`publish_final` and `load_final` do the same for the finished model. A Writer does it in a thread.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.errors import DailyTrainError, reason_of, regular_file
from model.files import file_sha256, sync, write_json
from model.network.config import GPTConfig, parse
from model.network.gpt import GPT

KEPT = 2
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError, SafetensorError)
"""What reading a damaged file may raise."""
FREE_NUMBERS = 2**24
"""Of the tables of positions, which no file holds."""
_TENSOR_FILES = ("model.safetensors", "optimizer.safetensors")
_DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Their names in a safetensors file, in the order in which the library writes them."""


class CheckpointError(DailyTrainError, RuntimeError):
    """A checkpoint or final model cannot be written or read; the message names it and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were verified; tensors are on the CPU."""

    step: int
    """Weight updates done."""
    weights: dict[str, Tensor]
    """Model parameters by name."""
    optimizer: dict[str, Tensor]
    """Optimizer.state_tensors()."""
    state: dict
    """The rest, as given to save()."""


@dataclass(frozen=True)
class FinalModel:
    """A finished run's model, ready to evaluate."""

    model: GPT
    """The network with its weights, fp32."""
    eot_token: int
    """Document separator of its tokenizer."""
    tokenizer_sha256: str | None
    """Digest of its tokenizer; null: not known."""
    record: dict
    """All of final/config.json."""


def _canonical_sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, object]:
    """Write the file that safetensors.torch.save_file would write, to the disk; its bytes and sha256.

    A thread hashes what is in memory while this one writes, so the file is not read again.
    """
    order = list(_DTYPES)
    tensors = dict(sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0])))
    header, size = {}, 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [size, size := size + tensor.nbytes],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    parts: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    parts += [tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data for tensor in tensors.values()]
    digest = hashlib.sha256()
    with ThreadPoolExecutor(1) as hasher, open(path, "wb") as file:
        hasher.map(digest.update, parts)
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": sum(map(len, parts)), "sha256": digest.hexdigest()}


def _publish_directory(
    directory: Path, tensors: dict[str, dict[str, Tensor]], record_name: str, make_record: Callable[[dict], dict]
) -> None:
    """Fill a hidden directory and rename it; `make_record` gets {file: {bytes, sha256}}."""
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        files = {}
        for name, content in tensors.items():
            files[name] = write_tensors(temporary / name, {key: value.detach().cpu() for key, value in content.items()})
        write_json(temporary / record_name, make_record(files))
        sync(temporary)
        shutil.rmtree(directory, ignore_errors=True)  # only a damaged one can be in the way
        os.rename(temporary, directory)
        sync(directory.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"cannot write {directory}: {error}") from error


def save(directory: Path, step: int, weights: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict) -> Path:
    """Write checkpoint `step` and drop all but the last two."""
    path = Path(directory) / f"step_{step:09d}"

    def make_record(files: dict) -> dict:
        record = {"step": step, "files": files, "state": state}
        return record | {"sha256": _canonical_sha256(record)}

    _publish_directory(path, dict(zip(_TENSOR_FILES, (weights, optimizer))), "state.json", make_record)
    for old in sorted(path.parent.glob("step_*"))[:-KEPT]:
        shutil.rmtree(old)
    return path


class Writer:
    """Writes checkpoints in a thread, one at a time: the caller waits for a copy of the state on the CPU
    only, on a GPU not even for that, because the copies are queued before the next step's work.

    An error of the thread is raised by the next call of any method.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._written: list[int] = []
        self._copies: dict[tuple[str, str], Tensor] = {}  # kept: pinning memory is slow

    def save(
        self, step: int, weights: Iterable[tuple[str, Tensor]], optimizer: Iterable[tuple[str, Tensor]], state: dict
    ) -> None:
        """Begin to write checkpoint `step`, when the one before is written; tensors may change on return."""
        self.wait()
        files = [
            {name: self._copy(file, name, tensor) for name, tensor in tensors}
            for file, tensors in zip(_TENSOR_FILES, (weights, optimizer))
        ]
        copied = torch.cuda.Event() if torch.cuda.is_available() else None
        if copied is not None:
            copied.record()
        self._thread = threading.Thread(target=self._write, args=(step, *files, state, copied))
        self._thread.start()

    def _copy(self, file: str, name: str, tensor: Tensor) -> Tensor:
        if (file, name) not in self._copies:
            self._copies[file, name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return self._copies[file, name].copy_(tensor.detach(), non_blocking=True)

    def _write(
        self,
        step: int,
        weights: dict[str, Tensor],
        optimizer: dict[str, Tensor],
        state: dict,
        copied: torch.cuda.Event | None,
    ) -> None:
        try:
            if copied is not None:
                copied.synchronize()
            save(self.directory, step, weights, optimizer, state)
            self._written.append(step)
        except BaseException as error:  # raised again where somebody can end the run
            self._error = error

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def written(self) -> list[int]:
        """Steps whose checkpoints were finished since the last call."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        steps, self._written = self._written, []
        return steps

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._written = self.written()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if self._thread is not None:
            self._thread.join()  # an exception that is under way tells more than the writer's
        if kind is None:
            self.wait()


def load(path: Path) -> Checkpoint:
    """Read one checkpoint; raises CheckpointError unless every byte is what was written."""
    try:
        record = json.loads(regular_file(path / "state.json").read_text())
        digest = record.pop("sha256")
        if digest != _canonical_sha256(record):
            raise CheckpointError(f"{path / 'state.json'}: does not match its own SHA-256")
        for name, expected in record["files"].items():
            if (digest := file_sha256(path / name)) != expected["sha256"]:
                raise CheckpointError(f"{path / name}: SHA-256 is {digest}, expected {expected['sha256']}")
        weights, optimizer = (load_file(path / name) for name in _TENSOR_FILES)
        return Checkpoint(record["step"], weights, optimizer, record["state"])
    except DAMAGE as error:
        raise CheckpointError(f"{path}: is not a checkpoint: {type(error).__name__}: {reason_of(error)}") from error


def latest(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest intact checkpoint, or None, and why newer ones were passed over."""
    refused: list[str] = []
    for path in sorted(Path(directory).glob("step_*"), reverse=True):
        try:
            return load(path), refused
        except CheckpointError as error:
            refused.append(str(error))
    return None, refused


def publish_final(directory: Path, model: GPT, eot_token: int, tokenizer_sha256: str | None, result: dict) -> None:
    """Write the finished model: model.safetensors and config.json, both the same for equal runs."""

    def make_record(files: dict) -> dict:
        return {
            "model": asdict(model.config),
            "eot_token": eot_token,
            "tokenizer_sha256": tokenizer_sha256,
            "model_sha256": files[_TENSOR_FILES[0]]["sha256"],
            "result": result,
        }

    weights = {name: value.float() for name, value in model.state_dict().items()}
    _publish_directory(Path(directory), {_TENSOR_FILES[0]: weights}, "config.json", make_record)


def read_final(directory: Path) -> dict | None:
    """config.json of a finished model, or None when it is not there or its weights are damaged."""
    try:
        record = json.loads(regular_file(Path(directory) / "config.json").read_text())
        intact = file_sha256(Path(directory) / _TENSOR_FILES[0]) == record["model_sha256"]
    except DAMAGE:
        return None
    return record if intact else None


def load_final(directory: Path, device: str = "cpu") -> FinalModel:
    """The finished model of a run, for evaluation."""
    record = read_final(directory)
    if record is None:
        raise CheckpointError(f"{directory}: holds no intact finished model")
    try:
        config = parse(GPTConfig, record["model"], "model")
        weights = load_file(Path(directory) / _TENSOR_FILES[0])
        _require_fit(config, weights)
        model = GPT(config)
        model.load_state_dict(weights)
        return FinalModel(
            model.to(torch.device(device)).eval(), record["eot_token"], record["tokenizer_sha256"], record
        )
    except (*DAMAGE, CheckpointError) as error:
        raise CheckpointError(
            f"{directory}: its config.json and model.safetensors do not belong together: {reason_of(error)}"
        ) from error


def _require_fit(config: GPTConfig, weights: dict[str, Tensor]) -> None:
    """Compare the sizes of a network with its weights, before memory is taken for it."""
    numbers = sum(weight.numel() for weight in weights.values())
    if config.depth > len(weights):
        raise CheckpointError(f"depth is {config.depth}, but there are {len(weights)} tensors")
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in GPT(config).state_dict().items()}
    weight_shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    for name in sorted(shapes.keys() | weight_shapes.keys()):
        if shapes.get(name) != weight_shapes.get(name):
            raise CheckpointError(f"{name} should have the shape {shapes.get(name)}, but has {weight_shapes.get(name)}")
    if config.sequence_length * config.rotary_size > FREE_NUMBERS + 100 * numbers:
        raise CheckpointError(f"sequence_length is {config.sequence_length}, far too long for {numbers} weights")
