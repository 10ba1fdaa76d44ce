#pragma once

#include <cstddef>

namespace blasformer {

// Memory for arrays, aligned to a cache line. Blocks are kept when they are released, within bounds, and
// handed out again: memory fresh from the system must be cleared by it page by page, which took a fifth of
// the time of attention's gradients and a sixth of that of training a tiny model; and aligned memory takes
// the C library longer to find than small tensors take to fill.
void* allocate_memory(std::size_t bytes);  // throws std::bad_alloc
void release_memory(void* memory) noexcept;
void give_back_memory(void* memory) noexcept;  // the same, but it is not kept
// How many bytes there are at a place that allocate_memory returned.
std::size_t memory_capacity(const void* memory) noexcept;

// From this size on a block is large: how much is kept of it is bounded by the machine's memory. Smaller
// arrays of NumPy are better off in NumPy's own memory.
constexpr std::size_t kLargeBlock = std::size_t{32} << 10;

}  // namespace blasformer
