"""Laws of any component."""

from __future__ import annotations

from flowact.signatures import arguments_of


def check_constructor(cls: type) -> None:
    """The constructor is the config: every argument has a type and a line in the docstring, and the class has a first line."""
    docstring = (cls.__doc__ or "").strip()
    if not docstring:
        raise AssertionError(f"{cls.__name__} breaks the law 'a component has a docstring'")
    for argument in arguments_of(cls):
        if not argument.type:
            raise AssertionError(f"{cls.__name__} breaks the law 'every argument is typed': {argument.name}")
        if not argument.doc:
            raise AssertionError(f"{cls.__name__} breaks the law 'every argument is described under Args:': {argument.name}")
