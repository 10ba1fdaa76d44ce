#include "core/cpu.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/require.h"

namespace blasformer {

namespace {

struct Detected {
  Isa newest = Isa::baseline;
  bool dot_products = false;  // of bfloat16 numbers, fast ones
  bool tiles = false;         // of bfloat16 numbers, if the kernel permits them
};

#if defined(__x86_64__)

struct CpuId {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  explicit CpuId(unsigned leaf, unsigned subleaf = 0) {
    __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx);
  }  // all zero if there is no such leaf
};

// The register states that the operating system saves when it switches threads. Without OSXSAVE the
// instruction is missing.
std::uint64_t saved_states(const CpuId& features) {
  if ((features.ecx & bit_OSXSAVE) == 0) return 0;
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

Detected detect() {
  const CpuId basic(1), extended(7), more(7, 1);
  const std::uint64_t states = saved_states(basic);
  const auto has_all = [](std::uint64_t bits, std::uint64_t wanted) { return (bits & wanted) == wanted; };

  constexpr std::uint64_t kYmmStates = 0x06;  // XMM and the upper halves of YMM
  const bool avx2 = has_all(states, kYmmStates) && has_all(basic.ecx, bit_AVX | bit_FMA | bit_F16C) &&
                    has_all(extended.ebx, bit_AVX2 | bit_BMI | bit_BMI2);
  if (!avx2) return {};

  constexpr std::uint64_t kZmmStates = 0xe6;  // those and opmask, the upper halves of ZMM0-15, ZMM16-31
  const bool avx512 =
      has_all(states, kZmmStates) &&
      has_all(extended.ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL | bit_AVX512CD);
  if (!avx512) return {Isa::avx2};

  constexpr unsigned kAvx512Bf16 = 1u << 5, kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  constexpr std::uint64_t kTileStates = 0x60000;  // XTILECFG and XTILEDATA
  const bool amx = has_all(extended.edx, kAmxBf16 | kAmxTile);
  // CPUs that have tiles leave the dot products slow: less than half as fast as float32 multiply-adds.
  return {Isa::avx512, has_all(more.eax, kAvx512Bf16) && !amx, amx && has_all(states, kTileStates)};
}

// Linux lets a process use tiles if it asks for them: its signal frames then are 8 KB larger. It refuses
// when a thread has an alternate signal stack too small for that, and does not know the question before 5.16.
bool tiles_are_permitted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

#else

Detected detect() { return {}; }
bool tiles_are_permitted() { return false; }

#endif

const Detected& detected() {
  static const Detected result = detect();
  return result;
}

bool may_use_tiles() {
#if defined(BLASFORMER_HAS_AMX)
  static const bool result = detected().tiles && tiles_are_permitted();
  return result;
#else
  return false;
#endif
}

TileUnit dot_products() {
#if defined(BLASFORMER_HAS_AVX512_BF16)
  if (detected().dot_products) return TileUnit::avx512_bf16;
#endif
  return TileUnit::none;
}

// What may be in use, in the order of kNames.
enum Choice : int { kBaseline, kAvx2, kAvx512, kAmx, kAmxReference, kUndecided };
constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "amx", "amx_reference"};

bool is_built([[maybe_unused]] Choice choice) {
#if defined(BLASFORMER_HAS_AMX)
  return true;
#else
  return choice != kAmx;
#endif
}

bool is_detected(Choice choice) {
  if (choice <= kAvx512) return choice <= static_cast<int>(detected().newest);
  return choice == kAmx && may_use_tiles();
}

template <class Condition>
std::vector<std::string> names_where(const Condition& condition) {
  std::vector<std::string> names;
  for (int choice = 0; choice < kUndecided; ++choice) {
    if (condition(static_cast<Choice>(choice))) names.emplace_back(kNames[choice]);
  }
  return names;
}

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// kUndecided if there is none.
Choice choice_named(const std::string& name) {
  int choice = 0;
  while (choice < kUndecided && (name != kNames[choice] || !is_built(static_cast<Choice>(choice)))) ++choice;
  return static_cast<Choice>(choice);
}

Choice initial_choice() {
  const char* forced = std::getenv("BLASFORMER_ISA");
  if (forced == nullptr || *forced == '\0')
    return may_use_tiles() ? kAmx : static_cast<Choice>(detected().newest);
  const Choice choice = choice_named(forced);
  require(choice == kAmxReference || is_detected(choice),
          "BLASFORMER_ISA must be an instruction set of this CPU (", listed(detected_isas()), "), got ",
          forced);
  return choice;
}

std::atomic<int> active{kUndecided};

Choice active_choice() {
  int choice = active.load(std::memory_order_relaxed);
  if (choice == kUndecided) {
    // A use_isa of another thread in the meantime wins.
    const int initial = initial_choice();
    choice = active.compare_exchange_strong(choice, initial) ? initial : choice;
  }
  return static_cast<Choice>(choice);
}

}  // namespace

std::vector<std::string> built_isas() { return names_where(is_built); }
std::vector<std::string> detected_isas() { return names_where(is_detected); }
std::string active_isa_name() { return kNames[active_choice()]; }

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa active_isa() {
  const Choice choice = active_choice();
  return choice <= kAvx512 ? static_cast<Isa>(choice) : detected().newest;
}

TileUnit active_tile_unit() {
  switch (active_choice()) {
    case kAmx: return TileUnit::amx;
    case kAmxReference: return TileUnit::reference;
    case kAvx512: return dot_products();
    default: return TileUnit::none;
  }
}

void use_isa(const std::string& name) {
  const Choice choice = choice_named(name);
  require(choice != kUndecided, "isa must be one of ", listed(built_isas()), ", got ", name);
  require(choice == kAmxReference || is_detected(choice), "isa must be an instruction set of this CPU (",
          listed(detected_isas()), "), got ", name);
  active.store(choice, std::memory_order_relaxed);
}

}  // namespace blasformer
