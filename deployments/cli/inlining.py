"""One self-contained Python file out of a module and all that it uses of `model/`.

Only what is reachable by name is taken, so that the trainer's configuration does not travel with a network.
"""

import ast
from pathlib import Path

import model
from model.errors import DailyTrainError

MODEL = Path(model.__path__[0])


class InliningError(DailyTrainError):
    """A module cannot be made self-contained; the message says which name stands in the way."""


def inlined(path: Path) -> str:
    """The source of `path`, and before it the definitions of `model/` that it uses, each as it is written there.

    Raises InliningError when two modules define a name that is used, or an import renames one.
    """
    files: dict[Path, list[ast.stmt]] = {}
    _read(path, files)
    main = files.pop(path)
    definitions: dict[str, tuple[Path, ast.stmt]] = {}
    wanted: set[str] = set()
    to_do = [name for node in main for name in _used(node)]
    while to_do:
        name = to_do.pop()
        found = [(file, node) for file, body in files.items() for node in body if name in _defined(node)]
        if name in wanted or not found:
            continue
        if len(found) > 1:
            raise InliningError(f"{name} is defined in {' and '.join(file.name for file, _ in found)}")
        wanted.add(name)
        [definitions[name]] = found
        to_do += _used(found[0][1])
    taken = {file: [node for node in body if _defined(node) & wanted] for file, body in files.items()}
    used = [node for file, body in files.items() if taken[file] for node in body] + main
    imports = {ast.unparse(node): None for node in used if isinstance(node, ast.Import | ast.ImportFrom)}
    told, *rest = main
    chunks = [_text(path, told), "\n".join(text for text in sorted(imports) if not text.startswith("from model."))]
    for file, nodes in taken.items():
        chunks += [f"# From model/{file.name}"] * bool(nodes) + [_text(file, node) for node in nodes]
    chunks += [_text(path, node) for node in rest if not isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n\n\n".join(chunks) + "\n"


def _read(path: Path, files: dict[Path, list[ast.stmt]]) -> None:
    """The statements of a file and, before it, of the files of `model/` that it imports."""
    body = ast.parse(path.read_text()).body
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("model."):
            if renamed := [alias.name for alias in node.names if alias.asname not in (None, alias.name)]:
                raise InliningError(f"{path.name}: {renamed[0]} is imported under another name")
            file = MODEL / f"{node.module.removeprefix('model.')}.py"
            if file not in files:
                _read(file, files)
    files[path] = body


def _defined(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case ast.Assign(targets=targets):
            return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return set()


def _used(node: ast.stmt) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _text(path: Path, node: ast.stmt) -> str:
    """The statement as it is written, with its decorators."""
    first = min(part.lineno for part in [node, *getattr(node, "decorator_list", [])])
    return "\n".join(path.read_text().splitlines()[first - 1 : node.end_lineno])
