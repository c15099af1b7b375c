"""Loggers of Lightning's whose package is not installed are named before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from flowact.errors import UserError

#: last part of the class path -> module that it needs, and how to get it
PACKAGES = {
    "WandbLogger": ("wandb", "pip install 'flowact[wandb]'"),
    "MLFlowLogger": ("mlflow", "pip install mlflow"),
    "CometLogger": ("comet_ml", "pip install comet_ml"),
    "LitLogger": ("litlogger", "pip install litlogger"),
}


def check_loggers(config: Mapping[str, Any]) -> None:
    """Whether the packages are there that a recipe's loggers need.

    Raises:
        UserError: one is not, with the command that installs it.
    """
    given = (config.get("trainer") or {}).get("logger")
    for place, spec in enumerate(given) if isinstance(given, list) else [(None, given)]:
        name = str(spec.get("class_path")).rpartition(".")[2] if isinstance(spec, Mapping) else ""
        at = "trainer.logger" if place is None else f"trainer.logger[{place}]"
        if name == "NeptuneLogger":
            raise UserError(f"{at}: Neptune has ended its service, and Lightning its logger; there is {', '.join(PACKAGES)}")
        if name in PACKAGES:
            package, command = PACKAGES[name]
            if find_spec(package) is None:
                raise UserError(f"{at}: {name} needs the package '{package}', which is not installed: {command}")
