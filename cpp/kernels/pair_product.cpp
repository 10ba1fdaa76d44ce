#include "kernels/pair_product.h"

#include "core/cpu.h"

namespace blasformer {

#if defined(BLASFORMER_HAS_AVX512_BF16)
namespace avx512_bf16 {
PairProduct pair_product();
}
#endif

PairProduct pair_product() {
#if defined(BLASFORMER_HAS_AVX512_BF16)
  if (active_tile_unit() == TileUnit::avx512_bf16) return avx512_bf16::pair_product();
#endif
  return nullptr;
}

}  // namespace blasformer
