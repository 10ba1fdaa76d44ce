#include "core/memory.h"

#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <new>
#include <utility>

#include "core/kept_memory.h"

namespace blasformer {

namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

#ifdef __SANITIZE_ADDRESS__  // which is to see what is used after its release
constexpr bool kKeepsBlocks = false;
#else
constexpr bool kKeepsBlocks = true;
#endif

// In front of the memory.
struct alignas(kAlignment) Header {
  std::size_t capacity;  // of the memory
  Header* next;          // of the same capacity, while nobody uses it
};

// What is in front of the memory, with the header. That of large blocks begins in the middle of a page: the
// system's begins 16 bytes after the beginning of one, and NumPy's arrays with it. Where an output would
// begin some lines after that, a kernel that reads one and writes the other reads, again and again, what
// looks to the CPU like lines that it has just written (it compares places in the page), and waits for them:
// gelu took 1.15 times as long (AVX-512, Zen 4).
constexpr std::size_t kPage = 4096;
std::size_t front_of(std::size_t capacity) {
  return kKeepsBlocks && capacity >= kLargeBlock ? kPage / 2 : sizeof(Header);
}

// Sizes that differ by up to a 32nd share blocks.
std::size_t capacity_step(std::size_t bytes) { return std::max(kAlignment, std::bit_floor(bytes) / 32); }

std::size_t rounded_capacity(std::size_t bytes) {
  const std::size_t step = capacity_step(bytes);
  return std::max(kAlignment, (bytes + step - 1) / step * step);
}

// Rises with the capacity; rounded capacities have one each.
std::size_t class_of(std::size_t capacity) {
  const auto octave = static_cast<std::size_t>(std::bit_width(capacity)) - 1;
  return octave * 32 + (capacity - std::bit_floor(capacity)) / capacity_step(capacity);
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

Header* fresh_block(std::size_t capacity) noexcept {
  const std::size_t front = front_of(capacity), size = front + capacity;
  const std::size_t alignment = size >= 2 * kHugePage    ? kHugePage
                                : front > sizeof(Header) ? kPage
                                                         : kAlignment;
  void* const memory = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) return nullptr;
  // Whole huge pages only: of the last one little may be used.
  if (alignment == kHugePage) madvise(memory, size / kHugePage * kHugePage, MADV_HUGEPAGE);
  return new (static_cast<char*>(memory) + front - sizeof(Header)) Header{capacity, nullptr};
}

void free_block(Header* block) noexcept {
  std::free(reinterpret_cast<char*>(block + 1) - front_of(block->capacity));
}

// Blocks that nobody uses. One thread at a time; others, and a child forked while one was here, do without.
class KeptBlocks {
 public:
  Header* take(std::size_t capacity) noexcept {
    if (busy_.test_and_set(std::memory_order_acquire)) return nullptr;
    Header* block = nullptr;
    // A block up to half as large again will do: memory that waits for its own size is memory twice.
    const std::size_t last = std::min(class_of(capacity + capacity / 2), kClasses - 1);
    for (std::size_t i = class_of(capacity); block == nullptr && i <= last; ++i) {
      block = first_[i];
      if (block == nullptr) continue;
      first_[i] = block->next;
      bytes_[is_large(block->capacity)] -= block->capacity;
    }
    busy_.clear(std::memory_order_release);
    return block;
  }

  // False if the block is to be freed.
  bool keep(Header* block) noexcept {
    const std::size_t capacity = block->capacity, limit = limit_[is_large(capacity)];
    if (capacity > limit / 2 || busy_.test_and_set(std::memory_order_acquire)) return false;
    std::size_t& bytes = bytes_[is_large(capacity)];
    if (bytes + capacity > limit) free_all();  // sizes have changed: what is here is not asked for
    Header*& first = first_[class_of(capacity)];
    block->next = first;
    first = block;
    bytes += capacity;
    busy_.clear(std::memory_order_release);
    return true;
  }

  void clear() noexcept {
    if (busy_.test_and_set(std::memory_order_acquire)) return;
    free_all();
    busy_.clear(std::memory_order_release);
  }

 private:
  static bool is_large(std::size_t capacity) { return capacity >= kLargeBlock; }

  void free_all() noexcept {
    for (Header*& first : first_) {
      while (first != nullptr) free_block(std::exchange(first, first->next));
    }
    std::fill(std::begin(bytes_), std::end(bytes_), 0);
  }

  static constexpr std::size_t kClasses = 32 * 32;  // below 4 GiB, more than is kept
  std::atomic_flag busy_;
  Header* first_[kClasses] = {};
  std::size_t bytes_[2] = {};  // of small and of large blocks
  const std::size_t limit_[2] = {std::size_t{8} << 20,
                                 std::min(available_memory() / 16, std::size_t{1} << 30)};
};

// Never destroyed: arrays may be released after everything else.
KeptBlocks& kept_blocks() {
  static KeptBlocks* const blocks = new KeptBlocks;
  return *blocks;
}

Header* header_of(void* memory) { return static_cast<Header*>(memory) - 1; }

}  // namespace

void* allocate_memory(std::size_t bytes) {
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  const std::size_t capacity =
      kKeepsBlocks ? rounded_capacity(bytes) : (bytes + kAlignment - 1) / kAlignment * kAlignment;
  Header* block = kKeepsBlocks ? kept_blocks().take(capacity) : nullptr;
  if (block == nullptr) block = fresh_block(capacity);
  if (block == nullptr) {
    kept_blocks().clear();
    block = fresh_block(capacity);
  }
  if (block == nullptr) throw std::bad_alloc();
  return block + 1;
}

void release_memory(void* memory) noexcept {
  if (memory == nullptr) return;
  if (!kKeepsBlocks || !kept_blocks().keep(header_of(memory))) free_block(header_of(memory));
}

void give_back_memory(void* memory) noexcept {
  if (memory != nullptr) free_block(header_of(memory));
}

std::size_t memory_capacity(const void* memory) noexcept {
  return (static_cast<const Header*>(memory) - 1)->capacity;
}

void free_kept_memory() noexcept {
  kept_blocks().clear();
#ifdef __GLIBC__  // which keeps, within its heap, what is smaller than 32 MiB
  malloc_trim(0);
#endif
}

}  // namespace blasformer
