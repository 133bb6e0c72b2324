// The kernels of one instruction set. Including this in a file compiled for that set makes them; the
// name of the table follows the set.
#pragma once
#include <stddef.h>

#include "add_layer_norm.h"
#include "adamw.h"
#include "bias_gelu.h"
#include "biased_attention.h"
#include "embed_kept.h"
#include "embed_tokens.h"
#include "gemm.h"
#include "kernels.h"
#include "linear_cross_entropy.h"
#include "masked_gather.h"
#include "nearest_code.h"
#include "negative_cosine.h"
#include "packed_attention.h"
#include "patchify.h"
#include "rotary.h"
#include "smooth_l1.h"
#include "unshuffle_tokens.h"

namespace EVA_ISA {

#define EVA_KERNEL(name) {#name, (void*)&name, Signature<decltype(&name)>::letters}
static const Kernel kernels[] = {
    EVA_KERNEL(add_layer_norm), EVA_KERNEL(add_layer_norm_backward),
    EVA_KERNEL(adamw),
    EVA_KERNEL(bias_gelu), EVA_KERNEL(bias_gelu_backward),
    EVA_KERNEL(biased_attention), EVA_KERNEL(biased_attention_backward),
    EVA_KERNEL(embed_kept),
    EVA_KERNEL(embed_tokens), EVA_KERNEL(embed_tokens_backward),
    EVA_KERNEL(gemm),
    EVA_KERNEL(linear_cross_entropy_rows),
    EVA_KERNEL(masked_gather), EVA_KERNEL(masked_gather_backward),
    EVA_KERNEL(nearest_code),
    EVA_KERNEL(negative_cosine), EVA_KERNEL(negative_cosine_backward),
    EVA_KERNEL(packed_attention), EVA_KERNEL(packed_attention_backward),
    EVA_KERNEL(patchify),
    EVA_KERNEL(rotary),
    EVA_KERNEL(smooth_l1), EVA_KERNEL(smooth_l1_backward),
    EVA_KERNEL(unshuffle_tokens), EVA_KERNEL(unshuffle_tokens_backward),
    {nullptr, nullptr, nullptr},
};
#undef EVA_KERNEL

#define EVA_SIZE(structure) {#structure, sizeof(structure)}
#define EVA_FIELD(structure, field) {#structure "." #field, offsetof(structure, field)}
static const Place places[] = {
    EVA_SIZE(AdamTensor), EVA_FIELD(AdamTensor, size), EVA_FIELD(AdamTensor, param),
    EVA_FIELD(AdamTensor, exp_avg), EVA_FIELD(AdamTensor, exp_avg_sq), EVA_FIELD(AdamTensor, grad),
    EVA_FIELD(AdamTensor, copy), EVA_FIELD(AdamTensor, step), EVA_FIELD(AdamTensor, grad_type),
    EVA_FIELD(AdamTensor, copy_type), EVA_FIELD(AdamTensor, weight_decay),
    EVA_SIZE(Heads), EVA_FIELD(Heads, data), EVA_FIELD(Heads, batch), EVA_FIELD(Heads, token),
    EVA_FIELD(Heads, head),
    {nullptr, 0},
};
#undef EVA_SIZE
#undef EVA_FIELD

}  // namespace EVA_ISA
