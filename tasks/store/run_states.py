"""What the states of task runs and flow runs say: what was skipped or built, when and by which run, what failed.

A task whose stages are all in the store ends as `Skipped`, a completed state with a badge of its own in the UI. Its
message, and the name of its task run, say "skipped, built on DATE by RUN". The message of a flow run sums up its
stages. Callers get the results themselves, never states.
"""

from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from time import monotonic
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext
from prefect.states import Completed, Failed, State

from eval.words import duration
from model.errors import debugging, sentence_of
from tasks.store import retries
from tasks.store.manifest import Manifest
from tasks.store.objects import printable

if TYPE_CHECKING:
    from tasks.store.stage import StageResult

P = ParamSpec("P")
R = TypeVar("R")

SKIPPED = "Skipped"
"""Name of the state of a task run that built nothing."""
RETRIES = 3
LONGEST_NAME = 100
"""Characters of a run's name in a sentence: a manifest may be another's."""
MOST_RUNS = 3
"""Runs that are named where several built what was skipped."""


@dataclass
class _Record:
    """What one task run, or one flow run, has done so far."""

    finished: "dict[str, StageResult]" = field(default_factory=dict)
    """By key; a stage that was built and later found in the store is one that was built."""
    sentences: list[str] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)
    """How many task runs of each name were begun."""
    failed: tuple[str, Exception, str] | None = None
    """The task run that failed last, its error, and that in words."""


_task: ContextVar[_Record | None] = ContextVar("_task", default=None)
_flow: ContextVar[_Record | None] = ContextVar("_flow", default=None)


def record_stage(result: "StageResult") -> None:
    """Tell the task run and the flow run that are under way, if any, of a finished stage."""
    for record in filter(None, (_task.get(), _flow.get())):
        earlier = record.finished.get(result.manifest.key)
        if earlier is None or earlier.skipped:
            record.finished[result.manifest.key] = result


def add_to_state(sentence: str) -> None:
    """Add words to the message with which the task run that is under way, if any, completes."""
    if (record := _task.get()) is not None:
        record.sentences.append(sentence)


def built_by(manifest: Manifest) -> str:
    """When a stage was built and by which run: "on 2026-11-26 by NAME". Of a manifest without a run, by its commit."""
    facts = manifest.provenance
    started, run, commit = (facts.get(name) for name in ("started", "run", "commit"))
    words = f"on {printable(started[:10])}" if isinstance(started, str) and started else "earlier"
    if isinstance(run, str) and run:
        name = printable(run)
        return f"{words} by {name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME] + ' …'}"
    return f"{words} at commit {printable(commit)[:12]}" if isinstance(commit, str) and commit else words


def skipped_words(results: "list[StageResult]") -> str:
    """ "skipped, built on DATE by RUN" of skipped stages; of several runs each with how many it built."""
    runs = Counter(built_by(result.manifest) for result in results)
    if len(runs) == 1:
        return f"skipped, built {next(iter(runs))}"
    named = [f"{run} ({count} of {len(results)})" for run, count in runs.most_common(MOST_RUNS)]
    return f"skipped, built {', '.join(named)}{' and by others' if len(runs) > MOST_RUNS else ''}"


def retry_condition(_task: object, _run: object, state: State) -> bool:
    """Whether a later attempt can mend a failure: somebody on the network did not answer. Never so for bad input."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and retries.is_transient(error)


class StageTask(Task[P, R]):
    """A task whose function returns a state; whoever calls it gets the result, or the error, in that state."""

    def __call__(self, *arguments: P.args, **parameters: P.kwargs) -> R:  # type: ignore[override]  # Prefect's overloads
        returned: Any = super().__call__(*arguments, **parameters)
        wanted = parameters.get("return_state")
        return returned.result() if isinstance(returned, State) and not wanted else returned


def stage_task(name: str) -> Callable[[Callable[P, R]], StageTask[P, R]]:
    """A Prefect task with the name of its stage, kept by its own manifest, tried again when hub, store or server is
    away, whose state says in words how it ended. Outside a task run `fn` returns the plain result."""

    def decorate(function: Callable[P, R]) -> StageTask[P, R]:
        @wraps(function)
        def run(*arguments: P.args, **parameters: P.kwargs) -> R:
            return _run_task(function, *arguments, **parameters)

        return StageTask(
            run,
            name=name,
            task_run_name=lambda: _numbered(name),
            cache_policy=NO_CACHE,
            retries=RETRIES,
            retry_delay_seconds=[5, 15, 30],
            retry_condition_fn=retry_condition,
        )

    return decorate


def _run_task(function: Callable[P, R], *arguments: P.args, **parameters: P.kwargs) -> R:
    """The state of a task run, with what the function returns or raises; outside a task run the plain result."""
    context = TaskRunContext.get()
    if context is None:
        return function(*arguments, **parameters)
    record, began = _Record(), monotonic()
    token = _task.set(record)
    try:
        result = function(*arguments, **parameters)
    except Exception as error:
        last = context.task_run.run_count > RETRIES
        if debugging() or (retries.is_transient(error) and not last):
            raise
        sentence = sentence_of(error)
        if (whole := _flow.get()) is not None:
            whole.failed = (context.task_run.name, error, sentence)
        return cast(R, Failed(data=error, message=sentence))
    finally:
        _task.reset(token)
    return cast(R, _completed(record, result, monotonic() - began, context))


def _numbered(name: str) -> str:
    """The name of a task run; of the second of its kind in a flow run, as of a study, `train 2`."""
    if (record := _flow.get()) is None:
        return name
    record.names[name] += 1
    return name if record.names[name] == 1 else f"{name} {record.names[name]}"


def _completed(record: _Record, result: object, seconds: float, context: TaskRunContext) -> State:
    """The state of a task run that has ended well; the run of one that was skipped is renamed."""
    stages = list(record.finished.values())
    skipped = [stage for stage in stages if stage.skipped]
    if skipped and len(skipped) == len(stages):
        words, name = skipped_words(skipped), SKIPPED
        context.task_run.name += f": {words}"  # the event of the state that follows brings it to the server
    else:
        words, name = f"built in {duration(seconds)}" if stages else f"done in {duration(seconds)}", None
        if skipped:
            words += f", {len(skipped)} of {len(stages)} stages skipped"
    return Completed(data=result, name=name, message="; ".join([words, *record.sentences]))


def ends_in_words(where: Callable[[Any], str | None]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """For the function of a flow, below `@flow`: the state of the run says how many stages were skipped and where the
    result is (`where` gives that), or which task failed and why. Outside a flow run the function stays as it is."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*arguments: P.args, **parameters: P.kwargs) -> R:
            return _run_flow(function, where, *arguments, **parameters)

        return run

    return decorate


def _run_flow(
    function: Callable[P, R], where: Callable[[Any], str | None], *arguments: P.args, **parameters: P.kwargs
) -> R:
    """The state of a flow run, as `_run_task`."""
    if FlowRunContext.get() is None:
        return function(*arguments, **parameters)
    record, began = _Record(), monotonic()
    token = _flow.set(record)
    try:
        result = function(*arguments, **parameters)
    except Exception as error:
        if debugging():
            raise
        return cast(R, Failed(data=error, message=_failure(record, error)))
    finally:
        _flow.reset(token)
    message = _summary(record, monotonic() - began, where(result))
    return cast(R, Completed(data=result, message=message))


def _failure(record: _Record, error: Exception) -> str:
    """Which task failed, and why."""
    if record.failed is None or record.failed[1] is not error:
        return sentence_of(error)
    name, _, sentence = record.failed
    return f"{name} failed: {sentence}"


def _summary(record: _Record, seconds: float, place: str | None) -> str:
    """What happened in a flow run: "10 of 11 stages skipped, 1 built in 5 min 2 s; report at …"."""
    count = len(record.finished)
    skipped = sum(stage.skipped for stage in record.finished.values())
    if not count:
        words = f"done in {duration(seconds)}"
    elif skipped == count:
        words = f"all {count} stages skipped, nothing was left to do"
    elif skipped:
        words = f"{skipped} of {count} stages skipped, {count - skipped} built in {duration(seconds)}"
    else:
        words = f"all {count} stages built in {duration(seconds)}"
    return f"{words}; report at {place}" if place else words
