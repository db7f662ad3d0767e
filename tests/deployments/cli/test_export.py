"""Exported models: opened by transformers in a process without our package, the same logits and greedy tokens."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deployments.cli.commands import main
from deployments.cli.export import MODELLING
from deployments.cli.exported_code import ExportedCodeError, exported_code
from model.network.config import GPTConfig
from model.network.generate import generate
from model.network.gpt import GPT
from model.parsing import parse
from model.training.checkpoint import publish_final
from tasks.token_bytes import END_OF_TEXT
from tasks.tokenizer import train_bpe

BASE: dict[str, Any] = dict(depth=3, width=32, heads=4, sequence_length=24)
GPT2: dict[str, Any] = dict(
    norm="layer",
    position="learned",
    activation="gelu",
    qk_norm=False,
    tied_head=True,
    bias=True,
    zero_init_projections=False,
    vocab_multiple=1,
    eot_token=0,
)
ATTENTIONS: list[dict[str, Any]] = [
    dict(kv_heads=2, document_mask="own", eot_token=0),
    dict(attention="mla"),
    dict(attention="mla", position="learned", latent_size=6),
    dict(window_pattern="SSL", short_window=5),
    dict(rotary_fraction=0.5, partial_key_offset=True, window_pattern="SL"),
    dict(smear="key", norm="layer"),
    dict(window_pattern="N", sparse_block=4, sparse_blocks=2, short_window=4),
    dict(window_pattern="SN", sparse_block=3, sparse_blocks=1, short_window=7, kv_heads=1),
    dict(
        kv_heads=2,
        value_embeddings=True,
        residual_lambdas=True,
        embedding_lambdas=True,
        backout=True,
        smear="embedding",
        attention_gate=True,
        qk_scale=1.2,
        softcap=15.0,
    ),
]
MLPS: list[dict[str, Any]] = [
    {},
    dict(activation="gelu"),
    dict(activation="swiglu"),
    dict(mlp="moe", experts=6, experts_per_token=2),
    dict(mlp="moe", activation="swiglu", experts=5, experts_per_token=2, shared_experts=0, balance="loss"),
]
PAIRS = [pair for n, pair in enumerate(itertools.product(ATTENTIONS, MLPS)) if n % 3 == 0]  # each with several others
VARIANTS = {f"modern {attention | mlp}": attention | mlp for attention, mlp in PAIRS} | {
    "gpt2": GPT2,
    "gpt2 padded, untied, without biases": GPT2 | dict(vocab_multiple=64, tied_head=False, bias=False),
}
PROMPT = "Fellow-Citizens of the Senate, 12 trains"
OPENED = """
import json, sys
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
try:
    import model
    sys.exit("our package can be imported here")
except ImportError:
    pass
found = {}
for folder, prompt, new_tokens in json.loads(sys.argv[1]):
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    network = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        logits = network(**ids).logits[0].numpy()
    new = network.generate(**ids, max_new_tokens=new_tokens, do_sample=False)[0, ids["input_ids"].shape[1]:].tolist()
    np.save(folder + "/logits.npy", logits)
    found[folder] = {"class": type(network).__name__, "ids": ids["input_ids"][0].tolist(), "new": new,
                     "eos": tokenizer.eos_token_id, "text": tokenizer.decode(ids["input_ids"][0])}
    if type(network).__name__ == "DailyTrainForCausalLM":
        try:
            network(ids["input_ids"], attention_mask=torch.arange(ids["input_ids"].shape[1])[None] > 0)
            sys.exit("padding on the left was accepted")
        except ValueError as error:
            assert "padding on the left is not supported" in str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = train_bpe(iter([f"{PROMPT} and others, the trains of the Union. " * 3]), 300, 1)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return made, path


def finished(folder: Path, settings: dict, tokenizer) -> GPT:
    """A finished model with random weights; the padding rows of its tables are set too."""
    made, path = tokenizer
    model = GPT(parse(GPTConfig, BASE | settings | {"vocab_size": made.get_vocab_size()}, "model"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.3, generator=generator))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    publish_final(folder, model, made.token_to_id(END_OF_TEXT), digest, {"loss": 1.0})
    return model.eval()


def opened(folders: list[tuple[Path, str, int]], cache: Path) -> dict[str, dict]:
    """What transformers says of exported folders, in a process that cannot import our package."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    asked = json.dumps([(str(folder), prompt, tokens) for folder, prompt, tokens in folders])
    # -I keeps the working directory out, -S and the explicit path keep editable installs out
    program = f"import sys; sys.path.append({str(Path(np.__file__).parents[1])!r})\n{OPENED}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, asked],
        cwd=cache,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def exports(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("exports")
    models = {}
    for number, (name, settings) in enumerate(VARIANTS.items()):
        models[name] = root / f"e{number}", finished(root / f"final{number}", settings, tokenizer)
        command = ["export", str(root / f"final{number}"), str(root / f"e{number}"), "--tokenizer", str(tokenizer[1])]
        assert main([*command, "--store", str(root / "store")]) == 0
    length = {name: 10 if name.startswith("gpt2") else 20 for name in VARIANTS}  # modern ones go on past their context
    found = opened([(folder, PROMPT[:26], length[name]) for name, (folder, _) in models.items()], root)
    return {
        name: (model, found[str(folder)], np.load(folder / "logits.npy")) for name, (folder, model) in models.items()
    }


def test_logits_equal_ours(exports):
    for name, (model, found, logits) in exports.items():
        with torch.no_grad():
            ours = model(torch.tensor([found["ids"]]))[0].numpy()
        assert logits.shape == ours.shape, name
        # the same code: the same bits but for products whose order depends on where memory is aligned
        limit = 2e-4 if name.startswith("gpt2") else 2e-5
        assert np.abs(ours).max() > 1 and np.abs(logits - ours).max() <= limit, name


def test_greedy_tokens_equal_ours(exports):
    for name, (model, found, _) in exports.items():
        length = 10 if name.startswith("gpt2") else 20
        ours = generate(model, found["ids"], length, seed=0, temperature=0, stop_token=found["eos"])
        assert [token for token in found["new"] if token != found["eos"]] == ours, name


def test_the_family_and_the_tokenizer(exports, tokenizer):
    ids = tokenizer[0].encode(PROMPT[:26]).ids
    for name, (_, found, _) in exports.items():
        assert found["class"] == ("GPT2LMHeadModel" if name.startswith("gpt2") else "DailyTrainForCausalLM")
        assert (found["ids"], found["text"], found["eos"]) == (ids, PROMPT[:26], tokenizer[0].token_to_id(END_OF_TEXT))


def test_a_foreign_tokenizer_is_refused_with_both_digests(tmp_path, tokenizer, capsys):
    finished(tmp_path / "final", {}, tokenizer)
    foreign = tmp_path / "tokenizer.json"
    foreign.write_text(tokenizer[1].read_text().replace("trains", "planes") + " ")
    command = ["export", str(tmp_path / "final"), str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    assert main([*command, "--tokenizer", str(foreign)]) == 1
    told = capsys.readouterr().err
    for path in (foreign, tokenizer[1]):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in told
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_damaged_weights_are_refused(tmp_path, tokenizer, capsys):
    finished(tmp_path / "final", {}, tokenizer)
    (tmp_path / "final" / "tokenizer.json").write_bytes(tokenizer[1].read_bytes())
    command = ["export", str(tmp_path / "final"), str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    assert main(command) == 0 and main(command) == 1
    assert "out: exists already" in capsys.readouterr().err
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not recorded: this model was exported from a folder" in card and "| 1.0000 |" in card
    weights = tmp_path / "final" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert main([*command[:2], str(tmp_path / "other"), *command[3:]]) == 1
    assert "model.safetensors: SHA-256 is" in capsys.readouterr().err


def test_the_exported_code_is_what_the_network_imports_and_nothing_else(tmp_path):
    code = exported_code(MODELLING)
    assert {"modeling_daily_train.py", "gpt.py", "attention.py", "config.py"} <= code.keys()
    assert not {"trainer.py", "optimizers.py", "shards.py"} & code.keys()
    assert not any("from model" in source for source in code.values())
    (tmp_path / "m.py").write_text("from model.network.config import parse\nfrom model import errors\n")
    with pytest.raises(ExportedCodeError, match=r"m\.py: 'from model import errors'"):
        exported_code(tmp_path / "m.py")
    (tmp_path / "gpt.py").write_text("from model.network.gpt import GPT\n")
    with pytest.raises(ExportedCodeError, match=r"would be one file of an exported model"):
        exported_code(tmp_path / "gpt.py")
