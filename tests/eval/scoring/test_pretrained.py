"""Models of `transformers` through the same adapter: short cuts where they are exact, plain rows elsewhere."""

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from deployments.cli.commands import main
from deployments.cli.export import FinishedModel, write_export
from eval.scoring.precision import Precision
from eval.scoring.scorer import Scorer
from eval.suites.items import write_rows
from eval.suites.suites import SUITES
from model.network.choices import MLPKind, Smear
from model.network.config import GPTConfig
from model.network.gpt import GPT, initialise
from model.training.checkpoint import publish_final

transformers = pytest.importorskip("transformers")

from eval.scoring.harness import HarnessConfig, HarnessError, load_model  # noqa: E402
from eval.scoring.pretrained import PretrainedConfig, TransformersModel, load_pretrained  # noqa: E402

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA = transformers.LlamaConfig(**SIZES, num_key_value_heads=1)
FAMILIES = {
    # configuration, whether rows are shared, whether the head comes apart
    "llama": (LLAMA, True, True),
    "gpt2": (transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=128), True, True),
    "scaled logits": (transformers.CohereConfig(**SIZES, logit_scale=0.25), True, False),
    "windows": (transformers.MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=6), False, True),
    "windows counted along the row": (
        transformers.GPTNeoConfig(
            vocab_size=300,
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            window_size=8,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=128,
        ),
        False,
        True,
    ),
    "no positions to give": (
        transformers.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=2),
        False,
        True,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_scores_of_its_plain_forward_pass(family, dtype):
    """In bf16 to its rounding; which short cuts are exact is found out in fp32, so that rounding hides none."""
    config, shared, apart = FAMILIES[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model = model.to(dtype)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    contexts = [tuple(range(start, start + 30)) for start in (1, 100)]
    requests = [
        (context, [150 + choice, 160, *range(170, 171 + 3 * choice)]) for context in contexts for choice in range(4)
    ]
    network = TransformersModel(model, 128)
    scorer = Scorer(network, torch.device("cpu"), batch_tokens=200)
    inputs = [(*context, *answer[:-1]) for context, answer in requests]
    scores = scorer(inputs, [answer for _, answer in requests], lambda done: None)
    assert (scorer.tokens < sum(map(len, inputs))) is shared
    assert network.head_apart is apart
    for (context, answer), (logprob, _) in zip(requests, scores, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *answer[:-1]]])).logits[0, len(context) - 1 :].float()
        expected = logits.log_softmax(-1)[range(len(answer)), answer].sum().item()
        assert logprob == pytest.approx(expected, abs=1e-3 if dtype is torch.float32 else 0.01 * len(answer))
    for name, weight in model.state_dict().items():
        assert weight.dtype == weights[name].dtype and torch.equal(weight, weights[name]), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of random weights whose tokenizer puts a beginning-of-text token before every text."""
    path = tmp_path_factory.mktemp("llama")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<s>": 0, **{letter: 1 + i for i, letter in enumerate(alphabet)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>").save_pretrained(
        path
    )
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(LLAMA).save_pretrained(path)
    return path


def test_the_command_scores_a_folder_and_says_how_sure_it_is(folder, tmp_path, capsys):
    suite = SUITES["winogrande"]
    words = np.random.default_rng(0).choice(["cat", "dog", "tree", "house", "runs", "sleeps"], (suite.rows, 6)).tolist()
    rows = [
        {"sentence": f"the {a} {b} the _ {c} and {d} {item}", "option1": e, "option2": f"{f} too", "answer": "1"}
        for item, (a, b, c, d, e, f) in enumerate(words)
    ]
    write_rows(pa.Table.from_pylist(rows, schema=suite.schema), tmp_path / "rows" / suite.file_name)
    command = ["evaluate", str(folder), "--suites", "winogrande", "--items", "9", "--out", str(tmp_path / "out")]
    command += ["--benchmarks-dir", str(tmp_path / "rows"), "--store", str(tmp_path / "store"), "--device", "cpu"]
    assert main([*command, "--workers", "1", "--precision", "tf32"]) == 0
    printed = capsys.readouterr().out
    assert "Precision: tf32" in printed and "precision is tf32, but cpu has none: computed in fp32" in printed
    score = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"][0]
    assert f"{100 * score['value']:.2f}" in printed and "95 % interval" in printed and score["n"] == 9
    low, high = score["interval"]
    assert 0 <= low <= score["value"] <= high <= 1
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    samples = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    for sample in samples:
        row = rows[sample["item"]]
        for option, logprob in zip((row["option1"], row["option2"]), sample["choice_logprobs"], strict=True):
            before, _, after = row["sentence"].partition("_")
            ids, start = tokenizer.encode(before + option + after), len(tokenizer.encode(before + option))
            assert ids[0] == 0
            with torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = sum(logprobs[place - 1, ids[place]].item() for place in range(start, len(ids)))
            assert logprob == pytest.approx(expected, abs=1e-3)


def test_bf16_runs_the_weights_that_hf_would_load(folder, tmp_path):
    scorer = load_pretrained(replace(_config(folder, tmp_path), precision=Precision.BF16)).scorer
    assert {weight.dtype for weight in scorer.network.model.parameters()} == {torch.bfloat16}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    [(logprob, _)] = scorer([tuple(range(60))], [[7]], lambda done: None)
    with torch.no_grad():
        expected = model(torch.arange(60)[None]).logits[0, -1].float().log_softmax(-1)[7].item()
    assert logprob == expected, "a row of one sequence is the plain forward pass, to the bit"


def test_a_model_too_large_for_fp32_is_scored_row_by_row(folder, tmp_path, monkeypatch):
    def too_large(model: torch.nn.Module) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("eval.scoring.pretrained.in_fp32", too_large)
    scorer = load_pretrained(_config(folder, tmp_path)).scorer
    inputs = [(*range(10, 40), 50 + choice) for choice in range(4)]
    assert len(scorer(inputs, [[50 + choice, 60] for choice in range(4)], lambda done: None)) == 4
    assert scorer.tokens == sum(map(len, inputs))


def test_an_exported_model_scores_what_the_original_scores(folder, tmp_path):
    network = GPT(GPTConfig(depth=2, width=32, heads=2, sequence_length=64, vocab_size=257, vocab_multiple=64)).eval()
    initialise(network, seed=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    publish_final(tmp_path / "final", network, 0, digest, {})
    write_export(
        FinishedModel(model=tmp_path / "final", tokenizer=folder / "tokenizer.json", facts={}), tmp_path / "exported"
    )
    config = replace(_config(tmp_path / "exported", tmp_path), trust_code=True)
    exported = load_pretrained(config).scorer
    original = load_model(
        HarnessConfig(
            checkpoint=tmp_path / "final",
            tokenizer=folder / "tokenizer.json",
            benchmarks=tmp_path,
            suites=(),
            items_per_suite=None,
            seed=0,
            out=tmp_path,
        )
    ).scorer
    inputs = [(*range(10, 40), 50 + choice) for choice in range(4)]
    answers = [[50 + choice, 60] for choice in range(4)]
    scores = [scorer(inputs, answers, lambda done: None) for scorer in (exported, original)]
    assert original.tokens < exported.tokens == sum(map(len, inputs))  # it takes no positions
    assert [one for one, _ in scores[0]] == pytest.approx([one for one, _ in scores[1]], abs=1e-4)


@pytest.mark.parametrize("settings", [{"mlp": MLPKind.MOE}, {"smear": Smear.KEY, "value_embeddings": True}])
def test_an_export_that_hf_loads_in_bf16_is_the_checkpoint_in_bf16_to_the_bit(folder, tmp_path, settings):
    """So that on the same rows our scores and lm-eval's are the same numbers."""
    network = GPT(GPTConfig(depth=2, width=32, heads=2, sequence_length=64, vocab_size=257, **settings)).eval()
    initialise(network, seed=0)
    with torch.no_grad():
        for weight in network.state_dict().values():
            weight.add_(0.1 * torch.randn(weight.shape))
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    publish_final(tmp_path / "final", network, 0, digest, {})
    write_export(
        FinishedModel(model=tmp_path / "final", tokenizer=folder / "tokenizer.json", facts={}), tmp_path / "exported"
    )
    exported = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "exported", dtype=torch.bfloat16, trust_remote_code=True
    )
    ours = load_model(
        HarnessConfig(
            checkpoint=tmp_path / "final",
            tokenizer=folder / "tokenizer.json",
            benchmarks=tmp_path,
            suites=(),
            items_per_suite=None,
            seed=0,
            precision=Precision.BF16,
            out=tmp_path,
        )
    ).scorer.network._model
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        assert torch.equal(exported(tokens).logits, ours(tokens))
    types = [{name: tensor.dtype for name, tensor in model.state_dict().items()} for model in (exported.gpt, ours)]
    assert types[0] == types[1]


def _config(folder, tmp_path) -> PretrainedConfig:
    return PretrainedConfig(
        model=str(folder), benchmarks=tmp_path, suites=("winogrande",), items_per_suite=1, seed=0, out=tmp_path
    )


def test_models_that_cannot_be_scored_are_refused(folder, tmp_path):
    with pytest.raises(HarnessError, match=r"nowhere: cannot be loaded by transformers: "):
        load_pretrained(_config(tmp_path / "nowhere", tmp_path))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(HarnessError, match=r"broken: model\.layers\.1\.mlp\.up_proj\.weight holds values that are not"):
        load_pretrained(_config(tmp_path / "broken", tmp_path))
    small = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | {"vocab_size": 200}))
    small.save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    with pytest.raises(HarnessError, match=r"small: its tokenizer has 257 tokens, its model 200"):
        load_pretrained(_config(tmp_path / "small", tmp_path))
    tokenizer.backend_tokenizer.model.dropout = 0.1
    tokenizer.save_pretrained(tmp_path / "small")
    with pytest.raises(HarnessError, match=r"small: its tokenizer has a BPE dropout of 0\.1, so scores would"):
        load_pretrained(_config(tmp_path / "small", tmp_path))


FIRST, SECOND = 40 * "1", 40 * "2"


def _published(cache: Path, name: str, commits: dict[str, Path]) -> None:
    """What the hub's library keeps of a model whose branch `main` is at the last of its commits."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    for commit, files in commits.items():
        shutil.copytree(files, repository / "snapshots" / commit)
        (repository / "refs" / "main").write_text(commit)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Where the hub's library keeps what it has, which is all that it has here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_model_of_the_hub_is_that_of_the_revision_and_its_commit_is_recorded(folder, tmp_path, hub):
    torch.manual_seed(2)
    shutil.copytree(folder, tmp_path / "later")
    transformers.LlamaForCausalLM(LLAMA).save_pretrained(tmp_path / "later")
    _published(hub, "org/model", {FIRST: folder, SECOND: tmp_path / "later"})
    for revision, commit, path in ((None, SECOND, tmp_path / "later"), (FIRST, FIRST, folder), ("main", SECOND, None)):
        found = load_pretrained(replace(_config("org/model", tmp_path), revision=revision))
        assert found.origin == {"id": "org/model", "revision": revision, "commit": commit}
        if path:
            here = load_pretrained(_config(path, tmp_path))
            assert here.origin is None
            for ours, theirs in zip(found.scorer.network.model.parameters(), here.scorer.network.model.parameters()):
                assert torch.equal(ours, theirs)
    with pytest.raises(HarnessError, match="cannot be loaded"):
        load_pretrained(replace(_config("org/model", tmp_path), revision=40 * "3"))


def test_code_of_the_hub_is_run_at_the_commit_that_was_named_alone(folder, tmp_path, hub, monkeypatch, capsys):
    for model in ("org/model", "org/model@main", f"org/model@{FIRST[:7]}"):
        assert main(["evaluate", model, "--trust-code", "--store", str(tmp_path / "store")]) == 1
        assert "give the commit that you have read, org/model@40-digit-commit" in capsys.readouterr().err
    # a pinned model whose code lies in another repository, where it can change
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    shutil.copytree(folder, tmp_path / "model")
    described = json.loads((folder / "config.json").read_text()) | {
        "model_type": "own",
        "auto_map": {"AutoConfig": "org/code--own.Config"},
    }
    (tmp_path / "model" / "config.json").write_text(json.dumps(described))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    _published(hub, "org/model", {FIRST: tmp_path / "model"})
    _published(hub, "org/code", {SECOND: tmp_path / "code"})
    with pytest.raises(HarnessError, match="cannot be loaded"):
        load_pretrained(replace(_config("org/model", tmp_path), revision=FIRST, trust_code=True))
    assert not (tmp_path / "ran").exists()
