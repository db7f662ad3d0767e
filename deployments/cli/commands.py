"""The command line: `daily-train run`, `up`, `evaluate`, `export`, `leaderboard` and more: `daily-train --help`."""

if __name__ == "__main__":  # before the imports, which take seconds
    __import__("deployments.cli.entry_point").cli.entry_point.continue_in_child()

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Without a server a run starts one of its own for its duration; nothing is reported to anybody.
os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect's client, huggingface_hub

from prefect.exceptions import TerminationSignal

from deployments.access import auth_string, choose_server, connected_to_server
from deployments.cli.arguments import changes_from, command_parser, settings_from
from deployments.cli.chat import ChatError, require_gradio, run_with_model
from deployments.cli.entry_point import run_interruptibly
from deployments.cli.export import export
from deployments.cli.notify import NotifyError, notify
from deployments.cli.up import NOTIFY, up
from eval.reporting.ledger import leaderboard, leaderboard_page
from eval.reporting.score_table import report_scores, score_notes
from flows.config import Execution, Preset, compose, context_of, forms_of, require_encodable
from flows.daily import daily_train
from flows.study import contamination_study
from model.errors import name_file_in_errors, open_without_waiting, print_error
from model.parsing import ConfigError, parse
from tasks.evaluate import EvaluationConfig, evaluate_folder
from tasks.explain import explain_item
from tasks.preflight import require_ready
from tasks.report import Published
from tasks.store.context import RunContext
from tasks.store.ledger import read_ledger, report_pages
from tasks.study import StudyConfig


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; whatever fails ends in one sentence and exit code 1 (model/errors.py)."""
    try:
        arguments = command_parser().parse_args(argv)
        COMMANDS[arguments.command](arguments)
        sys.stdout.flush()
    except (KeyboardInterrupt, TerminationSignal):
        print("daily-train: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError as error:  # who read what is printed has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return print_error(error, "daily-train")
    except Exception as error:
        return print_error(error, "daily-train")
    return 0


def _execution(arguments: argparse.Namespace) -> Execution:
    return settings_from(Execution, "execution", arguments)


def _context_to_read(arguments: argparse.Namespace) -> RunContext:
    """For a command that changes nothing in the store, and makes none."""
    return context_of(_execution(arguments), dict(os.environ), reading=True)


def _run(arguments: argparse.Namespace) -> None:
    changes = changes_from(arguments.set)
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
    changes = changes_from(arguments.set)
    compose(arguments.preset, changes)
    study = settings_from(StudyConfig, "study", arguments)
    forms, execution = forms_of(changes, contamination_study), _execution(arguments)
    require_encodable(**forms, execution=execution)
    _prepare_run()
    page = contamination_study(preset=Preset(arguments.preset), study=study, **forms, execution=execution)
    print(f"\n{Path(page).read_text()}" if "://" not in page else "", f"study: {page}", sep="\n")


def _up(arguments: argparse.Namespace) -> None:
    up(arguments.port, arguments.postgres)


def _notify(arguments: argparse.Namespace) -> None:
    address = os.environ.get(NOTIFY)
    if not address:
        raise NotifyError(f"set {NOTIFY} to the address; an argument could be read by every user of this machine")
    with connected_to_server(arguments.port, auth_string()):
        notify(address)
    print("The first message is sent; runs that fail, finish or regress are told there.")


def _explain(arguments: argparse.Namespace) -> None:
    print(explain_item(arguments.item, arguments.run, _context_to_read(arguments)))


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.seed is not None and arguments.items is None:
        raise ConfigError(f"--seed {arguments.seed} has no effect without --items: all items are scored")
    shots = changes_from([f"num_fewshot.{pair}" for pair in arguments.num_fewshot]).get("num_fewshot", {})
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
    context = _context_to_read(arguments)
    family = export(arguments.name, arguments.destination, arguments.tokenizer, context)
    print(f"{arguments.destination}: a model of the {family} family for transformers, with its model card README.md")


def _summary(published: Published, seconds: float) -> None:
    report = published.report
    text, validation = report["text"], report["validation"]
    in_stages = sum(stage.seconds for stage in published.stages.values())
    skipped = [name for name, stage in published.stages.items() if stage.skipped]
    print("\n" + report_scores(report["scores"]))
    for note in score_notes(report["scores"]):
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
    run_with_model("deployments.cli.dialogue", arguments.run, options, _context_to_read(arguments))


def _demo(arguments: argparse.Namespace) -> None:
    require_gradio()
    context = _context_to_read(arguments)
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # in place of one in /tmp that all users of the machine share
        run_with_model("deployments.cli.demo", arguments.run, ["--port", str(arguments.port)], context)


def _leaderboard(arguments: argparse.Namespace) -> None:
    context = _context_to_read(arguments)
    rows = read_ledger(context)
    if arguments.html is None:
        print(leaderboard(rows))
        return
    root = Path(context.store.url)  # links work where the store is a folder of this machine
    links = {run: (root / key).as_uri() for run, key in report_pages(context).items()} if root.is_dir() else {}
    with name_file_in_errors(arguments.html), open(arguments.html, "w", opener=open_without_waiting) as file:
        file.write(leaderboard_page(rows, links))
    print(arguments.html)


def _prepare_run() -> None:
    """Have a temporary server end with the run, and answer this run alone."""
    from deployments.temporary_server import TemporaryServer  # noqa: PLC0415 (takes seconds)

    choose_server()
    TemporaryServer()


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "run": _run,
    "up": _up,
    "notify": _notify,
    "study": _study,
    "explain": _explain,
    "evaluate": _evaluate,
    "export": _export,
    "chat": _chat,
    "demo": _demo,
    "leaderboard": _leaderboard,
}
"""By the name of the subcommand (deployments/cli/arguments.py)."""


if __name__ == "__main__":
    sys.exit(run_interruptibly(main))
