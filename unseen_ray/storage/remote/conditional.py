"""Conditional requests to S3, which pyarrow does not send: a file is replaced only while it is what was seen before. They need boto3.

A store may refuse conditions, or ignore them; then, and without boto3, the same files are written as all others.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from unseen_ray.storage.environment import variable, variables_of

__all__ = ["ConditionalFile", "conditional_file"]

logger = logging.getLogger(__name__)

_OTHER_ETAG = f'"{"0" * 32}"'
_ANSWER_S = 20  # for a file of kilobytes
_PASSING = (
    408,
    409,
    429,
)  # and all from 500 on, but for 501; 409 leaves open which of several requests at once has won
_unconditional: set[str] = set()  # buckets, by their address
_reached: set[str] = set()  # those that have answered boto3


class _ConditionError(Exception):
    """A condition does not hold."""


@dataclass(frozen=True, slots=True)
class ConditionalFile:
    """A file on S3.

    Attributes:
        client: of boto3.
        place: the bucket's address.
        bucket, key: of the file.
    """

    client: Any
    place: str
    bucket: str
    key: str

    def etag(self) -> str | None:
        """The tag of its present content; None if it does not exist."""
        try:
            return str(self._ask("head_object")["ETag"])
        except FileNotFoundError:
            return None

    def put(self, data: bytes | memoryview, seen: str | None, *, new: bool = False) -> None:
        """Write it if its tag is still the one that was seen; None if there was no file.

        Raises:
            FileExistsError: if `new` is set and there is a file, which an earlier attempt may have written whose answer was lost.
            OSError: BlockingIOError if the tag is another one; else see `retry.is_transient`.
        """
        try:
            self._put(bytes(data), {"IfNoneMatch": "*"} if seen is None else {"IfMatch": seen})
        except _ConditionError:
            if new:
                raise FileExistsError(errno.EEXIST, "it exists") from None
            raise BlockingIOError(errno.EAGAIN, "another request has changed it meanwhile") from None

    def delete(self, seen: str) -> None:
        """Remove it if its tag is still the one that was seen, as far as the store checks that."""
        try:
            self._ask("delete_object", IfMatch=seen)
        except _ConditionError:
            raise BlockingIOError(errno.EAGAIN, "another request has changed it meanwhile") from None

    def refuses(self, data: bytes) -> bool:
        """Whether the store refuses to write this content, the present one, where a condition does not hold."""
        for condition in ({"IfNoneMatch": "*"}, {"IfMatch": _OTHER_ETAG}):
            try:
                self._put(data, condition)
            except _ConditionError:
                continue
            self._give_up("it ignores conditions")
            return False
        return True

    def _put(self, data: bytes, condition: dict[str, str]) -> None:
        try:
            self._ask("put_object", Body=data, **condition)
        except FileNotFoundError:
            raise _ConditionError from None

    def _ask(self, operation: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

        try:
            answer = getattr(self.client, operation)(Bucket=self.bucket, Key=self.key, **arguments)
            _reached.add(self.place)
            return answer
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = error.response.get("Error", {}).get("Code", "")
            why = f"AWS Error {code} (HTTP status {status}) during {operation}"
        except BotoCoreError as error:
            status, code, why = 0, "", f"{type(error).__name__} during {operation}"
            # Where boto3 has never come through, pyarrow may, by other certificates and without proxies; else this is an outage.
            is_outage = isinstance(error, ConnectionError) and self.place in _reached
            if is_outage or isinstance(error, HTTPClientError):
                raise OSError(errno.ECONNABORTED, why) from None
        if status == 412:
            raise _ConditionError
        if status == 404 and code != "NoSuchBucket":
            raise FileNotFoundError(errno.ENOENT, "it does not exist")
        if status in _PASSING or (status >= 500 and status != 501):
            raise OSError(why)
        if operation == "delete_object" and arguments:  # a store may check writes alone
            return self._ask(operation)
        # Whatever it is, what pyarrow sends may be taken; if not, its error tells.
        self._give_up(why)
        raise BlockingIOError(errno.EAGAIN, why)

    def _give_up(self, why: str) -> None:
        if self.place not in _unconditional:
            _unconditional.add(self.place)
            logger.warning(
                "no conditional requests to %s: %s. Lock and manifest are written without them", self.place, why
            )


def conditional_file(uri: str, region: str) -> ConditionalFile | None:
    """A file that conditional requests can be sent for; None if it is not on S3, boto3 is missing, or the store has refused them.

    Args:
        uri: of the file.
        region: of its bucket.
    """
    address = urlsplit(uri)
    place = f"{address.scheme}://{address.netloc}"
    if address.scheme != "s3" or address.query or place in _unconditional:
        return None
    client = _client(region, os.getpid(), variables_of("AWS_"))
    if client is None:
        return None
    return ConditionalFile(client, place, address.netloc, unquote(address.path).strip("/"))


@functools.lru_cache(maxsize=8)
def _client(region: str, process: int, variables: tuple[tuple[str, str], ...]) -> Any:
    """A client of boto3 that asks where pyarrow asks, for one process and its credentials; None if there can be none."""
    try:
        from boto3.session import Session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return None
    endpoint = variable("AWS_ENDPOINT_URL_S3") or variable("AWS_ENDPOINT_URL")
    try:
        config = Config(
            connect_timeout=_ANSWER_S,
            read_timeout=_ANSWER_S,
            retries={"total_max_attempts": 1},  # `retry.retried` asks again
            s3={"addressing_style": "path" if endpoint else "auto"},
            request_checksum_calculation="when_required",  # stores other than Amazon's may not know the others
            response_checksum_validation="when_required",
            ignore_configured_endpoint_urls=True,
        )
        session = Session()
        if session.get_credentials() is None:
            return None
        return session.client("s3", region_name=region, endpoint_url=endpoint, config=config)
    except TypeError as error:
        logger.warning("boto3 is too old for conditional requests: %s. Run pip install 'boto3>=1.36'.", error)
        return None
    except (BotoCoreError, ValueError):
        return None
