"""Every field of the configuration: a value changes what a stage is, null too, or is refused in one sentence."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from deployments.cli import commands
from deployments.cli.arguments import changes_from
from flows.compare import compare_designs
from flows.config import SECTIONS, RunConfig, changes_of, compose, context_of, forms_of
from flows.daily import daily_train
from flows.effects import ACTS_WHEN
from flows.forms import Section
from flows.preset_files import Preset
from flows.study import contamination_study
from model.network.gpt import GPT, initialise
from model.parsing import ConfigError, field_types, parse
from tasks import contamination, download, evaluate, shard, tokenizer, train
from tasks.benchmarks import Items
from tasks.config import CompareConfig, StudyConfig
from tasks.sources.config import FilesSource, HubSource, WheelSource
from tasks.store.context import Execution
from tasks.store.manifest import Manifest, Output
from tasks.store.stage import Stage, StageResult
from tasks.token_bytes import TokenizerError

FIELDS = [(section, name) for section, kind in SECTIONS.items() for name in field_types(kind)]
SUITES = ["arc_easy", "hellaswag", "winogrande", "arc_challenge"]
MOE, ADAMW = {"model.mlp": "moe"}, {"train.optimizer": "adamw"}

# what is set besides on the preset `smoke`, and the value; each needs what is set besides
VALUES: dict[str, tuple[dict[str, Any], Any]] = {
    "data.source": ({}, {"kind": "hub", "id": "a/b", "revision": "0" * 40}),
    "data.validation_fraction": ({}, 0.2),
    "tokenizer.kind": ({}, "gpt2"),
    "tokenizer.vocab_size": ({}, 2048),
    "tokenizer.training_bytes": ({}, 1000),
    "tokenizer.path": ({"tokenizer.kind": "hub"}, f"a/b@{'0' * 40}"),
    "shard.tokens_per_shard": ({}, 4096),
    "model.depth": ({}, 3),
    "model.width": ({}, 32),
    "model.heads": ({}, 4),
    "model.kv_heads": ({}, 1),
    "model.mlp_ratio": ({}, 2),
    "model.sequence_length": ({}, 128),
    "model.vocab_size": ({}, 300),
    "model.eot_token": ({}, 5),
    "model.vocab_multiple": ({}, 7),
    "model.norm": ({}, "layer"),
    "model.position": ({}, "learned"),
    "model.attention": ({}, "mla"),
    "model.latent_size": ({"model.attention": "mla"}, 12),
    "model.window_pattern": ({}, "S"),
    "model.short_window": ({"model.window_pattern": "SL"}, 3),
    "model.document_mask": ({}, "own"),
    "model.sparse_block": ({"model.window_pattern": "N"}, 8),
    "model.sparse_blocks": ({"model.window_pattern": "N", "model.sparse_block": 4}, 1),
    "model.attention_gate": ({}, True),
    "model.activation": ({}, "gelu"),
    "model.mlp": ({}, "moe"),
    "model.experts": (MOE, 8),
    "model.experts_per_token": (MOE, 2),
    "model.shared_experts": (MOE, 0),
    "model.expert_hidden": (MOE, 24),
    "model.balance": (MOE, "loss"),
    "model.balance_rate": (MOE, 0.5),
    "model.qk_norm": ({}, False),
    "model.qk_scale": ({}, 1.5),
    "model.rotary_base": ({}, 100.0),
    "model.rotary_fraction": ({}, 0.5),
    "model.partial_key_offset": ({"model.rotary_fraction": 0.5}, True),
    "model.smear": ({}, "key"),
    "model.value_embeddings": ({}, True),
    "model.residual_lambdas": ({}, True),
    "model.embedding_lambdas": ({}, True),
    "model.backout": ({}, True),
    "model.tied_head": ({}, True),
    "model.bias": ({}, True),
    "model.zero_init_projections": ({}, False),
    "model.softcap": ({}, 15.0),
    "train.seed": ({}, 7),
    "train.tokens": ({}, 40_960),
    "train.flops": ({}, 1e12),
    "train.gpu_hours": ({}, 0.5),
    "train.usd": ({}, 0.5),
    "train.tokens_per_step": ({}, 4096),
    "train.micro_batch_sequences": ({}, 4),
    "train.rows": ({}, "documents"),
    "train.optimizer": ({}, "psgd"),
    "train.learning_rate": ({}, 0.5),
    "train.embedding_learning_rate": ({}, 0.5),
    "train.head_learning_rate": ({}, 0.5),
    "train.scalar_learning_rate": ({"model.bias": True}, 0.5),
    "train.weight_decay": ({}, 0.5),
    "train.cautious_decay": ({"train.weight_decay": 0.1}, True),
    "train.adam_beta1": ({}, 0.5),
    "train.adam_beta2": ({}, 0.5),
    "train.adam_epsilon": ({}, 0.5),
    "train.momentum": ({}, 0.5),
    "train.momentum_warmup_steps": ({}, 5),
    "train.momentum_final": ({}, 0.5),
    "train.muon_beta2": ({}, 0.5),
    "train.schedule": ({}, "cosine"),
    "train.warmup_steps": ({}, 7),
    "train.cooldown_fraction": ({}, 0.25),
    "train.final_lr_fraction": ({}, 0.25),
    "train.grad_clip": ({}, 0.5),
    "train.spike_deviations": ({}, 5.0),
    "train.spike_steps": ({}, 5),
    "train.precision": ({}, "bf16"),
    "train.fp8_smallest_size": ({"train.precision": "fp8"}, 32),
    "train.validation_every_steps": ({}, 5),
    "train.validation_tokens": ({}, 8192),
    "train.checkpoint_every_steps": ({}, 5),
    "train.log_every_steps": ({}, 5),
    "train.sample_tokens": ({}, 5),
    "evaluation.suites": ({}, ["arc_easy"]),
    "evaluation.items_per_suite": ({}, 30),
    "evaluation.seed": ({}, 3),
    "evaluation.num_fewshot": ({}, {"arc_easy": 5}),
    "evaluation.precision": ({}, "bf16"),
}
IN_NO_KEY = {
    "contamination.mode": "decides what follows from the verdicts, not the verdicts",
    "HubSource.streaming": "how the same rows travel",
}
CONTAMINATION = {"ngram": 9, "mode": "refuse", "coverage": 0.25}  # others: one more than the default


def nested(changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        section, _, field = name.partition(".")
        sections.setdefault(section, {})[field] = value
    return sections


def value_of(section: str, field: str) -> tuple[dict[str, Any], Any]:
    if section != "contamination":
        return VALUES[f"{section}.{field}"]
    default = getattr(compose("smoke", {}).contamination, field)
    return {}, CONTAMINATION.get(field, default if isinstance(default, str) else default + 1)


class Made(BaseException):
    """Instead of building a stage."""


OUTPUTS = ("tokenizer.json", "model.safetensors", "config.json")
FINISHED = StageResult(
    manifest=Manifest(
        key="",
        stage="",
        version=1,
        config={},
        inputs={},
        attempt="",
        outputs=tuple(Output(path=name, bytes=1, sha256="0") for name in OUTPUTS),
    ),
    skipped=True,
    seconds=0.0,
)


def stage_of(section: str, run: RunConfig, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Stage:
    """The stage that a section of the configuration belongs to."""

    def made(stage: Stage, *_: object) -> None:
        raise Made(stage)

    for module in (contamination, download, evaluate, shard, tokenizer, train):
        monkeypatch.setattr(module, "build_or_skip", made)
    monkeypatch.setattr(train, "budget_in_tokens", lambda model, config, *_: config)
    done, items = FINISHED, Items(dict.fromkeys(run.evaluation.suites, FINISHED), {}, {})
    context = context_of(Execution(store=str(folder), device="cpu", workers=1), {})
    with pytest.raises(Made) as caught:
        match section:
            case "data":
                download.download.fn(run.data, context)
            case "tokenizer":
                tokenizer.build_tokenizer.fn(run.tokenizer, done, context)
            case "shard":
                shard.build_shards.fn(run.shard, done, done, context)
            case "model" | "train":
                train.training_stage(run.model, run.train, done, done, None, context)
            case "contamination":
                contamination.check_contamination.fn(run.contamination, done, items, context)
            case "evaluation":
                evaluate.evaluate_model.fn(run.evaluation, done, done, items, context)
    return caught.value.args[0]


def test_the_table_has_every_field():
    known = {f"{section}.{field}" for section, field in FIELDS if section != "contamination"}
    needy = {name for name, (besides, _) in VALUES.items() if besides} - {"tokenizer.path"}
    assert known == VALUES.keys() and ACTS_WHEN.keys() == needy | WITHOUT.keys() | {"evaluation.items_per_suite"}


@pytest.mark.parametrize(("section", "field"), FIELDS, ids=map(".".join, FIELDS))
def test_a_value_takes_effect_and_not_without_what_it_needs(section, field, monkeypatch, tmp_path):
    name = f"{section}.{field}"
    besides, value = value_of(section, field)
    given = {name: value}
    if name == "tokenizer.path":
        given |= besides
        besides = {}
    before, after = compose("smoke", nested(besides)), compose("smoke", nested(besides | given))
    filled = forms_of(json.loads(json.dumps(nested(besides | given))), daily_train)
    assert compose("smoke", changes_of({}, "", **filled)) == after, "the form means something else"
    keys = [stage_of(section, run, monkeypatch, tmp_path).key for run in (before, after)]
    assert (keys[0] == keys[1]) is (name in IN_NO_KEY) and before != after
    if besides:
        with pytest.raises(ConfigError) as caught:
            compose("smoke", nested(given))
        assert "has no effect" in str(caught.value) or "partial_key_offset" in str(caught.value)


WITHOUT: dict[str, dict[str, Any]] = {
    "model.rotary_base": {"model.position": "learned"},
    "model.rotary_fraction": {"model.position": "learned"},
    "model.qk_scale": {"model.qk_norm": False},
    "model.mlp_ratio": MOE | {"model.expert_hidden": 8},
    "model.partial_key_offset": {"model.rotary_fraction": 0.5, "model.window_pattern": "S"},
    "train.head_learning_rate": {"model.tied_head": True},
    "train.spike_steps": {"train.spike_deviations": None},
    "train.momentum": ADAMW,
    "train.momentum_warmup_steps": ADAMW,
    "train.momentum_final": ADAMW,
    "train.muon_beta2": {"train.optimizer": "psgd"},
    "train.cooldown_fraction": {"train.schedule": "cosine"},
    "tokenizer.training_bytes": {"tokenizer.kind": "gpt2"},
    "evaluation.seed": {"evaluation.items_per_suite": None},
}


@pytest.mark.parametrize("name", sorted(ACTS_WHEN))
def test_what_another_setting_overrides_is_refused(name: str):
    """Both ways round: the table above has what is needed, this one what switches off."""
    besides: dict[str, Any] = WITHOUT.get(name, {})
    value: Any = {"evaluation.items_per_suite": 10_042}.get(name, VALUES[name][1])
    with pytest.raises(ConfigError, match=f"{name} .* has no effect: it acts where"):
        compose("smoke", nested(besides | {name: value}))


def in_one_sentence(error: Exception) -> bool:
    return isinstance(error, ConfigError) and "\n" not in str(error) and len(str(error)) > 20


@pytest.mark.parametrize(("section", "field"), FIELDS, ids=map(".".join, FIELDS))
def test_null_takes_effect_or_is_refused(section: str, field: str):
    """Through --set and through the form, on presets that have a value there and on others."""
    annotation = get_type_hints(SECTIONS[section])[field]
    optional, taken = type(None) in get_args(annotation), 0
    for preset in ("smoke", "daily", "gpt2-124m", "nanopoor"):
        changes = changes_from([f"{section}.{field}=null"])
        assert changes == {section: {field: None}}
        try:
            run = compose(preset, changes)
        except ConfigError as error:
            assert in_one_sentence(error) and field.split("_")[0] in str(error).replace("hub", "")
            continue
        assert optional and getattr(getattr(run, section), field) is None
        assert compose(preset, changes_of({}, "", **forms_of(changes, daily_train))) == run
        taken += 1
    needed = {"train.tokens", "tokenizer.vocab_size"}  # one budget there must be, and a size of a trained tokenizer
    assert taken or not optional or f"{section}.{field}" in needed


def scalar_types(annotation: Any) -> set[type]:
    """Which scalars an annotation takes, in its members and elements too; a choice of texts is text."""
    if get_origin(annotation) is Literal:
        return {str}
    if arguments := get_args(annotation):
        return set().union(*map(scalar_types, arguments))
    known = [kind for kind in (bool, int, float, str) if isinstance(annotation, type) and issubclass(annotation, kind)]
    return set(known[:1])  # a truth value is an int, too


def wrong_values(annotation: Any) -> Iterator[Any]:
    """Values of another type than the annotation's, which a lenient parser takes."""
    known = scalar_types(annotation)
    yield from ["", [], {"no_such_key": 1}, float("nan")]
    yield from [1, 0] if known == {bool} else []
    yield from [True, "5"] if known & {int, float} else []
    yield from [1.5, float("inf")] if known == {int} else []


@pytest.mark.parametrize(("section", "field"), FIELDS, ids=map(".".join, FIELDS))
def test_a_value_of_another_type_is_refused(section: str, field: str):
    besides, _ = value_of(section, field)
    for value in wrong_values(get_type_hints(SECTIONS[section])[field]):
        with pytest.raises(ConfigError) as caught:
            compose("smoke", nested(besides | {f"{section}.{field}": value}))
        assert in_one_sentence(caught.value)
        with pytest.raises((ConfigError, ValidationError)):
            form = Section(section, SECTIONS[section], ("smoke",))
            compose("smoke", changes_of({}, "", **{section: form.read({field: value})}))
    with pytest.raises(ConfigError, match="unknown key"):
        compose("smoke", nested({f"{section}.{field}_": 1}))


@pytest.mark.parametrize("kind", [WheelSource, HubSource, FilesSource, Execution, StudyConfig, CompareConfig])
def test_settings_beside_a_run_refuse_the_same(kind, tmp_path: Path):
    (tmp_path / "a.txt").write_text("a")
    whole = {
        WheelSource: {"requirement": "a==1", "sha256": "0" * 64, "members": "*"},
        HubSource: {"id": "a/b", "revision": "0" * 40},
        FilesSource: {"path": str(tmp_path)},
    }.get(kind, {})
    parse(kind, whole, "settings")
    for name in field_types(kind):
        annotation = get_type_hints(kind)[name]
        for value in wrong_values(annotation):
            if value != [] or "tuple" not in str(annotation):
                with pytest.raises(ConfigError) as caught:
                    parse(kind, whole | {name: value}, "settings")
                assert in_one_sentence(caught.value) and f"settings.{name}" in str(caught.value)
    with pytest.raises(ConfigError, match="unknown key 'no_such_key'"):
        parse(kind, whole | {"no_such_key": 1}, "settings")


@pytest.mark.parametrize("name", sorted(field_types(WheelSource) | field_types(HubSource)))
def test_every_field_of_a_pinned_source_is_in_the_key(name: str, monkeypatch, tmp_path: Path):
    others = {"requirement": "a==2", "sha256": "1" * 64, "revision": "1" * 40, "max_documents": 5, "streaming": False}
    wheel = {"kind": "wheel", "requirement": "a==1", "sha256": "0" * 64, "members": "*"}
    hub = {"kind": "hub", "id": "a/b", "revision": "0" * 40}
    for kind, source in ((WheelSource, wheel), (HubSource, hub)):
        if name in field_types(kind) and name != "kind":
            runs = [
                compose("smoke", {"data": {"source": source | change}})
                for change in ({}, {name: others.get(name, "c/d")})
            ]
            keys = [stage_of("data", run, monkeypatch, tmp_path).key for run in runs]
            assert (keys[0] == keys[1]) is (f"{kind.__name__}.{name}" in IN_NO_KEY)


SEEN_ELSEWHERE = {"balance", "balance_rate", "sequence_length"}  # in training; in how long a sequence may be


@pytest.mark.parametrize("field", [field for section, field in FIELDS if section == "model"])
def test_a_setting_of_the_network_changes_the_network(field: str):
    """Its weights or what it computes from the same ones, so that its ablation is another network."""

    def network(changes: dict[str, Any]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        model = GPT(dataclasses.replace(compose("smoke", nested(small | changes)).model, **vocabulary))
        model.eval()
        initialise(model, seed=1)
        first = {name: value.clone() for name, value in model.state_dict().items()}
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.empty(parameter.shape).normal_(0, 0.3, generator=generator))
            return first, model(tokens)

    tokens = torch.randint(6, 60, (1, 48), generator=torch.Generator().manual_seed(0))
    tokens[0, [0, 20]] = 3
    besides, value = VALUES[f"model.{field}"]
    vocabulary: dict[str, Any] = {"vocab_size": 60, "eot_token": 3}
    small = {"model.sequence_length": 64, "model.width": 32, "model.document_mask": "own"} | besides
    small |= {"model.document_mask": "none"} if field == "document_mask" else {}
    if field in vocabulary:
        (first, before), (other, after) = (
            network({}),
            (vocabulary.update({field: 61 if field == "vocab_size" else 7}), network({}))[1],
        )
    else:
        value = {"width": 64}.get(field, value)
        (first, before), (other, after) = network({}), network({f"model.{field}": value})
    same = first.keys() == other.keys() and all(first[name].equal(other[name]) for name in first)
    assert (same and before.equal(after)) is (field in SEEN_ELSEWHERE)


class Direct:
    """A flow that runs as a function, without a server."""

    def __init__(self, flow: Any) -> None:
        self.flow, self.name, self.parameters = flow, flow.name, flow.parameters

    def __call__(self, **parameters: Any) -> Any:
        return self.flow.fn(**parameters)


def test_an_ablation_trains_without_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """From the command line to what the trainer is given."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # no server is needed, and none is started
    monkeypatch.setattr("flows.daily.daily_train", Direct(daily_train))
    monkeypatch.setattr("tasks.preflight.require_ready", lambda *_: None)
    monkeypatch.setattr("flows.daily.check_run", lambda *_: None)
    monkeypatch.setattr("flows.daily.rehearse_evaluation", lambda *_: None)
    ready = {"shards": None, "vocabulary": None, "items": None}
    runs = []

    def prepared(run: RunConfig, _: object) -> type:
        runs.append(run)
        return type("Ready", (), ready)

    monkeypatch.setattr("flows.daily.prepare", prepared)

    def trained(model: Any, config: Any, *_: object) -> None:
        raise Made(model, config)

    monkeypatch.setattr("flows.daily.train_model", trained)
    changes = [
        "model.softcap=null",
        "train.muon_beta2=null",
        "train.tokens=null",
        "train.flops=1e18",
        "tokenizer.kind=gpt2",
        "tokenizer.vocab_size=null",
    ]
    arguments = [part for change in changes for part in ("--set", change)]
    with pytest.raises(Made) as caught:
        commands.main(["run", "--preset", "daily", "--store", str(tmp_path), *arguments])
    model, config = caught.value.args
    assert model.softcap is None and config.muon_beta2 is None and config.tokens is None and config.flops == 1e18
    assert runs[0].tokenizer.kind == "gpt2" and runs[0].tokenizer.vocab_size is None
    assert compose("daily", {}).model.softcap == 15.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--set", "train.seed=1", "--set", "train.seed=2"], "train.seed is given already, as 1"),
        (["run", "--set", "train=1", "--set", "train.seed=2"], "expected SECTION.FIELD=VALUE"),
        (["run", "--set", "data.source=1", "--set", "data.source.kind=hub"], "data.source is given already, as 1"),
        (["run", "--set", 'evaluation.num_fewshot={"arc_easy": 1, "arc_easy": 2}'], "'arc_easy' is given twice"),
        (["run", "--set", "model.softcap="], "model.softcap must not be empty (Logits become"),
        (["run", "--set", "evaluation.num_fewshot.arc_esay=5"], "arc_esay"),
        (["run", "--set", "evaluation.num_fewshot.arc_easy=true"], "num_fewshot.arc_easy must be a whole number"),
        (
            ["run", "--set", 'evaluation.suites=["arc_easy"]', "--set", "evaluation.num_fewshot.hellaswag=5"],
            "num_fewshot.hellaswag is 5, but hellaswag is not one of the suites",
        ),
        (["run", "--workers", "true"], "workers must be a whole number, but it is True"),
        (["run", "--benchmarks-dir", ""], "benchmarks_dir must not be empty"),
        (["run", "--deterministic", "1"], "deterministic must be true or false, but it is 1"),
        (["study", "--set", "tokenizer.vocab_size=512"], "contamination-study has no section 'tokenizer'"),
        (["study", "--items", "4", "--seeds", "true"], "seeds must be a whole number, but it is True"),
        (["evaluate", "x", "--seed", "3"], "--seed 3 has no effect without --items"),
        (["evaluate", "x", "--suites", "arc_easy", "--num-fewshot", "hellaswag=3"], "hellaswag is not one of the suit"),
        (["evaluate", "x", "--num-fewshot", "arc_easy=3", "arc_easy=4"], "arc_easy is given already, as 3"),
    ],
)
def test_the_command_line_refuses_what_it_would_drop(arguments: list[str], message: str, capsys, tmp_path: Path):
    preset = ["--preset", "smoke"] if arguments[0] == "run" else []
    assert commands.main([*arguments, *preset, "--store", str(tmp_path / "store")]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_vocabulary_that_the_text_cannot_fill_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pq.write_table(pa.table({"text": ["as many words as these"]}), tmp_path / "train_000000.parquet")
    monkeypatch.setattr(tokenizer, "fetch_outputs", lambda *_: tmp_path)
    context = context_of(Execution(store=str(tmp_path / "store"), workers=1), {})
    for size in (260, 4096):
        config = compose("smoke", {"tokenizer": {"vocab_size": size}}).tokenizer
        if size == 260:
            tokenizer.write_tokenizer(config, FINISHED, context, tmp_path)
        else:
            with pytest.raises(TokenizerError, match=r"vocab_size is 4096, but the text .* gives \d+ entries"):
                tokenizer.write_tokenizer(config, FINISHED, context, tmp_path)


def test_a_revision_of_a_local_folder_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"revision '0+' has no effect, because"):
        compose("smoke", {"data": {"source": {"kind": "hub", "id": str(tmp_path), "revision": "0" * 40}}})


def test_a_comparison_refuses_a_seed_of_one_design(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("flows.compare.check_run", lambda *_: pytest.fail("it went on"))
    with pytest.raises(ConfigError, match=r"train\.seed has no effect"):
        compare_designs.fn(preset=Preset.smoke, train={"seed": 5}, execution=Execution(store=str(tmp_path)))


def test_the_study_and_a_preset_keep_null(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen = []

    def check_run(trainings: list, *_: object) -> None:
        seen.append(trainings[0][0])
        raise Made

    monkeypatch.setattr("flows.study.check_run", check_run)
    with pytest.raises(Made):
        contamination_study.fn(model={"softcap": None}, execution=Execution(store=str(tmp_path)))
    assert seen[0].softcap is None
