"""What a stranger wants to know of a run within half a minute: what happened, whether it is better than the last
comparable run, what it cost, and whether benchmark items leaked into its training text.

Everything is read from the report (`report.json`). The lines are plain text for a terminal and a message, and Markdown
for a page; foreign words in them (the note, values of settings) are shown as they are and do nothing.
"""

import json
import math
from collections.abc import Callable
from typing import Any

from eval.reporting.contamination_report import control_suites
from eval.reporting.markdown import code, replace_control_characters, untrusted
from eval.reporting.score_table import Score, interval_text
from eval.reporting.stats import FEWEST_DEGREES
from eval.settings import Differing
from eval.words import count, dollars, duration, loss, loss_difference, percent

Report = dict[str, Any]
CHANGED, DIFFERS, NOTE = "Changed since that run", "Differs from the preset", "Note"
"""The lines that hold words of people."""
MOST_SETTINGS = 8
"""Settings that are named in one line."""
LONGEST_VALUE = 40
LADDER_DIFFERENCES = (0.001, 0.012)
"""About how much bits per byte of two seeds differ: smallest and largest of the trainings in docs/ladder.md."""


def headline(report: Report) -> list[tuple[str, str]]:
    """The headline in plain text: what each line is about, and the line."""
    return _lines(report, replace_control_characters, replace_control_characters)


def headline_section(report: Report) -> str:
    """The headline as a list in Markdown."""
    return "\n".join(f"* **{topic}**: {text}" for topic, text in _lines(report, untrusted, code))


def sentence_on_bits_per_byte(report: Report) -> str:
    """The result and the difference from the last comparable run in a few words, for lists of runs."""
    text = f"{loss(report['validation']['bits_per_byte'])} bits per byte"
    last = report["last"]
    return text if "reason" in last else f"{text}, {_direction(last['difference'])} in the last comparable run"


def short_commit(commit: str) -> str:
    """The beginning of a commit, and whether files were changed since."""
    return commit if len(commit) <= 12 else f"{commit[:12]}{'-dirty' if commit.endswith('-dirty') else ''}"


Shown = Callable[[str], str]
"""How foreign text is shown."""


def _lines(report: Report, prose: Shown, value: Shown) -> list[tuple[str, str]]:
    last, against = report["last"], _against_last(report)
    lines = [("Result", _result(report)), ("Against the last comparable run", _since(report))]
    if "reason" not in last:
        lines.append(("Benchmarks against that run", _benchmarks(against)))
        lines.append((CHANGED, _changes(last, report, value)))
    different = _settings(report["differs_from_preset"], value, "preset")
    lines.append((DIFFERS, different or "in nothing"))
    if report["note"]:
        lines.append((NOTE, prose(report["note"])))
    lines.append(("Contamination", _contamination(report)))
    lines.append(("Cost", _cost(report)))
    lines.append(("Scores", _scores(report["scores"])))
    return lines


def _result(report: Report) -> str:
    training, validation = report["training"], report["validation"]
    return (
        f"{loss(validation['bits_per_byte'])} bits per byte of validation text (loss {loss(validation['loss'])} nats "
        f"per token), {count(training['parameters'])} parameters trained on {count(training['tokens'])} tokens"
    )


def _since(report: Report) -> str:
    """How bits per byte differ from the last comparable run's, and what is known of chance."""
    last = report["last"]
    if "reason" in last:
        return f"there is {last['reason']}"
    named = f"the {loss(last['bits_per_byte'])} of run {last['run'][:12]} ({last['preset']}, {last['finished']})"
    return f"{_direction(last['difference'])} {named}. {_chance(last)}"


def _direction(difference: float) -> str:
    """A difference in bits per byte, of which less is better, as the beginning of a sentence that names the other."""
    shown = loss(abs(difference))
    if float(shown) == 0:
        return "the same bits per byte as"
    return f"{shown} {'lower (better) than' if difference < 0 else 'higher (worse) than'}"


def _chance(last: dict[str, Any]) -> str:
    """The interval of the difference, or why there is none and what seeds do."""
    seeds = last["seeds"]
    if last["interval"]:
        low, high = (loss_difference(limit) for limit in last["interval"])
        verdict = "excludes zero" if last["interval"][0] > 0 or last["interval"][1] < 0 else "includes zero"
        return (
            f"95 % interval {low} to {high}, which {verdict}, where two seeds differ as those of "
            f"{seeds['degrees'] + seeds['designs']} trainings in this store"
        )
    if seeds:
        trained, needed = (degrees + seeds["designs"] for degrees in (seeds["degrees"], math.ceil(FEWEST_DEGREES)))
        return (
            "No interval is known for one run each. Two seeds differ by about "
            f"{loss(math.sqrt(2) * seeds['deviation'])}, by {trained} trainings here ({needed} would give an interval)"
        )
    return (
        "No interval is known for one run each, and no training in this store was repeated with another seed; of small "
        f"models two seeds differ by about {LADDER_DIFFERENCES[0]} to {LADDER_DIFFERENCES[1]}"
    )


def _against_last(report: Report) -> dict[str, Any]:
    return next((entry for entry in report["against"] if "last" in entry["roles"]), {})


def _benchmarks(entry: dict[str, Any]) -> str:
    """What the paired tests against the last comparable run say."""
    if "rows" not in entry:
        return f"not compared: {entry.get('reason', 'its samples are gone')}"
    text = f"{entry['verdict']} in {len(entry['rows'])} paired tests" if entry["rows"] else entry["verdict"]
    for name in ("regressed", "improved"):
        if entry[name]:
            text += f"; {name}: {', '.join(_metric(row) for row in entry['rows'] if _name(row) in entry[name])}"
    if gold := entry["gold_bits_per_byte"]:
        text += f"; bits per byte of the right answers to {gold['n']:,} items {loss_difference(gold['difference'])}"
        if gold["interval"]:
            text += f" (95 % {' to '.join(loss_difference(limit) for limit in gold['interval'])})"
        else:
            text += f" (no interval: {gold['no_interval']})"
    return text


def _metric(row: dict[str, Any]) -> str:
    name = _name(row).replace("_probability", " probability")
    return f"{name} {100 * row['difference']:+.2f} points (95 % {interval_text(row, '+')})"


def _name(row: dict[str, Any]) -> str:
    return f"{row['suite']} {row['metric']}"


def _changes(last: dict[str, Any], report: Report, value: Shown) -> str:
    """Settings and code that differ from those of the last comparable run."""
    commits = short_commit(last["commit"]), short_commit(report["commit"])
    code_changed = f"the code (commit {commits[1]}, was {commits[0]})" if len(set(commits)) > 1 else ""
    if last["settings"] is None:
        changed = "its settings are not known: its report is gone or damaged"
    else:
        changed = _settings(last["settings"], value, "was")
    only_seed = last["settings"] is not None and set(last["settings"]) == {"train.seed"} and not code_changed
    text = "; ".join(filter(None, (changed, code_changed))) or "nothing"
    return f"{text}: nothing else, so the difference is what two seeds do" if only_seed else text


def _settings(settings: Differing, value: Shown, before: str) -> str:
    """Settings with the value now and, in brackets, the value before."""
    shown = [
        f"{value(name)} {_value(now, value)} ({before} {_value(old, value)})"
        for name, (old, now) in list(settings.items())[:MOST_SETTINGS]
    ]
    more = len(settings) - MOST_SETTINGS
    return ", ".join([*shown, *([f"and {more} more"] if more > 0 else [])])


def _value(setting: object, shown: Shown) -> str:
    if setting is None:
        return "none"
    text = setting if isinstance(setting, str) else json.dumps(setting, ensure_ascii=False)
    return shown(text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…")


def _contamination(report: Report) -> str:
    """Items found in the training text, and whether the search proved that it finds what is there."""
    coverage = report["contamination"]["coverage"]
    suites = {suite: part for suite, part in coverage["suites"].items() if part["severity"] == "test"}
    items, checkable, found = (
        sum(part[name] for part in suites.values()) for name in ("items", "checkable", "contaminated")
    )
    named = "".join(f", {suite} {part['contaminated']:,}" for suite, part in suites.items() if part["contaminated"])
    text = f"{found:,} of {items:,} benchmark items are in the training text ({_share(found, items)}{named})"
    if checkable < items:
        text += f"; {items - checkable:,} are too short to be looked for"
    counts = [form for forms in control_suites(coverage).values() for form in forms.values()]
    seen, planted = (sum(part[name] for part in counts) for name in ("found", "planted"))
    text += f"; positive control passed, {seen:,} of {planted:,} planted items found ({_share(seen, planted)})"
    missing = [score["suite"] for score in report["scores"] if score["value"] is None]
    return f"{text}; not checked, as its items could not be had: {', '.join(missing)}" if missing else text


def _share(part: int, whole: int) -> str:
    return percent(part / whole) if whole else "there are none"


def _cost(report: Report) -> str:
    """Time and money of all stages, and how much of it was spent in this run."""
    cost = report["cost"]
    text = (
        f"{duration(cost['seconds'])} and {dollars(cost['usd'])}, of which {duration(report['training']['seconds'])} "
    )
    text += f"training on {report['training']['device']}"
    if cost["reused"]["stages"]:
        reused = cost["reused"]
        text += (
            f"; {reused['stages']} of {len(report['stages'])} stages were built before: this run spent "
            f"{duration(cost['seconds'] - reused['seconds'])} and {dollars(cost['usd'] - reused['usd'])}"
        )
    return text


def _scores(scores: list[Score]) -> str:
    """Which scores can be told from guessing."""
    scored = [score for score in scores if score["value"] is not None]
    if not scored:
        return "nothing was scored"
    above = [score for score in scored if score["interval"] and score["interval"][0] > score["chance"]]
    if not above:
        return f"none of {len(scored)} can be told from guessing"
    named = [f"{_name(score)} {percent(score['value'])} (guessing {percent(score['chance'])})" for score in above]
    return f"{len(above)} of {len(scored)} are above guessing: {', '.join(named)}"
