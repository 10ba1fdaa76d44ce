#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "core/index.h"

namespace blasformer {

// Scratch memory of the calling thread, aligned to a cache line, kept for its next call: no allocation, and
// no page faults, the second time. One task uses it at a time.
inline void* thread_workspace(Index bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local Index capacity = 0;
#ifdef __SANITIZE_ADDRESS__  // for which what an earlier call needed beyond this one is out of bounds
  if (bytes < capacity) capacity = 0;
#endif
  if (bytes > capacity) {
    memory.reset();
    capacity = 0;
    memory.reset(std::aligned_alloc(64, static_cast<std::size_t>(round_up(bytes, 64))));
    if (memory == nullptr) throw std::bad_alloc();
    capacity = bytes;
  }
  return memory.get();
}

}  // namespace blasformer
