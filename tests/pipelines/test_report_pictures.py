"""Pictures of drawn rows: what is shown, what is left out, and that only drawn rows are read."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import schema, shards
from pipelines.reports import pictures as report_pictures
from samtok import masks, words
from samtok.model.tokenizer import MaskTokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return MaskTokenizer.from_preset("micro").eval()


def gallery_of(tmp_path, found, tokenizer, size_hw=(48, 64)):
    Image.fromarray(np.full((*size_hw, 3), 120, np.uint8)).save(tmp_path / "image.png")
    row = {
        "dataset": "d",
        "image_id": "1",
        "image_uri": str(tmp_path / "image.png"),
        "height": size_hw[0],
        "width": size_hw[1],
        "masks": found,
    }
    return report_pictures.make_gallery([row], tokenizer, threshold=0.0, rng=np.random.default_rng(0))


def code_mask(top, *, keep=True, iou=None):
    mask = np.zeros((48, 64), bool)
    mask[top : top + 6, 5:20] = True
    codes = [top % 64, 3]
    return {
        "mask_id": str(top),
        "rle": masks.encode(mask) if keep else None,
        "codes": codes,
        "words": words.format_words(codes, num_codes=64),
        "area_px": 90,
        "iou": iou,
        "label": None,
    }


def test_masks_are_shown_beside_their_reconstructions_and_the_difference(tmp_path, tokenizer):
    (card,) = gallery_of(tmp_path, [code_mask(3), code_mask(20)], tokenizer).cards
    assert [caption for caption, _ in card.pictures] == ["masks", "from words", "difference"]
    assert all(line.iou is not None for line in card.lines)


def test_without_kept_masks_only_reconstructions_are_shown(tmp_path, tokenizer):
    gallery = gallery_of(tmp_path, [code_mask(3, keep=False, iou=0.25)], tokenizer)
    assert [caption for caption, _ in gallery.cards[0].pictures] == ["image", "from words"]
    assert gallery.cards[0].lines[0].iou == 0.25
    assert not gallery.worst


def test_without_a_tokenizer_only_masks_are_shown(tmp_path):
    gallery = gallery_of(tmp_path, [code_mask(3)], None)
    assert [caption for caption, _ in gallery.cards[0].pictures] == ["masks"]
    assert gallery.cards[0].lines[0].iou is None


def test_an_image_without_masks_is_shown_too(tmp_path, tokenizer):
    gallery = gallery_of(tmp_path, [], tokenizer)
    assert gallery.cards[0].lines == []
    assert gallery.cards[0].problem is None
    assert gallery.contact_sheet().startswith(b"\x89PNG")


def test_of_very_many_masks_some_are_drawn_and_the_number_is_told(tmp_path, tokenizer):
    found = [code_mask(top % 40) for top in range(report_pictures.MAX_SHOWN + 7)]
    (card,) = gallery_of(tmp_path, found, tokenizer).cards
    assert len(card.lines) == report_pictures.MAX_SHOWN
    assert card.note == "24 of 31 masks, drawn at random"


def test_the_worst_masks_come_first_and_are_few(tmp_path, tokenizer):
    found = [code_mask(top, iou=1 - (7 * top % 20) / 50) for top in range(20)]
    worst = gallery_of(tmp_path, found, tokenizer).worst
    assert [close_up.line.iou for close_up in worst] == sorted(mask["iou"] for mask in found)[:8]


def test_only_row_groups_with_a_drawn_image_are_read(tmp_path):
    """The other row groups are destroyed on the disk; reading one of them would fail."""
    rows = [
        {
            "dataset": "d",
            "split": "s",
            "image_id": str(index),
            "image_uri": "x",
            "height": 4,
            "width": 4,
            "masks": [],
            "annotations": [],
        }
        for index in range(12)
    ]
    data = bytearray(shards.parquet_bytes(schema.table(rows, schema.CODE_ROW), row_group_rows=2))
    metadata = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata
    (wanted,) = np.random.default_rng(5).choice(12, 1, replace=False)
    starts = []
    for group in range(metadata.num_row_groups):
        columns = [metadata.row_group(group).column(i) for i in range(metadata.row_group(group).num_columns)]
        start = min(column.dictionary_page_offset or column.data_page_offset for column in columns)
        starts.append((start, start + sum(column.total_compressed_size for column in columns)))
    for group, (start, stop) in enumerate(starts):
        if group != wanted // 2:
            data[start:stop] = b"\xff" * (stop - start)
    (tmp_path / "part.parquet").write_bytes(data)
    records = [{"counts": {"rows_out": 12}, "data": {"file": "part.parquet"}}]
    drawn = report_pictures.draw_rows(str(tmp_path), records, 1, np.random.default_rng(5))
    assert [row["image_id"] for row in drawn] == [str(wanted)]
