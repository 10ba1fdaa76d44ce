#include "check.h"
#include "core/cpu.h"

namespace blasformer {

TEST(every_cpu_has_the_baseline_and_older_sets_come_first) {
  const std::vector<Isa> isas = detected_isas();
  CHECK(isas.front() == Isa::baseline);
  for (std::size_t i = 0; i < isas.size(); ++i) CHECK(isas[i] == static_cast<Isa>(i));
}

TEST(use_isa_decides_which_one_is_active) {
  const Isa before = active_isa();
  for (Isa isa : detected_isas()) {
    use_isa(isa);
    CHECK(active_isa() == isa);
  }
  use_isa(before);
}

TEST(instruction_sets_are_found_by_their_names) {
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) CHECK(isa_from_name(isa_name(isa)) == isa);
  const std::string message = tests::message_of<std::invalid_argument>([] { isa_from_name("mmx"); });
  CHECK(message == "isa must be one of baseline, avx2, avx512, got mmx");
}

}  // namespace blasformer
