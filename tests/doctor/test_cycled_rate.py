"""A schedule with a rate of its own beside another one: its first rate is not the code's."""

import torch

import holdtrue


def test_the_rate_of_another_schedule_is_no_setting(tmp_path):
    def made():
        model = torch.nn.Linear(4, 2)
        return model, torch.optim.SGD(model.parameters(), 0.1)

    model, optimizer = made()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    saved = {"model": model, "optimizer": optimizer, "scheduler": schedule}
    torch.save({name: part.state_dict() for name, part in saved.items()}, tmp_path / "m.pt")
    model, optimizer = made()
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 100)
    report = holdtrue.diagnose(tmp_path / "m.pt", model=model, optimizer=optimizer, scheduler=cycle)
    codes = {finding.code for finding in report.findings}
    assert "class-changed" in codes
    assert "settings-from-file" not in codes
