"""What a stored archive holds is seen without unpacking it."""

import numpy as np
import pytest

from fairbench.storage.cache import Header, array_headers, load_arrays, save_arrays


def test_headers_are_read_without_the_arrays(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save_arrays(path, {"x": np.zeros((3, 2), "f4"), "key": np.array("abc")})
    really = np.lib.format.read_array

    def no_numbers(file, **options):
        array = really(file, **options)
        assert array.dtype.kind == "U"  # what the file is stored as
        return array

    monkeypatch.setattr(np.lib.format, "read_array", no_numbers)
    assert array_headers(path) == {
        "x": Header((3, 2), np.dtype("f4")),
        "key": Header((), np.dtype("<U3")),
    }
    assert array_headers(tmp_path / "none.npz") is None


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_a_damaged_archive_is_none_and_removed(tmp_path, content):
    path = tmp_path / "a.npz"
    if content is None:
        np.savez(path, x=np.array([{}], dtype=object))
    else:
        path.write_bytes(content)
    assert array_headers(path) is None
    assert not path.exists()


def test_damage_behind_the_header_is_seen_on_loading(tmp_path):
    path = tmp_path / "a.npz"
    save_arrays(path, {"x": np.zeros(100_000, np.uint8)})
    content = bytearray(path.read_bytes())
    content[60_000] ^= 1
    path.write_bytes(content)
    assert array_headers(path) == {"x": Header((100_000,), np.dtype(np.uint8))}
    assert load_arrays(path) is None
