#include "core/memory.h"

#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <new>
#include <vector>

#include "core/kept_memory.h"

namespace blasformer {

namespace {

constexpr std::size_t kHeader = 64;  // in front of the memory: its capacity, and the alignment
constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t& capacity_of(void* block) { return *static_cast<std::size_t*>(block); }

// Sizes that differ by up to a 32nd share blocks.
std::size_t rounded_capacity(std::size_t bytes) {
  const std::size_t step = std::bit_floor(bytes) / 32;
  return (bytes + step - 1) / step * step;
}

// The memory this process may use: the machine's, or what its control group is granted.
std::size_t available_memory() {
  std::size_t available =
      static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    std::FILE* const file = std::fopen(path, "r");
    if (file == nullptr) continue;
    unsigned long long limit = 0;  // "max" is no number
    if (std::fscanf(file, "%llu", &limit) == 1)
      available = std::min(available, static_cast<std::size_t>(limit));
    std::fclose(file);
  }
  return available;
}

// Blocks that nobody uses. One thread at a time; others, and a child forked while one was here, do without.
class KeptBlocks {
 public:
  void* take(std::size_t capacity) noexcept {
    if (busy_.test_and_set(std::memory_order_acquire)) return nullptr;
    void* block = nullptr;
    // A block up to half as large again will do: memory that waits for its own size is memory twice.
    for (auto blocks = blocks_.lower_bound(capacity);
         block == nullptr && blocks != blocks_.end() && blocks->first <= capacity + capacity / 2; ++blocks) {
      if (blocks->second.empty()) continue;
      block = blocks->second.back();
      blocks->second.pop_back();
      bytes_ -= blocks->first;
    }
    busy_.clear(std::memory_order_release);
    return block;
  }

  // False if the block is to be freed.
  bool keep(void* block, std::size_t capacity) noexcept {
    if (capacity > limit_ / 2 || busy_.test_and_set(std::memory_order_acquire)) return false;
    bool kept = true;
    try {
      if (bytes_ + capacity > limit_) free_all();  // sizes have changed: what is here is not asked for
      blocks_[capacity].push_back(block);
      bytes_ += capacity;
    } catch (const std::bad_alloc&) {
      kept = false;
    }
    busy_.clear(std::memory_order_release);
    return kept;
  }

  void clear() noexcept {
    if (busy_.test_and_set(std::memory_order_acquire)) return;
    free_all();
    busy_.clear(std::memory_order_release);
  }

 private:
  void free_all() noexcept {
    for (auto& [capacity, blocks] : blocks_) {
      for (void* block : blocks) std::free(block);
      blocks.clear();
    }
    bytes_ = 0;
  }

  std::atomic_flag busy_;
  std::map<std::size_t, std::vector<void*>> blocks_;
  std::size_t bytes_ = 0;
  const std::size_t limit_ = std::min(available_memory() / 16, std::size_t{1} << 30);
};

// Never destroyed: arrays may be released after everything else.
KeptBlocks& kept_blocks() {
  static KeptBlocks* const blocks = new KeptBlocks;
  return *blocks;
}

void* fresh_block(std::size_t capacity) noexcept {
  const std::size_t alignment = capacity >= 2 * kHugePage ? kHugePage : kHeader;
  void* const block = std::aligned_alloc(alignment, (capacity + alignment - 1) / alignment * alignment);
  // Whole huge pages only: of the last one little may be used.
  if (block != nullptr && alignment == kHugePage)
    madvise(block, capacity / kHugePage * kHugePage, MADV_HUGEPAGE);
  if (block != nullptr) capacity_of(block) = capacity;
  return block;
}

bool is_kept(std::size_t capacity) {
#ifdef __SANITIZE_ADDRESS__  // which is to see what is used after its release
  return capacity == 0;
#else
  return capacity >= kKeptFrom;
#endif
}

}  // namespace

void* allocate_memory(std::size_t bytes) {
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  const std::size_t needed = bytes + kHeader;
  const bool kept = is_kept(needed);
  const std::size_t capacity = kept ? rounded_capacity(needed) : (needed + kHeader - 1) / kHeader * kHeader;
  void* block = kept ? kept_blocks().take(capacity) : nullptr;
  if (block == nullptr) block = fresh_block(capacity);
  if (block == nullptr) {
    kept_blocks().clear();
    block = fresh_block(capacity);
  }
  if (block == nullptr) throw std::bad_alloc();
  return static_cast<char*>(block) + kHeader;
}

void release_memory(void* memory) noexcept {
  if (memory == nullptr) return;
  void* const block = static_cast<char*>(memory) - kHeader;
  const std::size_t capacity = capacity_of(block);
  if (!is_kept(capacity) || !kept_blocks().keep(block, capacity)) std::free(block);
}

void give_back_memory(void* memory) noexcept {
  if (memory != nullptr) std::free(static_cast<char*>(memory) - kHeader);
}

std::size_t memory_capacity(const void* memory) noexcept {
  return *reinterpret_cast<const std::size_t*>(static_cast<const char*>(memory) - kHeader) - kHeader;
}

void free_kept_memory() noexcept {
  kept_blocks().clear();
#ifdef __GLIBC__  // which keeps, within its heap, what is smaller than 32 MiB
  malloc_trim(0);
#endif
}

}  // namespace blasformer
