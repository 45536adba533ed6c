from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from fairbench.core.keys import run_key
from fairbench.core.record import SCHEMA, Record
from fairbench.core.score import Score

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and then piped output is folded

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="renew the golden files")


@pytest.fixture
def golden(request):
    """Compare a text with a golden file byte for byte, or renew the file."""

    def compare(name, text):
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.write_bytes(text.encode())
        assert path.read_bytes().decode() == text

    return compare


@pytest.fixture
def make_record():
    """A small complete record; any field can be set, `config` and `card` in part."""

    def make(method="fairgen", seed=0, config=None, card=None, **changes):
        config = {
            "method": method,
            "version": 1,
            "preset": None,
            "parameters": {"strength": 1.0},
            "backbone": "cartoon-sd",
            "prompts": ["a photo of a person"],
            "sampling": {"steps": 20, "guidance": 1.0, "eta": 0.0, "spacing": "trailing"},
            "dtype": "float32",
            "num_images": 2000,
            "seed": seed,
            "target": {"female": 0.5, "male": 0.5},
            "hashes": {"judge": "a" * 64, "reference": "b" * 64},
            **(config or {}),
        }
        values = {
            "schema": SCHEMA,
            "key": run_key({**config, "task": changes.get("task", "gender")}),
            "generation_key": "00112233aabbccdd",
            "status": "complete",
            "error": None,
            "method": method,
            "dataset": "cartoonfaces",
            "task": "gender",
            "config": config,
            "card": {"name": method, "role": "method", "ranked": True, "supervision": []}
            | (card or {}),
            "environment": {"fairbench": "0.1.0", "code": "wheel"},
            "seconds": {"prepare": 12.5, "generate": 100.0, "score": 3.0},
            "peak_memory_mib": 512.25,
            "extra_parameters": 0,
            "network_calls_per_image": 20.0,
            "scores": (Score("validity", 0.99, None, None, 2000, "higher", unit="share"),),
            "groups": {
                "gender": [
                    {
                        "group": "female",
                        "count": 900,
                        "n": 2000,
                        "share": 0.45,
                        "low": 0.42,
                        "high": 0.48,
                        "target": 0.5,
                    }
                ]
            },
            "facts": {"hits": [[9, 1], [2, 8]]},
            "manifest": (),
            "created": "2026-01-02T03:04:05+00:00",
        }
        return Record(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def stand_ins():
    """The module that draws CelebA's layouts."""
    path = Path(__file__).parent / "stand_ins.py"
    spec = importlib.util.spec_from_file_location("fairbench_stand_ins", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """A cache folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FAIRBENCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def s3():
    """Address of a bucket that a server of this process serves."""
    pytest.importorskip("s3fs", reason="pip install s3fs")
    server_of = pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
    server = server_of.ThreadedMotoServer(port=0)
    with pytest.MonkeyPatch.context() as patch:
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        files = s3fs.S3FileSystem(endpoint_url=f"http://{host}:{port}")
        files.mkdir("bucket")
        yield "s3://bucket"
        server.stop()
