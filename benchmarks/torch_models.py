"""The cases' models for torch.func: functions of a dict of Keras' variables, by path, and a batch of examples.

Each is the Keras model operation by operation, in torch's layout (N, C, H, W), so that with the same weights both have
the same kernel. torchvision's models of these names differ: in strides, biases, padding and epsilons, or in the
numbers of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Params = Mapping[str, Tensor]
Activation = Callable[[Tensor], Tensor]


def variable_from_keras(value: np.ndarray) -> Tensor:
    """A variable in torch's layout: kernels of images (H, W, in, out) become (out, in, H, W), the rest stays."""
    value = np.asarray(value)
    if value.ndim == 4:  # Keras' depthwise kernels are (H, W, channels, 1)
        value = value.transpose((2, 3, 0, 1) if value.shape[3] == 1 else (3, 2, 0, 1))
    return torch.from_numpy(np.array(value))


def inputs_from_keras(x: np.ndarray) -> Tensor:
    """Examples in torch's layout: images (n, H, W, C) become (n, C, H, W), the rest stays."""
    return torch.from_numpy(np.array(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x))


def _dense(p: Params, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def _conv(p: Params, name: str, x: Tensor, stride: int = 1, *, same: bool = True) -> Tensor:
    """A convolution, depthwise if its kernel has one input channel, padded as TensorFlow's SAME or not at all."""
    kernel = p[f"{name}/kernel"]
    groups = x.shape[1] if kernel.shape[1] == 1 else 1
    padding = 0
    if same:
        sizes, taps = x.shape[2:], kernel.shape[2]
        (total,) = {max(0, (math.ceil(size / stride) - 1) * stride + taps - size) for size in sizes}
        if total % 2:
            x = F.pad(x, (total // 2, total - total // 2) * 2)
        else:
            padding = total // 2
    return F.conv2d(x, kernel, p.get(f"{name}/bias"), stride, padding, groups=groups)


def _batch_norm(p: Params, name: str, x: Tensor, eps: float = 1e-3) -> Tensor:
    mean, variance, gamma, beta = (p[f"{name}/{v}"] for v in ("moving_mean", "moving_variance", "gamma", "beta"))
    return F.batch_norm(x, mean, variance, gamma, beta, eps=eps)


def _layer_norm(p: Params, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}/gamma"], p[f"{name}/beta"], eps)


def mlp(p: Params, x: Tensor) -> Tensor:
    """Dense layers hidden_0, hidden_1, ..., and logits."""
    for k in range(sum(path.startswith("hidden_") for path in p) // 2):
        x = F.relu(_dense(p, f"hidden_{k}", x))
    return _dense(p, "logits", x)


def cnn(p: Params, x: Tensor) -> Tensor:
    """Three convolutions without padding, and a dense layer of all positions."""
    for k in range(3):
        x = _conv(p, f"conv_{k}", x, same=False)
        x = F.relu(x) if k < 2 else x
    return _dense(p, "logits", x.permute(0, 2, 3, 1).flatten(1))


def resnet50(p: Params, x: Tensor) -> Tensor:
    """keras.applications.ResNet50: strides at the blocks' first convolution, biases everywhere."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return _batch_norm(p, f"{name}_bn", _conv(p, f"{name}_conv", x, stride), eps=1.001e-5)

    x = F.relu(_batch_norm(p, "conv1_bn", _conv(p, "conv1_conv", F.pad(x, (3,) * 4), 2, same=False), eps=1.001e-5))
    x = F.max_pool2d(x, 3, 2, padding=1)
    for stage, blocks in enumerate((3, 4, 6, 3), 2):
        for block in range(1, blocks + 1):
            name = f"conv{stage}_block{block}"
            stride = 2 if block == 1 and stage > 2 else 1
            shortcut = conv(f"{name}_0", x, stride) if block == 1 else x
            y = F.relu(conv(f"{name}_1", x, stride))
            y = F.relu(conv(f"{name}_2", y))
            x = F.relu(shortcut + conv(f"{name}_3", y))
    return _dense(p, "predictions", x.mean((2, 3)))


def mobilenet(p: Params, x: Tensor) -> Tensor:
    """keras.applications.MobileNet."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.relu6(_batch_norm(p, f"{name}_bn", _conv(p, name, x, stride)))

    x = conv("conv1", x, 2)
    for block in range(1, 14):
        x = conv(f"conv_dw_{block}", x, 2 if block in (2, 4, 6, 12) else 1)
        x = conv(f"conv_pw_{block}", x)
    return _conv(p, "conv_preds", x.mean((2, 3), keepdim=True)).flatten(1)


def mobilenetv2(p: Params, x: Tensor) -> Tensor:
    """keras.applications.MobileNetV2."""
    x = F.relu6(_batch_norm(p, "bn_Conv1", _conv(p, "Conv1", x, 2)))
    for block in range(17):
        name = f"block_{block}" if block else "expanded_conv"
        y = x
        if block:
            y = F.relu6(_batch_norm(p, f"{name}_expand_BN", _conv(p, f"{name}_expand", y)))
        stride = 2 if block in (1, 3, 6, 13) else 1
        y = F.relu6(_batch_norm(p, f"{name}_depthwise_BN", _conv(p, f"{name}_depthwise", y, stride)))
        y = _batch_norm(p, f"{name}_project_BN", _conv(p, f"{name}_project", y))
        x = x + y if x.shape == y.shape else y
    x = F.relu6(_batch_norm(p, "Conv_1_bn", _conv(p, "Conv_1", x)))
    return _dense(p, "predictions", x.mean((2, 3)))


def mobilenetv3small(p: Params, x: Tensor) -> Tensor:
    """keras.applications.MobileNetV3Small, preprocessing included."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return _batch_norm(p, f"{name}_bn", _conv(p, name, x, stride))

    x = F.hardswish(conv("conv", x / 127.5 - 1, 2))
    for block in range(11):
        name = f"expanded_conv_{block}" if block else "expanded_conv"
        activation: Activation = F.relu if block < 3 else F.hardswish
        y = activation(conv(f"{name}_expand", x)) if block else x
        y = activation(conv(f"{name}_depthwise", y, 2 if block in (0, 1, 3, 8) else 1))
        if f"{name}_squeeze_excite_conv/kernel" in p:
            s = F.relu(_conv(p, f"{name}_squeeze_excite_conv", y.mean((2, 3), keepdim=True)))
            y = y * F.relu6(_conv(p, f"{name}_squeeze_excite_conv_1", s) + 3) / 6
        y = conv(f"{name}_project", y)
        x = x + y if x.shape == y.shape else y
    x = F.hardswish(conv("conv_1", x)).mean((2, 3), keepdim=True)
    return _conv(p, "logits", F.hardswish(_conv(p, "conv_2", x))).flatten(1)


def efficientnetb0(p: Params, x: Tensor) -> Tensor:
    """keras.applications.EfficientNetB0, preprocessing included."""
    x = x / 255
    x = F.silu(_batch_norm(p, "stem_bn", _conv(p, "stem_conv", x, 2)))
    stages = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))  # blocks, stride of the first
    for stage, (blocks, stride) in enumerate(stages, 1):
        for block in range(blocks):
            name = f"block{stage}{'abcd'[block]}"
            y = x
            if stage > 1:
                y = F.silu(_batch_norm(p, f"{name}_expand_bn", _conv(p, f"{name}_expand_conv", y)))
            y = F.silu(_batch_norm(p, f"{name}_bn", _conv(p, f"{name}_dwconv", y, 1 if block else stride)))
            s = F.silu(_conv(p, f"{name}_se_reduce", y.mean((2, 3), keepdim=True)))
            y = y * torch.sigmoid(_conv(p, f"{name}_se_expand", s))
            y = _batch_norm(p, f"{name}_project_bn", _conv(p, f"{name}_project_conv", y))
            x = x + y if x.shape == y.shape else y
    x = F.silu(_batch_norm(p, "top_bn", _conv(p, "top_conv", x)))
    return _dense(p, "predictions", x.mean((2, 3)))


def convnext_tiny(p: Params, x: Tensor) -> Tensor:
    """keras.applications.ConvNeXtTiny, preprocessing included."""
    scales = {path.partition("/")[0]: value for path, value in p.items() if "layer_scale" in path}
    mean, deviation = (255 * torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def norm(name: str, x: Tensor) -> Tensor:
        return _layer_norm(p, f"convnext_tiny_{name}_layernorm", x.permute(0, 2, 3, 1), 1e-6)

    x = _conv(p, "convnext_tiny_stem/convnext_tiny_stem_conv", (x - mean) / deviation, 4, same=False)
    x = norm("stem/convnext_tiny_stem", x).permute(0, 3, 1, 2)
    for stage, blocks in enumerate((3, 3, 9, 3)):
        if stage:
            name = f"convnext_tiny_downsampling_block_{stage - 1}/convnext_tiny_downsampling"
            x = _layer_norm(p, f"{name}_layernorm_{stage - 1}", x.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)
            x = _conv(p, f"{name}_conv_{stage - 1}", x, 2, same=False)
        for block in range(blocks):
            name = f"stage_{stage}_block_{block}"
            y = norm(name, _conv(p, f"convnext_tiny_{name}_depthwise_conv", x))
            y = F.gelu(_dense(p, f"convnext_tiny_{name}_pointwise_conv_1", y))
            y = _dense(p, f"convnext_tiny_{name}_pointwise_conv_2", y) * scales[f"convnext_tiny_{name}_layer_scale"]
            x = x + y.permute(0, 3, 1, 2)
    x = _layer_norm(p, "convnext_tiny_head_layernorm", x.mean((2, 3)), 1e-6)
    return _dense(p, "convnext_tiny_head_dense", x)


def digits(p: Params, x: Tensor) -> Tensor:
    """The demo's CNN (`examples.digits_train`)."""
    x = F.relu(_batch_norm(p, "norm1", _conv(p, "conv1", x)))
    x = F.relu(_batch_norm(p, "norm2", _conv(p, "conv2", x, 2)))
    return _dense(p, "logits", x.permute(0, 2, 3, 1).flatten(1))


def xception_head(p: Params, x: Tensor) -> Tensor:
    """keras.applications.Xception without its top, the mean over positions, and a dense layer."""
    numbers = {path.split("/")[-2] for path in p if path.startswith("conv2d") and path.endswith("kernel")}
    shortcuts = iter(sorted(numbers, key=lambda name: int(name.removeprefix("conv2d").lstrip("_") or 0)))

    def norm(name: str, x: Tensor) -> Tensor:
        return _batch_norm(p, f"{name}", x)

    def separable(name: str, x: Tensor) -> Tensor:
        kernels = {f"{part}/kernel": p[f"{name}/{part}_kernel"] for part in ("depthwise", "pointwise")}
        return norm(f"{name}_bn", _conv(kernels, "pointwise", _conv(kernels, "depthwise", x)))

    def shortcut(x: Tensor) -> Tensor:
        name = next(shortcuts)
        return norm(name.replace("conv2d", "batch_normalization"), _conv(p, f"{name}", x, 2))

    def pooled(x: Tensor) -> Tensor:
        total = [max(0, (math.ceil(size / 2) - 1) * 2 + 3 - size) for size in reversed(x.shape[2:])]
        edges = [edge for size in total for edge in (size // 2, size - size // 2)]
        return F.max_pool2d(F.pad(x, edges, value=-math.inf), 3, 2)

    x = F.relu(norm("block1_conv1_bn", _conv(p, "block1_conv1", x, 2, same=False)))
    x = F.relu(norm("block1_conv2_bn", _conv(p, "block1_conv2", x, same=False)))
    for block in (2, 3, 4):
        y = separable(f"block{block}_sepconv1", F.relu(x) if block > 2 else x)
        y = separable(f"block{block}_sepconv2", F.relu(y))
        x = pooled(y) + shortcut(x)
    for block in range(5, 13):
        y = x
        for k in (1, 2, 3):
            y = separable(f"block{block}_sepconv{k}", F.relu(y))
        x = x + y
    y = separable("block13_sepconv1", F.relu(x))
    y = separable("block13_sepconv2", F.relu(y))
    x = pooled(y) + shortcut(x)
    for k in (1, 2):
        x = F.relu(separable(f"block14_sepconv{k}", x))
    return _dense(p, "head", x.mean((2, 3)))


def _attention_block(p: Params, k: int, x: Tensor, *, causal: bool, eps: float) -> Tensor:
    """Attention and a hidden layer, each normalized after its addition."""

    def heads(name: str, x: Tensor) -> Tensor:
        return torch.einsum("nti,ihk->nhtk", x, p[f"{name}/kernel"]) + p[f"{name}/bias"][:, None]

    q, key, value = (heads(f"attention_{k}/{name}", x) for name in ("query", "key", "value"))
    scores = q @ key.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    name = f"attention_{k}/attention_output"
    attended = torch.einsum("nhtk,hki->nti", torch.softmax(scores, -1) @ value, p[f"{name}/kernel"])
    x = _layer_norm(p, f"attention_norm_{k}", x + attended + p[f"{name}/bias"], eps)
    hidden = _dense(p, f"project_{k}", F.gelu(_dense(p, f"expand_{k}", x)))
    return _layer_norm(p, f"norm_{k}", x + hidden, eps)


def _blocks(p: Params) -> range:
    return range(sum(path.startswith("expand_") for path in p) // 2)


def _embedded(p: Params, tokens: Tensor) -> Tensor:
    return F.embedding(tokens, p["words/embeddings"]) + p["positions/embeddings"]


def transformer(p: Params, x: Tensor) -> Tensor:
    """Blocks of attention and a hidden layer, each normalized after its addition; the mean over tokens."""
    for k in _blocks(p):
        x = _attention_block(p, k, x, causal=False, eps=1e-3)
    return _dense(p, "logits", x.mean(1))


def encoder(p: Params, x: Tensor) -> Tensor:
    """BERT with a classifier on its pooled first token (`benchmarks.real.models`)."""
    x = _layer_norm(p, "embedding_norm", _embedded(p, x), 1e-12)
    for k in _blocks(p):
        x = _attention_block(p, k, x, causal=False, eps=1e-12)
    return _dense(p, "logits", torch.tanh(_dense(p, "pooler", x[:, 0])))


def decoder(p: Params, x: Tensor) -> Tensor:
    """A language model: the logits of each next word (`benchmarks.real.models`)."""
    x = _embedded(p, x)
    for k in _blocks(p):
        x = _attention_block(p, k, x, causal=True, eps=1e-12)
    return _dense(p, "logits", x)


def lstm(p: Params, x: Tensor) -> Tensor:
    """An LSTM written out step by step, since torch's own has no vmap, and a dense layer of its last state."""
    recurrent = p["lstm/lstm_cell/recurrent_kernel"]
    projected = x @ p["lstm/lstm_cell/kernel"] + p["lstm/lstm_cell/bias"]
    h = c = x.new_zeros(x.shape[0], recurrent.shape[0])
    for step in projected.unbind(1):
        i, f, g, o = (step + h @ recurrent).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return _dense(p, "logits", h)


MODELS: dict[str, Callable[[Params, Tensor], Tensor]] = {
    fn.__name__: fn
    for fn in (
        mlp,
        cnn,
        resnet50,
        mobilenet,
        mobilenetv2,
        mobilenetv3small,
        efficientnetb0,
        convnext_tiny,
        transformer,
        lstm,
        digits,
        xception_head,
        encoder,
        decoder,
    )
} | {"transformer_1000": transformer, "tiny": mlp}
