"""Reports as one self-contained HTML file: the same Markdown, figures inside, light and dark, no outside resource.

Whatever is added to the Markdown report appears here by itself.
"""

import base64
import html
import re
from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from eval.reporting.markdown import NO_ADDRESS

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --page: #ffffff; --soft: #f4f6f8; --line: #d5dae0; --link: #0b57d0;
  --muted: #59636e; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8eb; --page: #14171b; --soft: #1d2228; --line: #363d46;
  --link: #8ab4f8; --muted: #9aa4af; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
nav { display: flex; flex-wrap: wrap; gap: .35rem; margin: 1rem 0; }
nav a { padding: .15rem .7rem; border: 1px solid var(--line); border-radius: 1rem; font-size: .85rem; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; width: max-content; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { max-width: 15rem; padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: normal; }
th { max-width: 7rem; }
td[style*="right"] { white-space: nowrap; }
th { background: var(--soft); font-weight: 600; }
td code { font-size: .8em; overflow-wrap: anywhere; }
main > ul { max-width: 60rem; padding-left: 1.2rem; }
li { margin: .3rem 0; }
@media (max-width: 40rem) { th, td { max-width: 11rem; padding: .3rem .5rem; }
  th:first-child, td:first-child { position: sticky; left: 0; max-width: 9rem; background: var(--page);
    overflow-wrap: anywhere; }
  th:first-child { background: var(--soft); } }
pre, blockquote { margin: .5rem 0 1rem; padding: .7rem 1rem; background: var(--soft); border-radius: .4rem; }
pre { white-space: pre-wrap; font-size: .85rem; }
blockquote { border-left: .25rem solid var(--line); }
blockquote p { margin: .3rem 0; }
p, pre, blockquote { max-width: 52rem; }
details[open] > summary:empty { display: none; }
summary { cursor: pointer; color: var(--link); }
img { display: block; max-width: 100%; height: auto; margin: 1rem 0; background: #ffffff; border-radius: .4rem; }
"""

FOLDED_ROWS = 40
"""A longer table is folded behind a line that opens it."""


def html_page(markdown: str, images: dict[str, bytes]) -> str:
    """A whole HTML document from Markdown; `images` are PNG bytes by the name the Markdown gives them.

    Its title is the first heading, its table of contents the second-level ones. HTML in the text stays text. An image
    that was not given is an error (KeyError): a page with a hole is worse than none.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.add_render_rule("table_open", _open_table)
    reader.add_render_rule("table_close", _close_table)
    tokens = reader.parse(markdown)
    rows = 0
    for token in reversed(tokens):
        rows = {"table_close": 0, "tr_open": rows + 1}.get(token.type, rows)
        if token.type == "table_open" and rows > FOLDED_ROWS:
            token.meta["rows"] = rows - 1
    title, chapters = "", []
    for opening, content in pairwise(tokens):
        if opening.type == "heading_open" and opening.tag == "h1" and not title:
            title = content.content
        if opening.type == "heading_open" and opening.tag == "h2":
            opening.attrSet("id", re.sub(r"\W+", "-", content.content.lower()).strip("-"))
            chapters.append((opening.attrGet("id"), content.content))
        for part in content.children or []:
            if part.type == "image" and not str(part.attrGet("src")).startswith("data:"):
                png = images[str(part.attrGet("src"))]
                part.attrSet("src", f"data:image/png;base64,{base64.b64encode(png).decode()}")
    body = reader.renderer.render(tokens, reader.options, {}).replace(NO_ADDRESS, "")
    links = "".join(f'<a href="#{name}">{html.escape(heading)}</a>' for name, heading in chapters)
    if links:
        body = re.sub(r"(<h2 id=)", lambda found: f"<nav>{links}</nav>\n{found[0]}", body, count=1)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _open_table(self: RendererHTML, tokens: list[Token], place: int, options: OptionsDict, _: EnvType) -> str:
    rows = tokens[place].meta.get("rows")
    fold = f"<details><summary>{rows} rows</summary>" if rows else "<details open><summary></summary>"
    return f'{fold}<div class="table">{self.renderToken(tokens, place, options, {})}'


def _close_table(self: RendererHTML, tokens: list[Token], place: int, options: OptionsDict, _: EnvType) -> str:
    return self.renderToken(tokens, place, options, {}) + "</div></details>"
