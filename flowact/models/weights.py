"""Weights in folders of safetensors, as other libraries keep them: one file, or shards with an index. Nothing else is ever opened."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flowact.checkpoints import read_json
from flowact.errors import UserError

#: what diffusers calls the weights of a network
NAME = "diffusion_pytorch_model"
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


class TensorFiles(Mapping[str, Tensor]):
    """Tensors in safetensors files. Files are mapped into memory: a tensor that is asked for is read when its numbers are.

    Args:
        places: name of a tensor -> the file that holds it.
    """

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places = dict(places)
        self._open: dict[Path, Any] = {}

    def __getitem__(self, name: str) -> Tensor:
        path = self._places[name]
        if path not in self._open:
            self._open[path] = _open(path)
        return self._open[path].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, in order of their names."""
        return tuple(sorted(set(self._places.values())))


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error}); fetch it again") from None


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file. A file that is cut short is noticed here.

    Raises:
        UserError: damaged, or not safetensors.
    """
    return list(_open(path).keys())


def read_folder(folder: Path) -> TensorFiles:
    """The tensors of a folder: of its index and shards, or of its one safetensors file. Reads headers only.

    Raises:
        UserError: no safetensors (pickles are refused), a shard that is missing, damaged, outside of the folder or a link out of it, a tensor that
            two shards hold or that is not where the index says, or several files to choose from.
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    own = folder / f"{NAME}.safetensors"
    if len(indices) > 1:
        raise UserError(f"{folder} has several indices of weights: {', '.join(path.name for path in indices)}. Keep the one to convert.")
    if indices:
        return _sharded(folder, indices[0])
    shards = {path: _SHARD.search(path.stem) for path in files}
    if any(shards.values()):
        example = next(path.name for path, found in shards.items() if found)
        raise UserError(f"{folder} holds shards such as {example} but not their index, {NAME}.safetensors.index.json; fetch it too")
    if own not in files and len(files) > 1:
        raise UserError(f"{folder} holds {', '.join(path.name for path in files)}. Keep the one to convert, or call it {own.name}.")
    if not files:
        raise UserError(_no_safetensors(folder))
    path = own if own in files else files[0]
    check_inside(folder, path)
    return TensorFiles(dict.fromkeys(tensor_names(path), path))


def _sharded(folder: Path, index: Path) -> TensorFiles:
    check_inside(folder, index)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index} has no weight_map from tensors to files; fetch it again")
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise UserError(f"{index} names the file '{name}'; a shard is a .safetensors file in the same folder")
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{folder} lacks {len(absent)} of {len(names)} shards that {index.name} lists: {', '.join(absent)}. Fetch them too.")
    held: dict[str, Path] = {}
    for path in (folder / name for name in names):
        check_inside(folder, path)
        for tensor in tensor_names(path):
            if tensor in held:
                raise UserError(f"{folder}: {held[tensor].name} and {path.name} both hold the tensor {tensor}; one of them is not of this model")
            held[tensor] = path
    wrong = [name for name in sorted(held.keys() | places.keys()) if name not in held or held[name].name != places.get(name)]
    if wrong:
        said, found = places.get(wrong[0], "none"), held[wrong[0]].name if wrong[0] in held else "none"
        problem = f"{len(wrong)} tensors are not where {index.name} says; {wrong[0]} should be in {said} and is in {found}"
        raise UserError(f"{folder}: {problem}. Fetch the index and the shards again.")
    return TensorFiles(held)


def check_inside(folder: Path, path: Path) -> None:
    """A file of a folder may be a link within the folder, or as in the Hugging Face cache one from snapshots/REVISION to blobs.

    Raises:
        UserError: it leads elsewhere, or to something that is no file.
    """
    roots = [folder.resolve()]
    cache = next((parent.parent for parent in roots[0].parents if parent.name == "snapshots"), None)
    if cache is not None:
        roots.append(cache / "blobs")
    target = path.resolve()
    if not any(target.is_relative_to(root) for root in roots):
        raise UserError(f"{path} is a link to {target}, outside of the folder; replace it by the file if you trust it")
    if not target.is_file():
        raise UserError(f"{path} is missing, or not a file")


def _no_safetensors(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if not pickles:
        return f"{folder} holds no .safetensors file"
    return (
        f"{folder} holds weights as pickle only ({', '.join(pickles)}), which is never read: loading a pickle runs whatever code is in it. "
        "Fetch the model's safetensors, or where you trust the file, load it with the library that wrote it and save it again with "
        "model.save_pretrained(FOLDER, safe_serialization=True)."
    )


def write_folder(folder: Path, tensors: Iterable[tuple[str, Tensor]], outline: Mapping[str, Tensor], max_shard_bytes: int) -> None:
    """Write tensors as one safetensors file, or as shards with an index. Holds one shard in memory.

    Args:
        folder: exists.
        tensors: in the order of `outline`.
        outline: name -> shape and number type.
        max_shard_bytes: a file is larger only if one tensor is.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in outline.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    places = {}
    stream = iter(tensors)
    for number, names in enumerate(shards, 1):
        file = f"{NAME}.safetensors" if len(shards) == 1 else f"{NAME}-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(dict(islice(stream, len(names))), folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(names, file))
    assert next(stream, None) is None, "the outline names every tensor"
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in outline.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / f"{NAME}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def build_outline(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """The state of a module without its numbers: shapes and number types on the meta device."""
    with torch.device("meta"):
        return build().state_dict()


def build_partly(build: Callable[[], nn.Module], wanted: Callable[[str], bool], seed: int = 0) -> dict[str, Tensor]:
    """Freshly initialised tensors of a module, without memory for the others.

    The module is built twice: on the meta device, to learn the names of its parameters in the order in which the constructor makes them, then in
    earnest, where each parameter that is not wanted goes to the meta device before it is filled.

    Args:
        build: constructs the module, the same way each time.
        wanted: whether the tensor of this name is asked for.
        seed: of the numbers.
    """
    registered: list[tuple[nn.Module, str]] = []
    with torch.device("meta"), _after_each_parameter(lambda module, name: registered.append((module, name))):
        outline = build()
    prefixes = {id(module): f"{prefix}." if prefix else "" for prefix, module in outline.named_modules()}
    keep = [wanted(prefixes[id(module)] + name) if id(module) in prefixes else False for module, name in registered]
    order = iter(keep)

    def release(module: nn.Module, name: str) -> None:
        parameter = module._parameters[name]
        if not next(order) and parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    with torch.random.fork_rng(devices=[]), _after_each_parameter(release):
        torch.manual_seed(seed)
        state = build().state_dict()
    return {name: tensor for name, tensor in state.items() if wanted(name)}


@contextmanager
def _after_each_parameter(call: Callable[[nn.Module, str], None]) -> Iterator[None]:
    """Inside, `call` is told every parameter that a module takes on."""
    register = nn.Module.register_parameter

    def register_and_call(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        call(module, name)

    nn.Module.register_parameter = register_and_call  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
