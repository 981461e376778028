"""Small JSON files tell by a checksum that they are not what was written."""

from __future__ import annotations

import pytest

from carevl.store.damage import DamagedError, encode_json, find_json_problem, read_json

FIGURES = {"arms": {"carevl": {"strict": 0.75, "é": None}}, "final": [{"world_seed": 5, "data": "a.parquet"}]}


def test_a_flipped_bit_in_any_byte_is_found(tmp_path):
    file, data = tmp_path / "compare.json", encode_json(FIGURES)
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        assert find_json_problem(file) is not None, bytes(flipped)


@pytest.mark.parametrize("length", [0, 1, 40, -1])
def test_a_cut_file_is_found(tmp_path, length):
    file = tmp_path / "compare.json"
    file.write_bytes(encode_json(FIGURES)[:length])
    with pytest.raises(DamagedError, match=r"compare\.json is damaged: it is not JSON .*; move it away"):
        read_json(file, "move it away")


def test_what_was_written_is_read_with_a_checksum_or_without(tmp_path):
    file = tmp_path / "figures.json"
    for data in (encode_json(FIGURES), b'{"arms": {"carevl": 1}, "sha256": "' + b"0" * 64 + b'"}', b"{}"):
        file.write_bytes(data)
        assert "checksum" not in read_json(file, "")
    file.write_bytes(encode_json(FIGURES))
    assert read_json(file, "") == FIGURES
