from __future__ import annotations

import json

import pytest
import yaml

from fairbench.core.score import Score
from fairbench.leaderboards import rows
from fairbench.leaderboards.board import Board
from fairbench.leaderboards.formats.eval_results import write_eval_results
from fairbench.leaderboards.formats.every_eval_ever import write_every_eval_ever

# What eval.schema.json of Every Eval Ever 0.2.1 requires.
REQUIRED = {
    "schema_version",
    "evaluation_id",
    "retrieved_timestamp",
    "source_metadata",
    "model_info",
    "eval_library",
    "evaluation_results",
}


@pytest.fixture
def board(make_record, tmp_path):
    score = Score("fairness_discrepancy_corrected", 0.1, 0.05, 0.15, 900, "lower", "w", 0.03)
    record = make_record('a": [x]\x1b', scores=(score,))
    return Board(rows([record], warn=lambda line: None), tmp_path, lambda row: [record])


def test_every_eval_ever_has_what_its_schema_requires(board, tmp_path):
    write_every_eval_ever(board, tmp_path / "out")
    (path,) = (tmp_path / "out").rglob("*.json")
    assert path.relative_to(tmp_path / "out").parts[:2] == ("data", "fairbench_cartoonfaces")
    told = json.loads(path.read_text())
    assert told.keys() >= REQUIRED
    (result,) = told["evaluation_results"]
    assert result["score_details"]["score"] == 0.1
    interval = result["score_details"]["uncertainty"]["confidence_interval"]
    assert (interval["lower"], interval["upper"], interval["confidence_level"]) == (
        0.05,
        0.15,
        0.95,
    )
    assert result["metric_config"]["lower_is_better"] is True
    details = [result["score_details"]["details"], told["model_info"]["additional_details"]]
    assert all(isinstance(value, str) for one in details for value in one.values())
    assert float(told["retrieved_timestamp"]) >= 0


def test_the_hub_reads_its_file(board, tmp_path):
    write_eval_results(board, tmp_path / "out")
    (path,) = (tmp_path / "out").rglob("fairbench.yaml")
    assert path.parent.name == ".eval_results"
    assert "\x1b" not in path.read_text()
    (entry,) = yaml.safe_load(path.read_text())
    assert entry["dataset"] == {
        "id": "fairbench/cartoonfaces",
        "task_id": "gender/fairness_discrepancy_corrected",
    }
    assert entry["value"] == 0.1
    assert "[0.05, 0.15]" in entry["notes"]
