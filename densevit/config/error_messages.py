"""Turn pydantic's validation errors into one line for the user."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from densevit.utils.errors import nearest

# Arguments of timm's Vision Transformers that are often taken for fields.
_OF_NETWORK = {
    "img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias",
    "init_values", "class_token", "global_pool", "reg_tokens", "dynamic_img_size", "drop_rate",
    "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "weight_init", "in_chans",
}  # fmt: skip


def hint_for(name: str, fields: Iterable[str]) -> str:
    """Return a hint for an unknown field or flag: the nearest, or where one of timm belongs."""
    known = set(fields)
    if name in _OF_NETWORK and "model_kwargs" in known:
        return f"it is an argument of the network: model_kwargs: {{{name}: ...}}"
    if name.lstrip("-").replace("-", "_") in _OF_NETWORK and "--model-kwargs" in known:
        key = name.lstrip("-").replace("-", "_")
        return f"it is an argument of the network: --model-kwargs '{{{key}: ...}}'"
    return nearest(name, known)


def explain(problem: Mapping[str, Any], fields: Iterable[str]) -> str:
    """Format one of pydantic's error records as `key: what is wrong and what is valid`."""
    error, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    parts = [str(p) for p in problem["loc"]]
    key = ".".join(p for p in parts if re.match(r"^\w[\w.-]*$", p) and p not in _BRANCHES)
    if error == "extra_forbidden":
        return f"{key}: unknown key; {hint_for(parts[-1], fields)}"
    if error == "missing":
        return f"{key}: is missing"
    if error == "literal_error":
        valid = re.findall(r"'([^']*)'", context["expected"])
        other = " or a whole number" if key == "query_patches" else ""
        return f"{key}: {_quoted(value)} is not valid{other}; {nearest(value, valid)}"
    if error == "string_pattern_mismatch" and key == "init_sha256":
        return f"{key}: {_quoted(value)} must be 16 to 64 digits of a SHA-256 (0-9 and a-f)"
    if error == "string_pattern_mismatch":
        return f"{key}: {_quoted(value)} must be a name of letters, digits, '.', '_' and '-'"
    limits = {
        "greater_than": "must be greater than {gt}",
        "greater_than_equal": "must be at least {ge}",
        "less_than": "must be less than {lt}",
        "less_than_equal": "must be at most {le}",
    }
    if error in limits:
        return f"{key}: {_quoted(value)} is out of range; it {limits[error].format(**context)}"
    types = {
        "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
        "bool_type": "true or false", "string_type": "text", "dict_type": "a mapping",
        "list_type": "a list", "finite_number": "a finite number",
    }  # fmt: skip
    if error in types:
        other = " or auto" if key == "learning_rate" else ""
        return f"{key}: {_quoted(value)} must be {types[error]}{other}"
    if error == "value_error":
        message = str(context["error"])
        return f"{key}: {_quoted(value)}{' ' if message.startswith('must') else ': '}{message}"
    return f"{key}: {_quoted(value)}: {problem['msg']}"


# Parts of an error's location that name pydantic's branches, not the user's keys.
_BRANCHES = {
    "int", "float", "str", "list", "dict", "function-before", "[key]", "BenchmarkFolder",
}  # fmt: skip


def _quoted(value: object) -> str:
    words = isinstance(value, bool) or value is None
    text = str(value).lower().replace("none", "null") if words else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
