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
    """Each name with the value of the first that says it: a flag, one's own file, ``--demo``, a default.

    What a space says that comes with the program is a default.
    """
    return {**default, **demo, **own, **flag}


@dataclass(frozen=True)
class Given:
    """For a space to take over, each as ``ranked`` says.

    ``fields`` are those of a TrialConfig that flags say, ``listed`` the values on an axis ("models"), and
    ``others`` what flags say of the space itself, such as ``trials`` or ``budget``. ``demo`` holds fields,
    ``demo_models`` models and ``demo_ranges`` what is searched of a field under ``--demo``; all three are
    empty without it. ``computed`` gives the fields that nobody said. ``flag`` spells the flag of an option.
    """

    fields: Mapping[str, Any]
    listed: Mapping[str, tuple[Any, ...]]
    others: Mapping[str, Any]
    demo: Mapping[str, Any]
    demo_models: tuple[str, ...]
    demo_ranges: Mapping[str, Any]
    is_own: bool  # whether the space is the user's, and so speaks for the person at the keyboard
    computed: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    flag: Callable[[str], str]

    def ranked(
        self, flag: Mapping[str, Any], says: Mapping[str, Any], demo: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Whoever says it first: a flag, the space, the demo."""
        own, default = (says, {}) if self.is_own else ({}, says)
        return first_said(flag=flag, own=own, demo=demo, default=default)
