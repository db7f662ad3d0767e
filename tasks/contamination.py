"""Stage 4: does a benchmark item stand in the training text? Every document against every item, exactly."""

import json
from dataclasses import asdict
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from eval.findings import ContaminationConfig
from eval.markup import untrusted
from eval.report import contamination_table
from tasks.benchmarks import Items
from tasks.download import documents_files
from tasks.process import run_module
from tasks.stage import Place, Result, Stage, finish, logger, materialise

VERSION = 1
CONTROL_SEED = 0
SHOWN_MATCHES = 10


@task(name="contamination", cache_policy=NO_CACHE)
def check_contamination(config: ContaminationConfig, documents: Result, items: Items, place: Place) -> Result:
    """Scan the training documents. Outputs: verdicts.parquet, matches.jsonl, coverage.json."""
    inputs = {"documents": documents.digest, **items.digests}
    stage = Stage(name="contamination", version=VERSION, config=asdict(config), inputs=inputs)

    def build(work: Path, out: Path) -> None:
        run_module(
            "eval.contamination",
            {
                "documents": [str(path) for path in documents_files(materialise(documents, place), "train")],
                "benchmarks": str(items.folder(place, work / "benchmarks")),
                "suites": sorted(items.results),
                "config": asdict(config),
                "seed": CONTROL_SEED,
                "workers": place.workers,
                "out": str(out),
            },
            work,
            lambda event: logger().info("contamination: %s", event),
        )

    result = finish(stage, place, build)
    create_markdown_artifact(
        key="contamination", description="Benchmark items in the training text", markdown=describe(result, place)
    )
    return result


def describe(result: Result, place: Place) -> str:
    """The stage's artifact: the verdicts, and the longest matches with both texts."""
    folder = materialise(result, place)
    lines = [contamination_table(json.loads((folder / "coverage.json").read_text()))]
    matches = [json.loads(line) for line in (folder / "matches.jsonl").read_text().splitlines()]
    lines.append(f"**The longest of {len(matches)} recorded matches**" if matches else "No match was found.")
    for match in matches[:SHOWN_MATCHES]:
        told = "contaminates" if match["contaminates"] else "too short to contaminate"
        lines += [
            f"**{match['suite']}:{match['item']}**, {match['run']} words, coverage {match['coverage']:.2f}, {told}; "
            f"document {untrusted(match['document'])}, characters {match['start']:,} to {match['end']:,}",
            "item: " + _marked(match["item_text"]),
            "document: " + _marked(match["document_text"]),
        ]
    return "\n\n".join(lines)


def _marked(text: dict[str, str]) -> str:
    return f"{untrusted(text['before'])} **{untrusted(text['match'].strip())}** {untrusted(text['after'])}"
