# ruff: noqa: E501  (tables, one attack a line)
"""Pickles that would run code: each a finding, nothing run. Plain ones; `torch_files` wraps them."""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path

from attacks import canary
from attacks.attack import INERT, Attack, Must, add, refused, told

FAMILY = "pickle"


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def call(module: str, name: str, argument: bytes) -> bytes:
    """What leaves `module.name(argument)` on the stack."""
    return f"c{module}\n{name}\n".encode() + b"(" + text(argument) + b"tR"


def build_gadget(run: bytes) -> bytes:
    return (
        b"c__main__\nGadget\n)\x81}"
        + text(b"__setstate__")
        + b"cos\nsystem\nsb"
        + text(run)
        + b"b."
    )


SCANNERS = "bypasses of pickle scanners"
RUN = told("code-in-file")

# Name → the stream for a command, and what the list of what would run has to name.
CODE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "reduce": (lambda run: call("os", "system", run) + b".", "os.system"),
    "posix": (lambda run: call("posix", "system", run) + b".", "posix.system"),
    "eval": (lambda run: call("builtins", "eval", b"__import__('os').system('%s')" % run) + b".",
             "builtins.eval"),
    "python 2 eval": (lambda run: b"\x80\x02" + call("__builtin__", "eval", b"1") + b".",
                      "builtins.eval"),
    "subprocess": (lambda run: call("subprocess", "getoutput", run) + b".",
                   "subprocess.getoutput"),
    "inst": (lambda run: b"(" + text(run) + b"ios\nsystem\n.", "os.system"),
    "object": (lambda run: b"(cos\nsystem\n" + text(run) + b"o.", "os.system"),
    "object popped": (lambda run: b"(cos\nsystem\n" + text(run) + b"o0N.", "os.system"),
    "newobj": (lambda run: b"csubprocess\nPopen\n" + text(run) + b"\x85\x81.", "subprocess.Popen"),
    "newobj with keywords": (
        lambda run: b"csubprocess\nPopen\n)}" + text(b"args") + text(run) + b"s\x92.",
        "subprocess.Popen"),
    "stack global": (lambda run: b"\x8c\x02os\x8c\x06system\x93" + text(run) + b"\x85R.",
                     "os.system"),
    "stack global from the memo": (
        lambda run: b"\x8c\x06system\x94\x8c\x02os\x94h\x01h\x00\x93" + text(run) + b"\x85R.",
        "os.system"),
    "getattr": (lambda run: b"cbuiltins\ngetattr\ncos\nsystem\n0ctorch\nhub\n" + text(b"load")
                + b"\x86R" + text(run) + b"\x85R.", "torch.hub.load"),
    "getattr of a module": (
        lambda run: b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n" + text(b"os") + b"\x85R"
        + text(b"system") + b"tR" + text(run) + b"\x85R.", "builtins.__import__"),
    "dotted name": (lambda run: b"\x80\x04\x8c\x02os\x8c\x0bpath.os.sys\x93.", "os.path.os.sys"),
    "build gadget": (build_gadget, "os.system"),
    "pip": (lambda run: call("pip", "main", run) + b".", "pip.main"),
    "ctypes": (lambda run: call("ctypes", "CDLL", run) + b".", "ctypes.CDLL"),
    "pydoc": (lambda run: call("pydoc", "locate", run) + b".", "pydoc.locate"),
    "partial": (lambda run: b"cfunctools\npartial\ncos\nsystem\n\x85R.", "functools.partial"),
    "map": (lambda run: b"cbuiltins\nmap\ncos\nsystem\n](" + text(run) + b"e\x86R.", "os.system"),
    "torch.load": (lambda run: call("torch", "load", run) + b".", "torch.load"),
    "numpy": (lambda run: call("numpy.testing._private.utils", "runstring", run) + b".",
              "numpy.testing._private.utils.runstring"),
    "as a tensor's function": (
        lambda run: b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n"
        + text(run) + b"\x85}tR.", "os.system"),
    "as a default factory": (
        lambda run: b"ccollections\ndefaultdict\ncos\nabort\n\x85R.", "os.abort"),
    "attribute of a class": (
        lambda run: b"ctorch\nTensor\n}" + text(b"__del__") + b"cos\nsystem\nsb.", "os.system"),
    "item of a module": (
        lambda run: b"csys\nmodules\n" + text(b"os") + b"Ns.", "sys.modules"),
    "magic number computed": (
        lambda run: call("builtins", "exec", b"open('x','w')") + b".", "builtins.exec"),
}  # fmt: skip

SEEN = {
    "pip": "CVE-2025-1716",
    "dotted name": "CVE-2025-10157",
    "inst": "CVE-2026-22608",
    "object popped": "CVE-2026-22608",
    "build gadget": "CVE-2026-22608",
    "ctypes": "CVE-2026-22608",
    "pydoc": "CVE-2026-22608",
    "torch.load": "CVE-2025-32434",
    "numpy": "CVE-2025-10155",
    "item of a module": "CVE-2026-24747",
    "attribute of a class": "CVE-2026-24747",
}
MORE_CODE: dict[str, Callable[[bytes], bytes]] = {
    "getattr chain through a class": lambda run: b"cbuiltins\ngetattr\n(cbuiltins\nobject\n"
    + text(b"__subclasses__") + b"tR)R.",
    "import of a module with effects": lambda run: call("importlib", "import_module",
                                                       b"holdtrue_bait") + b".",
    "runpy": lambda run: call("runpy", "run_path", run) + b".",
    "code.interact": lambda run: b"ccode\nInteractiveInterpreter\n)R}" + text(b"x") + b"Nsb.",
    "operator.methodcaller": lambda run: b"coperator\nmethodcaller\n(" + text(b"system")
    + text(run) + b"tR(cos\npath\ntR.",
    "timeit": lambda run: call("timeit", "timeit", canary.python()) + b".",
    "asyncio subprocess": lambda run: call("asyncio.unix_events",
        "_UnixSubprocessTransport._start", run) + b".",
    "cProfile": lambda run: call("cProfile", "run", canary.python()) + b".",
    "doctest": lambda run: call("doctest", "debug_script", canary.python()) + b".",
    "torch.jit.unsupported_tensor_ops": lambda run: call(
        "torch.jit.unsupported_tensor_ops", "execWrapper", canary.python()) + b".",
    "torch.utils.collect_env": lambda run: call("torch.utils.collect_env", "run", run) + b".",
    "torch.utils._config_module": lambda run: call(
        "torch.utils._config_module", "ConfigModule.load_config", run) + b".",
    "torch.hub.load": lambda run: b"ctorch.hub\nload\n(" + text(b"/tmp/x") + text(b"m") + b"tR.",
    "torch.fx code": lambda run: call("torch.fx.graph_module", "_exec_with_source",
                                      canary.python()) + b".",
    "http request": lambda run: call("urllib.request", "urlopen", b"http://127.0.0.1:9/") + b".",
    "deleting a tree": lambda run: call("shutil", "rmtree", b"../outside") + b".",
    "writing a file": lambda run: b"cbuiltins\nopen\n(" + text(str(canary.canary()).encode())
    + text(b"w") + b"tR.",
    "audit hook removed": lambda run: b"csys\nsetprofile\ncos\nsystem\n\x85R.",
    "a breakpoint": lambda run: b"cbuiltins\nbreakpoint\n)R.",
    "weakref finalizer": lambda run: b"cweakref\nfinalize\n(ccollections\nOrderedDict\n)R"
    b"cos\nsystem\n" + text(run) + b"tR.",
    "unpickling again": lambda run: b"cpickle\nloads\nC" + bytes([len(run) + 24])
    + (call("os", "system", run) + b".")[:255].ljust(len(run) + 24, b".") + b"\x85R.",
    "two streams": lambda run: b"N." + call("os", "system", run) + b".",
}  # fmt: skip


def _bytes(made: Callable[[bytes], bytes]) -> Callable[[Path], bytes]:
    return lambda folder: made(canary.shell())


for _name, (_made, _shown) in CODE.items():
    add(Attack(
        f"code: {_name}", FAMILY, f"to run {_shown}", RUN, _bytes(_made),
        SEEN.get(_name, SCANNERS), "model.bin",
    ))  # fmt: skip
_OTHERWISE: dict[str, Must] = {
    "getattr chain through a class": INERT,  # object.__subclasses__() reaches nothing by itself
    "two streams": refused("unknown-format"),  # `N.`: two bytes are no pickle that one can tell
}
for _name, _made in MORE_CODE.items():
    add(Attack(f"code: {_name}", FAMILY, "to run code by a name that blocklists lack",
               _OTHERWISE.get(_name, RUN), _bytes(_made), SCANNERS, "model.bin"))  # fmt: skip

# A class that may be anything: not dangerous by its name, and never built.
for _name in ("holdtrue_bait.Net", "os.PathLike", "subprocess.CompletedProcess"):
    _module, _, _class = _name.rpartition(".")
    _stream = f"c{_module}\n{_class}\n)\x81}}".encode("latin1") + text(b"x") + b"K\x01sb."
    add(Attack(f"object of {_name}", FAMILY, "to import a module for its side effects", INERT,
               lambda folder, stream=_stream: stream, "ours", "model.bin"))  # fmt: skip


def nested(run: bytes, levels: int = 3) -> bytes:
    """A pickle as bytes within a pickle, again and again."""
    stream = call("os", "system", run) + b"."
    for _ in range(levels):
        stream = pickle.dumps({"inner": stream})
    return stream


add(Attack("nested in bytes", FAMILY, "to hide a pickle as a value of another", INERT,
           lambda folder: nested(canary.shell()), SCANNERS, "model.pkl"))  # fmt: skip
