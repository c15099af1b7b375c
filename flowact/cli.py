"""`flowact VERB ...`: finds the verb's file and is quick because it imports nothing else."""

from __future__ import annotations

from flowact.commands.quiet import silence_libraries
from flowact.program import Program

#: verb -> module, one line of help
VERBS = {
    "quickstart": ("flowact.commands.quickstart", "render a character, train every stage at toy size, stream a clip and measure it"),
    "fit": ("flowact.commands.fit", "train a stage from a recipe"),
    "validate": ("flowact.commands.validate", "run a recipe's validation on a checkpoint"),
    "generate": ("flowact.commands.generate", "stream a video from sound, a picture and prompts"),
    "serve": ("flowact.commands.serve", "talk to a live avatar in the browser"),
    "evaluate": ("flowact.commands.evaluate", "measure a checkpoint on shards"),
    "convert": ("flowact.commands.convert", "import the weights of another library's model, or export a checkpoint to it"),
    "export": ("flowact.commands.export", "write a checkpoint as merged weights, or its LoRA for peft or ComfyUI"),
    "lora": ("flowact.commands.lora", "extract a LoRA from two checkpoints"),
    "list": ("flowact.commands.listing", "components that recipes can name, by kind"),
    "new": ("flowact.commands.new", "write a plugin to start from: a component, its test and its page"),
    "describe": ("flowact.commands.describe", "arguments, defaults and a YAML example of a component"),
    "check": ("flowact.commands.check", "find every mistake in a recipe without building anything"),
    "plan": ("flowact.commands.plan", "what a recipe will cost: parameters, operations, memory, predicted times"),
    "diff": ("flowact.commands.diff", "where two recipes or checkpoints differ"),
    "completion": ("flowact.commands.completion", "a script after which the shell completes both programs"),
    "doctor": ("flowact.commands.doctor", "whether this machine has what FlowAct needs"),
}
PROGRAM = Program("flowact", "Train, distil and stream interactive humanoid video models.", VERBS, silence_libraries)
main = PROGRAM.main
