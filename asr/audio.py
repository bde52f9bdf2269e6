"""Any audio - file, bytes, open file or array - as mono float32 samples at one rate.

    samples = load("talk.mp3")                  # (T,) float32 at 16 kHz
    for block in stream("lecture.flac"): ...    # the same samples, 30 s at a time, in constant memory

Whatever is wrong with a source becomes an `AudioError` whose one line names the source and the reason. libsndfile
does the decoding; it quietly shortens a file that was cut off, so this module looks for the cut itself.
"""

import io
import mmap
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr.errors import AudioError

__all__ = ["AudioSource", "Samples", "audio_below", "duration", "load", "sphere_frames", "stream"]

Samples = NDArray[np.float32]
AudioSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | NDArray[Any] | Any  # Any: tensors

LOAD_BLOCK_SECONDS = 60.0  # long enough that an ordinary utterance is one block and is never copied
MIN_RATE, MAX_RATE = 1_000, 1_000_000  # Hz; outside, a header is damaged, and resampling would fill the memory
STREAMED_SIZE = 0x7FFF_0000  # bytes; WAV writers that cannot seek tell 0x7FFFF000, 0x80000000 or 0xFFFFFFFF
SIZE_SLACK = 64  # bytes; some writers count the header as data
UNKNOWN_FRAMES = 1 << 62  # libsndfile's frame count when a header leaves it open (FLAC written to a pipe)
OGG_MAX_PAGE = 65_307  # bytes
READ_BYTES = 1 << 20
MPEG1_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # bit rates of MP3, by index
MPEG2_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)

# What is known to follow the sound in a WAV file.
CHUNKS = frozenset(
    (b"LIST", b"bext", b"iXML", b"_PMX", b"id3 ", b"ID3 ", b"cue ", b"fact", b"PEAK", b"smpl", b"inst", b"JUNK",
     b"junk", b"PAD ", b"afsp", b"APET", b"RIFF")
)  # fmt: skip
TAGS = (b"ID3", b"TAG")

# What libsndfile reads. A file that is named is read whatever its suffix; these are looked for in folders.
SUFFIXES = frozenset(
    (".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".nist", ".oga", ".ogg", ".opus", ".rf64", ".snd",
     ".sph", ".w64", ".wav")
)  # fmt: skip


def audio_below(
    folder: str | os.PathLike[str], recursive: bool = True, on_error: Callable[[OSError], object] | None = None
) -> list[Path]:
    """The audio files in a folder, by their suffix and in order; with `recursive` also those further down.

    Links are followed, and one that leads nowhere is in the list: reading it will say so. `on_error` is told of each
    folder that cannot be listed; otherwise they are passed over.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for current, below, names in os.walk(folder, onerror=on_error, followlinks=True):
        if not recursive:
            below.clear()
        if (real := os.path.realpath(current)) in seen:  # a link to where it has been
            below.clear()
            continue
        seen.add(real)
        hidden = not os.access(current, os.X_OK)  # nobody can tell what they are; reading them will say why
        paths = [Path(current, name) for name in names]
        found += [
            p for p in paths if p.suffix.lower() in SUFFIXES and (hidden or os.path.isfile(p) or not os.path.exists(p))
        ]
    return sorted(found)


def load(
    source: AudioSource, sample_rate: int = 16_000, *, source_rate: int | None = None, name: str | None = None
) -> Samples:
    """Read all of `source` as mono.

    Args:
        source: a path, the bytes of an audio file, a binary file object (read from its start where it can seek), or
            a NumPy array or torch tensor of samples: (T,), (channels, T) or (T, channels), the smaller axis being the
            channels. Integers up to 32 bits are scaled to [-1, 1).
        sample_rate: rate wanted, Hz.
        source_rate: rate of an array, Hz; `sample_rate` by default. Files know their own.
        name: what messages call the source; by default its path, or what it is.

    Returns:
        (T,) float32. A float32 array that is already mono and at the rate is returned as it is, not copied.

    Raises:
        AudioError: missing, unreadable, empty, truncated, not audio, no samples, or NaN or infinite samples.
    """
    seconds = 1e9 if _is_array(source) else LOAD_BLOCK_SECONDS  # an array is there already: all of it
    blocks = list(stream(source, sample_rate, seconds, source_rate=source_rate, name=name))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def stream(
    source: AudioSource,
    sample_rate: int = 16_000,
    block_seconds: float = 30.0,
    *,
    source_rate: int | None = None,
    name: str | None = None,
) -> Iterator[Samples]:
    """Yield what `load` returns in blocks of about `block_seconds`, in memory that does not grow with the length.

    Errors come up while iterating; damage deep inside a file only once the blocks before it have been yielded.
    """
    if sample_rate <= 0:
        raise AudioError(f"the sample rate wanted must be positive, not {sample_rate} Hz")
    if not block_seconds > 0:
        raise AudioError(f"the length of a block must be positive, not {block_seconds} s")
    name = _name_of(source, name)
    with ExitStack() as stack:
        if _is_array(source):
            rate = sample_rate if source_rate is None else source_rate
            _check_rate(rate, name)
            blocks = _array_blocks(source, _block_size(block_seconds, rate), name)
        else:
            sound = stack.enter_context(_opened(source, name))
            rate = sound.samplerate
            blocks = _file_blocks(sound, _block_size(block_seconds, rate), name)
        if rate != sample_rate:
            blocks = _resampled(blocks, rate, sample_rate)
        total = 0
        for block, _ in blocks:
            if len(block):
                if not np.isfinite(block).all():
                    raise AudioError(f"{name}: has samples that are not numbers (NaN or infinite)")
                total += len(block)
                yield block
        if not total:
            raise AudioError(f"{name}: holds no samples")


def duration(source: AudioSource, *, source_rate: int = 16_000, name: str | None = None) -> float:
    """Length of `source` in seconds, from its header where that says; `source_rate` is the rate of an array.

    Raises:
        AudioError: as `load`, but damage that only decoding shows goes unnoticed.
    """
    name = _name_of(source, name)
    if _is_array(source):
        _check_rate(source_rate, name)
        frames, rate = _channels_last(_to_numpy(source, name), name).shape[0], source_rate
    else:
        with _opened(source, name) as sound:
            frames, rate = sound.frames, sound.samplerate
            if frames >= UNKNOWN_FRAMES:
                frames = sum(len(block) for block, _ in _file_blocks(sound, _block_size(30.0, rate), name))
    if frames <= 0:
        raise AudioError(f"{name}: holds no samples")
    return frames / rate


# --- sources ------------------------------------------------------------------------------------------


def _name_of(source: AudioSource, name: str | None) -> str:
    if name is None:
        if isinstance(source, str | os.PathLike):
            name = os.fspath(source)
        elif isinstance(source, bytes | bytearray | memoryview):
            name = "audio bytes"
        elif _is_array(source):
            name = "audio array"
        else:
            name = getattr(source, "name", None)
            name = name if isinstance(name, str) and name else "audio stream"
    return " ".join(str(name).splitlines()) or "audio"


def _block_size(seconds: float, rate: int) -> int:
    return max(1, round(seconds * rate))


def _check_rate(rate: int, name: str) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"{name}: a sample rate of {rate} Hz is not one of speech; the header may be damaged")


class _Sound(soundfile.SoundFile):
    """A sound that is only read forwards.

    Otherwise SoundFile seeks after every read, which is slow for compressed formats and fails at the end of a FLAC
    whose header does not tell its length.
    """

    xing_frames = 0  # length that an MP3's own header claims, in MPEG frames; 0: no claim

    def seekable(self) -> bool:
        return False


@contextmanager
def _opened(source: AudioSource, name: str) -> Iterator[_Sound]:
    """The decoder over a path, bytes or file object, after the checks that need no decoding."""
    with ExitStack() as stack:
        file = _binary_file(source, name, stack)
        xing_frames, told = 0, 0
        try:
            size = file.seek(0, os.SEEK_END)
            if not size:
                raise AudioError(f"{name}: is empty")
            file.seek(0)
            head = file.read(12)
            if head[:4] == b"RIFF" and head[8:] == b"WAVE":
                file = _checked_wav(file, size, name, stack)
            elif head[:4] == b"OggS":
                _check_ogg(file, size, name)
            elif head[:3] == b"ID3" or (head[0] == 0xFF and head[1:] and head[1] & 0xE0 == 0xE0):
                file, xing_frames = _checked_mp3(file, size, name)
            elif head[:7] == b"NIST_1A":
                file.seek(0)
                told = sphere_frames(file.read(1024))
            file.seek(0)
            if file.read(4) == b"fLaC" and (tags := _tags_at_end(file)):  # which its decoder takes for damaged sound
                file.seek(0)
                file = io.BytesIO(file.read()[:-tags])
            file.seek(0)
        except (OSError, EOFError, zlib.error) as error:  # the latter two: a damaged gzip file
            raise AudioError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
        # A descriptor decodes faster than a Python object, and, unlike a path, brings no guess from the file's suffix.
        target = file.fileno() if isinstance(file, io.FileIO) else file
        try:
            sound = stack.enter_context(_Sound(target, closefd=False))
        except (soundfile.LibsndfileError, TypeError, ValueError) as error:
            raise AudioError(f"{name}: {_open_reason(error)}") from error
        sound.xing_frames = xing_frames
        _check_rate(sound.samplerate, name)
        _check_log(sound, name)
        if sound.frames < told:
            raise _truncated(name, sound.frames, told, "samples")
        yield sound


def _binary_file(source: AudioSource, name: str, stack: ExitStack) -> Any:
    """A file that can seek: io.FileIO for a path, the object itself, or the bytes of what cannot seek."""
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        try:
            file: Any = stack.enter_context(open(source, "rb", buffering=0))  # noqa: SIM115
        except FileNotFoundError as error:
            raise AudioError(f"{name}: no such file") from error
        except IsADirectoryError as error:
            raise AudioError(f"{name}: is a directory, not an audio file") from error
        except PermissionError as error:
            raise AudioError(f"{name}: no permission to read it") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise AudioError(f"{name}: cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    elif hasattr(source, "read"):
        file = source
    else:
        kind = type(source).__name__
        raise AudioError(f"{name}: audio is a path, bytes, a binary file or an array of samples, not {kind}")
    try:
        if isinstance(file, io.TextIOBase):
            raise AudioError(f"{name}: opened as text; open it with mode 'rb'")
        if hasattr(file, "seek") and hasattr(file, "tell") and (not hasattr(file, "seekable") or file.seekable()):
            return file
        return io.BytesIO(file.read())  # a pipe or a socket
    except (OSError, EOFError, zlib.error, ValueError, TypeError) as error:  # closed; or read() gave text
        raise AudioError(f"{name}: cannot be read ({error})") from error


def _open_reason(error: Exception) -> str:
    reason = getattr(error, "error_string", "")
    if "malformed" in reason or "No 'data' chunk" in reason:
        return "the header is damaged or the file is truncated"
    return "not audio in a format that can be read (WAV, FLAC, OGG, MP3 can; convert others with ffmpeg)"


def _truncated(name: str, have: int, want: int, unit: str) -> AudioError:
    return AudioError(f"{name}: truncated, only {have:,} of {want:,} {unit} are there")


def _joined(name: str) -> AudioError:
    return AudioError(
        f"{name}: several recordings one after another, of which only the first can be read; convert it with ffmpeg"
    )


def _checked_wav(file: Any, size: int, name: str, stack: ExitStack) -> Any:
    """`file`, or, where its sizes hide data that a pipe or a crash left unannounced, a corrected view of it."""
    file.seek(4)
    riff_size = int.from_bytes(file.read(4), "little")
    offset = 12
    while offset + 8 <= size:
        file.seek(offset)
        tag, length = struct.unpack("<4sI", file.read(8))
        offset += 8
        if tag != b"data":
            offset += length + length % 2  # chunks start at even offsets
            continue
        available = size - offset
        if available + SIZE_SLACK < length < STREAMED_SIZE:
            raise _truncated(name, available, length, "bytes")
        rest = available - length
        unannounced = length == 0 and riff_size + 8 != size
        # What another program put behind the sound, a chunk or a tag, begins with a name; some forget to pad.
        names = [_chunk_at(file, offset + length + padding, size) for padding in range(1 + length % 2)]
        if b"RIFF" in names:
            raise _joined(name)
        named = any(names)
        if rest > 0 and (unannounced or (not named and (rest > SIZE_SLACK or length >= STREAMED_SIZE))):
            if available > 0xFFFF_FFFF:
                raise AudioError(f"{name}: over 4 GB, more than a WAV file can tell of; convert it to FLAC with ffmpeg")
            return _with_bytes(file, offset - 4, available.to_bytes(4, "little"), stack)
        break
    return file


def _chunk_at(file: Any, offset: int, size: int) -> bytes:
    """The name of the chunk or tag that begins there, or nothing where none does.

    A name that is not known needs a length that fits: quiet sound of 8 bits is full of printable bytes.
    """
    file.seek(offset)
    head: bytes = file.read(8)
    tag = head[:4]
    fits = len(head) == 8 and int.from_bytes(head[4:], "little") <= size - offset - 8
    return tag if tag in CHUNKS or tag[:3] in TAGS or (fits and all(0x20 <= byte < 0x7F for byte in tag)) else b""


def _with_bytes(file: Any, offset: int, data: bytes, stack: ExitStack) -> Any:
    """A view of `file` with `data` at `offset`; the file itself is not changed."""
    view: Any
    if isinstance(file, io.FileIO):
        view = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    else:
        file.seek(0)
        view = io.BytesIO(file.read())
    view.seek(offset)
    view.write(data)
    return view


def _check_ogg(file: Any, size: int, name: str) -> None:
    """The last page must be whole. A missing end-of-stream mark alone is what stopped recorders leave: no error."""
    start = max(0, size - 2 * OGG_MAX_PAGE)
    file.seek(start)
    tail = file.read(size - start)
    page = tail.rfind(b"OggS")
    segments = tail[page + 26] if page >= 0 and page + 27 <= len(tail) else None
    if segments is not None and page + 27 + segments <= len(tail):
        end = page + 27 + segments + sum(tail[page + 27 : page + 27 + segments])
        last = bool(tail[page + 5] & 4)
        if end == len(tail) or (last and end < len(tail)):
            _check_ogg_is_one(file, name)
            return
    raise AudioError(f"{name}: truncated, its last OGG page is not whole")


def _check_ogg_is_one(file: Any, name: str) -> None:
    """Pages that begin a stream come first, one for each stream side by side; a later one begins another recording.

    Serial numbers would not tell: they are the same where a file was joined with itself.
    """
    file.seek(0)
    beginning, rest = True, b""
    while block := file.read(READ_BYTES):
        for flags in re.findall(rb"OggS\0([\0-\x07])", rest + block):
            begins = bool(flags[0] & 2)
            if begins and not beginning:
                raise _joined(name)
            beginning = begins
        rest = block[-5:]  # one byte less than the pattern: nothing is found twice


def _tags_at_end(file: Any) -> int:
    """Bytes that ID3v1 and APE tags take at the end of the file."""
    file.seek(0, os.SEEK_END)
    size: int = file.tell()
    found = 0
    while True:
        file.seek(max(0, size - found - 128))
        end = file.read(min(128, size - found))
        length = 0
        if end[-128:-125] == b"TAG":
            length = 128
        elif end[-32:-24] == b"APETAGEX":
            told, _, flags = struct.unpack("<III", end[-20:-8])
            length = told + (32 if flags >> 31 else 0)  # its header
        if not 0 < length < size - found:
            return found
        found += length


def _checked_mp3(file: Any, size: int, name: str) -> tuple[Any, int]:
    """`file`, or a corrected view of it, and its length in MPEG frames as the Xing or Info header tells it, or 0."""
    offset, tags = 0, 0
    file.seek(0)
    while len(head := file.read(10)) == 10 and head[:3] == b"ID3":
        length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        offset, tags = offset + 10 + length + (10 if head[5] & 0x10 else 0), tags + 1
        file.seek(offset)
    if tags > 1 or head[:4] == b"fLaC":  # the decoders know one tag, and none before a FLAC
        file.seek(offset)
        file, size, offset = io.BytesIO(file.read()), size - offset, 0
    file.seek(offset)
    frame = file.read(64)
    if frame[:4] == b"fLaC":
        return file, 0
    tag = max(frame.find(b"Xing", 0, 44), frame.find(b"Info", 0, 44))
    if tag < 0 or len(frame) < tag + 16:
        return _with_xing_header(file, offset, name), 0
    flags, first, second = struct.unpack(">III", frame[tag + 4 : tag + 16])
    count = first if flags & 1 else 0
    length = (second if flags & 1 else first) if flags & 2 else 0
    # Encoders differ by a frame in what they count, so a cut below 1 % shows only when the samples are counted.
    if size - offset < 0.99 * length:
        raise _truncated(name, size - offset, length, "bytes")
    if length and size - offset > 1.01 * length:  # a large tag at the end, or files joined, of which it tells the first
        view = _with_xing_header(file, offset + _mp3_frame_length(frame[:4]), name, count)
        return view, count if view is file else 0
    return file, count


def _with_xing_header(file: Any, offset: int, name: str, told: int = 0) -> Any:
    """`file`; if its bit rate varies, or it has more frames than told, a copy that begins with a true Xing header.

    Without one, libmpg123 guesses the length from the first frame's bit rate and libsndfile drops what lies beyond.
    """
    file.seek(offset)
    data = file.read()
    position, start, end, count, rates, kinds = 0, 0, 0, 0, set(), set()
    while (position := data.find(b"\xff", position)) >= 0:
        header = data[position : position + 4]
        length = _mp3_frame_length(header)
        following = data[position + length : position + length + 4]
        # Two in a row are not there by chance, as one in a picture may be; the last one follows one that was.
        sure = length and _mp3_frame_length(following) and _mp3_kind(header) == _mp3_kind(following)
        if sure or (length and count and position == end):
            if not count:
                start = position
            count += 1
            rates.add(header[2] >> 4)
            kinds.add(_mp3_kind(header))
            position = end = position + length
        else:
            position += 1
    if len(kinds) > 1:
        raise _joined(name)  # the decoder stops where they change
    if count <= 1.01 * told if told else len(rates) < 2:
        return file
    data = data[:end]
    xing = bytearray(data[start : start + 4])
    mpeg1, mono = xing[1] >> 3 & 3 == 3, xing[3] >> 6 == 3
    xing[1] |= 1  # no checksum
    xing[2] = xing[2] & 0x0C | (0x50 if mpeg1 else 0x80)  # 64 kbit/s, no padding
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    first = bytes(xing) + bytes(side) + b"Xing" + struct.pack(">II", 1, count)
    return io.BytesIO(first.ljust(_mp3_frame_length(xing), b"\0") + data[start:])


def _mp3_frame_length(header: bytes | bytearray) -> int:
    """Bytes of the MPEG layer III frame that starts with these four, 0 if none does."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, rate_index, bit_index = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
    if version == 1 or rate_index == 3 or bit_index in (0, 15):
        return 0
    rate = (44_100, 48_000, 32_000)[rate_index] >> {3: 0, 2: 1, 0: 2}[version]  # MPEG 1, 2, 2.5
    kbits = (MPEG1_KBITS if version == 3 else MPEG2_KBITS)[bit_index]
    return (144 if version == 3 else 72) * kbits * 1000 // rate + (header[2] >> 1 & 1)


def _mp3_kind(header: bytes) -> tuple[int, int, bool]:
    """What stays the same throughout a recording: MPEG version, sample rate, and whether it is mono."""
    return header[1] & 0x18, header[2] & 0x0C, header[3] >> 6 == 3


def sphere_frames(header: bytes) -> int:
    """The samples that a SPHERE header tells of, or 0; libsndfile reads what is there of them without a word."""
    told = re.search(rb"^sample_count -i (\d+)", header, re.M)
    return int(told[1]) if told else 0


def _check_log(sound: soundfile.SoundFile, name: str) -> None:
    """AIFF, AU, W64, RF64: libsndfile notes a size that goes beyond the file in its log, and reads on."""
    if sound.format not in ("WAV", "WAVEX"):
        for told, actual in re.findall(r": (\d+) \(should be (\d+)\)", sound.extra_info):
            if int(actual) + SIZE_SLACK < int(told) < STREAMED_SIZE:
                raise _truncated(name, int(actual), int(told), "bytes")


# --- samples ------------------------------------------------------------------------------------------

Blocks = Iterator[tuple[Samples, bool]]  # mono samples, and whether they are the last


def _file_blocks(sound: _Sound, size: int, name: str) -> Blocks:
    frames, done, last = sound.frames, 0, False
    while not last:
        # One more than is left: coming back short is what tells the end.
        count = min(size, max(frames - done, 0) + 1)
        try:
            block = sound.read(count, dtype="float32", always_2d=True)  # (count, channels)
        except soundfile.LibsndfileError as error:
            reason = " ".join(error.error_string.removeprefix("Error : ").rstrip(".").split())
            raise AudioError(f"{name}: damaged or truncated ({reason})") from error
        done += len(block)
        last = len(block) < count
        if last and frames < UNKNOWN_FRAMES:
            slack = 0
            if sound.format == "MP3":  # without a Xing header the length is an estimate
                slack = (1152 if sound.samplerate >= 32_000 else 576) if sound.xing_frames else frames
            if done + slack < frames:
                raise _truncated(name, done, frames, "samples")
        yield _mono(block), last


def _array_blocks(source: Any, size: int, name: str) -> Blocks:
    samples = _channels_last(_to_numpy(source, name), name)
    for start in range(0, max(len(samples), 1), size):
        block = samples[start : start + size]
        yield _mono(_to_float(block, name)), start + size >= len(samples)


def _resampled(blocks: Blocks, rate: int, sample_rate: int) -> Blocks:
    import soxr  # takes longer to import than most files to read; 16 kHz files do without

    resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
    for block, last in blocks:
        yield resampler.resample_chunk(np.ascontiguousarray(block), last=last), last


def _mono(block: Samples) -> Samples:
    """(T, channels) or (T,) -> (T,)."""
    if block.ndim == 1:
        return block
    channels = block.shape[1]
    return block[:, 0] if channels == 1 else block @ np.full(channels, 1 / channels, np.float32)


def _is_array(source: Any) -> bool:
    """NumPy arrays, and tensors of any library without importing it."""
    return isinstance(source, np.ndarray) or (hasattr(source, "__array__") and hasattr(source, "shape"))


def _to_numpy(source: Any, name: str) -> NDArray[Any]:
    if isinstance(source, np.ndarray):
        return source
    try:
        if hasattr(source, "detach"):  # a torch tensor: off the graph and the device; NumPy has no bfloat16
            source = source.detach().cpu()
            source = source.float() if source.is_floating_point() else source
        return np.asarray(source)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise AudioError(f"{name}: cannot be turned into an array of samples ({reason})") from error


def _channels_last(samples: NDArray[Any], name: str) -> NDArray[Any]:
    """(T,) stays; of two axes the smaller is taken for the channels: (T, channels)."""
    if samples.ndim not in (1, 2):
        raise AudioError(f"{name}: samples have one axis, or two with channels, not shape {samples.shape}")
    if samples.size == 0:
        raise AudioError(f"{name}: holds no samples")
    return samples.T if samples.ndim == 2 and samples.shape[0] <= samples.shape[1] else samples


def _to_float(samples: NDArray[Any], name: str) -> Samples:
    if samples.dtype.kind in "iu" and samples.dtype.itemsize <= 4:
        half = 1 << (8 * samples.dtype.itemsize - 1)
        exact: NDArray[Any] = samples.astype(np.float64 if samples.dtype.itemsize == 4 else np.float32)
        offset = half if samples.dtype.kind == "u" else 0
        return ((exact - offset) / half).astype(np.float32, copy=False)
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which is reported
            return samples.astype(np.float32, copy=False)
    raise AudioError(f"{name}: samples are floats or integers of up to 32 bits, not {samples.dtype}")
