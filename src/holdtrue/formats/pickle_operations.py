"""What a pickle would run if it were unpickled: names, places and a plain severity.

The severity is for the reader's eye. It decides nothing: nothing is run whatever it says, and a
list of bad names that were a security boundary would be bypassed like all before it.
"""

from typing import Literal

from msgspec import Struct

Kind = Literal["import", "call"]
Danger = Literal["dangerous", "unknown", "library"]


class Operation(Struct, frozen=True, kw_only=True):
    """One import or call outside the known constructors, and how often it occurs."""

    name: str  # "package.module.QualName"
    kind: Kind
    severity: Danger
    offset: int  # of the first opcode that asks for it
    place: str = ""  # path in the tree of its first result; "" where that is not in the tree
    count: int = 1
    arguments: str = ""  # of the first call, where they are plain values


# Packages that reach the machine: processes, files, the network, code.
_DANGEROUS_PACKAGES = frozenset({
    "_io", "_posixsubprocess", "_socket", "_thread", "aiohttp", "antigravity", "asyncio", "atexit",
    "bdb", "cProfile", "cloudpickle", "code", "codeop", "commands", "concurrent", "ctypes", "dill",
    "distutils", "doctest", "ensurepip", "faulthandler", "ftplib", "gc", "glob", "http", "httplib",
    "httpx", "idlelib", "imaplib", "imp", "importlib", "inspect", "io", "joblib", "lib2to3",
    "linecache", "logging", "mailcap", "marshal", "mmap", "modulefinder", "multiprocessing", "nt",
    "operator", "os", "pdb", "pexpect", "pickle", "_pickle", "pip", "pkg_resources", "pkgutil",
    "platform", "poplib", "posix", "posixpath", "profile", "pty", "py_compile", "pydoc",
    "requests", "resource", "runpy", "sched", "setuptools", "shelve", "shlex", "shutil", "signal",
    "site", "smtplib", "socket", "socketserver", "sqlite3", "ssl", "subprocess", "sys", "telnetlib",
    "tempfile", "test", "threading", "timeit", "trace", "unittest", "urllib", "urllib2", "venv",
    "webbrowser", "winreg", "xmlrpc", "zipimport", "zipfile", "tarfile",
})  # fmt: skip

_DANGEROUS_NAMES = (
    "builtins.__import__", "builtins.apply", "builtins.breakpoint", "builtins.compile",
    "builtins.delattr", "builtins.eval", "builtins.exec", "builtins.execfile", "builtins.file",
    "builtins.getattr", "builtins.globals", "builtins.input", "builtins.locals", "builtins.map",
    "builtins.open", "builtins.setattr", "builtins.vars", "_codecs.lookup", "codecs.open",
    "functools.partial", "functools.reduce", "itertools.starmap",
    "numpy.core.multiarray.fromfile", "numpy.fromfile", "numpy.load", "numpy.f2py",
    "numpy.testing._private.utils", "numpy.distutils", "pandas.eval", "pandas.read_pickle",
    "torch.classes", "torch.distributed.rpc", "torch.hub", "torch.jit", "torch.load",
    "torch.ops", "torch.package", "torch.serialization.load", "torch.storage._load_from_bytes",
    "torch.utils.cpp_extension", "torch.utils.collect_env", "torch._dynamo.guards",
    "torch._inductor",
    "torch.utils._config_module", "torch.utils.bottleneck", "torch.fx.experimental",
    "torch.fx.graph_module", "torch._dynamo.debug_utils",
    "types.CodeType", "types.FunctionType", "types.MethodType", "typing._eval_type",
)  # fmt: skip

# Within those packages, names that hold or take apart values and reach nothing.
_HARMLESS = (
    "concurrent.futures._base.TimeoutError", "logging.LogRecord",
    "logging.makeLogRecord", "platform.uname_result", "sys.float_info", "urllib.parse",
)  # fmt: skip

_LIBRARIES = ("torch.", "numpy.", "collections.", "torchvision.", "transformers.", "scipy.")


def severity(name: str) -> Danger:
    """How alarming it would be to see this name run."""
    package = name.partition(".")[0]
    if any(name == good or name.startswith(good + ".") for good in _HARMLESS):
        return "unknown"
    if package in _DANGEROUS_PACKAGES:
        return "dangerous"
    if any(name == bad or name.startswith(bad + ".") for bad in _DANGEROUS_NAMES):
        return "dangerous"
    if name.startswith("builtins.") or not name.startswith(_LIBRARIES):
        return "unknown"
    return "library"
