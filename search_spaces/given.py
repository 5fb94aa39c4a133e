"""What a command says beside its space: flags, ``--demo``, and what follows from the machine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def first_said(
    *,
    flag: Mapping[str, Any],
    own: Mapping[str, Any],
    demo: Mapping[str, Any],
    default: Mapping[str, Any],
) -> dict[str, Any]:
    """Name -> value, from the first source that has it: a flag, the user's own file, ``--demo``, a default.

    The values of a space that comes with the program are defaults.
    """
    return {**default, **demo, **own, **flag}


@dataclass(frozen=True)
class Given:
    """What a space takes over from a command, in the order of ``ranked``.

    From flags: ``fields`` of a TrialConfig, ``listed`` values on an axis ("models"), and ``others`` that
    are the space's own, such as ``trials`` or ``budget``. From ``--demo``, else empty: fields in ``demo``,
    models in ``demo_models``, and the searched ranges of fields in ``demo_ranges``. ``computed`` gives
    fields that no source sets, from those that are set. ``flag`` spells the flag of an option.
    """

    fields: Mapping[str, Any]
    listed: Mapping[str, tuple[Any, ...]]
    others: Mapping[str, Any]
    demo: Mapping[str, Any]
    demo_models: tuple[str, ...]
    demo_ranges: Mapping[str, Any]
    is_own: bool  # whether the space is the user's own file, which ranks before the demo
    computed: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    flag: Callable[[str], str]

    def ranked(
        self, flag: Mapping[str, Any], says: Mapping[str, Any], demo: Mapping[str, Any]
    ) -> dict[str, Any]:
        """``first_said`` of a flag, a space and the demo; the space ranks first if it is the user's own."""
        own, default = (says, {}) if self.is_own else ({}, says)
        return first_said(flag=flag, own=own, demo=demo, default=default)
