"""YAML as the 1.2 core schema defines it, and where PyYAML differs."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from densevit.config import yaml_file
from densevit.utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-2.5e+1", -25.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("none", "none"),
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("12:30:00", "12:30:00"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("'1e-3'", "1e-3"),
        ("-.inf", -math.inf),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text, wanted):
    got = yaml_file.parse(f"value: {text}", "x")["value"]
    assert got == wanted
    assert type(got) is type(wanted)


def test_the_traps_are_real_in_plain_pyyaml():
    """If PyYAML changes this behavior, `yaml_file` can be shorter."""
    assert yaml.safe_load("1e-3") == "1e-3"
    assert yaml.safe_load("no") is False
    assert yaml.safe_load("010") == 8
    assert yaml.safe_load("{a: 1, a: 2}") == {"a": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "line 3 the key 'a' is given twice"),
        ("a: {b: 1, b: 2}", "the key 'b' is given twice"),
        ("a: [1, 2", "line 1"),
        ("1: a", "the key 1 is not a name"),
        ("true: a", "the key True is not a name"),
        ("- a", "must be a mapping of keys to values, not a list"),
        ("", "is empty"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: \x01", "is not YAML"),
        ("a: " + "1" * 5000, "holds a number that cannot be read"),
        ("a: !!int foo", "holds a number that cannot be read"),
        ("a: !!timestamp 2024-01-01", "could not determine a constructor"),
        ("a: !!binary eA==", "could not determine a constructor"),
        ("a: !!set {x}", "could not determine a constructor"),
        ("a: &a {x: *a}", "an alias refers to its own parent"),
        ('a: "\\ud800"', "is not valid text"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(text, said):
    with pytest.raises(UserError) as error:
        yaml_file.parse(text, "file.yaml")
    assert str(error.value).startswith("file.yaml:")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.yaml: no such file"):
        yaml_file.load(tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UserError, match=r"latin\.yaml: cannot be read"):
        yaml_file.load(tmp_path / "latin.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        yaml_file.load(tmp_path)


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
