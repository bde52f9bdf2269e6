"""Every failure a user can cause or meet is an AsrError with a one-line message that says what to do."""

__all__ = ["AsrError", "AudioError", "ConfigError", "CorpusError", "ModelError", "ScoringError", "is_out_of_memory"]


class AsrError(Exception):
    """Base of all user-facing errors; its message is one line."""


class AudioError(AsrError):
    """An audio source cannot be read, or holds nothing that can be recognised."""


class CorpusError(AsrError):
    """A speech corpus on disk, or a manifest made from one, is not usable as it stands."""


class ModelError(AsrError):
    """A model folder is missing, incomplete or does not fit its configuration."""


class ConfigError(AsrError):
    """A setting has a value that cannot work."""


class ScoringError(AsrError):
    """References and hypotheses cannot be compared."""


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA, cuDNN, cuBLAS and the CPU allocator each say it in their own way."""
    says = (
        "out of memory",
        "not enough memory",
        "can't allocate memory",
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUBLAS_STATUS_ALLOC_FAILED",
    )
    return isinstance(error, MemoryError) or any(s in str(error) for s in says)
