"""The fused ops. Each is a function with its plain-PyTorch version as `.reference`.

    op                  what it does                                      gradients for
    patchify            uint8 images to normalised patch rows             -
    embed_tokens        mask tokens, CLS and positions in one pass        all five tensors
    add_layer_norm      residual add, drop-path scale, LayerNorm          x, branch, biases, weight
    bias_gelu           exact or quick GELU of h + b                      h, b
    masked_gather       rows of the masked patches                        x
    layer_norm_project  LayerNorm and Linear, gather optional in front    all but the mask
    negative_cosine     the loss                                          p
    masked_cosine_head  the three above as one                            all but mask and target
    packed_attention    attention on packed projections                   q, packed
    adamw               the optimiser over all tensors                    -

`<op>_forward` and `<op>_backward` are the same without checks and autograd, for functions that
bring their own backward. `eva_fast.ops.dispatch` says which implementation runs.
"""

from eva_fast.ops.adamw import FusedAdamW, adamw, gradient_scale
from eva_fast.ops.add_layer_norm import (
    add_layer_norm,
    add_layer_norm_backward,
    add_layer_norm_forward,
)
from eva_fast.ops.bias_gelu import bias_gelu, bias_gelu_backward, bias_gelu_forward
from eva_fast.ops.dispatch import implementation, register, set_kernels
from eva_fast.ops.embed_tokens import embed_tokens, embed_tokens_backward, embed_tokens_forward
from eva_fast.ops.layer_norm_project import layer_norm_project
from eva_fast.ops.masked_cosine_head import (
    masked_cosine_head,
    masked_cosine_head_backward,
    masked_cosine_head_forward,
)
from eva_fast.ops.masked_gather import masked_gather, masked_gather_backward, masked_gather_forward
from eva_fast.ops.negative_cosine import (
    negative_cosine,
    negative_cosine_backward,
    negative_cosine_forward,
)
from eva_fast.ops.packed_attention import (
    packed_attention,
    packed_attention_backward,
    packed_attention_forward,
)
from eva_fast.ops.patchify import patchify

__all__ = [
    "FusedAdamW",
    "adamw",
    "add_layer_norm",
    "add_layer_norm_backward",
    "add_layer_norm_forward",
    "bias_gelu",
    "bias_gelu_backward",
    "bias_gelu_forward",
    "embed_tokens",
    "embed_tokens_backward",
    "embed_tokens_forward",
    "gradient_scale",
    "implementation",
    "layer_norm_project",
    "masked_cosine_head",
    "masked_cosine_head_backward",
    "masked_cosine_head_forward",
    "masked_gather",
    "masked_gather_backward",
    "masked_gather_forward",
    "negative_cosine",
    "negative_cosine_backward",
    "negative_cosine_forward",
    "packed_attention",
    "packed_attention_backward",
    "packed_attention_forward",
    "patchify",
    "register",
    "set_kernels",
]
