"""Parts that are what was written, and parts that are not."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carevl.store.damage import DamagedError
from carevl.store.parts import check_part, encode_part, hash_rows, read_part, read_seal

ROWS = pa.table(
    {
        "item_id": [f"item {n}" for n in range(200)],
        "scores": [[n / 7, 1.0] for n in range(200)],
        "error": pa.array([None] * 200, pa.struct([("kind", pa.string())])),
    }
)


@pytest.fixture
def part(tmp_path):
    file = tmp_path / "part-00000.parquet"
    file.write_bytes(encode_part(ROWS))
    return file


def test_a_part_is_parquet_for_every_reader(part):
    assert pq.read_table(part).equals(ROWS)
    assert read_part(part).equals(ROWS)
    assert read_part(part, ["scores"]).column_names == ["scores"]
    assert pq.read_metadata(part).num_rows == 200


def test_one_flipped_bit_anywhere_is_noticed_or_changes_nothing(part):
    data = part.read_bytes()
    unnoticed, messages = 0, set()
    for place in range(0, len(data), 3):
        part.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        try:
            rows = read_part(part, ["item_id", "error"])
        except DamagedError as error:
            messages.add(str(error).replace(error.problem, "…"))
        else:
            unnoticed += 1
            assert rows.equals(ROWS.select(["item_id", "error"]))
    assert messages == {f"{part} …; `carevl run --verify` makes it again"}
    assert unnoticed <= len(b"carevl-seal-1:")  # then the part looks as if an earlier version had written it


@pytest.mark.parametrize("left", [0, 3, 100, -1, -100])
def test_a_cut_part_is_noticed(part, left):
    part.write_bytes(part.read_bytes()[:left])
    with pytest.raises(DamagedError, match=rf"{part} is damaged: "):
        read_part(part)
    with pytest.raises(DamagedError, match=rf"{part} is damaged: "):
        check_part(part)


def test_a_missing_part_is_named(part):
    part.unlink()
    with pytest.raises(DamagedError, match=f"{part} is missing"):
        read_part(part)


def test_a_part_of_an_earlier_version_is_read_and_a_flip_in_its_pages_too_where_it_has_checksums(part):
    pq.write_table(ROWS, part, compression="zstd")
    assert read_part(part).equals(ROWS)
    assert read_seal(part) is None
    pq.write_table(ROWS, part, compression="none", write_page_checksum=True)
    data = part.read_bytes()
    place = data.index(b"item 150")
    part.write_bytes(data[:place] + b"I" + data[place + 1 :])
    with pytest.raises(DamagedError, match="checksum"):
        read_part(part)
    with pytest.raises(DamagedError, match="checksum"):
        check_part(part)


def test_the_seal_is_of_all_other_bytes(part):
    data = part.read_bytes()
    mark = data.index(b"carevl-seal-1:")
    rest = data[:mark] + data[mark + len(b"carevl-seal-1:") + 32 :]
    assert read_seal(part) == hashlib.sha256(rest).hexdigest()


def test_a_hash_of_rows_is_of_their_values_however_they_are_stored():
    pieces = pa.concat_tables([ROWS.slice(0, 50), ROWS.slice(50)])
    assert hash_rows(pieces) == hash_rows(ROWS) == hash_rows(pa.Table.from_pylist(ROWS.to_pylist(), ROWS.schema))
    assert hash_rows(ROWS.slice(1)) != hash_rows(ROWS)


def test_what_the_system_refuses_is_no_damage(tmp_path):
    directory = tmp_path / "part-00000.parquet"
    directory.mkdir()
    with pytest.raises(IsADirectoryError):
        read_part(directory)
