"""Seals: whoever changes, adds, removes, renames or exchanges a file is found, and so is a seal
that is not by the owner of the key."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdtrue
from holdtrue.cli import main
from holdtrue.limits import override
from holdtrue.records import seal as seals

pytest.importorskip("cryptography", reason="signatures need cryptography: holdtrue[seal]")
from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: E402

SEAL = "model.sig"
PEM = serialization.Encoding.PEM


def write_keys(folder: Path, name: str, key: Any) -> tuple[Path, Path]:
    """The PEM files of a private key and of its public half."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, plain))
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(PEM, info))
    return private, public


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seals")


@pytest.fixture(scope="module")
def keys(home: Path) -> tuple[Path, Path]:
    return write_keys(home, "ours", ed25519.Ed25519PrivateKey.generate())


@pytest.fixture(scope="module")
def others(home: Path) -> tuple[Path, Path]:
    return write_keys(home, "others", ed25519.Ed25519PrivateKey.generate())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 1)


def parts(seed: int = 1) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.inner(torch.randn(3, 2)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "note": [seed]}


@pytest.fixture(scope="module")
def whole(home: Path, keys: tuple[Path, Path]) -> Path:
    return holdtrue.save(home / "whole", step=1, seal=keys[0], **parts()).path


@pytest.fixture
def kept(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "kept"))


def codes(path: Path, key: Any = None) -> set[str]:
    """The errors that `verify` tells."""
    try:
        report = holdtrue.verify(path, sealed_by=key)
    except holdtrue.HoldtrueError as error:
        report = error.report
    for finding in report.errors:
        assert finding.what
        assert finding.where
        assert finding.why
        assert finding.fix
    return {f.code for f in report.errors}


def all_files(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def statement_of(path: Path) -> dict[str, Any]:
    bundle = json.loads((path / SEAL).read_text())
    return dict(json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"])))


# -- what is written -------------------------------------------------------------------------------


def test_a_seal_is_a_sigstore_bundle_of_an_in_toto_statement(whole: Path, keys: Any) -> None:
    """Read by hand, with nothing of holdtrue."""
    bundle = json.loads((whole / SEAL).read_text())
    envelope = bundle["dsseEnvelope"]
    assert bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    hint = hashlib.sha256(keys[1].read_bytes()).hexdigest()
    assert bundle["verificationMaterial"] == {"publicKey": {"hint": hint}, "tlogEntries": []}
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    said = statement_of(whole)
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["predicateType"] == "https://model_signing/signature/v1.0"
    resources = said["predicate"]["resources"]
    assert said["predicate"]["serialization"] == {
        "method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SEAL],
    }  # fmt: skip
    assert {r["name"]: r["digest"] for r in resources} == {
        name: hashlib.sha256((whole / name).read_bytes()).hexdigest()
        for name in all_files(whole)
        if name != SEAL
    }
    assert {r["algorithm"] for r in resources} == {"sha256"}
    assert any(r["name"].startswith("source/") for r in resources)
    root = hashlib.sha256(b"".join(bytes.fromhex(r["digest"]) for r in resources)).hexdigest()
    assert said["subject"] == [{"name": "whole", "digest": {"sha256": root}}]
    payload = base64.b64decode(envelope["payload"])
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    public: Any = serialization.load_pem_public_key(keys[1].read_bytes())
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)


def test_openssl_checks_the_signature(whole: Path, keys: Any, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    envelope = json.loads((whole / SEAL).read_text())["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    (tmp_path / "signed").write_bytes(seals.to_sign(payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(keys[1]), "-rawin"]
    files = ["-in", str(tmp_path / "signed"), "-sigfile", str(tmp_path / "sig")]
    done = subprocess.run([*command, *files], capture_output=True, text=True)
    assert "Signature Verified Successfully" in done.stdout, done.stderr


def test_what_was_sealed_holds(kept: Path, keys: Any) -> None:
    report = holdtrue.verify(kept, sealed_by=keys[1])
    assert report.findings == ()
    assert report.not_checked == ()
    plain = holdtrue.verify(kept)
    assert plain.findings == ()
    assert any("who sealed it" in said for said in plain.not_checked)
    targets = parts(2)
    holdtrue.open(kept).restore(**targets)
    assert torch.equal(targets["model"].inner.weight, parts(1)["model"].inner.weight)


def test_keys_are_paths_or_objects(tmp_path: Path) -> None:
    for curve in (None, ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()):
        key: Any = ec.generate_private_key(curve) if curve else ed25519.Ed25519PrivateKey.generate()
        path = tmp_path / (curve.name if curve else "ed25519")
        holdtrue.save(path, seal=key, note=1)
        private, public = write_keys(tmp_path, "key", key)
        for given in (key, key.public_key(), public, str(public), private):
            assert codes(path, given) == set(), given


# -- tampering -------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_each_flipped_byte_of_every_file_is_found(
    every: int, kept: Path, keys: Any, figure: Any
) -> None:
    public = serialization.load_pem_public_key(keys[1].read_bytes())
    assert SEAL in all_files(kept)
    for name in all_files(kept):
        data = (kept / name).read_bytes()
        fd = os.open(kept / name, os.O_WRONLY)
        for i in range(0, len(data), every):
            os.pwrite(fd, bytes([data[i] ^ (1 << i % 8)]), i)
            assert codes(kept, public), (name, i)
            os.pwrite(fd, data[i : i + 1], i)
        os.close(fd)
        figure("bytes of sealed checkpoints flipped, each found", len(range(0, len(data), every)))
    assert codes(kept, public) == set()


def test_a_manifest_made_anew_is_found(kept: Path, keys: Any) -> None:
    """Every digest of holdtrue's own is right: only the seal tells."""
    new = holdtrue.save(kept.parent / "new", step=1, **parts(2)).path
    for name in all_files(new):
        shutil.copy(new / name, kept / name)
    assert codes(kept) == {"seal-broken"}
    (finding,) = holdtrue.verify(kept, sealed_by=keys[1]).errors
    changed = {Path(place).name for place in finding.places}
    assert {"manifest.json", "model.safetensors"} <= changed
    (kept / SEAL).unlink()
    assert codes(kept) == set()
    assert codes(kept, keys[1]) == {"seal-missing"}


@pytest.mark.parametrize("name", ["config.json", "source/more.py", ".hidden", "a/b/c", ".git/x"])
def test_a_file_added(name: str, kept: Path, keys: Any) -> None:
    (kept / name).parent.mkdir(parents=True, exist_ok=True)
    (kept / name).write_text("")
    (finding,) = holdtrue.verify(kept, sealed_by=keys[1]).errors
    assert (finding.code, finding.where) == ("seal-broken", str(kept / name))
    assert "not there when" in finding.what


def test_every_file_removed_renamed_or_exchanged(whole: Path, tmp_path: Path, keys: Any) -> None:
    names = [name for name in all_files(whole) if name != SEAL]
    assert len(names) >= 4
    for name in names:
        for way in ("removed", "renamed", "link", "pipe"):
            place = Path(shutil.copytree(whole, tmp_path / f"{way}-{name.replace('/', '-')}"))
            away = place / (name + ".old") if way == "renamed" else tmp_path / "away"
            (place / name).rename(away)
            if way == "link":
                (place / name).symlink_to(away)
            elif way == "pipe":
                os.mkfifo(place / name)
            gone = {"manifest-missing"} if name == "manifest.json" else {"seal-broken"}
            assert codes(place, keys[1]) & (gone | {"seal-broken"}), (name, way)
    place = Path(shutil.copytree(whole, tmp_path / "exchanged"))
    (place / names[0]).rename(place / "x")
    (place / names[1]).rename(place / names[0])
    (place / "x").rename(place / names[1])
    assert "seal-broken" in codes(place, keys[1])


def test_another_checkpoints_seal(kept: Path, keys: Any) -> None:
    other = holdtrue.save(kept.parent / "other", step=2, seal=keys[0], **parts(2)).path
    shutil.copy(other / SEAL, kept / SEAL)
    assert codes(kept, keys[1]) == {"seal-broken"}
    assert codes(other, keys[1]) == set()


def test_a_seal_between_checkpoints_of_a_run_with_the_same_state(tmp_path: Path, keys: Any) -> None:
    """All data files are the same; the manifest is not: it knows the step."""
    with holdtrue.Run(tmp_path / "run", seal=keys[0], **parts()) as run:
        run.save(1)
        run.save(2)
    first, second = (tmp_path / "run" / f"step-00000000{n}" for n in (1, 2))
    shared = first / "model.safetensors"
    assert shared.samefile(second / "model.safetensors")
    assert not (first / SEAL).samefile(second / SEAL)
    assert codes(first, keys[1]) == codes(second, keys[1]) == set()
    shutil.copy(first / SEAL, second / SEAL)
    (finding,) = holdtrue.verify(second, sealed_by=keys[1]).errors
    assert (finding.code, Path(finding.where).name) == ("seal-broken", "manifest.json")


def test_a_copy_is_the_same_content_and_its_seal_holds(whole: Path, tmp_path: Path, keys: Any):
    """A seal is over content, not over a place; only the step is bound to the name."""
    copy = Path(shutil.copytree(whole, tmp_path / "elsewhere"))
    assert codes(copy, keys[1]) == set()
    right = Path(shutil.copytree(whole, tmp_path / "run" / "step-000000001"))
    wrong = Path(shutil.copytree(whole, tmp_path / "run" / "step-000000900"))
    assert codes(right, keys[1]) == set()
    assert codes(wrong, keys[1]) == {"step-differs"}
    assert codes(wrong) == {"step-differs"}


# -- whose seal ------------------------------------------------------------------------------------


def edited(path: Path, change: Any) -> None:
    bundle = json.loads((path / SEAL).read_text())
    change(bundle)
    (path / SEAL).write_text(json.dumps(bundle))


def test_a_seal_by_somebody_else(kept: Path, keys: Any, others: Any) -> None:
    holdtrue.seal(kept, key=others[0], overwrite=True)
    assert codes(kept, others[1]) == set()
    (finding,) = holdtrue.verify(kept, sealed_by=keys[1]).errors
    assert finding.code == "seal-signature"
    assert "another key" in finding.what
    ours = hashlib.sha256(keys[1].read_bytes()).hexdigest()
    for hint in (ours, None):  # and one that says it were ours, or says nothing
        edited(
            kept, lambda b, hint=hint: b["verificationMaterial"].update(publicKey={"hint": hint})
        )
        (finding,) = holdtrue.verify(kept, sealed_by=keys[1]).errors
        assert finding.code == "seal-signature"
        assert "does not hold" in finding.what


def test_an_unsigned_seal_tells_accidents_and_no_attackers(tmp_path: Path, keys: Any) -> None:
    path = holdtrue.save(tmp_path / "kept", seal=True, **parts()).path
    report = holdtrue.verify(path)
    assert report.findings == ()
    assert any("not signed" in said for said in report.not_checked)
    assert codes(path, keys[1]) == {"seal-unsigned"}
    (path / "config.json").write_text("{}")
    assert codes(path) == {"seal-broken"}
    holdtrue.seal(path, overwrite=True)  # what an attacker can do as well
    assert codes(path) == set()


def test_a_signature_does_not_move_to_another_statement(kept: Path, keys: Any) -> None:
    said = statement_of(kept)
    (kept / "config.json").write_text("{}")
    said["predicate"]["serialization"]["ignore_paths"].append("config.json")
    payload = base64.b64encode(json.dumps(said).encode()).decode()
    edited(kept, lambda b: b["dsseEnvelope"].update(payload=payload))
    assert codes(kept, keys[1]) == {"seal-signature"}
    assert codes(kept) == {"seal-broken"}, "what a seal asks to ignore is not ignored"


def _envelope(bundle: Any) -> Any:
    return bundle["dsseEnvelope"]


def _payload(change: Any) -> Any:
    def lie(bundle: Any) -> None:
        said = json.loads(base64.b64decode(_envelope(bundle)["payload"]))
        change(said)
        _envelope(bundle)["payload"] = base64.b64encode(json.dumps(said).encode()).decode()

    return lie


LIES: dict[str, Any] = {
    "no envelope": lambda b: b.pop("dsseEnvelope"),
    "another media type": lambda b: b.update(mediaType="text/plain"),
    "a member that nobody knows": lambda b: b.update(extra=1),
    "material of a wrong type": lambda b: b.update(verificationMaterial=[]),
    "payload that is no base64": lambda b: _envelope(b).update(payload="%%%"),
    "payload that is no JSON": lambda b: _envelope(b).update(payload="AAAA"),
    "payload of another type": lambda b: _envelope(b).update(payloadType="text/plain"),
    "two signatures": lambda b: _envelope(b)["signatures"].append(_envelope(b)["signatures"][0]),
    "signature that is no base64": lambda b: _envelope(b)["signatures"][0].update(sig="é"),
    "signatures of a wrong type": lambda b: _envelope(b).update(signatures=7),
    "another statement type": _payload(lambda s: s.update(_type="x")),
    "another predicate": _payload(lambda s: s.update(predicateType="x")),
    "no predicate": _payload(lambda s: s.pop("predicate")),
    "no subject": _payload(lambda s: s.update(subject=[])),
    "a root digest of others": _payload(
        lambda s: s["subject"][0]["digest"].update(sha256="0" * 64)),
    "digest of other letters": _payload(
        lambda s: s["predicate"]["resources"][0].update(digest="Z" * 64)),
    "digest that is too short": _payload(
        lambda s: s["predicate"]["resources"][0].update(digest="00")),
    "another algorithm": _payload(
        lambda s: s["predicate"]["resources"][0].update(algorithm="md5")),
    "shards": _payload(lambda s: s["predicate"]["serialization"].update(method="shards")),
    "a file twice": _payload(
        lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0])),
    "nested deeply": lambda b: b["verificationMaterial"].update(tlogEntries="DEEP"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_seal_that_lies(lie: str, kept: Path, keys: Any, figure: Any) -> None:
    edited(kept, LIES[lie])
    raw = (kept / SEAL).read_bytes().replace(b'"DEEP"', b"[" * 100_000 + b"]" * 100_000)
    (kept / SEAL).write_bytes(raw)
    assert codes(kept) == {"seal-malformed"}
    assert codes(kept, keys[1]) == {"seal-malformed"}
    figure("seals that lie, each refused")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a\0b", "x" * 5000, "", "manifest.json/x", "\ud800"]
)
def test_names_in_a_seal_lead_nowhere(name: str, kept: Path) -> None:
    """They are compared with the names that are there, and never opened."""
    edited(kept, _payload(lambda s: s["predicate"]["resources"][0].update(name=name)))
    assert codes(kept) <= {"seal-broken", "seal-malformed"}
    assert codes(kept)


@pytest.mark.parametrize("raw", [b"", b"{", b"null", b"[]", b"\0" * 100, b"[" * 99_999, b"\xff"])
def test_seals_that_are_something_else(raw: bytes, kept: Path, keys: Any) -> None:
    (kept / SEAL).write_bytes(raw)
    assert codes(kept) == codes(kept, keys[1]) == {"seal-malformed"}


def test_a_seal_that_is_too_large_or_no_file(kept: Path, keys: Any) -> None:
    with override(seal_bytes=100):
        assert codes(kept, keys[1]) == {"seal-malformed"}
    (kept / SEAL).rename(kept.parent / "away")
    (kept / SEAL).symlink_to(kept.parent / "away")
    assert codes(kept, keys[1])
    (kept / SEAL).unlink()
    os.mkfifo(kept / SEAL)
    assert codes(kept, keys[1]) == {"seal-malformed"}
    (kept / SEAL).unlink()
    (kept / SEAL).mkdir()
    assert codes(kept, keys[1])


def test_keys_that_are_none(kept: Path, keys: Any, tmp_path: Path) -> None:
    wrong = rsa.generate_private_key(65537, 2048)
    private, public = write_keys(tmp_path, "rsa", wrong)
    locked = tmp_path / "locked.pem"
    form, pem = serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM
    ours = ed25519.Ed25519PrivateKey.generate()
    locked.write_bytes(
        ours.private_bytes(pem, form, serialization.BestAvailableEncryption(b"secret"))
    )
    (tmp_path / "text").write_text("hello")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    bad = [tmp_path / "none", tmp_path / "text", tmp_path, tmp_path / "pipe", "a\0b", locked, 3]
    for given in [*bad, private, wrong, keys[1]]:
        with pytest.raises(holdtrue.HoldtrueError) as caught:
            holdtrue.save(tmp_path / "new", seal=given, note=1)
        assert [f.code for f in caught.value.report.errors] == ["key-unusable"], given
        with pytest.raises(holdtrue.HoldtrueError):
            holdtrue.Run(tmp_path / "run", seal=given, note=1)
    for given in [*bad, public, wrong, True]:
        with pytest.raises(holdtrue.HoldtrueError) as caught:
            holdtrue.verify(kept, sealed_by=given)
        assert [f.code for f in caught.value.report.errors] == ["key-unusable"], given
    assert sorted(os.listdir(tmp_path)) == before


def test_without_cryptography(kept: Path, keys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("holdtrue.engine.signing.find_spec", lambda name: None)
    for act in (
        lambda: holdtrue.verify(kept, sealed_by=keys[1]),
        lambda: holdtrue.save(tmp_path / "new", seal=keys[0], note=1),
    ):
        with pytest.raises(holdtrue.HoldtrueError) as caught:
            act()
        (finding,) = caught.value.report.errors
        assert finding.code == "package-missing"
        assert "holdtrue[seal]" in finding.fix
    assert codes(holdtrue.save(tmp_path / "unsigned", seal=True, note=1).path) == set()


def test_seals_are_imported_without_cryptography() -> None:
    script = "import sys, holdtrue.saving, holdtrue.sealing; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


# -- with everything else --------------------------------------------------------------------------


def test_the_seal_is_there_before_the_checkpoint_is(tmp_path: Path, keys: Any, monkeypatch: Any):
    """Where sealing fails nothing is published."""
    import holdtrue.engine.checkpoint as writing

    def fail(*_: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "sealed", fail)
    with pytest.raises(holdtrue.SaveError):
        holdtrue.save(tmp_path / "kept", seal=keys[0], note=1)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("wait", [True, False])
def test_a_run_seals_prunes_and_resumes(wait: bool, tmp_path: Path, keys: Any) -> None:
    kept = parts()
    keep = holdtrue.Keep(last=2)
    with holdtrue.Run(tmp_path / "run", keep=keep, seal=keys[0], verify="after", **kept) as run:
        for step in range(1, 5):
            kept["note"][0] = step
            run.save(step, wait=wait)
    with holdtrue.Run(tmp_path / "run", keep=keep, **kept) as run:
        assert run.resume() == 4
        run.save(5, wait=wait)
        assert run.steps() == [4, 5]
    fourth, fifth = (tmp_path / "run" / f"step-00000000{n}" for n in (4, 5))
    assert codes(fourth, keys[1]) == set()
    assert not (fifth / SEAL).exists(), "a seal is not carried over"
    assert codes(fifth, keys[1]) == {"seal-missing"}


def test_a_seal_is_not_carried_over(kept: Path, tmp_path: Path) -> None:
    for to in ("holdtrue", "safetensors"):
        holdtrue.convert(kept, tmp_path / to, to=to)
        assert not list(tmp_path.glob(f"{to}/**/{SEAL}"))
    holdtrue.salvage(kept, tmp_path / "salvaged", to="holdtrue")
    assert not (tmp_path / "salvaged" / SEAL).exists()
    holdtrue.save(kept, overwrite=True, note=1)
    assert not (kept / SEAL).exists()


def test_sealing_what_is_there(kept: Path, keys: Any) -> None:
    (kept / SEAL).unlink()
    assert holdtrue.seal(kept, key=keys[0]) == kept / SEAL
    assert codes(kept, keys[1]) == set()
    with pytest.raises(holdtrue.SaveError) as caught:
        holdtrue.seal(kept, key=keys[0])
    assert [f.code for f in caught.value.report.errors] == ["already-exists"]
    (kept / "config.json").write_text("{}")
    holdtrue.seal(kept, key=keys[0], overwrite=True)
    assert codes(kept, keys[1]) == set()
    assert not (kept / ".staging").exists()


def test_what_is_damaged_is_not_sealed(kept: Path, keys: Any) -> None:
    seal = (kept / SEAL).read_bytes()
    data = bytearray((kept / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (kept / "model.safetensors").write_bytes(data)
    with pytest.raises(holdtrue.DamageError):
        holdtrue.seal(kept, key=keys[0], overwrite=True)
    assert (kept / SEAL).read_bytes() == seal
    torch.save({}, kept.parent / "other.pt")
    with pytest.raises(holdtrue.OpenError):
        holdtrue.seal(kept.parent / "other.pt", key=keys[0])


def test_the_command_line(tmp_path: Path, keys: Any, others: Any, monkeypatch: Any, capsys: Any):
    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["holdtrue", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out + err

    with holdtrue.Run(tmp_path / "run", **parts()) as run:
        run.save(1, wait=True)
        run.save(2, wait=True)
    status, said = call("verify", tmp_path / "run", "--sealed-by", keys[1])
    assert (status, said.count("error[seal-missing]")) == (1, 2)
    status, said = call("seal", tmp_path / "run", "--key", keys[0])
    assert (status, said.count(": sealed")) == (0, 2)
    assert call("verify", tmp_path / "run", "--sealed-by", keys[1])[0] == 0
    assert call("verify", tmp_path / "run", "--sealed-by", others[1])[0] == 1
    assert call("verify", tmp_path / "run", "--sealed-by", tmp_path / "none")[0] == 1
    assert call("seal", tmp_path / "run")[0] == 1
    status, said = call("seal", tmp_path / "run@2", "--overwrite")
    assert status == 0
    assert "signed by nobody" in said


# -- the OpenSSF tool ------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_model_signing_checks_ours_and_we_check_theirs(curve: Any, tmp_path: Path) -> None:
    """It signs with the NIST curves only; those are what both know."""
    model_signing = pytest.importorskip(
        "model_signing", reason="model-signing, to check seals with, is not installed"
    )
    private, public = write_keys(tmp_path, "key", ec.generate_private_key(curve))
    path = holdtrue.save(tmp_path / "kept", seal=private, **parts()).path
    theirs = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public)
    theirs.verify(path, path / SEAL)
    (path / "more").write_text("")
    with pytest.raises(ValueError, match="more"):
        model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public).verify(
            path, path / SEAL
        )
    assert codes(path, public) == {"seal-broken"}
    (path / SEAL).unlink()
    signing = model_signing.signing.Config().use_elliptic_key_signer(private_key=private)
    signing.sign(path, path / SEAL)
    assert codes(path, public) == set()
    (path / "more").write_text("changed")
    assert codes(path, public) == {"seal-broken"}


# -- what cannot be sealed -------------------------------------------------------------------------


def test_what_is_no_file_and_what_has_no_text_for_a_name_is_told(tmp_path: Path) -> None:
    path = holdtrue.save(tmp_path / "kept", weights=torch.ones(2)).path
    (path / "link").symlink_to(tmp_path)
    with pytest.raises(holdtrue.SaveError) as caught:
        holdtrue.seal(path)
    (finding,) = caught.value.report.findings
    assert (finding.code, Path(finding.where).name) == ("special-file", "link")
    (path / "link").unlink()
    try:
        os.close(os.open(os.fsencode(path) + b"/\xff", os.O_CREAT | os.O_WRONLY))
    except OSError:
        pytest.skip("the file system has no names that are not UTF-8")
    with pytest.raises(holdtrue.SaveError, match="path-invalid"):
        holdtrue.seal(path)
    assert not (path / SEAL).exists()


def test_a_damaged_step_keeps_no_other_from_being_sealed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with holdtrue.Run(tmp_path / "run", weights=torch.ones(2)) as run:
        for step in (1, 2, 3):
            run.save(step, wait=True)
    first, *others = sorted((tmp_path / "run").iterdir())
    file = first / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b"weights", b"wEights", 1))
    monkeypatch.setattr(sys, "argv", ["holdtrue", "seal", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    said = capsys.readouterr()
    assert "manifest-damaged" in said.err + said.out
    assert [(p / SEAL).exists() for p in (first, *others)] == [False, True, True]
