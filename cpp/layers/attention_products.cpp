#include "layers/attention_products.h"

#include <algorithm>

#include "core/cpu.h"
#include "core/precision.h"
#include "kernels/attention_kernels.h"
#include "kernels/split_product.h"

namespace blasformer {

namespace {

// Fewer leave much of a tile empty, and packing weights costs as much whatever the heads are. The reference
// of tiles, which is for tests, is for small ones too.
bool is_worth_splitting(const AttentionProblem& p) {
  // Dot products gain nothing here: 12 heads of 128 x 64 take 0.256 ms forward and 0.861 backward, 0.251 and
  // 0.670 with multiply-adds (Zen 5, 1 thread).
  if (active_tile_unit() == TileUnit::avx512_bf16) return false;
  if (active_tile_unit() == TileUnit::reference) return true;
  return std::min(p.dim, p.value_dim) >= 24 && p.key_length >= 32 && p.group() * p.query_length >= 24;
}

// Numbers that have 8 digits, and whose result is rounded to as many, need no third part of the weights;
// their own second and third parts are zero, which costs nothing.
Precision precision_for(DType dtype) {
  const Precision precision = current_precision();
  return dtype == DType::bfloat16 && precision == Precision::highest ? Precision::high : precision;
}

}  // namespace

const SplitProductKernels* attention_products(const AttentionProblem& p) {
  // Tiles sum in another order than the kernel of few queries.
  if (p.ordered_scores) return nullptr;
  if (p.query.dtype == DType::float64 || p.few_queries() || !is_worth_splitting(p)) return nullptr;
  return split_product_kernels(precision_for(p.query.dtype));
}

PairProduct attention_pairs(const AttentionProblem& p) {
  const bool whole_pairs = p.query.dtype == DType::bfloat16 && p.dim % 2 == 0;
  if (!whole_pairs || p.ordered_scores || p.few_queries()) return nullptr;
  return current_precision() == Precision::ieee ? nullptr : pair_product();
}

std::string attention_kernel_name(const AttentionProblem& p) {
  return p.split == nullptr ? isa_name(active_isa()) : active_isa_name();
}

void reserve_for_products(const AttentionProblem& p) {
  if (p.split == nullptr) return;
  reserve_plain_tile(std::max({p.dim, p.value_dim, attention_kernels<float>().key_block}));
}

}  // namespace blasformer
