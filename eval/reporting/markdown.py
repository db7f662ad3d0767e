"""Markdown for reports and artifacts. Text that came from documents or models is untrusted and always escaped."""

import html
import re
import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
NO_ADDRESS = "\N{WORD JOINER}"
"""Invisible; in an address it keeps Prefect's UI from making a link of it. The HTML pages, which make none, leave it
out."""
COLUMN_PIXELS = 584
"""Width of an artifact's Markdown in Prefect's UI, in a window of 1280 pixels. Its tables break cells at spaces only,
do not scroll, and cover what is beside them when they are wider."""
CODE_CHARACTERS = 64
"""Of a line of code, that it need not be scrolled there."""
_CELL_PIXELS, _CHARACTER_PIXELS = 17.0, 7.4
"""Of a column without text, and of a character of the longest word in it; measured in Chromium."""
LONGEST_NOTE = 500
"""Characters of the note of a run."""
_NUMBER = re.compile(r"[+−-]?\$?\d[\d,.]*( (k|M|B|T|%|× 10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers, also those in words (`1.31 M`, `$0.12`), are aligned right, floats shown with four
    significant digits, None as a dash."""
    rows = [list(row) for row in rows]
    numeric = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    rule = "|" + "|".join("---:" if right else "---" for right in numeric) + "|"
    lines = ["| " + " | ".join(header) + " |", rule]
    lines += ["| " + " | ".join(table_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def narrow_tables(
    header: Sequence[str], rows: Iterable[Sequence[object]], names: int = 1, width: float = COLUMN_PIXELS
) -> str:
    """As `markdown_table`; where that is wider than so many pixels, its columns stand in several tables one below the
    other, each of which begins with the first columns, the `names`."""
    rows = [list(row) for row in rows]
    pixels = [_column_pixels([title, *(table_cell(row[at]) for row in rows)]) for at, title in enumerate(header)]
    always = list(range(names))
    parts: list[list[int]] = [[]]
    for column in range(names, len(header)):
        if parts[-1] and sum(pixels[at] for at in [*always, *parts[-1], column]) > width:
            parts.append([])
        parts[-1].append(column)
    chosen = [[*always, *part] for part in parts]
    return "\n\n".join(
        markdown_table([header[at] for at in part], [[row[at] for at in part] for row in rows]) for part in chosen
    )


def _is_number(value: object) -> bool:
    """Whether a cell belongs in a column of numbers."""
    return isinstance(value, int | float | None) or (isinstance(value, str) and _NUMBER.fullmatch(value) is not None)


def tables_fit(markdown: str, width: float = COLUMN_PIXELS) -> bool:
    """Whether every table of a text fits a column of so many pixels."""
    return all(pixels <= width for pixels in table_widths(markdown))


def table_widths(markdown: str) -> list[float]:
    """Pixels, about, that each table of a text needs at least: Markdown's, and those in HTML."""
    text = re.sub(r"^(`{3,}).*?^\1`*$", "", markdown, flags=re.DOTALL | re.MULTILINE)  # code scrolls by itself
    tables = [
        [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in table.splitlines()]
        for table in re.findall(r"(?:^[ \t]*\|.*(?:\n|\Z))+", text, re.MULTILINE)
    ]
    tables += [
        [
            re.findall(r"<t[dh]\b[^>]*>(.*?)(?=</t|<t[dhr]\b|\Z)", row, re.DOTALL)
            for row in re.split(r"<tr\b", table)[1:]
        ]
        for table in re.findall(r"<table\b.*?(?:</table>|\Z)", text, re.DOTALL)
    ]
    return [sum(_column_pixels(cells) for cells in zip_longest(*rows, fillvalue="")) for rows in tables if rows]


def _column_pixels(cells: Iterable[str]) -> float:
    return _CELL_PIXELS + _CHARACTER_PIXELS * max(len(word) for cell in cells for word in ["", *_shown(cell).split()])


def _shown(cell: str) -> str:
    """The text of a cell as a reader sees it."""
    if re.fullmatch(r"\s*:?-+:?\s*", cell):  # the rule below the header
        return ""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", cell)
    text = re.sub(r"<br\b[^>]*>", " ", text)
    return html.unescape(re.sub(r"<[^>]*>|\*\*|(?<!\\)`|\\(?=[^\w\s])", "", text))


def table_cell(value: object) -> str:
    """One table cell."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
        case _:
            return re.sub(r"(?<!\\)\|", r"\\|", str(value)).replace("\n", " ")


def what_is_wrong_with_note(note: object) -> str | None:
    """Why a text cannot be the note of a run, as the end of a sentence; None for a good one. Its HTML and Markdown are
    escaped wherever it is shown."""
    if not isinstance(note, str) or not note.strip():
        return f"is {note!a:.80}, expected a text"
    if len(note) > LONGEST_NOTE:
        return f"has {len(note):,} characters, expected at most {LONGEST_NOTE}"
    if _CONTROL.search(note) or re.search(r"[\n\t\ud800-\udfff]", note):
        return f"is {note!a:.80}, expected one line without control characters"
    return None


def replace_control_characters(text: str) -> str:
    """The text with `REPLACEMENT` for all that a terminal or a page would act on, but for tabs and ends of lines."""
    return _CONTROL.sub(REPLACEMENT, text)


def untrusted(text: str) -> str:
    """Text from a document or a model as inline Markdown that shows exactly that text and nothing more."""
    visible = html.escape(_without_addresses(replace_control_characters(text)), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|~>])", r"\\\1", visible).replace("\n", " ")


def sentence(text: str) -> str:
    """A sentence of ours with foreign words in it, such as the reason of an error: no link, image, code, emphasis or
    HTML comes of it, and in a terminal it can still be read."""
    visible = _without_addresses(replace_control_characters(text))
    return re.sub(r"([\\`*\[\]<|])", r"\\\1", visible).replace("\n", " ")


def _without_addresses(text: str) -> str:
    """The same to the eye, with `NO_ADDRESS` in each address of a page or a person: whatever is escaped, Prefect's UI
    makes links of them."""
    return re.sub(r"(?i)(?<=http)(?=s?:)|(?<=\bwww)(?=\.)|(?=@)", NO_ADDRESS, text)


def code_block(text: str) -> str:
    """Text from anywhere as a fenced block; the fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{replace_control_characters(text)}\n{fence}"


def passage(text: str) -> str:
    """A piece of prose as a block whose long lines are broken, so that a page need not be scrolled sideways."""
    lines = replace_control_characters(text).split("\n")
    return code_block("\n".join(textwrap.fill(line, CODE_CHARACTERS) for line in lines))


def code(text: str) -> str:
    """Text from anywhere as inline code, for a cell of a table."""
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    edge = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{edge}{replace_control_characters(text) or ' '}{edge}{fence}"
