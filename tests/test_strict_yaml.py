from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flowact.errors import UserError
from flowact.strict_yaml import MAX_BYTES, MAX_DEPTH, read_yaml, read_yaml_file, to_yaml


def test_scalars_are_those_of_yaml_1_2():
    text = "{a: 1e-5, b: 012, c: no, d: 2024-01-01, e: 1_000, f: true, g: ~, h: 0x10, i: '1', j: .5, k: -3, l: 1:30}"
    assert read_yaml(text, "x")[0] == {
        "a": 1e-5,
        "b": 12,
        "c": "no",
        "d": "2024-01-01",
        "e": 1000,
        "f": True,
        "g": None,
        "h": 16,
        "i": "1",
        "j": 0.5,
        "k": -3,
        "l": "1:30",
    }


def test_origins_give_the_line_of_every_place():
    _, origins = read_yaml("a:\n  b: 1\n  c:\n  - x\n  - d: 2\n", "file.yaml")
    assert origins == {
        "a": "file.yaml:1",
        "a.b": "file.yaml:2",
        "a.c": "file.yaml:3",
        "a.c[0]": "file.yaml:4",
        "a.c[1]": "file.yaml:5",
        "a.c[1].d": "file.yaml:5",
    }


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"^f:3: 'a' is written twice"),
        ("a:\n  b: 1\n  b: 2\n", r"^f:3: 'a\.b' is written twice"),
        ("a: 1\nb: !!python/object/apply:os.system ['true']\n", r"^f:2: the tag .*os\.system.* is not allowed"),
        ("a: !!binary aGk=\n", r"^f:1: the tag"),
        ("a: !!set {x, y}\n", r"^f:1: the tag"),
        ("a: &b {c: 1}\nd:\n  <<: *b\n", r"^f:3: a key is a plain word"),
        ("? [1, 2]\n: 3\n", r"^f:1: a key is a plain word"),
        ("a: 1\n\tb: 2\n", r"^f:2: not valid YAML: .*spaces, not tabs"),
        ("a: [1, 2\nb: 3", r"^f:2: not valid YAML"),
        ("a: .nan\n", r"^f:1: a is \.nan; numbers must be finite"),
        ("a: -.inf\n", "numbers must be finite"),
        ("a: 1e999\n", "numbers must be finite"),
        ("a: !!int x\n", r"^f:1: 'x' is not a int"),
        ("[" * 5000, f"nested more than {MAX_DEPTH} levels"),
        ("[" * 100 + "]" * 100, f"nested more than {MAX_DEPTH} levels"),
        ("a: &a [*a]\n", f"nested more than {MAX_DEPTH} levels"),
        (BOMB, r"more than \d+ values once its aliases are written out"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a: \x01\n", "not valid YAML"),
    ],
    ids=range(19),
)
def test_what_is_no_plain_value_is_refused_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(text, "f")
    assert "\n" not in str(caught.value)


def test_files_byte_order_mark_size_encoding_and_absence(tmp_path):
    file = tmp_path / "f.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml_file(file)[0] == {"a": 1}
    file.write_bytes(b"a: '" + b"x" * MAX_BYTES + b"'")
    with pytest.raises(UserError, match="larger than"):
        read_yaml_file(file)
    file.write_bytes(b"a: \xff\n")
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 3\)"):
        read_yaml_file(file)
    with pytest.raises(UserError, match="No such file"):
        read_yaml_file(tmp_path / "gone.yaml")


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["1e5", "012", "no", "${a}", "~"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcxyz_", min_size=1, max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
@example("\x85")
@example(["a\u2028b", {"c": "\u2029 d"}])
def test_what_is_written_reads_back_equal(value):
    read, _ = read_yaml(to_yaml({"it": value}), "x")
    assert unescape(read) == {"it": value}
    assert not isinstance(value, float) or math.copysign(1, value) == math.copysign(1, read["it"])


def unescape(node):
    if isinstance(node, dict):
        return {key: unescape(value) for key, value in node.items()}
    if isinstance(node, list):
        return [unescape(value) for value in node]
    return node.replace("\\${", "${") if isinstance(node, str) else node
