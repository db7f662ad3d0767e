"""What a contamination check found, for people: verdicts, control, both texts side by side, effects on scores.

Every word of a document or an item is untrusted here and escaped.
"""

from typing import Any

from eval.reporting.markdown import markdown_table, narrow_tables, replace_control_characters, untrusted
from eval.reporting.score_table import interval_text
from eval.words import count, data_size

SHOWN_MATCHES = 10


def contamination_section(found: dict[str, Any]) -> str:
    """The whole section from `coverage` (coverage.json) and `matches` (lines of matches.jsonl)."""
    coverage, matches = found["coverage"], found["matches"]
    size = f"{coverage['documents']:,} documents, {count(coverage['words'])} words: every document against every item."
    lines = [size, verdict_table(coverage)]
    lines += ["**Positive control**: items planted in this text, and how many were found.", control_table(coverage)]
    negatives = coverage["control"]["hard_negatives"]
    lines += _canaries(coverage["control"])
    lines.append(
        f"Of {negatives['documents']} passages that only look like leaks (quotations, licences, recipes, templates) "
        f"{negatives['flagged']} were flagged."
    )
    lines.append(f"**The longest of {len(matches)} recorded matches**" if matches else "No match was found.")
    for match in matches[:SHOWN_MATCHES]:
        lines += match_lines(match)
    return "\n\n".join(lines)


def _canaries(control: dict[str, Any]) -> list[str]:
    """What proves that the training documents themselves were read; results of before have none of it."""
    if "canaries" not in control:
        return []
    canaries, probes = control["canaries"], control["probes"]
    scanned = data_size(control["scanned"]["bytes"])
    return [
        f"{canaries['found']:,} of {canaries['drawn']:,} stretches of words drawn from {canaries['documents']:,} of "
        f"these documents were found where they stand, and {probes['found']:,} of {probes['planted']:,} invented items "
        f"came back with the verdict that is known of them; {scanned} of text were scanned."
    ]


def control_suites(coverage: dict[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    """{suite: {form: {"planted", "found"}}} of the positive control."""
    return {suite: forms for suite, forms in coverage["control"].items() if suite in coverage["suites"]}


def verdict_table(coverage: dict[str, Any]) -> str:
    """Items of each suite by verdict and kind; in several tables where one would be too wide."""
    suites = coverage["suites"]
    kinds = sorted({kind for part in suites.values() for kind in part["by_kind"]} - {"clean", "uncheckable"})
    counts = ("items", "checkable", "clean", "contaminated")
    rows = [
        [suite, *(part[name] for name in counts), *(part["by_kind"].get(kind, 0) for kind in kinds)]
        for suite, part in suites.items()
    ]
    return narrow_tables(["suite", *counts, *kinds], rows)


def control_table(coverage: dict[str, Any]) -> str:
    """Planted items found, by suite and form; in several tables where one would be too wide."""
    recall = control_suites(coverage)
    names = list(dict.fromkeys(form for forms in recall.values() for form in forms))
    rows = [
        [suite, *(f"{forms[form]['found']} of {forms[form]['planted']}" if form in forms else None for form in names)]
        for suite, forms in recall.items()
    ]
    return narrow_tables(["suite", *(name.replace("_", " ") for name in names)], rows)


def match_lines(match: dict[str, Any]) -> list[str]:
    """One match as Markdown: where it is, the item's text and the document's, the run in bold."""
    effect = "contaminates" if match["contaminates"] else "too short to contaminate"
    return [
        f"**{match['suite']}:{match['item']}**, {match['run']} words, coverage {match['coverage']:.2f}, {effect}; "
        f"document {untrusted(match['document'])}, characters {match['start']:,} to {match['end']:,}",
        f"> item: {_bold(match['item_text'])}\n>\n> training text: {_bold(match['document_text'])}",
    ]


def effects_section(effects: list[dict[str, Any]]) -> list[str]:
    """What contaminated items do to the scores; nothing where there are none."""
    if not effects:
        return ["No scored item is contaminated: there is no difference to report."]
    header = ["suite", "metric", "clean", "contaminated", "contaminated − clean, %", "95 % interval"]
    header += ["gain on all items, %", "95 % interval", "random subsets, %"]
    rows = []
    for row in effects:
        counts = [row["suite"], row["metric"], row["n_clean"], row["n_contaminated"]]
        if row["too_few"]:
            rows.append([*counts, "too few to say", None, None, None, None])
        else:
            shown = [_points(row["difference"]), interval_text(row, "+", "difference_interval"), _points(row["gain"])]
            rows.append([*counts, *shown, interval_text(row, "+", "gain_interval"), interval_text(row, "+", "random")])
    return ["What contaminated items do to the scores:", markdown_table(header, rows)]


def explain(match: dict[str, Any], where: str) -> str:
    """One match for a terminal: the item and the training text, the run between » and «, nothing else that a
    terminal would act on."""
    lines = [
        f"{match['suite']}:{match['item']}  {match['verdict']} ({match['kind']}), longest run {match['run']} words, "
        f"coverage {match['coverage']:.2f}",
        "",
        "item",
        f"  {_plain(match['item_text'])}",
        "",
        f"training text: document {replace_control_characters(match['document'])}, characters {match['start']:,} to "
        f"{match['end']:,}, in {where}",
        f"  {_plain(match['document_text'])}",
    ]
    return "\n".join(lines)


def _plain(text: dict[str, str]) -> str:
    parts = (replace_control_characters(text[part]).replace("\n", " ") for part in ("before", "match", "after"))
    before, run, after = parts
    return f"{before}»{run}«{after}"


def _bold(text: dict[str, str]) -> str:
    return f"{untrusted(text['before'])} **{untrusted(text['match'].strip())}** {untrusted(text['after'])}"


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"
