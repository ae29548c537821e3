"""Files of JSON objects: read, missing, damaged."""

import pytest

from densevit.utils.errors import UserError
from densevit.utils.files import read_json, write_json


def test_an_object_is_read_as_it_was_written(tmp_path):
    assert read_json(tmp_path / "none.json") is None
    write_json(tmp_path / "a.json", {"a": [1, None], "b": "ü"})
    assert read_json(tmp_path / "a.json") == {"a": [1, None], "b": "ü"}


@pytest.mark.parametrize("text", ["", "{half", "[1]", "null", "3", "\xff"])
def test_what_is_no_object_is_an_error_that_names_the_file(tmp_path, text):
    file = tmp_path / "status.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"status\.json: cannot be read: "):
        read_json(file)
