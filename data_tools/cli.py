"""`flowact-data VERB ...`: one verb, one file; only the verb that is asked for is imported."""

from __future__ import annotations

from flowact.commands.quiet import silence_libraries
from flowact.program import Program

#: verb -> module, one line of help
VERBS = {
    "synth": ("data_tools.synth", "render clips of synthetic people who speak recorded speech, with exact truth"),
    "probe": ("data_tools.probe", "what a media file holds: streams, frame rate, frames decoded against frames claimed"),
    "build": ("data_tools.build", "recordings into a data set, with a reason for every clip that is in or out"),
    "init": ("data_tools.init", "look at a folder of recordings and write a commented recipe for `build`"),
    "status": ("data_tools.status", "how far a build is, what it keeps, what each step took"),
    "explain": ("data_tools.explain", "why a clip is in or out: every score, rule and decision"),
    "append": ("data_tools.append", "more recordings into a built data set; its shards stay as they are"),
    "pack": ("data_tools.pack", "clips or videos into shards with indexes, split by identity"),
    "encode": ("data_tools.encode", "latents, sound and text features of every clip, as columns beside the shards"),
    "index": ("data_tools.index", "make indexes for shards that came without"),
    "inspect": ("data_tools.inspect", "a picture of a shard's clips, or of what the model sees of them"),
    "report": ("data_tools.report", "a page to look at: what was kept, what was lost to which threshold, clips with sound"),
    "lint": ("data_tools.lint", "decode everything, check everything, print what to exclude"),
    "stats": ("data_tools.stats", "clips, hours, identities, share of states"),
    "split": ("data_tools.split", "assign people to train and val anew; columns move along"),
    "merge": ("data_tools.merge", "several datasets into one"),
    "edit": ("data_tools.edit", "delete or relabel clips, rename a person; columns follow"),
    "export": ("data_tools.export", "a copy that Hugging Face datasets or Megatron-Energon reads"),
    "doctor": ("data_tools.doctor", "what is installed for which step, and whether a dataset suits a run"),
    "take": ("data_tools.take", "a clip as files: sound, picture and prompts for `flowact generate`"),
}
PROGRAM = Program(
    "flowact-data",
    "Prepare clips for FlowAct: shards, features, checks.",
    VERBS,
    silence_libraries,
    go_on="what is finished is kept; run the same command again to go on",
)
main = PROGRAM.main
