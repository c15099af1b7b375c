"""Text encoders of published models, on tiny networks with random weights and tokenizers that know bytes, against diffusers' own pipelines."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from flowact.conditioning import HunyuanVideo15Text, HunyuanVideoText, T5Text
from flowact.conditioning.transformers_text import HUNYUAN15_BEFORE, HUNYUAN_AFTER, HUNYUAN_BEFORE, clean_caption, quoted_texts
from flowact.errors import UserError
from flowact.testing import check_conditioning_encoder, check_constructor

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'flowact[hf]'")
tokenizers = pytest.importorskip("tokenizers")

CAPTIONS = [
    "A cat walks.",
    'The woman says hello &amp; waves,  then a sign reads “WELCOME” and "open" and "open".',
    "Grüße 你好 " + 40 * "far too long ",
]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
T5 = {"d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 3, "vocab_size": 300}
LLM = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32, "vocab_size": 300}


def tokenizer(special: list[str], template: str = "$A", chat: str | None = None):
    """One token per byte, and those of `special`, of which the first pads."""
    vocabulary = {token: i for i, token in enumerate([*special, *tokenizers.pre_tokenizers.ByteLevel.alphabet()])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(special)
    made.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=[(t, i) for i, t in enumerate(special)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token=special[0], padding_side="right")
    fast.chat_template = chat
    return fast


def save(folder, **parts):
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    return str(folder)


@pytest.fixture(scope="module", params=["UMT5", "T5"])
def t5_folder(request, tmp_path_factory):
    torch.manual_seed(0)
    model = getattr(transformers, f"{request.param}EncoderModel")(getattr(transformers, f"{request.param}Config")(**T5))
    return save(tmp_path_factory.mktemp("t5"), text_encoder=model, tokenizer=tokenizer(["<pad>", "</s>"], "$A </s>"))


@pytest.fixture(scope="module")
def hunyuan_folder(tmp_path_factory):
    torch.manual_seed(0)
    llm = transformers.LlamaModel(transformers.LlamaConfig(**LLM, initializer_range=0.3))
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 300}
    clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes, eos_token_id=1, bos_token_id=0, pad_token_id=1, initializer_range=0.3))
    words = tokenizer(["<|pad|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|begin_of_text|> $A")
    parts = {"tokenizer": words, "tokenizer_2": tokenizer(["<|startoftext|>", "<|endoftext|>"], "<|startoftext|> $A <|endoftext|>")}
    parts["tokenizer_2"].pad_token = "<|endoftext|>"
    return save(tmp_path_factory.mktemp("hunyuan"), text_encoder=llm, text_encoder_2=clip, **parts)


@pytest.fixture(scope="module")
def hunyuan15_folder(tmp_path_factory):
    torch.manual_seed(0)
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    kind = transformers.Qwen2_5_VLTextModel.config_class
    llm = transformers.Qwen2_5_VLTextModel(kind(**LLM, rope_scaling=rope, initializer_range=0.3))
    byt5 = transformers.T5EncoderModel(transformers.T5Config(**(T5 | {"vocab_size": 384})))
    parts = {"tokenizer": tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], chat=CHAT), "tokenizer_2": transformers.ByT5Tokenizer()}
    return save(tmp_path_factory.mktemp("hunyuan15"), text_encoder=llm, text_encoder_2=byt5, **parts)


def parts_of(folder, **classes):
    """The folder's parts as a diffusers pipeline holds them."""
    loaded = {name: getattr(transformers, cls).from_pretrained(f"{folder}/{name}") for name, cls in classes.items()}
    return SimpleNamespace(**loaded, _execution_device="cpu")


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_t5_gives_what_the_pipeline_of_wan_gives(t5_folder):
    wan = pytest.importorskip("diffusers.pipelines.wan.pipeline_wan")
    (kind,) = transformers.AutoConfig.from_pretrained(f"{t5_folder}/text_encoder").architectures
    pipeline = parts_of(t5_folder, text_encoder=kind, tokenizer="AutoTokenizer")
    captions = [caption.replace("“", '"').replace("”", '"') for caption in CAPTIONS]  # the pipeline leaves curly quotes unless ftfy is installed
    expected = wan.WanPipeline._get_t5_prompt_embeds(pipeline, captions, max_sequence_length=120)
    text = T5Text(t5_folder, num_tokens=120, precision="float32").encode(captions)
    assert text.shape == (3, 120, 12)
    close(text, expected)
    assert not text[0, 13:].any()
    assert text[0, 12].any()  # the end mark


@torch.no_grad()
def test_hunyuan_gives_what_the_pipeline_gives(hunyuan_folder):
    module = pytest.importorskip("diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video")
    assert module.DEFAULT_PROMPT_TEMPLATE["template"] == HUNYUAN_BEFORE + "{}" + HUNYUAN_AFTER
    networks = {"text_encoder": "LlamaModel", "text_encoder_2": "CLIPTextModel"}
    pipeline = parts_of(hunyuan_folder, **networks, tokenizer="AutoTokenizer", tokenizer_2="AutoTokenizer")
    crop = pipeline.tokenizer(HUNYUAN_BEFORE, return_tensors="pt").input_ids.shape[1]
    template = module.DEFAULT_PROMPT_TEMPLATE | {"crop_start": crop}
    states, mask = module.HunyuanVideoPipeline._get_llama_prompt_embeds(pipeline, CAPTIONS, template, max_sequence_length=150)
    pooled = module.HunyuanVideoPipeline._get_clip_prompt_embeds(pipeline, CAPTIONS)
    encoder = HunyuanVideoText(hunyuan_folder, llm_tokens=150, precision="float32")
    text = encoder.encode(CAPTIONS)
    assert text.shape == (3, 151, 16) == (3, encoder.num_tokens, encoder.width)
    close(text[:, :150], states * mask[..., None])
    assert torch.equal(text[:, :150].any(dim=-1), mask.bool())
    close(text[:, 150, : encoder.pooled_width], pooled)
    assert not text[:, 150, encoder.pooled_width :].any()


@torch.no_grad()
def test_hunyuan15_gives_what_the_pipeline_gives(hunyuan15_folder):
    module = pytest.importorskip("diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5")
    networks = {"text_encoder": "Qwen2_5_VLTextModel", "text_encoder_2": "T5EncoderModel"}
    parts = parts_of(hunyuan15_folder, **networks, tokenizer="AutoTokenizer", tokenizer_2="ByT5Tokenizer")
    crop = parts.tokenizer(HUNYUAN15_BEFORE, return_tensors="pt").input_ids.shape[1]
    pipeline = module.HunyuanVideo15Pipeline
    llm = pipeline._get_mllm_prompt_embeds(parts.text_encoder, parts.tokenizer, CAPTIONS, "cpu", tokenizer_max_length=150, crop_start=crop)
    glyphs = pipeline._get_byt5_prompt_embeds(parts.tokenizer_2, parts.text_encoder_2, CAPTIONS, "cpu", tokenizer_max_length=40)
    encoder = HunyuanVideo15Text(hunyuan15_folder, llm_tokens=150, glyph_tokens=40, precision="float32")
    text = encoder.encode(CAPTIONS)
    assert text.shape == (3, 190, 16) == (3, encoder.num_tokens, encoder.width)
    for rows, (states, mask) in ((text[:, :150], llm), (text[:, 150:, : encoder.glyph_width], glyphs)):
        close(rows, states * mask[..., None])
        assert torch.equal(rows.any(dim=-1), mask.bool())
    assert not text[:, 150:, encoder.glyph_width :].any()
    assert text[1, 150:].any(dim=-1).sum() == len('Text "WELCOME". Text "open". ') + 1  # bytes and the end mark
    assert not text[0, 150:].any()


def test_laws_of_a_text_encoder(t5_folder, hunyuan_folder, hunyuan15_folder):
    check_conditioning_encoder(T5Text(t5_folder, 60, precision="float32"))
    check_conditioning_encoder(HunyuanVideoText(hunyuan_folder, 60, precision="float32"))
    check_conditioning_encoder(HunyuanVideo15Text(hunyuan15_folder, 60, 20, precision="float32"))
    for cls in (T5Text, HunyuanVideoText, HunyuanVideo15Text):
        check_constructor(cls)


def test_half_precision_is_near_and_comes_back_as_float32(hunyuan_folder, hunyuan15_folder):
    for make in (lambda p: HunyuanVideoText(hunyuan_folder, 60, p), lambda p: HunyuanVideo15Text(hunyuan15_folder, 60, 20, p)):
        exact, half = (make(precision).encode(CAPTIONS) for precision in ("float32", "float16"))
        assert half.dtype == torch.float32
        assert 0 < (exact - half).abs().max() < 0.02 * exact.abs().max()


def test_a_repeated_caption_is_encoded_once_and_the_network_moves(t5_folder, monkeypatch):
    encoder = T5Text(t5_folder, 20, precision="float32")
    calls = []
    rows = encoder._rows
    monkeypatch.setattr(encoder, "_rows", lambda caption: calls.append(caption) or rows(caption))
    text = encoder.encode(["a", "b", "a", " "])
    assert calls == ["a", "b"]
    assert torch.equal(text[0], text[2])
    assert encoder.to("meta") is encoder
    assert next(encoder._encoder._network.parameters()).device.type == "meta"


CLEANED = {
    "  a\n\tb  ": "a b",
    "you &amp;amp; me &lt;3": "you & me <3",
    "\uff21\uff22\uff0c\u3000\u4f60\u597d\uff01": "AB, \u4f60\u597d!",
    "“it’s”": "\"it's\"",
    "cafe\u0301 \ufb01n": "caf\u00e9 fin",
    "\u00bd\u2026": "\u00bd\u2026",
}


def test_captions_are_cleaned_as_for_training():
    assert {caption: clean_caption(caption) for caption in CLEANED} == CLEANED


def test_the_pipeline_of_wan_cleans_alike_where_ftfy_is_installed():
    pytest.importorskip("ftfy", reason="Wan's pipeline cleans with it where it is installed: pip install ftfy")
    wan = pytest.importorskip("diffusers.pipelines.wan.pipeline_wan")
    assert {caption: wan.prompt_clean(caption) for caption in CLEANED} == CLEANED


def test_quoted_parts_are_what_is_written_in_the_picture():
    assert quoted_texts("a sign") == ""
    assert quoted_texts("“你好” then \"b\", \"b\" and 'c'") == 'Text "你好". Text "b". '


def test_errors_say_what_to_do(t5_folder, hunyuan_folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"text_encoder/config\.json and .*tokenizer not found"):
        T5Text(str(tmp_path))
    with pytest.raises(UserError, match="type 'llama'; 'umt5' or 't5'"):
        T5Text(hunyuan_folder)
    with pytest.raises(ValueError, match="num_tokens = 1"):
        T5Text(t5_folder, num_tokens=1)
    with pytest.raises(ValueError, match="llm_tokens = 0"):
        HunyuanVideoText(hunyuan_folder, llm_tokens=0)
    with pytest.raises(ValueError, match="glyph_tokens = 1"):
        HunyuanVideo15Text(hunyuan_folder, glyph_tokens=1)
    with pytest.raises(UserError, match="list of captions"):
        T5Text(t5_folder).encode("hello")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        with pytest.raises(UserError, match=r"flowact\[hf\]"):
            T5Text(t5_folder)


def test_weights_that_are_missing_are_refused(t5_folder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(t5_folder, tmp_path / "model")
    file = tmp_path / "model" / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.final_layer_norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack \['encoder\.final_layer_norm\.weight'\]"):
        T5Text(str(tmp_path / "model"), 20).encode(["a"])
    file.unlink()
    with pytest.raises(UserError, match="only safetensors are read"):
        T5Text(str(tmp_path / "model"), 20).encode(["a"])
