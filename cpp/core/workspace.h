#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "core/index.h"
#include "core/memory.h"

namespace blasformer {

// What a growing scratch leaves behind fits nothing else.
struct GiveBackMemory {
  void operator()(void* p) const { give_back_memory(p); }
};

// Scratch memory, aligned to a cache line, that grows to what is asked of it.
class Scratch {
 public:
  void* of_size(Index bytes) {
#ifdef __SANITIZE_ADDRESS__  // for which what an earlier call needed beyond this one is out of bounds
    if (bytes < capacity_) capacity_ = 0;
#endif
    if (bytes > capacity_) {
      memory_.reset();
      capacity_ = 0;
      memory_.reset(allocate_memory(static_cast<std::size_t>(bytes)));
      capacity_ = bytes;
    }
    return memory_.get();
  }
  Index capacity() const { return capacity_; }

 private:
  std::unique_ptr<void, GiveBackMemory> memory_;
  Index capacity_ = 0;
};

// Scratch memory of the calling thread, kept for its next task: no allocation, and no page faults, the second
// time. Each Purpose has its own, which one task uses at a time.
template <class Purpose>
inline void* workspace_for(Index bytes) {
  thread_local Scratch scratch;
  return scratch.of_size(bytes);
}

// For what a task needs.
inline void* thread_workspace(Index bytes) {
  struct OfTask;
  return workspace_for<OfTask>(bytes);
}

// For what a call shares with its tasks, while it lives; the calling thread keeps it for its next call. A
// call within a call, as a signal handler of Python makes one between two tasks, has its own.
class SharedWorkspace {
 public:
  explicit SharedWorkspace(Index bytes) : scratch_(std::exchange(kept(), Scratch())) {
    data_ = scratch_.of_size(bytes);
  }
  ~SharedWorkspace() {
    if (scratch_.capacity() > kept().capacity()) kept() = std::move(scratch_);
  }
  SharedWorkspace(const SharedWorkspace&) = delete;
  SharedWorkspace& operator=(const SharedWorkspace&) = delete;

  void* data() const { return data_; }

 private:
  static Scratch& kept() {
    thread_local Scratch scratch;
    return scratch;
  }

  Scratch scratch_;
  void* data_;
};

}  // namespace blasformer
