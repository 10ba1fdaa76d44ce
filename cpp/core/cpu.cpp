#include "core/cpu.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "core/require.h"

namespace blasformer {

namespace {

constexpr Isa kIsas[] = {Isa::baseline, Isa::avx2, Isa::avx512};

#if defined(__x86_64__)

struct CpuId {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  explicit CpuId(unsigned leaf) {
    __get_cpuid_count(leaf, 0, &eax, &ebx, &ecx, &edx);
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

Isa detect() {
  const CpuId basic(1), extended(7);
  const std::uint64_t states = saved_states(basic);
  const auto has_all = [](std::uint64_t bits, std::uint64_t wanted) { return (bits & wanted) == wanted; };

  constexpr std::uint64_t kYmmStates = 0x06;  // XMM and the upper halves of YMM
  const bool avx2 = has_all(states, kYmmStates) && has_all(basic.ecx, bit_AVX | bit_FMA | bit_F16C) &&
                    has_all(extended.ebx, bit_AVX2 | bit_BMI | bit_BMI2);
  if (!avx2) return Isa::baseline;

  constexpr std::uint64_t kZmmStates = 0xe6;  // those and opmask, the upper halves of ZMM0-15, ZMM16-31
  const bool avx512 =
      has_all(states, kZmmStates) &&
      has_all(extended.ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL | bit_AVX512CD);
  return avx512 ? Isa::avx512 : Isa::avx2;
}

#else

Isa detect() { return Isa::baseline; }

#endif

Isa newest_isa() {
  static const Isa newest = detect();
  return newest;
}

std::string names(const std::vector<Isa>& isas) {
  std::string text;
  for (Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(isa_name(isa));
  return text;
}

void require_detected(Isa isa, const char* source) {
  require(isa <= newest_isa(), source, " must be an instruction set of this CPU (", names(detected_isas()),
          "), got ", isa_name(isa));
}

Isa initial_isa() {
  const char* forced = std::getenv("BLASFORMER_ISA");
  if (forced == nullptr || *forced == '\0') return newest_isa();
  for (Isa isa : kIsas) {
    if (isa_name(isa) == std::string(forced)) {
      require_detected(isa, "BLASFORMER_ISA");
      return isa;
    }
  }
  fail("BLASFORMER_ISA must be an instruction set of this CPU (", names(detected_isas()), "), got ", forced);
}

constexpr int kUndecided = -1;
std::atomic<int> active{kUndecided};

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::baseline: return "baseline";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
  }
  return "";
}

std::vector<Isa> built_isas() { return {std::begin(kIsas), std::end(kIsas)}; }

std::vector<Isa> detected_isas() {
  std::vector<Isa> isas;
  for (Isa isa : kIsas) {
    if (isa <= newest_isa()) isas.push_back(isa);
  }
  return isas;
}

Isa active_isa() {
  int isa = active.load(std::memory_order_relaxed);
  if (isa == kUndecided) {
    // A use_isa of another thread in the meantime wins.
    const int initial = static_cast<int>(initial_isa());
    isa = active.compare_exchange_strong(isa, initial) ? initial : isa;
  }
  return static_cast<Isa>(isa);
}

void use_isa(Isa isa) {
  require_detected(isa, "isa");
  active.store(static_cast<int>(isa), std::memory_order_relaxed);
}

Isa isa_from_name(const std::string& name) {
  for (Isa isa : kIsas) {
    if (name == isa_name(isa)) return isa;
  }
  fail("isa must be one of ", names(built_isas()), ", got ", name);
}

}  // namespace blasformer
