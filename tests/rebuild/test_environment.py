"""Where a checkpoint comes from: what is kept, what is not, and what a restore says of it."""

import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from msgspec.structs import replace
from torch import nn

import holdtrue
from holdtrue.capture.environment import environment
from holdtrue.capture.git import read_state
from holdtrue.capture.secrets import MASK, mask, mask_command
from holdtrue.doctor.environments import compare_environments
from holdtrue.limits import override
from holdtrue.records.environment import Build, Environment


@pytest.fixture
def repository(tmp_path):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    git("init", "-b", "trunk")
    (tmp_path / "train.py").write_text("lr = 0.1\n")
    git("add", ".")
    git("commit", "-m", "first")
    return tmp_path, git


def test_everything_is_there():
    made = environment()
    assert made.torch == torch.__version__
    assert made.build.git == torch.version.git_version
    assert made.build.capability == torch.backends.cpu.get_cpu_capability()
    assert made.threads == torch.get_num_threads()
    assert made.flags["default_dtype"] == "float32"
    assert {"torch", "numpy", "msgspec", "pytest"} <= made.distributions.keys()
    assert made.distributions["torch"] == torch.__version__
    assert "ruff" not in made.distributions  # installed, and not imported
    assert made.hostname is None
    assert socket.gethostname() not in str(msgspec.json.encode(made))


def test_the_name_of_the_machine_only_when_asked():
    with override(hostname=1):
        assert environment().hostname == socket.gethostname()


def test_what_can_change_is_asked_again():
    torch.use_deterministic_algorithms(True)
    try:
        assert environment().flags["deterministic"] is True
    finally:
        torch.use_deterministic_algorithms(False)
    assert environment().flags["deterministic"] is False


SECRETS = [
    ["--token", "abc123"],
    ["--api-key=abc123"],
    ["--wandb_api_key", "abc123"],
    ["password=abc123"],
    ["--db", "postgres://user:abc123@host/db"],
    ["hf_abc123abc123"],
    ["sk-abc123abc123abc123abc"],
    ["AKIAABC123ABC123ABC1"],
    ["--aws-secret-access-key", "abc123"],
    ["--header", "Authorization: Bearer abc123abc123"],
    ["ghp_abc123abc123abc123abc123"],
    ["--config", '{"api_key": "abc123", "lr": 1}'],
    ["-hf-token", "abc123"],
]


@pytest.mark.parametrize("arguments", SECRETS, ids=lambda a: a[0][:20])
def test_secrets_are_masked(arguments, figure):
    masked = " ".join(mask_command(["train.py", *arguments, "--lr", "0.1"]))
    assert "abc123" not in masked.lower()
    assert MASK in masked
    assert masked.endswith("--lr 0.1")
    figure("kinds of secrets masked")


@pytest.mark.parametrize(
    "text",
    [
        "--tokenizer gpt2",
        "--max-tokens 512",
        "--lr=0.1",
        "--authors me",
        "runs/digits@best",
        "--secretary=nobody",
        "key=value",
        "https://host/path?x=1",
        "--passes=20000",
        "tokens: 12345",
        "--password --verbose",
    ],
)
def test_what_is_no_secret_stays(text):
    assert mask(text) == text
    assert list(mask_command(text.split())) == text.split()


def test_outside_a_repository(tmp_path):
    assert read_state(str(tmp_path), 1000) is None
    assert read_state(str(tmp_path / "absent"), 1000) is None


def test_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_state(str(tmp_path), 1000) is None
    holdtrue.save(tmp_path / "c", value=1)


def test_a_clean_tree(repository):
    place, _ = repository
    found = read_state(str(place), 1000)
    assert len(found.commit) == 40
    assert (found.branch, found.dirty, found.diff) == ("trunk", False, None)
    (place / "untracked.py").write_text("x")
    assert not read_state(str(place), 1000).dirty


def test_a_dirty_tree(repository):
    place, _ = repository
    (place / "train.py").write_text('lr = 0.2\napi_key = "abc123456"\n')
    found = read_state(str(place), 10_000)
    assert found.dirty
    assert not found.cut
    assert "+lr = 0.2" in found.diff
    assert "abc123456" not in found.diff
    assert read_state(str(place), 0).diff is None
    assert read_state(str(place), 0).dirty


def test_a_detached_head(repository):
    place, git = repository
    git("checkout", "--detach")
    assert read_state(str(place), 1000).branch is None


def test_a_huge_diff_is_cut(repository):
    place, _ = repository
    (place / "train.py").write_text("x = 1  # ädieu\n" * 400_000)
    found = read_state(str(place), 5000)
    assert found.cut
    assert found.dirty
    assert len(found.diff.encode()) <= 6000


def test_a_repository_cannot_run_programs(repository):
    place, git = repository
    canary = place / "canary"
    program = f"touch {canary}"
    git("config", "core.fsmonitor", program)
    git("config", "diff.external", program)
    git("config", "diff.x.textconv", program)
    (place / ".git" / "info").mkdir(exist_ok=True)
    (place / ".git" / "info" / "attributes").write_text("*.py diff=x\n")
    (place / "train.py").write_text("lr = 0.3\n")
    canary.unlink(missing_ok=True)
    assert "+lr = 0.3" in read_state(str(place), 10_000).diff
    assert not canary.exists()


def test_git_that_hangs_does_not_hold_a_save_up(tmp_path, monkeypatch):
    fake = tmp_path / "git"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("holdtrue.capture.git._SECONDS", 0.2)
    assert read_state(str(tmp_path), 1000) is None


def test_no_environment_variables_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SETTING", "a-value-that-is-nowhere-else")
    with override(diff_bytes=0):  # which may hold this very file
        holdtrue.save(tmp_path / "c", model=nn.Linear(2, 2))
    assert b"a-value-that-is-nowhere-else" not in (tmp_path / "c/manifest.json").read_bytes()


HERE = Environment(
    torch="2.13.0+cpu",
    platform="linux-x86_64",
    threads=4,
    build=Build(capability="AVX512"),
    flags={"deterministic": True, "matmul_precision": "highest"},
)
CHANGES = {
    "torch": replace(HERE, torch="2.12.0"),
    "threads": replace(HERE, threads=8),
    "device": replace(HERE, accelerators=("NVIDIA H100",)),
    "CPU capability": replace(HERE, build=Build(capability="AVX2")),
    "CUDA": replace(HERE, build=Build(capability="AVX512", cuda="12.8")),
    "use_deterministic_algorithms": replace(HERE, flags={"deterministic": False}),
    "TF32": replace(HERE, flags={"matmul_precision": "high"}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_resume_is_told_what_changes_bits(what, figure):
    (found,) = compare_environments(CHANGES[what], HERE, resume=True)
    assert found.code == "environment-changed"
    assert found.severity == "warning"
    assert what in found.where
    assert compare_environments(CHANGES[what], HERE, resume=False) == []
    figure("changes of the environment told")


def test_what_does_not_matter_is_not_told():
    other = replace(
        HERE,
        python="3.99",
        numpy="9",
        distributions={"x": "1"},
        command=("b.py",),
        hostname="h",
        system="S",
        interop_threads=3,
    )
    assert compare_environments(other, HERE, resume=True) == []


def test_an_older_torch_is_noted_when_loading():
    (found,) = compare_environments(replace(HERE, torch="2.14.1"), HERE, resume=False)
    assert (found.code, found.severity) == ("torch-older", "note")
    assert compare_environments(replace(HERE, torch="2.13.9"), HERE, resume=False) == []


def test_checkpoints_from_before_are_compared_without_complaint():
    assert (
        compare_environments(
            Environment(torch=HERE.torch, platform=HERE.platform, threads=4), HERE, resume=True
        )
        == []
    )


def test_a_resume_with_another_number_of_threads_says_so(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        report = holdtrue.open(tmp_path / "c").restore(model=model, optimizer=optimizer)
    finally:
        torch.set_num_threads(before)
    assert [f.code for f in report.findings if f.severity == "warning"] == ["environment-changed"]


def test_inspect_shows_the_origin(repository, monkeypatch):
    place, _ = repository
    (place / "train.py").write_text(
        "import holdtrue, torch\nholdtrue.save('c', model=torch.nn.Linear(2, 2))\n"
    )
    source = str(Path(holdtrue.__file__).parent.parent)
    run = [sys.executable, "train.py", "--token", "abc123"]
    subprocess.run(run, cwd=place, check=True, env={"PYTHONPATH": source, "PATH": "/usr/bin:/bin"})
    made = holdtrue.open(place / "c").environment
    assert made.command == ("train.py", "--token", MASK)
    program = (
        "import sys; sys.argv=['holdtrue','inspect','c']\nfrom holdtrue.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=place,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": source, "PATH": "/usr/bin:/bin"},
    )
    assert f"commit {made.git.commit[:12]} on trunk, with changes, diff of" in done.stdout
    assert f"ran train.py --token '{MASK}'" in done.stdout
