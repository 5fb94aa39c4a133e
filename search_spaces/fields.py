"""Kinds of fields and what they refuse: everything wrong with plain data is one line for its user."""

import codecs
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from errors import UserError, printable, unknown

LARGEST = 2**63 - 1  # the largest integer of PyTorch, Arrow and SQLite


def showable(value: str) -> str:
    """The text; UserError if it holds a character that a page, a terminal or a store cannot take."""
    if printable(value) != value:
        raise UserError(
            f"{value!r} holds a character that cannot be shown: leave it out, and rename a folder, file or "
            "column that is called so"
        )
    return value


def _one_line(value: str) -> str:
    return showable(" ".join(value.split()))


def _encoding(name: str) -> str:
    try:
        "".encode(name)  # codecs.lookup also finds codecs that do not encode text
    except (LookupError, ValueError):
        raise UserError(
            f"encoding {name!r} is none: give utf-8, cp1252, utf-16 or another of Python's"
        ) from None
    return codecs.lookup(name).name


def one_of(kind: str, choices: Iterable[str]) -> AfterValidator:
    """A field's check that its value is one of ``choices``; the message calls the value a ``kind``."""

    def check(value: str) -> str:
        if value not in choices:
            raise unknown(kind, value, choices)
        return value

    return AfterValidator(check)


Text = Annotated[str, Field(min_length=1), AfterValidator(showable)]
ONE_LINE = AfterValidator(_one_line)  # of a sentence, which a file may break into several
Encoding = Annotated[str, AfterValidator(_encoding)]
Count = Annotated[int, Field(gt=0, le=LARGEST)]


class Validated(BaseModel):
    """Plain data that cannot be changed; UserError, one line, for invalid values."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise self.refusal(error) from None

    @classmethod
    def spelled(cls, name: str) -> str:
        """A field's name as the user writes it."""
        return name

    @classmethod
    def refusal(cls, error: ValidationError) -> UserError:
        """The first of Pydantic's complaints as one line; missing keys are named all at once."""
        return user_error(error, cls, cls.spelled)

    def replace(self, **changes: Any) -> Self:
        """A copy with other values, validated again."""
        return type(self)(**dict(self) | changes)


def user_error(
    error: ValidationError, of: type[BaseModel], spelled: Callable[[str], str] = str
) -> UserError:
    """The first of Pydantic's complaints about ``of`` as one line; missing keys are named all at once.

    ``spelled`` gives a field's name as the user writes it.
    """
    title = of.model_config.get("title")
    whole, kind = (title, f"{title} key") if title else (of.__name__, f"field of {of.__name__}")
    complaints = error.errors(include_url=False)
    # an unknown key first: it may be a missing key, misspelled
    first = min(complaints, key=lambda each: each["type"] != "extra_forbidden")
    name = spelled(str(first["loc"][0]) if first["loc"] else "")
    if first["type"] == "extra_forbidden":
        return unknown(kind, name, of.model_fields)
    missing = [spelled(str(each["loc"][0])) for each in complaints if each["type"] == "missing"]
    if missing:
        return UserError(f"{whole} lacks {', '.join(missing)}")
    if first["type"] == "value_error":
        return UserError(str(first["ctx"]["error"]))
    wanted = re.sub(r"^\w+ should ", "must ", first["msg"]).partition(", ")[0]
    given = first["input"]
    shown = repr(given) if isinstance(given, int | float | str | None) else type(given).__name__
    return UserError(f"{name} {wanted}, not {shown}")
