"""Hints for wrong names."""

from densevit.utils.errors import nearest


def test_a_name_is_not_suggested_instead_of_itself():
    assert nearest("depth", ["depth", "depths"]) == "did you mean 'depths'?"
    assert nearest("depth", ["depth", "width"]) == "did you mean 'width'?"
    assert nearest("depth", ["depth"]) == "none is valid"
