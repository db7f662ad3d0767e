"""The arguments of `daily-train`: the parser of every subcommand, and the settings that their texts stand for."""

import argparse
import json
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from deployments.cli.defaults import NOTIFY, PORT
from eval.suites.suites import SUITES
from flows.preset_files import Preset
from flows.run_config import STUDY_SECTIONS, RunConfig
from flows.suggestions import nearest_name_in_errors
from model.errors import did_you_mean, nearest_name, reason_of, shown_value
from model.parsing import ConfigError, Dataclass, descriptions, field_types, parse, takes_text
from tasks.config import StudyConfig
from tasks.store.context import Execution

MOST_NAMES = 8
"""Of a setting, with its section: `data.source.path` has 3."""
Section = TypeVar("Section", bound=Dataclass)
Commands = argparse._SubParsersAction  # of argparse; it has no public name


class Parser(argparse.ArgumentParser):
    """A parser that suggests the nearest option or subcommand in place of one that it does not know."""

    subcommands: "dict[str, Parser]"
    """By name; empty of a subcommand itself."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self.subcommands = {}

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = self.subcommands.get(given.command, self)
            options = re.findall("(?<!\\w)--[a-z][a-z-]+", parser.format_help())
            hint = "".join(did_you_mean(text.partition("=")[0], options) for text in unknown if text[:1] == "-")
            parser.error(f"unknown argument {' '.join(map(shown_value, unknown))}{hint}")
        return given

    def error(self, message: str) -> NoReturn:
        if found := re.search("invalid choice: '([^']*)'", message):
            hint = did_you_mean(found[1], self.subcommands)
            message = f"unknown command {found[1]!r}{hint}; known are {', '.join(self.subcommands)}"
        super().error(message)


def command_parser() -> Parser:
    """The parser of the command line; `command` is the name of the subcommand, None where there is none."""
    parser = Parser(
        prog="daily-train",
        description="What is the best text model that one H100/H200 can train from scratch in 24 hours?",
    )
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    for add in (
        _add_run,
        _add_up,
        _add_notify,
        _add_study,
        _add_explain,
        _add_evaluate,
        _add_export,
        _add_chat_and_demo,
        _add_leaderboard,
    ):
        add(commands)
    parser.subcommands = commands.choices
    return parser


def _add_run(commands: Commands) -> None:
    parser = commands.add_parser(
        "run",
        help="run the whole line once: download, tokenizer, shards, contamination, training, benchmarks, report",
        description="Run the whole line once. Finished stages are skipped; an interrupted training is resumed.",
        epilog="example: daily-train run --preset laptop --set train.learning_rate=0.01 --store s3://bucket/prefix",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"one of {', '.join(Preset)} (default: daily on a machine with an NVIDIA GPU, else laptop)",
    )
    _json_option(parser)
    _changes_option(parser, tuple(field_types(RunConfig)))
    _execution_options(parser)


def _add_up(commands: Commands) -> None:
    parser = commands.add_parser(
        "up",
        help="start the Prefect server, a worker and the deployments on this machine",
        description="Start server, work pool, worker and deployments on loopback and print the address of the UI.",
        epilog="example: daily-train up --postgres postgresql://prefect@db.example.org/prefect",
    )
    parser.add_argument("--port", type=_port, default=PORT, help="port of the UI and API (default: %(default)s)")
    parser.add_argument(
        "--postgres",
        metavar="URL",
        help="database of the server, as postgresql://USER@HOST/NAME or postgresql:///NAME?host=FOLDER, with its "
        "password in ~/.pgpass or PGPASSWORD (default: PREFECT_SERVER_DATABASE_CONNECTION_URL, else SQLite)",
    )


def _add_notify(commands: Commands) -> None:
    parser = commands.add_parser(
        "notify",
        help="have the server tell of runs that fail, finish or regress: Discord, Slack, mail or a webhook",
        description="Keep the address on the running server, send a first message, set up the messages about runs.",
        epilog=f"example: {NOTIFY}=https://discord.com/api/webhooks/… daily-train notify; `up` does the same by itself",
    )
    parser.add_argument("--port", type=_port, default=PORT, help="port of the server (default: %(default)s)")


def _add_study(commands: Commands) -> None:
    parser = commands.add_parser(
        "study",
        help="train with and without planted benchmark items and report what that does to the scores",
        description="Train the same small model with and without planted copies of benchmark items.",
        epilog="example: daily-train study --suite arc_easy --items 100 --copies 8; --copies 0 is an A/A run",
    )
    parser.add_argument("--preset", default="study", metavar="NAME", help="recipe of both arms (default: %(default)s)")
    for field in fields(StudyConfig):
        about = f"{descriptions(StudyConfig)[field.name]} (default: {field.default})"
        parser.add_argument(f"--{field.name}", metavar=field.name.upper(), help=about)
    _json_option(parser)
    _changes_option(parser, STUDY_SECTIONS)
    _execution_options(parser)


def _add_explain(commands: Commands) -> None:
    parser = commands.add_parser(
        "explain",
        help="show why a benchmark item counts as contaminated: the item and the training text side by side",
        epilog="example: daily-train explain hellaswag:123",
    )
    parser.add_argument("item", metavar="SUITE:NUMBER", help="the item, by lm-eval's doc_id")
    parser.add_argument("--run", metavar="RUN", help="beginning of the run's name (default: the newest)")
    _execution_options(parser)


def _add_evaluate(commands: Commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="score any model on the benchmarks: a finished model's folder, or what transformers opens",
        description="Score a model on the five suites, print the table and write scores.json and samples.parquet.",
        epilog="example: daily-train evaluate HuggingFaceTB/SmolLM2-135M@main --suites arc_easy --items 500",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder of a finished model, or a folder, .gguf file or hub id that transformers opens, with ID@REVISION",
    )
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="of a finished model, if not in its folder")
    parser.add_argument("--suites", nargs="+", default=list(SUITES), metavar="SUITE", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--items", type=int, metavar="N", help="a fixed random subset of N items a suite; default: all")
    parser.add_argument("--seed", type=int, help="chooses the subset (default: 0)")
    parser.add_argument("--num-fewshot", nargs="+", default=[], metavar="SUITE=N", help="examples before questions")
    parser.add_argument(
        "--precision", default="fp32", help="fp32, tf32 (a GPU's faster products) or bf16 (default: %(default)s)"
    )
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="run the modelling file that the model brings along; one of the hub needs ID@40-digit-commit",
    )
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="folder for the two files (%(default)s)")
    _execution_options(parser)


def _add_export(commands: Commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write a finished model as a folder that transformers opens",
        description="Write weights, config, tokenizer and model card of a finished model to a new folder.",
        epilog="example: daily-train export latest ./model; daily-train export run/final ./model --tokenizer t.json",
    )
    parser.add_argument(
        "name",
        metavar="RUN-OR-FOLDER",
        help="beginning of a run's or its train stage's key, `latest`, or the folder of a finished model",
    )
    parser.add_argument("destination", metavar="DEST", type=Path, help="folder to write, new or empty")
    parser.add_argument("--tokenizer", metavar="FILE", type=Path, help="tokenizer.json of a folder that holds none")
    _execution_options(parser)


def _add_chat_and_demo(commands: Commands) -> None:
    chat = commands.add_parser(
        "chat",
        help="let a run's model continue your text in the terminal, before and after training",
        epilog="example: echo 'My fellow citizens,' | daily-train chat --tokens 80",
    )
    chat.add_argument("--tokens", type=int, default=64, help="length of an answer in tokens (default: %(default)s)")
    chat.add_argument("--temperature", type=float, default=0.8, help="0: the likeliest token (default: %(default)s)")
    demo = commands.add_parser("demo", help="the same as a page: trained and untrained side by side (extra `demo`)")
    demo.add_argument("--port", type=_port, default=7860, help="port of the page on loopback (default: %(default)s)")
    for talk in (chat, demo):
        talk.add_argument("--run", default="", metavar="RUN", help="beginning of the run's name (default: the newest)")
        _execution_options(talk)


def _add_leaderboard(commands: Commands) -> None:
    parser = commands.add_parser("leaderboard", help="print every run in the store, best bits per byte first")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write it as one HTML page instead")
    _execution_options(parser)


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{shown_value(text)} is no port: expected a number from 1 to 65535")
    return int(text)


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print the results as one JSON object, and nothing else on standard output"
    )


def _changes_option(parser: argparse.ArgumentParser, sections: tuple[str, ...]) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help=f"change one value of the preset, as JSON or plain text; sections are {', '.join(sections)}",
    )


def _execution_options(parser: argparse.ArgumentParser) -> None:
    """Every field of Execution as an option of the same name."""
    about = "where and how; part of no stage's key, changes results by rounding only"
    group = parser.add_argument_group("execution", about)
    for name, description in descriptions(Execution).items():
        group.add_argument(f"--{name.replace('_', '-')}", metavar=name.upper(), help=description)


def settings_from(kind: type[Section], section: str, arguments: argparse.Namespace) -> Section:
    """A section whose every field is an option of the same name."""
    texts = {name: getattr(arguments, name) for name in field_types(kind)}
    values = {
        name: text if takes_text(field_types(kind)[name]) else _value(text)
        for name, text in texts.items()
        if text is not None
    }
    with nearest_name_in_errors():
        return parse(kind, values, section)


def changes_from(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """`a.b=1` and `a.b.c=x` as nested dictionaries. Raises ConfigError for a setting that is given twice."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        names = path.split(".")
        option = f"--set {shown_value(assignment)}"
        if not equals or not 2 <= len(names) <= MOST_NAMES:
            raise ConfigError(f"{option}: expected SECTION.FIELD=VALUE{_full_name(path)}")
        level = changes
        for name in names[:-1]:
            level = level.setdefault(name, {})
            if not isinstance(level, dict):
                raise ConfigError(f"{option}: {path.rpartition('.')[0]} is given already, as {shown_value(level)}")
        if names[-1] in level:
            raise ConfigError(f"{option}: {path} is given already, as {shown_value(level[names[-1]])}")
        try:
            level[names[-1]] = _value(text)
        except ConfigError as error:
            raise ConfigError(f"{option}: {error}") from None
    return changes


def _full_name(field: str) -> str:
    """A suggestion for a setting that is given without its section."""
    sections = field_types(RunConfig)
    settings = [f"{section}.{name}" for section, kind in sections.items() for name in field_types(kind)]
    full_names = {setting.partition(".")[2]: setting for setting in settings} | {
        setting: setting for setting in settings
    }
    nearest = nearest_name(field, full_names)
    return f" (did you mean {full_names[nearest]!r}?)" if nearest else ""


def _value(text: str) -> Any:
    """A value that is given as JSON; one that is not JSON is taken as text."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except json.JSONDecodeError:
        return text
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 1,000 levels of brackets
        raise ConfigError(f"the value {shown_value(text)} cannot be read: {reason_of(error)}") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ConfigError(f"{twice!r} is given twice in {shown_value(values)}")
    return values
