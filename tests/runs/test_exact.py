"""Killed and resumed in a fresh process, a training ends with the bits of the uninterrupted one."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HEAD = """
import sys, torch, holdtrue, xxhash
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.set_num_threads(1)
torch.manual_seed(0 if sys.argv[2] != "resume" else 99)
def digest(*modules):
    h = xxhash.xxh3_128()
    for m in modules:
        for t in (*m.parameters(), *m.buffers()):
            h.update(t.detach().numpy().tobytes())
    return h.hexdigest()
"""

GAN = """
maker = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
critic = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.3), nn.LeakyReLU(), nn.Linear(8, 1))
make_opt = torch.optim.Adam(maker.parameters(), 1e-2, betas=(0.5, 0.9))
critic_opt = torch.optim.SGD(critic.parameters(), 1e-2, momentum=0.9)
make_plan = torch.optim.lr_scheduler.CosineAnnealingLR(make_opt, 30)
critic_plan = torch.optim.lr_scheduler.OneCycleLR(critic_opt, 0.05, total_steps=30)
parts = dict(maker=maker, critic=critic, make_opt=make_opt, critic_opt=critic_opt,
             make_plan=make_plan, critic_plan=critic_plan)
options, models = {}, (maker, critic)
def step(n):
    fake = maker(torch.randn(8, 4))
    critic_opt.zero_grad()
    (critic(fake.detach()).mean() - critic(torch.randn(8, 2)).mean()).backward()
    critic_opt.step(); critic_plan.step()
    make_opt.zero_grad()
    critic(fake).mean().neg().backward()
    make_opt.step(); make_plan.step()
"""

ACCUMULATED = """
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1), nn.Linear(1, 1))
model[3].requires_grad_(False)
emb = nn.Embedding(10, 4, sparse=True)
opt = torch.optim.AdamW(model.parameters(), 1e-2)
slow = torch.optim.SGD(emb.parameters(), 0.1)
parts = dict(model=model, emb=emb, opt=opt, slow=slow)
options, models = dict(gradients=True), (model, emb)
def step(n):
    model(emb(torch.randint(10, (6,)))).square().mean().backward()
    if (n + 1) % 4 == 0:  # the save below is in the middle
        opt.step(); slow.step(); opt.zero_grad(); slow.zero_grad()
"""

SCALED = """
model = nn.Linear(4, 4)
ema = torch.optim.swa_utils.AveragedModel(
    model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)
opt = torch.optim.AdamW(model.parameters(), 1e-2)
scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
parts = dict(model=model, ema=ema, opt=opt, scaler=scaler)
options, models = {}, (model, ema)
def step(n):
    opt.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.randn(8, 4)).float().square().mean()
    scaler.scale(loss * (float("inf") if n == 4 else 1)).backward()
    scaler.step(opt); scaler.update(); ema.update_parameters(model)
"""

LOADED = """
data = TensorDataset(torch.arange(88.0).view(22, 4) / 88)
loader = holdtrue.ResumableLoader(DataLoader(data, batch_size=4, shuffle=True, num_workers=WORKERS))
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
opt = torch.optim.AdamW(model.parameters(), 1e-2)
parts = dict(model=model, opt=opt, loader=loader)
options, models = {}, (model,)
def batches():
    while True:
        yield from loader
source = batches()
def step(n):
    opt.zero_grad()
    model(next(source)[0]).square().mean().backward()
    opt.step()
"""

# With a generator of its own: else it draws from the global one when it is begun again, and does
# so without workers in any case (what it hands out is tested with the loaders).
STATEFUL = (
    LOADED.replace("holdtrue.ResumableLoader(DataLoader(", "StatefulDataLoader(")
    .replace("WORKERS))", "WORKERS, generator=torch.Generator())")
    .replace("data =", "from torchdata.stateful_dataloader import StatefulDataLoader\ndata =", 1)
)

THAWED = """
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
model[0].requires_grad_(False)
opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
if sys.argv[2] == "resume":  # a fresh process builds what there was when it was saved
    model[0].requires_grad_(True)
    opt.add_param_group({"params": list(model[0].parameters()), "lr": 1e-3})
parts = dict(model=model, opt=opt)
options, models = {}, (model,)
def step(n):
    if n == 3 and len(opt.param_groups) == 1:
        model[0].requires_grad_(True)
        opt.add_param_group({"params": list(model[0].parameters()), "lr": 1e-3})
    if n == 5:
        model[2].requires_grad_(False)
    opt.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    opt.step()
"""

TAIL = """
run = holdtrue.Run(sys.argv[1], **options, **parts)
first = run.resume() if sys.argv[2] == "resume" else 0
assert first == (6 if sys.argv[2] == "resume" else 0)
for n in range(first, 13):
    step(n)
    if n == 5 and sys.argv[2] == "killed":
        run.save(6); run.flush()
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
print(digest(*models))
"""


@pytest.mark.parametrize(
    "body",
    [
        GAN,
        pytest.param(ACCUMULATED, marks=pytest.mark.slow),
        SCALED,
        pytest.param(THAWED, marks=pytest.mark.slow),
        pytest.param(LOADED.replace("WORKERS", "0"), marks=pytest.mark.slow),
        LOADED.replace("WORKERS", "2"),
        pytest.param(STATEFUL.replace("WORKERS", "2"), marks=pytest.mark.slow),
    ],
    ids=["gan", "accumulation", "scaler-ema", "thawed", "loader", "workers", "stateful-workers"],
)
def test_killed_and_resumed_ends_with_the_same_bits(body: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(HEAD + body + TAIL))

    def run(how: str, path: Path) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(script), str(path), how]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    whole = run("whole", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert run("killed", tmp_path / "run").returncode == -9
    resumed = run("resume", tmp_path / "run")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == whole.stdout
