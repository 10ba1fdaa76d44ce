#pragma once

#include <cstddef>
#include <memory>

#include "core/index.h"
#include "core/memory.h"

namespace blasformer {

// Scratch memory of the calling thread, aligned to a cache line, kept for its next call: no allocation, and
// no page faults, the second time. Each Purpose has its own, which one task uses at a time.
template <class Purpose>
inline void* workspace_for(Index bytes) {
  struct Release {
    void operator()(void* p) const { release_memory(p); }
  };
  thread_local std::unique_ptr<void, Release> memory;
  thread_local Index capacity = 0;
#ifdef __SANITIZE_ADDRESS__  // for which what an earlier call needed beyond this one is out of bounds
  if (bytes < capacity) capacity = 0;
#endif
  if (bytes > capacity) {
    memory.reset();
    capacity = 0;
    memory.reset(allocate_memory(static_cast<std::size_t>(bytes)));
    capacity = bytes;
  }
  return memory.get();
}

// For what a task needs.
inline void* thread_workspace(Index bytes) {
  struct OfTask;
  return workspace_for<OfTask>(bytes);
}

// For what a call shares with its tasks.
inline void* shared_workspace(Index bytes) {
  struct OfCall;
  return workspace_for<OfCall>(bytes);
}

}  // namespace blasformer
