"""A store on S3, Google Cloud Storage, Azure or in memory, through fsspec: one conditional PUT publishes a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import tenacity

from engine.errors import ConfigError, StorageError
from engine.storage.abstract_store import Content, Entry, check_name, is_private, is_system

MAX_BYTES = 5 * 2**30
PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "az": ("adlfs", "azure")}
_RETRY_SECONDS = 60
_TRANSIENT_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
_TRANSIENT_CLASS = {
    "TimeoutError",
    "ConnectionError",
    "HTTPClientError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ResponseStreamingError",
    "IncompleteReadError",
    "ServiceRequestError",
    "ServiceResponseError",
}
# This module does all retries: with the clients' own beneath it, one dead server would be asked a hundred times.
_OPTIONS: dict[str, dict[str, object]] = {
    "s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}, "connect_timeout": 10}}
}
_VERSIONS = (
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "content_md5",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"}
_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "InvalidToken"}
Result = TypeVar("Result")


class RemoteStore:
    """Files below one prefix of a bucket. Nothing is cached: listings and sizes are what the server says now."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._process = 0
        self._filesystem: Any = None

    def __repr__(self) -> str:
        return f"RemoteStore({self.url!r})"

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str]]:
        return RemoteStore, (self.url,)

    @property
    def filesystem(self) -> Any:
        """This process's fsspec file system; never shared across a fork."""
        if self._process != os.getpid():
            self._filesystem, self._process = _connect(self.url), os.getpid()
        return self._filesystem

    def create(self, name: str, data: Content) -> bool:
        """Publish exclusively with one conditional PUT; on any failure the file is read back to tell whose it is."""
        path = self._path(name)
        payload = (
            data.read_bytes() if isinstance(data, Path) else b"".join(data if isinstance(data, tuple) else (data,))
        )
        if len(payload) >= MAX_BYTES:
            raise StorageError(
                self._where(name), "is 5 GiB or more, too large for one PUT", "lower generate.shard_size"
            )
        won = self.retried(name, lambda: self._create_once(path, payload))
        if isinstance(data, Path):
            data.unlink(missing_ok=True)
        return won

    def replace(self, name: str, data: bytes) -> None:
        """Write a derived file with one PUT; see `Store.replace`."""
        path = self._path(name)
        self.retried(name, lambda: self.filesystem.pipe_file(path, bytes(data), **self._one_shot()))

    def read(self, name: str) -> bytes:
        """The whole file; see `Store.read`."""
        path = self._path(name)
        data: bytes = self.retried(name, lambda: self.filesystem.cat_file(path))
        return data

    def open(self, name: str) -> BinaryIO:
        """A seekable stream that reads ahead; see `Store.open`."""
        path = self._path(name)
        stream: BinaryIO = self.retried(name, lambda: self.filesystem.open(path, "rb", cache_type="readahead"))
        return stream

    def exists(self, name: str) -> bool:
        """Whether the file is there; an unreachable store raises StorageError instead of saying no."""
        path = self._path(name)
        try:
            return bool(self.retried(name, lambda: self.filesystem.info(path))["type"] == "file")
        except FileNotFoundError:
            return False

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Every file whose name begins with `prefix`; see `Store.list`."""
        folder, _, _ = prefix.rpartition("/")
        start = self._path(folder) if folder else self.root
        try:
            found = self.retried(prefix, lambda: self.filesystem.find(start, detail=True))
        except FileNotFoundError:
            return
        for path in sorted(found):
            name = path[len(self.root) + 1 :]
            hidden = (is_private(name) and not is_private(prefix)) or any(map(is_system, name.split("/")))
            if found[path]["type"] == "file" and name.startswith(prefix) and not hidden:
                yield Entry(name, int(found[path]["size"]), version_of(found[path]))

    def remove(self, name: str) -> None:
        """Remove a file if it is there; see `Store.remove`."""
        path = self._path(name)
        try:
            self.retried(name, lambda: self.filesystem.rm_file(path))
        except FileNotFoundError:
            return

    def local(self, name: str) -> Path | None:
        """None: nothing here has a local path."""
        check_name(name)
        return None

    def probe(self, name: str) -> None:
        """Create one file twice and remove it; StorageError where the store cannot be written or lets the second
        win."""
        path = self._path(name)
        try:
            first = self._create_once(path, b"first")
            second = self._create_once(path, b"second")
            self.filesystem.rm_file(path)
        except Exception as error:
            raise remote_error(error, self.url) from error
        if not first or second:
            raise StorageError(
                self.url,
                "this store ignores conditional writes (If-None-Match), so two writers could overwrite one another",
                "use a store that honours them, or a local folder",
            )

    @property
    def root(self) -> str:
        """The folder as fsspec's file system names it: bucket/folder."""
        root: str = self.filesystem._strip_protocol(self.url)
        return root.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self.root}/{check_name(name)}"

    def _where(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _one_shot(self) -> dict[str, int]:
        return {"chunksize": MAX_BYTES} if self.url.startswith("s3://") else {}

    def _create_once(self, path: str, payload: bytes) -> bool:
        """One conditional PUT. A reply may be lost or a client may have retried, so a failure is settled by reading."""
        try:
            self.filesystem.pipe_file(path, payload, mode="create", **self._one_shot())
            return True
        except Exception as error:
            try:
                same_size = self.filesystem.info(path)["size"] == len(payload)
                return same_size and bool(self.filesystem.cat_file(path) == payload)
            except Exception as unread:
                told = error if is_transient(error) or not is_transient(unread) else unread
                raise told from told.__cause__

    def retried(self, name: str, call: Callable[[], Result]) -> Result:
        """The result of a request, asked again for a minute while faults pass; errors as the methods of a store raise
        them."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            stop=tenacity.stop_after_delay(_RETRY_SECONDS),
            wait=tenacity.wait_random_exponential(0.2, max=5),
            reraise=True,
        )
        try:
            return retrying(call)
        except Exception as error:
            if isinstance(error, FileNotFoundError) and not _NO_BUCKET & set(_codes(error)):
                raise FileNotFoundError(errno.ENOENT, "no such file", self._where(name)) from error
            raise remote_error(error, self._where(name)) from error


def version_of(facts: Mapping[str, object]) -> str:
    """What a listing says that changes with a file's content."""
    return next((str(facts[name]) for name in _VERSIONS if facts.get(name)), "")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later: a time-out, a lost connection, 409, 429 or 5xx."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    for link in _chain(error):
        if any(code in _TRANSIENT_STATUS for code in _statuses(link)):
            return True
        if _TRANSIENT_CLASS & {base.__name__ for base in type(link).__mro__}:
            return True
    return False


def remote_error(error: BaseException, where: str) -> StorageError:
    """One line from whatever a client library raised: the server's own code and message, found in the causes."""
    if isinstance(error, StorageError):
        return error
    codes = _codes(error)
    texts = [str(link).strip() for link in _chain(error) if str(link).strip() not in ("", "None")]
    what = texts[-1] if texts else type(error).__name__
    if codes and not any(code in what for code in codes):
        what = f"{codes[0]}: {what}"
    fix = "check the address, the credentials and the rights of this account"
    if _NO_BUCKET & set(codes):
        fix = "create the bucket, or correct its name"
    elif _REGION & set(codes):
        fix = "set AWS_DEFAULT_REGION to the bucket's region, and its endpoint where one is set"
    elif _EXPIRED & set(codes):
        fix = "renew the credentials; then run the same command again: it goes on where it stopped"
    elif "400" in codes:  # a HEAD has no body to say why
        fix = "renew the credentials and check AWS_DEFAULT_REGION; then run the same command again"
    elif is_transient(error):
        fix = "check the network; then run the same command again: it goes on where it stopped"
    return StorageError(where, what[:300], fix)


def _chain(error: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__
    return links


def _codes(error: BaseException) -> list[str]:
    """Error codes that botocore (`response`) and azure (`error_code`) attach."""
    codes = []
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            codes.append(str(response.get("Error", {}).get("Code", "")))
        codes.append(str(getattr(link, "error_code", "") or ""))
    return [code for code in codes if code]


def _statuses(error: BaseException) -> list[int]:
    """HTTP status numbers that botocore, azure (`status_code`) and gcsfs (`code`) attach."""
    response = getattr(error, "response", None)
    nested = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    found = (nested, getattr(error, "status_code", None), getattr(error, "code", None))
    return [int(status) for status in found if isinstance(status, int)]


def _connect(url: str) -> Any:
    import fsspec

    scheme = url.partition("://")[0]
    try:
        options = _OPTIONS.get(scheme, {})
        filesystem = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **options)
    except ImportError:
        package, extra = PACKAGES[scheme]
        raise ConfigError(url, f"needs the package {package}", f'pip install "mimeo[{extra}]"') from None
    except Exception as error:
        raise remote_error(error, url) from error
    filesystem.retries = 1  # how often s3fs itself would send a request
    return filesystem
