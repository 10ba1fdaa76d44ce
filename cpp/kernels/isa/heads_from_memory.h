#pragma once

// Where heads are so many that they come from memory, forward would wait for the rows that a head begins
// with, one short head after another. So those that attend to a head ask for the first rows of the next one,
// and for the lines that they will write themselves, while their last block of keys is computed.
//
// Time without over time with it, 32 x 12 heads of 64 (Zen 5, two threads, float32): AVX-512 1.12 to 1.16 for
// 128 tokens, 1.06 for 197; AVX2 1.08 and 1.03.

#include "core/array_view.h"
#include "kernels/isa/query_tile.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// All that follows is inlined: GCC 12 takes functions that do nothing but ask for functions without effects.
struct AskedRows {
  const char* first = nullptr;
  Index count = 0, bytes = 0, stride = 0;

  template <class Operand>
  static AskedRows of(const Operand& x, Index start, Index count, Index columns) {
    const Index item = item_size(x.dtype);
    if (x.column_stride != 1) return {};
    return {static_cast<const char*>(x.data) + start * item, count, columns * item, x.row_stride * item};
  }

  [[gnu::always_inline]] void ask(Index begin, Index end) const {
    for (Index r = begin; r < end; ++r) {
      for (Index byte = 0; byte < bytes; byte += 64) __builtin_prefetch(first + r * stride + byte, 0, 2);
    }
  }
  [[gnu::always_inline]] void ask_to_write() const {
    for (Index r = 0; r < count; ++r) {
      for (Index byte = 0; byte < bytes; byte += 64) __builtin_prefetch(first + r * stride + byte, 1, 3);
    }
  }
};

class HeadsFromMemory {
 public:
  // Two runs ask for the same: what the first has asked for may be on its way only.
  HeadsFromMemory(const AttentionProblem& p, const QueryRun& run) {
    // Below that caches may keep all heads, and asking costs up to 5 %.
    constexpr Index least_bytes = 24 << 20;
    const Index heads = p.batch * p.key_heads, next = run.batch * p.key_heads + run.key_head + 1;
    const Index bytes = heads * p.key_length * (p.dim + p.value_dim) * item_size(p.key.dtype);
    if (bytes < least_bytes || run.first + 2 * run.count < p.group() * p.query_length) return;
    asks_ = true;
    if (next == heads) return;
    const Index batch = next / p.key_heads, key_head = next % p.key_heads;
    const auto rows_of = [&](const AttentionOperand& x, Index head, Index count, Index columns) {
      return AskedRows::of(x, x.offset(batch, head), smaller(count, kKeyBlock), columns);
    };
    next_[0] = rows_of(p.query, key_head * p.group(), p.query_length, p.dim);
    next_[1] = rows_of(p.key, key_head, p.key_length, p.dim);
    next_[2] = rows_of(p.value, key_head, p.key_length, p.value_dim);
  }

  // For one tile of `tiles`.
  template <class T>
  [[gnu::always_inline]] void ask(const AttentionProblem& p, const QueryTile<T>& tile, Index number,
                                  Index tiles, const MutableAttentionOperand& output) const {
    if (!asks_) return;
    for (const AskedRows& rows : next_)
      rows.ask(rows.count * number / tiles, rows.count * (number + 1) / tiles);
    for (Index l = 0; l < tile.count; ++l)
      AskedRows::of(output, tile.offset(output, l), 1, p.value_dim).ask_to_write();
  }

 private:
  AskedRows next_[3];
  bool asks_ = false;
};

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
