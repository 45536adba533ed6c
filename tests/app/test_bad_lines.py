"""Command lines that are wrong in odd ways: one line that says what to do, and exit code 2."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fairbench.app import cli
from fairbench.app.cli import app
from fairbench.core.documents import content, from_json, from_toml, read_object
from fairbench.core.errors import AssetError

DEEP = "[" * 100_000
TABLE = "file,gender\n" + "".join(f"{i:03}.png,male\n" for i in range(100))

FILES: dict[str, bytes] = {
    "deep.json": DEEP.encode(),
    "list.json": b"[]",
    "empty.json": b"",
    "utf16.json": '{"a": 1}'.encode("utf-16"),
    "runs.json": b'{"runs": 3}',
    "utf16.toml": 'methods = ["vanilla"]'.encode("utf-16"),
    "deep.toml": f"a = {DEEP[:5000]}".encode(),
    "three.toml": b"methods = 3",
    "seed.toml": b'methods = ["vanilla"]\nseeds = [1.5]',
    "many.toml": b'methods = ["vanilla"]\nnum_images = 1e400',
    "nan.toml": b'methods = ["vanilla"]\nguidance = nan',
    "date.toml": b'methods = ["vanilla"]\nseeds = [1979-05-27]',
    "name.toml": b'methods = ["va\\u001b[31mnilla"]',
    "engine.toml": b'methods = ["vanilla"]\nengine = [1]',
    "deep/dataset.toml": f"a = {DEEP[:5000]}".encode(),
    "bytes/dataset.toml": b"\xff\xfe\0\0",
    "nested/model_index.json": DEEP.encode(),
    "listed/model_index.json": b"[]",
    "numbers/model_index.json": b'{"_class_name": 3}',
    "file": b"x",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "cache"))
    if os.name == "nt":
        yield tmp_path
        return
    for name in ("pipe", "pipe.csv", "pipe.toml", "pipe.json"):
        os.mkfifo(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
        yield tmp_path


def told(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line, with click's own errors as they are."""
    monkeypatch.setattr(sys, "argv", ["fairbench", *words])
    done = CliRunner().invoke(app, words, standalone_mode=False)
    if isinstance(done.exception, cli.UsageError):
        return 2, "", f"fairbench: {cli._usage(done.exception)}\n"
    return done.exit_code, done.stdout, done.stderr


RUN = ("run", "--method", "vanilla", "--dataset", "analytic", "--num-images", "100")
SWEEP = ("sweep", "--methods", "vanilla", "--dataset", "analytic", "--dry-run")

LINES: tuple[tuple[tuple[str, ...], str], ...] = (
    ((*RUN, "--eta", "nan"), "--eta"),
    ((*RUN, "--guidance", "inf"), "--guidance"),
    ((*RUN, "--guidance", "1e400"), "--guidance"),
    ((*RUN, "--num-images", "1e3"), "--num-images"),
    ((*RUN, "--seeds", "1,,2"), "--seeds"),
    ((*RUN, "--target", "dark=nan,light=1"), "dark"),
    ((*RUN, "--target", "=1"), "target"),
    ((*RUN, "--param", "a\x1b[31m=1"), r"a\x1b[31m"),
    ((*RUN, "--grid", "x="), "--grid"),
    ((*RUN, "--task", "тон"), "тон"),
    ((*RUN, "--scheduler", ""), "--scheduler"),
    ((*RUN, "--dtype", "int8"), "int8"),
    ((*RUN, "--device", "cuda:99999999999999999999"), "--device must be auto"),
    ((*RUN, "--device", "cuda:٣"), "--device must be auto"),
    ((*RUN, "--results", "file"), "file"),
    ((*RUN, "--results", "a" * 300), "name too long"),
    ((*RUN, "--results", "foo://x"), "foo://x"),
    (("run", "--method", "vanilla\n"), r"vanilla\n"),
    (("run", "--method", "vanilla", "--dataset", "deep/dataset.toml"), "too deeply"),
    (("run", "--method", "vanilla", "--dataset", "bytes/dataset.toml"), "expected TOML"),
    (("run", "--method", "vanilla", "--backbone", "nested"), "names no pipeline class"),
    (("run", "--method", "vanilla", "--backbone", "listed"), "names no pipeline class"),
    (("run", "--method", "vanilla", "--backbone", "numbers"), "names no pipeline class"),
    (("run", "--method", "vanilla", "--backbone", "x" * 5000), "name"),
    (("leaderboard", "--results", "file"), "file"),
    (("leaderboard", "--results", "pipe"), "pipe"),
    (("leaderboard", "--output", "pipe.csv"), "a device, a pipe or a socket"),
    (("leaderboard", "--plot", "socket"), "a device, a pipe or a socket"),
    (("leaderboard", "--results", "nowhere", "--plot", "x.gif"), "must end in .png"),
    (("leaderboard", "--results", "nowhere", "--format", "html", "--output", "file"), "a file"),
    (
        ("leaderboard", "--results", "nowhere", "--format", "html", "--output", "file/x"),
        "--output file/x can't be written to",
    ),
    (("leaderboard", "--format", "csv", "--output", "/dev/null"), "a device, a pipe"),
    (("rescore", "file"), "file"),
    (("rescore", "socket"), "socket"),
    *(
        (("check", "--baseline", name, "--results", "."), name)
        for name in ("deep.json", "list.json", "empty.json", "utf16.json", "runs.json", "pipe")
    ),
    (("evaluate", "pipe"), "pipe"),
    (("evaluate", "file"), "file"),
    (("evaluate", ".", "--baseline", "pipe.json"), "pipe.json"),
    (("evaluate", ".", "--baseline", "deep.json"), "deep.json"),
    (("evaluate", ".", "--labels", "pipe.csv"), "seen no file there"),
    *(
        (("sweep", name, "--dataset", "analytic", "--dry-run"), said)
        for name, said in (
            ("pipe.toml", "a device, a pipe or a socket"),
            ("socket", "socket"),
            ("/dev/zero", "a device, a pipe or a socket"),
            ("utf16.toml", "utf16.toml"),
            ("deep.toml", "too deeply"),
            ("three.toml", "methods"),
            ("seed.toml", "seeds"),
            ("many.toml", "num_images"),
            ("nan.toml", "guidance"),
            ("date.toml", "seeds"),
            ("name.toml", r"va\x1b[31mnilla"),
            ("engine.toml", "engine"),
        )
    ),
    ((*SWEEP, "--jobs", "0"), "--jobs"),
    ((*SWEEP, "--jobs", "1000000000000"), "--jobs"),
    ((*SWEEP, "--engine", "../x"), "engine"),
    ((*SWEEP, "--seeds", "nan"), "--seeds"),
    ((*SWEEP, "--seeds", "-1"), "--seed"),
    ((*SWEEP, "--methods", ","), "--methods"),
    (("cache", "prune", "images", "--older-than", "nan"), "--older-than"),
    (("cache", "prune", "images", "--older-than", "-1"), "--older-than"),
    (("check-method", "\x1b"), r"\x1b"),
    (("list", "\x1b"), r"\x1b"),
)


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices of POSIX")
@pytest.mark.parametrize(("words", "expected"), LINES, ids=lambda value: ascii(value)[:60])
def test_it_is_one_line_and_exit_code_2(
    words: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = told(words, monkeypatch)
    assert code == 2, out + err
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("fairbench: ")
    assert line.isprintable()
    assert expected.lower() in line.lower()


def test_a_group_of_commands_alone_shows_its_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fairbench", "data"])
    assert cli._code() == 2
    assert "prepare" in "".join(capsys.readouterr())


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices of POSIX")
def test_what_is_no_file_stays_what_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (("leaderboard", "--output", "pipe.csv"), ("leaderboard", "--plot", "socket")):
        assert told(words, monkeypatch)[0] == 2
    assert (folder / "pipe.csv").is_fifo()
    assert (folder / "socket").is_socket()


BASELINE = Path(__file__).parent.parent / "baselines" / "analytic.json"


@pytest.mark.parametrize(
    "words",
    [
        ("check", "--baseline", "b.json", "--junit", "b.json"),
        ("check", "--baseline", "b.json", "--markdown", "other-name.json"),
        ("check", "--baseline", "b.json", "--markdown", "x.md", "--junit", "r/../x.md"),
        ("check", "--baseline", "b.json", "r/d/m/k.json", "--junit", "r/d/m/k.json"),
        ("check", "--baseline", "b.json", "--results", "r", "--junit", "r/d/m/k.json"),
        ("leaderboard", "--results", "r", "--output", "r/d/m/k.json"),
        ("leaderboard", "--results", "r", "--plot", "r/d/m/k.png"),
        ("leaderboard", "--results", "r", "--output", "x.md", "--plot", "./x.md"),
    ],
    ids=" ".join,
)
def test_no_file_that_is_read_is_overwritten(
    words: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "b.json").write_bytes(BASELINE.read_bytes())
    if os.name != "nt":
        (folder / "other-name.json").symlink_to("b.json")
    records = folder / "r" / "d" / "m"
    records.mkdir(parents=True)
    for name in ("k.json", "k.png", "k.images.npz"):
        (records / name).write_bytes(b"{}")
    code, out, err = told(words, monkeypatch)
    assert (code, out) == (2, "")
    assert "would overwrite" in err
    assert (folder / "b.json").read_bytes() == BASELINE.read_bytes()
    assert {one.read_bytes() for one in records.iterdir()} == {b"{}"}


def test_documents_of_any_kind_are_value_errors(tmp_path: Path) -> None:
    for text in (DEEP, "{", "\ud800"):
        with pytest.raises(ValueError, match=r"."):
            from_json(text)
    for raw in (f"a = {DEEP[:5000]}".encode(), b"\xff", b"= 1"):
        with pytest.raises(ValueError, match=r"."):
            from_toml(raw)
    assert from_json(b'{"a": [1]}') == {"a": [1]}
    assert from_toml(b"a = 1") == {"a": 1}
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(ValueError, match="11 bytes, at most 10"):
        content(tmp_path / "large", 10)
    with pytest.raises(IsADirectoryError):
        content(tmp_path)
    for name in ("list.json", "deep.json", "empty.json", "nowhere.json"):
        with pytest.raises(AssetError, match=r"expected a JSON object.*restore it"):
            read_object(tmp_path / name, "restore it")
    (tmp_path / "good.json").write_text(json.dumps({"a": 1}))
    assert read_object(tmp_path / "good.json", "restore it") == {"a": 1}
