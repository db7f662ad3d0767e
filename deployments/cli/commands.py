"""The command line: `daily-train run`, `up`, `evaluate`, `export`, `leaderboard` and more: `daily-train --help`."""

if __name__ == "__main__":  # before the imports, which take seconds
    __import__("deployments.cli.entry_point").cli.entry_point.go_on_in_child()

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

# Without a server a run starts one of its own for its duration; nothing is reported to anybody.
os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect's client, huggingface_hub

from prefect.exceptions import TerminationSignal

from deployments.access import auth_string, connected, settle_server
from deployments.cli.chat import ChatError, converse, require_gradio
from deployments.cli.entry_point import run
from deployments.cli.export import export
from deployments.cli.notify import NotifyError, notify
from deployments.cli.up import NOTIFY, PORT, up
from eval.reporting.ledger import leaderboard, leaderboard_page
from eval.reporting.report import notes, score_table
from eval.suites.suites import SUITES
from flows.config import FORMS, Execution, Preset, compose, context_of, forms_of, require_encodable
from flows.daily import daily_train
from flows.study import contamination_study
from model.errors import at_once, naming, reason_of, shown_value, tell_error
from model.parsing import ConfigError, Dataclass, descriptions, field_types, parse, takes_text
from tasks.evaluate import EvaluationConfig, evaluate_folder
from tasks.explain import explain_item
from tasks.preflight import require_ready
from tasks.report import Published
from tasks.store import provenance
from tasks.store.context import RunContext
from tasks.store.ledger import read_ledger, report_pages
from tasks.study import StudyConfig

MOST_NAMES = 8
"""Of a setting, with its section: `data.source.path` has 3."""
Section = TypeVar("Section", bound=Dataclass)


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; whatever fails ends in one sentence and exit code 1 (model/errors.py)."""
    try:
        arguments = _parser().parse_args(argv)
        arguments.command(arguments)
        sys.stdout.flush()
    except (KeyboardInterrupt, TerminationSignal):
        print("daily-train: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError as error:  # who read what is printed has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return tell_error(error, "daily-train")
    except Exception as error:
        return tell_error(error, "daily-train")
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
    _changes_option(run)
    _execution_options(run)
    run.set_defaults(command=_run)

    server = commands.add_parser(
        "up",
        help="start the Prefect server, a worker and the deployments on this machine",
        description="Start server, work pool, worker and deployments on loopback and print the address of the UI.",
    )
    server.add_argument("--port", type=_port, default=PORT, help="port of the UI and API (default: %(default)s)")
    server.set_defaults(command=lambda arguments: up(arguments.port))

    tell = commands.add_parser(
        "notify",
        help="have the server tell of runs that fail, finish or regress: Discord, Slack, mail or a webhook",
        description="Keep the address on the running server, send a first message, set up the messages about runs.",
        epilog=f"example: {NOTIFY}=https://discord.com/api/webhooks/… daily-train notify; `up` does the same by itself",
    )
    tell.add_argument("--port", type=_port, default=PORT, help="port of the server (default: %(default)s)")
    tell.set_defaults(command=_notify)

    study = commands.add_parser(
        "study",
        help="train with and without planted benchmark items and report what that does to the scores",
        description="Train the same small model with and without planted copies of benchmark items.",
        epilog="example: daily-train study --suite arc_easy --items 100 --copies 8; --copies 0 is an A/A run",
    )
    study.add_argument("--preset", default="study", metavar="NAME", help="recipe of both arms (default: %(default)s)")
    for field in fields(StudyConfig):
        about = f"{descriptions(StudyConfig)[field.name]} (default: {field.default})"
        study.add_argument(f"--{field.name}", metavar=field.name.upper(), help=about)
    _changes_option(study)
    _execution_options(study)
    study.set_defaults(command=_study)

    why = commands.add_parser(
        "explain",
        help="show why a benchmark item counts as contaminated: the item and the training text side by side",
        epilog="example: daily-train explain hellaswag:123",
    )
    why.add_argument("item", metavar="SUITE:NUMBER", help="the item, by lm-eval's doc_id")
    why.add_argument("--run", metavar="RUN", help="beginning of the run's name (default: the newest)")
    _execution_options(why)
    why.set_defaults(command=_explain)

    scores = commands.add_parser(
        "evaluate",
        help="score any model on the benchmarks: a finished model's folder, or what transformers opens",
        description="Score a model on the five suites, print the table and write scores.json and samples.parquet.",
        epilog="example: daily-train evaluate HuggingFaceTB/SmolLM2-135M@main --suites arc_easy --items 500",
    )
    scores.add_argument(
        "model",
        metavar="MODEL",
        help="folder of a finished model, or a folder, .gguf file or hub id that transformers opens, with ID@REVISION",
    )
    scores.add_argument("--tokenizer", type=Path, metavar="FILE", help="of a finished model, if not in its folder")
    scores.add_argument("--suites", nargs="+", default=list(SUITES), metavar="SUITE", help=f"of {', '.join(SUITES)}")
    scores.add_argument("--items", type=int, metavar="N", help="a fixed random subset of N items a suite; default: all")
    scores.add_argument("--seed", type=int, help="chooses the subset (default: 0)")
    scores.add_argument("--num-fewshot", nargs="+", default=[], metavar="SUITE=N", help="examples before questions")
    scores.add_argument(
        "--precision", default="fp32", help="fp32, tf32 (a GPU's faster products) or bf16 (default: %(default)s)"
    )
    scores.add_argument(
        "--trust-code",
        action="store_true",
        help="run the modelling file that the model brings along; one of the hub needs ID@40-digit-commit",
    )
    scores.add_argument("--out", type=Path, default=Path("evaluation"), help="folder for the two files (%(default)s)")
    _execution_options(scores)
    scores.set_defaults(command=_evaluate)

    out = commands.add_parser(
        "export",
        help="write a finished model as a folder that transformers opens",
        description="Write weights, config, tokenizer and model card of a finished model to a new folder.",
        epilog="example: daily-train export latest ./model; daily-train export run/final ./model --tokenizer t.json",
    )
    out.add_argument(
        "name",
        metavar="RUN-OR-FOLDER",
        help="beginning of a run's or its train stage's key, `latest`, or the folder of a finished model",
    )
    out.add_argument("destination", metavar="DEST", type=Path, help="folder to write, new or empty")
    out.add_argument("--tokenizer", metavar="FILE", type=Path, help="tokenizer.json of a folder that holds none")
    _execution_options(out)
    out.set_defaults(command=_export)

    chat = commands.add_parser(
        "chat",
        help="let a run's model continue your text in the terminal, before and after training",
        epilog="example: echo 'My fellow citizens,' | daily-train chat --tokens 80",
    )
    chat.add_argument("--tokens", type=int, default=64, help="length of an answer in tokens (default: %(default)s)")
    chat.add_argument("--temperature", type=float, default=0.8, help="0: the likeliest token (default: %(default)s)")
    chat.set_defaults(command=_chat)
    demo = commands.add_parser("demo", help="the same as a page: trained and untrained side by side (extra `demo`)")
    demo.add_argument("--port", type=_port, default=7860, help="port of the page on loopback (default: %(default)s)")
    demo.set_defaults(command=_demo)
    for talk in (chat, demo):
        talk.add_argument("--run", default="", metavar="RUN", help="beginning of the run's name (default: the newest)")
        _execution_options(talk)

    board = commands.add_parser("leaderboard", help="print every run in the store, best bits per byte first")
    board.add_argument("--html", type=Path, metavar="FILE", help="write it as one HTML page instead")
    _execution_options(board)
    board.set_defaults(command=_leaderboard)
    return parser


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{shown_value(text)} is no port: expected a number from 1 to 65535")
    return int(text)


def _changes_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help=f"change one value of the preset, as JSON or plain text; sections are {', '.join(FORMS)}",
    )


def _execution_options(parser: argparse.ArgumentParser) -> None:
    """Every field of Execution as an option of the same name."""
    about = "where and how; part of no stage's key, changes results by rounding only"
    group = parser.add_argument_group("execution", about)
    for name, description in descriptions(Execution).items():
        group.add_argument(f"--{name.replace('_', '-')}", metavar=name.upper(), help=description)


def _execution(arguments: argparse.Namespace) -> Execution:
    return _settings(Execution, "execution", arguments)


def _place_to_read(arguments: argparse.Namespace) -> RunContext:
    """For a command that changes nothing in the store, and makes none."""
    return context_of(_execution(arguments), dict(os.environ), reading=True)


def _settings(kind: type[Section], section: str, arguments: argparse.Namespace) -> Section:
    """A section whose every field is an option of the same name."""
    texts = {name: getattr(arguments, name) for name in field_types(kind)}
    values = {
        name: text if takes_text(field_types(kind)[name]) else _value(text)
        for name, text in texts.items()
        if text is not None
    }
    return parse(kind, values, section)


def _changes(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """`a.b=1` and `a.b.c=x` as nested dictionaries. Raises ConfigError for a setting that is given twice."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        names = path.split(".")
        told = f"--set {shown_value(assignment)}"
        if not equals or not 2 <= len(names) <= MOST_NAMES:
            raise ConfigError(f"{told}: expected SECTION.FIELD=VALUE")
        level = changes
        for name in names[:-1]:
            level = level.setdefault(name, {})
            if not isinstance(level, dict):
                raise ConfigError(f"{told}: {path.rpartition('.')[0]} is given already, as {shown_value(level)}")
        if names[-1] in level:
            raise ConfigError(f"{told}: {path} is given already, as {shown_value(level[names[-1]])}")
        try:
            level[names[-1]] = _value(text)
        except ConfigError as error:
            raise ConfigError(f"{told}: {error}") from None
    return changes


def _value(text: str) -> Any:
    """A value that is given as JSON; one that is not JSON is taken as text."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except json.JSONDecodeError:
        return text
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 1,000 levels of brackets
        raise ConfigError(f"the value {shown_value(text)} cannot be read: {reason_of(error)}") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ConfigError(f"{twice!r} is given twice in {shown_value(made)}")
    return made


def _run(arguments: argparse.Namespace) -> None:
    changes = _changes(arguments.set)
    run = compose(arguments.preset, changes)  # refuse a mistake before anything is started
    execution = _execution(arguments)
    context = context_of(execution, dict(os.environ))
    require_ready([(run.model, run.train)], run.tokenizer, run.evaluation, context)  # before a server is started
    forms = forms_of(changes, daily_train)
    require_encodable(**forms, execution=execution)
    _prepare_run()
    began = time.monotonic()
    published = daily_train(preset=Preset(arguments.preset), **forms, execution=execution)
    _summary(published, time.monotonic() - began)


def _study(arguments: argparse.Namespace) -> None:
    changes = _changes(arguments.set)
    compose(arguments.preset, changes)
    study = _settings(StudyConfig, "study", arguments)
    forms, execution = forms_of(changes, contamination_study), _execution(arguments)
    require_encodable(**forms, execution=execution)
    _prepare_run()
    page = contamination_study(preset=Preset(arguments.preset), study=study, **forms, execution=execution)
    print(f"\n{Path(page).read_text()}" if "://" not in page else "", f"study: {page}", sep="\n")


def _notify(arguments: argparse.Namespace) -> None:
    address = os.environ.get(NOTIFY)
    if not address:
        raise NotifyError(f"set {NOTIFY} to the address; an argument could be read by every user of this machine")
    with connected(arguments.port, auth_string()):
        notify(address)
    print("The first message is sent; runs that fail, finish or regress are told there.")


def _explain(arguments: argparse.Namespace) -> None:
    print(explain_item(arguments.item, arguments.run, _place_to_read(arguments)))


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.seed is not None and arguments.items is None:
        raise ConfigError(f"--seed {arguments.seed} has no effect without --items: all items are scored")
    shots = _changes([f"num_fewshot.{pair}" for pair in arguments.num_fewshot]).get("num_fewshot", {})
    settings = {
        "suites": arguments.suites,
        "items_per_suite": arguments.items,
        "seed": arguments.seed or 0,
        "num_fewshot": shots,
        "precision": arguments.precision,
    }
    config = parse(EvaluationConfig, settings, "evaluate")
    context = context_of(_execution(arguments), dict(os.environ))
    print(evaluate_folder(config, arguments.model, arguments.tokenizer, arguments.trust_code, arguments.out, context))
    print(f"\n{arguments.out}: scores.json, samples.parquet")


def _export(arguments: argparse.Namespace) -> None:
    context = _place_to_read(arguments)
    family = export(arguments.name, arguments.destination, arguments.tokenizer, context)
    print(f"{arguments.destination}: a model of the {family} family for transformers, with its model card README.md")


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


def _chat(arguments: argparse.Namespace) -> None:
    if arguments.tokens < 1 or not (arguments.temperature == 0 or 0.01 <= arguments.temperature <= 100):
        raise ChatError(
            f"--tokens must be at least 1 and --temperature 0 or from 0.01 to 100, but they are "
            f"{arguments.tokens} and {arguments.temperature}"
        )
    options = ["--tokens", str(arguments.tokens), "--temperature", str(arguments.temperature)]
    converse("deployments.cli.dialogue", arguments.run, options, _place_to_read(arguments))


def _demo(arguments: argparse.Namespace) -> None:
    require_gradio()
    context = _place_to_read(arguments)
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # in place of one in /tmp that all users of the machine share
        converse("deployments.cli.demo", arguments.run, ["--port", str(arguments.port)], context)


def _leaderboard(arguments: argparse.Namespace) -> None:
    context = _place_to_read(arguments)
    rows = read_ledger(context)
    if arguments.html is None:
        print(leaderboard(rows))
        return
    root = Path(context.store.url)  # links work where the store is a folder of this machine
    links = {run: (root / key).as_uri() for run, key in report_pages(context).items()} if root.is_dir() else {}
    with naming(arguments.html), open(arguments.html, "w", opener=at_once) as file:
        file.write(leaderboard_page(rows, links))
    print(arguments.html)


def _prepare_run() -> None:
    """Have a temporary server end with the run, and answer this run alone."""
    from deployments.temporary_server import TemporaryServer  # noqa: PLC0415 (takes seconds)

    settle_server()
    TemporaryServer()


if __name__ == "__main__":
    sys.exit(run(main))
