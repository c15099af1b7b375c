"""Whether a recording may be used: its licence, and the consent of the person shown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, final

from data_tools.footage import Footage
from data_tools.inputs import Source
from data_tools.steps.base import Clip, Plain, Plan, Rule, Step
from flowact.data.rights import known
from flowact.errors import UserError

MissingRule = Literal["require", "warn"]
WORDS = {"license": "licence", "consent": "consent of the person shown"}


@final
class Rights(Step):
    """Licence and consent of every recording, from its table's columns or KEY.json beside it; known before a frame is decoded.

    They go with the clip into the sample, the manifest and the dataset's card. What is missing stands in the score `missing`, and rejects where it is
    required. Nothing here is legal advice: it keeps what you know with the data.

    Args:
        license: of recordings that say none themselves, such as CC-BY-4.0; for a folder of one origin.
        consent: of recordings that say none themselves, such as "signed 2026-01, file 12" or "synthetic person".
        license_rule: 'require' rejects recordings without a licence, 'warn' lets them through.
        consent_rule: likewise for consent.
        allowed: licences that are let through, in any case and spacing (cc by 4.0 is CC-BY-4.0); None lets any through.
    """

    thresholds = ("license", "consent", "license_rule", "consent_rule", "allowed")

    def __init__(
        self,
        license: str = "",
        consent: str = "",
        license_rule: MissingRule = "warn",
        consent_rule: MissingRule = "warn",
        allowed: list[str] | None = None,
    ) -> None:
        for name, rule in (("license_rule", license_rule), ("consent_rule", consent_rule)):
            if rule not in ("require", "warn"):
                raise UserError(f"Rights: {name} {rule!r} must be require or warn")
        if allowed is not None and not allowed:
            raise UserError("Rights: allowed is empty, so no recording could pass; name licences such as CC-BY-4.0, or leave it out")
        self.defaults = {"license": license.strip(), "consent": consent.strip()}
        self.rules: dict[str, MissingRule] = {"license": license_rule, "consent": consent_rule}
        self.allowed = allowed
        if allowed is not None and self.defaults["license"] and not self._is_allowed(license):
            raise UserError(f"Rights: license {license!r} is none of those allowed: {', '.join(allowed)}")

    def survey(self, source: Source, footage: Footage) -> Mapping[str, Plain]:
        said = {"license": known(source.license), "consent": known(source.consent)}
        return {**said, "missing": [name for name, value in said.items() if value is None]}

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        return self.survey(clip.recording.source, clip.recording.footage)

    def judge(self, scores: Mapping[str, Plain]) -> Sequence[Rule | None]:
        said = {name: scores[name] or self.defaults[name] or None for name in self.rules}
        stated = [Rule(name, said[name], "is", "stated", said[name] is not None or rule == "warn") for name, rule in self.rules.items()]
        license = said["license"]
        allowed = None if self.allowed is None or license is None else Rule("license", license, "is", self.allowed, self._is_allowed(license))
        return (*stated, allowed)

    def explain(self, rule: Rule) -> str:
        if rule.value is None:
            return f"no {WORDS[rule.score]} is stated; add it to the table or to KEY.json, or state it for all: Rights.{rule.score}"
        return f"the licence is {rule.value}, and only {', '.join(rule.bound)} may be used"

    def apply(self, clip: Clip, scores: Mapping[str, Plain]) -> Plan:
        return clip.with_plan(**{name: scores[name] or default for name, default in self.defaults.items()})

    def _is_allowed(self, license: str) -> bool:
        return self.allowed is not None and _plain(license) in {_plain(name) for name in self.allowed}


def _plain(license: str) -> str:
    return re.sub(r"[^a-z0-9.+]+", "-", license.casefold()).strip("-")
