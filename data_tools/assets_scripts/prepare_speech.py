"""Rebuild `flowact/assets/speech` from the Asterisk core sounds.

On Debian or Ubuntu:

    apt-get download asterisk-core-sounds-en-g722 asterisk-core-sounds-en
    for package in asterisk-core-sounds-en*.deb; do dpkg-deb -x "$package" extracted; done
    python -m data_tools.assets_scripts.prepare_speech extracted
"""

from __future__ import annotations

import argparse
import csv
import gzip
from pathlib import Path

import av
import numpy as np

from flowact.characters.speech import clean_speech
from flowact.types import SAMPLE_RATE

SOUNDS = Path("usr/share/asterisk/sounds")
TRANSCRIPTS = Path("usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
OUTPUT = Path(__file__).resolve().parents[2] / "flowact" / "assets" / "speech"
BIT_RATE = 24_000

# Whole sentences of two to six seconds with varied sounds, spoken in a natural tone. Held-out ones share no phrase with the others.
TRAIN = (
    "all-circuits-busy-now", "cannot-complete-as-dialed", "check-number-dial-again", "conf-leaderhasleft", "conf-noempty",
    "confbridge-lock-no-join", "demo-echodone", "demo-nomatch", "demo-thanks", "feature-not-avail-line", "followme/status",
    "pbx-invalidpark", "pls-hold-while-try", "priv-introsaved", "privacy-unident", "queue-youarenext", "speed-dial-empty", "tt-allbusy",
    "tt-weasels", "vm-forward-multiple", "vm-intro", "vm-mailboxfull", "vm-newuser", "vm-nobox", "vm-savefolder", "vm-tmpexists",
)  # fmt: skip
VAL = ("confbridge-begin-glorious-a", "privacy-prompt", "tt-monkeysintro", "vm-sorry", "vm-nonumber", "something-terribly-wrong")


def main() -> None:
    """Decode the chosen prompts, bring them to one loudness and write Opus files with their transcripts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extracted", type=Path, help="folder into which the packages were extracted")
    extracted: Path = parser.parse_args().extracted
    texts = read_transcripts(extracted / TRANSCRIPTS)
    recordings = {path.as_posix(): path for path in extracted.joinpath(SOUNDS).rglob("*.g722")}
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for old in OUTPUT.glob("*.opus"):
        old.unlink()
    rows, seconds = [], {"train": 0.0, "val": 0.0}
    for split, names in (("train", TRAIN), ("val", VAL)):
        for name in names:
            source = next(path for posix, path in recordings.items() if posix.endswith(f"/{name}.g722"))
            samples = clean_speech(decode_g722(source), source)
            target = OUTPUT / f"{name.replace('/', '-').replace('_', '-')}.opus"
            encode_opus(samples, target)
            seconds[split] += len(samples) / SAMPLE_RATE
            rows.append({"file": target.name, "split": split, "seconds": f"{len(samples) / SAMPLE_RATE:.2f}", "text": texts[name]})
    with (OUTPUT / "transcripts.tsv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, ["file", "split", "seconds", "text"], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["file"]))
    size = sum(path.stat().st_size for path in OUTPUT.iterdir())
    print(f"{len(rows)} prompts, {seconds['train']:.1f} s train, {seconds['val']:.1f} s held out, {size / 1000:.0f} kB")


def read_transcripts(path: Path) -> dict[str, str]:
    """Prompt name to its words, first letter made a capital and a full stop at the end."""
    texts = {}
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, colon, text = line.strip().partition(":")
            if not colon or name.startswith(";") or not text.strip():
                continue
            text = " ".join(text.split("(")[0].split())
            texts[name.strip()] = text[:1].upper() + text[1:] + ("" if text[-1:] in ".!?" else ".")
    return texts


def decode_g722(path: Path) -> np.ndarray:
    """Mono float32 samples at 16 kHz."""
    with av.open(str(path), format="g722") as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate(frames).astype(np.float32) / np.float32(2**15)


def encode_opus(samples: np.ndarray, path: Path) -> None:
    """Opus in Ogg."""
    with av.open(str(path), "w", format="ogg", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono", options={"application": "voip", "vbr": "on"})
        stream.bit_rate = BIT_RATE
        pcm = np.round(np.clip(samples, -1, 1) * (2**15 - 1)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


if __name__ == "__main__":
    main()
