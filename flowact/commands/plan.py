"""`flowact plan RECIPE`: what a training and its stream will cost, without building them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re

from flowact.errors import UserError
from flowact.recipe import load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe, what it is to run on, and what no data say."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a packaged recipe such as base/pretraining_1.3B.yaml")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="values to replace, such as data.init_args.batch_size=2")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    group = parser.add_argument_group("devices")
    words = "h100, h200, a100, rtx4090, cpu (this machine), or TFLOP/s,TB/s,GiB of another (default: %(default)s)"
    group.add_argument("--device", default="h100", help=words)
    group.add_argument("--processes", type=int, metavar="N", help="devices (default: the recipe's)")
    group.add_argument("--zero", type=int, choices=(0, 1, 2, 3), help="ZeRO stage (default: the recipe's)")
    words = "share of the device's peak that is reached (default: 0.4; published work reaches 0.3 to 0.6)"
    group.add_argument("--utilisation", type=float, metavar="SHARE", help=words)
    group = parser.add_argument_group("data that are not there yet")
    group.add_argument("--size", metavar="HxW", help="height and width of the picture in pixels, such as 480x832")
    words = "folder of an autoencoder, or a class of diffusers in its released size, such as AutoencoderKLWan; also counts decoding"
    group.add_argument("--autoencoder", metavar="FOLDER", help=words)
    group.add_argument("--strides", metavar="TxS", help="video frames of a latent frame and pixels of a latent cell (default: by latent channels)")
    group.add_argument("--text-tokens", type=int, metavar="N", help="tokens of a caption (default: the data's, else 512)")
    group = parser.add_argument_group("the stream")
    group.add_argument("--micro-steps", type=int, metavar="M", help="evaluations per stair (default: what the stage says, else 1)")
    group.add_argument("--guidance", type=float, default=1.0, metavar="W", help="classifier-free guidance scale; 1 is none (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    for option, value, least in (("--processes", args.processes, 1), ("--text-tokens", args.text_tokens, 1), ("--micro-steps", args.micro_steps, 1)):
        if value is not None and value < least:
            raise UserError(f"{option} {value}: must be at least {least}")
    if args.utilisation is not None and not 0 < args.utilisation <= 1:
        raise UserError(f"--utilisation {args.utilisation:g}: a share of the peak is above 0 and at most 1")
    recipe = load_recipe(args.recipe, args.overrides, args.trust)
    # imports torch and lightning: after the recipe is known to be readable
    from flowact.budget import UTILISATION, Wishes, find_device, make_plan, show

    wishes = Wishes(parse_size(args.size), _pair(args.strides, "--strides", "4x8"), args.text_tokens, args.autoencoder)
    plan = make_plan(
        recipe,
        find_device(args.device),
        wishes=wishes,
        processes=args.processes,
        zero=args.zero,
        utilisation=args.utilisation or UTILISATION,
        micro_steps=args.micro_steps,
        guidance=args.guidance,
    )
    plan = dataclasses.replace(plan, recipe=args.recipe)
    if args.json:
        print(json.dumps(dataclasses.asdict(plan), indent=2))
    else:
        show(plan)
    return 0


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Height and width of --size."""
    return _pair(text, "--size", "480x832")


def _pair(text: str | None, option: str, example: str) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise UserError(f"{option} {text}: write two numbers with an x between them, such as {example}")
    return int(found[1]), int(found[2])
