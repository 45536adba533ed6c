"""The Croissant metadata of CartoonFaces say what its manifest and its code say."""

from __future__ import annotations

import json

from fairbench.datasets.cartoonfaces import ASSETS, ATTRIBUTES, manifest


def test_files_and_levels_are_those_of_the_data_set():
    told = json.loads((ASSETS / "cartoonfaces" / "croissant.json").read_text())
    assert told["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    files = {one["name"]: (one["sha256"], one["contentSize"]) for one in told["distribution"]}
    splits = manifest()["splits"].values()
    assert files == {one["file"]: (one["sha256"], f"{one['bytes']} B") for one in splits}
    levels = {
        one["name"].removesuffix("_levels"): tuple(
            row[f"{one['name']}/name"] for row in one["data"]
        )
        for one in told["recordSet"]
    }
    assert levels == dict(ATTRIBUTES)
