"""YAML as the 1.2 core schema defines it, and where PyYAML differs."""

import codecs
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from densevit.config import yaml_file
from densevit.utils.errors import UserError

# What a file may hold, and what it means; or, for a mistake, a part of the message.
READS: list[tuple[str | bytes, dict]] = [
    # Words: only true, false and null mean something.
    *((f"v: {word}", {"v": word}) for word in
      ("yes", "no", "on", "off", "y", "n", "Yes", "NO", "On", "OFF", "none", "None", "nil", "tRue")),
    *((f"v: {word}", {"v": True}) for word in ("true", "True", "TRUE", "!!bool true")),
    *((f"v: {word}", {"v": False}) for word in ("false", "False", "FALSE")),
    *((f"v: {word}", {"v": None}) for word in ("null", "Null", "NULL", "~", "", "!!null ''")),
    # Whole numbers: a leading zero means nothing, and an underscore or a colon makes text.
    *((f"v: {text}", {"v": number}) for text, number in
      (("010", 10), ("007", 7), ("08", 8), ("00", 0), ("0o10", 8), ("0x1F", 31), ("+3", 3),
       ("-0", 0), ("!!int '3'", 3), ("1 # note", 1))),
    *((f"v: {text}", {"v": text}) for text in
      ("1_000", "1_000.5", "0b11", "0o8", "0xZ", "1:30", "12:30:00", "190:20:30", "1:30.5",
       "2026-01-01", "2026-01-01T00:00:00Z", "1,5", "0.1.2", "1e", "1e-3x", "inf", "nan")),
    # Other numbers.
    *((f"v: {text}", {"v": number}) for text, number in
      (("1e-3", 1e-3), ("1E5", 1e5), ("1.e-3", 1e-3), ("-2.5e+1", -25.0), (".5", 0.5), ("5.", 5.0),
       ("-.5e1", -5.0), (".inf", math.inf), ("-.Inf", -math.inf), ("!!float 1", 1.0))),
    # Text.
    *((f"v: {text}", {"v": meant}) for text, meant in
      (("'1e-3'", "1e-3"), ('"010"', "010"), ("!!str 1", "1"), ("''", ""), ("'it''s'", "it's"),
       ("a#b", "a#b"), ("a:b", "a:b"), ("~/x", "~/x"), ("$X/${Y}", "$X/${Y}"), ("C:\\x", "C:\\x"),
       ('"a\\tb"', "a\tb"), ('"\\u00e9"', "é"), ("é 😀", "é 😀"), ("=", "="), ("a\n  b", "a b"))),
    ("v: |\n  a\n  b\n", {"v": "a\nb\n"}),
    ("v: |-\n  a\n  b\n", {"v": "a\nb"}),
    ("v: >\n  a\n  b\n", {"v": "a b\n"}),
    # Lists and mappings.
    ("v: {a: 1, b: [2, 3]}", {"v": {"a": 1, "b": [2, 3]}}),
    ("v: {a: 1,}\nw: [1, 2,]", {"v": {"a": 1}, "w": [1, 2]}),
    ("v: {a, b: }", {"v": {"a": None, "b": None}}),
    ("v:\n- 1\n- 2", {"v": [1, 2]}),
    ("v:\n  - a: 1\n    b: 2", {"v": [{"a": 1, "b": 2}]}),
    ("? v\n: 1", {"v": 1}),
    ("'1': a\non: b\n2026-01-01: c", {"1": "a", "on": "b", "2026-01-01": "c"}),
    # Anchors and merge keys.
    ("v: &x {a: 1}\nw: *x", {"v": {"a": 1}, "w": {"a": 1}}),
    ("v: &x {a: 1, b: 2}\nw: {<<: *x, a: 3}", {"v": {"a": 1, "b": 2}, "w": {"a": 3, "b": 2}}),
    ("v: &x {a: 1}\ny: &y {a: 2, b: 3}\nw: {<<: [*x, *y]}",
     {"v": {"a": 1}, "y": {"a": 2, "b": 3}, "w": {"a": 1, "b": 3}}),
    ("v: {'<<': 1}", {"v": {"<<": 1}}),
    # Documents, line ends and encodings.
    ("---\nv: 1\n...\n", {"v": 1}),
    ("%YAML 1.1\n---\nv: 010", {"v": 10}),
    ("\n# note\n\nv: 1", {"v": 1}),
    ("v: 1\r\nw:\r\n  - 2\r\n", {"v": 1, "w": [2]}),
    ("v: 1\rw: 2\r", {"v": 1, "w": 2}),
    ("\ufeffv: 1", {"v": 1}),
    ("v: é\n".encode("utf-16"), {"v": "é"}),
    (codecs.BOM_UTF16_BE + "v: é\n".encode("utf-16-be"), {"v": "é"}),
]  # fmt: skip
REFUSED: list[tuple[str | bytes, str]] = [
    ("a: 1\nb: 2\na: 3", "line 3 the key 'a' is given twice"),
    ("a: {b: 1, b: 2}", "line 1 the key 'b' is given twice"),
    ("a: {b:1}", "line 1 the key 'b:1' holds a colon; a space belongs behind it"),
    ("1: a", "the key 1 is not a name"),
    ("true: a", "the key True is not a name"),
    ("null: a", "the key None is not a name"),
    ("? [a]\n: 1", "the key ['a'] is not a name"),
    ("a: [1, 2", "line 1"),
    ("a: b: c", "line 1 mapping values are not allowed here"),
    ("a:\n\tb: 1", "line 2 found character '\\t'"),
    ("a: @x", "line 1 found character '@'"),
    ("a: *x", "line 1 found undefined alias 'x'"),
    ("a: {<<: 3}", "line 1 expected a mapping"),
    ("a: &a {x: *a}", "an alias refers to its own parent"),
    ("a: 1\n---\nb: 2", "line 2 begins another document; a file holds one"),
    ("%YAML 2.0\n---\na: 1", "line 1 found incompatible YAML document"),
    ("", "is empty"),
    ("# a: 1\n", "is empty"),
    ("- a", "must be a mapping of keys to values, not a list"),
    ("words", "must be a mapping of keys to values, not a text"),
    ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ("a: !!timestamp 2024-01-01", "could not determine a constructor"),
    ("a: !!binary eA==", "could not determine a constructor"),
    ("a: !!set {x}", "could not determine a constructor"),
    ("a: !own x", "could not determine a constructor"),
    ("a: !!int foo", "holds a number that cannot be read"),
    ("a: " + "1" * 5000, "holds a number that cannot be read"),
    ("a: \x01", "is not YAML"),
    ('a: "\\ud800"', "is not valid text"),
    (b"a: \xe9", "cannot be read: is not UTF-8 from byte 3"),
    ("a: 1".encode("utf-32"), "is not YAML"),
]


@pytest.mark.parametrize(("content", "wanted"), [*READS, *REFUSED])
def test_a_file_is_read_as_yaml_1_2_or_refused_in_a_line(tmp_path, content, wanted):
    file = tmp_path / "file.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    if isinstance(wanted, dict):
        found = yaml_file.load(file)
        assert found == wanted
        assert repr(found) == repr(wanted), "1, 1.0 and true are equal, and not the same"
        return
    with pytest.raises(UserError) as error:
        yaml_file.load(file)
    message = str(error.value)
    assert message.startswith(f"{file}:")
    assert wanted in message
    assert "\n" not in message


def test_a_file_that_is_not_there_or_a_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.yaml: no such file"):
        yaml_file.load(tmp_path / "gone.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        yaml_file.load(tmp_path)


def test_the_traps_are_real_in_plain_pyyaml():
    """If PyYAML changes this behavior, `yaml_file` can be shorter."""
    assert yaml.safe_load("1e-3") == "1e-3"
    assert yaml.safe_load("no") is False
    assert yaml.safe_load("010") == 8
    assert yaml.safe_load("{a: 1, a: 2}") == {"a": 2}


_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)
    | st.sampled_from(["none", "no", "1e-3", "010", "null", "true", "~", "0x1", ".5", "1.", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "no", "1e3"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["x", "y", "none"]), _plain, min_size=1))
def test_what_is_written_is_read_back(data):
    assert yaml_file.parse(yaml_file.dump(data), "x") == data
