"""Frames that a build of shards gets through in a CPU second, beside decoding and scaling alone with PyAV on one thread.

    python benchmarks/data_build.py [--film FILE --recipe RECIPE]

Without arguments it makes 720p films of 20 s, 30 frames a second, and builds clips of 256 x 256 from them with every step that looks at the picture
or listens to the sound and needs no face. With a film of your own and a recipe of `flowact-data init` it measures what yours costs.

Frames are those of the film. CPU seconds are those of the process on one thread, the least of several runs that take turns; of the build, those of
the command and its worker for three recordings less those for one, halved, so that what every run costs once (reading the recipe, importing) is told
apart. One JSON line.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from measuring import report
from PIL import Image

from data_tools.building.recipe import read_recipe
from data_tools.footage import Footage, View, encode_clip, look, read_clip, survey
from data_tools.inputs import find_sources

WIDTH, HEIGHT, RATE, SECONDS = 1280, 720, 30, 20
RESIZED = (854, 480)
RECIPE = """
name: bench
input: {films}
steps:
  Container:
  Scenes:
  Length: {{max_seconds: {seconds}}}
  Identity:
  Sharpness:
  Exposure:
  Motion:
  Loudness:
  Captions:
  Duplicates:
output: {{size: 256, val_fraction: 0.0}}
"""


def make_film(path: Path, seed: int) -> None:
    """A picture of soft colours behind a window that wanders, and noise to hear."""
    generator = np.random.default_rng(seed)
    colours = Image.fromarray(generator.integers(0, 255, (200, 340, 3), np.uint8))
    scene = np.asarray(colours.resize((WIDTH + 240, HEIGHT + 240), Image.Resampling.BICUBIC))
    speed = generator.uniform(18, 32, 2)
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=RATE, options={"crf": "23", "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound: Any = container.add_stream("aac", rate=48_000, layout="stereo")
        for number in range(RATE * SECONDS):
            left, top = int(120 + 110 * np.sin(number / speed[0])), int(120 + 110 * np.cos(number / speed[1]))
            picture = np.ascontiguousarray(scene[top : top + HEIGHT, left : left + WIDTH])
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        for first in range(0, 48_000 * SECONDS, 1024):
            loudness = 0.1 + 0.1 * np.sin(first / 9000 * speed[0] / 25)
            frame = av.AudioFrame.from_ndarray((loudness * generator.standard_normal((2, 1024))).astype(np.float32), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 48_000, first
            container.mux(sound.encode(frame))
        container.mux(sound.encode())


# --- one film, one thread ---------------------------------------------------------------------------------------------------------------------------


def decoded(film: Path) -> Iterator[Any]:
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        yield from container.decode(stream)


def decode(film: Path) -> None:
    for _ in decoded(film):
        pass


def decode_and_resize(film: Path) -> None:
    scaler = VideoReformatter()
    for frame in decoded(film):
        scaler.reformat(frame, *RESIZED, "rgb24", threads=1).to_ndarray()


def decode_and_filter(film: Path, side: int) -> None:
    """FFmpeg's own filters at the frames and the size that a clip has."""
    graph: Any = None
    for frame in decoded(film):
        if graph is None:
            graph = av.filter.Graph()
            graph.threads = 1
            graph.link_nodes(
                graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base),
                graph.add("fps", "25"),
                graph.add("crop", f"{frame.height}:{frame.height}"),
                graph.add("scale", f"{side}:{side}:flags=bicubic"),
                graph.add("buffersink"),
            ).configure()
        graph.push(frame)
        while True:
            try:
                graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break


def look_at(film: Path, views: tuple[View, ...]) -> None:
    for block in look(film, views):
        assert block.count


def clip_of(film: Path, found: Footage, side: int, encode: bool) -> None:
    left, count = (found.width - found.height) // 2, int(found.seconds * 25) - 1
    frames = read_clip(film, 0, count, crop=(left, 0, left + found.height, found.height), size=(side, side))
    if encode:
        encode_clip(frames, preset="veryfast")
    else:
        for _ in frames:
            pass


def measure(film: Path, recipe: Path, send: Any) -> None:
    """Frames a CPU second of each, in a process of its own, as workers are."""
    built, _ = read_recipe(recipe)
    source, footage = find_sources(str(film)).sources[0], survey(film)
    watchers = [step.watcher(source, footage) for step in built.chain]
    views = tuple(view for watcher in watchers if watcher is not None for view in watcher.views)
    side = (built.output.pixels or (256, 256))[0]
    calls: dict[str, Callable[[], None]] = {
        "decode": lambda: decode(film),
        "decode and resize": lambda: decode_and_resize(film),
        "decode and filter": lambda: decode_and_filter(film, side),
        "look": lambda: look_at(film, views),
        "read a clip": lambda: clip_of(film, footage, side, encode=False),
        "read and encode a clip": lambda: clip_of(film, footage, side, encode=True),
    }
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(4):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            least[name] = min(least[name], time.process_time() - begin)
    send.send({name: (footage.decoded_frames or 0) / seconds for name, seconds in least.items()})


# --- the command ------------------------------------------------------------------------------------------------------------------------------------


def build_seconds(recipe: Path, films: Path, out: Path) -> float:
    """CPU seconds of the command and of all that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "import sys; from data_tools.cli import main; sys.exit(main())"
    subprocess.run(
        [sys.executable, "-c", code, "build", recipe, "--out", out, "--jobs", "1", f"input={films}"], check=True, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(out)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--film", type=Path, help="of your own; the same is built three times, so leave Duplicates out of its recipe")
    parser.add_argument("--recipe", type=Path, help="for it")
    args = parser.parse_args()
    if (args.film is None) != (args.recipe is None):
        parser.error("give --film and --recipe, or neither")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in ("one", "three"):
            (work / name).mkdir()
        for number in range(3):
            film = work / "three" / f"person{number}{args.film.suffix if args.film else '.mp4'}"
            if args.film:
                shutil.copy(args.film, film)
            else:
                make_film(film, number)
        shutil.copy(film, work / "one" / film.name)
        recipe = args.recipe or work / "recipe.yaml"
        if args.recipe is None:
            recipe.write_text(RECIPE.format(films=work / "one", seconds=SECONDS))

        receive, send = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(film, recipe, send))
        process.start()
        speeds = receive.recv()
        process.join()

        one, three = (min(build_seconds(recipe, work / name, work / "out") for _ in range(3)) for name in ("one", "three"))
        frames = survey(film).decoded_frames or 0
    speeds["build"] = 2 * frames / (three - one)
    peer = speeds["decode and resize"]
    ratios = {
        "look with the steps' views / decode and resize to 480p": speeds["look"] / peer,
        "read a clip / decode and FFmpeg's filters": speeds["read a clip"] / speeds["decode and filter"],
        "whole build / decode and resize to 480p": speeds["build"] / peer,
        "whole build / look, then read and encode a clip": speeds["build"] * (1 / speeds["look"] + 1 / speeds["read and encode a clip"]),
        "seconds that every run costs once": one - frames / speeds["build"],
    }
    spoken = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    what = args.film.name if args.film else f"{WIDTH} x {HEIGHT}, {RATE} fps, {SECONDS} s"
    report("data_build", {name: round(ratio, 3) for name, ratio in ratios.items()}, f"{what}; frames a CPU second: {spoken}")


if __name__ == "__main__":
    main()
