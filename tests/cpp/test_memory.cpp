#include <algorithm>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"
#include "core/memory.h"

namespace blasformer {

namespace {

// Around the bounds of a cache line, of the sizes that share blocks, of large blocks and of huge pages.
constexpr std::size_t kSizes[] = {0,     1,     63,    64,    65,     1000,    2047,    2049,
                                  31745, 32767, 32768, 32769, 100000, 1 << 20, 4 << 20, (4 << 20) + 1};

bool is_filled(const unsigned char* memory, std::size_t bytes, unsigned char value) {
  return std::all_of(memory, memory + bytes, [&](unsigned char byte) { return byte == value; });
}

// Takes and gives back blocks of many sizes; what it writes into one no other may change.
bool blocks_are_its_own(unsigned seed) {
  std::vector<std::pair<unsigned char*, std::size_t>> held;
  bool ok = true;
  for (unsigned i = 0; i < 3000; ++i) {
    seed = seed * 1664525 + 1013904223;
    if (held.size() < 40 && (seed >> 16) % 2 == 0) {
      const std::size_t bytes = kSizes[(seed >> 20) % 13];
      auto* const memory = static_cast<unsigned char*>(allocate_memory(bytes));
      std::memset(memory, static_cast<int>(held.size() % 251), bytes);
      held.emplace_back(memory, bytes);
    } else if (!held.empty()) {
      const auto [memory, bytes] = held.back();
      held.pop_back();
      ok = ok && is_filled(memory, bytes, static_cast<unsigned char>(held.size() % 251));
      release_memory(memory);
    }
  }
  for (const auto& [memory, bytes] : held) release_memory(memory);
  return ok;
}

}  // namespace

TEST(memory_begins_at_a_cache_line_and_is_as_large_as_asked_for) {
  for (const std::size_t bytes : kSizes) {
    void* const memory = allocate_memory(bytes);
    CHECK(reinterpret_cast<std::uintptr_t>(memory) % 64 == 0);
    CHECK(memory_capacity(memory) >= bytes);
    std::memset(memory, 255, memory_capacity(memory));
    release_memory(memory);
  }
}

TEST(a_block_is_held_by_one_at_a_time_in_every_thread) {
  bool ok[4] = {};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 4; ++i) threads.emplace_back([&ok, i] { ok[i] = blocks_are_its_own(i); });
  for (std::thread& thread : threads) thread.join();
  CHECK(std::all_of(std::begin(ok), std::end(ok), [](bool one) { return one; }));
}

#ifndef __SANITIZE_ADDRESS__  // under which nothing is kept
TEST(large_blocks_begin_in_the_middle_of_a_page) {
  for (const std::size_t bytes : kSizes) {
    if (bytes < kLargeBlock) continue;
    void* const memory = allocate_memory(bytes);
    CHECK(reinterpret_cast<std::uintptr_t>(memory) % 4096 == 2048);
    release_memory(memory);
  }
}

TEST(what_is_released_serves_the_next_request_of_its_size) {
  for (const std::size_t bytes : kSizes) {
    if (bytes < 64) continue;
    void* const memory = allocate_memory(bytes);
    release_memory(memory);
    void* const same = allocate_memory(bytes);
    CHECK(same == memory);
    release_memory(same);
  }
}
#endif

TEST(a_size_with_which_nothing_can_be_computed_is_bad_alloc) {
  for (const std::size_t bytes : {SIZE_MAX, SIZE_MAX / 2 + 1})
    tests::message_of<std::bad_alloc>([&] { release_memory(allocate_memory(bytes)); });
}

}  // namespace blasformer
