"""Kept encoder states: the same numbers as without, whatever happens to the process or the disk."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import resource
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mindmerger.errors import InputError
from mindmerger_train.states import (
    Keeping,
    KeptEncoder,
    StateStore,
    encoder_identity,
    expected_visits,
    keep_states,
    text_key,
)
from mindmerger_train.transfer import pad_right
from tests.train.conftest import tiny_encoder

TEXTS = [[1, 9, 60, 61, 2], [1, 7, 2], [1, 9, 60, 61, 2], [1, 100, 101, 102, 103, 104, 105, 2]]


def store(tmp_path, **options):
    settings = {"width": 64, "dtype": torch.float32, "limit": 10**9} | options
    return StateStore(tmp_path / "store", **settings)


@pytest.mark.parametrize("kind", ["bert", "mt5"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_kept_states_are_those_of_the_encoder(tmp_path, kind, precision):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        wanted = [tiny_encoder(kind)(*pad_right([text]))[0].float() for text in TEXTS]
    without = KeptEncoder(tiny_encoder(kind), precision)(*pad_right(TEXTS))
    encoder = KeptEncoder(tiny_encoder(kind), precision, store(tmp_path))
    first, second = encoder(*pad_right(TEXTS)), encoder(*pad_right(TEXTS[::-1])).flip(0)
    assert (encoder.computed, encoder.read) == (3, 3)
    for index, text in enumerate(TEXTS):
        for states in (without, first, second):
            assert torch.equal(states[index, : len(text)], wanted[index])
            assert not states[index, len(text) :].any()


def test_a_text_has_the_same_states_whether_new_or_kept(tmp_path):
    encoder = KeptEncoder(tiny_encoder("bert"), "no", store(tmp_path, dtype=torch.float16))
    first, again = encoder(*pad_right(TEXTS)), encoder(*pad_right(TEXTS))
    assert torch.equal(first, again)
    torch.testing.assert_close(first, KeptEncoder(tiny_encoder("bert"), "no")(*pad_right(TEXTS)), atol=2e-3, rtol=1e-3)


def test_what_float16_cannot_hold_is_not_kept(tmp_path):
    encoder = tiny_encoder("bert")
    with torch.no_grad():
        encoder.model.encoder.layer[2].output.LayerNorm.weight.fill_(1e6)
    kept = KeptEncoder(encoder, "no", store(tmp_path, dtype=torch.float16))
    assert bool(torch.isfinite(kept(*pad_right(TEXTS))).all())
    assert len(kept.store) == 0


def test_another_process_reads_what_one_has_kept(tmp_path):
    one = KeptEncoder(tiny_encoder("bert"), "no", store(tmp_path))
    other = KeptEncoder(tiny_encoder("bert"), "no", store(tmp_path))
    states = one(*pad_right(TEXTS))
    other.store._refreshed = -10.0  # as if the two seconds between looks had passed
    assert torch.equal(other(*pad_right(TEXTS)), states)
    assert other.computed == 0
    one(*pad_right([[1, 50, 2]]))
    other.store._refreshed = -10.0
    other(*pad_right([[1, 50, 2]]))
    assert other.computed == 0


def test_a_new_run_reads_what_an_earlier_one_has_kept_and_damage_is_mended(tmp_path):
    KeptEncoder(tiny_encoder("bert"), "no", store(tmp_path))(*pad_right(TEXTS))
    (data,) = (tmp_path / "store").glob("*.states")
    damaged = bytearray(data.read_bytes())
    damaged[10] ^= 1
    data.write_bytes(damaged)
    later = KeptEncoder(tiny_encoder("bert"), "no", store(tmp_path))
    expected = KeptEncoder(tiny_encoder("bert"), "no")(*pad_right(TEXTS))
    assert torch.equal(later(*pad_right(TEXTS)), expected)
    assert (later.computed, later.read) == (1, 2)
    assert torch.equal(later(*pad_right(TEXTS)), expected)
    assert later.computed == 1


ENCODER = tiny_encoder("bert")


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 400), which=st.sampled_from(["states", "index"]))
def test_any_torn_end_is_survived(tmp_path_factory, cut, which):
    """What a kill leaves: a data file or an index that ends anywhere."""
    folder = tmp_path_factory.mktemp("torn")
    KeptEncoder(ENCODER, "no", store(folder))(*pad_right(TEXTS))
    (path,) = (folder / "store").glob(f"*.{which}")
    path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - cut)])
    later = KeptEncoder(ENCODER, "no", store(folder))
    # worked out here: with another number of threads, which another test may have set, the last bits are others
    assert torch.equal(later(*pad_right(TEXTS)), KeptEncoder(ENCODER, "no")(*pad_right(TEXTS)))


def in_a_child(work):
    """Run `work` in a forked process (importing torch anew takes seconds); returns its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def numbered(number):
    return number.to_bytes(16, "little"), torch.full((50, 64), float(number))


def test_a_killed_process_leaves_a_store_that_can_be_used(tmp_path):
    def work():
        kept = store(tmp_path)
        for number in itertools.count():
            kept.put(*numbered(number))

    child = in_a_child(work)
    while not any(path.stat().st_size > 10**6 for path in (tmp_path / "store").glob("*.states")):
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left = store(tmp_path)
    assert len(left) > 50
    for number in range(len(left)):
        key, states = numbered(number)
        assert torch.equal(left.get(key), states)


def test_a_full_store_says_so_once_and_takes_no_more(tmp_path, capsys):
    kept = KeptEncoder(tiny_encoder("bert"), "no", store(tmp_path, limit=3000))
    expected = KeptEncoder(tiny_encoder("bert"), "no")(*pad_right(TEXTS))
    for _ in range(2):
        assert torch.equal(kept(*pad_right(TEXTS)), expected)
    assert len(kept.store) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert "raise states.gigabytes, or delete the folder" in message


def test_a_full_disk_is_survived(tmp_path):
    """A limit on the size of files stands for the full disk: the write that goes over it fails in the middle."""

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        kept = store(tmp_path)
        talk = io.StringIO()
        with contextlib.redirect_stderr(talk):
            for number in range(5):
                kept.put(*numbered(number))
        assert talk.getvalue().count("cannot be written to (File too large)") == 1
        assert torch.equal(kept.get(numbered(1)[0]), numbered(1)[1])
        assert kept.get(numbered(3)[0]) is None

    assert os.waitpid(in_a_child(work), 0)[1] == 0
    left = store(tmp_path)
    assert len(left) == 2
    assert all(path.stat().st_size == 2 * 50 * 64 * 4 for path in (tmp_path / "store").glob("*.states"))


def test_the_identity_follows_weights_layers_and_precision():
    def identity(change=None, precision="no", layers=(1, 3)):
        encoder = tiny_encoder("bert")
        encoder.layers = layers
        if change is not None:
            with torch.no_grad():
                change(encoder.model)
        return encoder_identity(encoder, precision)

    others = {
        identity(precision="bf16"),
        identity(layers=(2,)),
        identity(lambda model: model.encoder.layer[1].output.dense.bias.add_(1e-3)),
        identity(lambda model: setattr(model.config, "hidden_act", "relu")),
    }
    assert identity() == identity()
    assert len(others | {identity()}) == 5


def test_text_keys_differ():
    assert len({text_key(ids) for ids in ([1, 2], [1, 2, 2], [2, 1], [], [258], [1, 2 + 256])}) == 6


def test_auto_keeps_where_texts_come_again(tmp_path):
    assert expected_visits(300, [(1.0, 100)]) == pytest.approx(3.0)
    assert expected_visits(100, [(0.5, 10), (0.5, 10_000)]) == pytest.approx(100 / 60)
    assert expected_visits(0, [(1.0, 5)]) == 0.0
    keeping = Keeping(folder=str(tmp_path))
    assert keep_states(tiny_encoder("bert"), keeping, "no", visits=1.0).store is None
    kept = keep_states(tiny_encoder("bert"), keeping, "no", visits=3.0)
    assert kept.store is not None and kept.store.dtype == torch.float16
    kept(*pad_right(TEXTS))
    assert list(tmp_path.glob("*-float16/*.states"))
    off = Keeping(keep="off", folder=str(tmp_path))
    assert keep_states(tiny_encoder("bert"), off, "no", visits=3.0).store is None


@pytest.mark.parametrize("wrong", [{"keep": "yes"}, {"dtype": "int8"}, {"gigabytes": -1.0}])
def test_wrong_keys_are_refused(wrong):
    with pytest.raises(InputError, match="states"):
        Keeping(**wrong)
