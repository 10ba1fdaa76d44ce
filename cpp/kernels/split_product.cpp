#include "kernels/split_product.h"

#include "core/cpu.h"
#include "core/workspace.h"
#include "kernels/packed_parts.h"
#include "kernels/tiles/bundle.h"
#include "kernels/tiles/plain_tile.h"

namespace blasformer {

namespace amx_reference {
const SplitProductKernels& split_product_kernels(Precision precision);
}
#if defined(BLASFORMER_HAS_AMX)
namespace amx {
const SplitProductKernels& split_product_kernels(Precision precision);
}
#endif
#if defined(BLASFORMER_HAS_AVX512_BF16)
namespace avx512_bf16 {
const SplitProductKernels& split_product_kernels(Precision precision);
}
#endif

const SplitProductKernels* split_product_kernels(Precision precision) {
  if (precision == Precision::ieee) return nullptr;
  switch (active_tile_unit()) {
    case TileUnit::reference: return &amx_reference::split_product_kernels(precision);
#if defined(BLASFORMER_HAS_AMX)
    case TileUnit::amx: return &amx::split_product_kernels(precision);
#endif
#if defined(BLASFORMER_HAS_AVX512_BF16)
    // One product is twice as fast as float32 multiply-adds, three are not.
    case TileUnit::avx512_bf16:
      return precision == Precision::medium ? &avx512_bf16::split_product_kernels(precision) : nullptr;
#endif
    default: return nullptr;
  }
}

Index used_bytes(const void* packed, Index depth) {
  const Bundle bundle(packed, depth);
  const int parts = bundle.head->parts;
  const Index used = bundle.head->unsplit != 0 ? stored_parts(parts) : parts;
  return bundle.tile(used, 0, 0) - static_cast<const unsigned char*>(packed);
}

namespace {

float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The lines as they were before they were split, one after another (rounded where there were fewer than three
// parts).
void join(const Bundle& bundle, Index lines, Index depth, bool left, float* joined) {
  for (Index line = 0; line < lines; ++line) {
    const bool unsplit = (bundle.head->unsplit >> line & 1) != 0;
    for (Index k = 0; k < depth; ++k) {
      const auto part = [&](Index index) {
        std::uint16_t number;
        std::memcpy(&number, bundle.tile(index, 0, 0) + place_in_part(line, k, left), sizeof number);
        return static_cast<std::uint32_t>(number);
      };
      float& x = joined[line * depth + k];
      if (unsplit) {
        x = float_of(part(0) << 16 | part(1));
      } else {
        // From the smallest: two of the parts of a number of 24 digits have 16 of them at most.
        x = 0;
        for (int index = bundle.head->parts - 1; index >= 0; --index) x += float_of(part(index) << 16);
      }
    }
  }
}

// Scratch memory of plain_tile: operands joined, and packed.
float* plain_tile_workspace(Index depth) {
  struct OfPlainTile;
  const Index lines = kLines + round_up(kLines, product_kernels<float>().panel);
  return static_cast<float*>(
      workspace_for<OfPlainTile>(2 * lines * depth * static_cast<Index>(sizeof(float))));
}

}  // namespace

void reserve_plain_tile(Index depth) { plain_tile_workspace(depth); }

bool plain_tile(const void* left, Index rows, Index left_depth, Index first, const void* right, Index columns,
                Index depth, float* tile, Index stride) noexcept {
  const ProductKernels<float>& kernels = product_kernels<float>();
  const Index left_size = kLines * depth, right_size = round_up(kLines, kernels.panel) * depth;
  float* joined;
  try {
    joined = plain_tile_workspace(depth);
  } catch (const std::bad_alloc&) {
    return false;
  }
  float* const joined_right = joined + left_size;
  float* const packed_left = joined_right + right_size;
  float* const packed_right = packed_left + left_size;
  join(Bundle(left, left_depth, first), rows, depth, true, joined);
  join(Bundle(right, depth), columns, depth, false, joined_right);
  kernels.pack_left({joined, depth, 1}, rows, depth, packed_left);
  kernels.pack_right({joined_right, 1, depth}, depth, columns, packed_right);
  kernels.multiply(packed_left, rows, depth, {packed_right, kernels.panel * depth, kernels.panel}, columns,
                   nullptr, 0, tile, stride);
  return true;
}

}  // namespace blasformer
