import gzip
import io
import os
import struct
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr
import torch

from asr import audio
from asr.errors import AudioError

RATE = 16_000


def chirp(seconds=2.0, rate=RATE, channels=1):
    """A rising tone over faint noise; channel k is the same at 1 / (k + 1) of the level. (T,) or (T, channels)."""
    t = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * (200 + 150 * t) * t)
    tone += np.random.default_rng(0).normal(scale=0.01, size=len(t))
    tone = tone.astype(np.float32)
    return tone if channels == 1 else np.stack([tone / (k + 1) for k in range(channels)], axis=1)


def encode(samples, format="WAV", subtype=None, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def with_wav_sizes(data, riff, size):
    at = data.index(b"data") + 4
    return data[:4] + struct.pack("<I", riff) + data[8:at] + struct.pack("<I", size) + data[at + 4 :]


def flac_with_length(data, samples):
    """A FLAC whose STREAMINFO tells this many samples; 0 stands for "not known"."""
    return data[:21] + bytes([data[21] & 0xF0]) + struct.pack(">I", samples) + data[26:]


@pytest.fixture
def tone():
    return chirp()


# --- what can be read ---


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "FLOAT", 0),
        ("WAV", "ULAW", 2e-2),
        ("WAVEX", "PCM_16", 1e-4),
        ("FLAC", "PCM_16", 1e-4),
        ("AIFF", "PCM_16", 1e-4),
        ("AU", "PCM_16", 1e-4),
        ("CAF", "PCM_16", 1e-4),
        ("W64", "PCM_16", 1e-4),
        ("RF64", "PCM_16", 1e-4),
    ],
)
def test_lossless_formats(tmp_path, tone, format, subtype, tolerance):
    path = tmp_path / "tone.raw"  # the content counts, not the suffix; soundfile takes .raw for headerless
    path.write_bytes(encode(tone, format, subtype))
    samples = audio.load(path)
    assert samples.dtype == np.float32
    assert samples.shape == tone.shape
    np.testing.assert_allclose(samples, tone, atol=tolerance)
    assert audio.duration(path) == 2.0


@pytest.mark.parametrize(("format", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
def test_lossy_formats(tmp_path, tone, format, subtype):
    path = tmp_path / "tone"
    path.write_bytes(encode(tone, format, subtype))
    samples = audio.load(path)
    assert samples.shape == tone.shape
    assert np.corrcoef(samples, tone)[0, 1] > 0.98
    assert audio.duration(path) == 2.0


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_rates_are_resampled(rate):
    samples = chirp(rate=rate)
    loaded = audio.load(encode(samples, "WAV", "FLOAT", rate))
    assert abs(len(loaded) - 2 * RATE) <= 1
    np.testing.assert_allclose(loaded, soxr.resample(samples, rate, RATE, quality="HQ"), atol=1e-6)
    # The tone itself comes back: away from the ends it is the one made at 16 kHz, but for the noise.
    assert np.corrcoef(loaded[1000:-1000], chirp()[1000 : len(loaded) - 1000])[0, 1] > 0.99


def test_other_target_rate(tone):
    assert len(audio.load(encode(tone), sample_rate=8_000)) == RATE


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_channels_are_averaged(channels):
    samples = chirp(channels=channels)
    np.testing.assert_allclose(audio.load(encode(samples, "WAV", "FLOAT")), samples.mean(axis=1), atol=1e-6)


def test_every_kind_of_source(tmp_path, tone):
    data = encode(tone, "FLAC")
    path = tmp_path / "tone.flac"
    path.write_bytes(data)
    expected = audio.load(path)
    file = io.BytesIO(data)
    file.seek(0, os.SEEK_END)  # as after writing: reading starts over
    with path.open("rb") as handle:
        for source in (str(path), data, bytearray(data), memoryview(data), file, handle):
            np.testing.assert_array_equal(audio.load(source), expected)
        assert not handle.closed
    assert not file.closed


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe(tmp_path, tone):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(encode(tone),))
    writer.start()
    assert len(audio.load(path)) == len(tone)
    writer.join()


def test_file_that_cannot_seek(tone):
    class Socket(io.RawIOBase):
        left = io.BytesIO(encode(tone))

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.left.readinto(buffer)

    assert len(audio.load(Socket())) == len(tone)


def test_silence_is_audio():
    samples = audio.load(encode(np.zeros(100, np.float32)))
    assert samples.shape == (100,)
    assert not samples.any()


# --- arrays ---


def test_float32_array_is_not_copied():
    samples = np.zeros(RATE * 70, np.float32)
    assert np.shares_memory(audio.load(samples), samples)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.int8, [-128, 64]),
        (np.uint8, [0, 192]),
        (np.int16, [-32768, 16384]),
        (np.uint16, [0, 49152]),
        (np.int32, [-(2**31), 2**30]),
        (np.float64, [-1.0, 0.5]),
        (np.float16, [-1.0, 0.5]),
    ],
)
def test_dtypes_are_scaled(dtype, values):
    samples = audio.load(np.array(values, dtype))
    assert samples.dtype == np.float32
    assert samples.tolist() == [-1.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors(dtype):
    tensor = torch.tensor([0.5, -0.25], dtype=dtype, requires_grad=True)
    assert audio.load(tensor).tolist() == [0.5, -0.25]


def test_integer_tensor():
    assert audio.load(torch.tensor([16384, -32768], dtype=torch.int16)).tolist() == [0.5, -1.0]


def test_smaller_axis_is_channels():
    stereo = np.array([[0.5] * 5, [0.1] * 5])
    for samples in (stereo, stereo.T):
        np.testing.assert_allclose(audio.load(samples), [0.3] * 5)


def test_source_rate_of_arrays():
    samples = chirp(rate=8_000)
    assert len(audio.load(samples, source_rate=8_000)) == 2 * RATE
    assert audio.duration(samples, source_rate=8_000) == 2.0


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(0), "holds no samples"),
        (np.zeros((2, 0)), "holds no samples"),
        (np.zeros((2, 3, 4)), "samples have one axis, or two with channels, not shape (2, 3, 4)"),
        (np.zeros(()), "samples have one axis, or two with channels, not shape ()"),
        (np.zeros(3, np.int64), "samples are floats or integers of up to 32 bits, not int64"),
        (np.zeros(3, complex), "samples are floats or integers of up to 32 bits, not complex128"),
        (np.array([0.0, np.nan]), "has samples that are not numbers (NaN or infinite)"),
        (np.array([0.0, -np.inf]), "has samples that are not numbers (NaN or infinite)"),
        (np.array([0.0, 1e300]), "has samples that are not numbers (NaN or infinite)"),
    ],
)
def test_bad_arrays(samples, reason):
    with pytest.raises(AudioError) as error:
        audio.load(samples)
    assert str(error.value) == f"audio array: {reason}"


# --- what cannot be read ---

NOT_AUDIO = "not audio in a format that can be read (WAV, FLAC, OGG, MP3 can; convert others with ffmpeg)"


def reason_of(source, **options):
    """The message of the AudioError that load raises; stream must raise the same."""
    with pytest.raises(AudioError) as error:
        audio.load(source, **options)
    message = str(error.value)
    assert "\n" not in message
    with pytest.raises(AudioError) as error:
        list(audio.stream(source, **options))
    assert str(error.value) == message
    return message


def test_missing_file():
    assert reason_of("nowhere/talk.mp3") == "nowhere/talk.mp3: no such file"
    with pytest.raises(AudioError, match=r"^talk.mp3: no such file$"):
        audio.duration("talk.mp3")


def test_directory(tmp_path):
    assert reason_of(tmp_path) == f"{tmp_path}: is a directory, not an audio file"


def test_no_permission(monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(audio, "open", refuse, raising=False)
    assert reason_of("talk.mp3") == "talk.mp3: no permission to read it"


def test_a_disk_that_fails():
    class Failing(io.BytesIO):
        def read(self, *_):
            raise OSError(5, "Input/output error")

    assert reason_of(Failing(b"RIFF"), name="talk.wav") == "talk.wav: cannot be read (Input/output error)"


def test_paths_the_system_refuses():
    assert reason_of("a\0b").endswith("cannot be opened (embedded null byte)")
    assert reason_of("a" * 300).endswith("cannot be opened (File name too long)")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"\xff", NOT_AUDIO),
        (b"This is a letter and no sound.\n" * 50, NOT_AUDIO),
        (bytes(5000), NOT_AUDIO),
        (np.random.default_rng(1).bytes(5000), NOT_AUDIO),
        (b"fLaC", NOT_AUDIO),
        (b"RIFF\0\0\0\0WAVE", "the header is damaged or the file is truncated"),
        (b"OggS", "truncated, its last OGG page is not whole"),
        (encode(np.zeros(0)), "holds no samples"),
        (encode(np.zeros(0), "OGG"), "holds no samples"),
        (encode(np.zeros(1), rate=48_000), "holds no samples"),  # a third of a sample at 16 kHz
        (encode(np.array([0, np.nan]), "WAV", "FLOAT"), "has samples that are not numbers (NaN or infinite)"),
        (encode(np.array([0, np.inf]), "WAV", "FLOAT"), "has samples that are not numbers (NaN or infinite)"),
        (encode(np.zeros(9), rate=10), "a sample rate of 10 Hz is not one of speech; the header may be damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",  # some hold the time
)
def test_bad_content(tmp_path, data, reason):
    path = tmp_path / "talk.wav"
    path.write_bytes(data)
    assert reason_of(path) == f"{path}: {reason}"
    assert reason_of(data) == f"audio bytes: {reason}"
    assert reason_of(io.BytesIO(data), name="upload.wav") == f"upload.wav: {reason}"


def test_wrong_kinds_of_source(tmp_path):
    assert reason_of(17).endswith("audio is a path, bytes, a binary file or an array of samples, not int")
    (tmp_path / "a.txt").write_text("text")
    with (tmp_path / "a.txt").open() as file:
        assert reason_of(file) == f"{tmp_path}/a.txt: opened as text; open it with mode 'rb'"
    file = io.BytesIO(b"x")
    file.close()
    assert reason_of(file).startswith("audio stream: cannot be read (I/O operation on closed file")


def test_bad_settings(tone):
    assert reason_of(tone, sample_rate=0) == "the sample rate wanted must be positive, not 0 Hz"
    with pytest.raises(AudioError, match=r"^the length of a block must be positive, not -1 s$"):
        list(audio.stream(tone, block_seconds=-1))
    assert reason_of(tone, source_rate=3).startswith("audio array: a sample rate of 3 Hz is not one of speech")


def test_name_stays_on_one_line():
    assert reason_of(b"", name="a\nb") == "a b: is empty"


# --- cut off ---


@pytest.mark.parametrize("kept", [0.995, 0.5, 0.05])
@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAVEX", "PCM_24"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
        ("AIFF", "PCM_16"),
        ("AU", "PCM_16"),
        ("CAF", "PCM_16"),
        ("W64", "PCM_16"),
        ("RF64", "PCM_16"),
    ],
)
def test_truncated(tmp_path, format, subtype, kept):
    data = encode(chirp(4.0), format, subtype)
    path = tmp_path / "talk"
    path.write_bytes(data[: int(kept * len(data))])
    assert "truncated" in reason_of(path)
    assert "truncated" in reason_of(path.read_bytes())


def test_truncated_wav_tells_how_much(tone):
    data = encode(tone)
    assert reason_of(data[:-1000]) == "audio bytes: truncated, only 63,000 of 64,000 bytes are there"
    with pytest.raises(AudioError, match="truncated"):
        audio.duration(data[:-1000])
    assert len(audio.load(data[:-10])) == len(tone) - 5  # sizes are often told a few bytes too large


def test_flac_shorter_than_told(tone):
    data = flac_with_length(encode(tone, "FLAC"), 40_000)
    assert reason_of(data) == "audio bytes: truncated, only 32,000 of 40,000 samples are there"


def test_flac_damaged_in_the_middle(tone):
    data = bytearray(encode(tone, "FLAC"))
    data[20_000:20_100] = bytes(100)
    assert reason_of(data).startswith("audio bytes: damaged or truncated (flac decoder lost sync")


# --- unusual but sound ---


@pytest.mark.parametrize(
    ("riff", "size"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),  # ffmpeg into a pipe
        (0x7FFFF024, 0x7FFFF000),  # sox into a pipe
        (0x80000024, 0x80000000),  # arecord
        (0, 0),
        (36, 0),  # a recorder that died before it could come back to the header
        (0xFFFFFFFF, 0),
    ],
)
def test_streamed_wav(tmp_path, tone, riff, size):
    data = with_wav_sizes(encode(tone), riff, size)
    path = tmp_path / "talk.wav"
    path.write_bytes(data)
    for source in (path, data):
        np.testing.assert_allclose(audio.load(source), tone, atol=1e-4)
        assert audio.duration(source) == 2.0
    assert path.read_bytes() == data


def test_wav_with_chunks_around_the_samples(tone):
    data = encode(tone)
    at = data.index(b"data")
    extra = b"LIST" + struct.pack("<I", 5) + b"INFO!\0"  # odd length: padded
    np.testing.assert_allclose(audio.load(data[:at] + extra + data[at:] + extra), tone, atol=1e-4)
    assert "truncated" in reason_of(data[:at] + extra + data[at:-1000])


def test_wav_with_more_sound_than_its_header_tells(tone):
    """As a recorder leaves that died after it last brought the header up to date."""
    data = encode(tone)
    stale = with_wav_sizes(data, 36 + RATE, RATE)
    np.testing.assert_allclose(audio.load(stale), tone, atol=1e-4)
    assert audio.duration(stale) == 2.0
    for subtype in ("PCM_16", "PCM_24", "PCM_U8", "ULAW"):
        data = encode(tone[:-1], subtype=subtype)
        assert reason_of(data + data) == f"audio bytes: {JOINED}"


@pytest.mark.parametrize("subtype", ["ULAW", "PCM_U8"])
def test_bytes_of_quiet_sound_are_no_name(subtype):
    """The other way about: sound of 8 bits is full of printable bytes."""
    data = encode(0.2 * chirp(2.0), subtype=subtype)
    whole = len(audio.load(data))
    at = data.index(b"data") + 4
    for told in range(5000, 5100):
        stale = data[:at] + told.to_bytes(4, "little") + data[at + 4 :]
        assert len(audio.load(stale)) == whole


@pytest.mark.parametrize(
    "after",
    [
        b"TAG" + b"a title".ljust(125, b"\0"),
        b"APETAGEX" + bytes(200),
        b"ID3\x03" + bytes(2000),
        b"id3 " + struct.pack("<I", 200_000) + b"\xff" * 100_000,  # cut short
        b"LIST" + struct.pack(">I", 200) + b"\xff" * 200,
    ],
)
@pytest.mark.parametrize("odd", [0, 1])
def test_what_follows_the_sound_of_a_wav_is_no_sound(after, odd):
    data = encode(chirp(1.0)[: RATE - odd], subtype="PCM_24")
    end = data.index(b"data") + 8 + 3 * (RATE - odd)  # an odd length, whose padding is often forgotten
    for padding in (b"", b"\0")[: 1 + odd]:
        assert len(audio.load(data[:end] + padding + after)) == RATE - odd


def test_wav_of_more_than_4_gb(tmp_path):
    head = with_wav_sizes(encode(np.zeros(9)), 0xFFFFFFFF, 0xFFFFFFFF)[:44]
    path = tmp_path / "long.wav"
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(2**32 + 100)  # a file of holes
    with pytest.raises(
        AudioError, match=r"over 4 GB, more than a WAV file can tell of; convert it to FLAC with ffmpeg"
    ):
        audio.duration(path)


def ape_tag(size, flags):
    """The header or footer of an APE tag (version 2) that takes so many bytes, its header not among them."""
    return b"APETAGEX" + struct.pack("<IIII", 2000, size, 1, flags) + bytes(8)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b"TAG" + bytes(125)),
        (b"", bytes(300) + ape_tag(332, 0)),
        (b"", ape_tag(332, 5 << 29) + bytes(300) + ape_tag(332, 1 << 31)),  # with a header
        (b"", bytes(300) + ape_tag(332, 0) + b"TAG" + bytes(125)),
        (b"", b"TAG" + bytes(125) + bytes(300) + ape_tag(332, 0)),
        (b"", 2 * (b"TAG" + bytes(125))),
        (b"ID3\x03\0\0\0\0\x01\0" + b"\xff\xfb\x90\0" * 32, b""),  # that looks like frames of an MP3
        (b"ID3\x03\0\0\0\0\x01\0" + bytes(128), b"TAG" + bytes(125)),
    ],
)
def test_flac_with_tags(tone, before, after):
    data = encode(tone, "FLAC")
    for size in (30.0, 0.25):
        blocks = list(audio.stream(before + data + after, block_seconds=size))
        np.testing.assert_allclose(np.concatenate(blocks), tone, atol=1e-4)
    assert "truncated" in reason_of(before + data[: len(data) // 2] + after)
    assert "damaged" in reason_of(before + data + data + after)


def test_sphere_cut_short(tmp_path):
    path = tmp_path / "talk.sph"
    soundfile.write(path, chirp(2.0), RATE, format="NIST")
    data = path.read_bytes()
    np.testing.assert_allclose(audio.load(path), chirp(2.0), atol=1e-4)
    assert reason_of(data[: len(data) // 2]).startswith("audio bytes: truncated, only 15,")


def test_a_gzip_file_cut_short(tone, tmp_path):
    with gzip.open(tmp_path / "talk.wav.gz", "wb") as file:
        file.write(encode(tone))
    data = (tmp_path / "talk.wav.gz").read_bytes()
    assert len(audio.load(gzip.GzipFile(fileobj=io.BytesIO(data)))) == 2 * RATE
    with pytest.raises(AudioError, match="cannot be read"):
        audio.load(gzip.GzipFile(fileobj=io.BytesIO(data[:-5000])))


def test_flac_of_unknown_length(tone):
    data = flac_with_length(encode(tone, "FLAC"), 0)
    np.testing.assert_allclose(audio.load(data), tone, atol=1e-4)
    assert audio.duration(data) == 2.0


def test_ogg_without_end_mark(tone):
    data = encode(chirp(8.0), "OGG", "VORBIS")
    whole_pages = data[: data.rindex(b"OggS")]
    assert len(audio.load(whole_pages)) > RATE


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_mp3_without_length_header(rate):
    """A variable bit rate without a Xing header: libsndfile on its own drops the half after the quiet one."""
    samples = np.concatenate([chirp(2.0, rate) * 0.001, chirp(2.0, rate)])
    data = encode(samples, "MP3", rate=rate)
    first = audio._mp3_frame_length(data[:4])
    assert b"Xing" in data[:first]
    loaded = audio.load(data[first:])
    assert abs(len(loaded) / RATE - 4.0) < 0.2
    assert abs(audio.duration(data[first:]) - 4.0) < 0.2
    assert np.abs(loaded[-RATE:]).max() > 0.2


def test_mp3_with_id3(tone):
    tag = b"ID3\x04\0\0\0\0\x01\x00" + bytes(128)
    data = encode(tone, "MP3")
    np.testing.assert_array_equal(audio.load(tag + data), audio.load(data))
    assert "truncated" in reason_of(tag + data[: len(data) // 2])


# --- joined, as with cat a.mp3 b.mp3 ---

JOINED = "several recordings one after another, of which only the first can be read; convert it with ffmpeg"


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_joined_ogg(tmp_path, tone, subtype, monkeypatch):
    one, other = encode(tone, "OGG", subtype), encode(tone[::-1], "OGG", subtype)
    path = tmp_path / "talk.ogg"
    path.write_bytes(one + other)
    assert reason_of(path) == f"{path}: {JOINED}"
    for data in (one + other, one + one, one + other + one):
        assert reason_of(data) == f"audio bytes: {JOINED}"
    for size in range(len(one) - 6, len(one) + 7):  # wherever the blocks that are searched part
        monkeypatch.setattr(audio, "READ_BYTES", size)
        assert reason_of(one + other) == f"audio bytes: {JOINED}"
        assert len(audio.load(one)) == len(tone)


def test_ogg_of_several_streams_side_by_side_is_one():
    def page(flags, serial):
        return b"OggS\0" + bytes([flags]) + bytes(8) + bytes([serial]) + bytes(11) + b"\1\1x"

    pages = page(2, 1) + page(2, 2) + page(0, 1) + page(0, 2) + page(4, 1) + page(4, 2)
    audio._check_ogg(io.BytesIO(pages), len(pages), "talk.ogg")
    with pytest.raises(AudioError, match=JOINED):
        audio._check_ogg(io.BytesIO(2 * pages), 2 * len(pages), "talk.ogg")


@pytest.mark.parametrize("tag", [b"", b"ID3\x04\0\0\0\0\x01\x00" + bytes(128)])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_joined_mp3(tmp_path, rate, tag):
    quiet, loud = (tag + encode(chirp(2.0, rate) * level, "MP3", rate=rate) for level in (0.1, 1))
    path = tmp_path / "talk.mp3"
    path.write_bytes(quiet + loud + loud)
    for source in (path, path.read_bytes()):
        samples = audio.load(source)
        assert abs(len(samples) / RATE - 6.0) < 0.4  # with what the encoder adds to each
        assert abs(audio.duration(source) - 6.0) < 0.4
        assert abs(samples[: 2 * RATE]).max() < 0.1
        for part in np.array_split(samples[len(samples) // 3 + RATE // 4 :], 2):  # the loud ones are there
            assert abs(part).max() > 0.25


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize(("rate", "channels"), [(44_100, 1), (RATE, 2), (8_000, 1)])
def test_joined_mp3_of_different_kinds(tone, rate, channels, header):
    one, other = encode(tone, "MP3"), encode(chirp(2.0, rate, channels), "MP3", rate=rate)
    one = one if header else one[audio._mp3_frame_length(one[:4]) :]
    assert reason_of(one + other) == f"audio bytes: {JOINED}"


@pytest.mark.parametrize("seed", range(4))
def test_mp3_with_large_tags(tone, seed):
    data = encode(tone, "MP3")
    picture = np.random.default_rng(seed).bytes(200_000)  # in which there are what look like frames
    for large in (picture, picture[: len(data) // 4]):
        np.testing.assert_array_equal(audio.load(data + b"APETAGEX" + large), audio.load(data))
    several = b"ID3\x04\0\0\0\0\x01\0" + bytes(128) + b"ID3\x04\0\0\0\x0c\x1a\x40" + picture
    np.testing.assert_array_equal(audio.load(several + data), audio.load(data))
    first = audio._mp3_frame_length(data[:4])  # without the header that tells the length
    plain = audio.load(data[first:])
    np.testing.assert_array_equal(audio.load(data[first:] + b"APETAGEX" + picture), plain)
    np.testing.assert_array_equal(audio.load(several + data[first:]), plain)


# --- streaming ---


@pytest.mark.parametrize("block_seconds", [0.1, 0.37, 1.0, 30.0])
@pytest.mark.parametrize(
    ("format", "rate", "channels"), [("WAV", 16_000, 1), ("FLAC", 44_100, 2), ("MP3", 22_050, 1), ("OGG", 8_000, 2)]
)
def test_stream_equals_load(format, rate, channels, block_seconds):
    data = encode(chirp(2.0, rate, channels), format, rate=rate)
    blocks = list(audio.stream(data, block_seconds=block_seconds))
    assert all(len(block) for block in blocks)
    assert max(len(block) for block in blocks) <= block_seconds * RATE + 1024
    np.testing.assert_allclose(np.concatenate(blocks), audio.load(data), atol=1e-6)


def test_stream_of_an_array():
    samples = chirp(2.0, 8_000, 2)
    blocks = list(audio.stream(samples, block_seconds=0.3, source_rate=8_000))
    assert len(blocks) > 5
    np.testing.assert_allclose(np.concatenate(blocks), audio.load(samples, source_rate=8_000), atol=1e-6)


def test_stream_needs_constant_memory(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.tile(chirp(10.0, 32_000, 2), (12, 1)), 32_000)  # 2 min; 30 MB as float32

    def peak(seconds):
        tracemalloc.start()
        try:
            total = sum(len(block) for block in audio.stream(path, block_seconds=seconds))
            return total, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    total, memory = peak(1.0)
    assert total == 120 * RATE
    assert memory < 3e6


def test_links_in_folders_are_followed(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "day").mkdir()
    for path in (folder / "a.wav", tmp_path / "day/b.flac"):
        path.touch()
    (folder / "sub/day").symlink_to(tmp_path / "day")
    (folder / "sub/round").symlink_to(folder)
    (folder / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (folder / "long.wav").symlink_to("x" * 300)
    here = [folder / name for name in ("a.wav", "gone.wav", "long.wav")]
    assert audio.audio_below(folder) == [*here, folder / "sub/day/b.flac"]
    assert audio.audio_below(folder, recursive=False) == here


def test_import_is_light():
    code = """
import sys, numpy as np, asr.audio
asr.audio.load(np.zeros(9))
print(*{"torch", "librosa", "soxr"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
