// The kernels of one instruction set, by name. Including this in a file compiled for that set makes
// them; the name of the array follows the set.
#pragma once
#include "add_layer_norm.h"
#include "adamw.h"
#include "attention.h"
#include "bias_gelu.h"
#include "gemm.h"
#include "kernels.h"
#include "negative_cosine.h"
#include "tokens.h"

namespace EVA_ISA {

#define EVA_ENTRY(name) {#name, (void*)&name}
static const Kernel kernels[] = {
    EVA_ENTRY(add_layer_norm),   EVA_ENTRY(add_layer_norm_backward),
    EVA_ENTRY(adamw),            EVA_ENTRY(sum_of_squares),
    EVA_ENTRY(attention),        EVA_ENTRY(attention_backward),
    EVA_ENTRY(bias_gelu),        EVA_ENTRY(bias_gelu_backward),
    EVA_ENTRY(embed_tokens),     EVA_ENTRY(embed_tokens_backward),
    EVA_ENTRY(gemm),             EVA_ENTRY(masked_gather),
    EVA_ENTRY(masked_gather_backward), EVA_ENTRY(negative_cosine),
    EVA_ENTRY(negative_cosine_backward), EVA_ENTRY(patchify),
    {nullptr, nullptr},
};
#undef EVA_ENTRY

}  // namespace EVA_ISA
