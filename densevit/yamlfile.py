"""YAML as a researcher means it.

PyYAML reads YAML 1.1, where `1e-3` is a string, `no` and `off` are booleans, `010` is eight and
the last of two equal keys wins in silence. Here numbers and booleans follow YAML 1.2 (core
schema, section 10.3.2) and a key given twice is an error. Only plain data is ever built.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from densevit.errors import UserError


def load(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Errors: `UserError` naming the file when it cannot be read, is not YAML, holds a key twice,
    or is not a mapping at the top.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {_reason(error)}") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> dict[str, Any]:
    """The mapping in YAML text; `name` stands for the file in errors. See `load`."""
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader with fewer types)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{name}:{where} {error.problem or 'is not YAML'}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: is not YAML: {' '.join(str(error).split())}") from None
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
    """Refuse what is no finite tree of printable text: an alias of itself, half a character."""
    if depth > 40:
        raise UserError(f"{name}: is nested too deeply, or an alias names what holds it")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{name}: {value!r} is no valid text") from None
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    for part in parts if isinstance(parts, list) else []:
        _check_plain(part, name, depth + 1)


def dump(data: dict[str, Any]) -> str:
    """YAML text that `parse` reads back to equal data, keys in the given order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 and unique keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is not a name", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# libyaml's emitter is ten times as fast, where PyYAML was built with it.
class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):
    """SafeDumper that quotes what `_Loader` would otherwise read as a number or boolean."""

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
        kept = {"tag:yaml.org,2002:merge"}
        cls.yaml_implicit_resolvers = {
            first: [(tag, regexp) for tag, regexp in pairs if tag in kept]
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


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _kind(data: object) -> str:
    names = {list: "list", str: "text", int: "number", float: "number", bool: "boolean"}
    return names.get(type(data), type(data).__name__)


_install_scalars()
