from __future__ import annotations

import csv

import numpy as np
import pytest

from fairbench.core.errors import ContractError, InputError
from fairbench.inputs.labels import read_labels

ATTRIBUTES = {"gender": ("female", "male"), "race": ("white", "black", "asian")}
NAMES = ("a.png", "b/1.png", "b/2.png")
FULL = {
    "file": ["b/2.png", "a.png", "b/1.png"],
    "prompt": ["a nurse, smiling", "a \u201cdoctor\u201d", "two\nlines"],
    "requested_gender": ["male", "female", "male"],
    "race": ["asian", "white", "black"],
}


def write(path, columns):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def parquet(path, columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path


def refused(path, *texts, names=NAMES, levels=ATTRIBUTES, **options):
    with pytest.raises(InputError) as caught:
        read_labels(path, names, levels, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for text in texts:
        assert text in message, message


def changed(tmp_path, **columns):
    """A table with some columns changed; None takes one out."""
    merged = {name: cells for name, cells in (FULL | columns).items() if cells is not None}
    return write(tmp_path / "labels.csv", merged)


@pytest.mark.parametrize(("save", "suffix"), [(write, ".csv"), (parquet, ".PARQUET")])
def test_rows_are_brought_into_the_order_of_the_images(tmp_path, save, suffix):
    labels = read_labels(save(tmp_path / f"labels{suffix}", FULL), NAMES, ATTRIBUTES)
    assert len(labels) == 3
    assert labels.names == NAMES
    assert labels.prompts == ("a \u201cdoctor\u201d", "two\nlines", "a nurse, smiling")
    assert {**labels.requested}.keys() == {"gender"}
    assert labels.requested["gender"].tolist() == [0, 1, 1]
    assert labels.given["race"].tolist() == [0, 1, 2]
    assert labels.given["race"].dtype == np.int64
    with pytest.raises(TypeError):
        labels.given["race"] = None


def test_only_the_file_is_needed(tmp_path):
    path = write(tmp_path / "labels.csv", {"file": NAMES})
    labels = read_labels(path, NAMES, ATTRIBUTES)
    assert labels.prompts is None
    assert not labels.requested
    assert not labels.given


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("\ufefffile,gender\r\na.png,male\r\n\r\n".encode())
    assert read_labels(path, ["a.png"], ATTRIBUTES).given["gender"].tolist() == [1]


def test_numbers_name_the_images_of_an_array(tmp_path):
    path = parquet(tmp_path / "labels.parquet", {"file": [1, 0], "gender": ["male", "female"]})
    labels = read_labels(path, ["0", "1"], ATTRIBUTES)
    assert labels.given["gender"].tolist() == [0, 1]


def test_images_beyond_the_limit_may_have_a_row(tmp_path):
    path = write(tmp_path / "labels.csv", FULL)
    labels = read_labels(path, NAMES[:2], ATTRIBUTES, unread=NAMES[2:])
    assert labels.names == NAMES[:2]
    assert labels.requested["gender"].tolist() == [0, 1]
    refused(path, "1 row of 3 name no image, such as 'b/2.png'", names=NAMES[:2])


def test_the_hash_is_that_of_the_content(tmp_path):
    def hashed(**columns):
        return read_labels(changed(tmp_path, **columns), NAMES, ATTRIBUTES).sha256

    same = hashed()
    assert hashed(**{name: cells[::-1] for name, cells in FULL.items()}) == same
    others = [
        hashed(prompt=None),
        hashed(prompt=["x", "y", "z"]),
        hashed(race=None),
        hashed(race=["white", "white", "black"]),
        hashed(requested_gender=None),
        hashed(requested_gender=None, gender=FULL["requested_gender"]),
    ]
    assert len({same, *others}) == 7


# --- what is refused -----------------------------------------------------------------------


def test_an_unknown_column(tmp_path):
    refused(changed(tmp_path, gendre=["male"] * 3), "unknown column 'gendre'", "mean gender")
    refused(changed(tmp_path, requested_age=["old"] * 3), "unknown column 'requested_age'")


def test_a_table_without_names(tmp_path):
    refused(changed(tmp_path, file=None), "expected a column file", "'prompt', 'requested_gender'")


def test_an_unknown_level(tmp_path):
    path = changed(tmp_path, race=["asian", "whyte", "black"])
    refused(path, "row 2 ('a.png'): unknown level of race 'whyte'; did you mean white?")
    path = changed(tmp_path, requested_gender=["male", "woman", "male"])
    refused(path, "unknown level of requested_gender 'woman'", "female")


def test_a_level_that_nobody_could_tell_is_an_empty_cell(tmp_path):
    path = write(tmp_path / "labels.csv", {"file": NAMES, "race": ["asian", "n/a", "white"]})
    refused(path, "unknown level of race 'n/a'", "leave it empty")


def test_levels_are_found_whatever_their_case_where_one_is_meant(tmp_path):
    path = changed(
        tmp_path, race=["ASIAN", " white", "Black "], requested_gender=["M\uff41le"] * 3
    )
    labels = read_labels(path, NAMES, ATTRIBUTES)
    assert labels.given["race"].tolist() == [0, 1, 2]
    assert labels.requested["gender"].tolist() == [1, 1, 1]
    path = write(tmp_path / "two.csv", {"file": ["a", "b"], "look": ["Sure", "SURE"]})
    refused(
        path, "unknown level of look 'SURE'", names=["a", "b"], levels={"look": ("sure", "Sure")}
    )


def test_spreadsheets_of_all_kinds_are_read(tmp_path):
    rows = (("file", "Gender"), ("./a.png", "Male"), ("b\\1.png", "female"))
    for number, (delimiter, end, coding) in enumerate(
        [
            (";", "", "utf-8"),
            ("\t", "", "utf-16"),
            (",", ",,", "utf-8-sig"),
            (";", ";", "utf-8-sig"),
        ]
    ):
        path = tmp_path / f"{number}.csv"
        text = "\r\n".join(delimiter.join(row) + end for row in rows) + "\r\n"
        path.write_bytes(text.encode(coding))
        labels = read_labels(path, ["a.png", "b/1.png"], ATTRIBUTES)
        assert labels.given["gender"].tolist() == [1, 0], (delimiter, coding)
        assert labels.notes == ()


def test_names_of_another_unicode_form_are_the_same_names(tmp_path):
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    path = write(tmp_path / "labels.csv", {"file": [decomposed], "gender": ["male"]})
    assert read_labels(path, [composed], ATTRIBUTES).given["gender"].tolist() == [1]
    refused(path, "no image", names=[composed, "./" + composed])  # which of both isn't told


def test_a_folder_before_all_names_is_left_out_with_a_word(tmp_path):
    path = tmp_path / "labels.csv"
    for folder in ("out", "/data/out", r"C:\out", "./out"):
        write(path, {"file": [f"{folder}/{name}" for name in NAMES], "race": ["asian"] * 3})
        labels = read_labels(path, NAMES, ATTRIBUTES)
        assert labels.given["race"].tolist() == [2, 2, 2]
        (note,) = labels.notes
        assert "out/" in note
    write(path, {"file": ["out/a.png", "b/1.png", "b/2.png"], "race": ["asian"] * 3})
    refused(path, "1 row of 3 name no image", "out/a.png")
    # Both b/1.png and 1.png could be meant.
    write(path, {"file": ["out/b/1.png"], "race": ["asian"]})
    refused(path, "out/b/1.png", names=("1.png", "b/1.png"))


def test_a_column_of_names_that_is_called_otherwise_is_pointed_out(tmp_path):
    path = write(tmp_path / "labels.csv", {"filename": NAMES, "race": ["asian"] * 3})
    refused(path, "seen 'filename', 'race'; rename 'filename'")
    path.write_text("file|race\na.png|asian\n")
    refused(path, "seen 'file|race'")


def test_two_kinds_of_marks_between_cells_are_refused(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("file,gender;race\na.png,male;white\n")
    refused(path, "'gender;race'", "the same mark")


def test_a_first_line_of_excel_is_no_header(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("sep=;\nfile;race\n" + "".join(f"{name};asian\n" for name in NAMES))
    assert read_labels(path, NAMES, ATTRIBUTES).given["race"].tolist() == [2, 2, 2]


def test_what_is_no_text_is_said_to_be_none(tmp_path):
    path = tmp_path / "labels.csv"
    for content in ("file,race\n".encode("utf-16-le"), b"PK\3\4\0\0\0\0file\n"):
        path.write_bytes(content)
        refused(path, "zero bytes")


def test_other_columns_are_passed_over_with_a_word(tmp_path):
    labels = read_labels(changed(tmp_path, seed=[1, 2, 3], note=["x", "", ""]), NAMES, ATTRIBUTES)
    (note,) = labels.notes
    assert "columns 'seed', 'note' passed over" in note
    assert labels.sha256 == read_labels(changed(tmp_path), NAMES, ATTRIBUTES).sha256


@pytest.mark.parametrize("column", ["file", "prompt", "requested_gender"])
@pytest.mark.parametrize("cell", ["", "  "])
def test_an_empty_cell(tmp_path, column, cell):
    cells = [FULL[column][0], cell, cell + " "]
    path = changed(tmp_path, **{column: cells})
    refused(path, "row 2", f"and 1 more: column {column} is empty", "whole column out")


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_nothing_in_a_parquet(tmp_path, nothing):
    cells = ["male", None, "female"] if nothing is None else [1.0, nothing, 2.0]
    path = parquet(tmp_path / "labels.parquet", {**FULL, "requested_gender": cells})
    refused(path, "row 2 ('a.png'): column requested_gender is empty")


@pytest.mark.parametrize("cell", ["", "  ", "unsure", "Unsure ", None])
def test_people_may_be_unsure(tmp_path, cell):
    save, suffix = (parquet, ".parquet") if cell is None else (write, ".csv")
    path = save(tmp_path / f"labels{suffix}", {**FULL, "race": ["asian", cell, "black"]})
    assert read_labels(path, NAMES, ATTRIBUTES).given["race"].tolist() == [-1, 1, 2]


def test_a_level_called_unsure_is_a_level(tmp_path):
    path = write(tmp_path / "labels.csv", {"file": ["a"], "look": ["unsure"]})
    levels = {"look": ("sure", "unsure")}
    assert read_labels(path, ["a"], levels).given["look"].tolist() == [1]


def test_some_images_are_enough_for_an_audit(tmp_path):
    path = write(tmp_path / "labels.csv", {"file": ["b/1.png"], "race": ["black"]})
    assert read_labels(path, NAMES, ATTRIBUTES).given["race"].tolist() == [-1, 1, -1]
    prompted = {"file": ["b/1.png"], "race": ["black"], "prompt": ["a nurse"]}
    refused(write(tmp_path / "labels.csv", prompted), "2 images of 3 without a row")


def test_an_audit_that_tells_nothing_is_refused(tmp_path):
    path = write(tmp_path / "labels.csv", {"file": ["a.png"], "race": ["unsure"]})
    refused(path, "column race tells no level of any image")


def test_a_file_that_comes_twice(tmp_path):
    path = changed(tmp_path, file=["b/2.png", "a.png", "b/2.png"])
    refused(path, "row 3 ('b/2.png'): there is a row for this file already, row 1")


def test_a_file_that_is_no_image(tmp_path):
    path = changed(tmp_path, file=["2.png", "a.png", "1.png"])
    refused(path, "2 rows of 3 name no image, such as '2.png'", "such as 'a.png'")


def test_an_image_without_a_row(tmp_path):
    path = write(tmp_path / "labels.csv", {"file": ["a.png"]})
    refused(path, "2 images of 3 without a row, such as 'b/1.png'")


def test_a_column_that_comes_twice(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("file,gender,gender\na.png,male,female\n")
    refused(path, "column 'gender' comes twice")


def test_a_row_of_another_length(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("file,prompt\na.png,a nurse, smiling\n")
    refused(path, "line 2: expected 2 cells as in the header, seen 3", "in quotes")


@pytest.mark.parametrize("content", ["", "file,gender\n", "\n"])
def test_a_table_without_rows(tmp_path, content):
    path = tmp_path / "labels.csv"
    path.write_text(content)
    refused(path, "no row")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.csv", b"file,prompt\na.png,\xff\xfe\n"),
        ("labels.csv", b'file,prompt\na.png,"never closed\n'),
        ("labels.csv", b'file,prompt\na.png,"closed" twice"\n'),
        ("labels.csv", b"file,prompt\n" + b"a" * 200_000 + b",x\n"),
        ("labels.parquet", b""),
        ("labels.parquet", b"PAR1 and then nothing of the kind PAR1"),
    ],
)
def test_a_damaged_table(tmp_path, name, content):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, "can't be read as such", "save it anew")


def test_other_files(tmp_path):
    refused(tmp_path / "labels.csv", "no such file")
    refused(tmp_path / "labels.xlsx", "as .csv or .parquet")
    (tmp_path / "folder.csv").mkdir()
    refused(tmp_path / "folder.csv", "seen no file there")


def test_no_images_at_all(tmp_path):
    with pytest.raises(ContractError, match="at least one image"):
        read_labels(write(tmp_path / "labels.csv", FULL), [], ATTRIBUTES)


def test_control_columns_hold_any_text_in_natural_order(tmp_path):
    columns = FULL | {"control_seed": ["10", "2", "10"], "control_age band": ["old", "new", "old"]}
    labels = read_labels(write(tmp_path / "labels.csv", columns), NAMES, ATTRIBUTES)
    seed, age = labels.controls
    assert (seed.name, seed.levels, seed.index.tolist()) == ("seed", ("2", "10"), [0, 1, 1])
    assert (age.name, age.levels, age.index.tolist()) == ("age band", ("new", "old"), [0, 1, 1])
    plain = read_labels(write(tmp_path / "plain.csv", FULL), NAMES, ATTRIBUTES)
    assert plain.controls == ()
    assert labels.sha256 != plain.sha256
    turned = {name: cells[::-1] for name, cells in columns.items()}
    again = read_labels(write(tmp_path / "turned.csv", turned), NAMES, ATTRIBUTES)
    assert again.sha256 == labels.sha256


def test_control_columns_that_are_refused(tmp_path):
    path = changed(tmp_path, control_race=["a", "b", "c"])
    refused(path, "control_race", "--control race")
    refused(changed(tmp_path, control_=["a", "b", "c"]), "unknown column 'control_'")
    refused(changed(tmp_path, control_age=["a", "", "c"]), "column control_age is empty")
    names = [f"{i}.png" for i in range(101)]
    path = write(tmp_path / "labels.csv", {"file": names, "control_noise": names})
    refused(path, "101 values", "bands", names=names)
