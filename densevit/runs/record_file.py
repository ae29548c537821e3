"""Read a JSON file as a record of a declared type, so that no reader trusts what a file holds.

Every file of a run directory and of a sweep's folder may be damaged, or be somebody else's. Its
`RecordKind` says what it must hold. Keys that the type does not have are kept unchecked: another
version of DenseViT may have written them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import ConfigDict, Field, Strict, TypeAdapter, ValidationError, with_config

from densevit.config.error_messages import explain
from densevit.utils.errors import UserError
from densevit.utils.files import read_bytes

Record = TypeVar("Record")

# JSON's types as they are: "5" is no number, and true is none either.
CHECKED = with_config(ConfigDict(extra="allow", strict=True))

Count = Annotated[int, Strict(), Field(ge=0, lt=2**63)]
# Unix seconds, up to the year 5138: later ones have no date on all systems.
Time = Annotated[float, Strict(), Field(ge=0, le=1e11, allow_inf_nan=False)]
Seconds = Annotated[float, Strict(), Field(ge=0, le=1e12, allow_inf_nan=False)]
Finite = Annotated[float, Strict(), Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class RecordKind(Generic[Record]):
    """A kind of file: the type of its record, and the way out if one is damaged."""

    type: type[Record]
    remedy: str


def read_record(path: Path, kind: RecordKind[Record]) -> Record | None:
    """Return the record in a file, or None if the file does not exist.

    Errors: `UserError` naming the file, the key, what is wrong and what to do.
    """
    try:
        content = read_bytes(path)
    except UserError as error:
        raise UserError(f"{error}; {kind.remedy}") from None
    if content is None:
        return None
    adapter: TypeAdapter[Record] = _adapter(kind)
    try:
        return adapter.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        try:
            return adapter.validate_json(_whole_text(content))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
        except ValueError as error:
            raise UserError(f"{path}: cannot be read: {error}; {kind.remedy}") from None
        except RecursionError:
            raise UserError(
                f"{path}: cannot be read: it is nested too deeply; {kind.remedy}"
            ) from None
    raise UserError(f"{path}: is damaged: {_problem(first)}; {kind.remedy}")


def checked(path: Path, content: Any, kind: RecordKind[Record]) -> Record:
    """Return the JSON data of a file as its record. Errors: `UserError`; see `read_record`."""
    try:
        return _adapter(kind).validate_json(json.dumps(content))  # type: ignore[no-any-return]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{path}: is damaged: {_problem(first)}; {kind.remedy}") from None


@cache
def _adapter(kind: RecordKind[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind.type)


def _whole_text(content: bytes) -> str:
    """Return JSON without halves of characters, which Python writes for bytes of a file name that
    are not UTF-8 and which pydantic does not read."""
    text = json.dumps(json.loads(content.decode("utf-8")), ensure_ascii=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def _problem(first: Any) -> str:
    if first["type"] == "json_invalid":
        return str(first["msg"])
    return explain(first, ()).removeprefix(": ")
