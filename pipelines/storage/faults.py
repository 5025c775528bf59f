"""Which faults are of one file or object, and which of the store: one list, for disks and for S3.

- *Of the object*: the record that names it is rejected, and --max-reject-rate bounds how many may be.
- *Of the store, passing*: the request is repeated for ``SAMTOK_STORAGE_RETRY_S`` seconds.
- *Of the store, staying*: whatever is in no table here, such as a full disk or a wrong secret. Fails at once.
"""

import errno

MISSING = "missing"
"""There is no file of that name, and none can be: it is a folder's, leads through a file, or is too long."""
REFUSED = "refused"
"""It may not be read, though others may."""
KIND = "kind"
"""It is a pipe, a socket or a device."""
BUCKET = "bucket"
"""There is no such bucket."""

OBJECT_ON_DISK: dict[int | None, str] = {
    errno.ENOENT: MISSING,
    errno.ENOTDIR: MISSING,
    errno.EISDIR: MISSING,
    errno.ENAMETOOLONG: MISSING,
    errno.ELOOP: MISSING,
    errno.EACCES: REFUSED,
    errno.EPERM: REFUSED,
    errno.ENXIO: KIND,
    errno.ENODEV: KIND,
}
"""By ``errno``."""

PASSING_ON_DISK = {errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO}
"""By ``errno``: of network file systems."""

OBJECT_ON_S3: dict[str | None, str] = {
    "NoSuchKey": MISSING,
    "KeyTooLongError": MISSING,
    "NoSuchBucket": BUCKET,
    "AccessDenied": REFUSED,
    "InvalidObjectState": REFUSED,  # archived
}
"""By the code in the store's answer."""

OBJECT_ON_HTTP: dict[int | None, str] = {404: MISSING, 414: MISSING}
"""By the status of an answer whose code is not in ``OBJECT_ON_S3``."""

PASSING_ON_S3 = {
    "BadDigest",  # the body was damaged on its way
    "ConditionalRequestConflict",  # a racing writer of the same key has not finished
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "XAmzContentSHA256Mismatch",
}
"""By the code in the store's answer; no connection, no answer and most answers of 500 and above too."""
