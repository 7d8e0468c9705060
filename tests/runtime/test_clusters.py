"""Streaming never cuts inside what a reader sees as one character: checked against an independent implementation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindmerger.cli.clusters import ClusterBuffer

# scripts where it matters: combining Latin, Devanagari, Bengali, Thai, Arabic, Hebrew, Hangul, emoji, flags
SCRIPTS = "aé\u0301 \r\n०कखषज्ि़ाौंঃকষ্যিกำ้ีຳعَبَّ\u0600\u06ddשָׁ한ᄀ각ᆨᅡ🇪🇸🇰👩\u200d👧🏽❤\ufe0f\u200c\u200dമ്ല"
TEXT = st.lists(st.text(st.one_of(st.sampled_from(SCRIPTS), st.characters()), max_size=8), max_size=8)


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_pieces_end_where_clusters_end(pieces: list[str]) -> None:
    regex = pytest.importorskip("regex")
    text = "".join(pieces)
    ends = {0, *(match.end() for match in regex.finditer(r"\X", text))}
    buffer = ClusterBuffer()
    shown = ""
    for piece in pieces:
        shown += buffer.feed(piece)
        assert len(shown) in ends
    assert shown + buffer.rest() == text


def test_only_the_last_cluster_is_held() -> None:
    buffer = ClusterBuffer()
    assert buffer.feed("Adding क") == "Adding "
    assert buffer.feed("्") == ""
    assert buffer.feed("षि = 4") == "क्षि = "
    assert buffer.feed("2\n") == "42\n"
    assert buffer.rest() == ""


def test_marks_without_end_are_not_held_for_ever() -> None:
    buffer = ClusterBuffer()
    assert sum(len(buffer.feed("\u0301")) for _ in range(1000)) > 900
