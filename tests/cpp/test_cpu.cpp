#include <algorithm>

#include "check.h"
#include "core/cpu.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace blasformer {

TEST(every_cpu_has_the_baseline_and_older_sets_come_first) {
  const std::vector<std::string> isas = detected_isas(), built = built_isas();
  CHECK(isas.front() == "baseline");
  CHECK(std::includes(
      built.begin(), built.end(), isas.begin(), isas.end(), [&](const std::string& a, const std::string& b) {
        return std::find(built.begin(), built.end(), a) < std::find(built.begin(), built.end(), b);
      }));
}

TEST(use_isa_decides_which_one_is_active) {
  const std::string before = active_isa_name();
  for (const std::string& isa : detected_isas()) {
    use_isa(isa);
    CHECK(active_isa_name() == isa);
    CHECK((active_tile_unit() == TileUnit::amx) == (isa == "amx"));
  }
  use_isa(before);
}

TEST(the_reference_of_tiles_runs_everywhere_beside_the_newest_vectors) {
  const std::string before = active_isa_name();
  use_isa(detected_isas().back());
  const Isa newest = active_isa();
  use_isa("amx_reference");
  CHECK(active_isa_name() == "amx_reference" && active_isa() == newest);
  CHECK(active_tile_unit() == TileUnit::reference);
  use_isa(before);
}

#if defined(__linux__) && defined(__x86_64__)
TEST(amx_is_detected_where_linux_offers_tiles_and_has_then_permitted_them) {
  constexpr long kSupported = 0x1021, kPermitted = 0x1022;  // ARCH_GET_XCOMP_SUPP, ARCH_GET_XCOMP_PERM
  constexpr unsigned long long kTileData = 1ull << 18;
  const std::vector<std::string> isas = detected_isas(), built = built_isas();
  if (std::find(built.begin(), built.end(), "amx") == built.end()) throw tests::Skipped{"AMX is not built"};
  unsigned long long supported = 0, permitted = 0;
  if (syscall(SYS_arch_prctl, kSupported, &supported) != 0) throw tests::Skipped{"Linux older than 5.16"};
  CHECK(syscall(SYS_arch_prctl, kPermitted, &permitted) == 0);
  CHECK((isas.back() == "amx") == ((supported & kTileData) != 0));
  CHECK((isas.back() == "amx") == ((permitted & kTileData) != 0));
}
#endif

TEST(an_unknown_instruction_set_is_refused_with_the_names_of_all) {
  const std::string message = tests::message_of<std::invalid_argument>([] { use_isa("mmx"); });
  CHECK(message.find("isa must be one of baseline, avx2, avx512, ") == 0);
  CHECK(message.find("amx_reference, got mmx") != std::string::npos);
}

}  // namespace blasformer
