"""The command line: `daily-train run`, `up`, `evaluate`, `export`, `leaderboard` and more: `daily-train --help`.

Arguments and settings are checked with what is imported here, in a fraction of a second. Each subcommand then imports
what it needs: Prefect alone takes a second, and most commands do without it.
"""

if __name__ == "__main__":  # a signal is answered to from here on
    __import__("deployments.cli.entry_point").cli.entry_point.continue_in_child()

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

# Without a server a run starts one of its own for its duration; nothing is reported to anybody.
os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect's client, huggingface_hub

from deployments.cli.arguments import changes_from, command_parser, settings_from
from deployments.cli.defaults import NOTIFY
from deployments.cli.entry_point import run_interruptibly, was_interrupted
from deployments.temporary_server import TemporaryServer
from flows.planned_stages import Planned, stages_of_run, stages_of_study
from flows.preset_files import Preset
from flows.run_config import STUDY_SECTIONS, compose, context_of, require_encodable, require_sections
from flows.suggestions import nearest_name_in_errors
from model.errors import name_file_in_errors, open_without_waiting, print_error
from model.parsing import ConfigError, parse
from tasks.config import EvaluationConfig, StudyConfig
from tasks.store import provenance
from tasks.store.context import Execution, RunContext

if TYPE_CHECKING:
    from tasks.report import Published

FIRST_STEPS = """\
The Daily Train trains a small text model from scratch and reports how good it is. To begin:
  daily-train run --preset smoke   the whole line in two minutes on any machine, to see it work
  daily-train up                   server and UI in the browser: start, watch and schedule runs
  daily-train --help               all commands; `daily-train COMMAND --help` all options of one"""


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; whatever fails ends in one sentence and exit code 1 (model/errors.py)."""
    try:
        arguments = command_parser().parse_args(argv)
        if arguments.command is None:
            print(FIRST_STEPS, file=sys.stderr)
            return 2
        COMMANDS[arguments.command](arguments)
        sys.stdout.flush()
    except _interruptions():
        return 130  # deployments/cli/entry_point.py says what is kept
    except BrokenPipeError as error:  # who read what is printed has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return print_error(error, "daily-train")
    except Exception as error:
        return 130 if was_interrupted() else print_error(error, "daily-train")  # a library may wrap the interrupt
    return 0


def _interruptions() -> tuple[type[BaseException], ...]:
    """What a signal raises, by itself or in a flow of Prefect's."""
    prefect = sys.modules.get("prefect.exceptions")
    return (KeyboardInterrupt, prefect.TerminationSignal) if prefect else (KeyboardInterrupt,)


def _execution(arguments: argparse.Namespace) -> Execution:
    return settings_from(Execution, "execution", arguments)


def _context_to_read(arguments: argparse.Namespace) -> RunContext:
    """For a command that changes nothing in the store, and makes none."""
    return context_of(_execution(arguments), dict(os.environ), reading=True)


def _run(arguments: argparse.Namespace) -> None:
    preset = arguments.preset or ("daily" if provenance.hardware()["gpus"] else "laptop")
    changes = changes_from(arguments.set)
    run = compose(preset, changes)  # refuse a mistake before anything is started
    execution = _execution(arguments)
    require_encodable(**changes, execution=execution)
    context = context_of(execution, dict(os.environ))
    with _server_of_run() as connect:
        from flows.config import forms_of
        from flows.daily import daily_train
        from tasks.preflight import require_ready
        from tasks.store.source_digest import model_source_digest

        require_ready([(run.model, run.train)], run.tokenizer, run.evaluation, context)  # before anything is built
        forms = forms_of(changes, daily_train)
        model_source_digest()  # kept for the stages that need it: half a second, in which the server starts
        connect()
        title = f"daily-train run: {preset} into {context.store.url}"
        with _shown(title, stages_of_run(run), arguments.json) as show:
            show(daily_train(preset=Preset(preset), **forms, execution=execution))


def _study(arguments: argparse.Namespace) -> None:
    changes = changes_from(arguments.set)
    require_sections(changes, STUDY_SECTIONS, "contamination-study")
    compose(arguments.preset, changes)
    study = settings_from(StudyConfig, "study", arguments)
    execution = _execution(arguments)
    require_encodable(**changes, execution=execution)
    with _server_of_run() as connect:
        from flows.config import forms_of
        from flows.study import contamination_study

        forms = forms_of(changes, contamination_study)
        connect()
        title = f"daily-train study: {arguments.preset} into {execution.store}"
        with _shown(title, stages_of_study(study), arguments.json) as show:
            show(contamination_study(preset=Preset(arguments.preset), study=study, **forms, execution=execution))


def _up(arguments: argparse.Namespace) -> None:
    from deployments.cli.up import up

    up(arguments.port, arguments.postgres)


def _notify(arguments: argparse.Namespace) -> None:
    address = os.environ.get(NOTIFY)
    if not address:
        raise ConfigError(f"set {NOTIFY} to the address; an argument could be read by every user of this machine")
    from deployments.access import auth_string, connected_to_server
    from deployments.cli.notify import notify

    with connected_to_server(arguments.port, auth_string()):
        notify(address)
    print("The first message is sent; runs that fail, finish or regress are told there.")


def _explain(arguments: argparse.Namespace) -> None:
    from tasks.explain import explain_item

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
    with nearest_name_in_errors():
        config = parse(EvaluationConfig, settings, "evaluate")
    context = context_of(_execution(arguments), dict(os.environ))
    from tasks.evaluate import evaluate_folder

    print(evaluate_folder(config, arguments.model, arguments.tokenizer, arguments.trust_code, arguments.out, context))
    print(f"\n{arguments.out}: scores.json, samples.parquet")


def _export(arguments: argparse.Namespace) -> None:
    context = _context_to_read(arguments)
    from deployments.cli.export import export

    family = export(arguments.name, arguments.destination, arguments.tokenizer, context)
    print(f"{arguments.destination}: a model of the {family} family for transformers, with its model card README.md")


def _chat(arguments: argparse.Namespace) -> None:
    if arguments.tokens < 1 or not (arguments.temperature == 0 or 0.01 <= arguments.temperature <= 100):
        raise ConfigError(
            f"--tokens must be at least 1 and --temperature 0 or from 0.01 to 100, but they are "
            f"{arguments.tokens} and {arguments.temperature}"
        )
    options = ["--tokens", str(arguments.tokens), "--temperature", str(arguments.temperature)]
    from deployments.cli.chat import run_with_model

    run_with_model("deployments.cli.dialogue", arguments.run, options, _context_to_read(arguments))


def _demo(arguments: argparse.Namespace) -> None:
    from deployments.cli.chat import require_gradio, run_with_model

    require_gradio()
    context = _context_to_read(arguments)
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # in place of one in /tmp that all users of the machine share
        run_with_model("deployments.cli.demo", arguments.run, ["--port", str(arguments.port)], context)


def _leaderboard(arguments: argparse.Namespace) -> None:
    context = _context_to_read(arguments)
    from eval.reporting.ledger import leaderboard, leaderboard_page
    from tasks.store.ledger import read_ledger, report_pages

    rows = read_ledger(context)
    if arguments.html is None:
        print(leaderboard(rows))
        return
    root = Path(context.store.url)  # links work where the store is a folder of this machine
    links = {run: (root / key).as_uri() for run, key in report_pages(context).items()} if root.is_dir() else {}
    with name_file_in_errors(arguments.html), open(arguments.html, "w", opener=open_without_waiting) as file:
        file.write(leaderboard_page(rows, links))
    print(arguments.html)


@contextmanager
def _shown(title: str, planned: Planned, as_json: bool) -> Iterator[Callable[["Published | str"], None]]:
    """Show the stages of a flow while it runs; gives the function that prints what the flow returns when all has been
    shown."""
    from deployments.terminal.live_table import shown_run
    from deployments.terminal.summary import printed

    with printed(as_json) as results, shown_run(title, planned) as state:
        yield lambda returned: results.append((returned, state))


@contextmanager
def _server_of_run() -> Iterator[Callable[[], None]]:
    """A function that connects Prefect's clients to the server of PREFECT_API_URL or, where that names none, to a
    temporary one, which is launched now and starts meanwhile: it ends with the run, and answers this run alone."""
    own = None if os.environ.get("PREFECT_API_URL") else TemporaryServer()

    def connect() -> None:
        from deployments.access import choose_server

        choose_server(own.environment if own and own.wait_until_ready() else None)

    try:
        yield connect
    finally:
        if own:
            if own.ready:
                _send_what_is_queued()
            own.stop()


def _send_what_is_queued() -> None:
    """Prefect sends logs and events from threads, the last ones when Python ends: a temporary server is gone then."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=SECONDS_TO_SEND, at_exit=False)


SECONDS_TO_SEND = 3.0

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
