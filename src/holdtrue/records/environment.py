"""What wrote a checkpoint: the machine, the libraries, and the code it ran."""

from msgspec import Struct, field


class Build(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the torch that was used had been built, and what it ran on."""

    git: str | None = None
    debug: bool = False
    cuda: str | None = None  # the toolkit it was built with
    hip: str | None = None
    cudnn: int | None = None
    capability: str = ""  # of the CPU, as torch uses it: AVX2, AVX512, …


class Git(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The working tree when the process saved first."""

    commit: str
    branch: str | None = None  # None on a detached head
    dirty: bool = False
    diff: str | None = None  # against the commit; secrets masked
    cut: bool = False  # the diff was longer than is kept


class Environment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of environment variables nothing is kept, of paths only what the command line said."""

    holdtrue: str = ""
    python: str = ""
    torch: str | None = None
    numpy: str | None = None
    platform: str = ""
    system: str = ""
    threads: int | None = None
    interop_threads: int | None = None
    accelerators: tuple[str, ...] = ()
    build: Build | None = None
    flags: dict[str, bool | str] = field(default_factory=dict)  # determinism, TF32, default dtype
    distributions: dict[str, str] = field(default_factory=dict)  # of what was imported
    command: tuple[str, ...] = ()
    hostname: str | None = None
    git: Git | None = None
