"""The errors that a user can meet, each with its exit code and a one-line message that says what, where and the fix."""

from __future__ import annotations

from engine.text import one_line, shortened


class MimeoError(Exception):
    """An expected failure: `where` is a key, path or sample, `what` the finding, `fix` what to do about it.

    As text it is one line without secrets and without characters that a terminal obeys, whatever the parts hold.
    """

    exit_code = 1

    def __init__(self, where: str, what: str, fix: str = "") -> None:
        super().__init__(where, what, fix)
        self.where, self.what, self.fix = where, what, fix

    def __str__(self) -> str:
        where, what, fix = (shortened(one_line(part)) for part in (self.where, self.what, self.fix))
        return f"{where}: {what}" + (f"; {fix}" if fix else "")


class ConfigError(MimeoError):
    """A recipe, an option or a model that cannot be used; found before Ray starts or a GPU is touched."""

    exit_code = 2


class DataError(MimeoError):
    """Real data or shards that are missing, broken, or not what the manifest says."""

    exit_code = 3


class StorageError(MimeoError):
    """A place that cannot be written or read: permissions, space, credentials."""

    exit_code = 4


class OutputInUseError(MimeoError):
    """An output that another run holds or that another run has made."""

    exit_code = 5


class ClusterError(MimeoError):
    """Resources that the machine or the cluster does not have."""

    exit_code = 6
