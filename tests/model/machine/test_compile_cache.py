"""Compiled code that is kept: used again, looked at first, and not without end."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx

import model.machine.compile_cache
from model.kernels.attention_kernels import WindowKernel, set_attention_kernels
from model.machine.compile_cache import KEPT_FOLDERS, CompiledCode
from model.network.config import GPTConfig
from model.network.fp8 import use_fp8
from model.network.gpt import GPT, initialise
from model.training.config import Precision


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.machine.compile_cache, "_CHOSEN", False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/nonexistent")


def squared(x: Tensor) -> tuple[Tensor, dict[str, int]]:
    """The compiled product of x and x, which needs no C++ compiler, and what torch counted of its cache meanwhile."""
    torch.compiler.reset()  # all that a process remembers
    torch._dynamo.utils.counters.clear()
    y = torch.compile(torch.mm, dynamic=False)(x, x)
    counted = torch._dynamo.utils.counters["aot_autograd"]
    return y, {name: count for name, count in counted.items() if "cache" in name}


def folder_of(code: CompiledCode) -> Path:
    """Where it keeps compiled code, as no variable of the environment names another folder."""
    assert code.folder is not None
    return code.folder


def files(code: CompiledCode) -> set[Path]:
    return {path for path in folder_of(code).rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_what_is_kept_is_used_again_and_nothing_of_it_when_a_file_is_damaged(tmp_path: Path):
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    code = CompiledCode(tmp_path, Precision.BF16)
    first, counted = squared(x)
    assert counted == {"autograd_cache_miss": 1, "autograd_cache_saved": 1} and len(files(code)) > 2
    code.record()
    kept = files(code)
    other = CompiledCode(tmp_path, Precision.BF16)  # the first is in use: what is there is left alone
    again, counted = squared(x)
    assert counted == {"autograd_cache_hit": 1} and torch.equal(first, again)
    (folder_of(code) / "cut_short.py").touch()
    assert CompiledCode(tmp_path, Precision.BF16).folder == other.folder != CompiledCode(tmp_path, Precision.FP8).folder
    assert (folder_of(code) / "cut_short.py").exists()
    del code, other
    code = CompiledCode(tmp_path, Precision.BF16)
    assert files(code) == kept
    written = next(path for path in kept if path.suffix == ".py")
    written.write_text(written.read_text()[:-1])
    del code
    assert files(CompiledCode(tmp_path, Precision.BF16)) == {next(path for path in kept if path.name == "files.json")}


def test_only_the_newest_folders_stay_and_those_in_use(tmp_path: Path):
    for age in range(1, KEPT_FOLDERS + 3):
        (tmp_path / f"old_{age}").mkdir()
        os.utime(tmp_path / f"old_{age}", (1e9 - age, 1e9 - age))
    code = CompiledCode(tmp_path, Precision.BF16)
    newest = {folder_of(code).name} | {f"old_{age}" for age in range(1, KEPT_FOLDERS)}
    assert {path.name for path in tmp_path.iterdir()} == newest
    os.utime(folder_of(code), (0, 0))
    for number in range(KEPT_FOLDERS):
        (tmp_path / f"new_{number}").mkdir()
    CompiledCode(tmp_path, Precision.FP8)
    assert folder_of(code).exists()


@pytest.mark.parametrize("recorded", [True, False])
def test_torch_may_keep_the_whole_training_graph(tmp_path: Path, recorded: bool, monkeypatch: pytest.MonkeyPatch):
    """fp8's own function and cuDNN's operator included; without the settings of CompiledCode it may not."""
    from torch._functorch._aot_autograd.autograd_cache import BypassAOTAutogradCache, check_cacheable

    if recorded:
        CompiledCode(tmp_path, Precision.FP8)
    else:
        monkeypatch.setattr(torch._inductor.config, "unsafe_marked_cacheable_functions", {})
    torch.compiler.reset()
    network = GPT(GPTConfig(depth=2, width=32, heads=2, sequence_length=16, vocab_size=40, window_pattern="SL"))
    initialise(network, 0)
    use_fp8(network, 32)
    set_attention_kernels(network, WindowKernel.CUDNN, WindowKernel.SDPA, torch.device("cpu"))
    found = []

    def backend(graph: fx.GraphModule, inputs: list) -> fx.GraphModule:
        try:
            check_cacheable(graph)
            found.append("")
        except BypassAOTAutogradCache as error:
            found.append(str(error))
        return graph

    x_BT = torch.arange(32).reshape(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        torch.compile(network, dynamic=False, backend=backend)(x_BT, x_BT)
    assert (found == [""]) if recorded else ("_enter_autocast" in found[0])
