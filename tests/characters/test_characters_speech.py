"""Shipped and user's speech: one loudness, clean ends, held-out parts, errors that name the file."""

from __future__ import annotations

import csv
import wave
from importlib.resources import files
from pathlib import Path

import av
import numpy as np
import pytest

from flowact.characters import speech
from flowact.characters.speech import SPEECH_LEVEL_DB, load_speech, of_split
from flowact.errors import UserError
from flowact.types import SAMPLE_RATE


def sentence(seconds: float, amplitude: float = 0.2, seed: int = 0, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Noise in syllables."""
    count = int(seconds * rate)
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * np.arange(count) / rate)
    return (amplitude * envelope * np.random.default_rng(seed).normal(size=count)).clip(-1, 1).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE, channels: int = 1) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(np.round(samples * 32767).astype("<i2"), channels).tobytes())


def active_level_db(samples: np.ndarray) -> float:
    levels = 10 * np.log10((samples[: len(samples) // 160 * 160].astype(np.float64).reshape(-1, 160) ** 2).mean(1) + 1e-12)
    return 10 * np.log10(np.mean(10 ** (levels[levels > levels.max() - 20] / 10)))


def test_shipped_speech_is_small_whole_and_normalised():
    folder = Path(str(files("flowact") / "assets" / "speech"))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 600_000
    pieces = load_speech()
    assert 60 < sum(piece.seconds for piece in pieces) < 125
    held_out = sum(piece.seconds for piece in of_split(pieces, "val")) / sum(piece.seconds for piece in pieces)
    assert 0.1 < held_out < 0.2
    for piece in pieces:
        assert piece.samples.dtype == np.float32
        assert active_level_db(piece.samples) == pytest.approx(SPEECH_LEVEL_DB, abs=0.5)
    with (folder / "transcripts.tsv").open() as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    assert {row["file"] for row in rows} == {path.name for path in folder.glob("*.opus")}
    assert all(len(row["text"].split()) >= 4 for row in rows)
    for row, piece in zip(rows, pieces, strict=True):
        assert piece.seconds == pytest.approx(float(row["seconds"]), abs=0.1)
    notice = (folder / "NOTICE.md").read_text()
    assert "Allison Smith" in notice
    assert "CC-BY-SA-3.0" in notice


def test_folder_is_resampled_mixed_down_and_brought_to_one_loudness(tmp_path):
    write_wav(tmp_path / "loud.wav", sentence(2, amplitude=0.3))
    write_wav(tmp_path / "quiet.wav", sentence(2, amplitude=0.01, seed=1))
    write_wav(tmp_path / "stereo44.wav", sentence(2, seed=2, rate=44100), rate=44100, channels=2)
    (tmp_path / "notes.txt").write_text("not speech")
    pieces = load_speech(tmp_path)
    assert sorted(piece.name for piece in pieces) == ["loud.wav", "quiet.wav", "stereo44.wav"]
    for piece in pieces:
        assert piece.seconds == pytest.approx(2, abs=0.15)
        assert active_level_db(piece.samples) == pytest.approx(SPEECH_LEVEL_DB, abs=0.5)


def test_silence_at_the_ends_is_cut_and_blips_are_skipped(tmp_path):
    silence = np.zeros(SAMPLE_RATE, np.float32)
    write_wav(tmp_path / "padded.wav", np.concatenate([silence, sentence(1.5), silence]))
    write_wav(tmp_path / "blip.wav", sentence(0.2))
    write_wav(tmp_path / "other.wav", sentence(1.0))
    pieces = {piece.name: piece for piece in load_speech(tmp_path)}
    assert set(pieces) == {"padded.wav", "other.wav"}
    assert pieces["padded.wav"].seconds == pytest.approx(1.5, abs=0.2)


def test_compressed_formats_are_read(tmp_path):
    for suffix, codec in ((".flac", "flac"), (".opus", "libopus"), (".m4a", "aac"), (".mp3", "libmp3lame")):
        with av.open(str(tmp_path / f"talk{suffix}"), "w", format="ogg" if suffix == ".opus" else None) as container:
            stream = container.add_stream(codec, rate=48_000, layout="mono")
            layout = {"flac": "s16", "libopus": "s16"}.get(codec, "fltp")
            samples = sentence(1.2, rate=48_000)[None]
            frame = av.AudioFrame.from_ndarray(
                samples if layout == "fltp" else np.round(samples * 32767).astype(np.int16), format=layout, layout="mono"
            )
            frame.sample_rate = 48_000
            fifo = av.AudioFifo()
            fifo.write(frame)
            size = stream.codec_context.frame_size or 1024
            while (part := fifo.read(size, partial=True)) is not None:
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
    pieces = load_speech(tmp_path)
    assert len(pieces) == 4
    assert all(1.0 < piece.seconds < 1.5 for piece in pieces)


def test_held_out_files_are_chosen_by_name_and_never_all_or_none(tmp_path):
    for i in range(16):
        write_wav(tmp_path / f"line{i}.wav", sentence(0.8, seed=i))
    assert {piece.split for piece in load_speech(tmp_path)} == {"train", "val"}
    names = [f"line{i}.wav" for i in range(60)]
    held_out = speech._held_out(names)
    assert 2 <= len(held_out) <= 18
    assert speech._held_out([*names, "one-more.wav"]) - {"one-more.wav"} == held_out
    assert speech._held_out(["a", "b"]) in ({"a"}, {"b"})


def test_a_single_file_is_split_by_time(tmp_path):
    write_wav(tmp_path / "only.wav", sentence(4))
    train, val = load_speech(tmp_path)
    assert (train.split, val.split) == ("train", "val")
    assert train.seconds + val.seconds == pytest.approx(4, abs=0.2)
    assert val.seconds < train.seconds


def test_long_recordings_are_cut_in_their_pauses(tmp_path):
    pause = np.zeros(SAMPLE_RATE // 2, np.float32)
    write_wav(tmp_path / "talk.wav", np.concatenate([part for i in range(4) for part in (sentence(7, seed=i), pause)]))
    pieces = load_speech(tmp_path)
    assert len(pieces) == 4
    assert all(piece.seconds <= speech.MAX_SECONDS for piece in pieces)
    assert [piece.split for piece in pieces] == ["train"] * 3 + ["val"]
    assert all(piece.seconds == pytest.approx(7.3, abs=0.5) for piece in pieces)


def test_errors_name_the_file_and_the_fix(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_speech(tmp_path / "nowhere")
    with pytest.raises(UserError, match="found nothing"):
        load_speech(tmp_path)
    (tmp_path / "a.doc").write_text("x")
    (tmp_path / "b.doc").write_text("x")
    with pytest.raises(UserError, match=r"2 x \.doc.*\.wav"):
        load_speech(tmp_path)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFFnonsense")
    with pytest.raises(UserError, match=r"cannot decode .*broken\.wav"):
        load_speech(tmp_path)
    write_wav(broken, np.zeros(SAMPLE_RATE, np.float32))
    with pytest.raises(UserError, match=r"broken\.wav is silent"):
        load_speech(tmp_path)
    write_wav(broken, sentence(0.2))
    with pytest.raises(UserError, match="longer sentences"):
        load_speech(tmp_path)
    write_wav(broken, sentence(0.8))
    with pytest.raises(UserError, match="only recording"):
        load_speech(tmp_path)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    samples = sentence(1.0)
    samples[4000] = np.nan
    header = b"RIFF" + (36 + 4 * len(samples)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += (3).to_bytes(2, "little") + (1).to_bytes(2, "little") + SAMPLE_RATE.to_bytes(4, "little") + (4 * SAMPLE_RATE).to_bytes(4, "little")
    header += (4).to_bytes(2, "little") + (32).to_bytes(2, "little") + b"data" + (4 * len(samples)).to_bytes(4, "little")
    (tmp_path / "nan.wav").write_bytes(header + samples.astype("<f4").tobytes())
    with pytest.raises(UserError, match=r"nan\.wav.*finite"):
        load_speech(tmp_path)


def test_damage_at_the_end_costs_only_the_end(tmp_path, caplog):
    path = tmp_path / "cut.mp3"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libmp3lame", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(sentence(3)[None], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        fifo = av.AudioFifo()
        fifo.write(frame)
        while (part := fifo.read(stream.codec_context.frame_size, partial=True)) is not None:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert sum(piece.seconds for piece in load_speech(tmp_path)) == pytest.approx(2, abs=0.3)
