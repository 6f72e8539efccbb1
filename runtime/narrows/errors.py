"""Every failure that Narrows expects, and when each is raised.

Expected failures derive from NarrowsError: the message says what is wrong, where, and what to do, and command
lines print it without a traceback. Anything else is a defect and keeps its traceback. The table from these types
to gRPC codes is in narrows.server.errors.
"""


class NarrowsError(Exception):
    """Base of all expected failures."""


class InvalidRequestError(NarrowsError):
    """A request breaks a rule of the contract. `field` names the part at fault, such as `questions[3]`."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class ReplyTooLargeError(InvalidRequestError):
    """The answer would be larger than the server sends: ask for less in one call."""


class NotFoundError(NarrowsError):
    """A request names a corpus that is not served here."""


class NoReaderError(NarrowsError):
    """A request needs a reader, and the bundle that is served has none."""


class MismatchError(NarrowsError):
    """Towers, tokenizer and index do not belong together, or a request expects another bundle."""


class OverloadedError(NarrowsError):
    """The queue is full, or the predicted wait exceeds the deadline. Nothing was computed; try again later.

    `retry_after_ms` is the predicted wait.
    """

    def __init__(self, message: str, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class DeadlineExceededError(NarrowsError):
    """The deadline passed before the answer was ready."""


class UnavailableError(NarrowsError):
    """The server is shutting down, or cannot be reached."""


class EngineDownError(UnavailableError):
    """The engine's process has died and is being started again; `retry_after_ms` is when it is expected back."""

    def __init__(self, message: str, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class ServerError(NarrowsError):
    """The server failed on this request for a reason of its own; its log says why."""


class PoisonousError(ServerError):
    """The engine's process has died of this text or vector, twice: it is refused for a while."""


class BundleError(NarrowsError):
    """A bundle is missing, damaged, of another schema version, or fails its golden check on this machine."""


class IndexFileError(NarrowsError):
    """An index is missing, damaged, half-written or of another schema version."""


class DeviceError(NarrowsError):
    """A GPU cannot be used: no driver, a library that does not load, too little memory, or a variant it cannot run."""


class PassageFileError(NarrowsError):
    """A file of passages or documents breaks its format. The message starts with file and line."""


class EmbeddingFileError(NarrowsError):
    """A file of finished embeddings is damaged, of a kind that is not read, or holds more than lists and arrays."""


class QuestionFileError(NarrowsError):
    """A question file breaks its format. The message starts with file and, where it can, line."""


class EvaluationError(NarrowsError):
    """A saved evaluation result is damaged, or two results do not judge the same questions in the same way."""


class CheckpointError(NarrowsError):
    """A checkpoint cannot be exported: wrong kind, missing or unexpected weights, unreadable files."""


class ExportError(NarrowsError):
    """An exported tower differs from its source, or was not optimized as its recipe demands."""


class UnpairedTowersError(ExportError):
    """The two towers do not find each other's texts: they were probably not trained together."""


class StepError(NarrowsError):
    """A step of the quickstart or the demo failed, was not consented to, or found something in its way."""


class SettingsError(NarrowsError):
    """A flag, an environment variable or the configuration file holds a bad value."""


class MissingExtraError(NarrowsError):
    """A command needs packages that this installation lacks."""


class GateDataError(NarrowsError):
    """Questions, passages or calibration texts that cannot judge a variant, such as texts it was calibrated on."""


class BenchmarkError(NarrowsError):
    """A benchmark cannot be run here, its server failed, or a file of results is damaged."""
