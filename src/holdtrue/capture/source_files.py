"""The text of a model's own code, as files to read: excerpts of the files that it is defined in.

Only what the model uses is taken, in the order of the file: the classes, the functions that they
call, and the imports and assignments at the top that these mention. The whole file was rejected: it
may be a training script with much that is nobody's business.
"""

import ast
import re
from collections.abc import Mapping

from holdtrue.capture.definitions import (
    Definition,
    SourceFile,
    file_name,
    source_file,
    statement_text,
)
from holdtrue.capture.source_code import SourceCode

_ODD = re.compile(r"[^A-Za-z0-9_.-]")
_FILE_BYTES = 256 << 10  # of one excerpt
_Import = ast.Import | ast.ImportFrom


def source_files(code: SourceCode, defined: Mapping[type, Definition | None]) -> dict[str, str]:
    """File name under `source/` → excerpt, for user classes and the functions that they use."""
    found: dict[str, str] = {}
    used = {path: set(names) for path, names in code.used.items()}
    modules = {path: code.modules[path] for path in used}
    for cls, definition in defined.items():
        if definition is not None:
            names = used.setdefault(definition.path, set())
            names.update({cls.__qualname__.partition(".")[0], *definition.names})
            modules.setdefault(definition.path, cls.__module__)
    for path, names in used.items():
        file = source_file(path)
        text = _excerpt(file, names) if file is not None else ""
        if text and len(text) <= _FILE_BYTES:
            name = file_name(modules[path], path).replace("/", ".")
            found["source/" + (_ODD.sub("_", name).lstrip(".-")[-150:])] = text
    return found


def _excerpt(file: SourceFile, names: set[str]) -> str:
    """The statements at the top of a file that define `names`, and those that these need."""
    wanted, pieces = set(names), {}
    for statement in reversed(file.statements):
        if not isinstance(statement, _Import) and wanted & _defines(statement):
            pieces[statement.lineno] = statement
            wanted |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
    for statement in file.statements:
        if isinstance(statement, _Import) and wanted & _defines(statement):
            pieces[statement.lineno] = statement
    texts = [statement_text(pieces[line], file) for line in sorted(pieces)]
    return "\n".join(texts)


def _defines(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(a.asname or a.name).partition(".")[0] for a in statement.names}
    # An assignment, also one under `if` or `try`.
    stores = (n for n in ast.walk(statement) if isinstance(n, ast.Name))
    return {n.id for n in stores if isinstance(n.ctx, ast.Store)}
