"""An object store that takes its time: every request waits, and a bucket of SA-1B's size is made up as it is
listed.

    python -m tests.slow_store --port 9000 --latency-ms 20 --pairs 10000000

Speaks as much of S3 as the package uses. ``sa1b/`` of the bucket ``made`` has ``sa_1.jpg``, ``sa_1.json`` and
so on up to ``--pairs``, names only; all other objects are kept in memory. ``out/commits/`` of a bucket has as
many records as an object ``out/made-commits`` of it says: ``{"count": 43000, "record": {...}}``.
"""

import argparse
import asyncio
import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from xml.sax.saxutils import escape

from aiohttp import web

PAGE_KEYS = 1000
MADE = "made"
_ROOT = "sa1b/sa_"
_SIZES = {".jpg": 450_000, ".json": 60_000}
_DATE = "<LastModified>2023-04-05T00:00:00.000Z</LastModified>"
_ETAG = "<ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag>"
_HEAD = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'


class Numbers:
    """The numbers 1 to ``last`` in the order of their digits: 1, 10, 100, ..., 11, ..., 2."""

    def __init__(self, last: int) -> None:
        self.last = last

    def beyond(self, number: int) -> int | None:
        """Returns the first that neither is this one nor begins with it."""
        while number % 10 == 9 or number + 1 > self.last:
            number //= 10
            if number == 0:
                return None
        return number + 1

    def after(self, number: int) -> int | None:
        return number * 10 if number * 10 <= self.last else self.beyond(number)

    def within(self, first: int, prefix: str) -> Iterator[int]:
        number: int | None = first
        while number is not None and str(number).startswith(prefix):
            yield number
            number = self.after(number)


class Store:
    def __init__(self, latency_s: float, pairs: int) -> None:
        self.latency_s, self.numbers = latency_s, Numbers(pairs)
        self.objects: dict[str, bytes] = {}
        self.requests = 0

    async def serve(self, request: web.Request) -> web.Response:
        self.requests += 1
        body = await request.read()
        await asyncio.sleep(self.latency_s)
        bucket, _, key = request.path.lstrip("/").partition("/")
        if request.method == "GET" and not key:
            return self._list(bucket, request.query)
        if request.method == "PUT":
            if not key:
                return web.Response()
            if request.headers.get("If-None-Match") == "*" and f"{bucket}/{key}" in self.objects:
                return _error(412, "PreconditionFailed")
            self.objects[f"{bucket}/{key}"] = body
            return web.Response(headers={"ETag": _etag(body)})
        if request.method == "DELETE":
            self.objects.pop(f"{bucket}/{key}", None)
            return web.Response(status=204)
        return self._get(bucket, key, request)

    def _get(self, bucket: str, key: str, request: web.Request) -> web.Response:
        stem, dot, kind = key.rpartition(".")
        if bucket == MADE and key.startswith(_ROOT):
            headers = {"Content-Length": str(_SIZES[dot + kind]), "ETag": f'"{stem}"'}
            return web.Response(headers=headers)
        data = self.objects.get(f"{bucket}/{key}")
        if data is None and key.startswith("out/commits/") and (made := self._commits(bucket)) is not None:
            number = int(key.rpartition("-")[2].removesuffix(".json"))
            data = (
                json.dumps({**made["record"], "shard": number}).encode() if number < made["count"] else None
            )
        if data is None:
            return _error(404, "NoSuchKey")
        headers, status = {"ETag": _etag(data)}, 200
        if (wanted := request.http_range).start is not None or wanted.stop is not None:
            start, total = wanted.start or 0, len(data)
            data, status = data[wanted], 206
            headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{total}"
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(data))})
        return web.Response(body=data, status=status, headers=headers)

    def _commits(self, bucket: str) -> dict | None:
        made = self.objects.get(f"{bucket}/out/made-commits")
        return None if made is None else json.loads(made)

    def _list(self, bucket: str, query) -> web.Response:
        prefix = query.get("prefix", "")
        after = query.get("continuation-token") or query.get("start-after") or ""
        most = int(query.get("max-keys", PAGE_KEYS))
        found = list(islice(self._keys(bucket, prefix, after), most + 1))
        page = found[:most]
        entries = "".join(
            f"<Contents><Key>{key if bucket == MADE else escape(key)}</Key>{_DATE}{_ETAG}<Size>{size}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for key, size in page
        )
        more = len(found) > most
        token = f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if more else ""
        text = f"{_HEAD}<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        return web.Response(text=text, content_type="application/xml")

    def _keys(self, bucket: str, prefix: str, after: str) -> Iterator[tuple[str, int]]:
        """Yields (key, size) of what comes after a key, ascending."""
        if bucket == MADE:
            yield from self._pairs(prefix, after)
            return
        keys = [key.partition("/")[2] for key in self.objects if key.startswith(f"{bucket}/{prefix}")]
        sizes = {key: len(self.objects[f"{bucket}/{key}"]) for key in keys}
        if prefix.startswith("out/commits/") and (made := self._commits(bucket)) is not None:
            sizes |= {f"out/commits/shard-{number:05d}.json": 1 for number in range(made["count"])}
        yield from ((key, sizes[key]) for key in sorted(sizes) if key > after)

    def _pairs(self, prefix: str, after: str) -> Iterator[tuple[str, int]]:
        if not (prefix.startswith(_ROOT) or _ROOT.startswith(prefix)):
            return
        digits = prefix.removeprefix(_ROOT) if prefix.startswith(_ROOT) else ""
        digits, dot, kind = digits.partition(".")
        first: int | None = int(digits or 1)
        skipped = False
        if after.startswith(_ROOT) and after > prefix:
            reached = after.removeprefix(_ROOT)
            numbered = "".join(
                character for character in reached if character.isascii() and character.isdigit()
            )
            if not numbered:
                return
            first = int(numbered)
            skipped = reached.endswith(".jpg")
            if not skipped:
                first = self.numbers.after(first) if "." in reached else self.numbers.beyond(first)
        elif after > _ROOT and not after.startswith(_ROOT):
            return
        if first is None:
            return
        for number in self.numbers.within(first, digits):
            for suffix, size in _SIZES.items():
                if not skipped and suffix.startswith(dot + kind):
                    yield f"{_ROOT}{number}{suffix}", size
                skipped = False
            if dot:
                return


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _error(status: int, code: str) -> web.Response:
    text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return web.Response(text=text, status=status, content_type="application/xml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--pairs", type=int, default=10_000_000)
    args = parser.parse_args()
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", Store(args.latency_ms / 1000, args.pairs).serve)
    web.run_app(app, host="127.0.0.1", port=args.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
