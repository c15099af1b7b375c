"""`flowact export`: a checkpoint as merged weights, or its LoRA as a folder for peft or ComfyUI."""

from __future__ import annotations

import argparse

from flowact.commands.lora import print_report, progress_of
from flowact.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to write, how, and where to."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; it must not exist yet")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--merge", action="store_true", help="a checkpoint of all weights, which needs no base")
    what.add_argument("--diffusers", action="store_true", help="the same as a folder in the layout of diffusers, which FlowAct reads too")
    what.add_argument("--lora", choices=("peft", "comfyui"), help="the LoRA: a folder that peft loads, or lora.safetensors with the names of ComfyUI")
    parser.add_argument("--base", metavar="DIR", help="where the base of the LoRA is now, if it was moved")
    parser.add_argument(
        "--add", metavar="PATH", help="with --merge or --diffusers: merge this LoRA too, a folder for peft or ComfyUI or a .safetensors file"
    )
    parser.add_argument("--eight-bit", action="store_true", help="with --merge: a quarter of the bytes; weights are rounded to 8 bits a number")
    parser.add_argument("--trained", action="store_true", help="the trained weights, not their moving average")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Write, read back, compare, and only then put it in its place.

    Raises:
        UserError: options that do not go together, a place that is taken, a base that is missing, or keys that do not match.
    """
    if args.add and args.lora:
        raise UserError(f"--add {args.add} merges a LoRA into all weights, so it goes with --merge or --diffusers")
    if args.eight_bit and not args.merge:
        raise UserError("--eight-bit rounds all weights, so it goes with --merge")
    from flowact.checkpoints import open_checkpoint
    from flowact.models.lora_files import check_free, export_lora, export_merged

    check_free(args.out)
    say = progress_of(args)
    checkpoint = open_checkpoint(args.checkpoint)
    say(f"read {args.checkpoint}: {'a LoRA' if checkpoint.is_lora else 'all weights'} of stage {checkpoint.lineage['stage']}, step {checkpoint.step}")
    if args.merge:
        report = export_merged(checkpoint, args.out, args.base, args.add, not args.trained, say, args.eight_bit)
    elif args.diffusers:
        from flowact.models.diffusers_folder import export_diffusers
        from flowact.sampling.pipeline import trained_shift

        shift = trained_shift(checkpoint.stage_arguments)
        report = export_diffusers(checkpoint, args.out, args.base, args.add, not args.trained, shift, say)
    else:
        report = export_lora(checkpoint, args.out, args.lora, args.base, not args.trained, say)
    print_report(report, args)
    return 0
