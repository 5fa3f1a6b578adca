"""`.pt2` exported programs: weights and metadata, in each of the layouts that torch.export wrote.

Until 2.7 the archive held `serialized_exported_program.json` beside whole torch files; then
`models/*.json` beside `data/weights/*.pt`; now each weight is a record of plain bytes, described
by `data/weights/*_weights_config.json`.
"""

from typing import Any

from holdtrue.errors import DamageError, OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats import torch_zip
from holdtrue.formats.finding_groups import group
from holdtrue.formats.pickle_machine import walk
from holdtrue.formats.pickle_operations import Operation
from holdtrue.formats.pt2_payload import json_record, payload
from holdtrue.formats.source import read_bytes
from holdtrue.formats.torch_zip import Records, describe_records
from holdtrue.formats.tree_walk import tensors_by_path
from holdtrue.formats.view import View
from holdtrue.formats.zip_archive import STORED, Archive, finding, read_directory
from holdtrue.limits import limits

_OLD = "serialized_exported_program.json"


class _Program:
    """What is gathered while one archive is read."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.findings: list[Finding] = []
        self.would_run: list[Operation] = []

    def inner(self, name: str) -> Any:
        """The tree of a torch file that lies in the archive; None where there is none."""
        entry = self.records.entry(name)
        if entry is None or not entry.nbytes:
            return None
        if entry.method != STORED:
            self.findings.append(
                finding("pt2-compressed-file", "error", self.records.where(name),
                        "a torch file inside the archive is compressed",
                        "torch.export stores it as it is; its tensors are not read")
            )  # fmt: skip
            return None
        path = self.records.archive.path
        if read_bytes(path, entry.offset, 2) != b"PK":
            self._pickle(name)
            return None
        archive = read_directory(path, (entry.offset, entry.nbytes))
        view = torch_zip.read_archive(archive, prefix=f"{name}:")
        self.findings += view.findings
        self.would_run += view.about["would_run"]
        return view.tree

    def _pickle(self, name: str) -> None:
        """What torch.export would unpickle: of no use to us, and told for what it would run."""
        walked = walk(self.records.read(name) or b"", where=self.records.where(name), salvage=True)
        self.findings.append(
            finding("pt2-object", "warning", self.records.where(name), "not a tensor; not read")
        )
        self.would_run += walked.would_run


def read(path: str) -> View:
    """An exported program: `state_dict` and `constants`, by model where there are several."""
    archive = read_directory(path)
    records = Records(archive, _root(archive))
    program = _Program(records)
    about = describe_records(records) | {"kind": "exported-program"}
    if records.entry(_OLD) is not None:
        tree = {
            "state_dict": program.inner("serialized_state_dict.pt"),
            "constants": program.inner("serialized_constants.pt"),
            "example_inputs": program.inner("serialized_example_inputs.pt"),
        }
        about |= _metadata(records, _OLD)
    else:
        models = [n.removesuffix(".json") for n in records.folder("models/")]
        models = [name for name in models if records.entry(f"models/{name}.json") is not None]
        if not models:
            raise _no_model(archive)
        found = {name: _model(program, name) for name in models[: limits().entries // 1000]}
        tree = found[models[0]] if len(models) == 1 else found
        about |= {"models": models} | _metadata(records, f"models/{models[0]}.json")
        compiled = [n for n in records.names() if n.startswith("data/aotinductor/")]
        if compiled:
            about["compiled"] = compiled
    about["would_run"] = program.would_run
    return View(
        path=path,
        format="pt2",
        about=about,
        tree=tree,
        tensors=tensors_by_path(tree, path),
        findings=group((*archive.findings, *records.findings, *program.findings)),
    )


def _root(archive: Archive) -> str:
    """The folder that everything is in: none in the old layout, one in the later ones."""
    names = [entry.name for entry in archive.entries]
    if any(name == _OLD for name in names):
        return ""
    for name in names:
        if name.endswith("/archive_format") or "/models/" in name:
            return name.partition("/")[0] + "/"
    return ""


def _model(program: _Program, name: str) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for part, folder, config in (
        ("state_dict", "data/weights/", f"data/weights/{name}_weights_config.json"),
        ("constants", "data/constants/", f"data/constants/{name}_constants_config.json"),
    ):
        whole = program.inner(f"{folder}{name}.pt")
        if whole is not None:
            tree[part] = whole
        elif program.records.entry(config) is not None:
            plain, pickled = payload(program.records, config, folder, program.findings)
            for key, record in pickled.items():
                value = program.inner(record)
                if value is not None:
                    plain[key] = value
            tree[part] = plain
    inputs = program.inner(f"data/sample_inputs/{name}.pt")
    if inputs is not None:
        tree["example_inputs"] = inputs
    return tree


def _metadata(records: Records, name: str) -> dict[str, Any]:
    """What the program's JSON says beside its graph: versions, and what its inputs stand for."""
    program = json_record(records, name)
    about: dict[str, Any] = {}
    for key in ("schema_version", "opset_version", "torch_version"):
        if isinstance(program.get(key), (str, dict)):
            about[key] = program[key]
    if isinstance(about.get("torch_version"), str):
        about["producer"] = f"torch {about['torch_version'][:40]}"
    graph = program.get("graph_module")
    signature = graph.get("signature") if isinstance(graph, dict) else None
    specs = signature.get("input_specs") if isinstance(signature, dict) else None
    about["inputs"] = [_spec(spec) for spec in specs] if isinstance(specs, list) else []
    return about


def _spec(spec: Any) -> dict[str, Any]:
    """One input of the graph: {"parameter": …, "parameter_name": …} made flat."""
    if not isinstance(spec, dict) or len(spec) != 1:
        return {"kind": "unknown"}
    ((kind, body),) = spec.items()
    flat = (
        {k: v for k, v in body.items() if isinstance(v, (str, bool))}
        if isinstance(body, dict)
        else {}
    )
    return {"kind": kind, **flat}


def _no_model(archive: Archive) -> OpenError | DamageError:
    return fail(
        OpenError,
        archive.path,
        Finding(
            code="pt2-no-model",
            severity="error",
            where=archive.path,
            what="the archive holds no exported program",
            why="neither models/*.json nor serialized_exported_program.json is in it",
            fix="export the model again with torch.export.save",
        ),
    )
