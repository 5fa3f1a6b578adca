"""What is left of a file and of a model once their names have been brought together."""

from msgspec import Struct

from holdtrue.doctor.subjects import Fit
from holdtrue.formats.view import LazyTensor
from holdtrue.records.architecture import Kind, TensorFacts
from holdtrue.records.dtypes import product


class Clash(Struct, frozen=True):
    """One tensor of two shapes."""

    name: str  # in the model
    saved: LazyTensor
    here: TensorFacts
    kind: Kind  # of the module that it belongs to


def owner(fit: Fit, name: str) -> Kind:
    """The module of the model that a tensor stands in."""
    return fit.target.kinds[fit.target.modules[name.rpartition(".")[0]]]


def facts(fit: Fit) -> dict[str, TensorFacts]:
    """Every parameter and buffer of the model by name, in its order."""
    found = {}
    for path, position in fit.target.modules.items():
        for name, tensor in fit.target.kinds[position].tensors.items():
            found[f"{path}.{name}" if path else name] = tensor
    return found


def renamed(fit: Fit) -> dict[str, str]:
    """Names of the file, as restore has them, to those of the model that they are not."""
    return {fit.standing[old]: new for old, new in fit.names.items() if fit.standing[old] != new}


def clashes(fit: Fit) -> list[Clash]:
    """Tensors of one name and two shapes, those that a rewrite explains left out."""
    here = facts(fit)
    explained = {name for rewrite in fit.rewrites for name in rewrite.made}
    found = []
    for old, name in fit.standing.items():
        tensor = here.get(name)
        if tensor is None or old in fit.names or name in explained:
            continue
        if tensor.shape is not None and tensor.shape != fit.state.names[old].shape:
            found.append(Clash(name, fit.state.names[old], tensor, owner(fit, name)))
    return found


def missing(fit: Fit) -> list[str]:
    """What the model keeps of its own: of each tensor one name."""
    filled = set(fit.names.values()) | {n for r in fit.rewrites for n in r.made}
    filled |= {clash.name for clash in clashes(fit)}
    filled |= {name for one in fit.parametrised for name in one.places}
    return [group[0] for group in fit.needed if not filled & set(group)]


def unexpected(fit: Fit) -> list[str]:
    """Names, as restore has them, of what the model has no place for."""
    used = {source for r in fit.rewrites for source in r.sources}
    used |= {source for one in fit.parametrised for source in one.sources}
    clashing = {clash.name for clash in clashes(fit)}
    return [
        name
        for old, name in fit.standing.items()
        if old not in fit.names and name not in clashing and name not in used
    ]


def filled_elements(fit: Fit) -> tuple[int, int]:
    """Elements of the model that the file fills, and all that it keeps; tied ones once."""
    here = facts(fit)
    filled = set(fit.names.values()) | {n for r in fit.rewrites for n in r.made}
    total = done = 0
    for group in fit.needed:
        count = product(here[group[0]].shape or ()) if group[0] in here else 0
        total += count
        done += count if filled & set(group) else 0
    return done, total


def matched(fit: Fit) -> str:
    """How much of the model the file fills, as a clause: "87.3 % of the model's elements …"."""
    done, total = filled_elements(fit)
    share = 100 * done / total if total else 0.0
    share = min(share, 99.9) if done < total else share
    return f"{share:.1f} % of the model's elements are matched ({done:,} of {total:,})"
