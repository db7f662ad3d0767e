"""The model card of an exported model: what its run recorded, and nothing else; what is missing is said to be."""

import json
from typing import Any

from eval.reporting.contamination_report import control_suites, verdict_table
from eval.reporting.markdown import code_block, markdown_table, sentence, untrusted
from eval.reporting.score_table import model_card_scores
from eval.scoring.precision import precision_of
from eval.words import data_size, dollars, duration, flops, loss

UNRECORDED = "Not recorded: this model was exported from a folder, without its run's report."
_BUDGETS = ("tokens", "flops", "gpu_hours", "usd")


def model_card(facts: dict[str, Any]) -> str:
    """Markdown with the front matter of the hub.

    `facts`: `record` (config.json of the finished model), `family` and, where they were recorded, `report`
    (report.json), `lock` and `lock_sha256` (of the download stage) and `model_source` (digest of `model/`).
    """
    record, report = facts["record"], facts.get("report")
    name = f"{report['preset']} run {report['run'][:12]}" if report else f"model {record['model_sha256'][:12]}"
    sections = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [daily-train]\n---",
        f"# The Daily Train: {name}",
        f"A language model trained from scratch, exported as {_OPENED[facts['family']]}.",
        "```python\n"
        + _CODE.format(trust=", trust_remote_code=True" if facts["family"] == "daily_train" else "")
        + "```",
        "A base model: it continues text and follows no instructions.",
        "## Training",
        markdown_table(["", ""], _training(facts)),
        "## Scores",
        *(_scores(report) if report else [UNRECORDED]),
        "## Contamination",
        *(_contamination(report["contamination"]["coverage"]) if report else [UNRECORDED]),
        "## Data",
        *_data(facts),
        "## Configuration",
        code_block(report["configuration"] if report else json.dumps(record["model"], indent=1)),
    ]
    return "\n\n".join(sections) + "\n"


_OPENED = {
    "gpt2": "a `GPT2LMHeadModel`",
    "daily_train": "a model with code of its own, `modeling_daily_train.py`, which needs torch and transformers alone",
}
_CODE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER"{trust})
model = AutoModelForCausalLM.from_pretrained("FOLDER"{trust})
prompt = tokenizer("My fellow citizens,", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40, do_sample=False)[0]))
"""


def _training(facts: dict[str, Any]) -> list[list[object]]:
    record, report = facts["record"], facts.get("report")
    result, network = record["result"], record["model"]
    rows: list[list[object]] = [
        ["validation loss, nats per token", loss(result["loss"]) if "loss" in result else None],
        ["validation bits per byte", loss(result["bits_per_byte"]) if "bits_per_byte" in result else None],
        ["tokens", result.get("tokens")],
        ["FLOPs", flops(result["flops"]) if "flops" in result else None],
        ["context, tokens", network["sequence_length"]],
        ["vocabulary", network["vocab_size"]],
        ["tokenizer, SHA-256", f"`{record['tokenizer_sha256']}`"],
        ["weights of the run, SHA-256", f"`{record['model_sha256']}`"],
    ]
    if report:
        train, cost = json.loads(report["configuration"])["train"], report["cost"]
        budget = [f"{train[unit]:,} {unit}" for unit in _BUDGETS if train.get(unit) is not None]
        rows += [
            ["parameters", report["training"]["parameters"]],
            ["budget", " and ".join(budget) or None],
            ["trained on", f"{report['training']['device']}, {duration(report['training']['seconds'])}"],
            ["the whole run", f"{duration(cost['seconds'])}, {dollars(cost['usd'])}"],
            ["finished", report["finished"]],
            ["commit", f"`{report['commit']}`"],
            ["run", f"`{report['run']}`"],
        ]
        if note := report.get("note"):
            rows.append(["note", untrusted(note)])
    if "model_source" in facts:
        same = facts["model_source"] == facts["model_source_here"]
        rows.append(
            [
                "source of the network",
                "as it was trained"
                if same
                else f"not the one it was trained with (`{facts['model_source']}`): check its loss",
            ]
        )
    return rows


def _scores(report: dict[str, Any]) -> list[str]:
    how = report.get("evaluation", {})
    lines = [
        f"{score['suite']} was not scored. {sentence(score['not_scored'])}."
        for score in report["scores"]
        if score["value"] is None
    ]
    scored = [score for score in report["scores"] if score["value"] is not None]
    method = (
        f"By lm-eval's task definitions, version {how.get('lm_eval', 'not recorded')}, in {precision_of(how)}; "
        "n: items that were scored."
    )
    return [method, model_card_scores(scored, how.get("num_fewshot", {})), *lines]


def _contamination(coverage: dict[str, Any]) -> list[str]:
    counts = [form for forms in control_suites(coverage).values() for form in forms.values()]
    found, planted = (sum(count[name] for count in counts) for name in ("found", "planted"))
    return [
        f"Every benchmark item was looked for in all {coverage['documents']:,} training documents (word "
        f"{coverage['config']['ngram']}-grams). The positive control found {found:,} of {planted:,} planted items.",
        verdict_table(coverage),
    ]


def _data(facts: dict[str, Any]) -> list[str]:
    if "lock" not in facts:
        return ["Not recorded: the run's data is not in the store." if "report" in facts else UNRECORDED]
    splits = [[split, part["documents"], data_size(part["bytes"])] for split, part in facts["lock"]["splits"].items()]
    return [
        f"Lock of the data, SHA-256 `{facts['lock_sha256']}`:",
        code_block(json.dumps(facts["lock"]["source"], indent=1)),
        markdown_table(["split", "documents", "size"], splits),
    ]
