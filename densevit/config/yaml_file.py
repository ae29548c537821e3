"""Read and write YAML with the numbers and booleans of YAML 1.2.

PyYAML reads YAML 1.1, where `1e-3` is a string, `no` and `off` are booleans, `010` is eight, and
the last of two equal keys silently wins. Here numbers and booleans follow YAML 1.2 (core schema,
section 10.3.2) and a duplicate key is an error. Only plain data is built.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from densevit.utils.errors import UserError, reason_of


def load(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Errors: `UserError` naming the file if it cannot be read, is not YAML, has a duplicate key, or
    is not a mapping at the top level.
    """
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """Return the text of a YAML file: UTF-8, or UTF-16 with a byte order mark.

    Errors: `UserError` if it cannot be read.
    """
    try:
        content = path.read_bytes()
        marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        return content.decode("utf-16" if content.startswith(marks) else "utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: is not UTF-8 from byte {error.start}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


_DOCUMENTS = ("but found another document", "begins another document; a file holds one")


def parse(text: str, name: str) -> dict[str, Any]:
    """Return the mapping in YAML text; `name` stands for the file in errors. See `load`."""
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader with fewer types)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}" if mark else ""
        problem = (error.problem or "is not YAML").replace(*_DOCUMENTS)
        raise UserError(f"{name}:{where} {problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: is not YAML: {reason_of(error)}") from None
    except (ValueError, OverflowError) as error:
        raise UserError(f"{name}: holds a number that cannot be read: {error}") from None
    except RecursionError:
        raise UserError(f"{name}: is nested too deeply") from None
    if data is None:
        raise UserError(f"{name}: is empty")
    if not isinstance(data, dict):
        raise UserError(f"{name}: must be a mapping of keys to values, not a {_kind(data)}")
    _check_plain(data, name)
    return data


def _check_plain(value: Any, name: str, depth: int = 0) -> None:
    """Reject data that is not a finite tree of valid text: a recursive alias, a lone surrogate."""
    if depth > 40:
        raise UserError(f"{name}: is nested too deeply, or an alias refers to its own parent")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{name}: {value!r} is not valid text") from None
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    for part in parts if isinstance(parts, list) else []:
        _check_plain(part, name, depth + 1)


def dump(data: dict[str, Any]) -> str:
    """Return YAML text that `parse` reads back to equal data, keys in the given order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def is_plain_text(text: str) -> bool:
    """Return True if YAML reads this without quotes as text: not as a number, boolean or null."""
    return not any(re.fullmatch(pattern, text) for _, pattern, _ in _SCALARS)


class _Loader(yaml.SafeLoader):
    """A SafeLoader with the scalars of YAML 1.2 and unique keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is not a name", key_node.start_mark
                )
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            if re.search(r":\S", key):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} holds a colon; a space belongs behind it",
                    key_node.start_mark,
                )  # fmt: skip
            keys.add(key)
        return super().construct_mapping(node, deep=deep)


if TYPE_CHECKING:
    from yaml import SafeDumper as _BaseDumper
else:
    # libyaml's emitter is ten times as fast, if PyYAML was built with it.
    _BaseDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_BaseDumper):
    """A SafeDumper that quotes text that `_Loader` would read as a number or boolean."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)


def _install_scalars() -> None:
    for cls in (_Loader, _Dumper):
        cls.yaml_implicit_resolvers = {
            first: [(tag, regexp) for tag, regexp in pairs if tag == "tag:yaml.org,2002:merge"]
            for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
        for name, pattern, first in _SCALARS:
            regexp = re.compile(rf"^(?:{pattern})$")
            cls.add_implicit_resolver(f"tag:yaml.org,2002:{name}", regexp, list(first))
    _Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
    _Loader.yaml_constructors = {
        tag: build
        for tag, build in _Loader.yaml_constructors.items()
        if tag is None
        or tag.rpartition(":")[2] in ("map", "seq", "str", "int", "float", "bool", "null")
    }


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _kind(data: object) -> str:
    names = {list: "list", str: "text", int: "number", float: "number", bool: "boolean"}
    return names.get(type(data), type(data).__name__)


_install_scalars()
