#pragma once

#include <string>
#include <vector>

namespace blasformer {

// Instruction sets, from the one every x86-64 has to the newest; the order is that of preference.
enum class Isa { baseline, avx2, avx512 };

const char* isa_name(Isa isa);
std::vector<Isa> built_isas();  // those this library has kernels for, ascending
std::vector<Isa>
detected_isas();        // those this CPU and operating system can run, by CPUID and XCR0, ascending
Isa active_isa();       // the one kernels are taken from: the newest, or BLASFORMER_ISA, or use_isa
void use_isa(Isa isa);  // throws std::invalid_argument when the CPU lacks it
Isa isa_from_name(const std::string& name);  // throws std::invalid_argument that lists the names

}  // namespace blasformer
