from __future__ import annotations

import bz2
import io
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from pldcli.corpus import addresses
from pldcli.corpus.addresses import Address, address_of, files_at, path_of
from pldcli.corpus.docstrings import docstring_corpus
from pldcli.corpus.sources import find_sources
from pldcli.data.prepared import open_prepared
from pldcli.errors import DataError
from pldcli.preparation import prepare, stages
from pldcli.system import atomic
from tests.faults.ground import digest

TEXTS = docstring_corpus(300_000)


class Parts(SimpleHTTPRequestHandler):
    """Files over HTTP, in parts where parts are asked for."""

    asked: list[str]
    times_to_fail = 0
    says_size = True

    def do_GET(self) -> None:
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range", "")
        if not path.is_file():
            self.send_error(404)
            return
        content, (start, stop) = path.read_bytes(), (0, path.stat().st_size)
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else stop, stop)
            if type(self).times_to_fail and start:
                type(self).times_to_fail -= 1
                self.send_error(503)
                return
        self.asked.append(f"{self.path} {wanted}")
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        if self.says_size:
            self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:stop])

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Text in every form that can be read from the middle, or not."""
    place = tmp_path / "served"
    place.mkdir()
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    (place / "lines.jsonl").write_text("".join(lines[::2]), encoding="utf-8")
    (place / "more.jsonl.bz2").write_bytes(bz2.compress("".join(lines[1::4]).encode()))
    table = pa.table({"text": TEXTS[3::4]})
    pq.write_table(table, place / "rows.parquet", row_group_size=20)
    with pa.OSFile(str(place / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(pa.table({"text": [f"{text} again" for text in TEXTS[3::4]]}))
    return place


@pytest.fixture
def server(folder: Path) -> Iterator[tuple[str, type[Parts]]]:
    handler = type("Served", (Parts,), {"asked": []})
    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}", handler
    served.shutdown()
    served.server_close()


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    fsspec.filesystem("http").clear_instance_cache()


def line(out: Path, *inputs: object, **more: object) -> list[object]:
    named = [word for name, value in more.items() for word in (f"--{name}", value)]
    return ["prepare-data", *inputs, "--out", out, "--vocab-size", 500, *named]


NAMES = ("lines.jsonl", "more.jsonl.bz2", "rows.parquet", "rows.arrow")


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_streamed_is_what_is_fetched(
    server: tuple[str, type[Parts]], pld: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """Also cut into units, which are then read from the middle."""
    monkeypatch.setattr(prepare, "unit_bytes", lambda num_bytes: 20_000)
    address, _ = server
    inputs = [f"{address}/{name}" for name in NAMES]
    outcome = pld(*line(tmp_path / "fetched", *inputs, processes=processes))
    assert outcome.code == 0, outcome.err
    copied: list[object] = []
    monkeypatch.setattr("pldcli.corpus.spool.Spool._copy", lambda *given: copied.append(given))
    outcome = pld(*line(tmp_path / "streamed", *inputs, processes=processes), "--stream")
    assert outcome.code == 0, outcome.err
    assert not copied and not list(tmp_path.glob(".streamed*")), "nothing is left"
    assert digest(tmp_path / "streamed") == digest(tmp_path / "fetched")
    assert [source["name"] for source in open_prepared(tmp_path / "streamed").manifest["sources"]] == inputs


def test_a_share_reads_its_parts_alone(server: tuple[str, type[Parts]], folder: Path, pld: Any, tmp_path: Path) -> None:
    """Of six units the first, the third and the fifth, and a little around the edges of all."""
    address, handler = server
    (folder / "large.txt").write_text("\n\n".join(f"{number} {text}" for number in range(80) for text in TEXTS), encoding="utf-8")
    size = (folder / "large.txt").stat().st_size
    assert 20e6 < size < 30e6
    outcome = pld("tokenizer", "train", folder / "lines.jsonl", "--out", tmp_path / "tokenizer", "--vocab-size", 500)
    assert outcome.code == 0, outcome.err
    words = ["prepare-data", f"{address}/large.txt", "--out", tmp_path / "data", "--tokenizer", tmp_path / "tokenizer", "--processes", 1]
    outcome = pld(*words, "--stream", "--share", "1/2")
    assert outcome.code == 0, outcome.err
    read = 0
    for entry in handler.asked:
        start, _, stop = entry.partition("bytes=")[2].partition("-")
        read += min(int(stop), size - 1) - int(start) + 1 if start else 0
    assert 0.4 * size < read < 0.6 * size


@pytest.mark.parametrize(("times", "message"), [(3, ""), (99, "large.txt: cannot be fetched (503")])
def test_what_fails_is_tried_again(
    server: tuple[str, type[Parts]], folder: Path, monkeypatch: pytest.MonkeyPatch, times: int, message: str
) -> None:
    monkeypatch.setattr(addresses, "_FIRST_WAIT_SECONDS", 0.0)
    address, handler = server
    content = bytes(range(256)) * 1000
    (folder / "large.txt").write_bytes(content)
    [found] = files_at(f"{address}/large.txt")
    with found.open(buffering=0) as file:
        first = file.read(1000)
        handler.times_to_fail = times
        if message:
            with pytest.raises(DataError) as caught:
                file.read(1000)
            assert message in str(caught.value)
            return
        assert first + file.read(1000) == content[:2000]
        assert file.seek(-10, io.SEEK_END) == len(content) - 10 and file.read(100) == content[-10:]
    assert handler.times_to_fail == 0


def test_a_size_that_nobody_says(server: tuple[str, type[Parts]], pld: Any, tmp_path: Path) -> None:
    address, handler = server
    handler.says_size = False
    outcome = pld(*line(tmp_path / "data", f"{address}/lines.jsonl"), "--stream")
    assert outcome.code == 2 and "lines.jsonl: cannot be read in parts, since its size is not known" in outcome.err
    outcome = pld(*line(tmp_path / "data", f"{address}/lines.jsonl"))
    assert outcome.code == 0, outcome.err


def test_what_is_missing_where_it_is_read(server: tuple[str, type[Parts]], pld: Any, tmp_path: Path, folder: Path) -> None:
    address, _ = server
    outcome = pld(*line(tmp_path / "data", f"{address}/none.jsonl"), "--stream")
    assert (
        outcome.code == 3
        and f"error: {address}/none.jsonl: no such file; is the address right" in outcome.err
        and outcome.err.count("\n") == 1
    )
    outcome = pld(*line(tmp_path / "data", folder / "lines.jsonl", decontaminate=f"{address}/lines.jsonl"))
    assert outcome.code == 3 and "cannot be compared with" in outcome.err


def test_a_file_that_changes_is_noticed(pld: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/a.txt", "\n\n".join(TEXTS).encode())
    original = stages.Stages._encode

    def changing(self: Any, *given: Any) -> None:
        system.pipe("/bucket/a.txt", "\n\n".join(reversed(TEXTS)).encode())
        original(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(stages.Stages, "_encode", changing)
        outcome = pld(*line(tmp_path / "data", "memory://bucket/a.txt", processes=1), "--stream")
    assert outcome.code == 3 and "bucket/a.txt: changed while it was being read" in outcome.err
    assert pld(*line(tmp_path / "data", "memory://bucket/a.txt", processes=1), "--stream").code == 0
    system.rm("/bucket", recursive=True)


def test_secrets_stay_in_a_file_of_the_user_alone(
    folder: Path, pld: Any, tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = server
    modes, original = [], atomic.write_bytes

    def noted(path: Path, content: bytes, **more: Any) -> None:
        original(path, content, **more)
        if b"sesame" in content:
            modes.append(path.stat().st_mode & 0o777)

    monkeypatch.setattr(atomic, "write_bytes", noted)
    monkeypatch.setattr(prepare, "unit_bytes", lambda num_bytes: 20_000)
    outcome = pld(*line(tmp_path / "data", f"{address}/lines.jsonl?key=sesame", processes=2), "--stream")
    assert outcome.code == 0, outcome.err
    assert modes and set(modes) == {0o600}
    assert "sesame" not in outcome.out + outcome.err + "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.json"))


def test_a_signature_changes_no_file_and_files_are_found_once(server: tuple[str, type[Parts]]) -> None:
    address, _ = server
    sources, skipped = find_sources([Path(f"{address}/lines.jsonl"), Path(f"{address}/rows.parquet"), Path(f"{address}/lines.jsonl")])
    assert [source.format for source in sources] == ["json", "parquet"] and skipped == {"file named twice": 1}
    found = sources[0].path
    assert isinstance(found, Address) and (found.name, found.stem, found.suffix) == ("lines.jsonl", "lines", ".jsonl")


def test_the_disk_is_too_small(pld: Any, tmp_path: Path, server: tuple[str, type[Parts]], monkeypatch: pytest.MonkeyPatch) -> None:
    address, _ = server
    monkeypatch.setattr("pldcli.corpus.spool.shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    outcome = pld(*line(tmp_path / "data", f"{address}/lines.jsonl"))
    assert outcome.code == 7 and "--stream reads them where they are" in outcome.err and list(tmp_path.glob(".*")) == []


def test_a_file_is_listed_without_being_fetched(server: tuple[str, type[Parts]]) -> None:
    address, handler = server
    files_at(f"{address}/lines.jsonl")
    assert handler.asked == ["/lines.jsonl "], "by HEAD, once"


def test_a_page_of_links_stands_for_the_files_there(folder: Path) -> None:
    handler = type("Listing", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        found = files_at(f"http://127.0.0.1:{served.server_port}/")
        served.shutdown()
    assert [one.name for one in found] == sorted(NAMES)


def test_what_is_not_shown_of_a_place_tells_files_apart(server: tuple[str, type[Parts]]) -> None:
    address, _ = server
    [first], [second] = files_at(f"{address}/lines.jsonl?file=a"), files_at(f"{address}/lines.jsonl?file=b")
    assert (str(first), first.num_bytes) == (str(second), second.num_bytes) and first.version != second.version


def test_an_address_of_this_machine_keeps_its_root(folder: Path) -> None:
    address = address_of(Path(f"file://{folder}/lines.jsonl"))
    assert address == f"file://{folder}/lines.jsonl"
    assert [one.num_bytes for one in files_at(address)] == [(folder / "lines.jsonl").stat().st_size]


class Rooted(LocalFileSystem):
    """Takes addresses as Hadoop's do: of a host, or behind three slashes of the usual one."""

    protocol = "rooted"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("rooted://")


@pytest.mark.parametrize("typed", ["hdfs:///data/a.txt", "hdfs://node:8020/data/a.txt", "file:///data/a.txt", "s3://bucket/*.txt"])
def test_an_address_keeps_whether_it_names_a_host(typed: str) -> None:
    assert address_of(path_of(typed)) == typed


def test_an_address_without_a_host_is_read_from_the_root(folder: Path, pld: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fsspec.register_implementation("rooted", Rooted, clobber=True)
    place = f"rooted://{folder}/lines.jsonl"
    outcome = pld(*line(tmp_path / "data", place, validation=f"rooted://{folder}/rows.parquet", source=f"{place}=2"), "--stream")
    assert outcome.code == 0, outcome.err
    outcome = pld("tokenizer", "inspect", tmp_path / "data", place)
    assert outcome.code == 0, outcome.err
