"""`Checkpoint.build`: from a part of a checkpoint to a new module, ready to be filled."""

from typing import Any

import msgspec
from torch import nn

from holdtrue.errors import DamageError, RestoreError, fail
from holdtrue.findings import Finding
from holdtrue.records.manifest import Part
from holdtrue.records.parts import ModuleState
from holdtrue.records.trust import Trust
from holdtrue.restore.build import construct
from holdtrue.restore.fresh import Fresh
from holdtrue.restore.mapped import Maps
from holdtrue.restore.materializing import materialize


def build_part(
    part: str, record: Part, tensors: Fresh, agreed: Trust, subject: str, maps: Maps | None
) -> nn.Module:
    """The module of a part, its tensors not yet read, but mapped where there are `maps`.

    Raises RestoreError saying why not."""
    where = f"{subject}: {part}"
    if record.kind != "module":
        raise fail(RestoreError, where, _no_module(part, record))
    if record.rebuild is None or record.rebuild.recipe is None:
        reason = record.rebuild.reason if record.rebuild else "its recipe was not kept"
        raise fail(RestoreError, where, _not_buildable(where, record, reason))
    try:
        state = msgspec.convert(record.state, ModuleState)
    except msgspec.ValidationError as error:
        raise fail(DamageError, where, _damaged(where, str(error))) from None
    unknown = [key for key in state.entries.values() if key not in tensors.tensors]
    if unknown:
        raise fail(DamageError, where, _damaged(where, f"there is no tensor {unknown[0]!r}"))
    module = construct(record.rebuild.recipe, agreed, where)
    materialize(module, part, state.entries, tensors, maps)
    return module


def _no_module(part: str, record: Part) -> Finding:
    return Finding(
        code="part-kind-changed",
        severity="error",
        where=part,
        what=f"the part is a {record.class_name or record.kind}, not a module",
        why="only modules are built from recipes",
        fix=f'take its value: ck["{part}"]',
    )


def _not_buildable(where: str, record: Part, reason: str) -> Finding:
    return Finding(
        code="not-rebuildable",
        severity="error",
        where=where,
        what=f"this checkpoint does not know how to build {record.class_name or 'the model'}",
        why=f"found when it was saved: {reason}",
        fix="build the model in your own code, then ck.restore(model=model); decorate the class "
        "with @holdtrue.buildable before the next save. `holdtrue inspect --source` shows the code "
        "that was kept",
    )


def _damaged(where: str, why: str) -> Any:
    return Finding(
        code="manifest-damaged",
        severity="error",
        where=where,
        what="the manifest describes something that cannot be",
        why=why,
        fix="use another checkpoint; this one was not written by holdtrue as it stands",
    )
