"""Options are fields of a Pydantic model: argparse, ``--help``, types and checks follow from them."""

import argparse
import difflib
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any, NoReturn, Self

from pydantic import ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

from addresses import take_credentials
from errors import UserError, printable
from search_spaces.fields import Validated
from sweep.terminal import complain

USAGE_ERROR = 2  # exit code


def option(
    description: str,
    group: str = "",
    metavar: str | None = None,
    *,
    default: Any = None,
    flag: str = "",
    repeated: bool = False,
    **more: Any,
) -> Any:
    """A field of Options.

    ``more`` are Pydantic's constraints, such as ``ge``. ``repeated``: the flag of a list is given once
    per value, not once with all values.
    """
    extra: dict[str, Any] = {"group": group, "metavar": metavar, "flag": flag, "repeated": repeated}
    if "default_factory" not in more:
        more["default"] = default
    return Field(description=description, json_schema_extra=extra, **more)


class Options(Validated):
    """The options of one command; raises UserError, one line, for a value that is not allowed."""

    model_config = ConfigDict(validate_default=True)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        for name, value in self:
            if isinstance(value, str) and printable(value) != value:
                flag = flag_of(type(self), name)
                raise UserError(f"{flag} '{value}' holds a character that cannot stand there")

    @classmethod
    def spelled(cls, name: str) -> str:
        return flag_of(cls, name)

    @field_validator("*", mode="before")
    @classmethod
    def _without_credentials(cls, value: Any) -> Any:
        """Take credentials out of addresses, so that no reader of options sees them."""
        return take_credentials(value) if isinstance(value, str) else value

    @classmethod
    def parse(cls, command: str, argv: Sequence[str], epilog: str = "") -> Self:
        """Read a command line; exits with code 2 for what argparse refuses."""
        parser = _Parser(f"tune_main.py {command}".strip(), cls.__doc__ or "", epilog)
        groups: dict[str, argparse._ActionsContainer] = {"": parser}
        for name, field in cls.model_fields.items():
            group = _extra(field)["group"]
            if group not in groups:
                groups[group] = parser.add_argument_group(group)
            _add(groups[group], flag_of(cls, name), name, field)
        return cls(**vars(parser.parse_all(argv)))

    def words(self) -> list[str]:
        """The command line that gives these options; only those that were given."""
        words: list[str] = []
        for name in self.model_fields_set:
            value, flag = getattr(self, name), flag_of(type(self), name)
            if isinstance(value, bool):
                words += [flag] if value else []
            elif isinstance(value, str) or not isinstance(value, Sequence):
                words += [flag, str(value)]
            elif _extra(type(self).model_fields[name])["repeated"]:
                words += [word for each in value for word in (flag, str(each))]
            else:
                words += [flag, *map(str, value)]
        return words


def flag_of(options: type[Options], name: str) -> str:
    """The flag of a field: ``--max-concurrent``."""
    field = options.model_fields.get(name)
    return (field and _extra(field)["flag"]) or "--" + name.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line with a suggestion, not a page of usage."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, None, description, epilog, formatter_class=layout, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        complain(f"error: {UserError(message)} (see {self.prog} --help)")
        sys.exit(USAGE_ERROR)

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        known, rest = self.parse_known_args(argv)
        if rest:
            near = difflib.get_close_matches(rest[0][:100], list(self._option_string_actions), n=1)
            self.error(f"unknown argument {rest[0]}" + (f": did you mean {near[0]}?" if near else ""))
        return known


def _extra(field: FieldInfo) -> dict[str, Any]:
    return typing.cast(dict[str, Any], field.json_schema_extra)


def _add(group: argparse._ActionsContainer, flag: str, name: str, field: FieldInfo) -> None:
    keywords: dict[str, Any] = {"dest": name, "help": field.description, "default": argparse.SUPPRESS}
    kind, is_list = _value_type(field.annotation)
    if kind is bool:
        group.add_argument(flag, action="store_true", **keywords)
        return
    if is_list:
        keywords |= {"action": "append"} if _extra(field)["repeated"] else {"nargs": "+"}
    keywords |= {"type": kind, "metavar": _extra(field)["metavar"], "required": field.is_required()}
    group.add_argument(flag, **keywords)


def _value_type(annotation: Any) -> tuple[type, bool]:
    """``Sequence[int] | None`` -> (int, True)."""
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    first = next(part for part in parts if part is not types.NoneType)
    inner = typing.get_args(first)
    return (inner[0], True) if inner else (first, False)
