"""Tiny configurations of published architectures, with an input for each. No network."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

TEXT = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 40, "max_position_embeddings": 64}  # fmt: skip
GROUPED = {**TEXT, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "intermediate_size": 40, "image_size": 16, "patch_size": 4}  # fmt: skip


def _tokens() -> dict[str, Any]:
    return {"input_ids": torch.arange(2, 14).reshape(2, 6)}


def _pair() -> dict[str, Any]:
    return {**_tokens(), "decoder_input_ids": torch.arange(5, 11).reshape(2, 3)}


def _pixels(size: int) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        steps = torch.linspace(-1, 1, 3 * size * size)
        return {"pixel_values": steps.sin().reshape(1, 3, size, size)}

    return make


def _sound() -> dict[str, Any]:
    return {"input_values": torch.linspace(0, 40, 800).sin().reshape(1, -1)}


def _mel() -> dict[str, Any]:
    features = torch.linspace(-1, 1, 8 * 40).reshape(1, 8, 40)
    return {"input_features": features, "decoder_input_ids": torch.tensor([[1, 2, 3]])}


def _text_and_pixels(size: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"input_ids": torch.tensor([[1, 5, 7, 98]]), **_pixels(size)()}


def _llava() -> tuple[Any, dict[str, Any]]:
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**VISION),
        text_config=tf.LlamaConfig(**GROUPED),
        image_token_index=98,
        vision_feature_layer=-1,
    )
    words = torch.tensor([[1, *[98] * 16, 5, 7]])
    return tf.LlavaForConditionalGeneration(config), {"input_ids": words, **_pixels(16)()}


def _clip() -> tuple[Any, dict[str, Any]]:
    text = tf.CLIPTextConfig(**{**TEXT, "bos_token_id": 0, "eos_token_id": 98})
    config = tf.CLIPConfig(
        text_config=text.to_dict(),
        vision_config=tf.CLIPVisionConfig(**VISION).to_dict(),
        projection_dim=16,
    )
    return tf.CLIPModel(config), _text_and_pixels(16)()


def _wav2vec2() -> tuple[Any, dict[str, Any]]:
    config = tf.Wav2Vec2Config(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=40, conv_dim=(16, 16), conv_kernel=(8, 4), conv_stride=(4, 4),
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    return tf.Wav2Vec2ForCTC(config), _sound()


def _detr() -> tuple[Any, dict[str, Any]]:
    backbone = tf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
        out_features=["stage2"],
    )  # fmt: skip
    config = tf.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=37,
        decoder_ffn_dim=37, num_queries=5,
    )  # fmt: skip
    return tf.DetrForObjectDetection(config), _pixels(32)()


def _plain(
    model: Any, config: Any, make: Callable[[], dict[str, Any]], **values: Any
) -> Callable[[], tuple[Any, dict[str, Any]]]:
    return lambda: (model(config(**values)), make())


_ENCODER_DECODER = {"vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
                    "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                    "encoder_ffn_dim": 37, "decoder_ffn_dim": 37}  # fmt: skip

ZOO: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "GPT-2": _plain(tf.GPT2LMHeadModel, tf.GPT2Config, _tokens,
                    vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "T5": _plain(tf.T5ForConditionalGeneration, tf.T5Config, _pair, vocab_size=99, d_model=32,
                 d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=0),
    "BART": _plain(tf.BartForConditionalGeneration, tf.BartConfig, _pair,
                   **_ENCODER_DECODER, max_position_embeddings=64),
    "BERT": _plain(tf.BertForMaskedLM, tf.BertConfig, _tokens, **TEXT),
    "DistilBERT": _plain(tf.DistilBertForSequenceClassification, tf.DistilBertConfig, _tokens,
                         vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=37),
    "ELECTRA": _plain(tf.ElectraForTokenClassification, tf.ElectraConfig, _tokens, **TEXT),
    "XLNet": _plain(tf.XLNetLMHeadModel, tf.XLNetConfig, _tokens,
                    vocab_size=99, d_model=32, n_layer=2, n_head=4, d_inner=37),
    "Llama": _plain(tf.LlamaForCausalLM, tf.LlamaConfig, _tokens, **GROUPED),
    "Qwen 2": _plain(tf.Qwen2ForCausalLM, tf.Qwen2Config, _tokens,
                     **GROUPED, tie_word_embeddings=True),
    "Gemma": _plain(tf.GemmaForCausalLM, tf.GemmaConfig, _tokens, **GROUPED),
    "Mixtral (mixture of experts)": _plain(
        tf.MixtralForCausalLM, tf.MixtralConfig, _tokens, **GROUPED, num_local_experts=4),
    "Mamba (state space)": _plain(tf.MambaForCausalLM, tf.MambaConfig, _tokens, vocab_size=99,
                                  hidden_size=32, num_hidden_layers=2, state_size=8),
    "RWKV (recurrent)": _plain(tf.RwkvForCausalLM, tf.RwkvConfig, _tokens, vocab_size=99,
                               hidden_size=32, num_hidden_layers=2, attention_hidden_size=32,
                               intermediate_size=40, context_length=64),
    "ViT": _plain(tf.ViTForImageClassification, tf.ViTConfig, _pixels(16), **VISION),
    "Swin": _plain(tf.SwinForImageClassification, tf.SwinConfig, _pixels(16), image_size=16,
                   patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2),
    "ConvNeXt": _plain(tf.ConvNextForImageClassification, tf.ConvNextConfig, _pixels(32),
                       hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "ResNet": _plain(tf.ResNetForImageClassification, tf.ResNetConfig, _pixels(32),
                     embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
    "SegFormer": _plain(tf.SegformerForSemanticSegmentation, tf.SegformerConfig, _pixels(32),
                        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1],
                        hidden_sizes=[16, 32], patch_sizes=[7, 3], strides=[4, 2],
                        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16),
    "DETR (detection)": _detr,
    "CLIP (text and image)": _clip,
    "LLaVA (vision and language)": _llava,
    "Whisper (speech)": _plain(
        tf.WhisperForConditionalGeneration, tf.WhisperConfig, _mel, **_ENCODER_DECODER,
        num_mel_bins=8, max_source_positions=20, max_target_positions=20, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None),
    "Wav2Vec2 (audio, weight norm)": _wav2vec2,
}  # fmt: skip

# Built from a directory by `from_pretrained`: some tied, some with renamed or parametrised weights.
PRETRAINED = ["GPT-2", "T5", "BART", "BERT", "Qwen 2", "Mixtral (mixture of experts)",
              "Mamba (state space)", "ResNet", "Whisper (speech)",
              "Wav2Vec2 (audio, weight norm)"]  # fmt: skip
