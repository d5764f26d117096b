"""Device profiles: bundled ones are whole, every wrong key is named."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.devices.profile import (
    DeviceProfile,
    SourcedValue,
    ValueKind,
    list_profiles,
    load_profile,
    parse_profile,
)
from edgekit.errors import ProfileError
from edgekit.paths import device_profiles_dir
from edgekit.typed_values import WrongValuesError, from_plain

BUNDLED = list_profiles()


def text_of(name="raspberry-pi-5"):
    return (device_profiles_dir() / f"{name}.toml").read_text(encoding="utf-8")


def error_of(text):
    with pytest.raises(ProfileError) as caught:
        parse_profile(text, where="my.toml")
    return str(caught.value)


def sourced_values(value):
    if isinstance(value, SourcedValue):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from sourced_values(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from sourced_values(item)


def test_the_promised_devices_are_there():
    assert {"raspberry-pi-5", "iphone-16-pro", "macbook-air-m4"} <= set(BUNDLED)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_profiles_are_whole(name):
    profile = load_profile(name)
    assert profile.id == name
    found = list(sourced_values(profile))
    assert len(found) >= 14
    assert all(f.source.strip() for f in found)
    assert all(f.kind is not ValueKind.PROBED for f in found)  # only the host is probed
    assert profile.memory.app_limit_bytes.value <= profile.memory.total_bytes.value


def test_values_are_the_sourced_ones():
    pi = load_profile("raspberry-pi-5")
    assert pi.memory.bandwidth_bytes_per_s.value == 17.07e9
    assert pi.memory.total_bytes.value == 8 << 30
    assert pi.projection("onnxruntime").eta.value == 0.56
    phone = load_profile("iphone-16-pro")
    assert phone.memory.bandwidth_bytes_per_s.value == 60e9
    assert phone.memory.app_limit_bytes.kind is ValueKind.ANALOGY
    mac = load_profile("macbook-air-m4")
    assert (mac.projection("mlx").eta.value, mac.projection("mlx").t0_s.value) == (0.85, 0.0047)


def test_a_profile_is_loaded_by_path_too(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text_of())
    assert load_profile(path) == load_profile("raspberry-pi-5")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ProfileError, match=r"Did you mean raspberry-pi-5\?"):
        load_profile("rasberry-pi5")


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "No such file"), (b"\xff\xfe\x00", "codec"), (b"id = \n", "is not TOML")],
)
def test_an_unreadable_file_is_named(tmp_path, content, text):
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProfileError, match=text) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_profile(tmp_path):
    with pytest.raises(ProfileError, match="cannot read device profile"):
        load_profile(tmp_path.joinpath("x.toml").mkdir() or tmp_path / "x.toml")


def test_all_problems_of_a_file_are_reported_together():
    text = (
        text_of()
        .replace("year = 2023", 'year = "2023"')
        .replace("[cpu]\n", "[cpu]\nturbo = true\n")
        .replace('value = 4, kind = "published"', 'value = 4.5, kind = "published"')
        .replace('arch = "arm64"\n', "")
    )
    message = error_of(text)
    assert "my.toml is not a device profile" in message
    assert "year: got str '2023', wanted a whole number" in message
    assert "cpu.turbo: got an unknown key" in message
    assert "cpu.n_big_cores.value: got float 4.5, wanted a whole number" in message
    assert "arch: got nothing, wanted this key" in message


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ('formats = ["onnx"]', 'formats = ["ggml"]', "engines[0].formats[0]: got str 'ggml'"),
        ('formats = ["onnx"]', 'formats = "onnx"', "engines[0].formats: got str 'onnx', wanted a"),
        ('[cpu]\n', 'cpu = 4\n[cpu2]\n', "cpu: got int 4, wanted keys with values"),
        ("value = 0.56, ", "value = 1.2, ", "eta above 0 and at most 1"),
        ("value = 0.56, ", "value = -0.1, ", "at least 0"),
        ("value = 17.07e9, ", "value = nan, ", "a finite number"),
        ("value = 17.07e9, ", "value = inf, ", "a finite number"),
        ("value = 17.07e9, ", "", "a value, or kind = 'unknown' without one"),
        ("value = 17.07e9, ", "value = true, ", "memory.bandwidth_bytes_per_s.value: got bool"),
        ('value = 17.07e9, kind = "computed"', 'value = 1.0, kind = "unknown"', "a value, or kind"),
        ('kind = "computed", source = "LPDDR4X', 'kind = "heard", source = "L', "got str 'heard'"),
        ("range_factor = 1.5", "range_factor = 1.0", "range_factor between 1 and 10"),
        ('engine = "onnxruntime"', 'engine = "llama_cpp"', "projections[0].engine"),
        ('value = 8589934592, kind = "published"', 'kind = "unknown"', "memory.total_bytes"),
    ],
)  # fmt: skip
def test_each_fault_is_named_with_its_key(old, new, wanted):
    text = text_of()
    assert old in text
    assert wanted in error_of(text.replace(old, new, 1))


def test_an_engine_listed_twice_is_an_error():
    text = text_of()
    start, end = text.index("[[engines]]"), text.index("[[projections]]")
    assert "wanted each id once" in error_of(text + "\n" + text[start:end])


def test_an_empty_source_is_an_error():
    text = text_of().replace('source = "there is one limit"', 'source = " "')
    assert "memory.app_limit_raised_bytes" in error_of(text)
    assert "a source that is not empty" in error_of(text)


@pytest.mark.parametrize("name", BUNDLED)
def test_every_key_of_every_table_is_required_or_has_a_default_on_purpose(name):
    """Dropping any one line of a bundled file is an error or changes the profile."""
    lines = text_of(name).splitlines()
    whole = load_profile(name)
    for i, line in enumerate(lines):
        if " = " not in line or line.startswith(("#", " ")) or line.endswith("["):
            continue
        rest = "\n".join(lines[:i] + lines[i + 1 :])
        try:
            profile = parse_profile(rest, where="cut")
        except ProfileError:
            continue
        assert profile != whole, line


@settings(deadline=None, max_examples=40)
@given(st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab]\n=[", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=8,
))  # fmt: skip
def test_no_value_in_place_of_a_table_crashes_the_reader(value):
    with pytest.raises(WrongValuesError):
        from_plain(DeviceProfile, {"cpu": value, "engines": value, "name": value})


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=80))
def test_no_text_crashes_the_reader(text):
    with pytest.raises(ProfileError):
        parse_profile(text, where="fuzz")
