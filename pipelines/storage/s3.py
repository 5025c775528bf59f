"""Objects of an S3 store: one request per call.

No retries (the package has them all), no caches of listings, no guessing whether a key is a folder.
Credentials and endpoint come from the variables in ``env.py``, or else from whatever the AWS tools find
(profile, instance role). Source: the S3 API reference, and s3fs for transport and multipart.
"""

import functools
import os
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync
from s3fs import S3FileSystem

from pipelines import env
from pipelines.storage import s3_listing
from pipelines.storage.faults import MISSING, OBJECT_ON_HTTP, OBJECT_ON_S3, PASSING_ON_S3
from samtok.errors import ConfigError

FAULTS: tuple[type[Exception], ...] = (
    OSError,
    BotoCoreError,
    ClientError,
    ResponseParserError,
    aiohttp.ClientError,
    UnicodeEncodeError,
)
"""All that a request can raise, whether the store refused it or could not be reached."""

_TRANSIENT = (
    ConnectionError,
    NoConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ResponseParserError,
    aiohttp.ClientError,
    TimeoutError,
)
PAGE_KEYS = 1000
"""Most keys of a page of a listing (ListObjectsV2)."""
_LAST_CHARACTER = "\U0010ffff"
_WRITER = "samtok-writer"  # metadata that tells whose write created an object


@dataclass(frozen=True)
class ObjectInfo:
    """What a HEAD request tells of an object."""

    size: int
    etag: str
    writer: str | None


def split(uri: str) -> tuple[str, str]:
    """Splits ``s3://bucket/some/key`` into bucket and key; the key may be empty."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


@functools.lru_cache(maxsize=8)
def _connect(_pid: int, region: str | None, **options: Any) -> S3FileSystem:
    filesystem = S3FileSystem(
        **options,
        session=s3_listing.session(),
        client_kwargs={"region_name": region} if region else {},
        config_kwargs={
            "retries": {"total_max_attempts": 1},
            "connect_timeout": 10,
            "read_timeout": 60,
            "max_pool_connections": 64,
        },
        max_concurrency=8,
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    filesystem.retries = 1
    return filesystem


def _filesystem() -> S3FileSystem:
    """The connection of this process for the current credentials; a forked child makes its own."""
    endpoint = env.get(env.AWS_ENDPOINT_URL)
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"{env.AWS_ENDPOINT_URL} must be http://HOST:PORT or https://..., got {endpoint!r}."
        )
    return _connect(
        os.getpid(),
        env.get(env.AWS_REGION),
        endpoint_url=endpoint,
        key=env.get(env.AWS_ACCESS_KEY_ID),
        secret=env.get(env.AWS_SECRET_ACCESS_KEY),
        token=env.get(env.AWS_SESSION_TOKEN),
    )


def _call(method: str, **request: Any) -> dict[str, Any]:
    call: Any = _filesystem().call_s3
    return call(method, **request)


async def _read(filesystem: S3FileSystem, **request: Any) -> bytes:
    answer = await filesystem._call_s3("get_object", **request)
    async with answer["Body"] as body:
        return await body.read()


def get(uri: str, *, start: int = 0, stop: int | None = None, etag: str | None = None) -> bytes:
    """Reads bytes ``[start, stop)`` of an object; what lies behind its end is left out.

    With ``etag`` the request fails (412) if the object has been replaced since.
    """
    bucket, key = split(uri)
    request: dict[str, Any] = {"Bucket": bucket, "Key": key}
    if etag is not None:
        request["IfMatch"] = etag
    if stop is not None and stop <= start:  # HTTP has no empty range
        head(uri)
        return b""
    if start or stop is not None:
        request["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
    filesystem = _filesystem()
    try:
        return cast(bytes, sync(filesystem.loop, _read, filesystem, **request))
    except FAULTS as error:
        if status(error) == 416:  # the range starts at or behind the end
            return b""
        raise


def put(uri: str, data: bytes) -> None:
    """Writes an object in one piece; a large one in parts that appear together at the end."""
    _filesystem().pipe_file("/".join(split(uri)), data)


def copy(uri: str, target: str) -> None:
    """Copies an object within the store; a large one in parts that appear together at the end."""
    _filesystem().copy("/".join(split(uri)), "/".join(split(target)))


def create(uri: str, data: bytes, writer: str) -> bool:
    """Writes an object unless the key exists; False if it does.

    A repeated request can meet its own object. So the mark of the writer, which is kept with the object,
    decides who made it, and not the refusal. (The HTTP client repeats requests too, without telling.)
    """
    try:
        _filesystem().pipe_file("/".join(split(uri)), data, mode="create", Metadata={_WRITER: writer})
    except FAULTS as error:
        if status(error) != 412:
            raise
        return head(uri).writer == writer
    return True


def head(uri: str) -> ObjectInfo:
    bucket, key = split(uri)
    try:
        answer = _call("head_object", Bucket=bucket, Key=key)
    except FAULTS as error:
        if status(error) not in (403, 404):
            raise
        get(uri, stop=1)  # HEAD has no body to say what is missing or why it is refused; GET raises it
        answer = _call("head_object", Bucket=bucket, Key=key)
    return ObjectInfo(answer["ContentLength"], answer["ETag"], answer.get("Metadata", {}).get(_WRITER))


def exists(uri: str) -> bool:
    """Whether the object exists; a missing bucket is an error."""
    try:
        head(uri)
    except FAULTS as error:
        if fault_of(error) == MISSING:
            return False
        raise
    return True


def list_page(
    folder: str, beginning: str, after: str | None, limit: int | None
) -> tuple[list[tuple[str, int]], str | None]:
    """Lists one page of the keys below a folder that start with ``beginning``, a thousand or ``limit`` at
    most.

    Returns:
        (URI, size in bytes) of each object, and the token of the next page or None after the last.
    """
    bucket, prefix = split(folder + beginning)
    more: dict[str, Any] = {"ContinuationToken": after} if after else {}
    if limit is not None and limit < PAGE_KEYS:
        more["MaxKeys"] = limit
    answer = _call("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
    found = [(f"s3://{bucket}/{entry['Key']}", entry["Size"]) for entry in answer.get("Contents", [])]
    return found, answer["NextContinuationToken"] if answer["IsTruncated"] else None


def beginnings(folder: str, at_least: int) -> list[str]:
    """Splits the names below a folder, which ends in a slash, by how they begin, so that parts of a listing
    can be asked for at once: at least so many beginnings where there are more names than fit on a page.

    Each name with a dot begins with exactly one of them. Names that differ behind a dot only stay together,
    as an image and its side-car do. Costs a request for each beginning and character.
    """
    found = [""]
    if list_page(folder, "", None, None)[1] is None:
        return found
    while len(found) < at_least:
        longer = [one for beginning in found for one in _longer(folder, beginning)]
        if longer == found:
            break
        found = longer
    return found


def _longer(folder: str, beginning: str) -> list[str]:
    """Returns the beginnings that are longer by a character, or the same if it has a dot in its last part."""
    if "." in beginning.rpartition("/")[2]:
        return [beginning]
    bucket, root = split(folder)
    found: list[str] = []
    after = root + beginning
    while True:
        answer = _call("list_objects_v2", Bucket=bucket, Prefix=root + beginning, StartAfter=after, MaxKeys=1)
        if not answer.get("Contents"):
            return found
        longer = answer["Contents"][0]["Key"][len(root) : len(root) + len(beginning) + 1]
        if found and longer <= found[-1]:  # a store with another order, or one that takes no StartAfter
            return [beginning]
        found.append(longer)
        after = root + longer + _LAST_CHARACTER


def delete(uri: str) -> None:
    """Deletes an object; that it does not exist is no error in S3."""
    bucket, key = split(uri)
    _call("delete_object", Bucket=bucket, Key=key)


def place(uri: str) -> str:
    """Names what has an outage when this object has one: its bucket."""
    return f"s3://{split(uri)[0]}"


def _answer(error: BaseException | None) -> dict[str, Any] | None:
    """The store's answer, if the request got as far as to be answered; s3fs wraps it in an OSError."""
    while error is not None and not isinstance(error, ClientError):
        error = error.__cause__
    return None if error is None else dict(error.response)


def status(error: BaseException) -> int | None:
    """Returns the HTTP status of the store's answer, None if there was no answer."""
    answer = _answer(error)
    return answer["ResponseMetadata"].get("HTTPStatusCode") if answer else None


def code(error: BaseException) -> str | None:
    """Returns the S3 error code, such as ``NoSuchKey``; requests without a body have the status instead."""
    answer = _answer(error)
    return str(answer["Error"].get("Code")) if answer else None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    number = status(error)
    if number is None:
        return isinstance(error, _TRANSIENT)
    return (number >= 500 and number != 501) or number in (408, 429) or code(error) in PASSING_ON_S3


def fault_of(error: BaseException) -> str | None:
    """Returns what is wrong with this one object, as in ``faults``; None if it is the store."""
    if isinstance(error, (ParamValidationError, UnicodeEncodeError)):
        return MISSING  # no object can have that name
    return OBJECT_ON_S3.get(code(error)) or OBJECT_ON_HTTP.get(status(error))


def describe(error: BaseException) -> str:
    """Says in one line what happened."""
    answer = _answer(error)
    if answer is None:
        return f"{type(error).__name__}: {error}"
    return f"{code(error)} (HTTP {status(error)}): {answer['Error'].get('Message', 'no message')}"


def remedy(error: BaseException) -> str:
    """Says what the user can do about it."""
    where = env.get(env.AWS_ENDPOINT_URL) or "AWS"
    keys = f"{env.AWS_ACCESS_KEY_ID} and {env.AWS_SECRET_ACCESS_KEY}"
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return f"Set {keys}."
    if code(error) == "NoSuchBucket":
        return f"Make the bucket or correct its name; the store asked is {where} ({env.AWS_ENDPOINT_URL})."
    if code(error) == "RequestTimeTooSkewed":
        return "Set the clock of this machine."
    refused = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")
    if status(error) in (401, 403) or code(error) in refused:
        return (
            f"Check {keys}, and that this account may do it at {where} ({env.AWS_ENDPOINT_URL}). "
            "A store that forbids listing also answers so for an object that does not exist."
        )
    if status(error) == 501:
        return f"The store {where} lacks this function; commit records need If-None-Match on PUT."
    if status(error) == 412:
        return "The object was replaced while it was read; read it again."
    return f"Check the URI and that the store {where} ({env.AWS_ENDPOINT_URL}) is up and reachable."
