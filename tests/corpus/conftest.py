"""Tiny corpora in LibriSpeech's layout, and a web server that can misbehave."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 16000


def tone(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise of a fixed seed, (T,) int16: it cannot be compressed, so cutting a file always cuts samples."""
    return np.random.default_rng(seed).integers(-3000, 3000, round(seconds * RATE), dtype=np.int16)


def write_chapter(subset: Path, chapter: str, utterances: dict[str, tuple[float, str]]) -> Path:
    """utterances: id -> (seconds of audio, 0 for no file; transcript). Returns the transcript file."""
    folder = subset / chapter
    folder.mkdir(parents=True, exist_ok=True)
    for identity, (seconds, _) in utterances.items():
        if seconds:
            soundfile.write(folder / f"{identity}.flac", tone(seconds), RATE)
    path = folder / f"{chapter.replace('/', '-')}.trans.txt"
    path.write_text("".join(f"{identity} {text}\n" for identity, (_, text) in utterances.items()), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """LibriSpeech/{train-toy,dev-toy}: 3 utterances of 2 speakers, 1 of another."""
    root = tmp_path / "speech"
    train, dev = root / "LibriSpeech" / "train-toy", root / "LibriSpeech" / "dev-toy"
    write_chapter(train, "19/198", {"19-198-0000": (1.0, "HELLO WORLD"), "19-198-0001": (0.5, "GOOD DAY")})
    write_chapter(train, "26/495", {"26-495-0000": (1.5, "IT'S TEN O'CLOCK")})
    write_chapter(dev, "84/121", {"84-121-0000": (2.0, "YES")})
    return root


def tar_gz(path: Path, files: dict[str, bytes]) -> bytes:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path.read_bytes()


class Server:
    """What is served, how, and what was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = True  # whether Range is understood
        self.break_after: list[int] = []  # for each coming answer of an archive: bytes until the connection breaks
        self.requests: list[tuple[str, str | None]] = []  # path, Range header
        self.url = ""

    def publish(self, name: str, content: bytes, checksum: bool = True) -> None:
        self.files[f"/{name}"] = content
        if checksum:
            line = f"{hashlib.md5(content).hexdigest()}  {name}\n"
            self.files["/md5sum.txt"] = self.files.get("/md5sum.txt", b"") + line.encode()


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append((self.path, wanted))
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
            if start and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            body = content[start:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.break_after and self.path != "/md5sum.txt":
                body = body[: state.break_after.pop(0)]
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield state
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def chapter_writer() -> Callable[..., Path]:
    return write_chapter


@pytest.fixture
def tar_writer() -> Callable[..., bytes]:
    return tar_gz
