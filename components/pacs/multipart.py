"""Write the parts of a ``multipart/related`` answer (RFC 2387) to files while it arrives; memory does not grow with it."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError, MultipartParseError
from python_multipart.multipart import parse_options_header

from components.pacs.archive import ServerFault


class PartFiles:
    """Files of the parts of one answer.

    Attributes:
        complete: files of the parts that have arrived, not taken yet.
    """

    def __init__(self, content_type: str, folder: Path, prefix: str) -> None:
        """Prepare for an answer.

        Raises:
            ServerFault: the content type is neither multipart nor a single DICOM object.
        """
        kind, options = parse_options_header(content_type)
        self._folder, self._prefix, self._number = folder, prefix, 0
        self._stream: BinaryIO | None = None
        self._ended = False
        self.complete: list[Path] = []
        self._parser: MultipartParser | None = None
        if kind == b"multipart/related" and options.get(b"boundary"):
            callbacks = {
                "on_part_begin": self._begin,
                "on_part_data": self._write,
                "on_part_end": self._end,
                "on_end": self._finish,
            }
            self._parser = MultipartParser(options[b"boundary"], callbacks)  # type: ignore[arg-type]  # a typed dict of callbacks
        elif kind == b"application/dicom":
            self._begin()
        else:
            raise ServerFault("an answer that is no DICOM")

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            ServerFault: they are no multipart answer.
        """
        if self._parser is None:
            self._write(chunk, 0, len(chunk))
            return
        try:
            self._parser.write(chunk)
        except (FormParserError, MultipartParseError):
            raise ServerFault("a broken multipart answer") from None

    def finish(self) -> None:
        """End the answer.

        Raises:
            ServerFault: it is cut off.
        """
        if self._parser is None:
            self._end()
        elif not self._ended:
            raise ServerFault("an answer that is cut off")

    def close(self) -> None:
        """Remove the file of a part that has not arrived completely."""
        if self._stream is not None:
            self._stream.close()
            self._path.unlink(missing_ok=True)
            self._stream = None

    def take(self) -> list[Path]:
        """Return the files that are complete since the last call."""
        taken, self.complete = self.complete, []
        return taken

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._prefix}{self._number:06d}.part"

    def _begin(self) -> None:
        self._number += 1
        self._stream = self._path.open("wb")

    def _write(self, data: bytes, start: int, end: int) -> None:
        assert self._stream is not None
        self._stream.write(memoryview(data)[start:end])

    def _end(self) -> None:
        assert self._stream is not None
        self._stream.close()
        self._stream = None
        self.complete.append(self._path)

    def _finish(self) -> None:
        self._ended = True
