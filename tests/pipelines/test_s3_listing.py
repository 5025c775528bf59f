"""Pages of listings are read as botocore reads them, or left to it."""

from xml.sax.saxutils import escape

import botocore.session
import pytest
from botocore.parsers import create_parser
from hypothesis import given
from hypothesis import strategies as st

from pipelines.storage.s3_listing import page_of

SHAPE = botocore.session.get_session().get_service_model("s3").operation_model("ListObjectsV2").output_shape
KEYS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)


def page(entries: list[tuple[str, int]], *, more: bool, token: str, owner: bool, before: str = "") -> bytes:
    contents = "".join(
        f"<Contents>\n<Key>{escape(key)}</Key><LastModified>2023-04-05T00:00:00.000Z</LastModified>"
        f'<ETag>"d41d8"</ETag>{"<Owner><ID>me</ID></Owner>" * owner}<Size>{size}</Size></Contents>'
        for key, size in entries
    )
    following = f"<NextContinuationToken>{escape(token)}</NextContinuationToken>" * more
    text = (
        f'<?xml version="1.0"?>{before}<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>b</Name><IsTruncated>{str(more).lower()}</IsTruncated>{following}"
        f"<EncodingType>url</EncodingType>{contents}</ListBucketResult>"
    )
    return text.encode()


def by_botocore(body: bytes) -> dict:
    read = create_parser("rest-xml").parse({"status_code": 200, "headers": {}, "body": body}, SHAPE)
    entries = [{"Key": entry["Key"], "Size": entry["Size"]} for entry in read.get("Contents", [])]
    rest = {
        name: read[name] for name in ("IsTruncated", "NextContinuationToken", "EncodingType") if name in read
    }
    return {"Contents": entries, **rest}


@given(
    entries=st.lists(st.tuples(KEYS, st.integers(0, 2**50)), max_size=4),
    more=st.booleans(),
    token=KEYS,
    owner=st.booleans(),
)
def test_a_page_is_what_botocore_makes_of_it(entries, more, token, owner):
    body = page(entries, more=more, token=token, owner=owner)
    assert page_of(body) == by_botocore(body)


@pytest.mark.parametrize(
    "body",
    [
        page([("a", 1)], more=False, token="t", owner=False, before="<!DOCTYPE a>"),
        page([("a", 1)], more=False, token="t", owner=False).replace(
            b"<Key>a</Key>", b"<Key><![CDATA[a]]></Key>"
        ),
        page([("a", 1)], more=False, token="t", owner=False).replace(b"<Size>1</Size>", b""),
        page([("a", 1), ("b", 2)], more=False, token="t", owner=False).replace(b"<Size>1</Size>", b""),
        page([("a", 1)], more=False, token="t", owner=False)[:-4],
        page([], more=False, token="t", owner=False).replace(b"IsTruncated", b"Truncated"),
        b"",
    ],
)
def test_a_page_that_is_written_in_another_way_is_left_to_botocore(body):
    assert page_of(body) is None
