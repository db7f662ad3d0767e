"""The source files that an exported model brings along: a module and all that it imports of `model/`, side by side.

`transformers` copies the files that a module imports relatively, from the folder of that module alone. So each file is
copied as it is into one folder, and only its imports of `model/` change: `from model.network.gpt import GPT` becomes
`from .gpt import GPT`.
"""

import re
from pathlib import Path

import model
from model.errors import DailyTrainError

MODEL = Path(model.__path__[0])
IMPORT = re.compile(r"^(\s*)from (model(?:\.\w+)*)\.(\w+) import\b", re.MULTILINE)


class ExportedCodeError(DailyTrainError):
    """A module cannot be copied out of the project; the message names the files."""


def exported_code(path: Path) -> dict[str, str]:
    """Source by file name: `path` and every file of `model/` that it imports, directly or through others.

    Raises ExportedCodeError where two of these files have one name, or one is imported in another way.
    """
    files, read, waiting = {path.name: path}, {path}, [path]
    while waiting:
        file = waiting.pop()
        source = file.read_text()
        if found := re.search(r"^\s*(?:import model\b|from model import ).*", source, re.MULTILINE):
            raise ExportedCodeError(f"{file}: {found[0].strip()!r} (expected `from model.ROOM.FILE import NAME`)")
        for _, package, name in IMPORT.findall(source):
            imported = MODEL.joinpath(*package.split(".")[1:], f"{name}.py")
            known = files.setdefault(imported.name, imported)
            if known != imported:
                raise ExportedCodeError(f"{known} and {imported} would be one file of an exported model")
            if imported not in read:
                read.add(imported)
                waiting.append(imported)
    return {name: IMPORT.sub(r"\1from .\3 import", file.read_text()) for name, file in files.items()}
