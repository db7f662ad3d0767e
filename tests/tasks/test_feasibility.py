"""A run that its machine cannot train is refused in one sentence, before anything is downloaded."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from deployments.cli.commands import main
from flows.daily import daily_train
from flows.preset_files import Preset
from flows.run_config import compose, context_of
from model.network import flops
from model.network.config import GPTConfig
from model.parsing import ConfigError
from model.planning.plan import memory_bytes
from model.planning.projection import memory
from model.training.config import TrainConfig
from tasks import feasibility
from tasks.feasibility import FeasibilityError, most_flops, require_feasible
from tasks.preflight import check_run
from tasks.store import provenance
from tasks.store.context import Execution, RunContext
from tasks.store.source_digest import model_source_digest
from tasks.store.stage import Stage, build_or_skip

ROOT = Path(__file__).resolve().parents[2]
TINY = {"depth": 2, "width": 32, "heads": 2, "sequence_length": 64, "window_pattern": "L", "value_embeddings": False}
SMI = """#!/bin/sh
case "$*" in *driver*) echo 535.104.05;; *name*) echo "NVIDIA H100 80GB HBM3";; esac
"""


def place_at(folder: Path, **settings: Any) -> RunContext:
    return context_of(Execution(store=str(folder / "store"), **settings), {})


def training(preset: str = "daily", **train: Any) -> tuple[GPTConfig, TrainConfig]:
    run = compose(preset, {"model": TINY, "train": {"precision": "bf16"} | train})
    return run.model, run.train


def write_weights(work: Path, out: Path) -> None:
    (out / "model").write_text("weights")


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Callable[..., str]]:
    """Calls `daily-train run` and returns the line that it ends with; `tools` is a folder of programs it finds."""

    def call(*arguments: str, tools: Path | None = None) -> str:
        provenance.hardware.cache_clear()
        provenance.gpu_driver.cache_clear()
        with monkeypatch.context() as changed:
            if tools is not None:
                changed.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
            assert main(["run", *arguments]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        return said

    feasibility._projected.cache_clear()
    yield call
    for kept in (provenance.hardware, provenance.gpu_driver, feasibility._projected):
        kept.cache_clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The machine has an H100 with as many bytes as a test says; the child process is replaced by what it computes."""
    machine: dict[str, Any] = {
        "event": "projection",
        "device": "cuda",
        "name": "NVIDIA H100 80GB HBM3",
        "torch": "2.13.0+cu130",
        "cuda": "13.0",
        "device_bytes": 10**9,
        "hours": 1.0,
        "started": 0,
    }

    def child(module: str, config: dict, work: Path, on_event: Any) -> None:
        machine["started"] += 1
        found = []
        for one in config["trainings"]:
            model, train = GPTConfig(**one["model"]), TrainConfig(**one["train"])
            found.append({"hours": machine["hours"], **memory(model, train, machine["device_bytes"])})
        on_event({**machine, "trainings": found})

    monkeypatch.setattr(feasibility, "run_module", child)
    monkeypatch.setattr(provenance, "gpu_driver", lambda: "580.65.06")
    feasibility._projected.cache_clear()
    yield machine
    feasibility._projected.cache_clear()


def test_the_daily_preset_on_a_machine_without_a_gpu(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "deployments.cli.commands",
        "run",
        "--preset",
        "daily",
        "--store",
        str(tmp_path / "store"),
    ]
    before = os.times()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    after = os.times()
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stdout + done.stderr
    assert "is projected to take" in done.stderr and "hours on the CPU of this machine" in done.stderr
    assert (
        "more than max_hours 48; raise max_hours, choose a smaller preset or budget, or use a machine with"
        in done.stderr
    )
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert seconds < 15, "of processor time"
    assert files(tmp_path) == []


def test_a_gpu_that_torch_does_not_see_is_named_with_driver_and_wheel(tmp_path: Path, refused: Callable[..., str]):
    tool, store = tmp_path / "bin" / "nvidia-smi", ["--store", str(tmp_path / "store")]
    tool.parent.mkdir()
    tool.write_text(SMI)
    tool.chmod(0o755)
    said = refused(*store, tools=tool.parent)  # the default preset of a machine with one
    assert "hours on the CPU of this machine" in said and "finds no GPU although this machine has one" in said
    assert "built without CUDA" in said and "install the wheel of torch" in said
    said = refused("--preset", "smoke", "--device", "cuda", *store, tools=tool.parent)
    assert "device is 'cuda', but torch" in said and "finds no GPU although this machine has one" in said
    said = refused("--preset", "smoke", "--device", "cuda", *store)
    assert said == "daily-train: error: device is 'cuda', but this machine has no NVIDIA GPU\n"
    assert files(tmp_path / "store") == []


@pytest.mark.parametrize(
    ("driver", "cuda", "advice"),
    [
        ("535.104.05", "13.0", "its driver 535.104.05 is too old for that wheel, which needs 580 or newer; update the"),
        ("580.65.06", "13.0", "with driver 580.65.06: check that nvidia-smi lists it"),
        ("535.104.05", "12.8", "with driver 535.104.05: check that nvidia-smi lists it"),
        ("", "13.0", "with driver of unknown version: check that nvidia-smi lists it"),
        ("535.104.05", None, "install the wheel of torch for your CUDA"),
    ],
)
def test_why_torch_sees_no_gpu(driver: str, cuda: str | None, advice: str):
    assert advice in feasibility.why_no_gpu({"torch": "2.13.0", "cuda": cuda}, driver)


def test_too_little_memory_is_refused_with_the_numbers_and_a_micro_batch(tmp_path: Path, gpu: dict):
    context, (model, train) = place_at(tmp_path), training(micro_batch_sequences=32)
    resolved = replace(model, vocab_size=512, eot_token=0)
    needed = {n: memory_bytes(resolved, replace(train, micro_batch_sequences=n))["total"] for n in (8, 16, 32)}
    gpu["device_bytes"] = round(needed[16] / 0.9) - 1
    with pytest.raises(FeasibilityError) as refused:
        require_feasible([(model, train)], 512, context)
    told = str(refused.value)
    assert f"needs {needed[32] / 1e9:.1f} GB of memory with a micro-batch of 32 sequences (" in told
    assert f"but NVIDIA H100 80GB HBM3 has {gpu['device_bytes'] / 1e9:.1f} GB" in told
    assert told.endswith("set train.micro_batch_sequences to 8") and "\n" not in told
    assert files(tmp_path) == []
    require_feasible([training(micro_batch_sequences=8)], 512, context)
    require_feasible([(model, replace(train, micro_batch_sequences=None))], 512, context)  # the largest that fits

    feasibility._projected.cache_clear()
    gpu["device_bytes"] = 1000
    with pytest.raises(FeasibilityError, match="not even one sequence fits: set a smaller model"):
        require_feasible([(model, train)], 512, context)


def test_what_fits_is_kept_until_code_configuration_or_machine_change(
    tmp_path: Path, gpu: dict, monkeypatch: pytest.MonkeyPatch
):
    def planned(*trainings: tuple[GPTConfig, TrainConfig], **settings: Any) -> bool:
        """Whether a child process was needed, in a new process of the run."""
        feasibility._projected.cache_clear()
        before = gpu["started"]
        require_feasible(trainings, 512, place_at(tmp_path, **settings))
        return gpu["started"] > before

    small = training(micro_batch_sequences=2)
    assert planned(small) and not planned(small) and not planned(training(micro_batch_sequences=2, seed=3))
    assert planned(training(micro_batch_sequences=4)) and planned(small, usd_per_hour=9.0)
    gpu["hours"] = 30.0
    assert small[1].tokens is not None
    longer = training(micro_batch_sequences=2, tokens=2 * small[1].tokens)
    with pytest.raises(FeasibilityError, match="2 trainings are together projected to take 60 hours on NVIDIA H100"):
        planned(longer, longer)
    assert planned(longer, longer, max_hours=60.0) and not planned(longer, max_hours=31.0)
    with pytest.raises(FeasibilityError, match="the training is projected to take 30 hours"):
        planned(longer, max_hours=29.0)
    monkeypatch.setattr(provenance, "gpu_driver", lambda: "590.1")
    assert planned(small)
    monkeypatch.setattr(feasibility, "model_source_digest", lambda *besides: "another")
    assert planned(small)


def test_what_the_store_holds_already_is_not_refused(tmp_path: Path, gpu: dict):
    context, (model, train) = place_at(tmp_path), training()
    gpu["device_bytes"] = 1000
    stage = Stage(
        name="train",
        version=1,
        config={"model": asdict(model), "train": asdict(train), "prompts": []},
        inputs={"shards": "x", "model_source": model_source_digest()},
    )
    context.store.publish("stages/train/0/manifest.json", b'{"config": "of nobody"')
    build_or_skip(stage, context, write_weights)
    require_feasible([(model, train)], 512, context)
    with pytest.raises(FeasibilityError):
        require_feasible([(model, replace(train, learning_rate=0.5))], 512, context)


def test_a_budget_in_dollars_needs_a_price(tmp_path: Path):
    run = compose("smoke", {"train": {"usd": 0.01}})
    with pytest.raises(ConfigError, match=r"needs the price of the machine: execution\.usd_per_hour is 0"):
        require_feasible([(run.model, run.train)], 1024, place_at(tmp_path, usd_per_hour=0.0, device="cpu"))


@pytest.mark.parametrize("preset", list(Preset))
def test_the_bound_on_flops_holds_and_spares_the_small_presets_a_process(preset: Preset, monkeypatch, tmp_path):
    run = compose(preset, {})
    model = replace(run.model, vocab_size=run.model.vocab_size or run.tokenizer.entries)
    budget = (run.train.tokens or 0) * flops.flops_per_token(model, model.sequence_length) or run.train.flops
    assert budget is not None
    assert budget <= most_flops(model, run.train) < 20 * budget

    def child(*arguments: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(feasibility, "run_module", child)
    monkeypatch.setattr(provenance, "gpu_driver", lambda: None)
    if preset in ("laptop", "smoke", "study"):
        require_feasible([(run.model, run.train)], run.tokenizer.entries, place_at(tmp_path))


def test_a_flow_asks_before_it_downloads(tmp_path: Path, gpu: dict, monkeypatch: pytest.MonkeyPatch):
    gpu["device_bytes"] = 1000
    monkeypatch.setattr("flows.daily.prepare", lambda run, context: pytest.fail("it went on to the data"))
    monkeypatch.setattr("flows.daily.check_run", check_run.fn)
    with pytest.raises(FeasibilityError, match=r"needs .* GB of memory"):
        daily_train.fn(preset=Preset("smoke"), execution=Execution(store=str(tmp_path / "store")))
