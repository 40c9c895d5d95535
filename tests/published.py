"""Published architectures, tiny and with random weights, and what `convert` replaces in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.libraries import library


def tokens(length: int = 6) -> Tensor:
    return torch.arange(2 * length).reshape(2, length) % 29


def image(size: int = 32) -> Tensor:
    return torch.linspace(-1, 1, 2 * 3 * size * size).reshape(2, 3, size, size).sin()


def gpt2(p: float) -> nn.Module:
    t = library("transformers")
    config = t.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=32, n_positions=16,
        resid_pdrop=p, embd_pdrop=p, attn_pdrop=p,
    )  # fmt: skip
    return t.GPT2LMHeadModel(config)


def bert(p: float) -> nn.Module:
    t = library("transformers")
    config = t.BertConfig(
        num_hidden_layers=2, num_attention_heads=2, hidden_size=16, intermediate_size=32,
        vocab_size=32, max_position_embeddings=16, hidden_dropout_prob=p,
        attention_probs_dropout_prob=p,
    )  # fmt: skip
    return t.BertForMaskedLM(config)


def t5(p: float) -> nn.Module:
    t = library("transformers")
    config = t.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=32, dropout_rate=p,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return t.T5ForConditionalGeneration(config)


def vit(p: float) -> nn.Module:
    t = library("transformers")
    config = t.ViTConfig(
        num_hidden_layers=2, num_attention_heads=2, hidden_size=16, intermediate_size=32,
        image_size=32, patch_size=16, hidden_dropout_prob=p, attention_probs_dropout_prob=p,
    )  # fmt: skip
    return t.ViTForImageClassification(config)


def llama(p: float) -> nn.Module:
    t = library("transformers")
    config = t.LlamaConfig(
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, hidden_size=16,
        intermediate_size=32, vocab_size=32, attention_dropout=p,
    )  # fmt: skip
    return t.LlamaForCausalLM(config)


def whisper(p: float) -> nn.Module:
    t = library("transformers")
    config = t.WhisperConfig(
        vocab_size=32, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8,
        max_source_positions=8, max_target_positions=16, dropout=p, activation_dropout=p,
        attention_dropout=p, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip
    return t.WhisperForConditionalGeneration(config)


def clip(p: float) -> nn.Module:
    t = library("transformers")
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = t.CLIPConfig(
        text_config=dict(vocab_size=32, max_position_embeddings=16, attention_dropout=p, **sizes),
        vision_config=dict(image_size=32, patch_size=16, attention_dropout=p, **sizes),
        projection_dim=8,
    )
    return t.CLIPModel(config)


def mixtral(p: float) -> nn.Module:
    t = library("transformers")
    config = t.MixtralConfig(
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, hidden_size=16,
        intermediate_size=32, vocab_size=32, num_local_experts=4, attention_dropout=p,
    )  # fmt: skip
    config._experts_implementation = "eager"  # the default has no kernel for float64
    return t.MixtralForCausalLM(config)


def of_timm(name: str) -> Callable[[float], nn.Module]:
    return lambda p: library("timm").create_model(name, num_classes=5, drop_rate=p)


def mixer(p: float) -> nn.Module:
    kind = library("timm").models.mlp_mixer.MlpMixer
    return kind(
        num_classes=5, img_size=32, patch_size=16, num_blocks=2, embed_dim=16, drop_rate=p,
        proj_drop_rate=p,
    )  # fmt: skip


def resnet(p: float) -> nn.Module:
    m = library("torchvision").models.resnet
    return m.ResNet(m.BasicBlock, [1, 1, 1, 1], num_classes=5)


def convnext(p: float) -> nn.Module:
    m = library("torchvision").models.convnext
    settings = [m.CNBlockConfig(8, 16, 1), m.CNBlockConfig(16, None, 1)]
    return m.ConvNeXt(settings, num_classes=5)


def efficientnet(p: float) -> nn.Module:
    m = library("torchvision").models.efficientnet
    settings = [m.MBConvConfig(1, 3, 1, 8, 8, 1), m.MBConvConfig(2, 3, 2, 8, 16, 2)]
    return m.EfficientNet(settings, dropout=p, stochastic_depth_prob=0.0, num_classes=5)


def mobilenet(p: float) -> nn.Module:
    models = library("torchvision").models
    return models.mobilenet_v3_small(width_mult=0.25, dropout=p, num_classes=5)


def vgg(p: float) -> nn.Module:
    """VGG with narrow layers; the real ones have 100 million weights."""
    m = library("torchvision").models.vgg
    model = m.VGG(nn.Sequential(), num_classes=5, init_weights=False, dropout=p)
    model.features = m.make_layers([4, "M", 8, "M"], batch_norm=True)
    for index, (width, height) in {0: (8 * 49, 16), 3: (16, 16), 6: (16, 5)}.items():
        model.classifier[index] = nn.Linear(width, height)
    return model


class LanguageModel(nn.Module):
    """An LSTM language model as in pytorch/examples, with a tanh before the decoder."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(p)
        self.encoder = nn.Embedding(32, 8)
        self.rnn = nn.LSTM(8, 12, 1, batch_first=True)
        self.tanh = nn.Tanh()
        self.decoder = nn.Linear(12, 32)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(self.drop(self.encoder(x)))
        decoded: Tensor = self.decoder(self.drop(self.tanh(output)))
        return decoded


class SparseAutoencoder(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.decoder = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(self.encoder(x))
        return decoded


@dataclass
class Published:
    """A model, its arguments, and what a person would list: name -> (activation, how often).

    A number in a name is written "*". With p = 0 the dropouts, "identity", are not replaced.
    """

    make: Callable[[float], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    replaced: dict[str, tuple[str, int]]
    compiles: bool = False


def labelled() -> dict[str, Tensor]:
    return {"input_ids": tokens(), "labels": tokens()}


def pixels() -> dict[str, Tensor]:
    return {"x": image()}


MODELS = {
    "gpt2": Published(
        gpt2,
        labelled,
        {
            "transformer.drop": ("identity", 1),
            "transformer.h.*.attn.attn_dropout": ("identity", 2),
            "transformer.h.*.attn.resid_dropout": ("identity", 2),
            "transformer.h.*.mlp.act": ("gelu_tanh", 2),
            "transformer.h.*.mlp.dropout": ("identity", 2),
        },
    ),
    "bert": Published(
        bert,
        labelled,
        {
            "bert.embeddings.dropout": ("identity", 1),
            "bert.encoder.layer.*.attention.self.dropout": ("identity", 2),
            "bert.encoder.layer.*.attention.output.dropout": ("identity", 2),
            "bert.encoder.layer.*.intermediate.intermediate_act_fn": ("gelu", 2),
            "bert.encoder.layer.*.output.dropout": ("identity", 2),
            "cls.predictions.transform.transform_act_fn": ("gelu", 1),
        },
    ),
    "t5": Published(
        t5,
        labelled,
        {
            "encoder.dropout": ("identity", 1),
            "encoder.block.*.layer.*.dropout": ("identity", 2),
            "encoder.block.*.layer.*.DenseReluDense.act": ("relu", 1),
            "encoder.block.*.layer.*.DenseReluDense.dropout": ("Identity", 1),
            "decoder.dropout": ("identity", 1),
            "decoder.block.*.layer.*.dropout": ("identity", 3),
            "decoder.block.*.layer.*.DenseReluDense.act": ("relu", 1),
            "decoder.block.*.layer.*.DenseReluDense.dropout": ("Identity", 1),
        },
    ),
    "vit": Published(
        vit,
        lambda: {"pixel_values": image()},
        {
            "vit.embeddings.dropout": ("identity", 1),
            "vit.layers.*.dropout": ("identity", 2),
            "vit.layers.*.mlp.activation_fn": ("gelu", 2),
        },
    ),
    "llama": Published(llama, labelled, {"model.layers.*.mlp.act_fn": ("silu", 2)}),
    "whisper": Published(
        whisper,
        lambda: {
            "input_features": torch.linspace(-1, 1, 2 * 8 * 16).reshape(2, 8, 16).sin(),
            "labels": tokens(),
        },
        {
            "model.encoder.layers.*.activation_fn": ("gelu", 1),
            "model.decoder.layers.*.activation_fn": ("gelu", 1),
        },
    ),
    "clip": Published(
        clip,
        lambda: {"input_ids": tokens(), "pixel_values": image()},
        {
            "text_model.encoder.layers.*.mlp.activation_fn": ("swish", 1),
            "vision_model.encoder.layers.*.mlp.activation_fn": ("swish", 1),
        },
    ),
    "mixtral": Published(mixtral, labelled, {"model.layers.*.mlp.experts.act_fn": ("silu", 1)}),
    "timm resnet": Published(  # of three basic blocks and a bottleneck
        of_timm("test_resnet"),
        pixels,
        {
            "conv1.*": ("relu", 2),
            "act1": ("relu", 1),
            "layer*.*.act1": ("relu", 4),
            "layer*.*.act2": ("relu", 4),
            "layer*.*.act3": ("relu", 1),
        },
    ),
    "timm convnext": Published(
        of_timm("test_convnext"),
        pixels,
        {
            "stages.*.blocks.*.mlp.act": ("gelu_tanh", 9),
            "stages.*.blocks.*.mlp.drop1": ("Identity", 9),
            "head.drop": ("identity", 1),
        },
    ),
    "timm efficientnet": Published(
        of_timm("test_efficientnet"),
        pixels,
        {
            "bn1.act": ("silu", 1),
            "bn2.act": ("silu", 1),
            "blocks.*.*.bn1.act": ("silu", 5),
            "blocks.*.*.bn2.act": ("silu", 2),
            "blocks.*.*.se.act1": ("silu", 2),
            "blocks.*.*.se.gate": ("sigmoid", 2),
        },
    ),
    "timm mobilenet": Published(
        of_timm("mobilenetv3_small_050"),
        pixels,
        {
            "bn1.act": ("hardswish", 1),
            "blocks.*.*.bn1.act": ("relu and hardswish", 12),
            "blocks.*.*.bn2.act": ("relu and hardswish", 10),
            "blocks.*.*.se.act1": ("relu", 9),
            "blocks.*.*.se.gate": ("hardsigmoid", 9),
            "act2": ("hardswish", 1),
        },
    ),
    "timm mixer": Published(
        mixer,
        pixels,
        {
            "blocks.*.mlp_tokens.act": ("gelu", 2),
            "blocks.*.mlp_tokens.drop1": ("Identity", 2),
            "blocks.*.mlp_tokens.drop2": ("identity", 2),
            "blocks.*.mlp_channels.act": ("gelu", 2),
            "blocks.*.mlp_channels.drop1": ("Identity", 2),
            "blocks.*.mlp_channels.drop2": ("identity", 2),
            "head_drop": ("identity", 1),
        },
        compiles=True,
    ),
    "resnet": Published(resnet, pixels, {"relu": ("relu", 1), "layer*.*.relu": ("relu", 4)}),
    "convnext": Published(convnext, pixels, {"features.*.*.block.*": ("gelu", 2)}),
    "efficientnet": Published(
        efficientnet,
        pixels,
        {
            "features.*.*": ("silu", 2),
            "features.*.*.block.*.*": ("silu", 5),
            "features.*.*.block.*.activation": ("silu", 3),
            "features.*.*.block.*.scale_activation": ("sigmoid", 3),
            "classifier.*": ("identity", 1),
        },
    ),
    "mobilenet": Published(
        mobilenet,
        pixels,
        {
            "features.*.*": ("hardswish", 2),
            "features.*.block.*.*": ("relu and hardswish", 21),
            "features.*.block.*.activation": ("relu", 9),
            "features.*.block.*.scale_activation": ("hardsigmoid", 9),
            "classifier.*": ("hardswish and Identity", 2),
        },
    ),
    "vgg": Published(
        vgg,
        pixels,
        {"features.*": ("relu", 2), "classifier.*": ("relu and Identity", 4)},
        compiles=True,
    ),
    "lstm": Published(
        LanguageModel, lambda: {"x": tokens()}, {"drop": ("identity", 1), "tanh": ("tanh", 1)}
    ),
    "autoencoder": Published(
        SparseAutoencoder,
        lambda: {"x": torch.linspace(-1, 1, 32).reshape(4, 8)},
        {"encoder.*": ("relu", 1)},
        compiles=True,
    ),
}
