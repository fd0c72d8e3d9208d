"""Text that comes from data or storage, made fit to be printed, logged or opened in a spreadsheet."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["as_cells", "holds_secret", "reason_of", "secret_problem", "shown"]

# C0 and C1 without tab and line feed, what turns the direction of text, line separators, and halves of surrogate pairs
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# user:password@ before the host, or credentials in the query, as URIs of S3 may have them
# Before the @ of abfs:// is the container, and gs://anonymous@ is how Arrow reads a public bucket.
_SECRET = re.compile(
    r"(?<![\w+.-])(?!abfss?://[^/:@\s]+@|gc?s://anonymous@)(?P<scheme>[A-Za-z][\w+.-]*://)[^/@\s?#]*@"
    r"|(?P<name>[?&](?:access_key|access_token|account_key|api_key|client_secret|password|sas_token|secret_key|session_token|sig|"
    r"token|x-amz-signature|x-amz-security-token)=)[^&\s'\"]*",
    re.IGNORECASE,
)
_ERRNO = re.compile(r"\[errno (-?\d+)\]", re.IGNORECASE)
_FORMULA = r"\A[=+\-@\t\r]"


def shown(text: str) -> str:
    """Text with control characters as escapes, so that a terminal does not obey them, and without passwords in addresses."""
    return _CONTROL.sub(
        _escape, _SECRET.sub(lambda found: f"{found['scheme']}***@" if found["scheme"] else f"{found['name']}***", text)
    )


def reason_of(error: BaseException) -> str:
    """Why a file, a folder or an address could not be used, to stand inside a sentence that names it.

    >>> reason_of(FileNotFoundError(2, "No such file or directory", "run.yaml"))
    'no such file or directory'
    """
    found = _ERRNO.findall(str(error))
    if not found:
        return str(error).rstrip(".")
    # A name server's errors have negative numbers.
    reason = os.strerror(int(found[-1])) if int(found[-1]) > 0 else getattr(error, "strerror", None) or str(error)
    return reason[:1].lower() + reason[1:]


def as_cells(texts: pa.Array) -> pa.Array:
    """Text as cells of a CSV: an apostrophe goes before what a spreadsheet would take for a formula."""
    import pyarrow as pa
    import pyarrow.compute as pc

    quoted = pc.binary_join_element_wise(pa.scalar("'"), texts, pa.scalar(""))
    return pc.if_else(pc.match_substring_regex(texts, _FORMULA), quoted, texts)


def holds_secret(address: object) -> bool:
    """Whether an address holds a user's name with a password, or a key in its options."""
    return isinstance(address, str) and _SECRET.search(address) is not None


def secret_problem(field: str) -> str:
    """The message for an address that holds a secret, which would be logged, shown and stored."""
    return (
        f"{field} holds a key or a password in its address. Remove it and set environment variables instead "
        "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, AZURE_CLIENT_SECRET, HF_TOKEN)."
    )


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
