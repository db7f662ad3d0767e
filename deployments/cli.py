"""The command line: `daily-train run`, `daily-train up`, `daily-train leaderboard`."""

import argparse
import json
import logging
import os
import sys
import time
from typing import Any

# Without a server a run starts one of its own for its duration; nothing is reported to anybody.
os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from deployments.up import PORT, UpError, up
from eval.findings import ContaminationError
from eval.ledger import leaderboard
from eval.report import notes, score_table
from eval.suites import SuiteError
from flows.config import FORMS, Execution, Preset, compose, place_of
from flows.daily import daily_train
from model.config import ConfigError
from tasks import provenance
from tasks.documents import SourceError
from tasks.process import ProcessError
from tasks.report import Published, read_ledger
from tasks.stage import StageError
from tasks.store import StoreError
from tasks.tokenizer import TokenizerError
from tasks.wheels import WheelError

EXPECTED = (
    ConfigError,
    ContaminationError,
    ProcessError,
    SourceError,
    StageError,
    StoreError,
    SuiteError,
    TokenizerError,
    UpError,
    WheelError,
)


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; what a person can mend ends in one sentence and exit code 1."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except EXPECTED as error:
        print(f"daily-train: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("daily-train: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="daily-train",
        description="What is the best text model that one H100/H200 can train from scratch in 24 hours?",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run the whole line once: download, tokenizer, shards, contamination, training, benchmarks, report",
        description="Run the whole line once. Finished stages are skipped; an interrupted training is resumed.",
        epilog="example: daily-train run --preset laptop --set train.learning_rate=0.01 --store s3://bucket/prefix",
    )
    run.add_argument(
        "--preset",
        default="daily" if provenance.hardware()["gpus"] else "laptop",
        metavar="NAME",
        help=f"one of {', '.join(Preset)} (default here: %(default)s)",
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help=f"change one value of the preset, as JSON or plain text; sections are {', '.join(FORMS)}",
    )
    _execution_options(run)
    run.set_defaults(command=_run)

    server = commands.add_parser(
        "up",
        help="start the Prefect server, a worker and the deployments on this machine",
        description="Start server, work pool, worker and deployments on loopback and print the address of the UI.",
    )
    server.add_argument("--port", type=int, default=PORT, help="port of the UI and API (default: %(default)s)")
    server.set_defaults(command=lambda arguments: up(arguments.port))

    board = commands.add_parser("leaderboard", help="print every run in the store, best bits per byte first")
    _execution_options(board)
    board.set_defaults(command=_leaderboard)
    return parser


def _execution_options(parser: argparse.ArgumentParser) -> None:
    """Every field of Execution as an option of the same name."""
    group = parser.add_argument_group("execution", "where and how; changes no result and no stage's key")
    for name, field in Execution.model_fields.items():
        group.add_argument(f"--{name.replace('_', '-')}", metavar=name.upper(), help=field.description)


def _execution(arguments: argparse.Namespace) -> Execution:
    given = {name: getattr(arguments, name) for name in Execution.model_fields}
    try:
        return Execution(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{first['loc'][0]} {first['input']!r}: {first['msg']}") from None


def _changes(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """`a.b=1` and `a.b.c=x` as nested dictionaries; a value that is not JSON is taken as text."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        names = path.split(".")
        if not equals or len(names) < 2:
            raise ConfigError(f"--set {assignment!r}: expected SECTION.FIELD=VALUE")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        level = changes
        for name in names[:-1]:
            level = level.setdefault(name, {})
        level[names[-1]] = value
    return changes


def _run(arguments: argparse.Namespace) -> None:
    changes = _changes(arguments.set)
    compose(arguments.preset, changes)  # refuse a mistake before anything is started
    execution = _execution(arguments)
    place_of(execution, dict(os.environ))
    _shorten_expected_errors()
    began = time.monotonic()
    published = daily_train(
        preset=Preset(arguments.preset),
        **{name: FORMS[name](**fields) for name, fields in changes.items()},
        execution=execution,
    )
    _summary(published, time.monotonic() - began)


def _summary(published: Published, seconds: float) -> None:
    report = published.report
    text, validation = report["text"], report["validation"]
    in_stages = sum(stage.seconds for stage in published.stages.values())
    skipped = [name for name, stage in published.stages.items() if stage.skipped]
    print("\n" + score_table(report["scores"]))
    for note in notes(report["scores"]):
        print(f"\n{note}")
    print(
        f"\nvalidation loss {validation['loss']:.4f} nats per token, {validation['bits_per_byte']:.4f} bits per byte; "
        f"unigram entropy of the text {text['unigram_entropy_nats']:.4f} nats per token"
        f"\nshard: {text['megabytes_per_second'] / text['workers']:.2f} MB/s per core on {text['workers']} cores"
        f"\nstages: {in_stages:.1f} s, of which {len(skipped)} of {len(published.stages)} were skipped; "
        f"Prefect's own overhead: {seconds - in_stages:.1f} s; together {seconds:.1f} s"
        f"\nreport: {published.report_path}"
    )


def _leaderboard(arguments: argparse.Namespace) -> None:
    print(leaderboard(read_ledger(place_of(_execution(arguments), dict(os.environ)))))


def _shorten_expected_errors() -> None:
    """Prefect logs a traceback for every failed task and flow; for what a person can mend the sentence will do."""

    def shorten(record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], EXPECTED):
            record.msg, record.args, record.exc_info = str(record.exc_info[1]), (), None
        return True

    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(name).addFilter(shorten)


if __name__ == "__main__":
    sys.exit(main())
