from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pyarrow
import pyarrow.parquet
import pytest
from media_zoo import ODD_NAMES

from data_tools.footage import VIDEO_SUFFIXES
from data_tools.inputs import MAX_ID, Found, Source, fetch, find_sources, plain_id
from flowact.data.media import MediaError
from flowact.errors import UserError

fsspec = pytest.importorskip("fsspec", reason="addresses need fsspec")
FILM = b"stands for a film"
PLAIN = re.compile(r"[A-Za-z0-9_-]{1,60}")


class Buckets(fsspec.AbstractFileSystem):
    """Keeps to the rules of an object store: keys without a leading slash, no real folders, one request for a listing."""

    protocol = "s3"
    objects: ClassVar[dict[str, bytes]] = {}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        if path in self.objects:
            return [{"name": path, "size": len(self.objects[path]), "type": "file"}]
        inside = [key for key in self.objects if key.startswith(f"{path}/")]
        if not inside:
            raise FileNotFoundError(path)
        entries: dict[str, dict[str, Any]] = {}
        for key in inside:
            name, *deeper = key[len(path) + 1 :].split("/")
            entries[name] = {"name": f"{path}/{name}", "size": 0 if deeper else len(self.objects[key]), "type": "directory" if deeper else "file"}
        return list(entries.values()) if detail else [entry["name"] for entry in entries.values()]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
        if "forbidden" in path:
            raise RuntimeError("no credentials")  # stores raise errors of their own kinds
        if path not in self.objects:
            raise FileNotFoundError(path)
        return io.BytesIO(self.objects[path])


@pytest.fixture
def buckets(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """What lies at s3://."""
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "s3", Buckets)  # type: ignore[attr-defined]
    Buckets.clear_instance_cache()
    yield Buckets.objects
    Buckets.objects.clear()


def lay_out(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def ids(found: Found) -> list[str]:
    return [source.id for source in found.sources]


def reasons(found: Found) -> dict[str, str]:
    return {entry.address: entry.reason for entry in found.skipped}


def tree(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


# --- folders ----------------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def people() -> dict[str, bytes | str]:
    """Two people by folder, one film of its own."""
    return {
        "anna/01.mp4": FILM,
        "anna/01.wav": b"sound",
        "anna/01.txt": "  A woman\n talks. ",
        "anna/02.MOV": FILM,
        "ben/01.webm": FILM,
        "ben/01.json": json.dumps(
            {"identity": "Benjamin", "split": "val", "source": {"license": "CC0-1.0"}, "consent": "signed", "caption": "He nods."}
        ),
        "carl.mp4": FILM,
        "notes.md": "no film",
    }


@pytest.mark.parametrize("where", ["folder", "memory", "s3"])
def test_a_folder_says_who_and_what_stands_beside(people: dict[str, bytes | str], where: str, tmp_path: Path, buckets: dict[str, bytes]) -> None:
    if where == "folder":
        address = str(lay_out(tmp_path / "in", people))
    elif where == "memory":
        address = "memory://studio/in"
        for name, content in people.items():
            fsspec.filesystem("memory").pipe(f"/studio/in/{name}", content.encode() if isinstance(content, str) else content)
    else:
        address = "s3://studio/in"
        buckets.update({f"studio/in/{name}": content.encode() if isinstance(content, str) else content for name, content in people.items()})
    found = find_sources(address)
    assert not found.skipped
    assert ids(found) == ["anna--01", plain_id(PurePosixPath("anna/02.MOV")), plain_id(PurePosixPath("ben/01.webm")), "carl"]
    first, second, third, last = found.sources
    assert (first.identity, first.caption, set(first.sidecars)) == ("anna", "A woman talks.", {"wav", "txt"})
    assert (second.identity, second.caption, dict(second.sidecars)) == ("anna", None, {})
    assert (third.identity, third.split, third.license, third.consent, third.caption) == ("Benjamin", "val", "CC0-1.0", "signed", "He nods.")
    assert (last.identity, last.split) == ("carl", None)
    with fetch(first, tmp_path / "work") as files:
        assert files.video.read_bytes() == FILM
        assert files.video.suffix == ".mp4"
        assert files.sidecars["wav"].read_bytes() == b"sound"
    assert not tree(tmp_path / "work") - {str(tmp_path / "work" / "remote")}


def test_every_film_of_a_folder_is_a_source_or_skipped_with_a_reason(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "in", {"a.mp4": FILM, "empty.mp4": b"", ".hidden.mp4": FILM, ".cache/b.mp4": FILM})
    lay_out(folder, {"bad.mp4": FILM, "bad.json": "{"})
    lay_out(folder, {"list.mp4": FILM, "list.json": "[1]"})
    lay_out(folder, {"split.mp4": FILM, "split.json": '{"split": "test"}', "words.mp4": FILM, "words.txt": b"\xff"})
    lay_out(tmp_path, {"outside/c.mp4": FILM, "outside/secret.txt": "secret"})
    (folder / "link.mp4").symlink_to(folder / "a.mp4")
    (folder / "out.mp4").symlink_to(tmp_path / "outside/c.mp4")
    (folder / "gone.mp4").symlink_to("nowhere")
    (folder / "more").symlink_to(tmp_path / "outside")
    lay_out(folder, {"leak.mp4": FILM})
    (folder / "leak.txt").symlink_to(tmp_path / "outside/secret.txt")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "dir.mp4").mkdir()
    found = find_sources(str(folder))
    assert ids(found) == ["a", "link"]
    told = {Path(address).name: reason for address, reason in reasons(found).items()}
    expected = {
        "empty.mp4": "empty",
        ".hidden.mp4": "hidden",
        "b.mp4": "hidden",
        "bad.mp4": "beside it can not be read",
        "list.mp4": "no object",
        "split.mp4": "expected train or val",
        "words.mp4": "beside it can not be read",
        "out.mp4": "leads out",
        "gone.mp4": "No such file",
        "more": "link to a folder",
        "leak.mp4": "leads out",
        "pipe.mp4": "a pipe",
    }
    assert set(told) == set(expected)
    for name, words in expected.items():
        assert words in told[name]


def test_odd_names_get_plain_ids_and_are_read(tmp_path: Path) -> None:
    for name in ODD_NAMES:
        (tmp_path / name).write_bytes(FILM)
    (tmp_path / os.fsdecode(b"no-\xff-utf8.mp4")).write_bytes(FILM)
    (tmp_path / f"{'y' * 248}.mp4").write_bytes(FILM)  # a sidecar's name would be too long for the disk
    found = find_sources(str(tmp_path))
    assert len(found.sources) == len(ODD_NAMES) + 1
    assert len(set(ids(found))) == len(found.sources)
    assert all(PLAIN.fullmatch(id_) for id_ in ids(found))
    assert [entry.reason for entry in found.skipped] == ["its name is no UTF-8, which tables and shards need; rename it"]
    found.skipped[0].address.encode()
    for source in found.sources:
        with fetch(source, tmp_path / "work") as files:
            assert files.video.read_bytes() == FILM


def test_a_name_that_looks_like_a_member_of_a_shard_is_a_file(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a::b.mp4": FILM})
    with fetch(find_sources(str(tmp_path)).sources[0], tmp_path / "work") as files:
        assert files.video == tmp_path / "a::b.mp4"


def test_one_film_is_an_input(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.mp4": FILM, "b.mp4": FILM, "a.txt": "hello"})
    (source,) = find_sources(str(tmp_path / "a.mp4")).sources
    assert (source.id, source.caption) == ("a", "hello")


def test_ids_stay_when_others_come(tmp_path: Path) -> None:
    """Pairs that would get one id if a path were only made plain."""
    names = ["a/b.mp4", "a-b.mp4", "a--b.mp4", "a b.mp4", "a_b.mp4", "a/b.mov", "a/b.MP4", "a/-b.mp4", "a-/b.mp4", "x/a/b.mp4"]
    names += ["视频.mp4", "影片.mp4"]
    alone = {}
    for number, name in enumerate(names):
        lay_out(tmp_path / str(number), {name: FILM})
        alone[name] = find_sources(str(tmp_path / str(number))).sources[0].id
    together = lay_out(tmp_path / "all", dict.fromkeys(names, FILM))
    assert {os.path.relpath(source.address, together): source.id for source in find_sources(str(together)).sources} == alone
    assert len(set(alone.values())) == len(names)
    assert len(plain_id(PurePosixPath("x" * 300 + ".mp4"))) <= MAX_ID


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_every_container_is_found(tmp_path: Path, suffix: str) -> None:
    lay_out(tmp_path, {f"a{suffix.upper()}": FILM})
    assert len(find_sources(str(tmp_path)).sources) == 1


def test_an_input_that_is_not_there_is_an_error(tmp_path: Path, buckets: dict[str, bytes]) -> None:
    lay_out(tmp_path, {"videos/a.mp4": FILM})
    buckets["studio/a.mp4"] = FILM
    for address, words in {
        str(tmp_path / "vidoes"): "Did you mean",
        str(tmp_path / "none.csv"): "no file",
        str(tmp_path / "none.tar"): "no shard",
        "s3://studio/none": "s3://studio/none",
        "s5://studio/none": "s5",
        "pipe:cat /etc/passwd": "runs a command",
        "memory://none-such": "memory://none-such",
    }.items():
        with pytest.raises(UserError, match=re.escape(words)):
            find_sources(address)


def test_objects_that_can_not_be_read_are_told_one_by_one(tmp_path: Path, buckets: dict[str, bytes]) -> None:
    buckets |= {"in/a.mp4": FILM, "in/b.mp4": b"", "in/.c.mp4": FILM, "in/d.mp4": FILM, "in/d.forbidden.txt": b"", "in/forbidden.mp4": FILM}
    buckets |= {"in/e.mp4": FILM, "in/e.json": b"{"}
    found = find_sources("s3://in")
    assert ids(found) == ["a", "d", "forbidden"]
    assert set(reasons(found)) == {"s3://in/b.mp4", "s3://in/.c.mp4", "s3://in/e.mp4"}
    with pytest.raises(MediaError, match="RuntimeError: no credentials"), fetch(found.sources[2], tmp_path):
        pass
    del buckets["in/a.mp4"]
    with pytest.raises(MediaError, match="FileNotFoundError"), fetch(found.sources[0], tmp_path):
        pass
    assert not list(tmp_path.glob("remote/*"))


# --- tables -----------------------------------------------------------------------------------------------------------------------------------------

ROWS: list[dict[str, Any]] = [
    {"path": "one.mp4", "speaker": "Anna", "start": "0:01.5", "end": 4, "text": "She says \"no\", twice.", "licence": "CC0-1.0", "mood": "calm"},
    {"path": "sub/two.mp4", "speaker": "Ben", "start": None, "end": None, "text": "two\nlines", "licence": None, "mood": "glad"},
    {"path": "one.mp4", "speaker": "Anna", "start": "0:05", "end": "1:01:01", "text": None, "licence": "CC0-1.0", "mood": "sad"},
]


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        rows = [{name: None if value is None else str(value) for name, value in row.items()} for row in rows]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows))
    else:
        import csv

        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter={".csv": ",", ".tsv": "\t"}[path.suffix])
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("where", ["here", "s3"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_gives_its_rows(tmp_path: Path, suffix: str, where: str, buckets: dict[str, bytes]) -> None:
    path = write_table(tmp_path / f"rows{suffix}", ROWS)
    lay_out(tmp_path, {"one.mp4": FILM, "one.txt": "beside", "sub/two.mp4": FILM})
    if where == "s3":
        buckets |= {f"set/{file.relative_to(tmp_path)}": file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        path = "s3://set/" + path.name  # type: ignore[assignment]
    found = find_sources(str(path))
    assert not found.skipped
    one, two, three = found.sources
    assert [(source.start_s, source.end_s) for source in found.sources] == [(1.5, 4.0), (None, None), (5.0, 3661.0)]
    assert [source.identity for source in found.sources] == ["Anna", "Ben", "Anna"]
    assert (one.caption, two.caption, three.caption) == ('She says "no", twice.', "two\nlines", None if where == "s3" else "beside")
    assert [source.license for source in found.sources] == ["CC0-1.0", None, "CC0-1.0"]
    assert [dict(source.metadata) for source in found.sources] == [{"mood": "calm"}, {"mood": "glad"}, {"mood": "sad"}]
    assert len(set(ids(found))) == 3
    assert two.id == "sub--two"
    with fetch(two, tmp_path / "work") as files:
        assert files.video.read_bytes() == FILM


def test_columns_may_have_any_name(tmp_path: Path) -> None:
    path = write_table(tmp_path / "rows.csv", [{"Datei": "a.mp4", "Wer": "Anna"}])
    with pytest.raises(UserError, match="no column of videos, only Datei, Wer"):
        find_sources(str(path))
    (source,) = find_sources(str(path), columns={"video": "Datei", "identity": "Wer"}).sources
    assert (source.address, source.identity) == (str(tmp_path / "a.mp4"), "Anna")
    with pytest.raises(UserError, match="Did you mean Datei"):
        find_sources(str(path), columns={"video": "Date"})
    with pytest.raises(UserError, match="Did you mean video"):
        find_sources(str(path), columns={"vidoe": "Datei"})


def test_a_faulty_row_is_told_by_its_line_and_the_others_stay(tmp_path: Path) -> None:
    lines = [
        "video,start,end,split",
        '"a\nb.mp4",0,1,',  # lines 2 and 3
        "b.mp4,zero,1,",
        ",0,1,",
        "c.mp4,5,2,",
        "d.mp4,0,1,,surplus",
        "",
        "e.mp4,-1,2,",
        "f.mp4,0,1,test",
        "g.mp4,0,1,val",
        "g.mp4,0,1,val",
        "/,0,1,",
        "h.mp4,nan,,",
    ]
    lay_out(tmp_path, {"rows.csv": "\r\n".join(lines).replace('"a\r\n', '"a\n')})
    found = find_sources(str(tmp_path / "rows.csv"))
    told = {int(address.rpartition(":")[2]): reason for address, reason in reasons(found).items() if address.rpartition(":")[2].isdigit()}
    assert [Path(source.address).name for source in found.sources] == ["a\nb.mp4", "g.mp4"]
    expected = {4: "start is 'zero'", 5: "video is empty", 6: "end is 2", 7: "5 fields", 9: "start is '-1'"}
    expected |= {12: "same recording as", 13: "no file", 14: "nan"}
    for line, words in expected.items():
        assert words in told[line], (line, told)
    assert "expected train or val" in reasons(found)[str(tmp_path / "f.mp4")]
    assert len(found.skipped) == 9

    lay_out(tmp_path, {"rows.jsonl": '{"video": "a.mp4"}\n{"video": }\n[1]\n{"video": "b.mp4", "start": true}\n{"path": "c.mp4"}\n' + "[" * 100_000})
    found = find_sources(str(tmp_path / "rows.jsonl"))
    assert ids(found) == ["a"]
    assert [entry.address.removeprefix(f"{tmp_path}/") for entry in found.skipped] == [
        "rows.jsonl:2, column 11",
        "rows.jsonl:3",
        "rows.jsonl:6",
        "rows.jsonl:4",
        "rows.jsonl:5",
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"video\n", "no rows"),
        ("a.csv", "vidéo,x\nä.mp4,1\n".encode("latin-1"), "UTF-8"),
        ("a.csv", b"video,video\na,b\n", "two columns have one name"),
        ("a.csv", b"video\n" + b"x" * 200_000, "can not be read as a table"),
        ("a.jsonl", b"no json\n", "no column of videos, only broken rows"),
        ("a.parquet", b"PAR1 no parquet", "as Parquet"),
        ("a.tar", b"no tar at all" * 100, "no plain tar"),
    ],
)
def test_what_is_no_table_or_shard_is_an_error(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        find_sources(str(tmp_path / name))


def test_semicolons_of_spreadsheets_are_understood(tmp_path: Path) -> None:
    lay_out(tmp_path, {"rows.csv": "\ufeffvideo;caption\na.mp4;eins, zwei\n"})
    (source,) = find_sources(str(tmp_path / "rows.csv")).sources
    assert source.caption == "eins, zwei"


def test_numbers_of_a_table_with_gaps_stay_words(tmp_path: Path) -> None:
    """A column of whole numbers with a gap comes as floats, the gap as NaN."""
    gap = float("nan")
    rows = [{"video": "a.mp4", "speaker": 7.0, "start": 1.0}, {"video": "b.mp4", "speaker": gap, "start": gap}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = find_sources(str(tmp_path / "rows.parquet"))
    assert [(source.identity, source.start_s) for source in found.sources] == [("7", 1.0), ("b", None)]


def test_addresses_of_the_web_may_be_signed(tmp_path: Path, buckets: dict[str, bytes]) -> None:
    signed = "https://host/films/a%20b.mp4?signature=" + "x/y.z" * 100
    lay_out(tmp_path, {"rows.jsonl": json.dumps({"video": signed})})
    (source,) = find_sources(str(tmp_path / "rows.jsonl")).sources
    assert source.address == signed
    assert source.identity == "a%20b"
    assert PLAIN.fullmatch(source.id)
    buckets["films/" + "z" * 400 + ".odd" * 100] = FILM
    with fetch(Source("id", "s3://" + next(iter(buckets)), "x"), tmp_path / "work") as files:
        assert files.video.name == "file.mp4"


# --- shards -----------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["here", "s3"])
def test_a_shard_gives_its_samples(tmp_path: Path, where: str, buckets: dict[str, bytes]) -> None:
    tar = tar_of(
        tmp_path / "000.tar",
        {
            "x/0001.mp4": FILM,
            "x/0001.txt": b"first",
            "x/0001.OTHER.wav": b"other",
            "y/0001.mp4": FILM * 2,
            "y/0001.json": b'{"identity": "Ben"}',
            "0002.latent.pth": b"pickle",
            "0003.jpg": b"picture",
            "no-suffix": b"",
        },
    )
    address = str(tar)
    if where == "s3":
        buckets["set/000.tar"] = tar.read_bytes()
        address = "s3://set/000.tar"
    found = find_sources(address)
    first, second = found.sources
    assert (first.caption, set(first.sidecars), second.identity) == ("first", {"txt", "other.wav"}, "Ben")
    assert len({first.id, second.id}) == 2
    told = reasons(found)
    assert "pickle" in told[f"0002.latent.pth::{address}"]
    assert "no video among jpg" in told[f"0003::{address}"]
    assert f"no-suffix::{address}" in told
    with fetch(second, tmp_path / "work") as files:
        assert files.video.read_bytes() == FILM * 2
    with fetch(first, tmp_path / "work") as files:
        assert files.sidecars["other.wav"].read_bytes() == b"other"
    assert not list(tmp_path.glob("work/remote/*"))


def test_a_shard_that_was_cut_is_told(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "000.tar", {"a.mp4": FILM * 1000, "b.mp4": FILM * 1000})
    (source, _) = find_sources(str(tar)).sources
    data = tar.read_bytes()
    tar.write_bytes(data[: len(data) // 4])
    with pytest.raises(MediaError, match="was cut"):
        find_sources(str(tar))
    with pytest.raises(MediaError, match="was cut"), fetch(source, tmp_path / "work"):
        pass
    os.unlink(tar)
    with pytest.raises(MediaError, match=r"000\.tar"), fetch(source, tmp_path / "work"):
        pass


def test_nothing_is_written_outside_whatever_names_say(tmp_path: Path, buckets: dict[str, bytes]) -> None:
    """A tree of canaries stays as it is."""
    outside = lay_out(tmp_path / "outside", {"canary.mp4": "canary"})
    evil = ["../../outside/evil.mp4", f"/{outside}/evil.mp4", "../evil.mp4", "a/../../evil.mp4"]
    evil += ["..%2fevil.mp4", "CON.mp4", "..\\evil.mp4", "~/evil.mp4"]
    links = [("l.mp4", tarfile.SYMTYPE, "/etc/passwd"), ("h.mp4", tarfile.LNKTYPE, "../x")]
    links += [("d.mp4", tarfile.CHRTYPE, ""), ("f.mp4", tarfile.FIFOTYPE, "")]
    tar = tar_of(tmp_path / "evil.tar", dict.fromkeys(evil, FILM))
    with tarfile.open(tar, "a") as archive:
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    buckets |= {f"in/{name}": FILM for name in evil}
    lay_out(tmp_path / "table", {"rows.jsonl": "\n".join(json.dumps({"video": f"s3://in/{name}"}) for name in evil)})
    before = tree(tmp_path)
    work = tmp_path / "work"
    fetched = 0
    for address in (str(tar), "s3://in", str(tmp_path / "table/rows.jsonl")):
        found = find_sources(address)
        for source in found.sources:
            assert PLAIN.fullmatch(source.id)
            with fetch(source, work) as files:
                assert files.video.read_bytes() == FILM
                assert files.video.resolve().is_relative_to(work)
                fetched += 1
            assert {path for path in tree(tmp_path) - before if not path.startswith(str(work))} == set()
    assert fetched >= 2 * len(evil)
    assert (outside / "canary.mp4").read_text() == "canary"
    linked = reasons(find_sources(str(tar)))
    assert all(linked[f"{name}.mp4::{tar}"] == "no regular file" for name in "lhdf")
